"""Which events train, validate and test."""

import dataclasses

import numpy as np
import pytest
from small_feed import take
from small_log import SmallLog, random_log, user

from data_pipelines.feed import examples, splits, windows
from synergen_jax.config import Config, DataConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import neighbours

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


# --- all events train -------------------------------------------------------------------------------------------

NONE = DataConfig(split="none", max_history=6, batch=4, rank_events=0)


def test_none_trains_on_all_events_and_has_no_target():
    log = SmallLog([user([5, 6, 7, 8]), user([1]), user([0, 2], query=[1, 1])], 10)
    made = splits.split(log, NONE)
    assert ranges(made) == [(4, (0, 0), (0, 0)), (1, (0, 0), (0, 0)), (2, (0, 0), (0, 0))]
    assert made.first_target.tolist() == [1, 1, 1]
    for part in ("validation", "test"):
        with pytest.raises(UserError, match=f"no {part} target is left"):
            examples.Targets.of(log, made, part, Config(data=NONE))


def test_none_has_the_last_event_of_each_user_as_a_target_of_training():
    """Each user's last item comes nowhere else."""
    log = SmallLog([user([1, 2, 3, 10 + u], name=f"u{u}") for u in range(8)], 20)
    batches = take(log, Config(data=NONE), 2)
    targets = {int(item) for batch in batches for item in np.asarray(batch.target).ravel()}
    assert set(range(10, 18)) <= targets
    before = take(log, Config(data=dataclasses.replace(NONE, split="leave-one-out")), 2)
    assert not {int(i) for batch in before for i in np.asarray(batch.target).ravel()} & set(range(10, 18))
    assert examples.catalogue(log, splits.split(log, NONE)).counts[10:18].tolist() == [1] * 8


def test_none_of_a_log_without_events_is_refused():
    with pytest.raises(UserError, match="the none split leaves no training events"):
        splits.split(SmallLog([], 10), NONE)


# --- the last days ----------------------------------------------------------------------------------------------


def last_days(validation, test):
    return DataConfig(split="last-days", validation_days=validation, test_days=test)


def days(*those):
    return [round(day * 86_400) for day in those]


def test_last_days_are_counted_back_from_the_last_event_and_a_moment_belongs_to_what_is_later():
    log = SmallLog([user([1, 2, 3, 4, 5], time=days(0, 5, 6, 8, 10)), user([6], time=days(7.99))], 10)
    # Test from day 8 on, validation from day 6 on.
    assert ranges(splits.split(log, last_days(2.0, 2.0))) == [(2, (2, 3), (3, 5)), (0, (0, 1), (1, 1))]
    assert ranges(splits.split(log, last_days(1.5, 2.5))) == [(2, (2, 3), (3, 5)), (0, (0, 0), (0, 1))]


def test_last_days_are_the_split_by_time_at_these_moments():
    log = random_log(3, users=30)
    first, last = (function(r["time"][i] for r in log.records) for function, i in ((min, 0), (max, -1)))
    day = (last - first) / 86_400
    made = splits.split(log, last_days(0.2 * day, 0.1 * day))
    same = splits.split(log, by_time(float(last - 0.3 * day * 86_400), float(last - 0.1 * day * 86_400)))
    assert ranges(made) == ranges(same) and np.array_equal(made.first_target, same.first_target)


def test_days_that_reach_back_to_the_first_event_are_refused():
    log = SmallLog([user([1, 2, 3, 4], time=days(0, 5, 6, 9.5))], 10)
    wanted = (
        "validation_days 7 and data.test_days 2.5 reach back 9.5 days .* events of small go over 9.5 days: .* fewer"
    )
    with pytest.raises(UserError, match=wanted):
        splits.split(log, last_days(7.0, 2.5))
    with pytest.raises(UserError, match="reach back 14 days"):
        splits.split(log, DataConfig(split="last-days"))
    with pytest.raises(UserError, match="the last-days split leaves no validation events"):
        splits.split(log, last_days(0.5, 2.0))


# --- users whom training does not meet --------------------------------------------------------------------------

BY_USER = DataConfig(split="by-user", held_users=0.25, max_history=6, batch=4, rank_events=0)


def own_items(users=8, length=5, **more):
    """Users of whom none has an item of another one: `10 u + 1 ...`; and one query each."""
    items = [np.arange(length) + 10 * u + 1 for u in range(users)]
    return SmallLog(
        [user(mine, name=f"u{u}", query=[0] * (length - 1) + [u + 1], **more) for u, mine in enumerate(items)],
        10 * users + 10,
        users + 1,
    )


def held(split, part):
    return np.flatnonzero(np.diff(split.targets(part))[:, 0]).tolist()


