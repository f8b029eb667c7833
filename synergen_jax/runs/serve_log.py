"""From what was served to what is learned: events of the store, with the lists that they were chosen from, as a table.

The table is one that `synergen data append` takes: user, item, time, action, query, request, shown.
"""

from __future__ import annotations

import csv
import pathlib
import typing

from tqdm import tqdm

from synergen_jax.errors import UserError
from synergen_jax.runs import workdir as workdirs
from synergen_jax.serving import shown
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.store import Event, Store

COLUMNS = ("user", "item", "time", "action", "query", "request", "shown")
STORE, SHOWN = "serving.sqlite", "shown"  # in the workdir, by default
USERS = 500  # whose histories are read at once


def export(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    store: str | pathlib.Path | None = None,
    shown_folder: str | pathlib.Path | None = None,
    since: int = 0,
    log: str = "",
) -> dict[str, typing.Any]:
    """Writes the events of a store to a CSV file, whole or not at all, beside a service that runs.

    Args:
      workdir: of the run that is served.
      out: ends in .csv.
      store, shown_folder: where they are, if not in the workdir.
      since: Unix seconds; earlier events are left out.
      log: name of the log that the store belongs to; "": that of the run.

    Returns:
      How many events, users and lists were written, and how many events refer to an answer that was not logged.

    Raises:
      UserError: the store cannot be read, or the file cannot be written.
    """
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.suffix != ".csv":
        raise UserError(f"{out}: the table is written as CSV: give a name that ends in .csv")
    name = log or _log_name(workdir)
    lists = pathlib.Path(shown_folder) if shown_folder else workdir / SHOWN
    with open_store(store or workdir / STORE, name, write=False) as histories:
        asked = {event.request for event in _events(histories, since) if event.request}
        there = shown.read(lists, asked)
        counts = {"events": 0, "users": 0, "lists": 0, "without_list": len(asked) - len(there)}
        with workdirs.replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            told: set[str] = set()
            before = None
            for event in _events(histories, since):
                one = there.get(event.request)
                first = one is not None and event.request not in told
                told.add(event.request)
                table.writerow(_row(event, one, first))
                counts["events"] += 1
                counts["users"] += event.user != before
                counts["lists"] += first
                before = event.user
    return {"out": str(out), **counts}


def _row(event: Event, answer: shown.Shown | None, first: bool) -> list[typing.Any]:
    """A line of the table. The list stands at the first event of its request; a query of the answer is that of its events."""
    query = " ".join((event.query or (answer.query if answer else "")).split())
    listed = answer.items if first and answer and not any("|" in item for item in answer.items) else []
    return [event.user, event.item, event.time, event.action, query, event.request, "|".join(listed)]


def _events(store: Store, since: int) -> typing.Iterator[Event]:
    """All events, user by user."""
    part: list[str] = []
    for user in tqdm(store.users(), desc="export", unit=" users", disable=None, leave=False):
        part.append(user)
        if len(part) == USERS:
            yield from _of(store, part, since)
            part = []
    yield from _of(store, part, since)


def _of(store: Store, users: list[str], since: int) -> typing.Iterator[Event]:
    for history in store.histories(users):
        yield from (event for event in history.events if event.time >= since)


def _log_name(workdir: pathlib.Path) -> str:
    """The name of the log that a run was trained on, without its version."""
    from data_pipelines.event_log import versions

    _, told = workdirs.read(workdir)
    return versions.parse(pathlib.Path(told["path"]).name)[0]
