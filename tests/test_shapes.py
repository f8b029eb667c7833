"""Shapes in the signatures of the pure functions hold at run time, as `conftest` has it: a wrong one is refused."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from guarded import GUARDED

from synergen_jax.evaluation import metrics
from synergen_jax.model import attention, rope
from synergen_jax.training import losses

X = jnp.zeros((1, 2, 3, 4))  # (B, H, L, Dh)
WRONG = {
    "synergen_jax.model.rope": lambda: rope.rotate(X, jnp.zeros((1, 3))),
    "synergen_jax.model.attention": lambda: attention.attend(X, X[:, :, :2], X, attention.Causal()),
    "synergen_jax.training.losses": lambda: losses.pointwise(
        jnp.zeros((2, 3, 1)), jnp.zeros((2, 4, 1), int), jnp.ones((2, 1))
    ),
    "synergen_jax.evaluation.metrics": lambda: metrics.ranks(np.zeros((2, 5)), np.ones(3, int), np.zeros((2, 1), int)),
}


@pytest.mark.parametrize("module", GUARDED)
def test_a_wrong_shape_is_refused(module):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[module]()
