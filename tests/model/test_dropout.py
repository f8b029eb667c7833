"""Dropout by a hash: its share, its independence, and that it is the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synergen_jax.config import MeshConfig
from synergen_jax.model.dropout import Dropout
from synergen_jax.sharding import device_mesh

SHAPE = (16, 64, 32)


def dropped(rate, key, x=None, **kw):
    return Dropout(rate).apply(
        {}, jnp.ones(SHAPE) if x is None else x, False, rngs={"dropout": jax.random.key(key)}, **kw
    )


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_a_share_is_dropped_and_the_rest_scaled_up(rate):
    out = np.asarray(dropped(rate, 0))
    assert abs((out == 0).mean() - rate) < 0.01
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)


def test_masks_are_independent():
    """Of each other in two steps, and of their neighbours along every axis, near and far."""
    first, second = (np.asarray(dropped(0.5, key)) > 0 for key in (1, 2))
    limit = 5 / np.sqrt(first.size)  # five standard deviations
    assert abs(np.mean(first == second) - 0.5) < limit
    for axis in range(3):
        for shift in (1, 2, 7):
            assert abs(np.mean(first == np.roll(first, shift, axis)) - 0.5) < limit, (axis, shift)


def test_nothing_is_dropped_without_a_rate_or_in_serving():
    x = jnp.arange(6.0)
    assert Dropout(0.0).apply({}, x, False) is x
    assert Dropout(0.5).apply({}, x, True) is x


def test_the_mask_is_that_of_the_places_on_every_mesh():
    mesh = device_mesh.make_mesh(MeshConfig(4, 2))
    x = jax.device_put(jnp.ones(SHAPE), NamedSharding(mesh, PartitionSpec("data", None, "model")))
    np.testing.assert_array_equal(jax.jit(lambda x: dropped(0.3, 3, x))(x), dropped(0.3, 3))


def test_gradients_pass_where_entries_do():
    out, grad = jax.value_and_grad(lambda x: jnp.sum(dropped(0.3, 4, x)))(jnp.ones(SHAPE))
    np.testing.assert_allclose(np.unique(grad), [0, 1 / 0.7], rtol=1e-6)
    assert float(out) == pytest.approx(float(grad.sum()), rel=1e-5)