def test_by_user_a_share_of_users_is_held_out_wholly_and_as_many_test():
    log = own_items()
    made = splits.split(log, BY_USER)
    validation, test = held(made, "validation"), held(made, "test")
    assert len(validation) == len(test) == 2 and not set(validation) & set(test)
    for number, row in enumerate(ranges(made)):
        wanted = {True: (0, (4, 5), (0, 0))}.get(number in validation, (5, (0, 0), (0, 0)))
        assert row == ((0, (0, 0), (4, 5)) if number in test else wanted)
    assert (made.first_target <= made.train_stop).all()
    again = splits.split(log, dataclasses.replace(BY_USER, seed=0))
    assert ranges(again) == ranges(made)
    drawn = {tuple(held(splits.split(log, dataclasses.replace(BY_USER, seed=seed)), "test")) for seed in range(8)}
    assert len(drawn) > 1, "the seed draws them"


def test_by_user_nothing_of_a_held_out_user_trains():
    log = own_items()
    made = splits.split(log, BY_USER)
    out = held(made, "validation") + held(made, "test")
    theirs = {int(item) for number in out for item in log[number]["item"]}
    data = dataclasses.replace(BY_USER, negatives=16, rank_events=2, lend_query=0.5)
    met = set()
    for batch in take(log, Config(data=data), 12):
        parts = (batch.events.item, batch.target, batch.negatives, batch.ranking.item)
        met |= {int(item) for part in parts for item in np.asarray(part).ravel()}
        assert not np.isin(batch.retrieval.query, [number + 1 for number in out]).any()
    assert not met & theirs and len(met) > 4 * 5
    known = examples.catalogue(log, made)
    assert not known.counts[list(theirs)].any() and known.counts.sum() == 4 * 5
    assert not known.query_counts[[number + 1 for number in out]].any() and known.query_counts.sum() == 4
    assert set(windows.trained(log, made.train_stop, "query")[0].tolist()).isdisjoint(out)
    assert not examples.recent_counts(log, made, 1.0)[list(theirs)].any()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_by_user_the_context_is_what_came_before_the_target(part):
    log = own_items()
    made = splits.split(log, BY_USER)
    batch = examples.Targets.of(log, made, part, Config(data=BY_USER)).batch(0)
    real = np.flatnonzero(batch.user >= 0)
    assert batch.user[real].tolist() == held(made, part)
    for row in real:
        item = log[int(batch.user[row])]["item"]
        assert batch.target[row] == item[-1] and batch.reader.visible[row, 0] == 4
        assert batch.events.item[row].tolist() == [*item[:4], 0, 0]
        assert sorted(batch.seen[row][batch.seen[row] > 0]) == item[:4].tolist(), "what is filtered is what is seen"


def test_by_user_neighbours_are_users_of_training_by_what_a_held_out_user_had():
    """All have the same items but for the last one, which training has of the users that it meets alone."""
    log = SmallLog([user([1, 2, 3, 4 + u % 2], name=f"u{u}") for u in range(8)], 10)
    made = splits.split(log, BY_USER)
    who, item, _ = windows.trained(log, made.train_stop, "query")
    near = neighbours.UserNeighbours(neighbours.user_items(who, item, (8, 10)), 100)
    batch = examples.Targets.of(log, made, "test", Config(data=BY_USER)).batch(0)
    scores = near.scores(batch).toarray()[batch.user >= 0]
    trained = np.bincount(item, minlength=10)
    assert trained[1] == 4
    assert np.allclose(scores[:, 4:6] / scores[:, [1]], trained[4:6] / 4), "each of the four counts alike"


def test_by_user_who_has_nothing_before_a_target_trains():
    short = [user([1], name="a"), user([0, 2, 0], query=[1, 1, 1], name="b"), user([3, 4], request=[1, 1], name="c")]
    log = SmallLog([*short, *(user([5, 6], name=f"u{u}") for u in range(4))], 10)
    for seed in range(5):
        made = splits.split(log, dataclasses.replace(BY_USER, held_users=0.49, seed=seed))
        assert made.train_stop[:3].tolist() == [1, 3, 2]
        assert len(held(made, "validation")) == len(held(made, "test")) == 2
    with pytest.raises(UserError, match="the by-user split leaves no validation events"):
        splits.split(SmallLog(short, 10), BY_USER)


def test_by_user_goes_with_cold_items():
    log = random_log(5, users=40)
    made = splits.split(log, BY_USER)
    part, split = splits.hold_out(log, made, 0.2, seed=0)
    out = held(made, "validation") + held(made, "test")
    assert len(out) > 10 and not split.train_stop[out].any()
    assert not any(len(part[number]["item"]) for number in out)
