"""How the losses of a batch are put together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from small_log import random_log

from data_pipelines import feed, splits
from synergen_jax import objective
from synergen_jax.batch import Catalogue
from synergen_jax.config import Config, DataConfig, LossConfig, ModelConfig

CONFIG = Config(
    data=DataConfig(max_history=10, batch=6, negatives=7, rank_events=2, rank_candidates=4),
    model=ModelConfig(width=16, heads=2, depth=1, dropout=0.0),
    loss=LossConfig(in_batch=5, temperature=0.1),
)


@pytest.fixture(scope="module")
def setting():
    log = random_log(users=25)
    split = splits.split(log, CONFIG.data)
    model, params, _ = small_model.make(CONFIG.model, log.spec)
    batches = feed.train_feed(log, split, CONFIG)(0)
    batch = jax.tree.map(jnp.asarray, next(batches))
    batches.close()
    catalogue = jax.tree.map(jnp.asarray, feed.catalogue(log, split))
    return model, params, catalogue, batch


@functools.partial(jax.jit, static_argnums=(0, 4))
def value_and_grad(model, params, catalogue: Catalogue, batch, config):
    """(objective, parts), gradients."""
    negative = objective.negatives(batch, catalogue, config, jax.random.key(0))

    def loss(params):
        return objective.loss(model, params, catalogue, batch, config, objective.weights(batch, config), negative, None)

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_the_objective_is_the_weighted_sum_of_its_parts(setting):
    (value, parts), _ = value_and_grad(*setting, CONFIG.loss)
    assert set(parts) == {"retrieval", "pointwise", "pairwise"} and all(float(part) > 0 for part in parts.values())
    wanted = 1.0 * parts["retrieval"] + 0.1 * parts["pointwise"] + 0.1 * parts["pairwise"]
    np.testing.assert_allclose(value, wanted, rtol=1e-6)


@pytest.mark.parametrize("alone", ["retrieval", "pointwise", "pairwise"])
def test_a_weight_of_zero_takes_its_head_out(setting, alone):
    weights = {f"{name}_weight": float(name == alone) for name in ("retrieval", "pointwise", "pairwise")}
    (value, parts), grads = value_and_grad(*setting, dataclasses.replace(CONFIG.loss, **weights))
    (_, every), _ = value_and_grad(*setting, CONFIG.loss)
    np.testing.assert_allclose(value, every[alone], rtol=1e-6)
    np.testing.assert_allclose(parts[alone], every[alone], rtol=1e-6)
    heads = grads["model"]["params"]
    moved = {name: float(jnp.abs(heads[name]["kernel"]).sum()) > 0 for name in ("retrieval_head", "ranking_out")}
    assert moved == {"retrieval_head": alone == "retrieval", "ranking_out": alone != "retrieval"}


def test_a_batch_without_targets_and_labels_is_zero_not_nan(setting):
    model, params, catalogue, batch = setting
    empty = dataclasses.replace(
        batch,
        target=jnp.zeros_like(batch.target),
        ranking=dataclasses.replace(batch.ranking, label=jnp.full_like(batch.ranking.label, -1)),
    )
    for config in (CONFIG.loss, dataclasses.replace(CONFIG.loss, full_softmax=True)):
        (value, _), grads = value_and_grad(model, params, catalogue, empty, config)
        assert float(value) == 0
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_no_ranked_events_leaves_the_ranking_losses_out(setting):
    model, params, catalogue, batch = setting
    cut = jax.tree.map(lambda x: x[:, :0], batch.ranking)
    (value, parts), _ = value_and_grad(model, params, catalogue, dataclasses.replace(batch, ranking=cut), CONFIG.loss)
    assert float(parts["pointwise"]) == float(parts["pairwise"]) == 0
    np.testing.assert_allclose(value, parts["retrieval"], rtol=1e-6)


def test_padding_changes_nothing(setting):
    """Users of no event and events of no window have no loss."""
    model, params, catalogue, batch = setting
    wider = lambda x: jnp.pad(x, [(0, 2)] + [(0, 0)] * (x.ndim - 1))
    padded = jax.tree.map(wider, dataclasses.replace(batch, negatives=batch.negatives[:0]))
    label = padded.ranking.label.at[-2:].set(-1)
    padded = dataclasses.replace(
        padded, negatives=batch.negatives, ranking=dataclasses.replace(padded.ranking, label=label)
    )
    config = dataclasses.replace(CONFIG.loss, in_batch=0)  # draws from other positions otherwise
    (value, _), grads = value_and_grad(model, params, catalogue, batch, config)
    (found, _), ours = value_and_grad(model, params, catalogue, padded, config)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, grads)


def test_negatives_are_the_shared_ones_and_targets_of_the_batch(setting):
    _, _, catalogue, batch = setting
    ids, log_q = objective.negatives(batch, catalogue, CONFIG.loss, jax.random.key(1))
    assert ids.shape == (7 + 5,) and log_q.shape == catalogue.counts.shape
    assert (ids[:7] == batch.negatives).all()
    assert set(np.asarray(ids[7:]).tolist()) <= set(np.asarray(batch.target).ravel().tolist())
    other, _ = objective.negatives(batch, catalogue, CONFIG.loss, jax.random.key(2))
    assert (other[7:] != ids[7:]).any()
    _, none = objective.negatives(batch, catalogue, dataclasses.replace(CONFIG.loss, log_q=False), jax.random.key(1))
    assert none is None
