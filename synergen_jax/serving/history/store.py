"""What an event of a history is, and what a store of histories promises, whichever database keeps it.

All ids are original ones, text as the log has them. A store knows no model and no vocabulary.
"""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import enum
import typing
import uuid

from synergen_jax.errors import UserError

LATEST = 4_102_444_800  # 2100-01-01: a later time is in milliseconds or is wrong
LONGEST = 1_024  # bytes of a user's or an event's id: an index of PostgreSQL holds both in one entry


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event of a user."""

    user: str
    item: str  # "" where there is only a query
    action: str
    time: int  # Unix seconds
    query: str = ""
    request: str = ""  # id of the answer that it belongs to; "" for none
    id: str = ""  # the client's, by which it may send an event again; "": the store makes one


class Status(enum.StrEnum):
    """What became of an event that was appended."""

    STORED = "stored"
    KNOWN = "known"  # it was there already, the same in all that it holds
    CONFLICT = "conflict"  # another event of this user has its id; nothing was changed


class Outcome(typing.NamedTuple):
    """What `Store.append` says of one event."""

    id: str  # the client's, or the one that the store made
    status: Status


class History(typing.NamedTuple):
    """A user's events, and the version of the history as of the same moment."""

    version: int
    events: list[Event]  # by time, those of one second by arrival


class Size(typing.NamedTuple):
    """How much a store holds."""

    users: int
    events: int
    bytes: int  # on its disk


class Unavailable(UserError):
    """A store cannot do it now: its disk is full, its server is gone. Nothing is lost that was acknowledged.

    What was asked may have been done all the same where the last answer did not come through. So ask again: events that
    have ids of the client are not doubled.
    """


class Store(abc.ABC):
    """Histories of users, on disk. Its methods may be called from any thread.

    Whatever was acknowledged is seen by every later read, of every thread and process. Every method raises
    `Unavailable` where the disk or the server fails, and `UserError` once the store is closed.
    """

    def append(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        """Stores events and returns once they are on disk: an outcome for each, in their order.

        An event that has an id of the client is stored once a user, however often it is sent, until the user is
        deleted. All events of a call are stored together or not at all, but for those that are there already or in
        conflict.

        Raises:
          UserError: an event is none; its place is named, and nothing is stored.
        """
        for place, event in enumerate(events):
            if wrong := fault(event):
                raise UserError(f"event {place}: {wrong}")
        named = [event if event.id else dataclasses.replace(event, id=uuid.uuid4().hex) for event in events]
        return self._append(named) if named else []

    def history(self, user: str, last: int | None = None) -> History:
        """A user's newest `last` events, or all; of an unknown user none, with version 0.

        Late events stand at the place of their time.

        Raises:
          UserError: `last` is below 0, or the user is no text that can be stored.
        """
        return self.histories([user], last)[0]

    def histories(self, users: collections.abc.Sequence[str], last: int | None = None) -> list[History]:
        """The `history` of each user, in their order, all as of one moment."""
        if last is not None and last < 0:
            raise UserError(f"last = {last}: it is a number of events, from 0 up")
        for user in users:
            _refuse_user(user)
        return self._histories(users, last)

    def version(self, user: str) -> int:
        """A number that is another one after each change of a user's history; 0 while it has no events.

        It grows as long as a user has events, and never comes again: neither for a user who was deleted and came back,
        nor for another one.
        """
        return self.history(user, 0).version

    def delete(self, user: str) -> int:
        """Removes all of a user and returns how many events that were.

        Once it has returned, no file of an SQLite store holds any text of theirs: the file is written anew for that,
        while appends wait. PostgreSQL's dead rows, log and backups are in the care of whoever runs it.
        """
        _refuse_user(user)
        return self._delete(user)

    @abc.abstractmethod
    def users(self) -> collections.abc.Iterator[str]:
        """The ids of all users, in the order of their bytes; of users who come or go meanwhile, some or none."""

    @abc.abstractmethod
    def size(self) -> Size:
        """How much there is. It counts users one by one: for a gauge, not for every request."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finishes what was accepted, and takes nothing more; again it does nothing."""

    @abc.abstractmethod
    def _append(self, events: collections.abc.Sequence[Event]) -> list[Outcome]: ...

    @abc.abstractmethod
    def _histories(self, users: collections.abc.Sequence[str], last: int | None) -> list[History]: ...

    @abc.abstractmethod
    def _delete(self, user: str) -> int: ...

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fault(event: Event) -> str:
    """Why an event cannot be stored; "" if it can."""
    for name in ("user", "item", "action", "query", "request", "id"):
        if wrong := _text_fault(getattr(event, name)):
            return f"{name} {wrong}"
    if not isinstance(event.time, int) or isinstance(event.time, bool):
        return f"time must be a whole number, not {event.time!r}"
    if not 0 < event.time < LATEST:
        return f"time {event.time} does not lie between 1970 and 2100: Unix seconds are wanted, not milliseconds"
    for name in ("user", "action"):
        if not getattr(event, name):
            return f"{name} is empty"
    if not event.item and not event.query:
        return "it has neither an item nor a query"
    for name in ("user", "id"):
        if (length := len(getattr(event, name).encode())) > LONGEST:
            return f"{name} has {length} bytes; at most {LONGEST} are stored"
    return ""


def _text_fault(text: object) -> str:
    if not isinstance(text, str):
        return f"must be text, not {text!r}"
    if "\0" in text:
        return f"{text!r} holds a NUL character, which databases do not store"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{text!r} holds half of a surrogate pair: it is no text"
    return ""


def _refuse_user(user: str) -> None:
    if wrong := _text_fault(user):
        raise UserError(f"user {wrong}")


def outcome(event: Event, there: Event | None) -> Outcome:
    """What to say of an event, by what the store has under its user and id: None if nothing, so it is stored now."""
    if there is None:
        return Outcome(event.id, Status.STORED)
    return Outcome(event.id, Status.KNOWN if there == event else Status.CONFLICT)


def refuse_other(where: object, found: collections.abc.Mapping[str, object], log: str, schema: int) -> None:
    """Refuses a store of another log, or of another form than this version reads.

    Args:
      found: what the store says of itself.
    """
    if str(found.get("schema")) != str(schema):
        raise UserError(
            f"{where}: its histories have form {found.get('schema')}, this version reads form {schema}: use the "
            "version that wrote them, or give another place"
        )
    if found.get("log") != log:
        raise UserError(f"{where} holds histories of the log {found.get('log')!r}, not of {log!r}: give another place")
