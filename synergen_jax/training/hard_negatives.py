"""Hard candidates: items that the model itself retrieves at that moment join the lists that ranking learns from.

They are mined in the step, from the pool of the retrieval loss, so that they are never stale (Xiong et al. 2021 refresh
theirs from time to time), and drawn at random from as many as ranking will see. Where the pool is the whole catalogue,
split by row over the devices, all queries visit all devices, each of which finds the best among its own rows; what is
merged are scores and ids, and of the catalogue's rows only those that were drawn are sent.
"""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray, Candidates
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import table
from synergen_jax.training import losses

FIRST = 100  # items, retrieved first, among which hard candidates are drawn: what ranking is given in serving
TILE = (256, 4096)  # ranked events, and items, whose scores exist at one time
_USERS, _WHOLE = PartitionSpec("data"), PartitionSpec()


class Pool(typing.NamedTuple):
    """Items that candidates are mined from: P of them, whole on every device, or all (A, 768), stored as a table is."""

    keys: Float[Array, "*p d"]
    ids: Int[Array, "*p"]  # 0: takes no part
    stored: bool  # as a table is


class Best(typing.NamedTuple):
    """Items of the pool that are retrieved first at each ranked event, the best first."""

    score: Float[Array, "b e f"]  # -inf where there are fewer
    item: Int[Array, "b e f"]
    place: Int[Array, "b e f"]  # in the pool; in a stored one that is the id


def best(
    mesh: Mesh,
    query: Float[Array, "b e d"],
    pool: Pool,
    candidates: Candidates,
    had: Int[AnyArray, "b l"] | None,
    first: Int[AnyArray, "b l"] | None,
    most: int,
) -> Best:
    """The `most` items of the pool with the highest scores, at each ranked event; of equal ones the one that stands first.

    Left out are items of the user's window and those of the lists in it; where people come back to items, those of the
    event's own list alone; and items with a key of zeros, of which nothing is known in this step, as serving never
    retrieves one. Not differentiable.

    Args:
      query: retrieval vectors of the ranked events.
      candidates: their lists.
      had: the windows' items, None where people come back to items; first: where the segment of each begins, in packed rows.
    """

    def local(mine, keys, ids):
        keys, ids = keys.reshape(-1, keys.shape[-1]), ids.reshape(-1)
        if not pool.stored:
            score, place = _best(mine, keys, ids, jnp.arange(ids.size), most)
            return Best(score, ids[place], place)
        every = jax.tree.map(lambda x: jax.lax.all_gather(x, "data", tiled=True), mine)
        found = _best(every, keys, ids, ids, most)
        found = full_ranking.best_of_all(mesh, found, most)
        return Best(found[0], found[1], found[1])

    lay = table.SPLIT if pool.stored else _WHOLE
    split = jax.shard_map(local, mesh=mesh, in_specs=(_USERS, lay, lay), out_specs=_USERS, check_vma=False)
    mine = query, candidates.item, had, None if first is None else (candidates.first, first)
    return split(*jax.lax.stop_gradient((mine, pool.keys, pool.ids)))


