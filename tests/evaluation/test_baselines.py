"""Baselines of counted queries, of neighbours, of candidate features and of what was seen last, worked by hand."""

import dataclasses
import types

import numpy as np
import pytest
from small_log import SmallLog, random_log, user

from data_pipelines.feed import examples, feed, splits, windows
from synergen_jax.batch import Candidates, EvalBatch, Events, Readers
from synergen_jax.config import Config, DataConfig, EvaluateConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, feature_regression, neighbours, protocol, query_counts
from synergen_jax.runs import evaluate

NAN = float("nan")


def batch(contexts, query=None, visible=None, user=None):
    """Readers of these contexts, each of which sees all of its own unless told otherwise."""
    rows, length = len(contexts), max(1, *map(len, contexts))
    item = np.zeros((rows, length), np.int32)
    for row, items in zip(item, contexts):
        row[: len(items)] = items
    column = lambda values: np.array(values, np.int32).reshape(rows, 1)
    sees = column([len(items) for items in contexts] if visible is None else visible)
    asks, zero = column([0] * rows if query is None else query), column([0] * rows)
    lists = Candidates(np.ones((rows, 1, 1), np.int32), np.ones((rows, 1, 1, 1), np.int8), asks, zero, sees)
    return EvalBatch(
        np.array(range(100, 100 + rows) if user is None else user, np.int32),
        Events(item, (item > 0) * 1, item * 0, item * 0),
        Readers(zero, asks, zero, sees),
        np.ones(rows, np.int32),
        np.zeros((rows, 1), np.int32),
        lists,
        np.zeros((rows, 1), np.int32),
    )


def groups(scores):
    """Items from the best on, those that tie together: [[3], [1, 2]]."""
    values = np.unique(scores[1:])[::-1]
    return [(1 + np.flatnonzero(scores[1:] == value)).tolist() for value in values]


# --- lexicographic keys -----------------------------------------------------------------------------------------


def test_keys_decide_one_after_the_other():
    base = baselines.dense_ranks([0, 7, 7, 3, 9, 3])
    assert base.tolist() == [0, 2, 2, 1, 3, 1]
    # By the first key 3 comes first; 1 and 2 tie, and by the second key; 5 does not, and has less. 4 has no key at all.
    found = baselines.lifted(base, np.array([1, 2, 3, 5]), np.array([2.0, 2, 3, 2]), np.array([0.5, 0.5, 0, 0.1]))
    assert groups(found) == [[3], [1, 2], [5], [4]]
    # The rest of them by popularity: 3 and 5 tie there, too.
    assert groups(baselines.lifted(base, np.array([2]), np.array([1]))) == [[2], [4], [1], [3, 5]]
    assert groups(baselines.lifted(base, np.zeros(0, int), np.zeros(0))) == [[4], [1, 2], [3, 5]]


def test_no_key_is_rounded():
    """Counts that float32 cannot tell apart, a first key that outweighs the next by far, and one that hardly differs."""
    base = baselines.dense_ranks([0, 2**24, 2**24 + 1, 0, 0])
    items = np.array([1, 2, 3, 4])
    found = baselines.lifted(base, items, np.array([1e300, 1e300, 1, 1 + 1e-15]), np.array([0, 0, 9, 0.0]))
    assert found.dtype == np.float32 and groups(found) == [[2], [1], [4], [3]]


def test_keys_are_those_of_tuples():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts, one, other = rng.integers(0, 3, 20), rng.integers(0, 3, 20), rng.integers(0, 3, 20) / 7
        items = np.flatnonzero((one > 0) | (other > 0))
        found = baselines.lifted(baselines.dense_ranks(counts), items, one[items], other[items])
        tuples = list(zip(one.tolist(), other.tolist(), counts.tolist()))
        assert [[a < b for a in found] for b in found] == [[a < b for a in tuples] for b in tuples]


# --- queries ----------------------------------------------------------------------------------------------------

