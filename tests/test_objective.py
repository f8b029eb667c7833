"""Batches of which nothing can be learnt."""

import jax
import numpy as np
import small_model

from synergen_jax import objective
from synergen_jax.batch import Candidates, Readers, TrainBatch
from synergen_jax.config import LossConfig, ModelConfig


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    """Such a batch comes up where searches lead to no item; the log of no negatives at all must not reach the loss."""
    config = LossConfig(in_batch=4)
    model, params, catalogue = small_model.make(ModelConfig(width=8, heads=2, depth=1, dropout=0.0))
    events = small_model.events(np.random.default_rng(0), 2, 5)
    zeros = lambda *shape: np.zeros(shape, np.int32)
    visible = np.tile(np.arange(5, dtype=np.int32), (2, 1))
    unknown = np.full((2, 1, 3, 2), -1, np.int8)
    batch = TrainBatch(
        events,
        Readers(zeros(2, 5), np.asarray(events.query), np.asarray(events.time), visible),
        zeros(2, 5),
        Candidates(zeros(2, 1, 3), unknown, zeros(2, 1), zeros(2, 1), zeros(2, 1)),
        zeros(0),
    )

    @jax.jit
    def gradient(params, batch):
        negative = objective.negatives(batch, catalogue, config, jax.random.key(0))
        loss = lambda p: objective.loss(model, p, catalogue, batch, config, objective.weights(batch), negative, None)[0]
        return jax.value_and_grad(loss)(params)

    value, found = gradient(params, batch)
    assert float(value) == 0.0
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(found)), "NaN counts as any"