def _best(mine: tuple, keys: Array, ids: Array, place: Array, most: int) -> tuple[Array, Array]:
    """Scores and places, (B, E, at most `most`), of the best of a device's items (P, D), in tiles."""
    users, events = mine[0].shape[:2]
    most = min(most, ids.size)
    items = losses.tiles(TILE[1], keys, ids, place)

    def of_users(mine):
        query, known = mine[0], _known(*mine[1:])

        def more(found, part):
            keys, ids, place = part
            free = jax.vmap(jax.vmap(lambda known: (ids > 0) & ~jnp.isin(ids, known)))(known)
            score = query @ keys.T + full_ranking.known_bias(keys)[None, None]
            return full_ranking.keep_best(found, jnp.where(free, score, -jnp.inf), place), None

        shape = *query.shape[:2], most
        return jax.lax.scan(more, (jnp.full(shape, -jnp.inf), jnp.zeros(shape, place.dtype)), items)[0]

    found = jax.lax.map(of_users, losses.tiles(max(TILE[0] // events, 1), *mine))
    return jax.tree.map(lambda x: x.reshape(-1, events, most)[:users], found)


def _known(item: Array, had: Array | None, segments: tuple[Array, Array] | None) -> Array:
    """Items of each ranked event's own window and of the lists in it, 0 where there is none.

    Returns:
      (B, 1, L + E * K): one answer for all events of a row; (B, E, L + E * K) of packed rows; (B, E, K) where nothing
      counts as had.
    """
    if had is None:
        return item
    users, _, size = item.shape
    known = jnp.concatenate([had, item.reshape(users, -1)], axis=1)[:, None]
    if segments is None:
        return known
    own, first = segments
    first = jnp.concatenate([first, jnp.repeat(own, size, axis=1)], axis=1)
    return jnp.where(first[:, None] == own[:, :, None], known, 0)


def draw(candidates: Candidates, found: Best, count: int, key: Array | None) -> tuple[Candidates, Array]:
    """Lists that are longer by `count` of the items that were found, drawn with equal chances and without replacement.

    The label of a drawn item is that of a sampled candidate: 0 for the first label, unknown for the others. Lists of
    no item stay empty.

    Args:
      key: of the draw; None takes the very first ones.

    Returns:
      The lists, and where in the pool the items at their ends stand, (B, E, count).
    """
    score, item, place = found
    count = min(count, score.shape[-1])
    if key is not None:
        luck = jnp.where(score > -jnp.inf, jax.random.uniform(key, score.shape), -1.0)
        _, drawn = jax.lax.top_k(luck, count)
        score, item, place = (jnp.take_along_axis(x, drawn, axis=-1) for x in found)
    score, item, place = score[..., :count], item[..., :count], place[..., :count]
    real = (score > -jnp.inf) & (candidates.item[:, :, :1] > 0)
    item = jnp.where(real, item, 0)
    label = jnp.full((*item.shape, candidates.label.shape[-1]), -1, candidates.label.dtype)
    label = label.at[..., 0].set(jnp.where(real, 0, -1).astype(label.dtype))
    feature = candidates.feature
    if feature is not None:
        feature = jnp.concatenate([feature, jnp.zeros((*item.shape, feature.shape[-1]), feature.dtype)], axis=2)
    item = jnp.concatenate([candidates.item, item], axis=2)
    label = jnp.concatenate([candidates.label, label], axis=2)
    return dataclasses.replace(candidates, item=item, label=label, feature=feature), place


def vectors(
    mesh: Mesh, pool: Pool, values: Float[Array, "*p d"], place: Int[Array, "b e k"]
) -> Float[Array, "b e k d"]:
    """Vectors of the pool's items at some places. Differentiable.

    Args:
      values: vectors of all items of the pool, which lie as its keys do.
    """
    if not pool.stored:
        return values[place]

    def local(values, place):
        every = jax.lax.all_gather(place, "data", tiled=True)
        at = table.place_among_own(every, values.shape[1])
        flat = values.reshape(-1, values.shape[2])
        mine = jnp.where((at >= 0)[..., None], flat.at[at].get(mode="clip"), 0)
        return jax.lax.psum(jax.lax.psum_scatter(mine, "data", tiled=True), "model")

    split = jax.shard_map(local, mesh=mesh, in_specs=(table.SPLIT, _USERS), out_specs=_USERS)
    return split(values, place)


def expected_draws(score: Array, found: Best, count: int, log_pooled: Array | None) -> Array:
    """How often each candidate is expected among the `count` hard ones of its list, (B, E, K); 0 behind the first ones.

    Args:
      score: retrieval scores of the candidates, (B, E, K); -inf for one that is never retrieved.
      log_pooled: of how often each is expected in the pool; None where the pool has every item once.
    """
    least = found.score[..., -1:]  # -inf where there are fewer: nothing is behind them
    least = least - 1e-5 * (1 + jnp.abs(least))  # a score that is computed another way is off by rounding
    there = jnp.sum(found.score > -jnp.inf, axis=-1, keepdims=True)  # among which they are drawn
    drawn = count / jnp.maximum(there, count)
    mean = drawn * (1.0 if log_pooled is None else jnp.exp(log_pooled))
    return jnp.where((score >= least) & (score > -jnp.inf), mean, 0.0)


def log_oversampled(drawn: Array, sampled: Array) -> Array:
    """What is taken from the logits of candidates, since the first ones of retrieval come up more often than others.

    The head learns log (p / q) of p, how likely an item is chosen, and q, how often it comes up as a candidate. Among
    uniformly sampled candidates that is the order of p. Hard ones alone make a high retrieval score a bad sign: the
    chosen item often lies behind all of them. With log q taken off before the loss, the logit is that of p over
    uniform sampling for every item, as the log-Q correction makes it for retrieval.

    Args:
      drawn: expected hard draws of each candidate in its list, 0 behind the first ones; sampled: of uniform ones.
    """
    return jnp.log1p(drawn / jnp.maximum(sampled, 1e-9))