# Query 1 led to item 1 twice and to item 2 once, query 2 to item 3, query 3 to nothing; item 4 was never searched for.
QUERIES = np.array([1, 1, 1, 2, 0, 0, 0, 0, 0])
ITEMS = np.array([1, 1, 2, 3, 4, 4, 4, 2, 3])
COUNTS = np.array([0, 2, 2, 2, 3, 0])
PAIRS = query_counts.pair_counts(QUERIES, ITEMS, (4, 6))


def test_counts_of_pairs():
    expected = np.zeros((4, 6), int)
    expected[1, 1], expected[1, 2], expected[2, 3] = 2, 1, 1
    np.testing.assert_array_equal(PAIRS.toarray(), expected)


def test_popularity_within_the_query():
    scorer = query_counts.popular_for_query(PAIRS, COUNTS)
    scores = scorer(batch([[1], [], [], [], []], query=[1, 0, 2, 3, 1]))
    assert scores.shape == (5, 6) and np.isnan(scores[1]).all(), "no query, nothing to say"
    assert groups(scores[0]) == groups(scores[4]) == [[1], [2], [4], [3], [5]]
    assert groups(scores[2]) == [[3], [4], [1, 2], [5]]
    assert groups(scores[3]) == [[4], [1, 2, 3], [5]], "training never met the query: popularity alone"
    assert not np.isnan(np.delete(scores, 1, axis=0)).any()
    assert scorer(batch([[1]])) is None


def test_a_lookup_goes_by_pairs_then_by_words_then_by_popularity():
    matched = {1: [0, 0, 0.2, 0, 0, 0.9], 2: [0, 0.5, 0.5, 0.5, 0.5, 0], 3: [0, 0, 0, 0, 0, 0]}

    def words(batch):
        asked = batch.reader.query[:, 0]
        return np.array([matched.get(query, [NAN] * 6) for query in asked.tolist()], np.float32)

    scorer = query_counts.query_lookup(PAIRS, COUNTS, words)
    scores = scorer(batch([[]] * 5, query=[1, 0, 2, 3, 1]))
    assert groups(scores[0]) == groups(scores[4]) == [[1], [2], [5], [4], [3]]
    assert groups(scores[2]) == [[3], [4], [1, 2], [5]]
    assert groups(scores[3]) == [[4], [1, 2, 3], [5]], "nothing is known of it: popularity"
    assert np.isnan(scores[1]).all() and not np.isnan(np.delete(scores, 1, axis=0)).any()
    assert query_counts.query_lookup(PAIRS, COUNTS, lambda _: None)(batch([[]])) is None


# --- neighbours -------------------------------------------------------------------------------------------------

# Users 0 to 3 have {1, 2}, {1, 2, 3, 4}, {3} and {5}; user 0 had item 1 twice.
OWNER = np.array([0, 0, 0, 1, 1, 1, 1, 2, 3])
HAS = np.array([1, 2, 1, 1, 2, 3, 4, 3, 5])
MATRIX = neighbours.user_items(OWNER, HAS, (4, 7))
POPULAR = np.bincount(HAS, minlength=7)  # 3 2 2 1 1 0 of the items 1 to 6


def test_the_matrix_is_binary():
    assert MATRIX.toarray().sum() == 8 and MATRIX.max() == 1


def test_users_who_are_near():
    near = neighbours.UserNeighbours(MATRIX)
    # {1, 2}: users 0 (1) and 1 (2 / √(2·4)). {3}: users 1 (1 / 2) and 2 (1). {6}: nobody.
    found = near.scores(batch([[1, 2, 2], [3], [6], []])).toarray()
    root = 2 / 8**0.5
    assert found == pytest.approx(
        np.array([[0, 1 + root, 1 + root, root, root, 0, 0], [0, 0.5, 0.5, 1.5, 0.5, 0, 0], [0] * 7, [0] * 7])
    )
    scores = neighbours.user_knn(near, POPULAR)(batch([[1, 2, 2], [3], [6], []]))
    # Of equal score the more popular one; behind them those of which it says nothing, by popularity, too.
    assert groups(scores[0]) == [[1], [2], [3], [4], [5], [6]]
    assert groups(scores[1]) == [[3], [1], [2], [4], [5], [6]]
    assert groups(scores[2]) == groups(scores[3]) == [[1], [2, 3], [4, 5], [6]]


