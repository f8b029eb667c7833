"""What serving compiles: a history to a cache, events to a longer cache, readers to vectors and scores; and slots of caches.

Slots are the caches of S users in one array a layer, (S, H, L, Dh). What writes to them takes them as its own (donated),
so that they are changed in place.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from synergen_jax.batch import AnyArray, Events, Readers
from synergen_jax.model import synergen
from synergen_jax.model.synergen import Cache, SynerGen


@functools.partial(jax.jit, static_argnames="model")
def encode(model, params, catalogue, events: Events) -> Cache:
    """The caches of histories (B, L)."""
    encode = synergen.pure(model, params["model"], SynerGen.encode)
    return encode(events, *synergen.token_vectors(model, params, catalogue, events))


@functools.partial(jax.jit, static_argnames="model")
def append(model, params, catalogue, cache: Cache, events: Events) -> Cache:
    """The caches with new events (B, A) more."""
    append = synergen.pure(model, params["model"], SynerGen.append)
    return append(cache, events, *synergen.token_vectors(model, params, catalogue, events))


@functools.partial(jax.jit, static_argnames="model")
def read(model, params, catalogue, cache: Cache, readers: Readers) -> Array:
    """Hidden states of readers, (B, R, D)."""
    read = synergen.pure(model, params["model"], SynerGen.read)
    return read(cache, readers, *synergen.token_vectors(model, params, catalogue, readers))


@functools.partial(jax.jit, static_argnames="model")
def retrieve(model, params, catalogue, cache: Cache, readers: Readers) -> Array:
    """Retrieval vectors (B, W) of one reader a user, without an item."""
    hidden = read(model, params, catalogue, cache, readers)
    queries = synergen.query_vectors(model, params, catalogue, readers.query)
    return synergen.pure(model, params["model"], SynerGen.retrieve)(hidden, queries)[:, 0]


@functools.partial(jax.jit, static_argnames="model")
def rank(model, params, catalogue, cache: Cache, readers: Readers) -> tuple[Array, Array]:
    """Retrieval scores (B, K) of readers with an item, and the probability of each label (B, K, A), in one read."""
    pure = functools.partial(synergen.pure, model, params["model"])
    request = jax.tree.map(lambda x: x[:, :1], readers)
    request = Readers(jnp.zeros_like(request.item), request.query, request.time, request.visible)
    both = jax.tree.map(lambda one, many: jnp.concatenate([one, many], axis=1), request, readers)
    hidden = read(model, params, catalogue, cache, both)
    queries = synergen.query_vectors(model, params, catalogue, request.query)
    wanted = pure(SynerGen.retrieve)(hidden[:, :1], queries)
    keys = pure(SynerGen.keys)(synergen.item_vectors(model, params, catalogue, readers.item))
    score = jnp.sum(wanted * keys, axis=-1)
    return score, jax.nn.sigmoid(pure(SynerGen.rank)(hidden[:, 1:], score))


# --- slots -----------------------------------------------------------------------------------------------------------


def empty_slots(model: SynerGen, params, catalogue, slots: int, length: int) -> Cache:
    """Slots of users without events, on the first device, as what writes to them leaves them: else it compiled again."""
    nobody = Events(*(jnp.zeros((1, length), jnp.int32) for _ in range(4)))
    one = encode(model, params, catalogue, nobody)
    empty = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), one)
    return jax.device_put(empty, jax.devices()[0])


def taken(slots: Cache, place: AnyArray) -> Cache:
    """The caches at some places, (B,)."""
    return jax.tree.map(lambda x: x[place], slots)


def _put(slots: Cache, place: AnyArray, caches: Cache) -> Cache:
    """Caches, of a length of their own, put to places (B,); the rest of a slot is free."""

    def one(old: Array, new: Array) -> Array:
        pad = [(0, 0), *((0, more - has) for more, has in zip(old.shape[1:], new.shape[1:]))]
        return old.at[place].set(jnp.pad(new, pad))

    return jax.tree.map(one, slots, caches)


put = jax.jit(_put, donate_argnames="slots")
take = jax.jit(taken)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def encode_to(model, params, catalogue, slots: Cache, place: AnyArray, events: Events) -> Cache:
    """Slots with the caches of histories (B, L) at places (B,)."""
    return _put(slots, place, encode(model, params, catalogue, events))


def append_to(model, params, catalogue, slots: Cache, place: AnyArray, events: Events) -> Cache:
    """Slots with new events (B, A) more at places (B,).

    Three calls: in one, which reads slots and writes them, XLA copies all of them first.
    """
    return put(slots, place, append(model, params, catalogue, take(slots, place), events))


@functools.partial(jax.jit, static_argnames="model")
def score_from(model, params, catalogue, slots: Cache, place: AnyArray, readers: Readers, keys: Array, allowed: Array):
    """Scores (B, V) of all items for one reader a user; -inf for those that are not allowed, (B, V) or (1, V)."""
    wanted = retrieve(model, params, catalogue, taken(slots, place), readers)
    scores = jnp.matmul(wanted, keys.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(allowed, scores, -jnp.inf)


@functools.partial(jax.jit, donate_argnames="scores")
def without(scores: Array, items: Array) -> Array:
    """Scores (B, V), -inf for the items (B, M) of each row; padded with item 0, which is never found."""
    return scores.at[jnp.arange(len(scores))[:, None], items].set(-jnp.inf)


best = jax.jit(jax.lax.top_k, static_argnums=1)


@functools.partial(jax.jit, static_argnames="model")
def rank_from(model, params, catalogue, slots: Cache, place: AnyArray, readers: Readers) -> tuple[Array, Array]:
    """As `rank`, of the caches at places (B,)."""
    return rank(model, params, catalogue, taken(slots, place), readers)


@functools.partial(jax.jit, donate_argnames="matrix")
def with_row(matrix: Array, place: AnyArray, row: Array) -> Array:
    """A matrix with another row."""
    return matrix.at[place].set(row)
