"""The vectors of a batch's ids, from tables and matrices whose rows lie all over the mesh.

Three steps, so that a loss can be differentiated with respect to the distinct vectors alone: `look_up` fetches the rows of
the distinct ids, `join` makes one vector of the rows of each, `at_places` copies vectors to wherever their ids stand.
`vectors` is all three, where nothing is learned.
"""

from __future__ import annotations

import itertools
import typing

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from synergen_jax.batch import AnyArray
from synergen_jax.model import embed, synergen
from synergen_jax.sharding import table
from synergen_jax.sharding.table import StoredCatalogue

Ids = typing.Mapping[str, typing.Sequence[AnyArray]]
"""{"item": ..., "query": ...}: arrays of ids, (B, ...) each, split over `data`."""


class Found(typing.NamedTuple):
    """What a batch needs of one table and the matrices beside it. S devices, each with at most U distinct ids."""

    asked: table.Asked
    rows: embed.Rows  # (S, U, width) each
    counts: Array  # (S, U)
    wide: int  # X, ids of each user


def sources(
    model: synergen.SynerGen, tables: dict[str, Array], catalogue: StoredCatalogue, name: str
) -> dict[str, Array]:
    """The stored arrays that the vectors of one kind of id, "item" or "query", are made of."""
    matrices = {one: matrix for one, matrix in getattr(catalogue, name).items() if model.config.uses(one)}
    return matrices | ({"id": tables[name]} if name in tables else {})


def look_up(
    mesh: Mesh,
    model: synergen.SynerGen,
    tables: dict[str, Array],
    catalogue: StoredCatalogue,
    ids: Ids,
    shared: Array | None = None,
) -> dict[str, Found]:
    """The rows of all ids of a batch, and of the items that it shares, {"item": ..., "query": ...}. Not differentiable.

    A kind of id that has neither learned rows nor matrices is left out.
    """
    found = {}
    for name, parts in ids.items():
        rows = sources(model, tables, catalogue, name)
        if rows:
            counts = getattr(catalogue, f"{name}_counts")
            wide = jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)
            asked = table.ask(mesh, counts, wide, shared if name == "item" else None)
            got = table.fetch(mesh, asked, rows | {"": counts})
            found[name] = Found(asked, got, got.pop(""), wide.shape[1])
    return found


def join(
    model: synergen.SynerGen,
    variables: typing.Any,
    rows: embed.Rows,
    counts: Array,
    ids: Array,
    dropout: embed.IdentityDropout | None = None,
) -> Array:
    """The vectors (..., W), float32, of ids whose rows were found; those of stored rows where `ids` are all of them."""
    learned = {"id": embed.known(rows["id"], counts, ids, dropout)} if "id" in rows else {}
    return synergen.pure(model, variables, synergen.SynerGen.join_rows)(rows | learned, ids).astype(jnp.float32)


def at_places(
    mesh: Mesh, values: Array, found: Found, ids: typing.Sequence[AnyArray], shared: int = 0
) -> tuple[list[Array], Array]:
    """Values (S, U, ...) of the distinct ids at all places of a batch. Differentiable.

    Args:
      ids: those that were looked up, or of a part of the batch, whose places `found` then has.
      shared: N, items that the batch shares.

    Returns:
      An array (..., *values' own axes) for each of `ids`, and one of the shared items, (N, ...).
    """
    mine, ours = table.spread(mesh, found.asked, values, found.wide, shared)
    sizes = [part.size // part.shape[0] for part in ids]
    parts = jnp.split(mine, list(itertools.accumulate(sizes))[:-1], axis=1)
    return [part.reshape(*i.shape, *mine.shape[2:]) for part, i in zip(parts, ids, strict=True)], ours


def vectors(
    mesh: Mesh, model: synergen.SynerGen, params: synergen.Params, catalogue: StoredCatalogue, ids: Ids
) -> dict[str, list[Array]]:
    """The vectors (B, ..., W), of the model's dtype, of all ids: zeros for kinds of id that have neither rows nor matrices."""
    found = look_up(mesh, model, params["tables"], catalogue, ids)
    dtype, made = jnp.dtype(model.config.dtype), {}
    for name, parts in ids.items():
        if name in found:
            one = found[name]
            joined = join(model, params["model"], one.rows, one.counts, jnp.maximum(one.asked.ids, 0)).astype(dtype)
            made[name] = at_places(mesh, joined, one, parts)[0]
        else:
            made[name] = [jnp.zeros((*part.shape, model.key_width), dtype) for part in parts]
    return made
