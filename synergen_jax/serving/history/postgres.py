"""Histories in a PostgreSQL database, which any number of servers may write.

Every append is one transaction, which first locks the rows of its users, in one order in every process: so nothing is
stored twice, versions of a user grow in the order in which they can be seen, and nobody waits in a circle.
"""

from __future__ import annotations

import collections.abc
import contextlib
import typing

from synergen_jax.errors import UserError, first_line
from synergen_jax.serving.history.pool import Pool
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

if typing.TYPE_CHECKING:
    import psycopg

SCHEMA = 1
PATIENCE = 10  # seconds for which a server is waited for, unless its address says otherwise
PAGE = 1_000  # users read at once
ALONE = 0x5379_6E65  # the advisory lock of whoever makes the tables

TABLES = """
create table history_meta (name text primary key, value text not null);
create table history_users (
  key bigint generated always as identity primary key, name text collate "C" not null unique, version bigint not null,
  events bigint not null
);
create table history_events (
  user_key bigint not null, time bigint not null, arrival bigint not null, id text collate "C" not null,
  item text not null, action text not null, query text not null, request text not null,
  primary key (user_key, time, arrival)
);
create unique index history_event_ids on history_events (user_key, id);
create sequence history_arrival;
"""

# Makes the users that are not there, and locks all of them until the transaction ends.
LOCKED = """
insert into history_users (name, version, events) select name, 0, 0 from unnest(%s::text[]) as name
on conflict (name) do update set version = history_users.version returning name, key
"""
THERE = """
select user_key, item, action, time, query, request, id
from unnest(%s::bigint[], %s::text[]) as asked (user_key, id) join history_events using (user_key, id)
"""
STORED = """
with new as (
  insert into history_events (user_key, time, arrival, id, item, action, query, request)
  select user_key, time, nextval('history_arrival'), id, item, action, query, request
  from unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
    as event (user_key, time, id, item, action, query, request)
  returning user_key, arrival
)
update history_users set version = changed.version, events = history_users.events + changed.events
from (select user_key, max(arrival) as version, count(*) as events from new group by user_key) as changed
where key = changed.user_key
"""
HISTORIES = """
select place, version, item, action, time, query, request, id
from unnest(%s::text[]) with ordinality as asked (name, place) join history_users using (name)
left join lateral (
  select * from history_events where user_key = history_users.key order by time desc, arrival desc limit %s
) as event on true
order by place, time, arrival
"""
SIZE = """
select count(*), coalesce(sum(events), 0)::bigint,
  pg_total_relation_size('history_users') + pg_total_relation_size('history_events')
from history_users
"""

Result = typing.TypeVar("Result")


