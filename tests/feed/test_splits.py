"""Which events train, validate and test."""

import numpy as np
import pytest
from small_log import SmallLog, random_log, user

from data_pipelines.feed import examples, splits
from synergen_jax.config import Config, DataConfig
from synergen_jax.errors import UserError

LAST = DataConfig(split="leave-one-out")


def by_time(validation, test):
    return DataConfig(split="time", validation_from=validation, test_from=test)


def ranges(split):
    return [
        (int(stop), tuple(validation), tuple(test))
        for stop, validation, test in zip(split.train_stop, split.validation.tolist(), split.test.tolist())
    ]


def test_leave_one_out():
    made = splits.split(SmallLog([user([5, 6, 7, 8])], 10), LAST)
    assert ranges(made) == [(2, (2, 3), (3, 4))]


def test_leave_one_out_keeps_the_order_of_the_log_on_tied_times():
    made = splits.split(SmallLog([user([5, 6, 7, 8], time=[9, 9, 9, 9])], 10), LAST)
    assert ranges(made) == [(2, (2, 3), (3, 4))]


def test_leave_one_out_passes_over_searches_without_an_item():
    log = SmallLog([user([5, 6, 0, 7, 0, 8, 0], query=[0, 0, 1, 1, 2, 2, 3])], 10)
    assert ranges(splits.split(log, LAST)) == [(3, (3, 4), (5, 6))]


@pytest.mark.parametrize("item", [[1], [1, 2], [1, 0, 2, 0]])
def test_a_short_user_only_trains(item):
    log = SmallLog([user(item, query=[1] * len(item)), user([1, 2, 3])], 10)
    assert ranges(splits.split(log, LAST)) == [(len(item), (0, 0), (0, 0)), (1, (1, 2), (2, 3))]


BY_TASK = DataConfig(split="leave-one-out-by-task")


def test_by_task_the_last_of_each_task_tests_and_the_one_before_validates():
    #                     0  1  2  3  4  5  6  7   searches: 1, 3, 4, 7; recommendations: 0, 2, 5, 6
    log = SmallLog([user([1, 2, 3, 4, 5, 6, 7, 8], query=[0, 1, 0, 1, 1, 0, 0, 1])], 10)
    made = splits.split(log, BY_TASK)
    assert made.events("test", 0).tolist() == [6, 7] and made.events("validation", 0).tolist() == [4, 5]
    assert ranges(made) == [(4, (4, 6), (6, 8))]


def test_by_task_a_purchase_that_is_both_is_two_targets_that_do_not_see_each_other():
    item, query = np.repeat([1, 2, 3, 4], 2), np.tile([0, 5], 4)
    log = SmallLog(
        [user(item, query=query, request=np.repeat([1, 2, 3, 4], 2), time=np.repeat([1, 2, 3, 4], 2))], 10, 6
    )
    made = splits.split(log, BY_TASK)
    assert ranges(made) == [(4, (4, 6), (6, 8))]
    config = Config(data=BY_TASK)
    for part, seen in (("validation", [1, 2]), ("test", [1, 2, 3])):
        batch = examples.Targets.of(log, made, part, config).batch(0)
        real = batch.user >= 0
        assert batch.target[real].tolist() == [len(seen) + 1] * 2
        assert batch.reader.query[real, 0].tolist() == [0, 5]
        assert batch.reader.visible[real, 0].tolist() == [2 * len(seen)] * 2
        assert [np.unique(row[row > 0]).tolist() for row in batch.seen[real]] == [seen] * 2


def test_by_task_a_list_tells_of_its_own_target_alone():
    """The validation and the test search were chosen from one list, long before the last recommendation."""
    shown = [(4, 4, 2), (4, 5, 2), (4, 8, 0)]
    log = SmallLog(
        [user([1, 2, 3, 4, 5, 6, 7], query=[0, 1, 0, 1, 1, 0, 0], request=[1, 2, 3, 4, 4, 6, 7], shown=shown)], 10
    )
    made = splits.split(log, BY_TASK)
    assert made.events("validation", 0).tolist() == [3, 5] and made.events("test", 0).tolist() == [4, 6]
    batch = examples.Targets.of(log, made, "validation", Config(data=BY_TASK)).batch(0)
    items, labels = batch.ranking.item[0, 0], batch.ranking.label[0, 0, :, 0]
    told = dict(zip(items[:3].tolist(), labels[:3].tolist()))
    assert told == {4: 1, 5: -1, 8: -1}, "that the other one was chosen is what the test asks"


