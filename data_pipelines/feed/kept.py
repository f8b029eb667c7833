"""The records that were read last, kept in memory with what is asked of a whole record.

An example is a window, and costs what its window costs: not a walk over all of a long history, whose record is read once
and not for each of its windows.
"""

from __future__ import annotations

import collections
import threading
import typing

import numpy as np

ROOM = 2**27  # bytes of records a process keeps
_OVERHEAD = 4096  # bytes of a record beside its numbers


class Record(dict):
    """A record that works out once which items it holds and where each first comes."""

    def __init__(self, record: typing.Mapping[str, typing.Any]):
        super().__init__(record)
        self._first: tuple[np.ndarray, np.ndarray] | None = None
        self._had: tuple[int, np.ndarray] | None = None  # the last answer: training asks for the same one ever again

    def had(self, events: int) -> np.ndarray:
        """The distinct items of the first `events` events, sorted; 0 among them if a bare search is."""
        known = self._had
        if known is None or known[0] != events:
            if self._first is None:
                self._first = np.unique(self["item"], return_index=True)
            items, first = self._first
            self._had = known = (events, items[first < events])
        return known[1]

    @property
    def size(self) -> int:
        """Bytes in memory, at most."""
        arrays = sum(values.nbytes for values in self.values() if isinstance(values, np.ndarray))
        return arrays + 16 * len(self["item"]) + _OVERHEAD


class Kept:
    """A log whose records are kept when they were read, the newest `room` bytes of them and at least one.

    Threads may share it; a pickled one is its log, with nothing kept.
    """

    def __init__(self, log, room: int = ROOM):
        self.name, self.spec, self.labels, self.actions = log.name, log.spec, log.labels, log.actions
        self._log, self._room = log, room
        self._records: collections.OrderedDict[int, Record] = collections.OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._log)

    def __getitem__(self, user: int) -> Record:
        """One user's record. It is shared: nobody may change it."""
        with self._lock:
            if user in self._records:
                self._records.move_to_end(user)
                return self._records[user]
        record = Record(self._log[user])
        with self._lock:
            if user not in self._records:  # another thread may have read it meanwhile
                self._records[user] = record
                self._size += record.size
            while self._size > self._room and len(self._records) > 1:
                self._size -= self._records.popitem(last=False)[1].size
        return record

    def __reduce__(self):
        return Kept, (self._log, self._room)


def had(record: typing.Mapping[str, typing.Any], events: int) -> np.ndarray:
    """The distinct items of a record's first `events` events, sorted; of a kept one without looking at them all."""
    return record.had(events) if isinstance(record, Record) else np.unique(record["item"][:events])
