"""Metrics: values worked by hand, ties, and plain loops as the oracle."""

import itertools
import math
import time

import jax
import numpy as np
import pytest

from synergen_jax.evaluation import metrics


def seen_of(*rows):
    width = max(map(len, rows))
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)


def alone(places):
    """Ranks that nothing ties with."""
    return np.stack([places, places], axis=1)


def test_ranks_by_hand():
    # item:             0    1    2    3    4
    scores = np.array([[9.0, 0.1, 0.4, 0.3, 0.2]], np.float32)

    def rank(target, *seen):
        first, last = metrics.ranks(scores, np.array([target], np.int32), seen_of(seen or (0,)))[0].tolist()
        assert first == last
        return first

    assert [rank(1), rank(2), rank(3), rank(4)] == [4, 1, 2, 3]  # id 0 scores highest and never counts
    assert rank(1, 2) == 3
    assert rank(1, 2, 2, 3) == 2  # repetitions are left out once
    assert rank(4, 1) == 3  # a seen item behind the target changes nothing
    assert rank(4, 4, 2) == 2  # the target counts even where it was seen


def test_a_target_that_ties_has_a_first_and_a_last_place():
    flat = np.zeros((2, 6), np.float32)
    np.testing.assert_array_equal(metrics.ranks(flat, np.array([1, 5]), seen_of((0,), (1, 2))), [[1, 5], [1, 3]])
    some = np.array([[9, 5, 3, 3, 3, 1]], np.float32)
    np.testing.assert_array_equal(metrics.ranks(some, np.array([3]), seen_of((2,))), [[2, 3]])
    low = np.array([[0, 1, -np.inf, -np.inf]], np.float32)
    assert metrics.ranks(low, np.array([2]), seen_of((0,)))[0].tolist() == [2, 3]  # -inf ties with -inf


