"""Histories in one file of SQLite, which one process writes.

A commit is acknowledged once its frames are in the write-ahead log and that is synced (`synchronous = FULL`). A user's
events lie side by side in the order in which they are read.
"""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import typing

from synergen_jax.errors import UserError
from synergen_jax.serving.history import files, sqlite_connection
from synergen_jax.serving.history.pool import Pool
from synergen_jax.serving.history.sqlite_connection import rows, telling, transaction
from synergen_jax.serving.history.store import (
    Event,
    History,
    Outcome,
    Size,
    Status,
    Store,
    Unavailable,
    outcome,
    refuse_other,
)
from synergen_jax.serving.history.writer import Job, Writer

if typing.TYPE_CHECKING:
    import apsw

SCHEMA = 1
PATIENCE = 5_000  # milliseconds for which a lock of another program is waited for
PAGE = 1_000  # users read at once

# meta.clock is the arrival of the newest event that there ever was: no version comes again, whoever is deleted.
# meta.unscrubbed is 1 while the file may hold text of users who are deleted.
TABLES = f"""
create table meta (name text primary key, value any) strict, without rowid;
insert into meta values ('schema', {SCHEMA}), ('log', ?), ('clock', 0), ('unscrubbed', 0);
create table users (
  key integer primary key, name text not null unique, version integer not null default 0,
  events integer not null default 0
) strict;
create table events (
  user integer not null, time integer not null, arrival integer not null, id text not null, item text not null,
  action text not null, query text not null, request text not null, primary key (user, time, arrival)
) strict, without rowid;
create unique index event_ids on events (user, id);
"""


