"""A user's history: from a small CSV file, in the form of a log's record; and its last events, for people to read."""

from __future__ import annotations

import csv
import difflib
import pathlib
import time
import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.importing import timestamps
from synergen_jax.errors import UserError

COLUMNS = ("item", "action", "time", "query")
COUNTED = 20_000  # users whose events tell which action is the commonest


def read(
    path: pathlib.Path, log: EventLog, after: typing.Mapping[str, typing.Any] | None = None
) -> tuple[dict[str, typing.Any], dict[str, str]]:
    """Reads a history: `item` or `query`, and if you like `action` and `time`, under a header line.

    Rows stand oldest first, or in any order with times. Items are original ids of the log, queries and actions its texts and
    names; an action that is not given is the commonest one of the log's events of that kind (`usual_actions`). Times are Unix
    seconds, milliseconds, microseconds or nanoseconds, or ISO 8601, told from the whole column (default: one minute apart, the
    last one when the log ends).

    Args:
      after: a user's record, which the history goes on from: events of both stand in the order of time, and rows without
        times come a minute apart after its last event.

    Returns:
      The record, and the actions that were taken for those that the file does not give, by kind of row: "item", or "query" for
      rows without an item.

    Raises:
      UserError: the file or one of its rows is wrong; file and line are named.
    """
    rows, names = _rows(path)
    items = {name: i for i, name in enumerate(log.item_ids) if i}
    actions = {name: i for i, name in enumerate(log.actions) if i}
    queries = {text: i for i, text in enumerate(log.queries) if i} if "query" in names else {}
    end = log.last_time if after is None else int(after["time"][-1]) + 60 * len(rows)
    moments = _times(path, rows, end)
    usual: dict[str, str] = {}
    assumed: dict[str, str] = {}
    found = []
    for (line, row), moment in zip(rows, moments.tolist(), strict=True):
        where = f"{path}, line {line}"
        query = (
            _known(where, "query", " ".join((row.get("query") or "").split()), queries, log) if "query" in names else 0
        )
        told = (row.get("item") or "").strip()
        item = 0 if query and not told else _known(where, "item", told, items, log)
        if not item and not query:
            raise UserError(f"{where}: item '' is not in {log.name}")
        action = actions.get(row["action"], 0) if row.get("action") else 0
        if row.get("action") and not action:
            raise UserError(f"{where}: action {row['action']!r} is none of {', '.join(actions)}")
        if not action:
            usual, kind = usual or usual_actions(log), "item" if item else "query"
            assumed[kind] = usual[kind]
            action = actions[usual[kind]]
        found.append((moment, item, action, query))
    found.sort(key=lambda event: event[0])  # stable: ties keep the file's order
    time, item, action, query = (np.array(column) for column in zip(*found))
    none = np.zeros(0, np.int32)
    record = {
        "user_id": str(path),
        "item": item.astype(np.int32),
        "action": action.astype(np.int32),
        "query": query.astype(np.int32),
        "request": np.arange(1, len(item) + 1, dtype=np.int32),
        "time": (time // timestamps.BILLION).astype(np.int64),
        "shown_request": none,
        "shown_item": none,
        "shown_action": none,
    }
    return (record if after is None else _joined(after, record)), assumed


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


def _rows(path: pathlib.Path) -> tuple[list[tuple[int, dict[str, str]]], typing.Sequence[str]]:
    """The rows of a file by line number, and the names of its columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(reader.line_num, row) for row in reader]
            names = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    if not rows or not {"item", "query"} & set(names):
        raise UserError(
            f"{path}: needs a header line with a column `item` (and if you like `action`, `time`, `query`), and rows"
        )
    if wrong := [name for i, name in enumerate(names) if name not in COLUMNS or name in names[:i]]:
        raise UserError(f"{path}: unknown or repeated column {wrong[0]!r}: columns are {', '.join(COLUMNS)}")
    for line, row in rows:
        if None in row:
            width = len(names) + len(row[None])
            raise UserError(f"{path}, line {line}: {width} columns, not {len(names)} ({', '.join(names)})")
    return rows, names


def _known(where: str, what: str, text: str, ids: dict[str, int], log: EventLog) -> int:
    """The id of an item or a query of the log; 0 for no query."""
    if text in ids or (what == "query" and not text):
        return ids.get(text, 0)
    near = difflib.get_close_matches(text, ids, n=1)
    raise UserError(f"{where}: {what} {text!r} is not in {log.name}{f'; did you mean {near[0]!r}?' if near else ''}")


def _times(path: pathlib.Path, rows: list[tuple[int, dict[str, str]]], end: int) -> np.ndarray:
    """The moment of each row in nanoseconds since 1970, int64; `end` is when a row without a time is at the latest."""
    import polars as pl

    texts = [(row.get("time") or "").strip() for _, row in rows]
    minute = 60 * timestamps.BILLION
    default = end * timestamps.BILLION - minute * np.arange(len(rows) - 1, -1, -1)
    there = np.array([bool(text) for text in texts])
    if not there.any():
        return default
    if not there.all():
        at = int(there.argmin())
        raise UserError(
            f"{path}, line {rows[at][0]}: no time, and other rows have one: give each row its time, or none"
        )
    times = timestamps.parse(pl.Series([text or None for text in texts], dtype=pl.String))
    census = timestamps.Census()
    census.add(times, np.arange(len(rows)))
    # Numbers before 1990 are seconds where the log's own times are.
    alone = end < timestamps.EARLIEST and [kind for kind, count in census.count.items() if count] == ["other"]
    place = lambda row: f"line {rows[row][0]}"
    cure = "give all of them as Unix seconds or ISO 8601"
    kind = "seconds" if alone else census.decide("auto", f"{path}, column time", place, cure)
    moments, wrong = timestamps.moments(times, kind, census.latest)
    if (odd := wrong > 0).any():
        at = int(odd.argmax())
        raise UserError(
            f"{path}, line {rows[at][0]}: time {texts[at]!r} is no Unix time: {timestamps.REASONS[wrong[at]]}; give Unix "
            "seconds or ISO 8601"
        )
    return moments


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
