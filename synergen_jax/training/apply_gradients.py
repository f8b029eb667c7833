"""How a step's gradients move the parameters: most of them as a whole, large tables where their rows lie."""

from __future__ import annotations

import math
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from synergen_jax.config import Config
from synergen_jax.model import synergen
from synergen_jax.sharding import table
from synergen_jax.training.optimiser import clipped, make_optimiser, row_optimiser, table_kind

State = dict[str, typing.Any]
"""{"dense": AdamW's of all that is updated as a whole, "rows": {table: {name: stored array}}, "average": of all that is
updated as a whole, where `optimiser.average` asks for it}."""


class Gradients(typing.NamedTuple):
    """Of one step."""

    model: typing.Any  # as params["model"]
    tables: dict[str, Array]  # of whole tables, stored; those that have one
    rows: dict[str, tuple[table.Asked, Array]]  # of the rows that a batch needed, (S, U, D)


def kinds(config: Config, params: synergen.Params) -> dict[str, str]:
    """How each table is updated: "dense", "adam" or "adagrad". `params` may be boxed, or shapes."""
    size = lambda name: math.prod(nn.unbox(params["tables"][name]).shape)
    whole = lambda name: name == "item" and config.loss.full_softmax
    return {name: table_kind(config.optimiser, size(name), whole(name)) for name in params["tables"]}


def init(config: Config, params: synergen.Params) -> State:
    """A fresh state, boxed where the parameters are boxed with their logical axes."""
    rows = {}
    for name, kind in kinds(config, params).items():
        if kind != "dense":
            learned, wide = params["tables"][name], row_optimiser(config.optimiser, kind, config.run.steps).state
            rows[name] = {one: _zeros(learned, 2 + axes) for one, axes in wide.items()}
    dense = _dense(params, rows)
    state = {"dense": make_optimiser(config.optimiser, config.run.steps).init(dense), "rows": rows}
    return state | ({"average": jax.tree.map(jnp.copy, dense)} if config.optimiser.average else {})


def served(params: synergen.Params, state: State) -> synergen.Params:
    """The parameters that are validated, evaluated and served: averages where they are kept, otherwise the newest.

    Tables of which a step moves some rows alone are as the last step left them: to average them would cost every row.
    """
    if "average" not in state:
        return params
    average = state["average"]
    return {"model": average["model"], "tables": params["tables"] | average["tables"]}


def apply(
    config: Config, mesh: Mesh, params: synergen.Params, state: State, step: Array, gradients: Gradients
) -> tuple[synergen.Params, State, dict[str, Array]]:
    """The parameters and the state after a step, and norms of the gradient, of the update and of the parameters.

    The gradient is clipped by its global norm, in which every row counts once, with what all its places in the batch
    add up to. The norm of the parameters leaves tables out, which no step should have to read as a whole.
    """
    delivered = {
        name: table.deliver(mesh, asked, params["tables"][name], gradient)
        for name, (asked, gradient) in gradients.rows.items()
    }
    whole = {}
    for name in params["tables"].keys() - state["rows"].keys():
        zeros = jnp.zeros_like(params["tables"][name])
        whole[name], _ = table.change(mesh, delivered[name], zeros, lambda old, new: (old + new, jnp.zeros(())))
        if name in gradients.tables:
            whole[name] += gradients.tables[name]
    dense = {"model": gradients.model, "tables": whole}
    square = optax.tree.norm(dense, squared=True) + sum((delivered[name].square for name in state["rows"]), 0.0)
    norm = jnp.sqrt(square)
    scale = clipped(config.optimiser, norm)
    dense = jax.tree.map(lambda g: g * scale, dense)
    optimiser = make_optimiser(config.optimiser, config.run.steps)
    old = _dense(params, state["rows"])
    updates, dense_state = optimiser.update(dense, state["dense"], old)
    # To optax parameters are any tree of arrays; what it gives has the form of what it is given.
    new = typing.cast(synergen.Params, optax.apply_updates(old, updates))
    moved, tables, rows = optax.tree.norm(updates, squared=True), dict(new["tables"]), {}
    of = kinds(config, params)
    for name, remembered in state["rows"].items():
        rule = _rule(row_optimiser(config.optimiser, of[name], config.run.steps))
        stored = {"row": params["tables"][name], "state": remembered}
        stored, square = table.change(mesh, delivered[name], stored, rule, scale, step)
        tables[name], rows[name], moved = stored["row"], stored["state"], moved + square
    norms = {"gradient": norm, "update": jnp.sqrt(moved), "parameter": optax.tree.norm(new["model"])}
    state = {"dense": dense_state, "rows": rows} | _averaged(config, state, new, step)
    return {"model": new["model"], "tables": tables}, state, norms


def _averaged(config: Config, state: State, new, step: Array) -> State:
    """The moving average, whose decay grows up to its own over the first steps, so that it forgets where it began."""
    if "average" not in state:
        return {}
    decay = jnp.minimum(config.optimiser.average, (1.0 + step) / (10.0 + step))
    return {"average": jax.tree.map(lambda old, x: decay * old + (1 - decay) * x, state["average"], new)}


def _rule(optimiser) -> table.Change:
    def rule(old, gradient, scale, step):
        updates, state = optimiser.update(gradient * scale, old["state"], step)
        return {"row": old["row"] + updates, "state": state}, jnp.sum(updates * updates)

    return rule


def _dense(params: synergen.Params, rows: typing.Container[str]) -> synergen.Params:
    """The parameters that are updated as a whole."""
    tables = {name: learned for name, learned in params["tables"].items() if name not in rows}
    return {"model": params["model"], "tables": tables}


def _zeros(learned, axes: int):
    """Zeros for the first axes of a stored table, (A, 768) or (A, 768, D); boxed with their names if it is boxed."""
    zeros = jnp.zeros(nn.unbox(learned).shape[:axes])
    boxed = isinstance(learned, nn.LogicallyPartitioned)
    return nn.LogicallyPartitioned(zeros, learned.names[:axes]) if boxed else zeros
