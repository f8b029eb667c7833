"""Serving: retrieval against brute force, appended events, ranking, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import small_model
from small_log import random_log

from data_pipelines.feed import examples, windows
from synergen_jax.batch import Events, Readers
from synergen_jax.config import Config, DataConfig, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.model import synergen
from synergen_jax.serving.catalogue import extended
from synergen_jax.serving.recommender import Recommender, Request

LOG = random_log(5, users=6, items=40, longest=12, least=10)
CONFIG = Config(data=DataConfig(max_history=16), model=ModelConfig(width=16, heads=2, depth=2, query_match=8))
ITEMS = 39  # of the catalogue, id 0 left out


@pytest.fixture(scope="module")
def served():
    model, params, catalogue = small_model.make(CONFIG.model, LOG.spec)
    return Recommender(model, params, catalogue)


@pytest.fixture(scope="module")
def history(served):
    """(record, its cache, the time of a request on its clock)."""
    record = LOG[0]
    events, start = examples.user_history(record, CONFIG)
    return record, served.encode(events), int(record["time"][-1]) - start + 3600


def brute_force(served, cache, time, query):
    """The score of every item, by the model's own parts, not compiled."""
    one = lambda x: np.full((1, 1), x, np.int32)
    readers = Readers(one(0), one(query), one(time), one(int(cache.length[0])))
    vectors = small_model.vectors(served.model, served.params, served.catalogue, readers)
    hidden = small_model.apply(served.model, served.params, cache, readers, *vectors, method="read")
    vector = small_model.apply(served.model, served.params, hidden, vectors[1], method="retrieve")[0, 0]
    return np.asarray(synergen.item_keys(served.model, served.params, served.catalogue)) @ np.asarray(vector)


@pytest.mark.parametrize("query", [0, 3])
@pytest.mark.parametrize("k", [1, 7, 20])
def test_retrieval_equals_brute_force(served, history, k, query):
    record, cache, time = history
    exclude = set(record["item"].tolist())
    scores = brute_force(served, cache, time, query)
    allowed = [item for item in range(1, ITEMS + 1) if item not in exclude]
    best = sorted(allowed, key=lambda item: -scores[item])[:k]
    ids, found = served.retrieve(cache, time, k, query, exclude)
    assert ids.tolist() == best
    np.testing.assert_allclose(found, scores[best], atol=1e-5)


def test_everything_that_is_left(served, history):
    """As many as there are is allowed; one more is not, and says why."""
    record, cache, time = history
    exclude = [*record["item"].tolist(), *record["item"].tolist(), 0]  # repeats and "none" exclude nothing more
    left = set(range(1, ITEMS + 1)) - set(exclude)
    ids, _ = served.retrieve(cache, time, len(left), exclude=exclude)
    assert set(ids.tolist()) == left
    had = ITEMS - len(left)
    for k in (len(left) + 1, 99_999, 0, -1):
        for order in ("", "engage"):
            wanted = (
                f"k = {k} items .* the catalogue has {ITEMS}, {had} of which the user .* k lies within 1 .. {len(left)}"
            )
            with pytest.raises(UserError, match=wanted):
                served.recommend(cache, time, k, exclude=exclude, order=order)
    assert set(served.retrieve(cache, time, ITEMS)[0].tolist()) == set(range(1, ITEMS + 1))


def test_a_query_and_the_time_matter(served, history):
    _, cache, time = history
    scores = [served.retrieve(cache, at, 5, query)[1] for at, query in ((time, 0), (time, 3), (time + 10**7, 0))]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3 and np.abs(scores[0] - scores[2]).max() > 1e-3


def test_appended_events_equal_a_longer_history(served, history):
    record, whole, time = history
    n = len(record["item"])
    part = windows.window(record, 0, n - 3, CONFIG.data.max_history)
    cache = served.encode(jax.tree.map(lambda x: x[None], part))
    seconds = windows.seconds(record, 0, n)
    for i in range(n - 3, n):
        cache = served.append(
            cache, int(record["item"][i]), int(record["action"][i]), int(seconds[i]), int(record["query"][i])
        )
    assert int(cache.length[0]) == int(whole.length[0]) == n
    for a, b in zip(jax.tree.leaves((cache.keys, cache.values)), jax.tree.leaves((whole.keys, whole.values))):
        np.testing.assert_allclose(a[:, :, :n], b[:, :, :n], atol=1e-5)
    ours, theirs = served.retrieve(cache, time, 10), served.retrieve(whole, time, 10)
    assert ours[0].tolist() == theirs[0].tolist()
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    items = ours[0].tolist()
    np.testing.assert_allclose(served.rank(cache, items, time), served.rank(whole, items, time), atol=1e-5)


