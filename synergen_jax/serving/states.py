"""Caches of users in tiers: slots on the device, host memory below them, and below that what a history is encoded from.

Every tier is bounded. A cache that falls out of a tier is kept in the next one, and one that falls out of the last is
encoded anew when it is wanted: to the same figures but for rounding, since what a cache holds depends on the history
alone (`timeline.window`).
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from synergen_jax.batch import Events
from synergen_jax.errors import UserError
from synergen_jax.model.synergen import Cache
from synergen_jax.serving import compiled, timeline
from synergen_jax.serving.deployed import Past

BATCHES = (1, 4, 16)  # users of a compiled call
NAMES = ("time", "item", "action", "query")
APPENDED = 8  # events that are appended in one call; more are encoded anew


Load = collections.abc.Callable[[], tuple[int, Past]]


@dataclasses.dataclass
class State:
    """What is known of one user while a cache of theirs is there."""

    version: int  # of the history in the store
    past: Past  # the events that the cache holds
    seen: np.ndarray  # (n,) int32: all items that the user ever had, each once
    size: int  # events of the whole history
    slot: int = -1

    @property
    def start(self) -> int:
        """Unix seconds of second 0 of the cache's clock."""
        return int(self.past.time[0]) if len(self.past) else 0

    @property
    def last(self) -> int | None:
        """Unix seconds of the newest event."""
        return int(self.past.time[-1]) if len(self.past) else None


class Served(typing.Protocol):
    """What caches are made with."""

    model: typing.Any
    params: typing.Any

    @property
    def catalogue(self) -> typing.Any: ...


