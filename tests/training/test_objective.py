"""How the losses of a batch are put together."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from small_log import random_log
from small_model import MESH, value_and_grad

from data_pipelines.feed import examples, feed, splits
from synergen_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig
from synergen_jax.model import synergen
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import losses, objective

CONFIG = Config(
    data=DataConfig(max_history=10, batch=6, negatives=7, rank_events=2, rank_candidates=4),
    model=ModelConfig(width=16, heads=2, depth=1, dropout=0.0),
    loss=LossConfig(in_batch=5, temperature=0.1),
)

RANKING = ("pointwise", "pairwise", "listwise")


@pytest.fixture(scope="module")
def setting():
    log = random_log(users=25)
    split = splits.split(log, CONFIG.data)
    model, params, _ = small_model.make(CONFIG.model, log.spec)
    batches = feed.train_feed(log, split, CONFIG)(0)
    batch = jax.tree.map(jnp.asarray, next(batches))
    batches.close()
    catalogue = jax.tree.map(jnp.asarray, examples.catalogue(log, split))
    return model, params, catalogue, batch


def test_the_objective_is_the_weighted_sum_of_its_parts(setting):
    (value, parts), _ = value_and_grad(*setting, dataclasses.replace(CONFIG.loss, listwise_weight=0.3))
    assert set(parts) == {"retrieval", *RANKING} and all(float(part) > 0 for part in parts.values())
    wanted = 1.0 * parts["retrieval"] + 0.1 * parts["pointwise"] + 0.1 * parts["pairwise"] + 0.3 * parts["listwise"]
    np.testing.assert_allclose(value, wanted, rtol=1e-6)


@pytest.mark.parametrize("alone", ["retrieval", *RANKING])
def test_a_weight_of_zero_takes_its_head_out(setting, alone):
    weights = {f"{name}_weight": float(name == alone) for name in ("retrieval", *RANKING)}
    (value, parts), grads = value_and_grad(*setting, dataclasses.replace(CONFIG.loss, **weights))
    (_, every), _ = value_and_grad(*setting, CONFIG.loss)
    np.testing.assert_allclose(value, every[alone], rtol=1e-6)
    np.testing.assert_allclose(parts[alone], every[alone], rtol=1e-6)
    heads = grads["model"]["params"]
    moved = {name: float(jnp.abs(heads[name]["kernel"]).sum()) > 0 for name in ("retrieval_head", "ranking_out")}
    # The retrieval score is part of the ranking logits, so that every loss moves the retrieval head.
    assert moved == {"retrieval_head": True, "ranking_out": alone != "retrieval"}


def test_later_labels_weigh_what_they_are_told(setting):
    """With a weight of 0 they take no part; in between, losses are means over the weighted labels."""
    label = setting[3].ranking.label
    assert (label[..., 1] >= 0).any()
    alone = dataclasses.replace(
        setting[3], ranking=dataclasses.replace(setting[3].ranking, label=label.at[..., 1].set(-1))
    )
    pointwise = lambda batch, weight: value_and_grad(
        *setting[:3], batch, dataclasses.replace(CONFIG.loss, label_weight=weight)
    )[0][1]["pointwise"]
    none, one, three = (float(pointwise(setting[3], weight)) for weight in (0.0, 1.0, 3.0))
    np.testing.assert_allclose(none, pointwise(alone, 1.0), rtol=1e-5)
    first, later = ((label[..., a] >= 0).sum() for a in (0, 1))
    liked = (one * (first + later) - none * first) / later  # the mean of the later label
    np.testing.assert_allclose(three, (none * first + 3 * liked * later) / (first + 3 * later), rtol=1e-4)


def test_ranking_counts_from_its_step_on(setting):
    """Before it, the objective is the retrieval loss alone and the ranking head is not moved."""
    *_, batch = setting
    late = dataclasses.replace(CONFIG.loss, rank_after=5)
    (value, parts), grads = value_and_grad(*setting, late)
    np.testing.assert_allclose(value, parts["retrieval"], rtol=1e-6)
    assert all(float(parts[name]) == 0 for name in RANKING)
    assert not np.asarray(grads["model"]["params"]["ranking_out"]["kernel"]).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert objective.weights(batch, late, 5) == objective.weights(batch, CONFIG.loss)


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
    assert all(float(parts[name]) == 0 for name in RANKING)
    np.testing.assert_allclose(value, parts["retrieval"], rtol=1e-6)


def test_lists_of_all_events_in_their_order_are_read_as_any_others(setting):
    """One empty list more, and nothing is promised of their order any longer."""
    model, params, catalogue, _ = setting
    config = dataclasses.replace(
        CONFIG, data=dataclasses.replace(CONFIG.data, max_history=200, rank_events=200, batch=2)
    )
    log = random_log(users=4, longest=190)
    with contextlib.closing(feed.train_feed(log, splits.split(log, config.data), config)(0)) as batches:
        batch = jax.tree.map(jnp.asarray, next(batches))
    ranking = batch.ranking
    real = np.asarray(ranking.item[:, :, 0] > 0)
    assert real.sum() > 100
    np.testing.assert_array_equal(ranking.event[real], np.nonzero(real)[1])
    np.testing.assert_array_equal(ranking.item[:, :, 0][real], batch.target[real])
    more = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2)), ranking)
    more = dataclasses.replace(more, label=more.label.at[:, -1].set(-1))
    (value, _), ours = value_and_grad(model, params, catalogue, batch, CONFIG.loss)
    other = dataclasses.replace(batch, ranking=more)
    (found, _), theirs = value_and_grad(model, params, catalogue, other, CONFIG.loss)
    np.testing.assert_allclose(value, found, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


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
    batch = setting[-1]
    ids, filled = objective.negatives(MESH, batch, CONFIG.loss, jax.random.key(1))
    assert ids.shape == (7 + 5,)
    np.testing.assert_allclose(filled, 5 * np.mean(np.asarray(batch.target) > 0), rtol=1e-6)
    assert (ids[:7] == batch.negatives).all()
    assert set(np.asarray(ids[7:]).tolist()) <= set(np.asarray(batch.target).ravel().tolist())
    other, _ = objective.negatives(MESH, batch, CONFIG.loss, jax.random.key(2))
    assert (other[7:] != ids[7:]).any()
    pair = device_mesh.make_mesh(MeshConfig(2, 1), jax.devices()[:2])
    np.testing.assert_array_equal(objective.negatives(pair, batch, CONFIG.loss, jax.random.key(1))[0], ids)


def test_the_log_q_correction_is_that_of_the_ids(setting):
    """The step, which looks counts up with the rows, against the loss over counts of the whole catalogue."""
    model, params, catalogue, batch = setting
    config = dataclasses.replace(CONFIG.loss, temperature=1.0)
    (_, parts), _ = value_and_grad(*setting, config)
    (_, plain), _ = value_and_grad(*setting, dataclasses.replace(config, log_q=False))
    ids, filled = objective.negatives(MESH, batch, config, jax.random.split(jax.random.key(0), 3)[0])
    counts = catalogue.counts
    log_q = losses.log_expected_count(counts, jnp.sum(counts), jnp.sum(counts > 0), filled, 7)
    vectors = lambda tokens: synergen.token_vectors(model, params, catalogue, tokens)
    cache = model.apply(params["model"], batch.events, *vectors(batch.events), method="encode")
    hidden = model.apply(params["model"], cache, batch.retrieval, *vectors(batch.retrieval), method="read")
    query = model.apply(params["model"], hidden, method="retrieve").reshape(batch.target.size, -1)
    keys, target = synergen.item_keys(model, params, catalogue), batch.target.reshape(-1)
    keys = jnp.where(jnp.arange(len(keys))[:, None] == 0, 0.0, keys)
    weight = (target > 0).astype(jnp.float32)
    loss = losses.info_nce(query, keys[target], target, keys[ids], ids, weight, (log_q[target], log_q[ids]), 1.0)
    np.testing.assert_allclose(parts["retrieval"], loss / weight.sum(), rtol=1e-5)
    assert abs(float(plain["retrieval"]) - float(parts["retrieval"])) > 0.01


def test_tasks_are_weighted_by_the_query_of_the_reader(setting):
    """With one task's weight at 0 the other's readers alone are learned from, in every part."""
    model, params, catalogue, batch = setting
    assert int((batch.retrieval.query > 0).sum()) > 0 and int((batch.ranking.query > 0).sum())
    for kept in ("search", "recommendation"):
        off = "recommendation_weight" if kept == "search" else "search_weight"
        config = dataclasses.replace(CONFIG.loss, in_batch=0, **{off: 0.0})
        wanted = lambda query, kept=kept: (query > 0) == (kept == "search")
        cut = dataclasses.replace(
            batch,
            target=jnp.where(wanted(batch.retrieval.query), batch.target, 0),
            ranking=dataclasses.replace(
                batch.ranking,
                label=jnp.where(wanted(batch.ranking.query)[..., None, None], batch.ranking.label, jnp.int8(-1)),
            ),
        )
        plain = dataclasses.replace(CONFIG.loss, in_batch=0)
        (value, parts), grads = value_and_grad(model, params, catalogue, batch, config)
        (found, others), ours = value_and_grad(model, params, catalogue, cut, plain)
        np.testing.assert_allclose(value, found, rtol=1e-5)
        for name in parts:
            np.testing.assert_allclose(parts[name], others[name], rtol=1e-5, err_msg=name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, ours)


@pytest.mark.parametrize("full", [True, False])
def test_hard_candidates_are_the_models_own(setting, full):
    """They change the ranking losses, and nothing is lost to NaN or infinity on the way."""
    model, params, catalogue, batch = setting
    plain = dataclasses.replace(CONFIG.loss, full_softmax=full, retrieval_weight=0.0)
    hard = dataclasses.replace(plain, hard_candidates=3)
    (_, parts), _ = value_and_grad(model, params, catalogue, batch, plain)
    (_, more), grads = value_and_grad(model, params, catalogue, batch, hard)
    assert float(more["pointwise"]) != float(parts["pointwise"]) and all(np.isfinite(v) for v in more.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.asarray(grads["model"]["params"]["ranking_out"]["kernel"]).any()


def test_items_that_training_never_meets_take_no_part(setting):
    """Neither as negatives nor through what lies in the table for them."""
    model, params, catalogue, batch = setting
    met = jnp.zeros(catalogue.counts.shape, bool).at[batch.target.reshape(-1)].set(True).at[batch.events.item].set(True)
    cold = int(jnp.flatnonzero(~met.at[0].set(True).at[batch.ranking.item].set(True).at[batch.negatives].set(True))[0])
    catalogue = dataclasses.replace(catalogue, counts=catalogue.counts.at[cold].set(0))
    config = dataclasses.replace(CONFIG.loss, full_softmax=True)
    (value, _), grads = value_and_grad(model, params, catalogue, batch, config)
    matrices = {name: matrix.at[cold].set(7) for name, matrix in catalogue.item_matrices.items()}
    (other, _), _ = value_and_grad(model, params, dataclasses.replace(catalogue, item_matrices=matrices), batch, config)
    assert float(value) == float(other)
    assert not np.asarray(grads["tables"]["item"][0, cold]).any()


@pytest.mark.parametrize("devices", [1, 8])
def test_a_target_that_training_never_met_is_in_the_full_softmax(setting, devices):
    """The command line's feed has no such target; a loop of one's own may."""
    model, params, catalogue, batch = setting
    counts = catalogue.counts.at[batch.target[0]].set(0)  # the targets of the first user
    catalogue = dataclasses.replace(catalogue, counts=counts)
    alone = dataclasses.replace(CONFIG.loss, full_softmax=True, pointwise_weight=0, pairwise_weight=0)
    mesh = MESH if devices == 1 else device_mesh.make_mesh(MeshConfig(data=2, model=4))
    value = jax.jit(lambda p, c, b: objective.value_and_grad(mesh, model, p, c, b, alone, None)[0])(
        params, table.place_catalogue(catalogue, mesh), batch
    )

    token = functools.partial(synergen.token_vectors, model, params, catalogue)
    apply = functools.partial(model.apply, params["model"])
    cache = apply(batch.events, *token(batch.events), method="encode")
    hidden = apply(cache, batch.retrieval, *token(batch.retrieval), method="read")
    query = np.asarray(apply(hidden, method="retrieve"), np.float64)
    keys = np.asarray(synergen.item_keys(model, params, catalogue), np.float64)
    total = count = 0
    for user, event in zip(*np.nonzero(np.asarray(batch.target))):
        target = int(batch.target[user, event])
        taking_part = np.asarray(counts) > 0
        taking_part[target] = True
        scores = keys @ query[user, event] / alone.temperature
        total += np.log(np.exp(scores[taking_part]).sum()) - scores[target]
        count += 1
    np.testing.assert_allclose(value, total / count, rtol=1e-4)


def test_lists_in_another_order_than_that_of_the_events_are_read_as_they_say(setting):
    """With as many lists as events, shapes do not tell whether list e is that of event e; the batch says so."""
    model, params, catalogue, _ = setting
    log, config = (
        random_log(users=25),
        dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, rank_events=10)),
    )
    batches = feed.train_feed(log, splits.split(log, config.data), config)(0)
    batch = next(batches)
    batches.close()
    assert batch.ranking.per_event and batch.ranking.query.shape == batch.target.shape
    turn = lambda x: np.flip(x, axis=1)
    ranking = jax.tree.map(turn, dataclasses.replace(batch.ranking, per_event=False))
    turned = dataclasses.replace(batch, ranking=ranking)
    (value, parts), _ = value_and_grad(model, params, catalogue, batch, CONFIG.loss)
    (other, others), _ = value_and_grad(model, params, catalogue, turned, CONFIG.loss)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, others)
    with pytest.raises(ValueError, match="per_event promises"):
        dataclasses.replace(ranking, per_event=True)
    early = dataclasses.replace(batch.retrieval, visible=batch.retrieval.visible + 1)
    with pytest.raises(ValueError, match="may see the events before it alone"):
        dataclasses.replace(batch, retrieval=early)
