"""Clients of a store that write down what it acknowledged, and find what is missing afterwards."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import random

from synergen_jax.serving.history.store import Event, Status, Store

USERS = 4  # of one client, whom no other client touches
DELETIONS = 0.02  # of all calls


@dataclasses.dataclass(frozen=True)
class Call:
    """What a client asks for: events of a user, or that the user is deleted, without items."""

    user: str
    items: tuple[str, ...] = ()

    def make(self, store: Store) -> None:
        """Makes the call; returns when it was acknowledged."""
        if not self.items:
            store.delete(self.user)
            return
        events = [Event(self.user, item, "click", 1 + len(item), id=item) for item in self.items]
        outcomes = store.append(events)
        assert not any(outcome.status is Status.CONFLICT for outcome in outcomes), outcomes


@dataclasses.dataclass
class Found:
    """What is wrong with the events of a store, of how many that were acknowledged."""

    acknowledged: int = 0
    lost: int = 0  # acknowledged, and not there
    duplicated: int = 0  # there twice
    undeleted: int = 0  # there, although their user was deleted, or never sent

    def add(self, other: Found) -> None:
        """Adds what was found elsewhere."""
        for field in dataclasses.fields(other):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Client:
    """Makes calls one after the other. One that was not acknowledged is made again, as clients do.

    Args:
      number: tells it from the others.
    """

    def __init__(self, number: int):
        self.users = [f"user-{number}-{user}" for user in range(USERS)]
        self._prefix, self._items = f"item-{number}-", 0
        self._there: dict[str, set[str]] = {user: set() for user in self.users}  # acknowledged
        self._pending: Call | None = None
        self._found = Found()

    def next(self, rng: random.Random) -> Call:
        """The next call."""
        user = rng.choice(self.users)
        if self._pending:
            return self._pending
        if rng.random() < DELETIONS:
            return Call(user)
        first = self._items
        return Call(user, tuple(f"{self._prefix}{item}" for item in range(first, first + rng.randint(1, 3))))

    def began(self, call: Call) -> None:
        """Notes a call that is about to be made."""
        if call != self._pending:
            self._items += len(call.items)
        self._pending = call

    def acknowledged(self) -> None:
        """Notes that the call which began is done."""
        call, self._pending = self._pending, None
        assert call
        self._found.acknowledged += len(call.items)
        self._there[call.user] = self._there[call.user] | set(call.items) if call.items else set()

    def run(self, store: Store, rng: random.Random, going: collections.abc.Callable[[], bool]) -> None:
        """Makes calls while it is going on, until one fails: its error is raised."""
        while going():
            self.began(call := self.next(rng))
            call.make(store)
            self.acknowledged()

    def check(self, store: Store | None) -> Found:
        """What was acknowledged since the last check, and what is wrong in the store; None: it could not be opened."""
        histories = store.histories(self.users) if store else [None] * USERS
        for user, history in zip(self.users, histories):
            there = collections.Counter(event.item for event in history.events) if history else collections.Counter()
            maybe = set(self._pending.items) if self._pending and self._pending.user == user else set()
            deleting = self._pending == Call(user)
            gone = self._there[user] - there.keys()
            self._found.lost += 0 if deleting and not there else len(gone)
            self._found.duplicated += there.total() - len(there)
            self._found.undeleted += len(there.keys() - self._there[user] - maybe)
            self._there[user] = set(there) - maybe if not deleting else set(there)
        found, self._found = self._found, Found()
        return found