class States:
    """The caches of users.

    Args:
      slots: caches on the device.
      host_bytes: of caches in host memory.
      length: events of a cache, L.
    """

    def __init__(self, served: Served, slots: int, host_bytes: int, length: int):
        if slots < BATCHES[-1]:
            raise UserError(
                f"{slots} slots: {BATCHES[-1]} users are answered at once, so that there are at least as many"
            )
        self._served, self.slots, self.host_bytes = served, slots, host_bytes
        self.length, self.room = length, max(length // 4, 1)
        # Two more slots: of nobody in particular, and of the rows that pad a batch.
        self.nobody, self.padding = slots, slots + 1
        self._device: collections.OrderedDict[str, State] = collections.OrderedDict()
        self._host: collections.OrderedDict[str, tuple[State, Cache]] = collections.OrderedDict()
        self.caches: Cache
        self.reset()
        self.slot_bytes = sum(x.nbytes for x in jax.tree.leaves(self.caches)) // (slots + 2)
        self.counts = collections.Counter(hits=0, host_hits=0, encoded=0, appended=0, evicted=0)

    def _touch(self, user: str) -> None:
        for tier in (self._device, self._host):
            if user in tier:
                tier.move_to_end(user)

    def ensure(self, wanted: dict[str, tuple[int, Load]]) -> dict[str, State]:
        """The states of users, at most as many as there are slots, each of whose caches is in a slot then.

        Args:
          wanted: user -> the version of their history, and what reads the version and the whole of it, if no cache is of
            that version.
        """
        # All that the store has to say first: where it fails, nothing has changed.
        told = {user: load() for user, (version, load) in wanted.items() if self._version(user) != version}
        for user in wanted:
            self._touch(user)  # so that none of them makes room for another
        encode: list[State] = []
        append: list[tuple[State, Past]] = []
        try:
            # Those in host memory first: each gives its room there to the one that leaves the device for it, so that none of
            # them is pushed out by new ones.
            order = sorted(wanted, key=lambda user: user not in self._host)
            found = {user: self._in_slot(user, told.get(user), encode, append) for user in order}
            self._encode(encode)
            self._append(append)
        except BaseException:  # what was written to was given away
            self.reset()
            raise
        return found

    def reset(self) -> None:
        """Forgets all caches."""
        served, slots = self._served, self.slots
        self.caches = compiled.empty_slots(served.model, served.params, served.catalogue, slots + 2, self.length)
        self._free = list(range(slots - 1, -1, -1))
        self._device.clear()
        self._host.clear()

    def _version(self, user: str) -> int | None:
        """The version of a user's cache; None: there is none."""
        if user in self._device:
            return self._device[user].version
        return self._host[user][0].version if user in self._host else None

    def drop(self, user: str) -> None:
        """Forgets a user."""
        if (state := self._device.pop(user, None)) is not None:
            self._free.append(state.slot)
        self._host.pop(user, None)

    def gauges(self) -> dict[str, float]:
        """What the tiers hold, and what became of requests."""
        return {
            "device_slots": self.slots,
            "device_slots_used": len(self._device),
            "device_bytes": self.slot_bytes * (self.slots + 2),
            "host_caches": len(self._host),
            "host_bytes": self.slot_bytes * len(self._host),
            "host_bytes_limit": self.host_bytes,
            **{f"cache_{name}_total": count for name, count in self.counts.items()},
        }

    # --- one user

    def _in_slot(
        self, user: str, told: tuple[int, Past] | None, encode: list[State], append: list[tuple[State, Past]]
    ) -> State:
        state = self._device.get(user) or self._from_host(user)
        if told is None:
            assert state is not None
            self.counts["hits"] += 1
            return state
        version, past = told
        begin = timeline.window(len(past), self.length, self.room)
        held = Past(*(getattr(past, name)[begin:] for name in NAMES))
        new = State(version, held, np.unique(past.item[past.item > 0]), len(past))
        more = None if state is None else _tail(state.past, held)
        new.slot = self._slot() if state is None else state.slot
        if more is None or len(more) > APPENDED:
            encode.append(new)
        elif len(more):
            append.append((new, more))
        self._device[user] = new
        self._device.move_to_end(user)
        return new

    def _slot(self) -> int:
        """A free slot; the least recently used cache leaves the device where there is none."""
        if not self._free:
            user, state = self._device.popitem(last=False)
            self._free.append(state.slot)
            self.counts["evicted"] += 1
            if self.slot_bytes <= self.host_bytes:
                cache = jax.device_get(compiled.taken(self.caches, jnp.array([state.slot])))
                self._host[user] = state, cache
                while self.slot_bytes * len(self._host) > self.host_bytes:
                    self._host.popitem(last=False)
        return self._free.pop()

    def _from_host(self, user: str) -> State | None:
        if user not in self._host:
            return None
        state, cache = self._host.pop(user)
        state.slot = self._slot()
        self.caches = compiled.put(self.caches, jnp.array([state.slot]), cache)
        self._device[user] = state
        self.counts["host_hits"] += 1
        return state

    # --- many users a call

    def _encode(self, states: list[State]) -> None:
        self.counts["encoded"] += len(states)
        short = min(32, self.length)
        for wide in dict.fromkeys((short, self.length)):
            mine = [s for s in states if (len(s.past) <= short) == (wide == short)]
            for part, size in batches(mine):
                place = np.full(size, self.padding, np.int32)
                place[: len(part)] = [state.slot for state in part]
                events = _events([(state.past, state.start) for state in part], size, wide)
                served = self._served
                self.caches = compiled.encode_to(
                    served.model, served.params, served.catalogue, self.caches, place, events
                )

    def _append(self, grown: list[tuple[State, Past]]) -> None:
        self.counts["appended"] += sum(len(more) for _, more in grown)
        for part, size in batches(grown):
            place = np.full(size, self.padding, np.int32)
            place[: len(part)] = [state.slot for state, _ in part]
            events = _events([(more, state.start) for state, more in part], size, APPENDED)
            served = self._served
            self.caches = compiled.append_to(served.model, served.params, served.catalogue, self.caches, place, events)

    def warm_up(self) -> None:
        """Compiles all that these calls take, on the padding."""
        nobody = State(0, timeline.NOTHING, np.zeros(0, np.int32), 0, self.padding)
        one = Past.of([(1, 1, 1, 0)])
        long = Past.of([(1, 1, 1, 0)] * self.length)
        for size in BATCHES:
            self._encode([nobody] * size)
            self._encode([dataclasses.replace(nobody, past=long)] * size)
            self._append([(nobody, one)] * size)
        cache = jax.device_get(compiled.taken(self.caches, jnp.array([self.padding])))
        self.caches = compiled.put(self.caches, jnp.array([self.padding]), cache)
        for name in self.counts:
            self.counts[name] = 0


_T = typing.TypeVar("_T")


def batches(values: list[_T]) -> typing.Iterator[tuple[list[_T], int]]:
    """Parts of a list, and the size of the compiled call that each fits."""
    for start in range(0, len(values), BATCHES[-1]):
        part = values[start : start + BATCHES[-1]]
        yield part, next(size for size in BATCHES if size >= len(part))


def _tail(old: Past, new: Past) -> Past | None:
    """The events by which `new` goes on from `old`; None: it does not."""
    size = len(old)
    if size > len(new) or any(not np.array_equal(getattr(old, n), getattr(new, n)[:size]) for n in NAMES):
        return None
    return Past(*(getattr(new, name)[size:] for name in NAMES))


def _events(rows: list[tuple[Past, int]], size: int, wide: int) -> Events:
    """Events (size, wide) of parts of histories, on the clock of each."""
    put = {name: np.zeros((size, wide), np.int32) for name in NAMES}
    for row, (past, start) in enumerate(rows):
        put["time"][row, : len(past)] = past.time - start
        for name in ("item", "action", "query"):
            put[name][row, : len(past)] = getattr(past, name)
    return Events(**put)
