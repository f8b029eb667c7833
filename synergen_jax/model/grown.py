"""A model's parameters for a log that has grown: known ids keep their rows, new ones have zeros."""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array

from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError
from synergen_jax.model import synergen
from synergen_jax.sharding import table

GROWS = ("items", "actions", "queries")


def refuse(was: LogSpec, now: LogSpec) -> None:
    """Refuses a log to which parameters cannot grow.

    Raises:
      UserError: it lacks ids, or has other labels, matrices or features; or its first queries, with which a model has
        parts that the old one lacks.
    """
    rest = lambda spec: dataclasses.replace(spec, **dict.fromkeys(GROWS, 0))
    if rest(was) != rest(now) or any(getattr(was, name) > getattr(now, name) for name in GROWS):
        raise UserError(f"a model of a log with {was} does not fit one with {now}: train anew")
    if was.queries == 1 and now.queries > 1:
        raise UserError("the log had no queries when the run was trained, and has some now: train anew")


def grown(params: synergen.Params, was: LogSpec, now: LogSpec) -> synergen.Params:
    """Parameters for a log of more items, queries and actions. Their rows are zeros: items are found by their matrices.

    Args:
      params: of a model of `was`.
      now: as `refuse` lets pass.
    """
    refuse(was, now)
    rows = {"item": (was.items, now.items), "query": (was.queries, now.queries)}
    tables = {name: _longer(stored, *rows[name]) for name, stored in params["tables"].items()}
    inner: dict[str, typing.Any] = dict(params["model"]["params"])
    more = now.actions - was.actions
    inner["action"] = jnp.pad(inner["action"], ((0, more), (0, 0)))
    return {"model": {**params["model"], "params": inner}, "tables": tables}


def _longer(stored: Array, was: int, now: int) -> Array:
    """A stored table (A, 768, W) of `was` rows with zeros for the others, up to `now`."""
    lines, columns = table.lines(now), table.COLUMNS
    longer = jnp.pad(stored, ((0, lines - len(stored)), (0, 0), (0, 0)))
    row = jax.lax.broadcasted_iota(jnp.int32, (lines, columns, 1), 0) * columns
    row += jax.lax.broadcasted_iota(jnp.int32, (lines, columns, 1), 1)
    return jnp.where(row < was, longer, 0)