class SqliteStore(Store):
    """Histories in a file.

    Args:
      path, log, write: as in `open_store`.
      vfs: name of the SQLite file system to use; "" for its own.
      synchronous: "OFF" loses acknowledged events when the power fails, for an experiment that must find them missing.
    """

    def __init__(self, path: pathlib.Path, log: str, write: bool = True, *, vfs: str = "", synchronous: str = "FULL"):
        sqlite_connection.load()
        self._vfs, self._unscrubbed = vfs, False
        with telling(path), contextlib.ExitStack() as stack:  # the first that is opened is closed last
            if path.is_dir() or not path.parent.is_dir():
                raise UserError(f"{path} is a folder" if path.is_dir() else f"{path.parent}: there is no such folder")
            self._path = path.resolve()
            if write:
                stack.callback(files.Lock(self._path).close)
            self._connection = self._connect(create=write)
            stack.callback(self._connection.close)
            self._clock = _opened(self._connection, path, log, write)
            self._pool = Pool(str(path), self._reader)
            stack.callback(self._pool.close)
            if write:
                self._connection.pragma("synchronous", synchronous)
                files.sync_folder(self._path.parent)
                self._make_good()
            self._files = files.Identity(self._path)
            self._writer = Writer(str(path), self._together) if write else None
            if self._writer:
                stack.callback(self._writer.close)
            self._stack = stack.pop_all()

    def users(self) -> collections.abc.Iterator[str]:
        newest = ""
        while True:
            with self._reading() as connection:
                found = rows(connection, "select name from users where name > ? order by name limit ?", newest, PAGE)
            yield from (name for (name,) in found)
            if len(found) < PAGE:
                return
            newest = found[-1][0]

    def size(self) -> Size:
        with self._reading() as connection:
            ((users, events),) = rows(connection, "select count(*), coalesce(sum(events), 0) from users")
        used = (name.stat().st_size for name in (self._path, files.beside(self._path, "wal")))
        return Size(users, events, sum(used))

    def close(self) -> None:
        with telling(self._path):
            self._stack.close()

    def _connect(self, create: bool = False) -> apsw.Connection:
        import apsw

        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        connection = apsw.Connection(str(self._path), flags, self._vfs or None)
        connection.set_busy_timeout(PATIENCE)
        if not create:
            connection.pragma("query_only", True)
            # Only the process that writes moves the log into the database.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        return connection

    # --- reading, on any thread

    def _reader(self) -> apsw.Connection:
        self._files.check()
        return self._connect()

    @contextlib.contextmanager
    def _reading(self) -> collections.abc.Iterator[apsw.Connection]:
        with telling(self._path), self._pool.one() as connection:
            yield connection
            self._files.check()

    def _histories(self, users: collections.abc.Sequence[str], last: int | None) -> list[History]:
        with self._reading() as connection, transaction(connection, "deferred"):
            return [_history(connection, user, -1 if last is None else last) for user in users]

    # --- writing, on the thread of the writer

    def _append(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        return self._writing().do(lambda: self._store(events))

    def _delete(self, user: str) -> int:
        removed = self._writing().do(lambda: self._remove(user))
        self._writing().do(self._scrub, alone=True)
        return removed

    def _writing(self) -> Writer:
        if not self._writer:
            raise UserError(f"{self._path} was opened for reading alone")
        return self._writer

    def _together(self, jobs: collections.abc.Sequence[Job]) -> list[typing.Any]:
        """Does jobs in one transaction, and returns their results when it is on disk, in the file that was opened."""
        with telling(self._path):
            self._files.check()
            with transaction(self._connection, "immediate"):
                before = self._clock
                results = [job() for job in jobs]
                if self._clock > before:
                    _set(self._connection, "clock", self._clock)
            self._files.check()
        return results

    def _store(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        outcomes, users = [], {}
        for event in events:
            if event.user not in users:
                users[event.user] = _Stored(_key(self._connection, event.user))
            user = users[event.user]
            said = outcome(event, self._insert(user.key, event))
            if said.status is Status.STORED:
                user.version, user.events = self._clock, user.events + 1
            outcomes.append(said)
        change = "update users set version = ?, events = events + ? where key = ?"
        for user in users.values():
            if user.events:
                rows(self._connection, change, user.version, user.events, user.key)
        return outcomes

    def _insert(self, key: int, event: Event) -> Event | None:
        """Stores an event, unless the user has one of that id: that one."""
        place = (key, event.time, self._clock + 1, event.id)
        row = (*place, event.item, event.action, event.query, event.request)
        rows(
            self._connection,
            "insert into events values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (user, id) do nothing",
            *row,
        )
        if self._connection.changes():
            self._clock += 1
            return None
        asked = "select item, action, time, query, request, id from events where user = ? and id = ?"
        (there,) = rows(self._connection, asked, key, event.id)
        return Event(event.user, *there)

    def _remove(self, user: str) -> int:
        found = rows(self._connection, "select key, events from users where name = ?", user)
        for key, _ in found:
            rows(self._connection, "delete from events where user = ?", key)
            rows(self._connection, "delete from users where key = ?", key)
            self._unscrubbed = True
            _set(self._connection, "unscrubbed", 1)
        return sum(events for _, events in found)

    def _scrub(self) -> None:
        """Writes the file anew without the text of those who were deleted.

        SQLite's `secure_delete` overwrites rows that are deleted, but not copies that a page keeps when it is split.
        """
        if not self._unscrubbed:
            return
        with telling(self._path):
            rows(self._connection, "vacuum")
            ((busy, _, _),) = rows(self._connection, "pragma wal_checkpoint(truncate)")
            if busy:
                raise Unavailable(
                    f"{self._path}: users are deleted, but another process has been reading for {PATIENCE / 1000:.0f} "
                    "s, so that their text is still in the log beside the file: delete them again when it has ended"
                )
            _set(self._connection, "unscrubbed", 0)
        self._unscrubbed = False

    def _make_good(self) -> None:
        """Scrubs if the last process could not, be it killed; where it fails once more, there is a next time."""
        self._unscrubbed = bool(_get(self._connection, "unscrubbed"))
        with contextlib.suppress(Unavailable):
            self._scrub()


class _Stored:
    """What a call has stored of one user."""

    def __init__(self, key: int):
        self.key, self.version, self.events = key, 0, 0


def _opened(connection: apsw.Connection, path: pathlib.Path, log: str, write: bool) -> int:
    """Makes the tables if the file is new, and returns the clock.

    Raises:
      UserError: the file is of something else, of another form or of another log, or can have no write-ahead log.
    """
    if write and not rows(connection, "select 1 from sqlite_schema"):
        with transaction(connection, "immediate"):
            rows(connection, TABLES, log)
    tables = {name for (name,) in rows(connection, "select name from sqlite_schema where type = 'table'")}
    if not {"meta", "users", "events"} <= tables:
        raise UserError(f"{path} is a database of something else, not of histories: give another file")
    found = dict(rows(connection, "select name, value from meta"))
    refuse_other(path, found, log, SCHEMA)
    if not isinstance(found.get("clock"), int):
        raise UserError(f"{path} is damaged: it does not tell how many events there were: give a copy that is whole")
    if write and connection.pragma("journal_mode", "wal") != "wal":
        raise UserError(f"{path}: its file system has no shared memory for SQLite: choose a local disk")
    return found["clock"]


def _get(connection: apsw.Connection, name: str) -> typing.Any:  # Any: a number or text
    found = rows(connection, "select value from meta where name = ?", name)
    return found[0][0] if found else None


def _set(connection: apsw.Connection, name: str, value: int) -> None:
    rows(connection, "update meta set value = ? where name = ?", value, name)


def _key(connection: apsw.Connection, user: str) -> int:
    """The number of a user, who is made if there is none of that name."""
    rows(connection, "insert into users (name) values (?) on conflict do nothing", user)
    ((key,),) = rows(connection, "select key from users where name = ?", user)
    return key


def _history(connection: apsw.Connection, user: str, last: int) -> History:
    """As `Store.history`; all events if `last` is -1."""
    found = rows(connection, "select key, version from users where name = ?", user)
    if not found:
        return History(0, [])
    ((key, version),) = found
    asked = (
        "select item, action, time, query, request, id from events where user = ? "
        "order by time desc, arrival desc limit ?"
    )
    return History(version, [Event(user, *row) for row in reversed(rows(connection, asked, key, last))])
