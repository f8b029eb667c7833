"""Windows of a record, unseen items, lists of candidates, labels."""

import types

import numpy as np
import pytest
from small_log import SmallLog, random_log, user

from data_pipelines.feed import windows
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

LOG = SmallLog([user([1])], 10)
TABLE = windows.label_table(LOG)


def rng(seed=0):
    return np.random.default_rng(seed)


# --- windows and their clock ------------------------------------------------------------------------------------


def test_a_window_is_left_aligned_and_padded():
    record = user([5, 6, 0, 8], action=[1, 2, 1, 3], query=[0, 1, 2, 0], time=[100, 100, 160, 10**9])
    found = windows.window(record, 1, 4, 5)
    assert found.item.tolist() == [6, 0, 8, 0, 0]
    assert found.action.tolist() == [2, 1, 3, 0, 0]
    assert found.query.tolist() == [1, 2, 0, 0, 0]
    assert found.time.tolist() == [0, 60, 10**9 - 100, 0, 0], "on the clock of the user's first event"
    assert found.mask.tolist() == [True, True, True, False, False]
    assert all(x.dtype == np.int32 for x in (found.item, found.action, found.query, found.time))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 2), (4, 4)])
def test_an_empty_window(start, stop):
    found = windows.window(user([5, 6, 7, 8]), start, stop, 3)
    assert not found.mask.any() and not found.item.any() and not found.time.any()