def test_by_task_training_ends_before_whatever_is_held_out():
    # The last searches lie long before the last recommendations: these are not trained on in between.
    log = SmallLog([user([1, 2, 3, 4, 5, 6, 7], query=[1, 1, 1, 0, 0, 0, 0]), user([1, 2, 3], query=[0, 1, 1])], 10)
    made = splits.split(log, BY_TASK)
    assert made.events("test", 0).tolist() == [2, 6] and made.events("validation", 0).tolist() == [1, 5]
    assert made.train_stop.tolist() == [1, 3], "a user with too few of either task trains alone"
    assert made.events("test", 1).tolist() == []


def test_by_time_in_seconds():
    # Seconds are counted from 1,000,000,000; the moment itself belongs to the later part.
    log = SmallLog([user([1, 2, 3, 4], time=[0, 10, 20, 30]), user([5], time=[25]), user([6], time=[5])], 10)
    made = splits.split(log, by_time(1_000_000_010.0, 1_000_000_025.0))
    assert ranges(made) == [(1, (1, 3), (3, 4)), (0, (0, 0), (0, 1)), (1, (1, 1), (1, 1))]


def test_by_time_as_a_share_is_a_quantile_over_all_events():
    log = SmallLog([user([1, 2, 3, 4], time=[0, 2, 4, 6]), user([1, 2, 3, 4, 5, 6], time=[1, 3, 5, 7, 8, 9])], 10)
    made = splits.split(log, by_time(0.5, 0.8))  # ten events at 0 .. 9: cut at 5 and at 8
    assert ranges(made) == [(3, (3, 4), (4, 4)), (2, (2, 4), (4, 6))]


def test_by_time_parts_cover_each_event_once():
    log = random_log(3, users=30)
    made = splits.split(log, by_time(0.6, 0.8))
    assert np.array_equal(made.train_stop, made.validation[:, 0])
    assert np.array_equal(made.validation[:, 1], made.test[:, 0])
    assert np.array_equal(made.test[:, 1], log.lengths)
    last = max(r["time"][s - 1] for r, s in zip(log.records, made.train_stop) if s)
    first = min(r["time"][s] for r, s in zip(log.records, made.train_stop) if s < len(r["time"]))
    assert last < first, "no user trains on what another one does after the moment"
    assert np.all(made.first_target <= made.train_stop)
    assert np.any(made.first_target < made.train_stop)
    share = made.train_stop.sum() / log.lengths.sum()
    assert abs(share - 0.6) < 0.05


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (by_time(0.5, 2e9), "test_from, the moment 2000000000, cuts nothing"),
        (by_time(7e8, 1_000_000_060), "validation_from, the moment 700000000, cuts nothing"),
        (
            by_time(0.5, 1_000_000_100_000),
            "test_from, the moment 1000000100000, cuts nothing.* 1000000000 to 1000000420",
        ),
        (by_time(0.2, 0.21), "no validation events"),
        (by_time(0.0, 0.5), "validation_from 0.0 is neither"),
        (by_time(-0.5, 0.5), "validation_from -0.5 is neither"),
        (
            by_time(0.5, 1.0),
            r"test_from 1.0 is neither a share .* below 1, nor a moment in Unix seconds, from 631152000 ",
        ),
        (by_time(0.5, 90), "test_from 90 is neither"),
        (by_time(2.0, 1_000_000_100), "validation_from 2.0 is neither"),
        (by_time(0.5, float("inf")), "test_from inf is neither"),
        (by_time(0.5, float("nan")), "test_from nan is neither"),
        (by_time(0.9, 1_000_000_001.0), "lies after data.test_from"),
    ],
)
def test_a_split_that_means_nothing_or_leaves_a_part_empty_is_refused(config, word):
    with pytest.raises(UserError, match=word):
        splits.split(SmallLog([user(range(1, 9))], 10), config)


