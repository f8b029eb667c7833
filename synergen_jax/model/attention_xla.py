"""Attention in plain XLA operations: runs everywhere, in any dtype, under any mask. Shapes are (B, H, L, Dh).

Both context tokens and readers see a range of keys, `first` .. `stop - 1`; readers see their own beside it. Many queries
are cut into a few spans. A span takes the keys that any of its queries may see and no others, so the upper triangle of
a causal mask is mostly left out. Within a span, blocks come one after the other and are computed again in the
backward pass, so that memory holds the logits of a block a span, not the square of the length.

The softmax is computed in float32, and its sum divides the result rather than the weights, which are more.

`Form` says what else weights may be: pointwise ones (HSTU), and logits with a learned bias by the time that has gone by
between key and query.
"""

from __future__ import annotations

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from synergen_jax.batch import AnyArray

BLOCK = 128  # queries of a block: few enough to leave much out, many enough for a matrix unit
SPANS = 8  # of one call, at most: each is compiled on its own

Vectors = Float[Array, "b h l dh"]
Places = Int[AnyArray, "#b l"]


BUCKETS = 64  # of elapsed time, each 1.35 times as wide as the one before: the last begins after five years


class Form(typing.NamedTuple):
    """How queries and keys become weights.

    pointwise: silu(logits) over the number of keys seen, in place of the softmax (Zhai et al. 2024, HSTU).
    bias: what is added to the logits of each head by the bucket of the time elapsed, (H, BUCKETS); None: nothing.
    """

    pointwise: bool = False
    bias: Float[Array, "h n"] | None = None


SOFTMAX = Form()


class _Queries(typing.NamedTuple):
    """Tokens that ask, what each sees, and when. Their own keys and values are given where they see those too."""

    q: Vectors
    stop: Places
    first: Places | None
    time: Places | None
    own: tuple[Vectors, Vectors] | None = None


class _Keys(typing.NamedTuple):
    """What is seen."""

    k: Vectors
    v: Vectors
    time: Places | None


def causal(
    q: Vectors, k: Vectors, v: Vectors, first: Places | None, time: Places | None = None, form: Form = SOFTMAX
) -> Vectors:
    """Token i sees tokens `first[:, i]` .. i."""
    stop = jnp.arange(1, q.shape[2] + 1)[None]
    return _in_spans(_Queries(q, stop, first, time), _Keys(k, v, time), lambda stop: stop, form)


def prefix(q: Vectors, k: Vectors, v: Vectors, over, form: Form = SOFTMAX) -> Vectors:
    """Token r sees the cached keys `first[:, r]` .. `visible[:, r] - 1`, and its own key and value.

    Args:
      over: an `attention.Prefix`.
    """
    bound = lambda stop: (stop - 1) // over.per_event if over.per_event else over.keys.shape[2]
    queries = _Queries(q, over.visible, over.first, over.time, (k, v))
    return _in_spans(queries, _Keys(over.keys, over.values, over.key_time), bound, form)


def grown(q: Vectors, k: Vectors, v: Vectors, over, form: Form = SOFTMAX) -> Vectors:
    """Token i sees the first `visible[:, i] + 1` of the cached keys, once those of the tokens have joined them.

    Args:
      over: an `attention.Grown`.
    """
    keys, values = join(over.keys, k, over.source), join(over.values, v, over.source)
    queries = _Queries(q, over.visible + 1, None, over.time)
    return _in_spans(queries, _Keys(keys, values, over.key_time), lambda _: keys.shape[2], form)


def join(old: Array, new: Array, source: Int[Array, "b l"]) -> Array:
    """Vectors or places of a cache, with the new one of number `source` in its slot where that is not -1."""
    if old.ndim == 4:
        source = source[:, None, :, None]
    return jnp.where(source < 0, old, jnp.take_along_axis(new, source, axis=_axis(old), mode="clip"))


def masked(
    q: Vectors,
    k: Vectors,
    v: Vectors,
    mask: Bool[Array, "#b #h l m"],
    time: Places | None = None,
    form: Form = SOFTMAX,
) -> Vectors:
    """Token i sees token j where `mask[..., i, j]`; each sees at least one."""
    return _over(_logits(q, k, time, time, form), v, mask, form)


