"""Which events of each user train, validate and test."""

from __future__ import annotations

import collections.abc
import dataclasses

import numpy as np

from synergen_jax.config import DataConfig
from synergen_jax.errors import UserError

Log = collections.abc.Sequence
"""Anything that gives records by user index, as `EventLog` does."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Ranges of event indices, one row a user; each array is int32.

    Events `0 .. train_stop - 1` train. Targets are the events with an item within a range `[start, stop)`.
    """

    train_stop: np.ndarray  # (users,)
    validation: np.ndarray  # (users, 2)
    test: np.ndarray  # (users, 2)

    def targets(self, part: str) -> np.ndarray:
        """The ranges of "validation" or "test", (users, 2)."""
        return {"validation": self.validation, "test": self.test}[part]


def split(log: Log, config: DataConfig) -> Split:
    """The split that `config.split` names, in one pass over the log.

    "leave-one-out": a user's last event with an item is the test target, the one before it the validation target, in the
    order of the log, which is stable on equal timestamps; what lies before trains. A user with fewer than three events
    with an item only trains. "time": two moments cut the log, given as Unix seconds or as shares of all its events.

    Raises:
      UserError: nothing is left to train on, to validate or to test.
    """
    made = _leave_one_out(log) if config.split == "leave-one-out" else _by_time(log, config)
    for name, size in (
        ("training", made.train_stop),
        ("validation", made.validation[:, 1] - made.validation[:, 0]),
        ("test", made.test[:, 1] - made.test[:, 0]),
    ):
        if not np.any(size > 0):
            raise UserError(f"the {config.split} split leaves no {name} events: change data.split or its moments")
    return made


def first_of_request(request: np.ndarray) -> np.ndarray:
    """Index of the first event of each event's request, (n,); request 0 is none, and each such event stands alone."""
    index = np.arange(len(request))
    if not len(request):
        return index
    new = np.ones(len(request), bool)
    new[1:] = (request[1:] != request[:-1]) | (request[1:] == 0)
    return np.maximum.accumulate(np.where(new, index, 0))


def _leave_one_out(log: Log) -> Split:
    rows = np.zeros((len(log), 5), np.int32)
    for user in range(len(log)):
        item = log[user]["item"]
        places = np.flatnonzero(item)
        if len(places) < 3:
            rows[user] = [len(item), 0, 0, 0, 0]
        else:
            before, last = places[-2:]
            rows[user] = [before, before, before + 1, last, last + 1]
    return Split(rows[:, 0], rows[:, 1:3], rows[:, 3:])


def _by_time(log: Log, config: DataConfig) -> Split:
    times = [np.asarray(log[user]["time"]) for user in range(len(log))]
    every = np.sort(np.concatenate(times)) if times else np.zeros(0, np.int64)
    if not len(every):
        raise UserError("the log is empty")

    def moment(value: float) -> int:
        return int(every[int(value * len(every))]) if value < 1 else int(value)

    bounds = [moment(config.validation_from), moment(config.test_from)]
    cuts = np.array([np.searchsorted(time, bounds, "left") for time in times], np.int32)
    ends = np.array([len(time) for time in times], np.int32)
    return Split(cuts[:, 0], cuts, np.stack([cuts[:, 1], ends], axis=1))