def test_only_what_the_reader_sees_counts_and_never_its_own_row():
    near = neighbours.UserNeighbours(MATRIX)
    found = near.scores(batch([[3, 5], [5, 3], [1, 2], [3]], visible=[1, 1, 2, 1], user=[9, 9, 0, -1])).toarray()
    assert found[0] == pytest.approx([0, 0.5, 0.5, 1.5, 0.5, 0, 0]), "sees item 3 alone"
    assert found[1] == pytest.approx([0, 0, 0, 0, 0, 1, 0]), "sees item 5 alone"
    root = 2 / 8**0.5
    assert found[2] == pytest.approx([0, root, root, root, root, 0, 0]), "user 0 is itself"
    assert found[3] == pytest.approx(found[0]), "a padded row, of which nobody asks, is a row all the same"


def test_the_nearest_of_equal_ones_are_the_first():
    # Item 1 is had by users 0 to 4, by 0 and 3 beside another one: the cosines are 1/√2, 1, 1, 1/√2, 1.
    owner, has = np.array([0, 0, 1, 2, 3, 3, 4]), np.array([1, 2, 1, 1, 1, 3, 1])
    near = neighbours.nearest(
        neighbours.user_items(np.zeros(1, int), np.ones(1, int), (1, 4)),
        neighbours.user_items(owner, has, (5, 4)).T.tocsr(),
        2,
        np.array([-1]),
    )
    assert near.toarray() == pytest.approx(np.array([[0, 1, 1, 0, 0]]))
    # Without users 1 and 2, or with as many as there are.
    matrix = neighbours.user_items(owner, has, (5, 4))
    found = neighbours.UserNeighbours(matrix, 2).scores(batch([[1], [1]], user=[1, 4])).toarray()
    assert found[0] == pytest.approx([0, 2, 0, 0]), "users 2 and 4"
    assert found[1] == pytest.approx([0, 2, 0, 0]), "users 1 and 2"


def test_neighbours_are_the_same_piece_by_piece(monkeypatch):
    """And those of a plain dense computation."""
    rng = np.random.default_rng(0)
    dense = rng.random((30, 20)) < 0.3
    dense[:, 0], dense[29] = np.arange(30) < 29, np.arange(20) == 19  # all are alike, but the last one
    owner, has = np.nonzero(dense)
    matrix = neighbours.user_items(owner, has, dense.shape)
    whole = neighbours.nearest(matrix, matrix.T.tocsr(), 4, np.arange(30)).toarray()
    monkeypatch.setattr(neighbours, "_CELLS", 1)
    np.testing.assert_array_equal(neighbours.nearest(matrix, matrix.T.tocsr(), 4, np.arange(30)).toarray(), whole)
    cosine = (dense @ dense.T.astype(int)) / np.sqrt(dense.sum(1)[:, None] * dense.sum(1))
    np.fill_diagonal(cosine, 0)
    for row, expected in zip(whole, cosine):
        kept = [i for i in np.lexsort((np.arange(30), -expected))[:4] if expected[i]]
        assert sorted(np.flatnonzero(row)) == sorted(kept) and row[kept] == pytest.approx(expected[kept])


def test_items_that_are_near():
    # Items 1 and 2 share users 0 and 1: 1. With item 3 (1, 2) and item 4 (1) they share user 1: 1/2 and 1/√2.
    # Items 3 and 4: 1/√2.
    scores = neighbours.item_knn(MATRIX, POPULAR)(batch([[1], [1, 2], [3], [6]]))
    assert groups(scores[0]) == [[2], [4], [3], [1], [5], [6]], "an item is not near itself"
    # 1: 1, 2: 1, 3: 1/2 + 1/2, 4: √2: the three tie, and go by popularity.
    assert groups(scores[1]) == [[4], [1], [2, 3], [5], [6]]
    assert groups(scores[2]) == [[4], [1], [2], [3], [5], [6]]
    assert groups(scores[3]) == [[1], [2, 3], [4, 5], [6]]