def _over(logits, v: Vectors, mask, form: Form) -> Vectors:
    """Values by the weights that the unmasked logits make."""
    if form.pointwise:
        weights = jnp.where(mask, jax.nn.silu(logits), 0.0)
        return (_weighted(weights, v) / jnp.sum(mask, axis=-1, keepdims=True)).astype(v.dtype)
    logits = jnp.where(mask, logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    return (_weighted(weights, v) / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)


def bucket(elapsed: Int[Array, "..."]) -> Int[Array, "..."]:
    """Which bucket a time in seconds falls into: floor(ln(seconds) / 0.3), as HSTU has it; what is below 1 into 0."""
    return jnp.minimum((jnp.log(jnp.maximum(elapsed, 1).astype(jnp.float32)) / 0.3).astype(jnp.int32), BUCKETS - 1)


def scale(q: Vectors) -> float:
    """What logits are multiplied with: 1 / sqrt(Dh)."""
    return q.shape[-1] ** -0.5


def _logits(q, k, query_time, key_time, form: Form):
    logits = scale(q) * jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    if form.bias is None:
        return logits
    place = bucket(query_time[:, :, None] - key_time[:, None])
    return logits + jnp.swapaxes(jnp.take(form.bias, place, axis=1), 0, 1)


def _weighted(weights, v):
    return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _attend(queries: _Queries, keys: _Keys, form: Form) -> Vectors:
    """All queries at once."""
    q, stop, first, time, own = queries
    place = jnp.arange(keys.k.shape[2])[None, None, None]
    seen = place < stop[:, None, :, None]
    if first is not None:
        seen &= place >= first[:, None, :, None]
    logits = _logits(q, keys.k, time, keys.time, form)
    if own is None:
        return _over(logits, keys.v, seen, form)
    # Weights over [keys in range, own key], without building that concatenation.
    k, v = own
    mine = scale(q) * jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1, keepdims=True)
    if form.bias is not None:
        mine += form.bias[None, :, :1, None]  # no time has gone by
    if form.pointwise:
        found = _weighted(jnp.where(seen, jax.nn.silu(logits), 0.0), keys.v) + jax.nn.silu(mine) * v.astype(jnp.float32)
        return (found / (jnp.sum(seen, axis=-1, keepdims=True) + 1)).astype(v.dtype)
    context = jnp.where(seen, logits, -jnp.inf)
    # The own key is always seen, so the maximum is finite and the sum is at least one term.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(context, axis=-1, keepdims=True, initial=-jnp.inf), mine))
    context, mine = jnp.exp(context - top), jnp.exp(mine - top)
    total = jnp.sum(context, axis=-1, keepdims=True) + mine
    return ((_weighted(context, keys.v) + mine * v.astype(jnp.float32)) / total).astype(v.dtype)


def _in_spans(queries: _Queries, keys: _Keys, bound: typing.Callable[[int], int], form: Form) -> Vectors:
    """Spans of about equal size, joined. Of `keys`, the first `bound(stop)` are all that queries before `stop` see."""
    length = queries.q.shape[2]
    if length <= BLOCK:
        return _attend(queries, keys, form)
    spans = min(SPANS, -(-length // BLOCK))
    ends = [length * n // spans for n in range(1, spans + 1)]
    leaves, tree = jax.tree.flatten(queries)
    # One split, not a slice a span: its gradient is one concatenation, that of slices a sum of padded arrays.
    parts = zip(*(jax.lax.split(x, np.diff(ends, prepend=0).tolist(), axis=_axis(x)) for x in leaves))
    found = []
    for part, stop in zip(parts, ends):
        near = functools.partial(_first, min(bound(stop), keys.k.shape[2]))
        found.append(_in_blocks(jax.tree.unflatten(tree, part), jax.tree.map(near, keys), form))
    return jnp.concatenate(found, axis=2)


def _in_blocks(queries: _Queries, keys: _Keys, form: Form) -> Vectors:
    """Blocks of equal size, one after the other, joined."""
    length = queries.q.shape[2]
    blocks = -(-length // BLOCK)
    attend = lambda queries, keys, bias: _attend(queries, keys, form._replace(bias=bias))
    one = lambda queries: jax.checkpoint(attend, prevent_cse=blocks == 1)(queries, keys, form.bias)
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


def _first(count: int, x: Array) -> Array:
    """The first `count` vectors or places."""
    return jax.lax.slice_in_dim(x, 0, count, axis=_axis(x))


def _axis(x: Array) -> int:
    """That of the queries, in vectors and in places."""
    return 2 if x.ndim == 4 else 1
