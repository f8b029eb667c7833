"""From one version of an event log to the next: with more events, without some users, without old events.

Items, queries and actions keep their ids, and new ones come behind, so that what a run learned of them stays true.
"""

from __future__ import annotations

import contextlib
import pathlib
import typing

import filelock
import numpy as np

from data_pipelines.event_log import event_log, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.files import disk
from data_pipelines.files.records import EVENT_FIELDS, FEATURES, SHOWN_FIELDS
from synergen_jax.errors import UserError, writing

Record = dict[str, typing.Any]
DAY = 86_400  # seconds


@contextlib.contextmanager
def newest(folder: pathlib.Path) -> typing.Iterator[EventLog]:
    """The newest version of a log, in a block in which nobody else changes the log.

    Args:
      folder: that of the newest version.

    Raises:
      UserError: there is no such log, another process is changing it, or there is a newer version.
    """
    name, _ = versions.parse(folder.name)
    lock = filelock.FileLock(folder.parent / f".{name}.lock")
    with writing(folder.parent):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"log {name}: another process is changing it: try again when it is done") from None
    try:
        disk.remove_leftovers(folder.parent)
        if (last := versions.newest(folder)) not in (None, folder):
            raise UserError(f"{folder.name} is not the newest version, which is {last.name}: changes go on from that")
        yield EventLog.load(folder)
    finally:
        lock.release()


def parts_of(log: EventLog) -> dict[str, typing.Any]:
    """All that `event_log.write` takes of a log, its name, records and source aside."""
    return {
        "item_ids": log.item_ids,
        "item_titles": log.item_titles,
        "item_texts": log.item_texts,
        "queries": log.queries,
        "actions": log.actions,
        "labels": log.labels,
        "item_matrices": log.item_matrices,
        "query_matrices": log.query_matrices,
        "item_columns": log.item_columns,
        "text_encoder": log.text_encoder(),
        "candidate_features": log.candidate_features,
    }


def write_next(log: EventLog, users: typing.Iterable[Record], change: dict[str, typing.Any], **parts) -> EventLog:
    """Writes the version after `log`, whole or not at all.

    Args:
      users: all its records.
      change: what was done, which joins the log's `source` under "changes".
      parts: of `event_log.write`, in place of those of `log`.
    """
    source = {**log.source, "changes": [*log.source.get("changes", ()), change]}
    path = versions.place(log.path, log.version + 1)
    return event_log.write(path, name=log.name, users=users, source=source, before=log, **parts_of(log) | parts)


# --- without some ----------------------------------------------------------------------------------------------------


def delete_users(folder: pathlib.Path, users: typing.Sequence[str], force: bool = False) -> tuple[EventLog, list[int]]:
    """The next version, without some users; and the numbers of the versions that had them, which are gone.

    Raises:
      UserError: a user is not in the log, or none would be left; runs were trained on what would be gone, and not
        `force`.
    """
    with newest(folder) as log:
        gone = {log.find_user(user) for user in users}
        if len(gone) == len(log):
            raise UserError(f"{log.path}: no user would be left: remove the folders of the log instead")
        before = versions.existing(log.path)
        needed = [run for path in before.values() for run in versions.needing(path)]
        if needed and not force:
            raise UserError(
                f"log {log.name}: runs were trained on versions that hold these users: {versions.listed(needed)}: they can be "
                "evaluated and asked on the next version, and no longer be trained further; give --force"
            )
        left = (_whole(log, i) for i in range(len(log)) if i not in gone)
        made = write_next(log, left, {"what": "delete-user", "users": len(gone)})
        versions.remove_others(made.path)
    return made, list(before)


def keep_days(folder: pathlib.Path, days: float) -> tuple[EventLog, list[int]]:
    """The next version, with the events of the last days before the newest event; and the versions that are gone.

    Users of whom nothing is left go, too; items, queries and actions keep their ids. Where nothing is that old, the
    version stays.

    Raises:
      UserError: `days` is not above 0.
    """
    if not days > 0:
        raise UserError(f"--days {days}: must be above 0")
    with newest(folder) as log:
        first = log.last_time - days * DAY
        if log.first_time >= first:
            return log, []
        change = {"what": "keep", "days": days, "from": int(np.ceil(first))}
        made = write_next(log, _since(log, first), change)
        return made, versions.prune(made.path)


def _whole(log: EventLog, i: int) -> Record:
    """A record with its given split, if the log has one."""
    return log[i] if log.given_split is None else log[i] | {"given_split": log.given_split[i]}


def _since(log: EventLog, first: float) -> typing.Iterator[Record]:
    for i in range(len(log)):
        record = _whole(log, i)
        start = int(np.searchsorted(record["time"], first))
        if start < len(record["time"]):
            yield without_first(record, start)


def without_first(record: Record, start: int) -> Record:
    """A record without its first events, and without what was shown in requests that are gone."""
    kept = {name: record[name][start:] for name in EVENT_FIELDS}
    shown = np.isin(record["shown_request"], kept["request"])
    names = [name for name in (*SHOWN_FIELDS, FEATURES) if name in record]
    stops = {"given_split": np.maximum(record["given_split"] - start, 0)} if "given_split" in record else {}
    return {"user_id": record["user_id"], **kept, **{name: record[name][shown] for name in names}, **stops}


# --- with more ------------------------------------------------------------------------------------------------------


def grown(log: EventLog, fresh: typing.Iterator[Record]) -> typing.Iterator[Record]:
    """The records of a log with more events.

    Args:
      fresh: records of new events: those of the log's users first, in their order, then those of new users.
    """
    coming = next(fresh, None)
    for i in range(len(log)):
        record = log[i]
        if coming is not None and coming["user_id"] == record["user_id"]:
            record, coming = merged(record, coming), next(fresh, None)
        yield record
    while coming is not None:
        yield coming
        coming = next(fresh, None)


def merged(old: Record, new: Record) -> Record:
    """One record of the events of two, by time; at equal times those of `old` come first.

    A request that an event of the other interrupts becomes two, and its shown list stays with the first. Requests are
    numbered anew.

    >>> one = lambda item, time: {name: np.array([1]) for name in EVENT_FIELDS} | {"item": np.array([item]),
    ...     "time": np.array([time]), "user_id": "u"} | {name: np.zeros(0, int) for name in SHOWN_FIELDS}
    >>> both = merged(one(7, 100), one(8, 50))
    >>> both["item"].tolist(), both["request"].tolist()
    ([8, 7], [1, 2])
    """
    offset = int(old["request"][-1])
    request = np.concatenate([old["request"], new["request"] + offset])
    order = np.argsort(np.concatenate([old["time"], new["time"]]), kind="stable")
    request = request[order]
    run = np.cumsum(np.diff(request, prepend=0) != 0)
    names, first = np.unique(request, return_index=True)
    shown = np.concatenate([old["shown_request"], new["shown_request"] + offset])
    shown = run[first[np.searchsorted(names, shown)]]
    by_run = np.argsort(shown, kind="stable")
    both = lambda name: np.concatenate([old[name], new[name]])
    return {
        "user_id": old["user_id"],
        **{name: both(name)[order] for name in EVENT_FIELDS if name != "request"},
        "request": run.astype(np.int32),
        **{name: both(name)[by_run] for name in SHOWN_FIELDS if name != "shown_request"},
        "shown_request": shown[by_run].astype(np.int32),
    }
