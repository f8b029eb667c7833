"""Batches of which nothing can be learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synergen_jax import losses, objective
from synergen_jax.batch import Candidates, Catalogue, Events, Readers, TrainBatch
from synergen_jax.config import LossConfig


def batch_of(target):
    """A batch of 2 users and 3 readers each with these targets; no candidates."""
    some, none = np.ones((2, 3), np.int32), np.zeros((2, 0), np.int32)
    unknown = np.zeros((2, 0, 4, 2), np.int8)
    return TrainBatch(
        Events(some, some, some, some),
        Readers(0 * some, some, some, some),
        np.array(target, np.int32),
        Candidates(np.zeros((2, 0, 4), np.int32), unknown, none, none, none),
        np.zeros(0, np.int32),
    )


@pytest.mark.parametrize("target", [[[0, 0, 0], [0, 0, 0]], [[0, 0, 3], [0, 2, 0]]])
def test_a_reader_without_a_target_has_no_loss_and_no_gradient(target):
    """Also where no reader of the batch has one: the log of no negatives at all must not reach the loss."""
    config = LossConfig(in_batch=64)
    catalogue = Catalogue({}, {}, jnp.array([0, 5, 3, 0, 1]))
    batch = jax.device_put(batch_of(target))
    ids, log_count = objective.negatives(batch, catalogue, config, jax.random.key(0))
    assert ids.shape == (64,) and set(ids.tolist()) <= set(np.ravel(target).tolist())
    assert np.isfinite(log_count).all()

    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    flat = batch.target.reshape(-1)
    weight = (flat > 0).astype(jnp.float32)

    def loss(query, vectors):
        return losses.info_nce(query, vectors[flat], flat, vectors[ids], ids, weight, log_count, config.temperature)

    value, (of_query, of_vectors) = jax.value_and_grad(loss, (0, 1))(jnp.ones((6, 8)), vectors)
    assert np.isfinite(value) and np.isfinite(of_vectors).all()
    assert (float(value) == 0.0) == (not np.any(target))
    assert not np.any(np.asarray(of_query)[np.ravel(target) == 0]), "NaN counts as any"
