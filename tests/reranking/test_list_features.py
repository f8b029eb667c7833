"""What is told of retrieved items: counts before the request, what goes together, words, and nothing of the target."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from small_log import SmallLog, user

from synergen_jax import config as configs
from synergen_jax.errors import UserError
from synergen_jax.reranking import list_features
from synergen_jax.reranking.list_features import ListFeatures, Requests, Retrieved
from synergen_jax.reranking.statistics import Statistics
from synergen_jax.runs import rerank
from synergen_jax.runs.run import Run

DAY = 86_400
CONFIG = configs.from_dict({"data": {"max_history": 8}, "evaluate": {"batch": 4, "rank_candidates": 3}})


@pytest.fixture(scope="module")
def run():
    """Three users whose days are numbered; the last two events of each are targets."""
    days = lambda *numbers: [DAY * (100 + number) for number in numbers]
    users = [
        user([1, 2, 3, 4], name="a", time=days(0, 10, 50, 60), query=[0, 1, 0, 1]),
        user([1, 2, 5, 6], name="b", time=days(0, 40, 41, 70)),
        user([2, 7, 1, 5], name="c", time=days(5, 59, 61, 90)),
    ]
    return Run(CONFIG, SmallLog(users, 9, queries=2))


@pytest.fixture(scope="module")
def told(run):
    """The batch of test targets, what was retrieved for it, and its features by name, (users, items)."""
    batch = next(iter(run.targets("test")))
    assert batch.user[:3].tolist() == [0, 1, 2]
    wide = lambda values: np.tile(values, (len(batch.user), 1))
    found = Retrieved(wide([2, 1, 7, 0]), wide([3.0, 2, 1, -np.inf]), wide([0.5, 0, 0, np.nan]))
    made = ListFeatures(rerank.statistics(run), run.catalogue, run.log.spec)
    table = made.table(rerank.requests(run.log, batch), found)
    assert table.shape == (*found.item.shape, len(list_features.names(run.log.spec))) and np.isfinite(table).all()
    assert not table[:, 3].any()  # there is no fourth item
    return batch, found, lambda name: table[:3, :3, list_features.names(run.log.spec).index(name)]


def test_counts_and_times_are_of_training_before_the_request(told):
    column = told[2]
    # Training has 1, 2 of each of a and b, and 2, 7 of c. a asks at day 60, b at 70, c at 90.
    np.testing.assert_allclose(column("popularity"), np.log1p([[3, 2, 1]] * 3), rtol=1e-5)
    np.testing.assert_allclose(column("recent popularity"), np.log1p([[1, 0, 1], [1, 0, 1], [0, 0, 0]]), rtol=1e-5)
    np.testing.assert_allclose(column("idle")[:, 0], np.log1p([20, 30, 50]), rtol=1e-5)
    np.testing.assert_allclose(column("age")[0], np.log1p([55, 60, 1]), rtol=1e-5)


def test_the_request_and_what_retrieval_says(told):
    column = told[2]
    np.testing.assert_allclose(column("score")[0], [3, 2, 1])
    np.testing.assert_allclose(column("head")[0], [0.5, 0, 0])
    np.testing.assert_allclose(column("place")[0], np.log1p([0, 1, 2]), rtol=1e-5)
    np.testing.assert_allclose(column("search")[:, 0], [1, 0, 0])
    np.testing.assert_allclose(column("events")[:, 0], np.log1p([3, 3, 3]), rtol=1e-5)
    np.testing.assert_allclose(column("days since")[:, 0], np.log1p([10, 29, 29]), rtol=1e-5)


def test_what_goes_together_and_what_a_query_led_to(told):
    column = told[2]
    # a asks with query 1, which led to item 2 once.
    np.testing.assert_allclose(column("query count"), np.log1p([[1, 0, 0], [0, 0, 0], [0, 0, 0]]), rtol=1e-5)
    # a has 1, 2 and 3. Two users have 1 and 2, of two and three; one has 2 and 7, of three and one; 3 is in no training.
    both, other = 2 / np.sqrt(6), 1 / np.sqrt(3)
    np.testing.assert_allclose(column("together, sum")[0], [both, both, other], rtol=1e-5)
    np.testing.assert_allclose(column("together, most")[0], [both, both, other], rtol=1e-5)
    np.testing.assert_allclose(column("together, last")[0], [0, 0, 0])
    # c's history ends with item 1.
    np.testing.assert_allclose(column("together, last")[2], [both, 0, 0], rtol=1e-5)


def test_the_item_itself_in_the_history(told):
    column = told[2]
    np.testing.assert_allclose(column("met"), np.log1p([[1, 1, 0], [1, 1, 0], [1, 1, 1]]), rtol=1e-5)
    np.testing.assert_allclose(
        column("met since"), [[1 / 2, 1 / 3, 0], [1 / 2, 1 / 3, 0], [1 / 3, 1, 1 / 2]], rtol=1e-5
    )


def test_words(run, told):
    column = told[2]
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    items = unit(np.asarray(run.log.item_matrices["text"], np.float32)[1:])
    queries = unit(np.asarray(run.log.query_matrices["text"], np.float32)[1:])
    like = items[[0, 1, 2]] @ items[[1, 0, 6]].T  # a's history, and the items retrieved
    np.testing.assert_allclose(column("text, most")[0], like.max(0), rtol=1e-4)
    np.testing.assert_allclose(column("text, latest")[0], like.mean(0), rtol=1e-4)
    np.testing.assert_allclose(column("text, query")[0], queries[0] @ items[[1, 0, 6]].T, rtol=1e-4)
    np.testing.assert_allclose(column("text, query")[1:], 0)


def test_the_target_and_what_comes_later_tell_nothing(run, told):
    """Another target, and other events of others after the request: the same features."""
    batch, found, _ = told
    made = ListFeatures(rerank.statistics(run), run.catalogue, run.log.spec)
    before = made.table(rerank.requests(run.log, batch), found)
    other = dataclasses.replace(batch, target=np.full_like(batch.target, 7), position=batch.position + 1)
    np.testing.assert_array_equal(before, made.table(rerank.requests(run.log, other), found))
    late = user([2, 2, 7, 3, 4], name="d", time=[DAY * 300 + number for number in range(5)])
    more = Run(CONFIG, SmallLog([*run.log.records, late], 9, queries=2))
    known = rerank.statistics(more)
    first = Statistics(known.time, known.begin, made._known.near, made._known.pairs)
    after = ListFeatures(first, run.catalogue, run.log.spec).table(rerank.requests(run.log, batch), found)
    np.testing.assert_array_equal(before, after)


def test_nobody_in_particular_asks(run):
    """Neither history nor query."""
    made = ListFeatures(rerank.statistics(run), run.catalogue, run.log.spec)
    asked = Requests(np.zeros((1, 8), int), np.array([0]), np.array([10**9 + DAY * 200]), np.array([0]))
    table = made.table(asked, Retrieved(np.array([[1, 8]]), np.array([[1.0, 0]]), np.zeros((1, 2))))
    assert np.isfinite(table).all()
    column = dict(zip(list_features.names(run.log.spec), table[0].T))
    assert column["popularity"].tolist() == pytest.approx([np.log(3), 0])  # 1 has two events, 8 none
    assert not column["text, most"].any() and not column["together, sum"].any()


def test_counts_by_binary_search_are_those_by_counting():
    rng = np.random.default_rng(0)
    item, time = rng.integers(1, 20, 500), rng.integers(0, 50, 500)
    nothing = scipy.sparse.csr_array((20, 20))
    known = Statistics.of(item, time, nothing, nothing)
    asked, moment = rng.integers(0, 20, (30, 7)), rng.integers(-5, 60, (30, 7))
    wanted = [[np.sum((item == one) & (time < at)) for one, at in zip(*row)] for row in zip(asked, moment)]
    np.testing.assert_array_equal(known.before(asked, moment), wanted)


def test_statistics_are_kept(run, tmp_path):
    known = rerank.statistics(run)
    known.save(tmp_path / "statistics.npz")
    found = Statistics.load(tmp_path / "statistics.npz")
    np.testing.assert_array_equal(found.time, known.time)
    np.testing.assert_array_equal(found.begin, known.begin)
    assert (found.near != known.near).nnz == (found.pairs != known.pairs).nnz == 0
    (tmp_path / "statistics.npz").write_bytes((tmp_path / "statistics.npz").read_bytes()[:99])
    with pytest.raises(UserError, match=r"is damaged .*: `synergen rerank` writes it again"):
        Statistics.load(tmp_path / "statistics.npz")
    with pytest.raises(UserError, match="is missing: `synergen rerank` writes it again"):
        Statistics.load(tmp_path / "none.npz")
