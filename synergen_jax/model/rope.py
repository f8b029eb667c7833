"""Rotary phases of time and of order (RoPE: Su et al. 2021; time in place of position: SynerGen, arXiv 2509.21777).

A phase function maps `(time, order)` to one angle for each rotary plane. Attention sees differences of angles alone,
so only elapsed time, and distance in order, matter.

Time is an integer number of seconds and so is every wavelength: `t mod λ` is exact integer arithmetic, which resolves
one second ten years on. Float32 seconds would not: at λ = 60 s they are off by whole turns.
"""

from __future__ import annotations

import collections.abc
import typing

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray
from synergen_jax.config import ModelConfig
from synergen_jax.errors import UserError

Phase = collections.abc.Callable[[Int[AnyArray, "*b l"], Int[AnyArray, "*b l"]], Float[Array, "*b l p"]]
"""`phase(time, order)`: int32 seconds and int32 places, (..., L) each, to angles in radians, (..., L, Dh / 2)."""


def wavelengths(planes: int, shortest: int, longest: int) -> Int[np.ndarray, "planes"]:
    """`planes` whole numbers of seconds from `shortest` to `longest`, evenly spaced in their logarithm."""
    return np.rint(np.geomspace(shortest, longest, planes)).astype(np.int32)


def time_phase(time: Int[AnyArray, "*b l"], waves: Int[np.ndarray, "p"]) -> Float[Array, "*b l p"]:
    """The angle 2π (t mod λ) / λ of each time at each wavelength, in radians."""
    waves = waves.reshape((1,) * time.ndim + (-1,))
    return jnp.multiply(2 * np.pi / waves.astype(np.float32), jnp.mod(time[..., None], waves).astype(jnp.float32))


def order_phase(order: Int[AnyArray, "*b l"], planes: int, base: float = 10_000.0) -> Float[Array, "*b l p"]:
    """The angle order * base^(-j / planes) at plane j: RoPE as published."""
    speed = base ** (-np.arange(planes, dtype=np.float32) / planes)
    return jnp.multiply(order[..., None].astype(jnp.float32), speed.reshape((1,) * order.ndim + (-1,)))


def make_phase(config: ModelConfig) -> Phase:
    """The phase function that `config.rope` names: "time", "order", "split" (half of the planes each), or "none"."""
    planes = 0 if config.rope == "none" else config.width // config.heads // 2
    timed = {"time": planes, "split": planes // 2}.get(config.rope, 0)
    waves = wavelengths(timed, config.min_wavelength, config.max_wavelength)

    def phase(time: Int[AnyArray, "*b l"], order: Int[AnyArray, "*b l"]) -> Float[Array, "*b l p"]:
        return jnp.concatenate([time_phase(time, waves), order_phase(order, planes - timed)], axis=-1)

    return phase


# Where a phase is looked at, to tell it from others: no two of them are alike in minute, hour, day or place.
_TIMES = (0, 1, 61, 3_723, 90_061, 700_000, 2_345_678, 40_000_003, 300_000_007, 0, 59, 86_399, 86_400, 10_000_019)
_ORDERS = (0, 1, 2, 3, 5, 8, 13, 21, 50, 199, 34, 10, 100, 7)


def describe(config: ModelConfig, phase: Phase | None = None) -> dict[str, typing.Any]:
    """What tells a run's phase from others: its name, "" for the built-in one, and its angles at a few fixed points.

    Returns:
      {"name": text, "angles": a row of Dh / 2 (or no) numbers a point}, fit for JSON.

    Raises:
      UserError: `phase` does not give a finite angle a rotary plane.
    """
    planes = config.width // config.heads // 2
    name = "" if phase is None else getattr(phase, "__name__", type(phase).__name__)
    points = (jnp.asarray([row], jnp.int32) for row in (_TIMES, _ORDERS))
    angles = np.asarray((phase or make_phase(config))(*points), np.float64)
    if angles.shape not in ((1, len(_TIMES), planes), (1, len(_TIMES), 0)):
        raise UserError(
            f"the phase {name} turns times and places of shape (1, {len(_TIMES)}) into angles of shape {angles.shape}: it must "
            f"be (1, {len(_TIMES)}, {planes}), an angle a rotary plane (model.width / model.heads / 2)"
        )
    if not np.isfinite(angles).all():
        raise UserError(f"the phase {name} gives angles that are not finite, at times of 0 to {max(_TIMES)} seconds")
    return {"name": name, "angles": angles[0].tolist()}


def rotate(x: Float[Array, "b h l dh"], angle: Float[Array, "b l p"]) -> Float[Array, "b h l dh"]:
    """Turns plane j of `x`, spanned by its coordinates j and j + Dh / 2, by `angle[..., j]`; no angles turn nothing."""
    if not angle.shape[-1]:
        return x
    cos, sin = _turn(angle)
    cos, sin = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _turn(angle: Array) -> tuple[Array, Array]:
    """Cosine and sine. On a CPU, XLA holds trigonometry to be cheap and computes it again in every operation that takes
    it, but never a division: that by one, of which XLA does not know that it is one, makes sure that a pass computes
    them once."""
    one = 1.0 + 0.0 * angle
    return jnp.cos(angle) / one, jnp.sin(angle) / one