def test_windows_of_random_records_hold_their_events():
    for record in random_log(3).records:
        n = len(record["item"])
        found = windows.window(record, n // 2, n, 40)
        for name in ("item", "action", "query"):
            assert getattr(found, name)[: n - n // 2].tolist() == record[name][n // 2 :].tolist()
        assert found.mask.sum() == n - n // 2
        np.testing.assert_array_equal(found.time[: n - n // 2] + record["time"][0], record["time"][n // 2 :])


def test_seconds_up_to_the_largest_and_beyond():
    record = user([1, 2, 3], time=[7, 7 + 2**31 - 1, 7 + 2**31], name="ada")
    assert windows.seconds(record, 0, 2).tolist() == [0, 2**31 - 1]
    assert windows.seconds(record, 0, 2).dtype == np.int32
    assert windows.seconds(record, 3, 3).tolist() == []
    for start in (0, 2):  # a window of late events is on the user's clock all the same
        with pytest.raises(UserError, match="user 'ada': events lie more than 68 years apart"):
            windows.seconds(record, start, 3)


# --- labels -----------------------------------------------------------------------------------------------------


def test_the_table_of_labels():
    """engage: click, buy; like: buy. Action 0 is positive for nothing."""
    assert TABLE.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert TABLE.dtype == np.int8
    log = types.SimpleNamespace(spec=LogSpec(2, 3, 1, ("only",)), labels={"only": (1, 2)})
    assert windows.label_table(log).tolist() == [[0], [1], [1]]


# --- unseen items -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [1, 2, 3, 5, 9, 200])
@pytest.mark.parametrize("count", [0, 1, 4, 30])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_unseen_items(items, count, share):
    """As many distinct unseen items as are wanted and there are, whatever the size of the catalogue."""
    draw = rng(items * 100 + count)
    had = draw.permutation(np.arange(1, items))[: round(share * (items - 1))]
    unseen = set(range(1, items)) - set(had.tolist())
    had = np.append(0, np.sort(had)).astype(np.int32)  # 0: a bare search
    found = windows.sample_unseen(draw, np.arange(1, items), had, count)
    assert len(found) == min(count, len(unseen)) == len(set(found.tolist()))
    assert set(found.tolist()) <= unseen


def test_every_unseen_item_has_the_same_chance():
    had = np.array([2, 5], np.int32)
    counts = np.zeros(8)
    for seed in range(4000):
        counts[windows.sample_unseen(rng(seed), np.arange(1, 8), had, 2)] += 1
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    expected = 4000 * 2 / 5
    assert np.all(np.abs(counts[[1, 3, 4, 6, 7]] - expected) < 5 * np.sqrt(expected))


# --- candidates -------------------------------------------------------------------------------------------------


def test_candidates_without_a_shown_list():
    record = user([1, 2, 3, 4], action=[2, 3, 1, 2])
    item, label, _ = windows.candidates(
        rng(), record, np.array([1, 2]), record["item"][:4], 3, TABLE, np.arange(1, 10), told=len(record["item"])
    )
    assert item.shape == (2, 3) and label.shape == (2, 3, 2)
    assert item.dtype == np.int32 and label.dtype == np.int8
    assert item[:, 0].tolist() == [2, 3], "each event's own item comes first"
    assert label[:, 0].tolist() == [[1, 1], [0, 0]], "labelled by what was done: bought, only viewed"
    others = item[:, 1:].ravel()
    assert len(set(others.tolist())) == 4 and not set(others.tolist()) & {0, 1, 2, 3, 4}
    assert label[:, 1:].tolist() == [[[0, -1], [0, -1]]] * 2, "not chosen; whether liked is not known"


def test_known_events_alone_tell_what_a_user_has():
    record = user([1, 2, 3, 4])
    drawn = set()
    for seed in range(50):
        item, *_ = windows.candidates(
            rng(seed), record, np.array([1]), record["item"][:2], 4, TABLE, np.arange(1, 6), told=len(record["item"])
        )
        drawn |= set(item[0, 1:].tolist())
        assert not set(item[0, 1:].tolist()) & {1, 2}
    assert drawn == {3, 4, 5}, "items that come later may be drawn: at that time nobody could know"


@pytest.mark.parametrize("items", [5, 400])
def test_where_people_come_back_to_items_a_list_lacks_its_own_alone(items):
    """Were no candidate an item that the user has, to have had it would tell that it is the chosen one."""
    record, drawn = user([1, 2, 3, 4]), set()
    for seed in range(300):
        item, label, _ = windows.candidates(
            rng(seed), record, np.array([1, 3]), record["item"][:0], 4, TABLE, np.arange(1, items), told=4
        )
        assert item[:, 0].tolist() == [2, 4] and label[:, 1:].tolist() == [[[0, -1]] * 3] * 2
        for row in item.tolist():
            assert len(set(row)) == 4
        drawn |= {(row[0], other) for row in item.tolist() for other in row[1:]}
    assert {(2, 1), (2, 3), (2, 4), (4, 1), (4, 2), (4, 3)} <= drawn


def test_candidates_of_a_shown_list():
    shown = [(1, 7, 0), (1, 2, 2), (1, 8, 1), (1, 9, 3), (2, 6, 0)]
    record = user([1, 2, 3], request=[3, 1, 4], action=[2, 2, 2], shown=shown)
    wanted = {7: [0, 0], 8: [0, 0], 9: [1, 1]}
    seen = set()
    for seed in range(20):
        item, label, _ = windows.candidates(
            rng(seed), record, np.array([1]), record["item"][:3], 3, TABLE, np.arange(1, 10), told=len(record["item"])
        )
        assert item[0, 0] == 2 and label[0, 0].tolist() == [1, 0]
        for other, of in zip(item[0, 1:].tolist(), label[0, 1:].tolist()):
            assert of == wanted[other]
            seen.add(other)
        assert len(set(item[0].tolist())) == 3
    assert seen == {7, 8, 9}, "drawn from the list of the event's own request"


def test_a_request_that_goes_on_behind_the_split_tells_what_it_has_chosen_alone():
    """Training must not learn from a list that the validation and the test item were chosen from it, nor what was not."""
    shown = [(3, item, 2 if item < 6 else 0) for item in (3, 6, 4, 5, 8)]
    record = user([1, 2, 3, 4, 5], request=[1, 2, 3, 3, 3], shown=shown)

    def labels(told):
        item, label, _ = windows.candidates(
            rng(), record, np.array([2]), record["item"][:told], 5, TABLE, np.arange(1, 10), told
        )
        return dict(zip(item[0].tolist(), label[0].tolist()))

    chosen, not_chosen, unknown = TABLE[2].tolist(), TABLE[0].tolist(), [-1, -1]
    assert labels(3) == {3: chosen, 4: unknown, 5: unknown, 6: unknown, 8: unknown}
    assert labels(4) == {3: chosen, 4: chosen, 5: unknown, 6: unknown, 8: unknown}
    assert labels(5) == {3: chosen, 4: chosen, 5: chosen, 6: not_chosen, 8: not_chosen}


def test_a_shown_list_that_is_too_short_is_padded():
    record = user([1, 2], request=[1, 2], shown=[(2, 2, 2), (2, 5, 0)])
    item, label, _ = windows.candidates(
        rng(), record, np.array([0, 1]), record["item"][:2], 4, TABLE, np.arange(1, 10), told=len(record["item"])
    )
    assert np.all(item[0] > 0), "the other event has no list: unseen items"
    assert item[1].tolist() == [2, 5, 0, 0]
    assert label[1].tolist() == [[1, 0], [0, 0], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("items", [2, 3, 4, 6])
def test_candidates_of_a_tiny_catalogue(items):
    record = user([1] * 3)
    item, label, _ = windows.candidates(
        rng(), record, np.arange(3), record["item"][:3], 5, TABLE, np.arange(1, items), told=len(record["item"])
    )
    for row, of in zip(item, label):
        there = row[row > 0]
        assert len(set(there.tolist())) == len(there) == min(5, items - 1)
        assert np.all(of[row == 0] == -1) and np.all(of[row > 0, 0] >= 0)


def test_one_candidate_and_no_event():
    record = user([1, 2])
    item, label, _ = windows.candidates(
        rng(), record, np.array([1]), record["item"][:2], 1, TABLE, np.arange(1, 10), told=len(record["item"])
    )
    assert item.tolist() == [[2]] and label.tolist() == [[[1, 0]]]
    item, label, _ = windows.candidates(
        rng(), record, np.zeros(0, np.int64), record["item"][:2], 4, TABLE, np.arange(1, 10), told=len(record["item"])
    )
    assert item.shape == (0, 4) and label.shape == (0, 4, 2)
