"""Candidate features of trivago's lists, worked by hand: what the list tells, and what the user's steps before it tell."""

import numpy as np
import pytest

from data_pipelines.sources.trivago_lists import FEATURES, History

ITEMS, PRICE = ["a", "b", "c", "d"], np.array([10.0, 100.0, 1000.0, 100.0])
OF_THE_LIST = {"position", "price", "ordered"}


def told(history, items=ITEMS, price=PRICE):
    found = history.features(items, price)
    assert found.shape == (len(items), 16) and found.dtype == np.float32 and np.isfinite(found).all()
    return dict(zip(FEATURES, found.T, strict=True))


def same(found, **wanted):
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], np.broadcast_to(values, len(found[name])), atol=1e-6, err_msg=name)


def test_a_list_of_somebody_who_did_nothing_yet():
    found = told(History())
    z = np.array([-1, 0, 1, 0]) * np.sqrt(2)
    same(found, position=np.log([1, 2, 3, 4]), price=z, ordered=np.mean(z * [-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25))
    same(found, **dict.fromkeys(set(FEATURES) - OF_THE_LIST, 0))


def test_equal_prices_and_a_list_of_one_have_no_order():
    same(told(History(), ITEMS, np.full(4, 7.0)), price=0, ordered=0)
    same(told(History(), ["a"], np.array([7.0])), position=0, price=0, ordered=0)


def test_hotels_that_were_met():
    """c at 100 and 130, b at 190, then a search at 200: what counts is the step before the list, not the click."""
    history = History()
    for time, item in ((100, "c"), (130, "c"), (190, "b"), (200, "")):
        history.add(time, item)
    found = told(history)
    same(found, seen=[0, 1, 1 / 2, 0], ago=np.log([1, 11, 71, 1]), times=np.log([1, 2, 3, 1]), clicked=0)
    same(found, met=1, step=[-np.log(2), 0, np.log(2), np.log(3)], below=[-np.log(3), -np.log(2), 0, np.log(2)])
    same(found, dearer=np.log(PRICE) - np.log([100, 1000]).mean())
    same(found, again=0, kept=0, steps=np.log(5), pause=np.log(11), after_click=0)


def test_hotels_met_elsewhere_count_as_others_and_make_no_place():
    history = History()
    history.add(100, "b")
    history.add(110, "z")
    same(told(history), seen=[0, 1 / 2, 0, 0], met=1, step=[-np.log(2), 0, np.log(2), np.log(3)])
    alone = History()
    alone.add(100, "z")
    same(told(alone), seen=0, met=0, step=0, below=0, dearer=0, times=0)


def test_the_list_before():
    history = History()
    history.add(100, "b", click=True, shown=ITEMS)
    same(told(history), again=1, kept=1, clicked=[0, np.log(2), 0, 0], after_click=1, steps=np.log(2), pause=0)
    other = told(history, ["b", "e", "a"], np.array([1.0, 2.0, 3.0]))
    same(other, again=0, kept=[1, 0, 1])
    history.add(160, "a")  # a step without a list keeps the last one
    same(told(history), again=1, after_click=0, pause=np.log(61), seen=[1, 1 / 2, 0, 0])


def test_names_are_those_of_the_columns():
    assert len(FEATURES) == len(set(FEATURES)) == 16, "the head and the regression know products of up to 16 features"


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_list_is_told_and_the_history_stays_as_it_was(steps):
    history = History()
    for number in range(steps):
        history.add(number, "abcz"[number % 4], click=number == 3, shown=ITEMS if number == 3 else ())
    first = told(history)
    for name, values in told(history).items():
        assert np.array_equal(values, first[name])