def test_a_tie_is_worth_its_expectation():
    """By hand: one of two places with chance 1/2 each; the third to the sixth place."""
    values = metrics.retrieval_metrics(np.array([[1, 2], [3, 6], [2, 2]]), ks=(1, 4))
    np.testing.assert_allclose(values["hr@1"], [1 / 2, 0, 0])
    np.testing.assert_allclose(values["ndcg@1"], [1 / 2, 0, 0])
    np.testing.assert_allclose(values["mrr"], [3 / 4, (1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 4, 1 / 2])
    np.testing.assert_allclose(values["hr@4"], [1, 1 / 2, 1])
    gain = lambda place: 1 / math.log2(1 + place)
    np.testing.assert_allclose(values["ndcg@4"], [(1 + gain(2)) / 2, (gain(3) + gain(4)) / 4, gain(2)])


@pytest.mark.parametrize("k", [1, 10, 200])
def test_one_score_for_all_is_worth_what_chance_is(k):
    """And as much as scores drawn at random are on average: each of the 50 places as likely."""
    ranks = metrics.ranks(np.zeros((1, 51), np.float32), np.array([7]), seen_of((0,)))
    tied = metrics.retrieval_metrics(ranks, (k,))
    assert tied[f"hr@{k}"][0] == pytest.approx(min(k / 50, 1))
    drawn = metrics.retrieval_metrics(np.arange(1, 51)[:, None].repeat(2, 1), (k,))
    for name, value in tied.items():
        assert value[0] == pytest.approx(drawn[name].mean()), name


def test_ranks_of_another_form_are_refused():
    with pytest.raises(Exception, match="ranks"):
        metrics.retrieval_metrics(np.array([1, 2]))
    with pytest.raises(ValueError, match="1 ranks have their last place before the first"):
        metrics.retrieval_metrics(np.array([[1, 2], [2, 1]]))


def test_columns_beyond_the_vocabulary_do_not_count():
    scores = np.array([[0, 1, 2, 9, np.nan]], np.float32)
    assert metrics.ranks(scores, np.array([1]), seen_of((0,)), items=3)[0].tolist() == [2, 2]
    with pytest.raises(ValueError, match="items 6"):
        metrics.ranks(scores, np.array([1]), seen_of((0,)), items=6)


def test_nan_scores_and_wrong_targets_are_refused():
    scores = np.array([[0, 1, 2], [0, np.nan, 2]], np.float32)
    seen = seen_of((0,), (0,))
    with pytest.raises(ValueError, match="1 of 2 rows"):
        metrics.ranks(scores, np.array([1, 2]), seen)
    with pytest.raises(ValueError, match="no item"):
        metrics.ranks(scores[:1], np.array([3]), seen[:1])
    inside = jax.jit(metrics.ranks)(scores, np.array([1, 2]), seen)  # in jit the mark travels out with the ranks
    np.testing.assert_array_equal(inside, [[2, 2], [-1, -1]])
    with pytest.raises(ValueError, match="NaN"):
        metrics.retrieval_metrics(inside)


def test_padded_rows_have_rank_0_and_must_be_left_out():
    scores = np.full((1, 3), np.nan, np.float32)
    assert metrics.ranks(scores, np.array([0]), seen_of((0,)))[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="padded"):
        metrics.retrieval_metrics(np.array([[1, 1], [0, 0]]))


@pytest.mark.parametrize("jitted", [False, True])
def test_ranks_equal_a_plain_loop(jitted):
    rng = np.random.default_rng(0)
    b, v, items, m = 40, 30, 25, 8
    scores = rng.integers(0, 6, (b, v)).astype(np.float32)  # many ties
    target = rng.integers(1, items, b)
    seen = rng.integers(0, items, (b, m))
    expected = []
    for row in range(b):
        others = [i for i in range(1, items) if i != target[row] and i not in seen[row]]
        own = scores[row, target[row]]
        expected.append([1 + sum(scores[row, i] > own for i in others), 1 + sum(scores[row, i] >= own for i in others)])
    function = jax.jit(metrics.ranks, static_argnums=3) if jitted else metrics.ranks
    np.testing.assert_array_equal(function(scores, target, seen, items), expected)


def test_shapes_are_checked():
    with pytest.raises(Exception, match="parameter 'target'"):
        metrics.ranks(np.zeros((2, 3), np.float32), np.zeros(3, np.int32), np.zeros((2, 1), np.int32))


def test_retrieval_metrics_by_hand():
    values = metrics.retrieval_metrics(alone([1, 2, 3, 11]), ks=(2, 10))
    assert list(values) == ["hr@2", "hr@10", "ndcg@2", "ndcg@10", "mrr"]
    np.testing.assert_array_equal(values["hr@2"], [1, 1, 0, 0])
    np.testing.assert_array_equal(values["hr@10"], [1, 1, 1, 0])
    np.testing.assert_allclose(values["ndcg@2"], [1, 1 / math.log2(3), 0, 0])
    np.testing.assert_allclose(values["ndcg@10"], [1, 1 / math.log2(3), 0.5, 0])
    np.testing.assert_allclose(values["mrr"], [1, 1 / 2, 1 / 3, 1 / 11])


def test_summary_holds_mean_and_an_interval_of_the_right_width():
    values = {"hit": np.repeat([0.0, 1.0], 200), "constant": np.full(400, 0.25)}
    result = metrics.summary(values, np.arange(400), bootstrap=2000, seed=3)
    assert result["hit"]["mean"] == 0.5
    half = 1.96 * 0.5 / math.sqrt(400)
    assert result["hit"]["low"] == pytest.approx(0.5 - half, abs=0.006)
    assert result["hit"]["high"] == pytest.approx(0.5 + half, abs=0.006)
    assert result["constant"] == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25})
    assert result == metrics.summary(values, np.arange(400), bootstrap=2000, seed=3)
    assert metrics.summary(values, np.arange(400), bootstrap=0)["hit"] == {"mean": 0.5}


def test_summary_does_not_depend_on_the_chunks(monkeypatch):
    values = {"x": np.random.default_rng(0).random(50)}
    whole = metrics.summary(values, np.arange(50), bootstrap=64)
    monkeypatch.setattr(metrics, "_CELLS", 7 * 50)
    assert metrics.summary(values, np.arange(50), bootstrap=64)["x"] == pytest.approx(whole["x"])


def test_summary_leaves_out_nan_and_survives_nothing():
    result = metrics.summary({"x": np.array([1.0, np.nan, 3.0]), "none": np.full(3, np.nan)}, np.arange(3), 50)
    assert result["x"]["mean"] == 2 and 1 <= result["x"]["low"] <= result["x"]["high"] <= 3
    assert all(map(math.isnan, result["none"].values()))
    assert math.isnan(metrics.summary({"x": np.zeros(0)}, np.zeros(0, int))["x"]["mean"])
    assert metrics.summary({}, np.zeros(0, int)) == {}