def test_moments_and_shares_cut_where_they_say():
    log = SmallLog([user(range(1, 9))], 10)  # an event a minute from 1,000,000,000 on
    assert ranges(splits.split(log, by_time(0.5, 0.75))) == [(4, (4, 6), (6, 8))]
    assert ranges(splits.split(log, by_time(1_000_000_240, 1_000_000_360))) == [(4, (4, 6), (6, 8))]
    # What happens at a moment comes after it, and half a second later does not.
    assert ranges(splits.split(log, by_time(1_000_000_240.5, 1_000_000_360))) == [(5, (5, 6), (6, 8))]


def test_nothing_to_test_is_refused():
    with pytest.raises(UserError, match="validation"):
        splits.split(SmallLog([user([1, 2]), user([3])], 10), LAST)


@pytest.mark.parametrize("config", [LAST, by_time(0.5, 0.8)])
def test_an_empty_log_is_refused(config):
    with pytest.raises(UserError):
        splits.split(SmallLog([], 10), config)


def test_the_first_event_of_each_request():
    found = splits.first_of_request(np.array([1, 1, 2, 0, 0, 3, 3, 3]))
    assert found.tolist() == [0, 0, 2, 3, 4, 5, 5, 5]
    assert splits.first_of_request(np.zeros(0, np.int32)).tolist() == []


def test_the_first_training_event_that_has_a_target():
    records = [
        user([1, 2, 3, 4]),  # 1: nothing is known to the first event
        user([1, 2, 3, 4], query=[1, 0, 0, 0]),  # 0: its query is known
        user([1, 2, 3, 4, 5], request=[1, 1, 1, 2, 3]),  # none: the whole of training is one request
        user([0, 0, 3, 4, 5], query=[1, 1, 1, 0, 0]),  # 2: the searches before it have no item
        user([7]),  # none: a single event
        user([7], query=[1]),  # 0
    ]
    made = splits.split(SmallLog(records, 10), LAST)
    assert made.train_stop.tolist() == [2, 2, 3, 3, 1, 1]
    assert made.first_target.tolist() == [1, 0, 3, 2, 1, 0]


def test_held_out_items_are_in_no_training_event_and_all_else_stays():
    log = random_log(users=30, least=5)
    whole = splits.split(log, DataConfig())
    part, split = splits.hold_out(log, whole, 0.2, seed=3)
    cold = splits.cold_items(log, 0.2, seed=3)
    assert len(cold) == round(0.2 * 39) and cold.min() > 0
    for number in range(len(log)):
        record, full = part[number], log[number]
        stop = whole.train_stop[number]
        keep = ~np.isin(full["item"][:stop], cold)
        assert split.train_stop[number] == len(record["item"]) == keep.sum()
        for name in ("item", "action", "query", "time", "request"):
            np.testing.assert_array_equal(record[name], full[name][:stop][keep])
        assert not np.isin(record["shown_item"], cold).any()
        assert split.first_target[number] <= split.train_stop[number]
    assert (splits.cold_items(log, 0.2, seed=4) != cold).any()
    assert splits.hold_out(log, whole, 0.0, seed=3) == (log, whole)


def test_a_held_out_part_knows_nothing_of_a_request_behind_the_split():
    """Its records end with training, so that nothing but the part itself can tell that a request went on."""
    shown = [(1, 1, 2), (1, 9, 0), (3, 4, 2), (3, 5, 2), (3, 6, 2), (3, 8, 0)]
    log = SmallLog([user([1, 2, 3, 4, 5, 6], request=[1, 2, 2, 3, 3, 3], shown=shown)], 10)
    whole = splits.split(log, LAST)
    assert whole.train_stop.tolist() == [4]
    for seed in range(20):
        part, _ = splits.hold_out(log, whole, 0.12, seed)
        record = part[0]
        known = dict(
            zip(zip(record["shown_request"].tolist(), record["shown_item"].tolist()), record["shown_action"].tolist())
        )
        wanted = {(1, 1): 2, (1, 9): 0, (3, 4): 2, (3, 5): -1, (3, 6): -1, (3, 8): -1}
        assert len(known) >= 5 and known.items() <= wanted.items()