def test_of_each_item_the_nearest_alone_count(monkeypatch):
    monkeypatch.setattr(neighbours, "ITEMS", 1)
    scores = neighbours.item_knn(MATRIX, POPULAR)(batch([[1], [4]]))
    assert groups(scores[0])[0] == [2] and groups(scores[1])[0] == [1], "of item 4, items 1, 2 and 3 are equally near"


def test_what_a_query_led_to_weighed_by_who_is_near():
    # Query 1 led to item 4 three times, to item 1 twice and to item 6 once.
    pairs = query_counts.pair_counts(np.array([1] * 6), np.array([4, 4, 4, 1, 1, 6]), (3, 7))
    near = neighbours.UserNeighbours(MATRIX)
    scorer = neighbours.query_user_knn(pairs, near, POPULAR)
    scores = scorer(batch([[1, 2], [1, 2], [6], [1, 2]], query=[1, 2, 1, 0]))
    # Item 1: 2 (0.1 + 1.71) = 3.61; item 4: 3 (0.1 + 0.71) = 2.42; item 6: 0.1. The rest by who is near: 2 has 1.71,
    # 3 has 0.71.
    assert groups(scores[0]) == [[1], [4], [6], [2], [3], [5]]
    assert groups(scores[1]) == [[1], [2], [3], [4], [5], [6]], "training never met the query: user-kNN"
    assert groups(scores[2]) == [[4], [1], [6], [2, 3], [5]], "nobody is near: the counts"
    assert np.isnan(scores[3]).all() and not np.isnan(scores[:3]).any()
    assert scorer(batch([[1]])) is None
    # With words, which decide where the query led to nothing: 5, then 2, for which 0.7 stands beside 0.6.
    matched = np.array([[0, 0, 0.6, 0, 0, 0.7, 0.1]] * 2, np.float32)
    scores = neighbours.query_user_knn(pairs, near, POPULAR, lambda _: matched)(batch([[1, 2], [1, 2]], query=[1, 2]))
    assert groups(scores[0]) == [[1], [4], [6], [5], [2], [3]]
    assert groups(scores[1]) == [[5], [2], [6], [1], [3], [4]]


# --- what was seen last -----------------------------------------------------------------------------------------


def test_what_was_seen_last_comes_first():
    scores = baselines.last_seen([0, 1, 5, 2, 2])(batch([[1, 3, 1], [3, 0, 4, 1], []], visible=[3, 3, 0]))
    assert groups(scores[0]) == [[1], [3], [2], [4]]
    assert groups(scores[1]) == [[4], [3], [2], [1]], "item 1 is out of sight, and an event without an item is none"
    assert groups(scores[2]) == [[2], [3, 4], [1]]


# --- candidate features -----------------------------------------------------------------------------------------


def shown_log():
    """Two users. Training lists: 1 of 1 2 3, and 2 of 1 2. Of the others one has its item alone, one goes on later."""
    shown = [(1, 1, 2), (1, 2, 0), (1, 3, 0), (2, 4, 2), (4, 2, 2), (4, 3, 3)]
    one = user([1, 4, 5, 2, 3], request=[1, 2, 3, 4, 4], action=[2, 2, 2, 2, 3], shown=shown, name="a")
    other = user([2, 5], request=[1, 2], shown=[(1, 1, 0), (1, 2, 2), (2, 5, 2), (2, 1, 0)], action=[2, 1], name="b")
    for record in (one, other):
        size = len(record["shown_item"])
        record["shown_feature"] = np.stack([record["shown_item"], np.arange(size)], axis=1).astype(np.float32)
    log = SmallLog([one, other], 7)
    log.spec = dataclasses.replace(log.spec, candidate_features=("item", "row"))
    return log


