"""AdamW with warm-up and cosine decay, and which parameters decay."""

from __future__ import annotations

import jax
import optax

from synergen_jax.config import OptimiserConfig


def schedule(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear to the peak over `warmup` steps, then a cosine down to `final` x peak at `steps`."""
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, config.warmup, max(steps, config.warmup + 1), peak * config.final
    )


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (Loshchilov and Hutter 2019).

    Weights of linear maps decay. Rows of tables, norms, biases and token kinds do not: a row that is rarely used would
    fade by decay alone.
    """

    def decays(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)

    adam = optax.adamw(
        schedule(config, steps), b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decays
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam
