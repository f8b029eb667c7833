"""Events by the hundred million on disk: from the order of a file to the order of users and times, in bounded memory.

Events are fixed-size records of integer codes in plain binary files. They are dealt out to buckets of whole users, and
each bucket is small enough to be sorted in memory. Code 0 is "none" everywhere.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.files import disk, parts
from synergen_jax.errors import UserError

EVENT = np.dtype(
    [
        ("user", "<i4"),
        ("item", "<i4"),
        ("query", "<i4"),
        ("action", "<i4"),
        ("shown", "<i4"),  # how many shown items belong to the event
        ("request", "<u8"),  # a hash of user and request; 0: the event is its own request
        ("time", "<i8"),  # nanoseconds since 1970; until its kind is known, as it is written, with the next two
        ("fraction", "<i4"),
        ("form", "i1"),
        ("part", "i1"),  # of a split that the data give: `parts`; 0: none
        ("row", "<i8"),
    ]
)
BUCKET = 2_000_000  # events, or eight times as many shown items
SLICE = 1_000_000


class Store:
    """Events, and the items of their shown lists one list after the other, in two files that grow."""

    def __init__(self, folder: pathlib.Path, name: str):
        self._events, self._shown = folder / f"{name}.events", folder / f"{name}.shown"
        self._added = dict.fromkeys((self._events, self._shown), 0)  # bytes

    def append(self, events: np.ndarray, shown: np.ndarray) -> None:
        """Adds (n,) EVENT and int32 (sum of events["shown"],)."""
        for path, array in ((self._events, np.asarray(events, EVENT)), (self._shown, np.asarray(shown, np.int32))):
            disk.append(path, array)
            self._added[path] += array.nbytes

    def slices(self) -> typing.Iterator[tuple[np.ndarray, np.ndarray]]:
        """All that was added, in pieces of at most SLICE events."""
        if not self._events.exists():
            return
        self._check()
        with self._events.open("rb") as events_file, self._shown.open("rb") as shown_file:
            while len(events := np.fromfile(events_file, EVENT, SLICE)):
                yield events, np.fromfile(shown_file, np.int32, int(events["shown"].sum(dtype=np.int64)))

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """All that was added at once."""
        self._check()
        return np.fromfile(self._events, EVENT), np.fromfile(self._shown, np.int32)

    def replace(self, events: np.ndarray, shown: np.ndarray) -> None:
        """Puts these in place of all that was added."""
        self.delete()
        self.append(events, shown)

    def delete(self) -> None:
        """Removes the files."""
        for path in self._added:
            path.unlink(missing_ok=True)
            self._added[path] = 0

    def _check(self) -> None:
        for path, added in self._added.items():
            if (found := path.stat().st_size) != added:
                raise UserError(
                    f"{path}: {found:,} bytes of events came back, not {added:,}: see to the disk, then try again"
                )


def take(events: np.ndarray, shown: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events by index or mask, each with its shown items."""
    count = events["shown"].astype(np.int64)
    start, count = (np.cumsum(count) - count)[index], count[index]
    places = np.repeat(start - (np.cumsum(count) - count), count) + np.arange(count.sum())
    return events[index], shown[places]


def deal(source: Store, rank: np.ndarray, folder: pathlib.Path, convert: typing.Callable) -> list[Store]:
    """Deals events out to buckets of whole users, in the order of users and, within a bucket, of rows.

    Args:
      rank: the place of each user code in the order of users, which takes the place of the code.
      convert: takes a slice of events and gives the mask of those that are kept; it may change their times.
    """
    weight = np.zeros(len(rank), np.int64)
    for events, _ in source.slices():
        weight += np.bincount(rank[events["user"]], 1 + events["shown"] / 8, len(rank)).astype(np.int64)
    bucket = (np.cumsum(weight) - weight) // BUCKET
    stores: dict[int, Store] = {}
    for events, shown in source.slices():
        keep = convert(events)
        events["user"] = rank[events["user"]]
        target = np.where(keep, bucket[events["user"]], -1)
        for number in np.unique(target[keep]).tolist():
            store = stores.setdefault(number, Store(folder, f"bucket-{number}"))
            store.append(*take(events, shown, np.flatnonzero(target == number)))
    source.delete()
    return [stores[number] for number in sorted(stores)]


def late(events: np.ndarray) -> int:
    """How many events of a bucket come in the file after a later one of their user. Events are in the order of rows."""
    order = np.argsort(events["user"], kind="stable")
    user, time = events["user"][order], events["time"][order]
    return int(((user[1:] == user[:-1]) & (time[1:] < time[:-1])).sum())


def sort(events: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By user and time, to the nanosecond; ties by part of a given split, and else in the order of rows."""
    return take(events, shown, np.lexsort((events["part"], events["time"], events["user"])))


def repeats(events: np.ndarray) -> np.ndarray:
    """Of sorted events, the indices of those that repeat an earlier row: the same user, time, item, query and action."""
    tie = np.zeros(len(events) + 1, bool)  # with its predecessor
    tie[1:-1] = (events["user"][1:] == events["user"][:-1]) & (events["time"][1:] == events["time"][:-1])
    tied = np.flatnonzero(tie[:-1] | tie[1:])
    keys = [events[name][tied] for name in ("action", "query", "item", "time", "user")]
    order = np.lexsort((events["row"][tied], *keys))
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    return np.sort(tied[order][1:][same])


def thin(events: np.ndarray, shown: np.ndarray, rare: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out rare items with their events, a mask by item code, then users with fewer than `least` events."""
    shown = np.where(rare[shown], 0, shown).astype(np.int32)
    events, shown = take(events, shown, ~rare[events["item"]])
    few = np.bincount(events["user"]) < least
    return take(events, shown, ~few[events["user"]])


def k_core(buckets: typing.Sequence[Store], items: int, least: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leaves out items with fewer than `least` events, then users, again and again until nothing changes, in place.

    An item's count is of its events, a user's of all events, searches without an item among them. What is left does not
    depend on the order: it is the largest part of the events in which each item and user has enough. Items that were
    shown and never had an event of their own are no matter of it.

    Args:
      items: all item codes lie below.

    Returns:
      Events of each item code that are left, int64 (items,); and how many items, users and events were left out, in how
      many rounds: passes over all events, the last of which changed something.
    """
    count = np.zeros(items, np.int64)
    users = np.zeros(len(buckets), np.int64)
    sizes = np.zeros(len(buckets), np.int64)
    for number, bucket in enumerate(buckets):
        events, _ = bucket.load()
        count += np.bincount(events["item"], minlength=items)
        users[number], sizes[number] = np.count_nonzero(np.bincount(events["user"])), len(events)
    met = count > 0
    met[0] = False
    before, rounds = (int(met.sum()), int(users.sum()), int(sizes.sum())), 0
    while True:
        rare, was = met & (count < least), int(sizes.sum())
        count = np.zeros(items, np.int64)
        for number, bucket in enumerate(buckets):
            events, shown = bucket.load()
            kept, lists = thin(events, shown, rare, least)
            if len(kept) < len(events) or rare[shown].any():
                bucket.replace(kept, lists)
            count += np.bincount(kept["item"], minlength=items)
            users[number], sizes[number] = np.count_nonzero(np.bincount(kept["user"])), len(kept)
        if int(sizes.sum()) == was:
            break
        rounds += 1
    after = int((count[1:] > 0).sum()), int(users.sum()), int(sizes.sum())
    out = {name: old - new for name, old, new in zip(("items", "users", "events"), before, after)}
    return count, out | {"rounds": rounds}


def runs(events: np.ndarray) -> np.ndarray:
    """Numbers the requests of sorted events from 1 up, (n,): each run of neighbours of one user and request is one."""
    new = np.ones(len(events), bool)
    request = events["request"]
    new[1:] = (np.diff(events["user"]) != 0) | (request[1:] != request[:-1]) | (request[1:] == 0)
    return np.cumsum(new)


def inherit_queries(events: np.ndarray) -> int:
    """Gives events without a query the last one before them in their request, in place; how many there were."""
    run, place = runs(events), np.arange(len(events))
    last = np.maximum.accumulate(np.where(events["query"] > 0, place, 0))
    heirs = (events["query"] == 0) & (run[last] == run)
    heirs &= events["query"][last] > 0
    events["query"][heirs] = events["query"][last[heirs]]
    return int(heirs.sum())


def split_requests(events: np.ndarray) -> int:
    """How many more runs there are than requests: other events came between."""
    request = events["request"]
    first = np.diff(runs(events), prepend=0) > 0
    return int((first & (request > 0)).sum()) - len(np.unique(request[request > 0]))


def records(
    events: np.ndarray, shown: np.ndarray, users: typing.Sequence[str], items: int
) -> typing.Iterator[dict[str, typing.Any]]:
    """The records of a sorted bucket, as an event log takes them: times are cut to whole seconds, the order stays.

    An item of a shown list has the action of its last event in the same request, and 0 where it has none.

    Args:
      users: original ids, by the events' `user`.
      items: all item ids lie below.
    """
    run = runs(events)
    owner = np.repeat(np.arange(len(events)), events["shown"])
    key = run[owner] * items + shown
    _, first = np.unique(key, return_index=True)  # an item that comes again in the lists of a request stays once
    first = np.sort(first[shown[first] > 0])
    owner, shown, key = owner[first], shown[first], key[first]

    with_item = np.flatnonzero(events["item"])
    known = run[with_item] * items + events["item"][with_item]
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], key, "right") - 1  # -1 wraps to the last, which then differs
    found = known[order][at] == key if len(known) else np.zeros(len(key), bool)
    action = np.zeros(len(key), np.int32)
    if len(known):
        action[found] = events["action"][with_item[order[at[found]]]]

    starts = np.flatnonzero(np.diff(events["user"], prepend=-1))
    stops = np.append(starts[1:], len(events))
    for start, stop, a, b in zip(
        starts.tolist(), stops.tolist(), np.searchsorted(owner, starts), np.searchsorted(owner, stops)
    ):
        own, before = events[start:stop], run[start] - 1
        yield {
            "user_id": users[own["user"][0]],
            **{name: own[name] for name in ("item", "action", "query")},
            "time": own["time"] // 10**9,
            "request": (run[start:stop] - before).astype(np.int32),
            "shown_request": (run[owner[a:b]] - before).astype(np.int32),
            "shown_item": shown[a:b],
            "shown_action": action[a:b],
            **({"given_split": parts.stops(own["part"])} if own["part"][0] else {}),
        }