def test_training_lists():
    log = shown_log()
    feature, number, chosen = windows.training_lists(log, np.array([4, 2]), "click, buy")
    # Of user a's request 4 one of two was chosen so far, and of the other nothing is known; list 2 is its item alone.
    # User b's second event is a view.
    assert number.tolist() == [0, 0, 0, 1, 1] and chosen.tolist() == [True, False, False, False, True]
    assert feature[:, 0].tolist() == [1, 2, 3, 1, 2] and feature[:, 1].tolist() == [0, 1, 2, 0, 1]
    # Of an unfinished request the rest tells nothing: with the whole of it there is no contrast either.
    for stops in ([5, 2], [1, 1]):
        again = windows.training_lists(log, np.array(stops), "click, buy")
        assert all(np.array_equal(a, b) for a, b in zip(again, (feature, number, chosen)))
    none = windows.training_lists(log, np.array([0, 0]), "click")
    assert none[0].shape == (0, 2) and not len(none[1]) and not len(none[2])
    with pytest.raises(UserError, match="no list"):
        feature_regression.FeatureRegression.fit(*none)


def test_weights_are_those_of_the_odds(monkeypatch):
    """Of three lists in four the item with the feature is chosen: the odds are 3. Constant columns tell nothing."""
    monkeypatch.setattr(feature_regression, "RIDGE", 1e-9)
    feature = np.array([[1, 5, 0], [0, 5, 0]] * 4, np.float32)
    chosen = np.array([1, 0, 1, 0, 1, 0, 0, 1], bool)
    fitted = feature_regression.FeatureRegression.fit(feature, np.repeat(np.arange(4), 2), chosen)
    asked = np.array([[[[1, 5, 0, 1], [0, 5, 0, 1], [0, 0, 0, 0]]]], np.float32)
    scores = fitted.scores(asked)[0, 0]
    assert scores[0] - scores[1] == pytest.approx(np.log(3), abs=1e-3) and scores[2] == 0, "unknown: the average"
    one = batch([[1]])
    lists = dataclasses.replace(
        one.ranking, item=np.array([[[4, 5, 0]]]), label=np.zeros((1, 1, 3, 2), np.int8), feature=asked
    )
    one = dataclasses.replace(one, ranking=lists)
    logits = fitted.predict(one)
    assert logits[0, :2, 0] == pytest.approx([np.log(3), -np.log(3)], abs=1e-3), (
        "P is 3 / 4: an empty slot has no share"
    )
    assert np.isnan(logits[..., 1]).all() and np.isfinite(logits[..., 0]).all()
    np.testing.assert_array_equal(fitted.within_lists(one, np.zeros(6)), scores[None])
    drawn = dataclasses.replace(one, ranking=dataclasses.replace(lists, feature=asked * 0))
    assert fitted.predict(drawn)[0, :2, 0].tolist() == [0, 0], "two that nothing is known of: one half each"
    empty = dataclasses.replace(one, ranking=dataclasses.replace(lists, item=lists.item * 0))
    assert np.isfinite(fitted.predict(empty)[..., 0]).all()


def test_a_regression_is_a_conditional_logit():
    """At the fitted weights the gradient of the loss, by differences, is zero; and several may be chosen of a list."""
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(30), 4)
    feature, chosen = rng.normal(size=(120, 2)), np.tile([True, False, False, False], 30)
    chosen[1:40:8] = True
    feature[chosen] += 0.5
    fitted = feature_regression.FeatureRegression.fit(feature, number, chosen)
    x = np.concatenate([feature, feature[:, [0, 0, 1]] * feature[:, [0, 1, 1]]], axis=1)
    x = (x - x.mean(0)) / x.std(0)

    def loss(weight):
        total = 0.0
        for group in range(30):
            mine = number == group
            score = x[mine] @ weight
            total -= np.mean((score - np.log(np.exp(score).sum()))[chosen[mine]])
        return total / 30 + feature_regression.RIDGE / 2 * weight @ weight

    for step in np.eye(5) * 1e-4:
        slope = (loss(fitted.weight + step) - loss(fitted.weight - step)) / 2e-4
        assert abs(slope) < 1e-3
    assert loss(fitted.weight) < loss(np.zeros(5))


