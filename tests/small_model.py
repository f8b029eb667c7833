"""A small model, and random inputs for it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synergen_jax import batch as batches
from synergen_jax.config import ModelConfig
from synergen_jax.model import synergen
from synergen_jax.sharding import device_mesh, table
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import objective

SPEC = batches.LogSpec(60, 6, 9, ("engage", "like"), (("genres", 7), ("text", 5)), (("text", 5),))
CONFIG = ModelConfig(width=32, heads=4, depth=2, dropout=0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(config, spec, key):
    return nn.unbox(synergen.init(synergen.SynerGen(config, spec), key))


def make(config=CONFIG, spec=SPEC, seed=0):
    """(model, unboxed params, catalogue)."""
    model = synergen.SynerGen(config, spec)
    # What has no parameters is left out, so that configs of one shape share one compilation.
    shape = dataclasses.replace(config, rope="split", dropout=0.0, dtype="float32", remat=False)
    params = _init(shape, spec, jax.random.key(seed))
    # Vectors start small; larger ones make items, queries and actions weigh as much as they do after training.
    small = ("tables", "action", "kind", "join")
    grow = lambda path, x: x * 20 if any(name in jax.tree_util.keystr(path) for name in small) else x
    params = jax.tree_util.tree_map_with_path(grow, params)
    rng = np.random.default_rng(seed)
    # Blocks and the ranking head add nothing at first; what is compared must depend on all of them.
    zero = ("out", "down", "ranking_out", "time_bias")
    fill = lambda path, x: (
        jnp.asarray(rng.normal(size=x.shape), x.dtype) * np.prod(x.shape[:-1]) ** -0.5
        if any(f"['{name}']" in jax.tree_util.keystr(path) for name in zero)
        else x
    )
    params = jax.tree_util.tree_map_with_path(fill, params)
    draw = lambda rows, width: jnp.asarray(rng.normal(size=(rows, width)), jnp.float16).at[0].set(0)
    catalogue = batches.Catalogue(
        {name: draw(spec.items, width) for name, width in spec.item_matrices},
        {name: draw(spec.queries, width) for name, width in spec.query_matrices},
        jnp.asarray(rng.integers(1, 50, spec.items).astype(np.int32)).at[0].set(0),
        jnp.asarray(rng.integers(1, 50, spec.queries).astype(np.int32)).at[0].set(0),
    )
    return model, params, catalogue


def stored(catalogue):
    """A catalogue as it is stored on the first device."""
    return place_catalogue(catalogue, device_mesh.one_device())


def events(rng, users, length, spec=SPEC, span=10**8):
    """Random full windows, times sorted."""
    draw = lambda low, high: jnp.asarray(rng.integers(low, high, (users, length)), jnp.int32)
    time = jnp.sort(draw(0, span), axis=1)
    return batches.Events(draw(0, spec.items), draw(1, spec.actions), draw(0, spec.queries), time)


def readers(rng, users, count, length, spec=SPEC, span=10**8):
    """Random readers, half of them retrieval tokens."""
    draw = lambda low, high: jnp.asarray(rng.integers(low, high, (users, count)), jnp.int32)
    item = draw(1, spec.items) * (draw(0, 2))
    return batches.Readers(item, draw(0, spec.queries), draw(0, span), draw(0, length + 1))


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply(model, params, *args, method):
    """`model.apply`, compiled."""
    return model.apply(params["model"], *args, method=method)


@functools.partial(jax.jit, static_argnames="model")
def vectors(model, params, catalogue, tokens):
    """Item and query vectors of events or readers."""
    return synergen.token_vectors(model, params, catalogue, tokens)


MESH = device_mesh.one_device()


@functools.partial(jax.jit, static_argnums=(0, 4))
def _value_and_grad(model, params, catalogue, batch, config):
    value, parts, found = objective.value_and_grad(MESH, model, params, catalogue, batch, config, None)
    tables = {name: found.tables.get(name, jnp.zeros_like(x)) for name, x in params["tables"].items()}
    for name, (asked, gradient) in found.rows.items():
        delivered = table.deliver(MESH, asked, tables[name], gradient)
        tables[name], _ = table.change(MESH, delivered, tables[name], lambda old, new: (old + new, jnp.zeros(())))
    return (value, parts), {"model": found.model, "tables": tables}


def value_and_grad(model, params, catalogue: batches.Catalogue, batch, config):
    """(objective, parts), gradients."""
    return _value_and_grad(model, params, place_catalogue(catalogue, MESH), batch, config)
