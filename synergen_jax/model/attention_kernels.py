"""Fused attention kernels of others: cuDNN and Tokamax on NVIDIA GPUs, splash attention on TPUs.

Each takes and gives (B, H, L, Dh). None of them can be split by the compiler along a mesh, so under a mesh of several
devices (`jax.sharding.use_abstract_mesh`) each device runs its own users (`data`) and heads (`model`).

Readers see cached keys and, beside them, their own. Kernels know nothing of the latter; what they give for the cached keys
is merged with it by the softmax's maximum and sum. No kernel passes gradients through those two (cuDNN and Tokamax drop
them without a word, splash refuses), so the merge has a backward pass of its own (`_read`).
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray
from synergen_jax.model.attention_xla import scale

Vectors = Float[Array, "b h l dh"]
Places = Int[AnyArray, "b l"]

LANES = 128  # splash takes lengths that are a multiple of a vector's lanes


def has_tokamax() -> bool:
    """True where the extra `[tokamax]` is installed, with all that it imports."""
    try:
        importlib.import_module("tokamax")
    except ImportError:
        return False
    return True


def cudnn_causal(q: Vectors, k: Vectors, v: Vectors) -> Vectors:
    """Token i sees tokens 0 .. i. bfloat16; Dh a multiple of 8, at most 128."""

    def local(q, k, v):
        fused = jax.nn.dot_product_attention(*map(_swap, (q, k, v)), is_causal=True, implementation="cudnn")
        return _swap(fused)

    return _on_each_device(local, q, k, v)


def splash_causal(q: Vectors, k: Vectors, v: Vectors, first: Places | None, interpret: bool = False) -> Vectors:
    """Token i sees tokens `first[:, i]` .. i.

    Args:
      interpret: run on any platform, slowly: for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = q.shape[2]
    more = -length % LANES  # padding comes last, so that no token sees it
    padded = length + more
    block = next(size for size in (512, 256, LANES) if padded % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def local(q, k, v, first):
        mask = masks.MultiHeadMask([masks.CausalMask((padded, padded))] * q.shape[1])
        kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
        q, k, v = (jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, 0)]) for x in (q * scale(q), k, v))
        segments = None
        if first is not None:
            segment = jnp.pad(first, [(0, 0), (0, more)], constant_values=-1)
            segments = splash.SegmentIds(segment, segment)
        found = jax.vmap(kernel)(q, k, v, segments)
        assert isinstance(found, Array), "a pair where residuals are asked for, which they are not"
        return found[:, :, :length]

    return _on_each_device(local, q, k, v, first)


def tokamax_causal(q: Vectors, k: Vectors, v: Vectors, first: Places | None) -> Vectors:
    """Token i sees tokens `first[:, i]` .. i."""

    def local(q, k, v, first):
        from tokamax._src.ops.attention import base

        mask = base.Mask(is_causal=True, k_start=None if first is None else first[:, None])
        return _swap(_tokamax()(*map(_swap, (q, k, v)), mask=mask))

    return _on_each_device(local, q, k, v, first)


def tokamax_prefix(
    q: Vectors, k: Vectors, v: Vectors, keys: Vectors, values: Vectors, visible: Places, first: Places | None
) -> Vectors:
    """Token r sees the cached keys `first[:, r]` .. `visible[:, r] - 1`, and its own key and value.

    All readers of a user are one run of queries with a range of keys each: those of one event, side by side, share their
    keys in the kernel's tiles, as grouped queries do.
    """
    return _on_each_device(_read, q, k, v, keys, values, visible, first)


@jax.custom_vjp
def _read(q, k, v, keys, values, visible, first):
    return _read_forward(q, k, v, keys, values, visible, first)[0]


def _read_forward(q, k, v, keys, values, visible, first):
    """The kernel over the cached keys, then the own key merged into its softmax: maximum `top` and sum `total`."""
    inputs = (q, k, v, keys, values, visible, first)
    read, (top, total) = _tokamax()(*map(_swap, (q, keys, values)), mask=_range(visible, first), return_residuals=True)
    own = _own_logit(q, k)
    merged = jnp.maximum(top, own)  # `top` is -inf, or the least float, where nothing is seen; `own` is finite
    context, mine = total * jnp.exp(top - merged), jnp.exp(own - merged)
    total = context + mine
    weigh = lambda weight, x: (weight / total)[..., None] * x.astype(jnp.float32)
    out = (weigh(context, _swap(read)) + weigh(mine, v)).astype(v.dtype)
    return out, (*inputs, out, merged, total)


def _read_backward(saved, gradient):
    """The kernel's own backward pass, told the merged output, maximum and sum, is that of the whole softmax."""
    q, k, v, keys, values, visible, first, out, top, total = saved
    kernel = _tokamax()
    assert kernel.vjp is not None, "Tokamax gives this kernel one as it is made"
    bound = kernel.bind(*map(_swap, (q, keys, values)), mask=_range(visible, first))
    more = {name: value for name, value in bound.kwargs.items() if name != "return_residuals"}
    found = kernel.vjp((top, total), _swap(out), _swap(gradient), *bound.args, **more)
    wide = lambda x: x.astype(jnp.float32)
    weight = (jnp.exp(_own_logit(q, k) - top) / total)[..., None]
    slope = scale(q) * weight * jnp.sum(wide(gradient) * (wide(v) - wide(out)), axis=-1, keepdims=True)
    return (
        (wide(_swap(found["q"])) + slope * wide(k)).astype(q.dtype),
        (slope * wide(q)).astype(k.dtype),
        (weight * wide(gradient)).astype(v.dtype),
        _swap(found["k"]).astype(keys.dtype),
        _swap(found["v"]).astype(values.dtype),
        None,
        None,
    )


_read.defvjp(_read_forward, _read_backward)


def _own_logit(q, k):
    return scale(q) * jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1)


def _range(visible, first):
    from tokamax._src.ops.attention import base

    return base.Mask(k_start=None if first is None else first[:, None], k_end=visible[:, None])


def _tokamax():
    """Tokamax's Triton kernel.

    Ranges of keys for each query are not in Tokamax's public function, so this calls one of the operators behind it;
    `pyproject.toml` says against which releases. That for Hopper's tensor cores (`mosaic_gpu`) may be faster, and waits for
    a machine to be tried on: it cannot even be lowered without one.
    """
    from absl import flags
    from tokamax._src.ops.attention.pallas_triton import PallasTritonFlashAttention

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Tokamax would parse the words of our own command line
    return PallasTritonFlashAttention()


def _swap(x):
    """(B, H, L, Dh) to (B, L, H, Dh), and back."""
    return x.swapaxes(1, 2)


def _on_each_device(local, *arrays):
    """`local(*arrays)`, each device of the mesh with its own users and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return local(*arrays)
    users, heads = PartitionSpec("data"), PartitionSpec("data", "model")
    specs = tuple(None if x is None else heads if x.ndim == 4 else users for x in arrays)
    return jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)
