"""The date of a request as numbers: what people buy changes over seasons and years, and a model may go by that."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray

DAY = 86_400  # seconds
PERIODS = DAY * 2 ** np.arange(6, 15)  # of 64 days to 45 years


def features(time: Int[AnyArray, "..."]) -> Float[Array, "... f"]:
    """Sine and cosine of a time within each of `PERIODS`, (..., 2 * 9), float32. Times are in seconds."""
    periods = PERIODS.astype(np.int32).reshape((1,) * time.ndim + (-1,))
    turn = (time[..., None] % periods).astype(jnp.float32) * (2 * np.pi / periods).astype(np.float32)
    return jnp.concatenate([jnp.sin(turn), jnp.cos(turn)], axis=-1)
