"""Attention of context tokens, of readers over a context, and its dense masked form.

What the tokens of one call may see is a small pytree, and `attend` is the one function that all callers use:

- `Causal()`: token i sees tokens 0 .. i.                                              (encode)
- `Prefix(keys, values, visible)`: token r sees the first `visible[r]` cached keys,
  and itself.                                                                          (read, append)
- `Masked(mask)`: token i sees token j where `mask[i, j]`.                             (the oracle)

In packed rows `first` tells each token where its own segment begins: nothing before it is seen.

Padding follows the events of a window, so no token that counts ever sees it: no padding mask is needed.
Shapes are (B, H, L, Dh); the softmax is computed in float32 whatever the dtype of the inputs.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """Token i sees tokens `first[:, i]` .. i of the same call; without `first`, 0 .. i."""

    first: Int[Array, "b l"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Token r sees the first `visible[:, r]` of the cached keys, and itself; no other token of the call.

    With `first`, it sees of them those from `first[:, r]` on.
    """

    keys: Float[Array, "b h l dh"]
    values: Float[Array, "b h l dh"]
    visible: Int[Array, "b r"]
    first: Int[Array, "b r"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
    """Token i sees token j of the same call where `mask[:, i, j]`."""

    mask: Bool[Array, "b l l"]


def attend(
    q: Float[Array, "b h l dh"],
    k: Float[Array, "b h l dh"],
    v: Float[Array, "b h l dh"],
    over: Causal | Prefix | Masked,
) -> Float[Array, "b h l dh"]:
    """Scaled dot-product attention (Vaswani et al. 2017) over what `over` lets each token see."""
    if isinstance(over, Prefix):
        return _attend_prefix(q, k, v, over)
    if isinstance(over, Causal):
        length = q.shape[2]
        mask = jnp.asarray(np.tri(length, dtype=bool))[None, None]
        if over.first is not None:
            mask &= jnp.arange(length)[None, None, None] >= over.first[:, None, :, None]
    else:
        mask = over.mask[:, None]
    logits = jnp.where(mask, _logits(q, k), -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def _attend_prefix(q, k, v, over: Prefix):
    """Softmax over [visible context keys, own key], without building that concatenation."""
    place = jnp.arange(over.keys.shape[2])[None, None, None, :]
    seen = place < over.visible[:, None, :, None]
    if over.first is not None:
        seen &= place >= over.first[:, None, :, None]
    context = jnp.where(seen, _logits(q, over.keys), -jnp.inf)
    own = _scale(q) * jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1, keepdims=True)
    # The own key is always visible, so the maximum is finite and the sum is at least one term.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(context, axis=-1, keepdims=True, initial=-jnp.inf), own))
    context, own = jnp.exp(context - top), jnp.exp(own - top)
    total = jnp.sum(context, axis=-1, keepdims=True) + own
    read = jnp.einsum("bhrk,bhkd->bhrd", (context / total).astype(v.dtype), over.values)
    return read + (own / total).astype(v.dtype) * v


def _scale(q) -> float:
    return q.shape[-1] ** -0.5


def _logits(q, k):
    return _scale(q) * jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
