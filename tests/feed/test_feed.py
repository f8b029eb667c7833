"""What a batch holds, and that the feed is a pure function of (seed, step)."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_feed import configure, same, take
from small_log import SmallLog, random_log, user

from data_pipelines.feed import examples, feed, splits, windows
from data_pipelines.feed.splits import Split
from synergen_jax import config as configs
from synergen_jax.config import DataConfig
from synergen_jax.errors import UserError


def only_training(log):
    """A split in which everything trains."""
    first = [splits._first_target(record) for record in log.records]
    none = np.zeros((len(log), 2), np.int32)
    return Split(log.lengths, np.array(first, np.int32), none, none)


def example(log, config, place=(0, 0, 6), index=0):
    """One training window, unbatched."""
    return examples.example(
        log, np.arange(1, log.spec.items), windows.label_table(log), log.lengths, config, index, np.array(place)
    )


# --- windows --------------------------------------------------------------------------------------------------


def test_a_window_worked_by_hand():
    log = SmallLog([user([5, 0, 6, 7], action=[2, 1, 3, 1], query=[0, 2, 2, 0], time=[100, 160, 220, 10**8])], 10)
    found = example(log, configure(), (0, 0, 4))
    assert found["events"].item.tolist() == [5, 0, 6, 7, 0, 0]
    assert found["events"].action.tolist() == [2, 1, 3, 1, 0, 0]
    assert found["events"].query.tolist() == [0, 2, 2, 0, 0, 0]
    assert found["events"].time.tolist() == [0, 60, 120, 10**8 - 100, 0, 0]
    reader = found["retrieval"]
    assert reader.item.tolist() == [0] * 6
    assert reader.query.tolist() == [0, 2, 2, 0, 0, 0]
    assert reader.time.tolist() == [0, 60, 120, 10**8 - 100, 0, 0]
    assert reader.visible.tolist() == [0, 1, 2, 3, 0, 0]
    # 5: nothing is known before it. 0: a search without an item.
    assert found["target"].tolist() == [0, 0, 6, 7, 0, 0]
    assert all(x.dtype == np.int32 for x in jax.tree.leaves([found["events"], reader, found["target"]]))


def test_a_window_in_the_middle_keeps_the_clock_of_the_user():
    log = SmallLog([user(range(1, 10))], 20)
    found = example(log, configure(max_history=3), (0, 4, 7))
    assert found["events"].item.tolist() == [5, 6, 7]
    assert found["events"].time.tolist() == [240, 300, 360]
    assert found["retrieval"].visible.tolist() == [0, 1, 2]
    assert found["target"].tolist() == [0, 6, 7]


def test_a_first_event_with_a_query_is_a_target():
    found = example(SmallLog([user([5, 6], query=[3, 0])], 10), configure(), (0, 0, 2))
    assert found["target"].tolist() == [5, 6, 0, 0, 0, 0]


def test_no_reader_sees_its_own_request():
    log = SmallLog([user([1, 2, 3, 4, 5, 6, 7], request=[1, 1, 2, 3, 3, 3, 4])], 20)
    assert example(log, configure(), (0, 1, 7))["retrieval"].visible.tolist() == [0, 1, 2, 2, 2, 5]
    assert example(log, configure(), (0, 1, 7))["target"].tolist() == [0, 3, 4, 5, 6, 7]
    assert example(log, configure(), (0, 4, 7))["retrieval"].visible.tolist() == [0, 0, 2, 0, 0, 0]


def test_windows_without_and_with_a_stride():
    make = lambda stop, stride: examples.train_windows(np.array([stop]), np.array([1]), 4, stride)[:, 1:].tolist()
    assert make(10, 0) == [[6, 10]]
    assert make(10, 2) == [[6, 10], [4, 8], [2, 6], [0, 4]]
    assert make(9, 3) == [[5, 9], [2, 6], [0, 3]]
    assert make(3, 2) == [[0, 3]]
    assert make(5, 4) == [[1, 5]]  # the first event alone is no window


def test_a_user_without_a_training_target_has_no_window():
    records = [user([1]), user([1], query=[1]), user([0, 0], query=[1, 2]), user([1, 2], request=[1, 1]), user([1, 2])]
    split = only_training(SmallLog(records, 10))
    assert examples.train_windows(split.train_stop, split.first_target, 6, 0)[:, 0].tolist() == [1, 4]


def test_events_too_far_apart_are_refused():
    log = SmallLog([user([1, 2, 3], time=[0, 1, 2**31])], 10)
    with pytest.raises(UserError, match=r"'u'.*68 years"):
        example(log, configure(), (0, 0, 3))
    assert example(log, configure(), (0, 0, 2))["events"].time[1] == 1


# --- the stream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [0, 3])
def test_an_epoch_covers_each_window_once(stride):
    log = random_log(1)
    config = configure(batch=3, stride=stride, rank_events=0)
    split = splits.split(log, config.data)
    rows = examples.train_windows(split.train_stop, split.first_target, 6, stride)
    by_content = {}
    for user_, start, stop in rows.tolist():
        events = windows.window(log[user_], start, stop, 6)
        by_content[events.item.tobytes() + events.time.tobytes()] = (user_, start, stop)
    assert len(by_content) == len(rows), "the windows of this log can be told apart"
    # Three epochs are a whole number of batches; batches run across epochs.
    found = [
        by_content[item.tobytes() + time.tobytes()]
        for batch in take(log, config, len(rows))
        for item, time in zip(batch.events.item, batch.events.time)
    ]
    epochs = [found[i : i + len(rows)] for i in range(0, 3 * len(rows), len(rows))]
    assert all(sorted(epoch) == sorted(map(tuple, rows.tolist())) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "each epoch has an order of its own"


@pytest.mark.parametrize("pack", [False, True])
def test_crops_move_all_windows_but_the_last_to_either_side_by_half_a_stride(pack):
    log = SmallLog([user(np.arange(1, 40), name="long"), user([1, 2, 3, 4], name="short")], 40)
    config = configure(max_history=8, stride=6, crop=True, pack=pack, batch=2, rank_events=3)
    starts = [set() for _ in range(5)]  # of the long user's whole windows, from the last one; the items tell the places
    for batch in take(log, config, 200):
        first = batch.events.first if pack else np.zeros_like(batch.events.item)
        for item, begin in zip(batch.events.item, first):
            if (begin == 0).all() and (item > 0).all():
                starts[(32 - item[0]) // 6].add(int(item[0]))
            assert (np.diff(item)[(item[1:] > 0) & (begin[1:] == begin[:-1])] == 1).all()
    # 37 events train, places 1 .. 37: windows of eight begin at 30, 24, 18, 12 and 6, one of seven at 1.
    assert starts[0] == {30}
    for number, whole in enumerate((24, 18, 12, 6), start=1):
        assert starts[number] == set(range(whole - 3, whole + 3))
    with pytest.raises(UserError, match=r"data.crop moves windows by half of data.stride, which is 0"):
        configs.from_dict({"data": {"crop": True}})


@pytest.mark.parametrize("pack", [False, True])
def test_crops_leave_no_event_with_less_than_half_of_the_targets_of_the_others(pack):
    log = SmallLog([user(np.arange(1, 43), name="long")], 43)
    config = configure(max_history=8, stride=8, crop=True, pack=pack, batch=5, rank_events=0)
    epochs = 400
    met = np.zeros(43)
    for batch in take(log, config, epochs):  # five windows of 40 events an epoch: one batch
        np.add.at(met, batch.events.item, 1)
    often = met[1:41] / epochs  # by place
    assert (often[32:] >= 1).all(), "the last window stays"
    np.testing.assert_allclose(often[8:28], 1, atol=0.1)
    # Of eight moves, -4 .. 3, the window before the last one covers its last event with 0 .. 3, the one before with -1, too.
    np.testing.assert_allclose(often[28:32], [7 / 8, 6 / 8, 5 / 8, 4 / 8], atol=0.1)
    np.testing.assert_allclose(often[32:36], [1 + 3 / 8, 1 + 2 / 8, 1 + 1 / 8, 1], atol=0.1)
    # The first window stays within the user's events, and the second one reaches into it.
    np.testing.assert_allclose(often[:4], [5 / 8, 6 / 8, 7 / 8, 1], atol=0.1)
    np.testing.assert_allclose(often[4:8], [1 + 1 / 8, 1 + 2 / 8, 1 + 3 / 8, 1 + 4 / 8], atol=0.1)


def test_fewer_windows_than_a_batch():
    batch = take(SmallLog([user(range(1, 6)), user(range(2, 9))], 10), configure(batch=8), 2)[1]
    assert batch.events.item.shape == (8, 6)
    assert set(batch.events.item[:, 0].tolist()) == {1, 2}


def test_the_shapes_of_a_batch():
    batch = take(random_log(), configure(negatives=7), 1)[0]
    assert batch.events.item.shape == batch.retrieval.visible.shape == batch.target.shape == (4, 6)
    assert batch.ranking.item.shape == (4, 2, 4)
    assert batch.ranking.label.shape == (4, 2, 4, 2)
    assert batch.ranking.time.shape == (4, 2)
    assert batch.negatives.shape == (7,)
    assert batch.ranking.label.dtype == np.int8
    assert {x.dtype.name for x in jax.tree.leaves(batch)} == {"int32", "int8"}


def test_a_batch_without_ranking():
    batch = take(random_log(), configure(rank_events=0), 1)[0]
    assert batch.ranking.item.shape == (4, 0, 4)
    assert batch.ranking.label.shape == (4, 0, 4, 2)
    assert batch.negatives.shape == (0,)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another_one():
    log = random_log()
    same(take(log, configure(negatives=5), 3), take(log, configure(negatives=5), 3))
    other = take(log, configure(negatives=5, seed=1), 1)[0]
    first = take(log, configure(negatives=5), 1)[0]
    assert not np.array_equal(first.events.item, other.events.item)
    assert not np.array_equal(first.negatives, other.negatives)


@pytest.mark.parametrize("step", [1, 7, 40])
def test_beginning_at_a_step_equals_skipping_to_it(step):
    log, config = random_log(), configure(negatives=5)
    split = splits.split(log, config.data)
    with contextlib.closing(feed.train_feed(log, split, config)(0)) as batches:
        same(list(itertools.islice(batches, step, step + 2)), take(log, config, 2, step))


@pytest.mark.parametrize(
    ("workers", "more"),
    [(1, {"rank_events": 0}), (3, {"negatives": 5})],  # arrays without elements travel between processes as well
)
def test_any_number_of_workers_gives_the_same_stream(workers, more):
    log = random_log()
    same(take(log, configure(**more), 7, 2), take(log, configure(workers=workers, **more), 7, 2))


@pytest.mark.parametrize(("processes", "pack"), [(2, False), (4, False), (8, False), (2, True)])
def test_blocks_of_the_processes_make_up_the_global_batch(processes, pack):
    """Across epochs and from any step on: the loss curve must not depend on the number of processes."""
    log, config = random_log(), configure(negatives=5, batch=8, pack=pack)
    for step in (0, 3):
        whole = take(log, config, 4, step)
        blocks = [take(log, config, 4, step, process=p, processes=processes) for p in range(processes)]
        for batch, *parts in zip(whole, *blocks, strict=True):
            for name in ("events", "retrieval", "target", "ranking"):
                joined = jax.tree.map(lambda *x: np.concatenate(x), *(getattr(part, name) for part in parts))
                same(joined, getattr(batch, name))
            for part in parts:
                same(part.negatives, batch.negatives)


def test_a_process_reads_its_own_examples_alone():
    """With what is read ahead it reads less than two global batches hold; each batch is a fourth of one."""
    log, read = random_log(users=400, longest=8, least=4), []

    class Watched(SmallLog):
        def __getitem__(self, user):
            read.append(user)
            return super().__getitem__(user)

    config = configure(batch=80)
    make = feed.train_feed(
        Watched(log.records, log.spec.items), only_training(log), config, np.ones(log.spec.items), 1, 4
    )
    read.clear()
    with contextlib.closing(make(0)) as batches:
        assert len(next(batches).target) == 20
    assert 20 <= len(read) < 160


def test_evaluation_blocks_make_up_each_batch():
    """All blocks have equally many batches of one shape; the last batch is padded to a multiple of the parts."""
    log, config = random_log(users=21), configure({"batch": 5, "rank_candidates": 4})
    targets = feed.evaluation_feed(log, splits.split(log, config.data), "test", config)
    whole = list(targets.shared(4, 0, 1))
    assert all(len(batch.user) == 8 for batch in whole) and len(whole) * 8 - targets.targets >= 3
    blocks = [list(targets.shared(4, block, 4)) for block in range(4)]
    assert {len(mine) for mine in blocks} == {len(whole)}
    assert any((mine[-1].user < 0).all() for mine in blocks)
    for batch, *parts in zip(whole, *blocks, strict=True):
        same(jax.tree.map(lambda *x: np.concatenate(x), *parts), batch)
    real = lambda batches: np.concatenate([batch.user[batch.user >= 0] for batch in batches])
    np.testing.assert_array_equal(real(whole), real(targets))


def test_what_cannot_be_fed_is_refused():
    log = random_log()
    split = splits.split(log, DataConfig())
    for config, more, word in (
        (configure(batch=5), {"processes": 2}, "divisible"),
        (configure(seed=-1), {}, "seed"),
        (configure(seed=2**32), {}, "seed"),
    ):
        with pytest.raises(UserError, match=word):
            feed.train_feed(log, split, config, **more)
    lonely = SmallLog([user([1]), user([2])], 10)
    with pytest.raises(UserError, match="small"):
        feed.train_feed(lonely, only_training(lonely), configure())


class Broken(SmallLog):
    """A log of which one record cannot be read."""

    def __getitem__(self, number):
        if number == 3:
            raise UserError("record 3 is damaged")
        return super().__getitem__(number)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_record_reaches_the_caller(workers):
    whole = random_log(least=8)
    split = splits.split(whole, DataConfig())
    log = Broken(whole.records, whole.spec.items)
    batches = feed.train_feed(log, split, configure(workers=workers), examples.catalogue(whole, split).counts)(0)
    with contextlib.closing(batches), pytest.raises(UserError, match="record 3 is damaged"):
        list(itertools.islice(batches, 20))


class Deadly(SmallLog):
    """A log whose reading kills the process that reads it, unless it is the one that made the log."""

    home = 0

    def __getitem__(self, number):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


def test_a_killed_worker_is_an_error_and_no_hang():
    whole = random_log()
    log = Deadly(whole.records, whole.spec.items)
    log.home = os.getpid()
    batches = feed.train_feed(log, splits.split(log, DataConfig()), configure(workers=1))(0)
    with contextlib.closing(batches), pytest.raises(RuntimeError, match=r"exit code -9|terminated"):
        next(batches)


PROGRAM = """
import multiprocessing, sys
sys.path[:0] = {paths!r}
from small_log import random_log
from data_pipelines.feed import examples, feed, splits
from synergen_jax.config import Config, DataConfig

