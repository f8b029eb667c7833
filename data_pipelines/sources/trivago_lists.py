"""What is known of a hotel in a list that trivago shows, from the list and from what its user did before: candidate features.

Everything is as of the user's last step before the list's clickout: when the click came is not known.
"""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

FEATURES = (
    # Of the list.
    "position",  # log of the place from 1
    "price",  # log price less its mean over the list, over its standard deviation there; 0 where all are equal
    "ordered",  # correlation of place and log price: 1 where the cheapest stands first; 0 where all prices are equal
    # Of a hotel's own past.
    "seen",  # 1 / (1 + other hotels that the user met since this one); 0 for one that was never met
    "ago",  # log of 1 + seconds from the hotel's last step to the user's; 0 for one that was never met
    "times",  # log of 1 + the user's steps with the hotel
    "clicked",  # log of 1 + how many of them were clickouts
    # Of its place and price beside those of the list's other hotels that were met.
    "met",  # 1 where the list has one
    "step",  # places below the one met last, n, as sign(n) log(1 + |n|): lists are read downwards
    "below",  # likewise below the lowest of them
    "dearer",  # log price less the mean of theirs
    # Of the list that the user was shown before.
    "again",  # 1 where this is the same list
    "kept",  # 1 where the hotel was in that one
    # Of the user's steps so far.
    "steps",  # log of 1 + their number
    "pause",  # log of 1 + seconds between the last two
    "after_click",  # 1 where the last one was a clickout
)
"""Columns of `History.features`, in their order."""


@dataclasses.dataclass
class _Met:
    """A hotel that a user met."""

    time: int  # of the last step with it
    times: int = 0
    clicked: int = 0


class History:
    """What a user did up to now, step by step."""

    def __init__(self) -> None:
        self._met: dict[str, _Met] = {}  # by their last step, the newest last
        self._list: list[str] = []
        self._steps = 0
        self._time = self._pause = 0
        self._after_click = False

    def add(self, time: int, item: str = "", click: bool = False, shown: typing.Sequence[str] = ()) -> None:
        """Takes one step in.

        Args:
          time: in seconds, not before the last one's; item: the hotel, "" where there is none; click: whether it is a clickout;
            shown: the list of that.
        """
        self._pause, self._time = (time - self._time if self._steps else 0), time
        self._steps += 1
        self._after_click = click
        if item:
            met = self._met.pop(item, None) or _Met(time)
            self._met[item] = _Met(time, met.times + 1, met.clicked + click)
        if shown:
            self._list = list(shown)

    def features(self, items: typing.Sequence[str], price: np.ndarray) -> np.ndarray:
        """The `FEATURES` of a list's hotels, in its order: float32 (n, F).

        Args:
          items: (n,), distinct; price: (n,), above 0.
        """
        size, place, log_price = len(items), np.arange(len(items)), np.log(price)
        since = {item: number for number, item in enumerate(reversed(self._met))}
        others = np.array([since.get(item, np.inf) for item in items])
        met = [self._met.get(item) or _Met(self._time) for item in items]
        known = np.isfinite(others)
        columns = [
            *_list_columns(place, log_price),
            1 / (1 + others),
            np.log1p([self._time - one.time for one in met]),
            np.log1p([one.times for one in met]),
            np.log1p([one.clicked for one in met]),
            np.full(size, known.any()),
            *(_beside(place, log_price, others) if known.any() else np.zeros((3, size))),
            np.full(size, list(items) == self._list),
            [item in self._list for item in items],
            np.full(size, np.log1p(self._steps)),
            np.full(size, np.log1p(self._pause)),
            np.full(size, self._after_click),
        ]
        return np.stack(columns, axis=1).astype(np.float32)


def _list_columns(place: np.ndarray, log_price: np.ndarray) -> list[np.ndarray]:
    """What the list alone tells: "position", "price", "ordered"."""
    spread = log_price.std()
    if spread < 1e-9:
        return [np.log1p(place), np.zeros(len(place)), np.zeros(len(place))]
    scaled = (log_price - log_price.mean()) / spread
    ordered = np.mean(scaled * (place - place.mean()) / place.std())
    return [np.log1p(place), scaled, np.full(len(place), ordered)]


def _beside(place: np.ndarray, log_price: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
    """ "step", "below" and "dearer" of a list some of whose hotels were met, as `others`, infinite for the rest, says."""
    known = np.isfinite(others)
    folded = lambda n: np.sign(n) * np.log1p(np.abs(n))
    return (
        folded(place - np.argmin(others)),
        folded(place - place[known].max()),
        log_price - log_price[known].mean(),
    )
