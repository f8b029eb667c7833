"""Slices of targets and baselines over the whole catalogue, worked by hand."""

import dataclasses

import numpy as np
import pytest
from small_log import SmallLog, user

from data_pipelines.feed import examples, feed, splits, windows
from synergen_jax.batch import Catalogue
from synergen_jax.config import Config, DataConfig, EvaluateConfig
from synergen_jax.evaluation import baselines, metrics, protocol, query_counts, slices

CONFIG = Config(data=DataConfig(max_history=6), evaluate=EvaluateConfig(batch=2, rank_candidates=3))
TEXTS = ["", "red dress", "blue dress", "red shoes", "star wars", "war and peace", "a blue hat"]


def setting():
    """Three users whose test targets are items 3 (searched), 6 (new) and 1, after 3, 4 and 5 events."""
    log = SmallLog(
        [
            user([1, 2, 1, 3], query=[0, 0, 0, 1], name="a"),
            user([1, 2, 2, 1, 6], name="b"),
            user([2, 1, 2, 2, 4, 1], query=[0, 0, 0, 0, 0, 2], name="c"),
        ],
        7,
    )
    log.queries = ["", "red", "blue dress", "nothing known", "x"]
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, filter_seen=False))
    split = splits.split(log, config.data)
    return log, split, feed.evaluation_feed(log, split, "test", config)


def test_masks_by_hand():
    log, split, batches = setting()
    catalogue = examples.catalogue(log, split)
    # Training: a 1 2, b 1 2 2, c 2 1 2 2: item 1 three times, item 2 six times, no other.
    assert catalogue.counts.tolist() == [0, 3, 6, 0, 0, 0, 0]
    found = {name.split(",")[0]: mask.tolist() for name, mask in slices.masks(batches, catalogue).items()}
    assert found == {
        "all": [True, True, True],
        "search": [True, False, True],
        "recommendation": [False, True, False],
        "new queries": [True, False, True],  # training has no search at all
        "shortest histories": [True, False, False],
        "middle histories": [False, True, False],
        "longest histories": [False, False, True],
        "rare items": [False, False, True],  # item 1, behind two thirds of the events
        "new items": [True, True, False],
    }


def test_searches_by_what_training_met():
    """Query 1 led to item 3 in training, and asks for it again; query 2 was met, with another item; query 3 was not."""
    records = [
        user([3, 2, 1, 3], query=[1, 0, 0, 1], name="a"),
        user([4, 2, 2, 1], query=[2, 0, 0, 2], name="b"),
        user([1, 2, 2, 3], query=[0, 0, 0, 3], name="c"),
        user([1, 2, 2, 3], name="d"),
    ]
    log = SmallLog(records, 7)
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, filter_seen=False))
    split = splits.split(log, config.data)
    batches, catalogue = feed.evaluation_feed(log, split, "test", config), examples.catalogue(log, split)
    _, item, query = windows.trained(log, split.train_stop, "query")
    pairs = query_counts.pair_counts(query, item, (log.spec.queries, log.spec.items))
    found = slices.masks(batches, catalogue, pairs)
    assert {name: found[name].tolist() for name in slices.OF_SEARCHES} == {
        "queries met in training": [True, True, False, False],
        "new queries": [False, False, True, False],
        "pairs met in training": [True, False, False, False],
        "new pairs, never in training": [False, True, True, False],
    }
    without = slices.masks(batches, catalogue)
    assert set(found) - set(without) == {"pairs met in training", "new pairs, never in training"}


def test_a_table_leaves_out_what_says_nothing():
    ranks = {"model": np.array([[1, 1], [20, 20], [3, 3]]), "bm25": np.array([[2, 2], [0, 0], [11, 11]])}
    masks = {"all": np.ones(3, bool), "search": np.array([True, False, True])}
    found = slices.table(ranks, masks)
    assert set(found["all"]) == {"targets", "model"} and set(found["search"]) == {"targets", "model", "bm25"}
    assert found["search"]["targets"] == 2 and found["all"]["model"]["hr@10"] == pytest.approx(2 / 3)
    assert found["search"]["bm25"]["hr@10"] == 0.5 and found["search"]["bm25"]["mrr"] == pytest.approx(
        (1 / 2 + 1 / 11) / 2
    )