def test_a_full_cache(served):
    one = np.ones((1, 4), np.int32)
    cache = served.encode(Events(one, one, one, one))
    with pytest.raises(UserError, match="the cache is full with 4 events: encode the newest part"):
        served.append(cache, item=1, action=1, time=2)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_rank_probabilities_are_the_models(served, history, count):
    """However far the candidates are padded: the sigmoid of the model's own logits, each candidate by itself."""
    _, cache, time = history
    items = np.arange(3, 3 + count)
    found = served.rank(cache, items, time, query=2)
    assert found.shape == (count, 2)
    full = lambda x: np.full((1, count), x, np.int32)
    readers = Readers(items[None].astype(np.int32), full(2), full(time), full(int(cache.length[0])))
    vectors = small_model.vectors(served.model, served.params, served.catalogue, readers)
    hidden = small_model.apply(served.model, served.params, cache, readers, *vectors, method="read")
    score = np.asarray(brute_force(served, cache, time, 2), np.float32)[items][None]
    logits = np.asarray(small_model.apply(served.model, served.params, hidden, score, method="rank"))[0]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose(found[-1:], served.rank(cache, items[-1:], time, query=2), atol=1e-5)


def test_recommendations(served, history):
    """Retrieval's order by default; a label's probability orders the candidates that are retrieved."""
    record, cache, time = history
    exclude = set(record["item"].tolist())
    found = served.recommend(cache, time, 6, exclude=exclude)
    ids, scores = served.retrieve(cache, time, 6, exclude=exclude)
    assert [r.item for r in found] == ids.tolist()
    assert [r.score for r in found] == scores.tolist()
    probabilities = served.rank(cache, ids, time)
    assert [list(r.probability) for r in found] == [["engage", "like"]] * 6
    np.testing.assert_allclose([list(r.probability.values()) for r in found], probabilities, atol=1e-6)


@pytest.mark.parametrize("candidates", [3, 6, 12, 100])
def test_order_by_a_label(served, history, candidates):
    record, cache, time = history
    exclude = set(record["item"].tolist())
    left = ITEMS - len(exclude - {0})
    wide = max(6, min(candidates, left))  # never fewer than are asked for, nor more than there are
    ids, _ = served.retrieve(cache, time, wide, exclude=exclude)
    likes = served.rank(cache, ids, time)[:, 1]
    found = served.recommend(cache, time, 6, exclude=exclude, order="like", candidates=candidates)
    assert [r.item for r in found] == ids[np.argsort(-likes, kind="stable")[:6]].tolist()
    assert not exclude & {r.item for r in found}


def test_ids_out_of_range_are_refused_and_not_taken_for_others(served, history):
    _, cache, time = history
    size = served.model.spec.items
    for wrong in (0, -1, size):
        with pytest.raises(UserError, match=rf"item {wrong} is out of range: ids are 1 .. {size - 1}"):
            served.rank(cache, [1, wrong], time)
    with pytest.raises(UserError, match="query -2 is out of range"):
        served.retrieve(cache, time, 3, query=-2)
    with pytest.raises(UserError, match="action 99 is out of range"):
        served.append(cache, item=1, action=99, time=time)
    with pytest.raises(UserError, match=f"item {size} is out of range"):
        served.append(cache, item=size, action=1, time=time)
    for wrong in (-1, size):
        for ask in (served.retrieve, served.recommend):
            with pytest.raises(UserError, match=f"excluded item {wrong} is out of range"):
                ask(cache, time, 3, exclude=[1, wrong])
    good = Events(*np.ones((4, 1, 3), np.int32))
    for field, most in (("item", size), ("action", served.model.spec.actions), ("query", served.model.spec.queries)):
        for wrong in (-1, most):
            bad = dataclasses.replace(good, **{field: np.array([[1, wrong, 1]], np.int32)})
            with pytest.raises(UserError, match=f"{field} {wrong} is out of range: ids are 0 .. {most - 1}"):
                served.encode(bad)


