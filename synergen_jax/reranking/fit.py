"""Fits a ranker to lists whose target is known: a softmax over each list, stopped by users who are held back.

The lists are those that the model itself retrieves for requests that its training did not meet: on requests that it
learned by heart its score would look better than it is, and a ranker would lean on it too much.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from synergen_jax.errors import UserError
from synergen_jax.reranking.ranker import Ranker, RankerNet

LEAST = 20  # lists with their target, on each side


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a ranker is fitted."""

    steps: int = 3000
    batch: int = 128  # lists
    learning_rate: float = 3e-3
    warmup: int = 100  # steps
    weight_decay: float = 1e-2
    every: int = 100  # steps between two looks at the lists that are held back
    held: float = 0.2  # share of the users whose lists are held back
    seed: int = 0


class Lists(typing.NamedTuple):
    """n lists of F items, in the order of retrieval."""

    user: np.ndarray  # (n,)
    feature: np.ndarray  # (n, F, C) float32
    there: np.ndarray  # (n, F) where there is an item
    target: np.ndarray  # (n,) place of the target in its list, from 0


def fit(
    lists: Lists, columns: collections.abc.Sequence[str], settings: Settings, about: dict[str, typing.Any]
) -> Ranker:
    """Fits a ranker by a list-wise loss, -log softmax of the target over its list (ListNet, Cao et al. 2007).

    AdamW with a cosine schedule; of the states looked at, that of the least mean loss of the users who are held back is
    kept, the first one, which leaves the order of retrieval as it is, among them.

    Args:
      columns: names of the C features, the score of retrieval first.
      about: joins what is found in `Ranker.about`.

    Raises:
      UserError: there are too few lists.
    """
    users = np.unique(lists.user)
    rng = np.random.default_rng(settings.seed)
    back = rng.permutation(users)[: round(len(users) * settings.held)]
    held = np.isin(lists.user, back)
    if min(held.sum(), (~held).sum()) < LEAST:
        raise UserError(
            f"a ranker needs {LEAST} lists with their target to learn from and {LEAST} more to stop by, of other users; there "
            f"are {(~held).sum()} and {held.sum()}"
        )
    learned = lists.feature[~held][lists.there[~held]]
    mean, spread = learned.mean(axis=0), learned.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
    whole = Lists(lists.user, (lists.feature - mean) / spread, lists.there, lists.target)
    train, rest = (Lists(*(part[which] for part in whole)) for which in (~held, held))
    variables, found = _descend(train, rest, settings, rng)
    told = {"lists": len(train.user), "held_lists": len(rest.user), "settings": dataclasses.asdict(settings)}
    return Ranker(tuple(columns), mean.astype(np.float32), spread, variables, about | told | found)


def _descend(train: Lists, held: Lists, settings: Settings, rng: np.random.Generator):
    """The variables of least loss on `held`, and what was found on the way."""
    net = RankerNet()
    key = jax.random.key(settings.seed)
    variables = net.init(key, jnp.zeros((1, 1, train.feature.shape[-1])))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, min(settings.warmup, settings.steps // 2), settings.steps
    )
    optimiser = optax.adamw(rate, weight_decay=settings.weight_decay)
    step = functools.partial(_step, net, optimiser)
    state = optimiser.init(variables)
    before = best = _held_loss(net, variables, held)
    kept, at, order = variables, 0, np.zeros(0, np.int64)
    for number in range(1, settings.steps + 1):
        if len(order) < settings.batch:
            order = np.concatenate([order, rng.permutation(len(train.user))])
        rows, order = order[: settings.batch], order[settings.batch :]
        some = train.feature[rows], train.there[rows], train.target[rows]
        variables, state = step(variables, state, *some, jax.random.fold_in(key, number))
        if number % settings.every == 0 or number == settings.steps:
            loss = _held_loss(net, variables, held)
            if loss < best:
                kept, best, at = variables, loss, number
    return jax.device_get(kept), {"steps": at, "held_loss": best, "held_loss_before": before}


def list_loss(score: Array, there: Array, target: Array) -> Array:
    """Mean over lists of -log softmax of the target's score, (n, F), over the items that are there."""
    score = jnp.where(there, score, -jnp.inf)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(score, target))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(net: RankerNet, optimiser: optax.GradientTransformation, variables, state, feature, there, target, key):
    def loss(variables):
        score = net.apply(variables, feature, False, rngs={"dropout": key})
        return list_loss(typing.cast(Array, score), there, target)

    updates, state = optimiser.update(jax.grad(loss)(variables), state, variables)
    return optax.apply_updates(variables, updates), state


@functools.partial(jax.jit, static_argnums=0)
def _loss(net: RankerNet, variables, feature, there, target):
    return list_loss(typing.cast(Array, net.apply(variables, feature)), there, target)


def _held_loss(net: RankerNet, variables, held: Lists, chunk: int = 2048) -> float:
    total = 0.0
    for start in range(0, len(held.user), chunk):
        some = slice(start, start + chunk)
        part = held.feature[some], held.there[some], held.target[some]
        total += float(_loss(net, variables, *part)) * len(part[2])
    return total / len(held.user)