def test_bm25_ranks_items_by_the_words_of_the_query():
    log, _, batches = setting()
    scorer = baselines.bm25(TEXTS, log.queries)
    first = next(iter(batches))
    scores = scorer(first)
    assert np.isnan(scores[1]).all(), "no query, nothing to say"
    assert scores[0].argmax() in (1, 3) and (scores[0, [1, 3]] > 0).all() and not scores[0, [2, 4, 5, 6]].any()
    ranks = protocol.baseline_ranks(scorer, batches, len(TEXTS))
    # "red": items 1 and 3 tie. "blue dress": 2 comes first, then 1 and 6, which tie.
    assert ranks.tolist() == [[1, 2], [0, 0], [2, 3]]
    assert metrics.retrieval_metrics(ranks[:1])["mrr"] == 3 / 4, "not 1/2, which a score without ties never pays"
    unknown = dataclasses.replace(
        first, reader=dataclasses.replace(first.reader, query=np.full_like(first.reader.query, 3))
    )
    assert not scorer(unknown).any()


@pytest.mark.parametrize("cells", [1, protocol.CELLS])  # 1: a target at a time
def test_a_baseline_of_fixed_scores(cells, monkeypatch):
    monkeypatch.setattr(protocol, "CELLS", cells)
    _, _, batches = setting()
    ranks = protocol.baseline_ranks(baselines.fixed(np.array([9, 3, 6, 0, 0, 0, 0])), batches, 7)
    assert ranks.tolist() == [[3, 6], [3, 6], [2, 2]], "items 3 to 6 tie at 0"


def test_what_is_popular_of_late():
    records = [
        user([1, 1, 2, 2], time=[0, 10, 90, 95], name="a"),
        user([1, 3, 3, 3], time=[5, 99, 100, 101], name="b"),
    ]
    log = SmallLog(records, 5)
    everything = splits.Split(np.array([4, 4]), np.array([1, 1]), np.zeros((2, 2), int), np.zeros((2, 2), int))
    assert examples.recent_counts(log, everything, 0.5).tolist() == [0, 0, 1, 3, 0]
    assert examples.recent_counts(log, everything, 1.0).tolist() == [0, 3, 2, 3, 0]


def test_counts_of_queries():
    log, split, _ = setting()
    found = examples.catalogue(log, split)
    assert isinstance(found, Catalogue) and not found.query_counts.any(), "searches are all in the test part"
    whole = dataclasses.replace(split, train_stop=log.lengths)
    assert examples.catalogue(log, whole).query_counts.tolist() == [0, 1, 1, 0, 0]


def test_ranks_of_a_marked_row_are_refused():
    with pytest.raises(ValueError, match="below 1"):
        metrics.retrieval_metrics(np.array([[1, 1], [0, 0]]))


def test_random_scores_are_drawn_for_each_target():
    _, _, batches = setting()
    scorer = baselines.random(7, seed=1)
    first = next(iter(batches))
    scores = scorer(first)
    assert scores.shape == (2, 7) and not np.array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores, scorer(first))
    assert not np.array_equal(scores, baselines.random(7, seed=2)(first))


def test_targets_on_the_day_of_the_last_event_are_told_apart():
    days = lambda *numbers: [86_400 * number for number in numbers]
    users = [user([1, 2, 3, 4], time=days(0, 1, 2, 2)), user([1, 2, 3, 5], time=days(0, 1, 2, 3))]
    log = SmallLog(users, 10)
    config = Config(data=DataConfig(max_history=3), evaluate=EvaluateConfig(batch=2))
    split = splits.split(log, config.data)
    batches = list(examples.Targets.of(log, split, "test", config))
    found = slices.masks(batches, examples.catalogue(log, split))
    assert found["asked after the last event's time"].tolist() == [False, True]
    assert found["asked at the last event's time"].tolist() == [True, False]