def test_the_catalogue_lies_on_the_device(served, monkeypatch):
    """From the host it would be sent with every call, and with every piece of the keys."""
    keys, given = synergen.item_keys, []
    monkeypatch.setattr(synergen, "item_keys", lambda *args: given.append(args[2]) or keys(*args))
    made = Recommender(served.model, served.params, jax.device_get(served.catalogue))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made.catalogue))
    assert len(given) == 1 and given[0] is made.catalogue


def test_an_extended_catalogue_has_more_ids(served, history):
    _, cache, time = history
    text = np.ones((1, served.catalogue.item_matrices["text"].shape[1]), np.float16)
    words = np.ones((1, served.catalogue.query_matrices["text"].shape[1]), np.float16)
    more = Recommender(served.model, served.params, extended(served.catalogue, {"text": text}, {"text": words}))
    queries = served.model.spec.queries
    assert np.isfinite(more.rank(cache, [ITEMS + 1], time, query=queries)).all()
    with pytest.raises(UserError, match=f"item {ITEMS + 2} is out of range"):
        more.rank(cache, [ITEMS + 2], time)
    for ask in (more.retrieve, more.recommend):
        with pytest.raises(UserError, match=f"query {queries + 1} is out of range"):
            ask(cache, time, 3, query=queries + 1)


def test_an_unknown_label(served, history):
    _, cache, time = history
    with pytest.raises(UserError, match="cannot order by 'love'; ranked labels: engage, like"):
        served.recommend(cache, time, 3, order="love")


def test_new_items_are_found_by_what_describes_them(served, history):
    """An item added after training, which is described as an old one of no training event, has that one's score."""
    _, cache, time = history
    old = served.catalogue.item_matrices["text"][7:8]
    grown = extended(served.catalogue, items={"text": np.asarray(old)})
    assert grown.counts.shape[0] == ITEMS + 2 and grown.counts[-1] == 0
    more = Recommender(served.model, served.params, grown)
    ids, scores = more.retrieve(cache, time, ITEMS + 1)
    assert set(ids.tolist()) == set(range(1, ITEMS + 2))
    cold = dataclasses.replace(served.catalogue, counts=np.asarray(served.catalogue.counts).copy())
    cold.counts[7] = 0
    theirs, values = Recommender(served.model, served.params, cold).retrieve(cache, time, ITEMS)
    np.testing.assert_allclose(scores[ids == ITEMS + 1], values[theirs == 7], atol=1e-5)
    np.testing.assert_allclose(scores[ids == 3], values[theirs == 3], atol=1e-5)


def test_a_new_query_goes_by_its_text(served, history):
    """Words that were never searched before are a query like any other without a learned vector."""
    _, cache, time = history
    text = np.asarray(served.catalogue.query_matrices["text"])
    grown = extended(served.catalogue, queries={"text": text[2:3]})
    unlearned = dataclasses.replace(served.catalogue, query_counts=np.zeros_like(served.catalogue.query_counts))
    ours = Recommender(served.model, served.params, grown).retrieve(cache, time, 9, query=len(text))
    theirs = Recommender(served.model, served.params, unlearned).retrieve(cache, time, 9, query=2)
    assert ours[0].tolist() == theirs[0].tolist()
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


@pytest.mark.parametrize("rows", [{"image": np.zeros((1, 4))}, {"text": np.zeros((1, 5))}])
def test_rows_that_fit_no_matrix(served, rows):
    with pytest.raises(UserError, match="fit no semantic matrix"):
        extended(served.catalogue, items=rows)