def test_users_are_resampled_with_all_their_targets():
    """Two users of 100 equal targets each, 0 and 1: of four equally likely resamples one is all 0 and one all 1."""
    values, users = {"hit": np.repeat([0.0, 1.0], 100)}, np.repeat([7, 3], 100)
    found = metrics.summary(values, users, bootstrap=400)
    assert found == {"hit": {"mean": 0.5, "low": 0.0, "high": 1.0}}
    apart = metrics.summary(values, np.arange(200), bootstrap=400)["hit"]
    assert 0.4 < apart["low"] < 0.5 < apart["high"] < 0.6, "as if the targets had nothing to do with each other"
    assert metrics.summary(values, np.zeros(200, int)) == {"hit": {"mean": 0.5}}, "one user tells of no spread"


def test_a_mean_is_over_targets_whoever_has_how_many():
    """One user of three targets, 0 each, and one of one, 1: the resamples have means 0, 1/4 and 1."""
    found = metrics.summary({"hit": np.array([0.0, 1, 0, 0])}, np.array([5, 2, 5, 5]), bootstrap=400)
    assert found == {"hit": {"mean": 0.25, "low": 0.0, "high": 1.0}}
    draws = [np.array([[2.0, 0], [1, 1], [0, 2]])]  # of user 2, then of user 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_resamples", lambda *_: iter(draws))
        patch.setattr(metrics, "_interval", lambda column: {"draws": column.tolist()})
        found = metrics.summary({"hit": np.array([0.0, 1, np.nan, 0])}, np.array([5, 2, 5, 5]))
    assert found["hit"]["draws"] == [1, 1 / 3, 0], "unknown values weigh nothing"


def test_with_one_target_a_user_intervals_are_those_of_a_bootstrap_over_targets():
    """To the bit, whatever the users are called."""
    rng = np.random.default_rng(5)
    values = {"x": rng.random(40), "y": np.where(rng.random(40) < 0.2, np.nan, rng.random(40))}
    drawn = np.random.default_rng(9).integers(0, 40, (300, 40))
    for users in (np.arange(40), np.sort(rng.permutation(1000)[:40])):
        found = metrics.summary(values, users, bootstrap=300, seed=9)
        for name, value in values.items():
            low, high = np.quantile(np.nanmean(value[drawn], axis=1), (0.025, 0.975))
            assert found[name]["low"] == pytest.approx(low) and found[name]["high"] == pytest.approx(high)
        assert found == metrics.summary(values, np.arange(40), bootstrap=300, seed=9)


def test_users_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match=r"3 targets and the users of 2|parameter 'users'"):
        metrics.summary({"x": np.zeros(3)}, np.arange(2))
    with pytest.raises(ValueError, match="1 users are below 0: leave out the padded rows"):
        metrics.summary({"x": np.zeros(3)}, np.array([0, -1, 1]))


def test_ranking_metrics_resample_users():
    """Two users of 20 lists each; one's are all ranked right, the other's all wrong: every metric may be 0 or 1."""
    labels, logits = np.tile([1, 0], (40, 1)), np.array([[3.0, -3]] * 20 + [[-3.0, 3]] * 20)
    found = metrics.ranking_metrics(labels, logits, np.repeat([0, 1], 20), bootstrap=200)
    for name in ("auc", "grouped_auc", "list_hr@1"):
        assert found[name] == {"mean": found[name]["mean"], "low": 0.0, "high": 1.0}, name
    loss = np.log1p(np.exp([-3, 3]))
    assert [found["log_loss"][bound] for bound in ("low", "high")] == pytest.approx(loss.tolist())
    apart = metrics.ranking_metrics(labels, logits, np.arange(40), bootstrap=200)
    assert all(0.2 < apart[name]["low"] < apart[name]["high"] < 0.8 for name in ("auc", "grouped_auc", "list_hr@1"))


def test_summary_is_fast():
    values = metrics.retrieval_metrics(alone(np.random.default_rng(0).integers(1, 3707, 6040)))
    assert len(values) == 13
    start = time.perf_counter()
    metrics.summary(values, np.arange(6040), bootstrap=1000)
    assert time.perf_counter() - start < 2


def test_auc_by_hand():
    labels = np.array([1, 0, 1, 0, -1])
    assert metrics.auc(labels, np.array([0.9, 0.1, 0.4, 0.5, 7.0])) == 3 / 4
    assert metrics.auc(labels, np.array([0.9, 0.1, 0.5, 0.5, 7.0])) == 3.5 / 4  # a tie counts half
    assert metrics.auc(labels, np.zeros(5)) == 0.5
    assert math.isnan(metrics.auc(np.array([1, 1, -1]), np.zeros(3)))
    assert math.isnan(metrics.auc(np.array([], np.int32), np.zeros(0)))


