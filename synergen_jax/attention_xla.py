"""Attention in plain XLA operations: runs everywhere, in any dtype, under any mask. Shapes are (B, H, L, Dh).

Both context tokens and readers see a range of keys, `first` .. `stop - 1`; readers see their own beside it. Many queries
are cut into a few spans. A span takes the keys that any of its queries may see and no others, so the upper triangle of
a causal mask is mostly left out. Within a span, blocks come one after the other and are computed again in the
backward pass, so that memory holds the logits of a block a span, not the square of the length.

The softmax is computed in float32, and its sum divides the result rather than the weights, which are more.
"""

from __future__ import annotations

import itertools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128  # queries of a block: few enough to leave much out, many enough for a matrix unit
SPANS = 8  # of one call, at most: each is compiled on its own

Vectors = Float[Array, "b h l dh"]
Places = Int[Array, "#b l"]


class _Queries(typing.NamedTuple):
    """Tokens that ask, and what each sees. Their own keys and values are given where they see those too."""

    q: Vectors
    stop: Places
    first: Places | None
    own: tuple[Vectors, Vectors] | None = None


def causal(q: Vectors, k: Vectors, v: Vectors, first: Places | None) -> Vectors:
    """Token i sees tokens `first[:, i]` .. i."""
    stop = jnp.arange(1, q.shape[2] + 1)[None]
    return _in_spans(_Queries(q, stop, first), k, v, lambda stop: stop)


def prefix(
    q: Vectors,
    k: Vectors,
    v: Vectors,
    keys: Vectors,
    values: Vectors,
    visible: Places,
    first: Places | None,
    per_event: int,
) -> Vectors:
    """Token r sees the cached keys `first[:, r]` .. `visible[:, r] - 1`, and its own key and value.

    Args:
      per_event: n > 0 promises `visible[:, r] <= r // n`, so that early tokens need no late keys; 0 promises nothing.
    """
    bound = lambda stop: (stop - 1) // per_event if per_event else keys.shape[2]
    return _in_spans(_Queries(q, visible, first, (k, v)), keys, values, bound)


def masked(q: Vectors, k: Vectors, v: Vectors, mask: Bool[Array, "#b #h l m"]) -> Vectors:
    """Token i sees token j where `mask[..., i, j]`; each sees at least one."""
    logits = jnp.where(mask, _logits(q, k), -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    return (_weighted(weights, v) / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)


def scale(q: Vectors) -> float:
    """What logits are multiplied with: 1 / sqrt(Dh)."""
    return q.shape[-1] ** -0.5


def _logits(q, k):
    return scale(q) * jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)


def _weighted(weights, v):
    return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _attend(queries: _Queries, keys: Vectors, values: Vectors) -> Vectors:
    """All queries at once."""
    q, stop, first, own = queries
    place = jnp.arange(keys.shape[2])[None, None, None]
    seen = place < stop[:, None, :, None]
    if first is not None:
        seen &= place >= first[:, None, :, None]
    if own is None:
        return masked(q, keys, values, seen)
    # Softmax over [keys in range, own key], without building that concatenation.
    k, v = own
    context = jnp.where(seen, _logits(q, keys), -jnp.inf)
    mine = scale(q) * jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1, keepdims=True)
    # The own key is always seen, so the maximum is finite and the sum is at least one term.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(context, axis=-1, keepdims=True, initial=-jnp.inf), mine))
    context, mine = jnp.exp(context - top), jnp.exp(mine - top)
    total = jnp.sum(context, axis=-1, keepdims=True) + mine
    return ((_weighted(context, values) + mine * v.astype(jnp.float32)) / total).astype(v.dtype)


def _in_spans(queries: _Queries, keys: Vectors, values: Vectors, bound: typing.Callable[[int], int]) -> Vectors:
    """Spans of about equal size, joined. Of `keys`, the first `bound(stop)` are all that queries before `stop` see."""
    length = queries.q.shape[2]
    if length <= BLOCK:
        return _attend(queries, keys, values)
    spans = min(SPANS, -(-length // BLOCK))
    found = []
    for start, stop in itertools.pairwise(length * n // spans for n in range(spans + 1)):
        mine = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, start, stop, axis=_axis(x)), queries)  # noqa: B023
        seen = min(bound(stop), keys.shape[2])
        found.append(_in_blocks(mine, keys[:, :, :seen], values[:, :, :seen]))
    return jnp.concatenate(found, axis=2)


def _in_blocks(queries: _Queries, keys: Vectors, values: Vectors) -> Vectors:
    """Blocks of equal size, one after the other, joined."""
    length = queries.q.shape[2]
    blocks = -(-length // BLOCK)
    one = lambda queries: jax.checkpoint(_attend, prevent_cse=blocks == 1)(queries, keys, values)
    if blocks == 1:
        return one(queries)
    size = -(-length // blocks)

    def cut(x):
        """(.., length, ..) to (blocks, .., size, ..)."""
        axis = _axis(x)
        widths = [(0, (size * blocks - length) * (n == axis)) for n in range(x.ndim)]
        x = jnp.pad(x, widths, mode="edge")  # the last query again, which sees something
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]), axis, 0)

    found = jnp.moveaxis(jax.lax.map(one, jax.tree.map(cut, queries)), 0, 2)
    return found.reshape(*found.shape[:2], blocks * size, found.shape[-1])[:, :, :length]


def _axis(x: Array) -> int:
    """That of the queries, in vectors and in places."""
    return 2 if x.ndim == 4 else 1