def test_an_item_of_which_nothing_is_known_is_never_recommended(served, history):
    """It has no event and no semantic row: the cosine 0 of its vector would come before those below 0."""
    _, cache, time = history
    unknown, blank = [4, 17], lambda matrix: np.where(np.isin(np.arange(ITEMS + 1), [4, 17])[:, None], 0, matrix)
    counts = np.where(np.isin(np.arange(ITEMS + 1), unknown), 0, served.catalogue.counts)
    matrices = {name: blank(matrix) for name, matrix in served.catalogue.item_matrices.items()}
    catalogue = dataclasses.replace(served.catalogue, item_matrices=matrices, counts=counts)
    less = Recommender(served.model, served.params, catalogue)
    scores = brute_force(less, cache, time, 0)
    assert (scores[1:] < 0).any(), "else their place would tell nothing"
    # What a user had of them leaves no room less: they could not be found anyhow.
    ids, _ = less.retrieve(cache, time, ITEMS - 3, exclude={4, 5})
    assert set(ids.tolist()) == set(range(1, ITEMS + 1)) - {4, 5, 17}
    assert len(less.recommend(cache, time, 3, exclude={4, 5}, order="like")) == 3
    with pytest.raises(UserError, match=f"the catalogue has {ITEMS - 2}, 1 of which"):
        less.retrieve(cache, time, ITEMS - 2, exclude={4, 5})


def test_histories_that_would_be_misread_are_refused(served):
    """Each of these was answered, as if it were another history."""
    good = {"item": [3, 5, 0], "action": [1, 2, 0], "query": [0, 1, 0], "time": [10, 70, 0]}

    def refused(message, like=None, dtype=np.int32, **changes):
        arrays = {name: np.array([values], dtype) for name, values in (good | changes).items()}
        events = Events(**{name: np.repeat(x, like, axis=0) if like else x for name, x in arrays.items()})
        with pytest.raises(UserError, match=message):
            served.encode(events)

    assert int(served.encode(Events(**{name: np.array([x], np.int32) for name, x in good.items()})).length[0]) == 2
    refused("event 1 has an item or a query and no action", action=[1, 0, 0])
    refused("event 1 has an item or a query and no action", item=[3, 0, 0], action=[1, 0, 0])  # a search
    refused("event 2 has an action and neither item nor query", action=[1, 2, 1])
    shifted = {name: values[2:] + values[:2] for name, values in good.items()}
    refused("event 1 follows padding: events come first", **shifted)
    refused(r"of shape \(2, 3\): a history is one user's", like=2)
    refused(r"of shape \(1, 2\): a history is one user's", time=[10, 70])
    refused("time 2147483648 of an event is out of range", dtype=np.int64, time=[10, 2**31, 0])
    refused("time -5 of an event is out of range", time=[-5, 70, 0])
    refused("event 1 at 9 lies before the event before it, at 10", time=[10, 9, 0])
    refused("events.item must be whole numbers, not float64", dtype=np.float64)
    refused("events.item must be whole numbers, not bool", dtype=bool)
    packed = Events(**{name: np.array([x], np.int32) for name, x in good.items()}, first=np.zeros((1, 3), np.int32))
    with pytest.raises(UserError, match="packed rows cannot be encoded"):
        served.encode(packed)


@pytest.mark.parametrize("ask", ["retrieve", "rank", "recommend", "append"])
def test_requests_that_would_be_misread_are_refused(served, history, ask):
    record, cache, _ = history
    last = int(cache.time[0, int(cache.length[0]) - 1])
    calls = {
        "retrieve": lambda cache, time: served.retrieve(cache, time, 3),
        "rank": lambda cache, time: served.rank(cache, [1, 2], time),
        "recommend": lambda cache, time: served.recommend(cache, time, 3, order="engage"),
        "append": lambda cache, time: served.append(cache, 1, 1, time),
    }
    call = calls[ask]
    call(cache, last)
    call(cache, np.int64(last + 1))
    for wrong, message in (
        (last - 1, f"lies before the last event of the history, at {last}"),
        (-5, "lies before the last event"),
        (int(record["time"][-1]) + 700_000_000, "give seconds on the clock of the history, not Unix time"),
        (2**31, "not Unix time"),
        (2**70, "must be whole numbers|must be one whole number"),
        (1e6, "must be whole numbers, not float64"),
        (True, "must be whole numbers, not bool"),
        ([last, last], "must be one whole number, not 2 of them"),
    ):
        with pytest.raises(UserError, match=message):
            call(cache, wrong)
    two = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), cache)
    with pytest.raises(UserError, match="a cache of 2 users: a call is about one user"):
        call(two, last)
    empty = served.encode(jax.tree.map(np.asarray, examples.no_history(CONFIG)))
    with pytest.raises(UserError, match=r"the time -5 of the .* lies before the clock's second 0"):
        call(empty, -5)
    call(empty, 0)


