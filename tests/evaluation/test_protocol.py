"""The evaluation protocol against a plain loop over users."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import small_model
from small_log import random_log

from data_pipelines.feed import examples, feed, splits, windows
from synergen_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, metrics, model_answers, protocol, query_counts, slices
from synergen_jax.model import synergen
from synergen_jax.planning import plan
from synergen_jax.retrieval import index
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import train_step

CONFIG = Config(
    data=DataConfig(max_history=8),
    model=ModelConfig(width=16, heads=2, depth=1, dropout=0.0),
    evaluate=EvaluateConfig(batch=7, rank_candidates=5, bootstrap=50),
)


@pytest.fixture(scope="module")
def setting():
    log = random_log(users=25)
    split = splits.split(log, CONFIG.data)
    model, params, _ = small_model.make(CONFIG.model, log.spec)
    return log, split, model, params, examples.catalogue(log, split)


@pytest.fixture(scope="module")
def report(setting):
    log, split, model, params, catalogue = setting
    batches = feed.evaluation_feed(log, split, "test", CONFIG)
    assert batches.targets % CONFIG.evaluate.batch  # so that the last batch is padded
    means = baselines.user_item_mean(*windows.labelled(log, split.train_stop), (len(log), log.spec.items))
    predictors = {"user_item_mean": means}
    return batches, protocol.evaluate(
        model, params, catalogue, batches, CONFIG.evaluate, lambda _: None, predictors=predictors
    )


def by_hand(setting, scores_of):
    """First and last place of each test target among what its user had not seen."""
    log, split, *_ = setting
    ranks = []
    for user, (start, stop) in enumerate(split.test.tolist()):
        record = log[user]
        for event in range(start, stop):
            before = splits.first_of_request(record["request"])[event]
            target, seen = record["item"][event], set(record["item"][:before].tolist())
            if not target or target in seen:
                continue
            scores = scores_of(record, event, before)
            others = [i for i in range(1, len(scores)) if i != target and i not in seen]
            ahead, level = (
                sum(scores[i] > scores[target] for i in others),
                sum(scores[i] >= scores[target] for i in others),
            )
            ranks.append((1 + ahead, 1 + level))
    return np.array(ranks)


def test_metrics_are_those_of_a_loop(setting, report):
    _, _, model, params, catalogue = setting
    batches, found = report
    keys = np.asarray(synergen.item_keys(model, params, catalogue))

    def scores(record, event, before):
        start = max(0, before - CONFIG.data.max_history)
        cut = {name: values[:before] for name, values in record.items() if not isinstance(values, str)}
        events, _ = examples.user_history(record | cut | {"time": record["time"][: before or 1]}, CONFIG)
        shown = before and record["request"][event] in record["shown_request"]  # a list is read before the choice
        time = np.array([[record["time"][before - 1 if shown else event] - record["time"][0]]], np.int32)
        readers = small_model.batches.Readers(
            np.zeros((1, 1), np.int32),
            record["query"][None, event : event + 1],
            time,
            np.array([[before - start]], np.int32),
        )
        vectors = lambda tokens: small_model.vectors(model, params, catalogue, tokens)
        cache = small_model.apply(model, params, events, *vectors(events), method="encode")
        hidden = small_model.apply(model, params, cache, readers, *vectors(readers), method="read")
        return keys @ np.asarray(small_model.apply(model, params, hidden, method="retrieve"))[0, 0]

    ranks, last = by_hand(setting, scores).T
    np.testing.assert_array_equal(ranks, last)
    assert found.targets == batches.targets == len(ranks)
    values = found.values["model"]
    for k in (1, 5, 10, 50):
        np.testing.assert_allclose(values[f"hr@{k}"], np.mean(ranks <= k), atol=1e-6)
        np.testing.assert_allclose(values[f"ndcg@{k}"], np.mean((ranks <= k) / np.log2(1 + ranks)), atol=1e-6)
    np.testing.assert_allclose(values["mrr"], np.mean(1 / ranks), atol=1e-6)


def test_user_and_item_means_predict_labels(setting, report):
    log, split, *_ = setting
    batches, found = report
    table, events = windows.label_table(log), []
    for user, stop in enumerate(split.train_stop.tolist()):
        events += [(user, i, table[a, 1]) for i, a in zip(log[user]["item"][:stop], log[user]["action"][:stop]) if i]
    mean = np.mean([y for *_, y in events])
    shrunk = lambda rest, by: sum(rest) / (by + len(rest))
    of_item = {i: shrunk([y - mean for _, j, y in events if j == i], 25) for i in range(log.spec.items)}
    of_user = {u: shrunk([y - mean - of_item[i] for v, i, y in events if v == u], 10) for u in range(len(log))}
    labels, logits = [], []
    for batch in batches:
        for user, items, known in zip(batch.user.tolist(), batch.ranking.item[:, 0], batch.ranking.label[:, 0, :, 1]):
            if user >= 0:
                p = np.array([np.clip(mean + of_user[user] + of_item[i], 0.01, 0.99) for i in items.tolist()])
                labels, logits = [*labels, known], [*logits, np.log(p / (1 - p))]
    values = found.values["user_item_mean"]
    assert values["log_loss/like"] == pytest.approx(metrics.log_loss(np.array(labels), np.array(logits)), rel=1e-6)
    assert values["auc/like"] == pytest.approx(metrics.auc(np.array(labels), np.array(logits)), rel=1e-6)
    assert not any(name.endswith("/engage") for name in values), "all training events were chosen"


def test_most_popular_counts_training_events_and_ties_are_worth_their_expectation(setting, report):
    log, split, *_ = setting
    counts = np.zeros(log.spec.items)
    for user in range(len(log)):
        for item in log[user]["item"][: split.train_stop[user]]:
            counts[item] += item > 0
    places = [np.arange(first, last + 1) for first, last in by_hand(setting, lambda *_: counts)]
    assert max(map(len, places)) > 1  # there are ties
    mean = lambda gain: np.mean([np.mean(gain(place)) for place in places])
    np.testing.assert_allclose(report[1].values["most_popular"]["hr@10"], mean(lambda p: p <= 10), atol=1e-6)
    np.testing.assert_allclose(report[1].values["most_popular"]["mrr"], mean(lambda p: 1 / p), atol=1e-6)
    assert not any(name.startswith("log_loss") for name in report[1].values["most_popular"])


def test_intervals_hold_their_means(report):
    for system, intervals in report[1].intervals.items():
        for name, (low, high) in intervals.items():
            assert low <= report[1].values[system][name] <= high, (system, name)


def test_leads_are_differences_target_by_target(report):
    found = report[1]
    leads = found.leads["ndcg@10"]
    assert {"model_reranked", "most_popular"} <= set(leads) and "model" not in leads
    for system, lead in leads.items():
        difference = found.values["model"]["ndcg@10"] - found.values[system]["ndcg@10"]
        np.testing.assert_allclose(lead["mean"], difference, atol=1e-6, err_msg=system)
        assert lead["low"] <= lead["mean"] <= lead["high"]
    same = protocol._leads({"model": np.arange(9.0), "other": np.arange(9.0) - 1}, np.arange(9), CONFIG.evaluate, 0)
    assert same == {"other": {"mean": 1.0, "low": 1.0, "high": 1.0}}, "paired: what both share does not spread"


def test_leads_are_told_by_slice_too(setting):
    """Each with the systems that say something of every target there, among its targets alone."""
    log, split, model, params, catalogue = setting
    quiet = lambda batch: np.where(batch.reader.query > 0, catalogue.counts, np.nan).astype(np.float32)
    evaluate = dataclasses.replace(CONFIG.evaluate, scann=False)
    _, item, query = windows.trained(log, split.train_stop, "query")
    pairs = query_counts.pair_counts(query, item, (log.spec.queries, log.spec.items))
    batches = feed.evaluation_feed(log, split, "test", CONFIG)
    found = protocol.evaluate(
        model,
        params,
        catalogue,
        batches,
        evaluate,
        lambda _: None,
        others={"quiet": quiet},
        lists={"twin": baselines.most_popular},
        pairs=pairs,
    )
    assert found.shown["twin"] == found.shown["most_popular"] and set(baselines.LISTS) < set(found.shown)
    assert found.leads["list_mrr"]["twin"] == found.leads["list_mrr"]["most_popular"]
    assert set(found.slice_leads) == {"all", "search", "recommendation", slices.NEW_PAIRS}
    assert found.slice_leads["all"] == found.leads["ndcg@10"]
    assert found.knows.keys() == {*found.values, *found.shown, *found.slices["search"]} - {"targets"}
    assert "quiet" not in found.slice_leads["all"] and "quiet" not in found.slice_leads["recommendation"]
    for name in ("search", slices.NEW_PAIRS):
        leads, measured = found.slice_leads[name], found.slices[name]
        assert {"quiet", "most_popular", "query_without_history"} <= set(leads)
        assert leads["quiet"] == leads["most_popular"], "the same scores, and the same resamples"
        for system, lead in leads.items():
            assert lead["mean"] == pytest.approx(measured["model"]["ndcg@10"] - measured[system]["ndcg@10"])
            assert lead["low"] <= lead["mean"] <= lead["high"]


def test_reasons_that_are_alike_are_told_in_one_line(setting):
    log, split, model, params, catalogue = setting
    said, batches = [], feed.evaluation_feed(log, split, "test", CONFIG)
    evaluate = dataclasses.replace(CONFIG.evaluate, scann=False, bootstrap=0)
    why = {"one": "no words", "two": "no lists", "three": "no words"}
    found = protocol.evaluate(model, params, catalogue, batches, evaluate, said.append, left_out=why)
    assert said == ["one, three are left out: no words", "two is left out: no lists"] and found.left_out == why


def test_approximate_search_beside_exact(report):
    pytest.importorskip("scann")
    scann, model = report[1].values["model_scann"], report[1].values["model"]
    # So small a catalogue is searched whole: ScaNN differs from the exact search by its rounding alone.
    assert report[1].scann["recall@10"] > 0.95
    assert abs(scann["hr@10"] - model["hr@10"]) < 0.1


def test_approximate_search_is_asked_for_as_many_as_serving_would(monkeypatch):
    """By what each user had, whatever the padding; the ranks are those of a plain loop."""
    asked = []

    class Spy(index.ExactIndex):
        def search(self, queries, k):
            asked.append((len(queries), k))
            return super().search(queries, k)

    monkeypatch.setattr(index, "ScannIndex", Spy)
    rng = np.random.default_rng(0)
    keys, vectors = rng.normal(size=(51, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    scores = vectors @ keys.T
    seen, target, ranks = np.zeros((8, 64), np.int32), np.zeros(8, np.int32), []
    real = [0, 1, 2, 3, 5, 6, 7]  # row 4 is padding
    for row, had, score in zip(real, (0, 3, 20, 4, 0, 45, 20), scores):
        order = 1 + np.argsort(-score[1:], kind="stable")
        seen[row, :had] = order[:had]  # the best ones: as many must be searched beyond them
        target[row] = order[had + row % 5]
        ranks.append(1 + row % 5)
    user = np.where(np.arange(8) == 4, -1, np.arange(8))
    batch = types.SimpleNamespace(user=user, seen=seen, target=target)
    _, found = protocol.approximate(keys, [batch], vectors, 3)
    searches = asked[4:]  # after those of `index.compare`
    assert sorted(searches) == [(1, 50), (2, 3), (2, 7), (2, 35)]
    np.testing.assert_array_equal(found["hr@3"], np.array(ranks) <= 3)
    np.testing.assert_allclose(found["ndcg@3"], (np.array(ranks) <= 3) / np.log2(1 + np.array(ranks)), rtol=1e-6)


def test_approximate_search_goes_as_deep_as_the_largest_cut_off_asked_for(monkeypatch):
    monkeypatch.setattr(index, "ScannIndex", index.ExactIndex)
    rng = np.random.default_rng(0)
    keys, vectors = rng.normal(size=(13, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    target = rng.integers(1, 13, 30)
    batch = types.SimpleNamespace(user=np.arange(30), seen=np.zeros((30, 1), np.int32), target=target)
    measured, found = protocol.approximate(keys, [batch], vectors, asked=(2, 40))
    scores = vectors @ keys.T
    places = np.array([1 + np.sum(s[1:] > s[t]) for s, t in zip(scores, target)])
    assert set(found) == {f"{metric}@{k}" for metric in ("hr", "ndcg") for k in (2, 10, 40)} and "recall@12" in measured
    for k in (2, 10, 40):
        np.testing.assert_array_equal(found[f"hr@{k}"], places <= k)


def test_approximate_search_has_no_better_a_place_for_a_tie(monkeypatch):
    """All keys alike: the target is one of the three that are found, in no place more than in another."""
    monkeypatch.setattr(index, "ScannIndex", index.ExactIndex)
    keys, vectors = np.ones((51, 4), np.float32), np.ones((2, 4), np.float32)
    batch = types.SimpleNamespace(user=np.arange(2), seen=np.zeros((2, 1), np.int32), target=np.array([1, 9]))
    _, found = protocol.approximate(keys, [batch], vectors, 3)
    np.testing.assert_allclose(found["ndcg@3"], [(1 + 1 / np.log2(3) + 1 / 2) / 3, 0])
    np.testing.assert_array_equal(found["hr@3"], [1, 0])


def test_batch_size_does_not_change_what_is_found(setting, report):
    log, split, model, params, catalogue = setting
    other = dataclasses.replace(CONFIG, evaluate=dataclasses.replace(CONFIG.evaluate, batch=25, scann=False))
    found = protocol.evaluate(
        model, params, catalogue, feed.evaluation_feed(log, split, "test", other), other.evaluate, lambda _: None
    )
    for name, value in found.values["model"].items():
        np.testing.assert_allclose(value, report[1].values["model"][name], atol=1e-5, err_msg=name)


def test_a_validator_agrees_with_the_evaluation(setting, report):
    log, split, model, params, catalogue = setting
    targets = feed.evaluation_feed(log, split, "test", CONFIG)
    validate = protocol.validator(model, small_model.stored(catalogue), targets)
    values = validate(params)
    assert all(np.isfinite(value) for value in values.values())
    for name in ("hr@10", "ndcg@10", "hr@50"):
        np.testing.assert_allclose(values[name], report[1].values["model"][name], atol=1e-6)


def test_a_validator_tells_each_task_and_both(setting, report):
    log, split, model, params, catalogue = setting
    targets = feed.evaluation_feed(log, split, "test", CONFIG)
    values = protocol.validator(model, small_model.stored(catalogue), targets)(params)
    parts = report[1].slices
    for task in ("search", "recommendation"):
        assert values[f"ndcg@10/{task}"] == pytest.approx(parts[task]["model"]["ndcg@10"], abs=1e-6)
    both = values["ndcg@10/search"] * values["ndcg@10/recommendation"]
    assert values["ndcg@10/both"] == pytest.approx(both**0.5)


def test_scores_that_are_not_numbers_are_refused(setting):
    log, split, model, params, catalogue = setting
    broken = jax.tree.map(lambda x: x * np.nan, params)
    batches = feed.evaluation_feed(log, split, "test", CONFIG)
    with pytest.raises(ValueError, match="NaN"):
        protocol.evaluate(model, broken, catalogue, batches, CONFIG.evaluate, lambda _: None)


def test_a_catalogue_of_other_items_is_refused(setting):
    log, split, model, params, catalogue = setting
    more = dataclasses.replace(catalogue, counts=np.append(catalogue.counts, 1))
    with pytest.raises(ValueError, match="items"):
        protocol.evaluate(model, params, more, feed.evaluation_feed(log, split, "test", CONFIG), CONFIG.evaluate)


def test_scann_is_left_out_aloud_where_it_cannot_be_loaded(setting, report, monkeypatch):
    log, split, model, params, catalogue = setting

    def missing():
        raise UserError("no such package")

    monkeypatch.setattr(index, "load_scann", missing)
    said = []
    batches = feed.evaluation_feed(log, split, "test", CONFIG)
    found = protocol.evaluate(model, params, catalogue, batches, CONFIG.evaluate, said.append)
    assert found.scann is None and "model_scann" not in found.values
    assert said == ["model_scann is left out: no such package"]
    assert found.left_out == {"model_scann": "no such package"}


def test_kernels_are_split_by_hand_over_the_devices_of_a_tpu(setting):
    """The compiler cannot do it: without the mesh at hand, lowering is refused."""
    log, split, *_, catalogue = setting
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, width=256, depth=2, attention="splash")
    )
    model = synergen.SynerGen(config.model, log.spec)
    mesh = device_mesh.make_mesh(MeshConfig(2, 1), jax.devices()[:2])
    params = train_step.abstract_state(config, model, mesh).served
    targets = next(iter(feed.evaluation_feed(log, split, "test", config).shared(2, 0, 1)))
    targets = plan.placed(targets, device_mesh.batch_shardings(mesh).events)
    placed = table.abstract_catalogue(catalogue, mesh)
    keys = jax.ShapeDtypeStruct((1, 768, 256), np.float32, sharding=placed.item_counts.sharding)
    asked = model_answers.PlacedModel(mesh, model, params, placed, keys)
    traced = model_answers.answer.trace(asked, targets, 0)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_reranking_orders_the_first_items_by_the_ranking_head(setting, report):
    """By hand for each target: the ten items of highest retrieval score that were not seen, then by the head."""
    log, split, model, params, catalogue = setting
    batches = feed.evaluation_feed(log, split, "test", CONFIG)
    keys = synergen.item_keys(model, params, catalogue)
    asked = model_answers.PlacedModel.of(model, params, small_model.stored(catalogue))
    said, plain = model_answers.answers(asked, batches, rerank=10), model_answers.answers(asked, batches)
    np.testing.assert_array_equal(said.ranks, plain.ranks)
    outside = said.ranks[:, 0] > 10
    np.testing.assert_array_equal(said.reranked[outside], said.ranks[outside])
    assert outside.any() and not outside.all() and (said.reranked[~outside] <= 10).all()
    done = 0
    for batch in batches:
        for row in np.flatnonzero(batch.user >= 0):
            scores = np.asarray(keys) @ said.vectors[done]
            allowed = [i for i in range(1, len(scores)) if i not in set(batch.seen[row].tolist())]
            first = np.array(sorted(allowed, key=lambda i, s=scores: -s[i])[:10], np.int32)[None]
            one = lambda x, row=row, shape=first.shape: np.broadcast_to(x[row : row + 1], shape)
            reader = small_model.batches.Readers(
                first, one(batch.reader.query), one(batch.reader.time), one(batch.reader.visible)
            )
            events = jax.tree.map(lambda x, row=row: x[row : row + 1], batch.events)
            vectors = lambda tokens: small_model.vectors(model, params, catalogue, tokens)
            cache = small_model.apply(model, params, events, *vectors(events), method="encode")
            hidden = small_model.apply(model, params, cache, reader, *vectors(reader), method="read")
            score = scores[first]
            logit = np.asarray(small_model.apply(model, params, hidden, score, method="rank"))[0, :, 0]
            if (first == batch.target[row]).any():
                mine = logit[first[0] == batch.target[row]][0]
                assert said.reranked[done].tolist() == [1 + (logit > mine).sum(), (logit >= mine).sum()]
            done += 1
    assert done == len(said.ranks)


def test_intervals_of_all_systems_are_those_of_users(setting):
    """A split by time, where a user has several targets: as metrics of the same ranks with the users of the batches."""
    log, _, model, params, _ = setting
    data = dataclasses.replace(CONFIG.data, split="time", validation_from=0.5, test_from=0.6, filter_seen=False)
    config = dataclasses.replace(CONFIG, data=data, evaluate=dataclasses.replace(CONFIG.evaluate, scann=False))
    split = splits.split(log, data)
    catalogue, batches = examples.catalogue(log, split), feed.evaluation_feed(log, split, "test", config)
    found = protocol.evaluate(model, params, catalogue, batches, config.evaluate, lambda _: None)
    users = np.concatenate([batch.user[batch.user >= 0] for batch in batches])
    assert len(set(users.tolist())) < len(users) == found.targets
    asked = model_answers.PlacedModel.of(model, params, small_model.stored(catalogue))
    said = model_answers.answers(asked, batches, rerank=config.evaluate.rerank)
    np.testing.assert_array_equal(said.user, users)
    ranks = {"model": said.ranks, "model_reranked": said.reranked}
    ranks["most_popular"] = protocol.baseline_ranks(baselines.fixed(catalogue.counts), batches, log.spec.items)
    bounds = lambda value: (value["low"], value["high"])
    for system, places in ranks.items():
        expected = metrics.summary(metrics.retrieval_metrics(places), users, config.evaluate.bootstrap)
        assert {name: bounds(value) for name, value in expected.items()}.items() <= found.intervals[system].items()
    gain = {system: metrics.retrieval_metrics(places, (10,))["ndcg@10"] for system, places in ranks.items()}
    lead = metrics.summary({"x": gain["model"] - gain["most_popular"]}, users, config.evaluate.bootstrap)["x"]
    assert found.leads["ndcg@10"]["most_popular"] == pytest.approx(lead)
    ranked = metrics.ranking_metrics(said.labels[..., 1], said.logits[..., 1], users, config.evaluate.bootstrap)
    for name in ("auc", "log_loss", "list_mrr"):
        assert found.intervals["model"][f"{name}/like"] == bounds(ranked[name])


def test_lists_that_were_shown_are_resampled_by_user(setting):
    """Two users of ten lists each, of one the model puts all right and of the other none."""
    said = types.SimpleNamespace(
        user=np.repeat([0, 1], 10),
        shown=np.ones(20, bool),
        labels=np.tile([1, 0], (20, 1))[..., None],
        logits=np.repeat([[[3.0], [-3]], [[-3.0], [3]]], 10, axis=0),
    )
    batch = types.SimpleNamespace(user=said.user, shown=said.shown)
    backwards = {"backwards": lambda *_: -said.logits[..., 0]}
    values = protocol.list_values(said, setting[-1], [batch], backwards)
    shown, count, leads = protocol.within_shown(said, values, CONFIG.evaluate, 0)
    assert count == 20 and shown["model"]["list_mrr"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert leads["list_mrr"]["backwards"] == {"mean": 0.0, "low": -0.5, "high": 0.5}


def test_places_after_the_ranking_head():
    """Four users whose first three items the head scores 5, 7, 5: one is the target, or none, or none has a number."""
    chosen = np.array([[5.0, 7, 5], [5, 7, 5], [5, np.nan, 5], [5, 7, 5], [5, 5, np.nan]])
    target = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], bool)
    there = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    # The second ties with the last of the three and came behind them; the fourth was seen: it counts where it stood.
    ranks = np.array([[2, 2], [2, 6], [1, 1], [2, 2], [1, 2]])
    found = model_answers.reranked(chosen, there, target, ranks)
    assert found.tolist() == [[2, 3], [4, 6], [-1, -1], [2, 2], [1, 2]]


def test_searches_with_less_to_go_by(setting, report):
    """Without the history every user who asks the same at the same moment of the clock is answered alike."""
    *_, found = report
    search = found.slices["search"]
    assert {"model", "most_popular", "query_without_history", "history_without_query"} <= set(search)
    assert "query_without_history" not in found.slices["all"]
    assert search["targets"] + found.slices["recommendation"]["targets"] == found.targets
    assert search["query_without_history"] != search["model"] != search["history_without_query"]


def test_the_share_of_sampled_candidates_is_no_calibration_of_the_model():
    """Log loss and calibration of "engage" are over shown lists alone: elsewhere the number of samples decides them."""
    rng = np.random.default_rng(0)
    labels = np.stack([np.eye(1, 5, dtype=np.int8).repeat(6, 0), rng.integers(0, 2, (6, 5))], axis=2)
    logits, shown = rng.normal(size=(6, 5, 2)), np.array([True, False, True, False, False, False])
    said = types.SimpleNamespace(labels=labels, shown=shown, user=np.arange(6))
    found = protocol.by_label(("engage", "like"), said, logits)
    assert found["log_loss/engage"]["mean"] == pytest.approx(metrics.log_loss(labels[shown, :, 0], logits[shown, :, 0]))
    assert found["log_loss/like"]["mean"] == pytest.approx(metrics.log_loss(labels[..., 1], logits[..., 1]))
    assert found["auc/engage"]["mean"] == pytest.approx(metrics.auc(labels[..., 0], logits[..., 0]))
    said.shown = shown & False
    none = protocol.by_label(("engage", "like"), said, logits)
    assert {"auc/engage", "log_loss/like"} <= set(none) and not {"log_loss/engage", "calibration_error/engage"} & set(
        none
    )