class PostgresStore(Store):
    """Histories in the first schema of a database's search path, one store in each.

    A connection that was lost is replaced once; if the server is not there then, either, it is an error. Of an append
    whose answer was lost on the way, the second attempt finds its events `KNOWN`.

    Args:
      url, log, write: as in `open_store`.
    """

    def __init__(self, url: str, log: str, write: bool = True):
        self._where = _place(url)
        self._write = write
        self._pool = Pool(self._where, lambda: _connect(url, write))
        try:
            self._do(lambda connection: _prepare(connection, self._where, log, create=write))
        except BaseException:
            self._pool.close()
            raise

    def users(self) -> collections.abc.Iterator[str]:
        asked = "select name from history_users where name > %s order by name limit %s"
        newest = ""
        while True:
            found = self._do(lambda connection, newest=newest: connection.execute(asked, (newest, PAGE)).fetchall())
            yield from (name for (name,) in found)
            if len(found) < PAGE:
                return
            newest = found[-1][0]

    def size(self) -> Size:
        (found,) = self._do(lambda connection: connection.execute(SIZE).fetchall())
        return Size(*found)

    def close(self) -> None:
        self._pool.close()

    def _append(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        self._check_write()
        return self._do(lambda connection: _store(connection, events))

    def _histories(self, users: collections.abc.Sequence[str], last: int | None) -> list[History]:
        found = self._do(lambda connection: connection.execute(HISTORIES, (list(users), last)).fetchall())
        histories = [History(0, []) for _ in users]
        for number, version, *row in found:
            place = int(number) - 1
            histories[place] = History(version, histories[place].events)
            if row[-1] is not None:  # else none of the last ones is asked for
                histories[place].events.append(Event(users[place], *row))
        return histories

    def _delete(self, user: str) -> int:
        self._check_write()
        return self._do(lambda connection: _remove(connection, user))

    def _check_write(self) -> None:
        if not self._write:
            raise UserError(f"{self._where} was opened for reading alone")

    def _do(self, work: collections.abc.Callable[[psycopg.Connection], Result]) -> Result:
        """Does work in one transaction; once more, over a new connection, if that was lost or lost a race."""
        import psycopg

        with _telling(self._where):
            try:
                return self._once(work)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                self._pool.forget()
                return self._once(work)

    def _once(self, work: collections.abc.Callable[[psycopg.Connection], Result]) -> Result:
        with self._pool.one() as connection, connection.transaction():
            return work(connection)


def _place(url: str) -> str:
    """What messages call a server: its address without user and password.

    Raises:
      UserError: psycopg is not installed, or the address is none.
    """
    try:
        import psycopg.conninfo
    except ImportError as error:
        raise UserError(
            f"histories in PostgreSQL need psycopg ({first_line(error)}): pip install 'synergen-jax[postgres]'"
        ) from None
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its message may hold the password
        raise UserError("an address of PostgreSQL is postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


def _connect(url: str, write: bool) -> psycopg.Connection:
    import psycopg
    import psycopg.conninfo

    parts = {"connect_timeout": PATIENCE, **psycopg.conninfo.conninfo_to_dict(url), "client_encoding": "utf8"}
    connection = psycopg.connect(psycopg.conninfo.make_conninfo(**parts), autocommit=True)
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    # Whatever a role's or a database's own settings are: what is acknowledged is on disk.
    connection.execute(
        "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
    )
    connection.read_only = not write
    return connection


@contextlib.contextmanager
def _telling(where: str) -> collections.abc.Iterator[None]:
    """Turns errors of PostgreSQL into what they mean for a store."""
    import psycopg

    try:
        yield
    except psycopg.errors.DiskFull as error:
        raise Unavailable(f"{where}: the disk is full: make room, then ask again") from error
    except psycopg.Error as error:
        raise Unavailable(f"{where}: PostgreSQL says: {first_line(error)}") from error


def _prepare(connection: psycopg.Connection, where: str, log: str, create: bool) -> None:
    """Sees that the server keeps what it acknowledges, and makes the tables if there are none.

    Raises:
      UserError: it does not, or the tables are of another form or of another log.
    """
    for name, wanted in (("server_encoding", "UTF8"), ("fsync", "on")):
        (found,) = connection.execute("select current_setting(%s)", (name,)).fetchall()[0]
        if found != wanted:
            raise UserError(f"{where}: the server has {name} = {found}, and histories need {wanted}")
    if create:  # two servers that start at once
        connection.execute("select pg_advisory_xact_lock(%s)", (ALONE,))
    if not connection.execute("select 1 where to_regclass('history_meta') is not null").fetchall():
        if not create:
            raise UserError(f"{where} holds no histories yet")
        connection.execute(TABLES)
        connection.execute("insert into history_meta values ('schema', %s), ('log', %s)", (str(SCHEMA), log))
    found = dict(connection.execute("select name, value from history_meta").fetchall())
    refuse_other(where, found, log, SCHEMA)


def _store(connection: psycopg.Connection, events: collections.abc.Sequence[Event]) -> list[Outcome]:
    """Stores events, of which each has an id, within a transaction."""
    names = sorted({event.user for event in events})
    keys: dict[str, int] = dict(connection.execute(LOCKED, (names,)).fetchall())
    users = {key: name for name, key in keys.items()}
    asked = [keys[event.user] for event in events], [event.id for event in events]
    there = {(row[0], row[-1]): Event(users[row[0]], *row[1:]) for row in connection.execute(THERE, asked)}
    outcomes, new = [], []
    for event in events:
        place = keys[event.user], event.id
        outcomes.append(outcome(event, there.get(place)))
        if outcomes[-1].status is Status.STORED:
            there[place] = event
            new.append((place[0], event.time, event.id, event.item, event.action, event.query, event.request))
    if new:
        connection.execute(STORED, [list(column) for column in zip(*new)])
    return outcomes


def _remove(connection: psycopg.Connection, user: str) -> int:
    found = connection.execute("delete from history_users where name = %s returning key, events", (user,)).fetchall()
    for key, _ in found:
        connection.execute("delete from history_events where user_key = %s", (key,))
    return sum(events for _, events in found)
