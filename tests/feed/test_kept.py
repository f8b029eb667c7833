"""An example costs what its window costs, and is the same to the bit as one made by walking over the whole record."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
from small_log import SmallLog, random_log, user

from data_pipelines.feed import examples, kept, splits, windows
from synergen_jax import config as configs


def naive_had(record, events):
    return np.unique(record["item"][:events])


def naive_sample_unseen(rng, items, had, count):
    if not count or not len(items):
        return np.zeros(0, np.int32)
    owned, found = set(had.tolist()), {}
    for _ in range(4):
        drawn = items[rng.integers(0, len(items), 2 * count + 8)].tolist()
        found |= dict.fromkeys(item for item in drawn if item not in owned)
        if len(found) >= count:
            return np.array(list(found)[:count], np.int32)
    return rng.permutation(np.setdiff1d(items, had)).astype(np.int32)[:count]


def naive_received(record, told, rows=slice(None)):
    request, action = record["request"], record["shown_action"].copy()
    for row, (asked, item) in enumerate(zip(record["shown_request"], record["shown_item"], strict=True)):
        if asked in request[told:]:
            mine = (request[:told] == asked) & (record["item"][:told] == item)
            action[row] = record["action"][:told][mine][-1] if mine.any() else -1
    return action[rows]


def naive_shown(record, event):
    return np.flatnonzero(record["shown_request"] == record["request"][event])


def naive_features(record, place):
    known = np.concatenate([record["shown_feature"], np.ones((len(record["shown_feature"]), 1), np.float32)], axis=1)
    return np.concatenate([known, np.zeros((1, known.shape[1]), np.float32)])[place]


def naive_positions(record, place):
    request = record["shown_request"]
    first = [np.flatnonzero(request == own)[0] for own in request]
    return np.append(np.arange(len(request)) - np.array(first, int) + 1, 0)[place].astype(np.int32)


def naive_places(log, split, part, config):
    places, repeated = [], 0
    for u, (start, stop) in enumerate(split.targets(part).tolist()):
        item, before = log[u]["item"], splits.first_of_request(log[u]["request"])
        for event in range(start, stop):
            if not item[event]:
                continue
            if config.data.filter_seen and item[event] in item[: before[event]]:
                repeated += 1
            else:
                places.append([u, event])
    return places, repeated


def featured(seed):
    """A random log whose shown items have two features."""
    log, rng = random_log(seed), np.random.default_rng((seed, 1))
    for record in log.records:
        record["shown_feature"] = rng.standard_normal((len(record["shown_item"]), 2), np.float32)
    log.spec = dataclasses.replace(log.spec, candidate_features=("price", "age"))
    return log


def made(log, config, cut):
    """All arrays of one epoch and of both parts, as lists of examples."""
    split = splits.split(log, config.data)
    # Training may end in the middle of a request, whose list then is not received yet.
    split = dataclasses.replace(split, train_stop=np.minimum(split.train_stop, cut))
    train = examples.training(log, split, config)
    found = [train.make(i, row) for i, row in enumerate(train.rows)]
    for part in ("validation", "test"):
        of = examples.Targets.of(log, split, part, config)
        naive, repeated = naive_places(log, split, part, config)
        assert of.places.tolist() == naive and of.repeated == repeated and of.places.dtype == np.int32
        found += [examples.target(of.log, config, *place, int(told)) for place, told in zip(naive, of.told)]
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("filter_seen", ["true", "false"])
def test_the_same_to_the_bit_as_by_walking_over_whole_records(monkeypatch, seed, filter_seen):
    words = (
        f"--data.max_history 6 --data.stride 3 --data.rank_events 3 --data.filter_seen {filter_seen} --data.seed {seed}"
    )
    words += " --data.split time --data.validation_from 0.5 --data.test_from 0.7 --evaluate.rank_candidates 7"
    config, log = configs.from_dict({}), featured(seed)
    config = configs.override(config, words.split())
    found = made(log, config, 9 + seed)
    monkeypatch.setattr(windows, "sample_unseen", naive_sample_unseen)
    monkeypatch.setattr(windows, "received", naive_received)
    monkeypatch.setattr(windows, "_shown", naive_shown)
    monkeypatch.setattr(windows, "features", naive_features)
    monkeypatch.setattr(windows, "positions", naive_positions)
    monkeypatch.setattr(kept, "had", naive_had)
    monkeypatch.setattr(examples, "request_start", lambda request, i: int(splits.first_of_request(request)[i]))
    wanted = made(log, config, 9 + seed)
    assert len(found) == len(wanted) > 50
    for ours, theirs in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert [x.dtype for x in jax.tree.leaves(ours)] == [x.dtype for x in jax.tree.leaves(theirs)]


@pytest.mark.parametrize("seed", range(3))
def test_how_lists_were_received_at_any_moment(seed):
    for record in random_log(seed).records:
        for told in range(len(record["item"]) + 1):
            whole = naive_received(record, told)
            assert windows.received(record, told).tolist() == whole.tolist()
            rows = np.arange(len(whole))[::2]
            assert windows.received(record, told, rows).tolist() == whole[::2].tolist()


class Walked(np.ndarray):
    """An array that counts the numbers that are taken out of it, or computed with; a slice is a view, and free."""

    looked = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        if not isinstance(at, slice):
            Walked.looked += found.size
        return found

    def __array_ufunc__(self, ufunc, method, *inputs, **more):
        Walked.looked += max(x.size for x in inputs if isinstance(x, np.ndarray))
        return getattr(ufunc, method)(*_plain(inputs), **more)

    def __array_function__(self, function, types, args, kwargs):
        parts = args[0] if isinstance(args[0], (list, tuple)) else args
        Walked.looked += 0 if function is np.searchsorted else sum(x.size for x in parts if isinstance(x, np.ndarray))
        return function(*_plain(args), **kwargs)


def _plain(x):
    if isinstance(x, (list, tuple)):
        return type(x)(map(_plain, x))
    return x.view(np.ndarray) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("filter_seen", ["true", "false"])
def test_an_example_of_a_long_history_looks_at_its_window_alone(filter_seen):
    """20,000 events with lists and a window of 10: a hundred numbers are looked at, not thousands."""
    n = 20_000
    record = user(1 + np.arange(n) % 300, shown=[(r, 1 + (r + s) % 300, 0) for r in range(1, n) for s in range(2)])
    record = {key: x if key == "user_id" else x.view(Walked) for key, x in record.items()}
    log = SmallLog([record], 400)
    words = f"--data.max_history 10 --data.stride 10 --data.filter_seen {filter_seen} --evaluate.rank_candidates 5"
    config = configs.override(configs.from_dict({}), words.split())
    split = splits.split(log, config.data)
    train = examples.training(log, split, config)
    train.make(0, train.rows[7])  # what is worked out once a record
    Walked.looked = 0
    train.make(1, train.rows[1000])
    assert 10 < Walked.looked < 500
    held, event = kept.Kept(log), n - 100
    examples.target(held, config, 0, event, n)
    Walked.looked = 0
    examples.target(held, config, 0, event + 1, n)
    assert 5 < Walked.looked < 500


def test_kept_records_are_read_once_and_bounded():
    class Counting(SmallLog):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    log = Counting([user([1, 0, 3, 1], name=f"u{i}", query=[0, 1, 0, 0]) for i in range(5)], 10)
    held = kept.Kept(log)
    assert len(held) == 5 and held.spec is log.spec
    assert held[2] is held[2] and held[2]["user_id"] == "u2" and log.reads == 1
    assert [held[2].had(n).tolist() for n in (0, 1, 2, 3, 4, 1)] == [[], [1], [0, 1], [0, 1, 3], [0, 1, 3], [1]]
    two = kept.Kept(log, room=2 * held[2].size)
    log.reads = 0
    for i in (0, 1, 0, 2, 0, 1):  # 2 pushes 1 out, which was asked for before 0
        assert two[i]["user_id"] == f"u{i}"
    assert log.reads == 4
    none = kept.Kept(log, room=1)
    log.reads = 0
    assert none[3] is none[3] and log.reads == 1, "one record is kept, however large"
    plain = kept.Kept(SmallLog(log.records, 10))
    empty = len(pickle.dumps(plain))
    plain[0], plain[1]
    again = pickle.loads(pickle.dumps(plain))
    assert len(pickle.dumps(plain)) == empty and again[1]["user_id"] == "u1", "a pickled one is its log, nothing kept"
