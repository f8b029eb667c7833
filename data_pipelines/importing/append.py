"""More events, users, items and queries for a log that is there: the version after its newest.

The table is read as `own_log.import_log` reads one, with the columns that the log was imported with. Ids never change
meaning: what is new comes behind. What is known of an item is what the newest table that has it says.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from data_pipelines.event_log import growing, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.files import disk
from data_pipelines.importing import event_files, item_table, own_log, redescribe, row_shapes, timestamps
from data_pipelines.importing.gathered import Gathered
from data_pipelines.importing.options import Options, checked
from data_pipelines.sources.interactions import ordered
from data_pipelines.sources.prepare import locate
from synergen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Appended:
    """What an append made of a log, and what joined."""

    log: EventLog  # the version that was there before, where nothing was new
    change: dict[str, typing.Any]  # as the log's `source` has it
    removed: list[int]  # numbers of older versions that no run needed


def append(
    name: str | pathlib.Path,
    events: str | pathlib.Path,
    *,
    items: str | pathlib.Path | None = None,
    options: Options | None = None,
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
) -> Appended:
    """Adds a table, or a folder or pattern of them, to a log: its next version, whole or not at all.

    Args:
      name: of the log, or its folder.
      items: a table that describes new items, or known ones anew. Columns of tags are those that the log has.
      options: of columns, times, bad rows, lists and vectors; by default as the log was imported.
      now: as of `own_log.import_log`.

    Raises:
      UserError: as `own_log.import_log`; the log has events of the table already, which `drop` "duplicates" leaves out; it
        is of a kind that does not grow; or another process is changing it.
    """
    with growing.newest(locate(name, data_dir)) as log:
        files = event_files.EventFiles(events)
        options = as_before(log, files, items, options or Options())
        refuse(log, options)
        roles, table = own_log.opened(files, items, options)
        with disk.room(log.path.parent), disk.scratch(log.path.parent, log.name, "append") as folder:
            new = _New(log, Gathered(files, roles, options, folder, now, None), table)
            new.read()
            if not new.events and table is None:
                return Appended(log, new.change(), [])
            grown = new.write()
        return Appended(grown, grown.source["changes"][-1], versions.prune(grown.path))


def as_before(log: EventLog, files: event_files.EventFiles, items, options: Options) -> Options:
    """Options with what was not given as it was when the log was imported."""
    source = log.source
    columns = {role: name for role, name in source.get("columns", {}).items() if name in files.names}
    unit = source.get("time_unit", "auto") if source.get("time_unit_was_given") else "auto"
    tags = []
    if items is not None:
        there = event_files.EventFiles(items).names
        tags = [name for name in log.item_columns if name in there]
    return dataclasses.replace(
        checked(items, options),
        columns=columns | dict(options.columns),
        time_unit=unit if options.time_unit == "auto" else options.time_unit,
        order="file" if source.get("columns", {}).get("time") == row_shapes.TIMES else options.order,
        tags=tags,
    )


def refuse(log: EventLog, options: Options) -> None:
    """Refuses logs that do not grow, and options that an append does not take."""
    why = ""
    if log.candidate_features:
        why = f"its shown items have features ({', '.join(log.candidate_features)}), which a table does not tell"
    elif log.given_split is not None or "part" in options.columns:
        why = "a split that the data give is for a log that is imported whole"
    if why:
        raise UserError(f"log {log.name} cannot be appended to: {why}: import all of it anew")
    if wrong := [name for name in options.vectors if name not in log.item_matrices or name in log.item_columns]:
        raise UserError(
            f"--vectors {wrong[0]}: the log has no such matrix; it has {', '.join(log.item_matrices) or 'none'}"
        )


class _New:
    """What joins a log."""

    def __init__(self, log: EventLog, gathered: Gathered, table: item_table.Items | None):
        self.log, self.gathered, self.table = log, gathered, table
        self.users = {user: i for i, user in enumerate(log.user_ids)}
        self.old = {"item": log.item_ids, "query": log.queries, "action": log.actions}
        if gathered.options.order == "file":
            gathered.before = log.last_time + 1 - timestamps.EARLIEST

    def read(self) -> None:
        """Reads the table, and refuses events that the log has."""
        self.gathered.read()
        self.codes = {role: self._coded(role, ids) for role, ids in self.old.items()}
        self.gathered.sort(self._order, self._known)
        used = {role: self.gathered.count(role) for role in self.old}
        self.events = int(used["action"].sum())
        used["item"] += self.gathered.shown()
        self.tables = {}
        for role, ids in self.old.items():
            texts = [text for text, count in zip(self._texts(role), used[role][1:].tolist()) if count]
            texts += self.table.ids if self.table and role == "item" else []
            self.tables[role] = [*ids, *ordered(set(texts).difference(ids))]
            self.codes[role] = np.maximum(self._coded(role, self.tables[role]), 0)

    def _texts(self, role: str) -> list[str]:
        return self.gathered.vocabularies[role].texts()

    def _coded(self, role: str, ids: list[str]) -> np.ndarray:
        """The id of each code of the table, int32; -1: there is none."""
        number = {one: i for i, one in enumerate(ids)}
        return np.array([0, *(number.get(one, -1) for one in self._texts(role))], np.int32)

    def _order(self, users: typing.Iterable[str]) -> list[str]:
        """Users of the log in its order, then new ones."""
        users = set(users)
        known = sorted(users & self.users.keys(), key=self.users.__getitem__)
        return known + ordered(users - self.users.keys())

    def _known(self, events: np.ndarray) -> np.ndarray:
        """A mask of those of sorted events that the log has, to the second."""
        known = np.zeros(len(events), bool)
        starts = np.flatnonzero(np.diff(events["user"], prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(events)]):
            number = self.users.get(self.gathered.users[events["user"][start]])
            if number is not None:
                record, own = self.log[number], events[start:stop]
                had = set(zip(*(record[name].tolist() for name in ("time", *self.old))))
                coded = [self.codes[role][own[role]].tolist() for role in self.old]
                known[start:stop] = [one in had for one in zip((own["time"] // 10**9).tolist(), *coded)]
        return known

    def change(self) -> dict[str, typing.Any]:
        """What is said of the append."""
        found = self.gathered.found
        met = {
            user for bucket in self.gathered.buckets for events, _ in bucket.slices() for user in set(events["user"])
        }
        return {
            "what": "append",
            "origin": self.gathered.files.where,
            "rows": found.rows,
            "events": self.events,
            "dropped": found.problems.counts(),
            "out_of_order": found.late,
            "new_user": sum(self.gathered.users[user] not in self.users for user in met),
            **{f"new_{role}": len(self.tables[role]) - len(ids) for role, ids in self.old.items()},
        }

    def write(self) -> EventLog:
        """Writes the next version."""
        log, tables = self.log, self.tables
        engage, *others = log.labels.items()
        labels = {engage[0]: (*engage[1], *range(len(log.actions), len(tables["action"]))), **dict(others)}
        known = redescribe.redescribe(log, tables["item"], tables["query"], self.table)
        fresh = self.gathered.records(self.codes, len(tables["item"]))
        return growing.write_next(
            log,
            growing.grown(log, fresh),
            self.change() | known.change,
            item_ids=tables["item"],
            queries=tables["query"],
            actions=tables["action"],
            labels=labels,
            item_titles=known.titles,
            item_texts=known.texts,
            item_matrices=known.item_matrices,
            query_matrices=known.query_matrices,
        )
