"""Dropout whose random bits are a hash of place and seed: a few integer operations that fuse with the multiplication.

jax's generators are made for streams that must pass every test of randomness; for a mask they cost a tenth of a
training step on a CPU, in loops of their own.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from synergen_jax.batch import AnyArray


def bits(counter: Int[AnyArray, "..."], seed: Int[Array, ""]) -> Int[Array, "..."]:
    """32 well-mixed bits of each uint32 counter under a uint32 seed: the finaliser of MurmurHash3 (Appleby 2011)."""
    x = counter * jnp.uint32(0x9E3779B1) ^ seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def below(rate: float) -> Int[Array, ""]:
    """The bound that `bits` fall below with probability `rate`, uint32."""
    return jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


class Dropout(nn.Module):
    """Zeroes a share `rate` of the entries and scales up the others (Srivastava et al. 2014).

    Needs `rngs={"dropout": key}` unless `deterministic`. A mask depends on key and place alone, not on the mesh.
    """

    rate: float

    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Drops entries of `x`, (...)."""
        if deterministic or not self.rate:
            return x
        seed = jax.random.bits(self.make_rng("dropout"))
        place, step = jnp.zeros((), jnp.uint32), 1
        for axis in reversed(range(x.ndim)):  # a flat index, by axes: no reshape that a mesh would have to follow
            place = place + step * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            step = step * x.shape[axis] % 2**32
        return jnp.where(bits(place, seed) < below(self.rate), 0, x / (1 - self.rate)).astype(x.dtype)
