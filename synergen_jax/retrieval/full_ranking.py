"""Full ranking: some queries against all items of a catalogue, where its rows lie.

Items are split by row over all devices, as `table` stores them. Queries visit all devices, each of which scores its own rows in
tiles; what is put together are counts, or the best scores and their ids. So neither a device nor the network ever has
the whole catalogue, or all scores of a query.

An item of which nothing is known, neither an event of training nor a semantic row, has a key of zeros. Its inner products
of 0 would put it before all items of negative score, so that it scores -inf: behind every other one.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray
from synergen_jax.model import lookup, synergen
from synergen_jax.sharding import table
from synergen_jax.sharding.table import StoredCatalogue

TILE = 65_536  # items of one device whose scores exist at one time
_USERS = PartitionSpec("data")


@functools.partial(jax.jit, static_argnames=("mesh", "model"))
def item_keys(
    mesh: Mesh, model: synergen.SynerGen, params: synergen.Params, catalogue: StoredCatalogue
) -> Float[Array, "a c d"]:
    """What every item is found by, (A, 768, W) float32, stored as a table is; zeros for id 0.

    `synergen.item_keys` are the same on one device, (V, W), for serving.
    """
    stored = lookup.sources(model, params["tables"], catalogue, "item"), catalogue.item_counts
    lines = catalogue.item_counts.shape[0]
    key_of = synergen.pure(model, params["model"], synergen.SynerGen.keys)
    some = min(max(TILE * mesh.size // table.COLUMNS, 1), lines)  # lines at one time

    def more(number, found):
        begin = jnp.minimum(number * some, lines - some)
        rows, counts = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, some), stored)
        ids = (begin + jnp.arange(some))[:, None] * table.COLUMNS + jnp.arange(table.COLUMNS)[None]
        vectors = lookup.join(model, params["model"], rows, counts, ids).astype(model.config.dtype)
        made = jnp.where(ids[..., None] == 0, 0.0, key_of(vectors))
        return jax.lax.dynamic_update_slice_in_dim(found, made, begin, 0)

    split = NamedSharding(mesh, table.SPLIT)
    nothing = jnp.zeros((lines, table.COLUMNS, model.key_width))
    return jax.lax.fori_loop(0, -(-lines // some), more, jax.lax.with_sharding_constraint(nothing, split))


def ranks(
    mesh: Mesh,
    query: Float[Array, "b d"],
    keys: Float[Array, "a c d"],
    target: Int[AnyArray, "b"],
    seen: Int[AnyArray, "b m"],
    items: int,
) -> Int[Array, "b 2"]:
    """`metrics.ranks` of the scores <query_b, keys_v>, which never exist all at once.

    Args:
      query, target, seen: of users split over `data`.
      items: V, id 0 included; what is stored after them takes no part.

    Returns:
      As `metrics.ranks` in `jit`, the first and the last place of each target: 0 where there is none, -1 where a
      score is NaN or the target is no item. A target with a key of zeros ties with all others like it, behind the rest.
    """

    def local(mine, keys):
        query, target, seen = jax.tree.map(_everyone, mine)
        over = functools.partial(_over, query, keys, seen, items)

        # A target's own score must be what it is in its tile, to the bit: otherwise rounding would decide ties.
        def find(own, part):
            return own + jnp.sum(jnp.where(part.ids[None] == target[:, None], part.score, 0.0), axis=1)

        own = jax.lax.psum(over(find, jnp.zeros(target.shape)), table.AXES)

        def count(found, part):
            other = part.allowed & (part.ids[None] != target[:, None])
            nans = jnp.isnan(part.score) & (part.ids > 0)[None]
            what = other & (part.score > own[:, None]), other & (part.score >= own[:, None]), nans
            return found + jnp.stack([jnp.sum(one, axis=1, dtype=jnp.int32) for one in what], axis=1)

        ahead, level, nans = jax.lax.psum(over(count, jnp.zeros((len(target), 3), jnp.int32)), table.AXES).T
        bad = (nans > 0) | (target < 0) | (target >= items)
        places = jnp.where(bad[:, None], -1, 1 + jnp.stack([ahead, level], axis=1))
        return _own(mesh, jnp.where((target == 0)[:, None], 0, places))

    split = jax.shard_map(local, mesh=mesh, in_specs=(_USERS, table.SPLIT), out_specs=_USERS, check_vma=False)
    return split((query, target, seen), keys)


def first(
    mesh: Mesh,
    query: Float[Array, "b d"],
    keys: Float[Array, "a c d"],
    seen: Int[AnyArray, "b m"],
    most: int,
    items: int,
) -> tuple[Float[Array, "b f"], Int[Array, "b f"]]:
    """Scores and ids of the `most` items of highest score, without those that were seen, or have a key of zeros.

    Of equal ones the lower id comes first.
    Where there are fewer, the score is -inf, and the id says nothing. Arguments are those of `ranks`.
    """

    def local(mine, keys):
        query, seen = jax.tree.map(_everyone, mine)

        def more(found, part):
            return keep_best(found, jnp.where(part.allowed, part.score, -jnp.inf), part.ids)

        shape = query.shape[0], most
        found = _over(query, keys, seen, items, more, (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)))
        return best_of_all(mesh, found, most)

    split = jax.shard_map(local, mesh=mesh, in_specs=(_USERS, table.SPLIT), out_specs=_USERS, check_vma=False)
    return split((query, seen), keys)


def known_bias(keys: Float[Array, "... d"]) -> Float[Array, "..."]:
    """What is added to an item's score: 0, or -inf where its key is zeros, since nothing is known of it.

    A score that is NaN stays so.
    """
    return jnp.where(jnp.any(keys != 0, axis=-1), 0.0, -jnp.inf)


def keep_best(found: tuple[Array, Array], score: Array, ids: Array) -> tuple[Array, Array]:
    """The best scores and ids found so far, (..., F), after n more items; of equal ones those that came first.

    Args:
      score: (..., n), -inf for what is left out; ids: (n,).
    """
    most = found[0].shape[-1]
    ids = jnp.concatenate(
        [found[1], jnp.broadcast_to(ids.reshape((1,) * (score.ndim - 1) + ids.shape), score.shape)], axis=-1
    )
    score, at = jax.lax.top_k(jnp.concatenate([found[0], score], axis=-1), most)
    return score, jnp.take_along_axis(ids, at, axis=-1)


def best_of_all(mesh: Mesh, found: tuple[Array, Array], most: int) -> tuple[Array, Array]:
    """Inside `shard_map`: the best scores and ids over the items of all devices, for a device's own users alone.

    Args:
      found: of each device's own items, for all users, (data x B, ..., F) each.
    """
    parts, peers = mesh.shape["data"], mesh.shape["model"]
    if parts > 1:
        apart = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), found)
        found = _merge(jax.lax.all_to_all(apart, "data", 0, 0, tiled=True), most)
    if peers > 1:
        found = _merge(jax.lax.all_gather(found, "model"), most)
    return found


def _merge(found: tuple[Array, Array], most: int) -> tuple[Array, Array]:
    """The best `most` of what several devices found, (devices, ..., F) each; of equal ones the lower id."""
    score, ids = (jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1) for x in found)
    score, ids = jax.lax.sort((-score, ids), num_keys=2)
    return -score[..., :most], ids[..., :most]


class _Part(typing.NamedTuple):
    """A tile of n of a device's items, for B users."""

    ids: Array  # (n,), 0 for what is no item
    score: Array  # (B, n), -inf where the key is zeros
    allowed: Array  # (B, n): an item that was not seen


