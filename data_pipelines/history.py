"""A user's history: from a small CSV file, in the form of a log's record; and its last events, for people to read."""

from __future__ import annotations

import csv
import difflib
import pathlib
import time
import typing

import numpy as np

from data_pipelines.event_log import EventLog
from synergen_jax.errors import UserError

COLUMNS = ("item", "action", "time")


def read(path: pathlib.Path, log: EventLog) -> dict[str, typing.Any]:
    """Reads `item[,action][,time]` rows with a header line; oldest first, or in any order with times.

    Items are original ids of the log, actions its action names (default: its last one that counts as positive for
    the last label), times Unix seconds (default: one minute apart, the last one when the log ends).

    Raises:
      UserError: the file or one of its rows is wrong; file and line are named.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(reader.line_num, row) for row in reader]
            names = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from None
    if not rows or "item" not in names:
        raise UserError(
            f"{path}: needs a header line with a column `item` (and if you like `action`, `time`), and rows"
        )
    if wrong := [name for i, name in enumerate(names) if name not in COLUMNS or name in names[:i]]:
        raise UserError(f"{path}: unknown or repeated column {wrong[0]!r}: columns are {', '.join(COLUMNS)}")
    items = {name: i for i, name in enumerate(log.item_ids) if i}
    actions = {name: i for i, name in enumerate(log.actions) if i}
    usual = list(log.labels.values())[-1][-1]
    end = log.last_time
    found = []
    for number, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        if None in row:
            raise UserError(f"{where}: {len(names) + len(row[None])} columns, not {len(names)} ({', '.join(names)})")
        item = items.get(row["item"].strip())
        if item is None:
            near = difflib.get_close_matches(row["item"], items, n=1)
            raise UserError(
                f"{where}: item {row['item']!r} is not in {log.name}{f'; did you mean {near[0]!r}?' if near else ''}"
            )
        action = actions.get(row["action"], 0) if row.get("action") else usual
        if not action:
            raise UserError(f"{where}: action {row['action']!r} is none of {', '.join(actions)}")
        text = row.get("time") or str(end - 60 * (len(rows) - 1 - number))
        if not text.isdecimal() or not 0 < int(text) < 2**40:
            raise UserError(f"{where}: time {text!r} is no Unix time in whole seconds")
        found.append((int(text), item, action))
    found.sort(key=lambda event: event[0])  # stable: ties keep the file's order
    time, item, action = (np.array(column) for column in zip(*found))
    none = np.zeros(0, np.int32)
    return {
        "user_id": str(path),
        "item": item.astype(np.int32),
        "action": action.astype(np.int32),
        "query": np.zeros(len(item), np.int32),
        "request": np.arange(1, len(item) + 1, dtype=np.int32),
        "time": time.astype(np.int64),
        "shown_request": none,
        "shown_item": none,
        "shown_action": none,
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
