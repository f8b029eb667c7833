"""The decoder's two kinds of block, and the layers that they are made of.

A block maps tokens to tokens over whatever attention lets each of them see, and tells its keys and values, which are
what a cache keeps. What a block adds starts at zero (Goyal et al. 2017; Bachlechner et al. 2021), so that a token's own
vector, a query above all, reaches the heads from the first step.
"""

from __future__ import annotations

import typing

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from synergen_jax.config import ModelConfig
from synergen_jax.model import attention, rope
from synergen_jax.model.attention import Over
from synergen_jax.model.attention_xla import BUCKETS, Form
from synergen_jax.model.dropout import Dropout

Axes = tuple[str | None, ...]
"""The logical axes of an array, see `device_mesh.RULES`."""


def boxed(init: nn.initializers.Initializer, axes: Axes) -> nn.initializers.Initializer:
    """An initialiser whose values lie in a box that names their logical axes; a module sees the values alone."""
    # Flax types what comes back as the box, but `param` opens it.
    return typing.cast(nn.initializers.Initializer, nn.with_logical_partitioning(init, axes))


def dense(
    shape: int | tuple[int, ...],
    axes: Axes,
    dtype: jnp.dtype,
    name: str | None = None,
    in_axis: int | tuple[int, ...] = 0,
    init: nn.initializers.Initializer | None = None,
) -> nn.DenseGeneral:
    """A bias-free linear map with logical axes; `shape` is that of its output features."""
    init = init or nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    return nn.DenseGeneral(
        shape,
        axis=in_axis,
        use_bias=False,
        dtype=dtype,
        kernel_init=boxed(init, axes),
        name=name,
    )


class RMSNorm(nn.Module):
    """Vectors over their root mean square, times a learned scale (Zhang and Sennrich 2019), in float32.

    `flax.linen.RMSNorm` multiplies the scale with the inverse root, a number a token, before the vector is: XLA then makes
    a whole array of each. Here a token's number meets its vector first, which takes a tenth off a step on a CPU.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps vectors (..., D) to vectors (..., D) of the dtype."""
        init = boxed(nn.initializers.ones, ("embed",))
        scale = self.param("scale", init, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return (x * jnp.broadcast_to(scale, x.shape)).astype(self.dtype)


class _Block(nn.Module):
    """What both kinds share."""

    config: ModelConfig

    def heads(self, name: str, x: Array) -> Array:
        """A linear map of tokens (B, L, D) to heads, (B, H, L, Dh)."""
        c = self.config
        shape, axes = (c.heads, c.width // c.heads), ("embed", "heads", "head_width")
        return dense(shape, axes, jnp.dtype(c.dtype), name, in_axis=-1)(x).swapaxes(1, 2)

    def joined(self, name: str, x: Array) -> Array:
        """A linear map of heads (B, H, L, Dh) to tokens, zero at first."""
        c, axes = self.config, ("heads", "head_width", "embed")
        return dense(c.width, axes, jnp.dtype(c.dtype), name, (-2, -1), nn.initializers.zeros)(x.swapaxes(1, 2))

    def attend(self, q: Array, k: Array, v: Array, over: Over) -> Array:
        """Attention of the block's kind, with its bias by elapsed time if the config asks for one."""
        c = self.config
        bias = None
        if c.time_bias:
            init = boxed(nn.initializers.zeros, ("heads", None))
            bias = self.param("time_bias", init, (c.heads, BUCKETS))
        return attention.attend(q, k, v, over, attention.choose(c), Form(c.block == "hstu", bias))


class Transformer(_Block):
    """A pre-norm block: softmax attention, then a gated feed-forward layer (SwiGLU, Shazeer 2020)."""

    @nn.compact
    def __call__(self, h: Array, angle: Array, over: Over, deterministic: bool):
        """Maps tokens (B, L, D) to tokens (B, L, D) and their rotated keys and values, (B, H, L, Dh) each."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        dropout = lambda x: Dropout(c.dropout)(x, deterministic)
        x = RMSNorm(dtype, name="attention_norm")(h)
        q, k, v = (self.heads(name, x) for name in ("query", "key", "value"))
        q, k = rope.rotate(q, angle), rope.rotate(k, angle)
        h = h + dropout(self.joined("out", self.attend(q, k, v, over)))
        x = RMSNorm(dtype, name="mlp_norm")(h)
        gate, up = (dense(c.mlp_hidden, ("embed", "mlp"), dtype, name, in_axis=-1)(x) for name in ("gate", "up"))
        x = dense(c.width, ("mlp", "embed"), dtype, "down", -1, nn.initializers.zeros)(nn.silu(gate) * up)
        return h + dropout(x), k, v


class HSTU(_Block):
    """Pointwise attention behind a gate, without a feed-forward layer (Zhai et al. 2024, "Actions speak louder than words").

    Weights are silu(logits), not a softmax: how much a token finds adds up in place of being shared out. What attention
    gives is normalised, multiplied by a gate of the token's own, and mapped back. As published, queries, keys, values and
    gates are silu'd.
    """

    @nn.compact
    def __call__(self, h: Array, angle: Array, over: Over, deterministic: bool):
        """As `Transformer`."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = RMSNorm(dtype, name="attention_norm")(h)
        gate, q, k, v = (nn.silu(self.heads(name, x)) for name in ("gate", "query", "key", "value"))
        q, k = rope.rotate(q, angle), rope.rotate(k, angle)
        x = self.attend(q, k, v, over)
        flat = lambda x: x.swapaxes(1, 2).reshape(h.shape)
        x = RMSNorm(dtype, name="value_norm")(flat(x)).reshape(*h.shape[:2], c.heads, -1).swapaxes(1, 2) * gate
        return h + Dropout(c.dropout)(self.joined("out", x), deterministic), k, v


KINDS = {"transformer": Transformer, "hstu": HSTU}
