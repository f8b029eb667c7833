"""AdamW with warm-up and cosine decay, which parameters decay, and what moves the rows of tables."""

from __future__ import annotations

import collections.abc
import typing

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from synergen_jax.config import OptimiserConfig

DENSE_UP_TO = 4_000_000  # numbers in a table that "auto" moves the dense way: Adam over them is cheap, and exact


def schedule(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear to the peak over `warmup` steps, then a cosine down to `final` x peak at `steps`."""
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, config.warmup, max(steps, config.warmup + 1), peak * config.final
    )


def clipped(config: OptimiserConfig, norm: Array) -> Array:
    """What a gradient of that global norm is multiplied by."""
    return jnp.minimum(1.0, config.clip / jnp.maximum(norm, 1e-30)) if config.clip else jnp.ones(())


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) for everything that is updated as a whole, after `clipped`.

    Weights of linear maps decay. Rows of tables, norms, biases and token kinds do not: a row that is rarely used would
    fade by decay alone.
    """

    def decays(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)

    return optax.adamw(
        schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decays
    )


class RowOptimiser(typing.NamedTuple):
    """As an `optax.GradientTransformation`, for those rows of a table that a step has a gradient of."""

    state: dict[str, int]  # name -> numbers that are remembered of a row: 0 is one a row, 1 is one a number of it
    update: collections.abc.Callable[[Array, dict[str, Array], Array], tuple[Array, dict[str, Array]]]
    """`update(gradient (M, D), state of these rows, step) -> (updates (M, D), state)`; zeros give zeros."""


def row_optimiser(config: OptimiserConfig, kind: str, steps: int) -> RowOptimiser:
    """What `optimiser.table` names.

    "adam": lazy Adam. Moments of a row move in the steps that the row is in, bias is corrected by the step of the run.
    A row that is in every step moves as with dense Adam; one that is not stays where it is, while dense Adam would let its
    moments decay and the row drift on along them.

    "adagrad": row-wise Adagrad (Duchi et al. 2011; one sum a row as in Naumov et al. 2019, DLRM): a tenth of the memory and
    less, and no moment that grows stale.
    """
    rate = schedule(config, steps)

    def adam(gradient, state, step):
        b1, b2, t = config.b1, config.b2, step.astype(jnp.float32) + 1
        mu = b1 * state["mu"] + (1 - b1) * gradient
        nu = b2 * state["nu"] + (1 - b2) * gradient * gradient
        updates = -jnp.asarray(rate(step)) * (mu / (1 - b1**t)) / (jnp.sqrt(nu / (1 - b2**t)) + 1e-8)
        return updates, {"mu": mu, "nu": nu}

    def adagrad(gradient, state, step):
        total = state["sum"] + jnp.mean(gradient * gradient, axis=-1)
        return -jnp.asarray(rate(step)) * gradient / (jnp.sqrt(total)[:, None] + 1e-8), {"sum": total}

    return {"adam": RowOptimiser({"mu": 1, "nu": 1}, adam), "adagrad": RowOptimiser({"sum": 0}, adagrad)}[kind]


def table_kind(config: OptimiserConfig, size: int, whole: bool = False) -> str:
    """Whether a table of `size` numbers is updated as a whole, "dense", or by row, "adam" or "adagrad".

    Args:
      whole: every row has a gradient in every step.
    """
    if whole:
        return "dense"
    if config.table == "auto":
        return "dense" if size <= DENSE_UP_TO else "adam"
    return config.table