def _over(query: Array, keys: Array, seen: Array, items: int, fold: typing.Callable, start: typing.Any) -> typing.Any:
    """`fold(carry, _Part) -> carry` over the tiles of a device's items. Inside `shard_map`.

    Args:
      query: of all users, (data x B, D); keys: of the device's items, (A, 768 / devices, D); seen: of all users.
      items: V; start: the first carry.
    """
    columns = keys.shape[1]
    keys = keys.reshape(-1, keys.shape[2])
    rows = keys.shape[0]
    tiles = -(-rows // TILE)
    size = -(-rows // tiles)
    place = table.place_among_own(seen, columns)
    users = jnp.arange(query.shape[0])[:, None]

    def one(carry, number):
        begin = jnp.minimum(number * size, rows - size)  # the last tile may begin within the one before
        row = begin + jnp.arange(size)
        ids = table.id_of_own(row, columns)
        ids = jnp.where((row >= number * size) & (ids < items), ids, 0)
        at = jnp.where((place >= begin) & (place < begin + size), place - begin, size)
        had = jnp.zeros((query.shape[0], size), bool).at[users, at].set(True, mode="drop")
        tile = jax.lax.dynamic_slice_in_dim(keys, begin, size)
        score = jnp.matmul(query, tile.T, precision=jax.lax.Precision.HIGHEST)  # as serving's exact index
        score += known_bias(tile)[None]
        return fold(carry, _Part(ids, score, (ids > 0)[None] & ~had)), None

    return jax.lax.scan(one, start, jnp.arange(tiles))[0]


def _everyone(mine: Array) -> Array:
    return jax.lax.all_gather(mine, "data", tiled=True)


def _own(mesh: Mesh, everyone: Array) -> Array:
    """Of values of all users, (data x B, ...), those of a device's own."""
    size = everyone.shape[0] // mesh.shape["data"]
    return jax.lax.dynamic_slice_in_dim(everyone, jax.lax.axis_index("data") * size, size)