def main():
    config = Config(data=DataConfig(batch=2, workers=1))
    log = random_log()
    make = feed.train_feed(log, splits.split(log, config.data), config)
    batches = make(0)
    next(batches)
    print("running", len(multiprocessing.active_children()))
    del batches
    print("left", len(multiprocessing.active_children()))
    forgotten = make(0)  # the program ends with this one open
    next(forgotten)

if __name__ == "__main__":
    main()
"""


def test_workers_end_with_the_iterator_and_with_the_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(paths=[p for p in sys.path if p]))
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["running 1", "left 0", ""]
    assert "leaked" not in done.stderr


def test_workers_end_with_a_program_that_is_killed(tmp_path):
    killed = "print(multiprocessing.active_children()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    program = PROGRAM.format(paths=[p for p in sys.path if p]).replace("del batches", f"import os, signal; {killed}")
    (tmp_path / "program.py").write_text(program)
    # No pipe: the worker would hold its other end.
    with (tmp_path / "said").open("w") as said:
        subprocess.run([sys.executable, tmp_path / "program.py"], stdout=said, stderr=said, timeout=60)
    worker = int((tmp_path / "said").read_text().splitlines()[1])
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(worker, 0)
            time.sleep(0.05)


# --- negatives and candidates ---------------------------------------------------------------------------------


def test_negatives_are_items_drawn_anew_for_each_batch():
    batches = take(random_log(items=6), configure(negatives=200), 3)
    for batch in batches:
        assert set(batch.negatives.tolist()) == {1, 2, 3, 4, 5}
    assert not np.array_equal(batches[0].negatives, batches[1].negatives)


def test_candidates_of_an_event_worked_by_hand():
    # Items 1 .. 7 of which the user has 1 .. 4, the later ones outside of the window: 5, 6, 7 are left.
    log = SmallLog([user([1, 2, 3, 4], action=[1, 3, 2, 1])], 8)
    config = configure(max_history=2, rank_events=3)
    found = example(log, config, (0, 0, 2))["ranking"]
    assert found.item[0, 0] == 2
    assert sorted(found.item[0, 1:].tolist()) == [5, 6, 7]
    assert found.label[0].tolist() == [[1, 1], [0, -1], [0, -1], [0, -1]]  # nobody knows if the others are liked
    assert (found.query[0], found.time[0], found.visible[0]) == (0, 60, 1)
    # The other event is no target; what is missing is item 0, label -1.
    assert not found.item[1:].any()
    assert np.all(found.label[1:] == -1)
    assert example(log, config, (0, 1, 3))["ranking"].label[0, 0].tolist() == [1, 0]  # a click engages, is no like
    assert example(log, config, (0, 2, 4))["ranking"].label[0, 0].tolist() == [0, 0]  # a mere view is neither


def test_candidates_of_a_shown_list_worked_by_hand():
    shown = [(1, 6, 0), (2, 8, 0), (2, 2, 2), (2, 9, 1), (2, 7, 3)]
    log = SmallLog([user([1, 2], shown=shown)], 10)
    found = example(log, configure(rank_candidates=6), (0, 0, 2))["ranking"]
    labels = dict(zip(found.item[0].tolist(), found.label[0].tolist()))
    assert found.item[0, 0] == 2
    assert labels == {2: [1, 0], 8: [0, 0], 9: [0, 0], 7: [1, 1], 0: [-1, -1]}
    fewer = [example(log, configure(rank_candidates=3), (0, 0, 2), i)["ranking"].item[0].tolist() for i in range(40)]
    assert {item[0] for item in fewer} == {2}
    assert {frozenset(item[1:]) for item in fewer} == {frozenset(x) for x in [(7, 8), (7, 9), (8, 9)]}


def test_a_catalogue_too_small_for_the_list():
    log = SmallLog([user([1, 2, 3])], 5)
    found = example(log, configure(), (0, 0, 3))["ranking"]
    assert found.item[:, 1:].tolist() == [[4, 0, 0], [4, 0, 0]]
    assert found.label[0, 1:].tolist() == [[0, -1], [-1, -1], [-1, -1]]


def test_ranked_events_are_targets_drawn_without_replacement():
    log = SmallLog([user(range(1, 7))], 40)
    drawn = [example(log, configure(), index=i)["ranking"].item[:, 0].tolist() for i in range(200)]
    assert all(len(set(pair)) == 2 for pair in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=7)
    assert counts[:2].tolist() == [0, 0], "the first event is no target"
    assert np.all(np.abs(counts[2:] - 80) < 30), counts


def test_sampled_items_are_distinct_uniform_and_not_had():
    rng = np.random.default_rng(0)
    had = np.array([0, 2, 5])
    drawn = [windows.sample_unseen(rng, np.arange(1, 12), had, 4) for _ in range(2000)]
    assert all(len(set(row.tolist())) == 4 for row in drawn)
    counts = np.bincount(np.ravel(drawn), minlength=12)
    assert not counts[had].any()
    left = np.delete(counts, had)
    assert np.all(np.abs(left - 2000 * 4 / 9) < 100), left
    everything = np.arange(1, 12)
    assert windows.sample_unseen(rng, np.arange(1, 12), everything, 4).tolist() == []
    assert windows.sample_unseen(rng, np.arange(1, 12), everything[:-1], 4).tolist() == [11]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stride", [0, 2])
def test_what_a_reader_can_see_came_before_its_request(seed, stride):
    """Over random logs: no reader and no ranked event sees its own event, its own request, or anything later."""
    log = random_log(seed)
    config = configure(batch=1, stride=stride, rank_events=3)
    split = splits.split(log, config.data)
    table = windows.label_table(log)
    targets = 0
    for index, place in enumerate(examples.train_windows(split.train_stop, split.first_target, 6, stride)):
        user_, start, stop = place.tolist()
        record = log[user_]
        assert stop <= split.train_stop[user_], "nothing but training events is in a training window"
        found = examples.example(log, np.arange(1, log.spec.items), table, split.train_stop, config, index, place)
        n, visible = stop - start, found["retrieval"].visible
        for i in range(n):
            assert 0 <= visible[i] <= i
            seen = slice(start, start + visible[i])
            assert record["request"][start + i] not in record["request"][seen]
            assert np.all(record["time"][seen] <= record["time"][start + i])
            hidden = record["request"][start + visible[i] : start + i]
            assert np.all(hidden == record["request"][start + i]), "nothing else is hidden"
        for i, asked in enumerate(found["retrieval"].time[:n].tolist()):
            listed = record["request"][start + i] in record["shown_request"] and visible[i]
            told = start + visible[i] - 1 if listed else start + i
            assert asked == record["time"][told] - record["time"][0], "a list was shown before something was chosen"
        assert not visible[n:].any()
        assert not found["target"][n:].any()
        known = (visible > 0) | (found["events"].query > 0)
        assert np.array_equal(found["target"], np.where(known, found["events"].item, 0))
        ranking = found["ranking"]
        ranked = np.flatnonzero(ranking.item[:, 0])
        assert len(ranked) == min(3, np.count_nonzero(found["target"]))
        for row in ranked:
            at = np.flatnonzero(
                (found["target"] == ranking.item[row, 0])
                & (visible == ranking.visible[row])
                & (found["retrieval"].time == ranking.time[row])
                & (found["events"].query == ranking.query[row])
            )
            assert len(at), "a ranked event asks at its own time, with its own query and its own view"
            request = record["request"][start + at[0]]
            others = ranking.item[row, 1:][ranking.item[row, 1:] > 0]
            assert len(set(others.tolist())) == len(others)
            if request in record["shown_request"]:
                assert np.isin(others, record["shown_item"][record["shown_request"] == request]).all()
            else:
                assert not np.isin(others, record["item"][: split.train_stop[user_]]).any()
        targets += np.count_nonzero(found["target"])
    assert targets > 50


# --- evaluation -----------------------------------------------------------------------------------------------


def test_an_evaluation_batch_worked_by_hand():
    log = SmallLog(
        [user([1]), user([3, 4, 5, 6, 7, 8, 9, 10], query=[0, 0, 0, 0, 0, 0, 2, 1]), user([1, 2, 3])], 12, queries=3
    )
    config = configure({"batch": 4, "rank_candidates": 4})
    split = splits.split(log, config.data)
    found = feed.evaluation_feed(log, split, "test", config)
    assert (found.targets, found.repeated, len(found)) == (2, 0, 1)
    (batch,) = found
    assert batch.user.tolist() == [1, 2, -1, -1]
    assert batch.target.tolist() == [10, 3, 0, 0]
    assert batch.events.item.tolist() == [[4, 5, 6, 7, 8, 9], [1, 2, 0, 0, 0, 0], [0] * 6, [0] * 6]
    assert batch.events.time[0].tolist() == [60, 120, 180, 240, 300, 360]
    assert batch.reader.item.tolist() == [[0]] * 4
    assert batch.reader.query.tolist() == [[1], [0], [0], [0]]
    assert batch.reader.time.tolist() == [[420], [120], [0], [0]]
    assert batch.reader.visible.tolist() == [[6], [2], [0], [0]]
    assert batch.seen.shape == (4, 16)
    assert batch.seen[0].tolist() == [3, 4, 5, 6, 7, 8, 9] + [0] * 9  # 3 has left the window, and was had
    assert batch.seen[1].tolist() == [1, 2] + [0] * 14
    assert not batch.seen[2:].any()
    assert batch.ranking.item.shape == (4, 1, 4)
    assert batch.ranking.item[0, 0, 0] == 10
    assert sorted(batch.ranking.item[0, 0, 1:].tolist()) == [1, 2, 11]
    assert batch.ranking.label[0, 0].tolist() == [[1, 0], [0, -1], [0, -1], [0, -1]]
    assert not batch.ranking.item[2:].any()
    assert np.all(batch.ranking.label[2:] == -1)
    (batch,) = feed.evaluation_feed(log, split, "validation", config)
    assert batch.target.tolist() == [9, 2, 0, 0]
    assert batch.events.item[0].tolist() == [3, 4, 5, 6, 7, 8]
    assert batch.reader.query[0, 0] == 2


def test_an_item_that_was_had_before_is_no_target_when_seen_items_are_filtered():
    log = SmallLog([user([1, 2, 3, 1]), user([4, 5, 6])], 12)
    split = splits.split(log, DataConfig())
    filtered = feed.evaluation_feed(log, split, "test", configure())
    assert (filtered.targets, filtered.repeated) == (1, 1)
    kept = feed.evaluation_feed(log, split, "test", configure(filter_seen=False))
    assert (kept.targets, kept.repeated) == (2, 0)
    (batch,) = kept
    assert batch.target[:2].tolist() == [1, 6]
    assert not batch.seen.any()


def test_an_evaluation_reader_does_not_see_its_own_request():
    log = SmallLog([user([1, 2, 3, 4, 5, 6], request=[1, 2, 3, 4, 4, 4])], 12)
    config = configure()
    split = splits.split(log, config.data)
    for part, target in (("validation", 5), ("test", 6)):
        (batch,) = feed.evaluation_feed(log, split, part, config)
        assert batch.target[0] == target
        assert batch.reader.visible[0, 0] == 3
        assert batch.events.item[0].tolist() == [1, 2, 3, 0, 0, 0]
        assert batch.seen[0, :4].tolist() == [1, 2, 3, 0]


def test_an_evaluation_ranks_the_shown_list_where_there_is_one():
    log = SmallLog([user([1, 2, 3], shown=[(3, 7, 0), (3, 3, 2), (3, 1, 3)])], 12)
    config = configure({"rank_candidates": 5})
    (batch,) = feed.evaluation_feed(log, splits.split(log, config.data), "test", config)
    labels = dict(zip(batch.ranking.item[0, 0].tolist(), batch.ranking.label[0, 0].tolist()))
    assert batch.ranking.item[0, 0, 0] == 3
    assert labels == {3: [1, 0], 7: [0, 0], 1: [1, 1], 0: [-1, -1]}


def test_sampled_candidates_depend_on_the_seed_and_the_target_alone():
    log = random_log(least=5)
    lists = {}
    for size in (3, 8):
        config = configure({"batch": size, "rank_candidates": 6})
        found = feed.evaluation_feed(log, splits.split(log, config.data), "test", config)
        lists[size] = {u: r.tolist() for b in found for u, r in zip(b.user.tolist(), b.ranking.item) if u >= 0}
        again = {u: r.tolist() for b in found for u, r in zip(b.user.tolist(), b.ranking.item) if u >= 0}
        assert again == lists[size], "a feed can be iterated again"
    assert lists[3] == lists[8]

    def drawn(seed):
        twins = SmallLog([user([1, 2, 3]), user([1, 2, 3])], 400)
        config = configure({"rank_candidates": 20}, seed=seed)
        (batch,) = feed.evaluation_feed(twins, splits.split(twins, config.data), "test", config)
        return [frozenset(row[0].tolist()) for row in batch.ranking.item[:2]]

    assert len({*drawn(0), *drawn(1)}) == 4, "each seed and each user has a list of its own"


@pytest.mark.parametrize("kind", ["leave-one-out", "time"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_an_evaluation_sees_nothing_from_its_target_on(kind, filter_seen):
    log = random_log(5, users=40, items=400)
    config = configure({"batch": 7, "rank_candidates": 6}, split=kind, filter_seen=filter_seen)
    split = splits.split(log, config.data)
    for part in ("validation", "test"):
        found = feed.evaluation_feed(log, split, part, config)
        ranges = split.targets(part)
        assert found.targets + found.repeated == sum(
            np.count_nonzero(log[u]["item"][a:b]) for u, (a, b) in enumerate(ranges.tolist())
        )
        rows = [
            jax.tree.map(lambda x, i=i: x[i], batch)
            for batch in found
            for i in range(len(batch.user))
            if batch.user[i] >= 0
        ]
        assert len(rows) == found.targets
        assert [int(row.user) for row in rows] == [u for u, _ in found.places.tolist()]
        assert len({row.seen.shape for row in rows}) == 1, "one shape for all"
        for row, (u, event) in zip(rows, found.places.tolist()):
            record = log[u]
            stop = int(np.argmax(record["request"] == record["request"][event]))  # the first event of its request
            start = max(0, stop - 6)
            assert row.target == record["item"][event]
            assert row.events.item[: stop - start].tolist() == record["item"][start:stop].tolist()
            assert not row.events.action[stop - start :].any()
            assert row.reader.visible[0] == stop - start == row.ranking.visible[0]
            told = stop - 1 if record["request"][event] in record["shown_request"] and stop > start else event
            assert row.reader.time[0] == record["time"][told] - record["time"][0] == row.ranking.time[0]
            assert row.reader.query[0] == record["query"][event] == row.ranking.query[0]
            before = set(record["item"][:stop].tolist()) - {0, int(row.target)}
            seen = row.seen[row.seen > 0].tolist()
            assert seen == (sorted(before) if filter_seen else [])
            assert row.target == row.ranking.item[0, 0]
            if record["request"][event] not in record["shown_request"]:
                had = record["item"][: event + 1] if filter_seen else row.target
                assert not np.isin(row.ranking.item[0, 1:], had).any()


def test_a_list_is_read_when_it_was_shown_and_not_when_something_was_chosen():
    """A choice after 50 s or after 500 s: the reader is told neither."""
    shown = [(3, 4, 2), (3, 5, 0), (3, 8, 0)]
    found = []
    for after in (50, 500):
        log = SmallLog([user([1, 2, 4], request=[1, 2, 3], time=[0, 60, 60 + after], shown=shown)], 10)
        config = configure({"rank_candidates": 3}, rank_events=2)
        batch = examples.Targets.of(log, splits.split(log, config.data), "test", config).batch(0)
        trained = examples.example(
            log,
            np.arange(1, 10),
            windows.label_table(log),
            np.array([3]),
            config,
            0,
            np.array([0, 0, 3]),
        )
        assert trained["events"].time[:3].tolist() == [0, 60, 60 + after], "the events themselves keep their times"
        found.append((int(batch.reader.time[0, 0]), trained["retrieval"].time[:3].tolist()))
    assert found[0] == found[1] == (60, [0, 60, 60])


@pytest.mark.parametrize("kind", ["leave-one-out", "time"])
def test_a_validation_is_not_told_what_the_test_part_holds(kind):
    """A list that a validation and a test item were chosen from: the validation knows of the first one alone."""
    shown = [(3, 4, 2), (3, 5, 2), (3, 8, 0)]
    log = SmallLog([user([1, 2, 3, 4, 5], request=[1, 2, 2, 3, 3], shown=shown)], 10)
    times = {"validation_from": float(log[0]["time"][3]), "test_from": float(log[0]["time"][4])}
    config = configure({"rank_candidates": 3}, split=kind, **times)
    split = splits.split(log, config.data)
    labels = {}
    for part in ("validation", "test"):
        (batch,) = feed.evaluation_feed(log, split, part, config)
        labels[part] = dict(zip(batch.ranking.item[0, 0].tolist(), batch.ranking.label[0, 0, :, 0].tolist()))
    assert labels == {"validation": {4: 1, 5: -1, 8: -1}, "test": {5: 1, 4: 1, 8: 0}}


def test_no_target_left_is_refused():
    log = SmallLog([user([1, 1, 1])], 12)
    with pytest.raises(UserError, match="filter_seen"):
        feed.evaluation_feed(log, splits.split(log, DataConfig()), "test", configure())


# --- the rest -------------------------------------------------------------------------------------------------


def test_the_catalogue_counts_training_events():
    log = SmallLog([user([1, 2, 1, 0, 3, 4], query=[0, 0, 0, 1, 0, 0]), user([2])], 6)
    found = examples.catalogue(log, splits.split(log, DataConfig()))
    assert found.counts.tolist() == [0, 2, 2, 0, 0, 0]
    assert found.counts.dtype == np.int32
    assert found.item_matrices["text"] is log.item_matrices["text"]


def test_the_history_of_a_user():
    events, offset = examples.user_history(user(range(1, 9)), configure())
    assert events.item.tolist() == [[3, 4, 5, 6, 7, 8]]
    assert events.time.tolist() == [[120, 180, 240, 300, 360, 420]]
    assert offset == 1_000_000_000
    assert examples.user_history(user([5]), configure())[0].mask.tolist() == [[True] + [False] * 5]
    events, offset = examples.user_history(user(range(1, 9)), configure(), room=2)
    assert events.item.tolist() == [[5, 6, 7, 8, 0, 0]]
    assert (events.time[0, 0], offset) == (240, 1_000_000_000)
    for room in (-1, 6):
        with pytest.raises(UserError, match=f"room for {room} more events .* data.max_history = 6"):
            examples.user_history(user(range(1, 9)), configure(), room)


def test_training_never_meets_cold_items():
    log = random_log(users=30, least=6)
    config = configure(negatives=20)
    whole = splits.split(log, config.data)
    part, split = splits.hold_out(log, whole, 0.3, seed=0)
    cold = splits.cold_items(log, 0.3, seed=0)
    catalogue = examples.catalogue(part, split)
    assert not catalogue.counts[cold].any() and catalogue.counts.any()
    batches = feed.train_feed(part, split, config)(0)
    for _, batch in zip(range(6), batches):
        for ids in (batch.events.item, batch.target, batch.ranking.item, batch.negatives):
            assert not np.isin(ids, cold).any()
    batches.close()
    asked = feed.evaluation_feed(log, whole, "test", config)
    assert np.isin(np.concatenate([batch.target for batch in asked]), cold).any(), "evaluation does meet them"


def test_searches_that_are_asked_without_their_query():
    log = random_log(users=30, least=8)
    split = splits.split(log, configure().data)
    first = lambda share: next(feed.train_feed(log, split, configure(drop_query=share))(0))
    none, half, every = first(0.0), first(0.5), first(1.0)
    np.testing.assert_array_equal(none.retrieval.query, none.events.query)
    for batch in (half, every):
        np.testing.assert_array_equal(batch.events.query, none.events.query), "the context tells what was searched"
    asked = half.retrieval.query[none.events.query > 0]
    assert 0.2 < np.mean(asked > 0) < 0.8 and not every.retrieval.query.any() and not every.ranking.query.any()
    blind = (every.retrieval.visible == 0) & (every.target > 0)
    assert not blind.any(), "what had a query alone to go by is no target without it"


def test_recommendations_that_are_asked_with_a_query_that_led_to_their_item():
    log = random_log(users=30, least=8)
    split = splits.split(log, configure().data)
    first = lambda share: next(feed.train_feed(log, split, configure(lend_query=share))(0))
    none, half, every = first(0.0), first(0.5), first(1.0)
    led = [set() for _ in range(log.spec.items)]
    for number in range(len(log)):
        stop, record = split.train_stop[number], log[number]
        for item, query in zip(record["item"][:stop].tolist(), record["query"][:stop].tolist()):
            led[item].add(query)
    shares = []
    for batch in (half, every):
        np.testing.assert_array_equal(batch.events.query, none.events.query), "the context tells what was searched"
        own = none.events.query > 0
        np.testing.assert_array_equal(batch.retrieval.query[own], none.events.query[own])
        item, query = batch.events.item[~own], batch.retrieval.query[~own]
        assert all(q in led[i] or not q for i, q in zip(item.tolist(), query.tolist()))
        shares.append(np.mean(query[[bool(led[i] - {0}) for i in item.tolist()]] > 0))
    assert 0.3 < shares[0] < 0.7 and shares[1] == 1


def test_a_query_is_drawn_as_often_as_it_led_to_the_item():
    log = SmallLog([user([1, 1, 1, 1, 2, 3], query=[1, 1, 1, 2, 0, 3]), user([2, 1], query=[2, 2])], 9)
    lent = windows.queries_of_items(log, np.array([5, 1]))  # the last events of both are not trained on
    drawn = lent.draw(np.random.default_rng(0), np.array([1] * 4000 + [2, 3, 0, 8]))
    assert np.abs(np.bincount(drawn[:4000], minlength=3) / 4000 - [0, 0.75, 0.25]).max() < 0.03
    assert drawn[4000:].tolist() == [2, 0, 0, 0]


def test_a_packed_row_has_room_for_what_is_ranked_with_a_lent_query():
    """An event that nothing came before is ranked, too, once it is asked with a query."""
    log, config = random_log(users=30, least=8), configure(lend_query=1.0, rank_events=6)
    split = splits.split(log, config.data)
    made = examples.training(log, split, config)
    room = examples.ranked_events(log, made.rows, split.train_stop, config)
    ranked = [np.sum(made.make(n, row)["ranking"].item[:, 0] > 0) for n, row in enumerate(made.rows)]
    assert (ranked <= room).all()
    plain = configure(rank_events=6)
    assert (ranked > examples.ranked_events(log, made.rows, split.train_stop, plain)).any()