def test_numbers_that_are_none_are_refused(served, history):
    _, cache, time = history
    for k in (2.5, None, "3", float("nan")):
        with pytest.raises(UserError, match="k must be"):
            served.retrieve(cache, time, k)
    with pytest.raises(UserError, match="items must be whole numbers"):
        served.rank(cache, [1.5], time)
    with pytest.raises(UserError, match="a list of candidates is"):
        served.rank(cache, [[1, 2]], time)
    with pytest.raises(UserError, match="query must be whole numbers"):
        served.retrieve(cache, time, 3, query="red")
    with pytest.raises(UserError, match="an event has an item or a query"):
        served.append(cache, 0, 1, time)
    assert served.available() == ITEMS and served.available([1, 1, 2, 0]) == ITEMS - 2


def test_excluded_items_may_come_from_an_iterator(served, history):
    record, cache, time = history
    exclude = record["item"].tolist()
    for order in ("", "engage"):
        wanted = served.recommend(cache, time, 5, exclude=exclude, order=order)
        assert served.recommend(cache, time, 5, exclude=(item for item in exclude), order=order) == wanted
    with pytest.raises(UserError, match=r"excluded items of shape \(2, 2\)"):
        served.retrieve(cache, time, 5, exclude=[[1, 2], [3, 4]])
    none = np.zeros((1, 0), np.int32)
    with pytest.raises(UserError, match="a history needs room for an event"):
        served.encode(Events(none, none, none, none))


def requests_of(served):
    """A request of each user: histories of unlike lengths, with and without a query, and of somebody new."""
    made = []
    for user in range(len(LOG)):
        record = LOG[user]
        events, start = examples.user_history(record, CONFIG)
        time = int(record["time"][-1]) - start + 60 * user
        made.append(Request(events, time, query=user % 3, exclude=record["item"].tolist()))
    return [*made, Request(jax.tree.map(np.asarray, examples.no_history(CONFIG)), 0)]


@pytest.mark.parametrize("order", ["", "like"])
def test_many_users_are_answered_as_each_is(served, order):
    requests = requests_of(served)
    for request, found in zip(requests, served.answer(requests, 5, order), strict=True):
        cache = served.encode(request.events)
        alone = served.recommend(cache, request.time, 5, request.query, request.exclude, order)
        assert [r.item for r in found] == [r.item for r in alone]
        np.testing.assert_allclose([r.score for r in found], [r.score for r in alone], atol=1e-5)
        each = [[list(r.probability.values()) for r in answer] for answer in (found, alone)]
        np.testing.assert_allclose(*each, atol=1e-5)


def test_many_users_get_as_many_as_are_left(served):
    first = requests_of(served)[0]
    nothing = first._replace(exclude=range(ITEMS + 1))
    few = first._replace(exclude=range(4, ITEMS + 1))
    found = served.answer([few, nothing, first], 10)
    assert [len(answer) for answer in found] == [3, 0, 10] and {r.item for r in found[0]} == {1, 2, 3}
    assert served.answer([nothing], 10, "like") == [[]] and served.answer([], 10) == []


def test_pairs_and_vectors_of_many_users(served):
    requests = requests_of(served)
    items = [np.arange(1, 2 + place) for place in range(len(requests))]
    vectors, keys = served.vectors(requests), served.keys()
    for row, (request, mine) in enumerate(zip(requests, items)):
        score, probability = served.rank_pairs(requests, items)[row]
        cache = served.encode(request.events)
        np.testing.assert_allclose(score, keys[mine] @ vectors[row], atol=1e-5)
        np.testing.assert_allclose(probability, served.rank(cache, mine, request.time, request.query), atol=1e-5)


def test_a_wrong_request_among_many_is_named(served):
    good = requests_of(served)[1]
    for wrong, message in (
        (good._replace(time=-1), "request 1: the time -1 of the request lies before"),
        (good._replace(query=10**6), "request 1: query 1000000 is out of range"),
        (good._replace(exclude=[-1]), "request 1: excluded item -1 is out of range"),
        (good._replace(time=1.5), "request 1: the time of the request must be whole numbers"),
    ):
        with pytest.raises(UserError, match=message):
            served.answer([good, wrong], 3)
    with pytest.raises(UserError, match="k = 0: k is at least 1"):
        served.answer([good], 0)