def test_log_loss_by_hand():
    logits = np.array([0.0, math.log(3), -1e4, 5.0])
    assert metrics.log_loss(np.array([1, 0, -1, -1]), logits) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert metrics.log_loss(np.array([0, 0, 0, 0]), np.full(4, -1e4)) == 0  # no overflow
    assert metrics.log_loss(np.array([1, 1, 1, 1]), np.full(4, -1e4)) == 1e4
    assert math.isnan(metrics.log_loss(np.array([-1]), np.zeros(1)))


def test_calibration_error_by_hand():
    logit = lambda p: np.log(np.array(p) / (1 - np.array(p)))
    labels, p = np.array([0, 1, 1, 1, -1]), [0.2, 0.4, 0.6, 0.8, 0.5]
    # Two bins: |0.3 - 0.5| and |0.7 - 1|, half of the mass each.
    assert metrics.calibration_error(labels, logit(p), bins=2) == pytest.approx(0.25)
    assert metrics.calibration_error(labels, logit(p), bins=1) == pytest.approx(0.25)
    assert metrics.calibration_error(labels, logit(p), bins=99) == pytest.approx((0.2 + 0.6 + 0.4 + 0.2) / 4)
    # A constant prediction of the base rate is perfectly calibrated, in whatever order its labels come.
    assert metrics.calibration_error(np.repeat([0, 1], 40), np.zeros(80)) == pytest.approx(0)
    assert math.isnan(metrics.calibration_error(np.array([-1]), np.zeros(1)))


def test_calibrated_predictions_have_a_small_error_and_overconfident_ones_do_not():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    assert metrics.calibration_error(labels, logits) < 0.015
    assert metrics.calibration_error(labels, 4 * logits) > 0.15


def test_list_metrics_by_hand():
    labels = np.array([[1, 0, 0, -1], [0, 1, 1, 0], [1, 1, -1, 1], [0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, 0, 0]])
    scores = np.array([[2.0, 3, 1, 9], [4, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [7, 7, 7, 7]])
    values = metrics.list_metrics(labels, scores)
    gain = lambda *positions: sum(1 / math.log2(1 + i) for i in positions)
    nan = math.nan
    np.testing.assert_allclose(values["grouped_auc"], [0.5, 0.5, nan, nan, nan, 0.5])
    np.testing.assert_allclose(values["list_mrr"], [1 / 2, 1 / 2, nan, nan, nan, 25 / 48])  # (1 + 1/2 + 1/3 + 1/4) / 4
    np.testing.assert_array_equal(values["list_hr@1"], [0, 0, nan, nan, nan, 1 / 4])
    assert metrics.list_metrics(labels[:1], -scores[:1])["list_hr@1"].tolist() == [0]
    assert metrics.list_metrics(labels[:1], scores[:1, [1, 0, 2, 3]])["list_hr@1"].tolist() == [1]
    np.testing.assert_allclose(
        values["list_ndcg@10"], [gain(2), gain(2, 3) / gain(1, 2), nan, nan, nan, gain(1, 2, 3, 4) / 4]
    )
    cut = metrics.list_metrics(labels, scores, at=2)["list_ndcg@2"]
    np.testing.assert_allclose(cut, [gain(2), gain(2) / gain(1, 2), nan, nan, nan, gain(1, 2) / 4])


def test_ties_within_lists_by_hand():
    """Two positives and a negative tie behind a negative; then three lists of equal scores, two of them with empty slots."""
    labels = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, -1], [1, 1, 0, -1]])
    scores = np.array([[2.0, 1, 1, 1], [5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 0, math.nan]])
    values = metrics.list_metrics(labels, scores)
    # The first positive of the first list is at place 2 with chance 2/3, at place 3 with 1/3. Of the second: C(4, 2) = 6
    # pairs of places, of which 3 hold the first, 2 begin with the second, 1 with the third.
    mrr = [2 / 3 / 2 + 1 / 3 / 3, (3 + 2 / 2 + 1 / 3) / 6, (1 + 1 / 2 + 1 / 3) / 3, 2 / 3 + 1 / 3 / 2]
    np.testing.assert_allclose(values["list_mrr"], mrr)
    np.testing.assert_allclose(values["list_hr@1"], [0, 1 / 2, 1 / 3, 2 / 3])
    d = [1 / math.log2(1 + place) for place in range(1, 5)]
    dcg = [2 * (d[1] + d[2] + d[3]) / 3, 2 * sum(d) / 4, sum(d[:3]) / 3, 2 * sum(d[:3]) / 3]
    np.testing.assert_allclose(values["list_ndcg@10"], np.array(dcg) / [d[0] + d[1], d[0] + d[1], d[0], d[0] + d[1]])
    np.testing.assert_allclose(values["grouped_auc"], [1 / 4, 1 / 2, 1 / 2, 1 / 2])


