"""A user's history: from a small table, in the form of a log's record; and its last events, for people to read."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.importing import event_files, event_rows, row_shapes, sorted_events, timestamps
from data_pipelines.importing.bad_rows import MISSING, Problems
from synergen_jax.errors import UserError, nearest

if typing.TYPE_CHECKING:
    import polars as pl

ROLES = ("user", "item", "time", "action", "query", "request")
COUNTED = 20_000  # users whose events tell which action is the commonest
MINUTE = 60 * timestamps.BILLION
Record = dict[str, typing.Any]


class History(typing.NamedTuple):
    """What a table tells of one user."""

    record: Record
    assumed: dict[str, str]  # "item", or "query" for rows without an item -> the action of rows that do not give one
    notes: list[str]  # what people should know of it


@dataclasses.dataclass
class _Table:
    """A table that is being read."""

    files: event_files.EventFiles
    roles: dict[str, str]  # the column of each role
    found: event_rows.Found

    @property
    def where(self) -> str:
        """The table, for messages."""
        return self.files.where

    def check(self) -> None:
        """Refuses bad rows."""
        self.found.problems.check(self.where, self.found.rows, self.files.place, flag="")


def read(path: str | pathlib.Path, log: EventLog, after: typing.Mapping[str, typing.Any] | None = None) -> History:
    """Reads a history in any form that `synergen data import` takes: `item` or `query`, and if you like other ROLES.

    Columns are called like the roles, or as those that the log was imported from. Rows stand oldest first, or in any
    order with times. Items are original ids of the log, queries and actions its texts and names; an action that is not
    given is the commonest one of the log's events of that kind (`usual_actions`). Times are written in any way that an
    import reads; without any, events are a minute apart and the last one is when the log ends.

    Args:
      after: a user's record, which the history goes on from: events of both stand in the order of time, and rows
        without times come a minute apart after its last event.

    Raises:
      UserError: the file or some of its rows are wrong, or it is of several users; file and line are named.
    """
    files = event_files.EventFiles(path)
    table = _Table(files, _roles(files, log), event_rows.Found(Problems(), timestamps.Census()))
    unused = [name for name in files.names if name not in table.roles.values()]
    pieces = list(files.pieces(list(table.roles.values()), [role for role in ROLES if role not in table.roles]))
    if not any(len(piece.rows) or piece.broken for piece in pieces):
        raise UserError(f"{table.where}: there are no rows after the header")
    timed = "time" in table.roles and any(_has_values(piece.columns[table.roles["time"]]) for piece in pieces)
    if not timed:
        table.roles["time"] = row_shapes.TIMES
        pieces = [row_shapes.Shape(order="file").events(piece, table.roles, 0) for piece in pieces]
    rows = [event_rows.clean(piece, table.roles, table.where, table.found, ("user",)) for piece in pieces]
    _check_user(table.where, rows, after)
    events = _encoded(table, rows, log)
    end = log.last_time if after is None else int(after["time"][-1]) + 60 * len(events)
    events["time"] = _moments(table, events, log, end) if timed else _made_up(len(events), end)
    assumed = _assume_actions(events, log)
    events, shown = event_rows.in_order(events, np.zeros(0, np.int32), table.found)
    _refuse_known(table, events, after)
    table.check()
    record = next(sorted_events.records(events, shown, [str(path)], len(log.item_ids)))
    notes = _notes(unused, assumed, table.found.census.zoneless)
    return History(record if after is None else _joined(after, record), assumed, notes)


def _roles(files: event_files.EventFiles, log: EventLog) -> dict[str, str]:
    """The column of each role: the one that the log was imported from, or the one that is called like the role."""
    named = {role: name for role, name in log.source.get("columns", {}).items() if role in ROLES}
    named = {role: name for role, name in named.items() if name in files.names}
    found = event_files.roles(files, named, ROLES, (), "")
    if not {"item", "query"} & set(found):
        event_files.roles(files, named, ROLES, ("item",), "")
    return found


def _has_values(column: pl.Series) -> bool:
    import polars as pl

    return not column.cast(pl.String).str.strip_chars().is_in(MISSING).fill_null(True).all()


def _check_user(where: str, rows: list[event_rows.Rows], after: typing.Mapping[str, typing.Any] | None) -> None:
    """Refuses the events of several users, and those of another user than is asked for."""
    users = list(dict.fromkeys(user for some in rows if "user" in some.columns for user in some.columns["user"]))
    if len(users) > 1:
        raise UserError(
            f"{where}: events of {len(users):,} users, {users[0]!r} and {users[1]!r} among them: give one's"
        )
    if users and after is not None and users[0] != after["user_id"]:
        raise UserError(f"{where}: events of user {users[0]!r}, beside --user {after['user_id']}: give one user")


def _encoded(table: _Table, rows: list[event_rows.Rows], log: EventLog) -> np.ndarray:
    """The events with the log's own ids, (n,) EVENT; action 0 where none is given.

    Raises:
      UserError: rows lack something, or an item, a query or an action is not in the log.
    """
    import polars as pl

    table.check()
    known = {"item": log.item_ids, "query": log.queries, "action": log.actions}
    known = {role: texts for role, texts in known.items() if role in table.roles} | {"action": log.actions}
    numbers = {role: event_rows.Vocabulary() for role in known}
    for role, texts in known.items():
        numbers[role].codes(pl.Series(texts[1:], dtype=pl.String))
    events = np.concatenate([event_rows.encode(some, numbers)[0] for some in rows])
    if "action" not in table.roles:
        events["action"] = 0
    for role, texts in known.items():
        if (wrong := np.flatnonzero(events[role] >= len(texts))).size:
            text = numbers[role].texts()[events[role][wrong[0]] - 1]
            near = nearest(text, texts[1:]) if len(texts) < 100_000 else ""
            there = f"none of {', '.join(texts[1:])}" if role == "action" else f"not in {log.name}{near}"
            more = f"; {wrong.size - 1:,} more rows are like it" if wrong.size > 1 else ""
            place = table.files.place(int(events["row"][wrong[0]]))
            raise UserError(f"{table.where}, {place}: {role} {text!r} is {there}{more}")
    return events


def _moments(table: _Table, events: np.ndarray, log: EventLog, end: int) -> np.ndarray:
    """The times of events in nanoseconds since 1970, int64; wrong ones are refused."""
    census = table.found.census
    # Numbers before 1990 are of the log's own unit where its times are such, too.
    alone = end < timestamps.EARLIEST and [kind for kind, count in census.count.items() if count] == ["other"]
    where = f"{table.where}: column {table.roles['time']!r}"
    cure = "give all of them as Unix seconds or ISO 8601"
    kind = log.source.get("time_unit", "seconds") if alone else census.decide("auto", where, table.files.place, cure)
    times = timestamps.Times(*(events[name] for name in ("time", "fraction", "form")))
    found, _ = event_rows.moments(times, events["row"], kind, census.mixed(kind), table.found)
    table.check()
    return found


def _made_up(count: int, end: int) -> np.ndarray:
    """Nanoseconds since 1970 of events a minute apart, the last one at `end`, Unix seconds."""
    return end * timestamps.BILLION - MINUTE * np.arange(count - 1, -1, -1)


def _assume_actions(events: np.ndarray, log: EventLog) -> dict[str, str]:
    """Gives events without an action the commonest one of their kind, in place; which that is, of kinds in need."""
    lacking = events["action"] == 0
    if not lacking.any():
        return {}
    usual = usual_actions(log)
    kinds = {"item": lacking & (events["item"] > 0), "query": lacking & (events["item"] == 0)}
    for kind, mask in kinds.items():
        events["action"][mask] = log.actions.index(usual[kind])
    return {kind: usual[kind] for kind, mask in kinds.items() if mask.any()}


def _refuse_known(table: _Table, events: np.ndarray, after: typing.Mapping[str, typing.Any] | None) -> None:
    """Counts events that repeat one of the record `after` as duplicates."""
    if after is not None:
        columns = ("item", "query", "action")
        known = set(zip(after["time"].tolist(), *(after[name].tolist() for name in columns)))
        seconds = (events["time"] // timestamps.BILLION).tolist()
        again = [key in known for key in zip(seconds, *(events[name].tolist() for name in columns))]
        reason = f"that the log has of user {after['user_id']}"
        table.found.problems.add("duplicates", reason, events["row"][np.array(again, bool)])


def _notes(unused: list[str], assumed: dict[str, str], zoneless: int) -> list[str]:
    kinds = {"item": "items", "query": "queries alone"}
    notes = [
        f"rows of {kinds[kind]} without an action are read as {action!r}, the commonest"
        for kind, action in assumed.items()
    ]
    if unused:
        notes.append(f"columns of the history that were not read: {', '.join(unused)}")
    if zoneless:
        notes.append(f"{zoneless:,} times of the history without a zone are read as UTC")
    return notes


def _joined(record: typing.Mapping[str, typing.Any], more: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The events of two records in the order of time, those of `record` first where times are equal; no shown lists."""
    requests = int(record["request"].max(initial=0))
    columns = {name: np.concatenate([record[name], more[name]]) for name in ("item", "action", "query", "time")}
    columns["request"] = np.concatenate(
        [record["request"], np.where(more["request"] > 0, more["request"] + requests, 0)]
    )
    order = np.argsort(columns["time"], kind="stable")
    lists = {name: more[name] for name in ("shown_request", "shown_item", "shown_action")}
    return {"user_id": record["user_id"]} | {name: values[order] for name, values in columns.items()} | lists


def usual_actions(log: EventLog) -> dict[str, str]:
    """The commonest action of events with an item, and of events with a query alone; of equal ones the one that stands first.

    Where there are no events of one kind, the commonest of all. Of a log with more than `COUNTED` users, that many tell,
    spread evenly.
    """
    counts = np.zeros((2, log.spec.actions), np.int64)
    for user in range(0, len(log), -(-len(log) // COUNTED)):
        record = log[user]
        np.add.at(counts, ((record["item"] == 0).astype(int), record["action"]), 1)
    either = counts.sum(0)
    return {
        kind: log.actions[int(np.argmax(row if row.any() else either))] for kind, row in zip(("item", "query"), counts)
    }


def last_events(log: EventLog, record: typing.Mapping[str, typing.Any], count: int = 10) -> list[dict[str, str]]:
    """The last events of a record, a row of a table each: when, action, query, item and its title."""
    columns = (record[name][-count:].tolist() for name in ("time", "action", "query", "item"))
    return [
        {
            "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime(when)),
            "action": log.actions[action],
            "query": log.queries[query],
            "item": log.item_ids[item],
            "title": log.item_titles[item],
        }
        for when, action, query, item in zip(*columns)
    ]