# --- what a log takes -------------------------------------------------------------------------------------------

CONFIG = Config(data=DataConfig(max_history=8), evaluate=EvaluateConfig(batch=7, rank_candidates=5))


def beside(log, **settings):
    """The baselines of a log, as `synergen evaluate` makes them."""
    evaluation = {name: settings.pop(name) for name in ("neighbours",) if name in settings}
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, **settings),
        evaluate=dataclasses.replace(CONFIG.evaluate, **evaluation),
    )
    split = splits.split(log, config.data)
    run = types.SimpleNamespace(config=config, log=log, training=(log, split), catalogue=examples.catalogue(log, split))
    return evaluate._baselines(run), feed.evaluation_feed(log, split, "test", config)


def texts(log, words=True):
    log.item_texts = ["", *(f"query {i % 7}" for i in range(1, log.spec.items))] if words else log.item_ids
    return log


def test_all_that_a_log_takes():
    found, batches = beside(texts(random_log(users=25)), filter_seen=False)
    assert set(found.scorers) == {
        *("most_recent", "last_seen_first", "user_knn", "item_knn", "bm25"),
        *("popular_for_query", "query_lookup", "query_user_knn", "lookup_user_knn"),
    }
    assert found.left_out == {"feature_regression": "the log has no candidate features"}
    answers = ("bm25", "popular_for_query", "query_lookup", "query_user_knn", "lookup_user_knn")
    searched = np.concatenate([b.reader.query[b.user >= 0, 0] for b in batches]) > 0
    for name, scorer in found.scorers.items():
        ranks = protocol.baseline_ranks(scorer, batches, 40)
        silent = ~searched if name in answers else np.zeros(len(searched), bool)
        np.testing.assert_array_equal(ranks[:, 0] == 0, silent, err_msg=name)


def test_what_a_log_has_not_is_told():
    plain = SmallLog([user([1, 2, 3, 1], name="a"), user([1, 2, 4], name="b")], 6, queries=1)
    found, _ = beside(texts(plain))
    assert set(found.scorers) == {"most_recent", "user_knn", "item_knn"} and found.pairs is None
    assert found.left_out == {
        "last_seen_first": "items that were seen are filtered (data.filter_seen)",
        **dict.fromkeys(
            ("bm25", "popular_for_query", "query_lookup", "query_user_knn", "lookup_user_knn"), "the log has no queries"
        ),
        "user_item_mean": "each label is the same in all events of training",
        "feature_regression": "the log has no candidate features",
    }
    found, _ = beside(texts(random_log(users=25), words=False), neighbours=0)
    assert set(found.scorers) == {"most_recent", "popular_for_query"}
    assert found.left_out["bm25"] == found.left_out["query_lookup"] == "the items have no texts"
    assert {found.left_out[name] for name in ("user_knn", "item_knn", "query_user_knn", "lookup_user_knn")} == {
        "evaluate.neighbours is 0"
    }
    late = SmallLog([user([1, 2, 3, 1], query=[0, 0, 0, 1], name="a"), user([1, 2, 4], name="b")], 6)
    found, _ = beside(texts(late))
    why = "no training event has both a query and an item"
    assert {name for name, reason in found.left_out.items() if reason == why} == {
        "popular_for_query",
        "query_lookup",
        "query_user_knn",
        "lookup_user_knn",
    }
    assert "bm25" in found.scorers


def test_a_regression_where_lists_have_features():
    found, batches = beside(texts(shown_log()), split="time", validation_from=0.7, test_from=0.8)
    assert set(found.lists) == {"feature_regression"} and "feature_regression" in found.predictors
    for one in batches:
        assert np.isfinite(found.lists["feature_regression"](one, np.zeros(7))).all()