def test_ties_within_lists_are_means_over_all_orders():
    rng = np.random.default_rng(3)
    for _ in range(20):
        label, score = rng.integers(-1, 2, 6), rng.integers(0, 3, 6).astype(np.float64)
        found = metrics.list_metrics(label[None], score[None], at=3)
        every = [
            metrics.list_metrics(label[None], score[None] + np.array(order) / 100, at=3)
            for order in itertools.permutations(range(6))
        ]
        for name in ("list_ndcg@3", "list_mrr", "list_hr@1", "grouped_auc"):
            np.testing.assert_allclose(found[name], np.mean([one[name] for one in every], axis=0), err_msg=name)


def test_list_metrics_equal_plain_loops():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(-1, 2, (60, 15)), rng.integers(0, 5, (60, 15)).astype(np.float64)
    values = metrics.list_metrics(labels, scores, at=3)
    for row, (label, score) in enumerate(zip(labels, scores)):
        pairs = [(p, n) for p in score[label == 1] for n in score[label == 0]]
        if not pairs:
            assert all(math.isnan(v[row]) for v in values.values())
            continue
        wins = sum((p > n) + (p == n) / 2 for p, n in pairs)
        assert values["grouped_auc"][row] == pytest.approx(wins / len(pairs))
        assert metrics.auc(label, score) == pytest.approx(wins / len(pairs))
        ties = [label[(score == s) & (label >= 0)].tolist() for s in (4, 3, 2, 1, 0)]
        order = [np.mean(ys) for ys in ties for _ in ys]
        gains = lambda ys: sum(y / math.log2(i + 2) for i, y in enumerate(ys[:3]))
        ideal = gains(sorted((y for ys in ties for y in ys), reverse=True))
        assert values["list_ndcg@3"][row] == pytest.approx(gains(order) / ideal)
        t, p = next((len(ys), sum(ys)) for ys in ties if 1 in ys)
        before = sum(len(ys) for ys in ties[: next(i for i, ys in enumerate(ties) if 1 in ys)])
        places = [math.comb(t - j, p - 1) / math.comb(t, p) / (before + j) for j in range(1, t - p + 2)]
        assert values["list_mrr"][row] == pytest.approx(sum(places))


def test_ranking_metrics_gather_everything_with_intervals():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(300, 8))
    labels = (rng.random((300, 8)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    labels[:, -1] = -1
    result = metrics.ranking_metrics(labels, logits, np.arange(300), bootstrap=400)
    assert set(result) == {"auc", "log_loss", "calibration_error", "list_hr@1"} | {
        "grouped_auc",
        "list_ndcg@10",
        "list_mrr",
    }
    for name in ("auc", "log_loss", "grouped_auc", "list_ndcg@10", "list_mrr", "list_hr@1"):
        value = result[name]
        assert value["low"] < value["mean"] < value["high"] < value["low"] + 0.1, name
    # Lists are drawn with replacement: the interval of the loss is that of a mean over 300 lists.
    per_list = (np.logaddexp(0, logits) - labels * logits)[:, :-1].mean(1)
    width = result["log_loss"]["high"] - result["log_loss"]["low"]
    assert width == pytest.approx(2 * 1.96 * per_list.std() / math.sqrt(300), rel=0.15)
    assert set(metrics.ranking_metrics(labels, logits, np.arange(300), bootstrap=0)["auc"]) == {"mean"}


def test_resampled_auc_equals_auc_of_the_repeated_lists(monkeypatch):
    rng = np.random.default_rng(4)
    labels, scores = rng.integers(-1, 2, (5, 6)), rng.integers(0, 4, (5, 6)).astype(np.float64)
    weights = np.array([[2.0, 0, 1, 0, 3]])
    monkeypatch.setattr(metrics, "_resamples", lambda *_: iter([weights]))
    repeated = np.repeat(np.arange(5), weights[0].astype(int))
    draws = metrics._auc_draws(*metrics._known(labels, scores), 5, 1, 0)
    assert draws[0] == pytest.approx(metrics.auc(labels[repeated], scores[repeated]))


def test_nan_scores_of_known_labels_are_refused():
    scores = np.array([[1.0, np.nan]])
    assert metrics.log_loss(np.array([[1, -1]]), scores) > 0
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metrics.auc(np.array([[1, 0]]), scores)
