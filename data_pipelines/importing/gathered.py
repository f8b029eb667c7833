"""Events on their way from a table to the records of a log: read, coded, sorted, and rid of bad rows, in bounded memory."""

from __future__ import annotations

import pathlib
import typing

import numpy as np
from tqdm import tqdm

from data_pipelines.files import parts
from data_pipelines.importing import event_files, event_rows, row_shapes, sorted_events, timestamps
from data_pipelines.importing.bad_rows import Problems
from data_pipelines.importing.event_rows import MAX_ACTIONS, ROLES, Found
from data_pipelines.importing.options import Options
from data_pipelines.sources.interactions import ordered
from synergen_jax.errors import UserError

Order = typing.Callable[[typing.Iterable[str]], list[str]]


class Gathered:
    """What is known of the events while they are read and sorted."""

    def __init__(
        self, files, roles: dict[str, str], options: Options, folder: pathlib.Path, now: float | None, file_parts
    ):
        self.files, self.roles, self.options, self.folder = files, roles, options, folder
        self.file_parts = file_parts  # code of each file's part, int8 (files,), or None
        self.disorder: tuple[str, list] | None = None  # the first user whose parts are out of order, and two events
        self.vocabularies = {role: event_rows.Vocabulary() for role in event_rows.CODED}
        self.found = Found(Problems(options.drop), timestamps.Census(now))
        self.left_out: dict[str, int] = {}
        self.before = 0  # of `row_shapes.Shape.events`: where the order of a file goes on

    # --- reading: text to codes

    def read(self) -> None:
        """All pieces of the files, to one store in the order of rows."""
        self.store = sorted_events.Store(self.folder, "all")
        names = [name for name in dict.fromkeys(self.roles.values()) if name != row_shapes.TIMES]
        watched = [role for role in ROLES if role not in (*self.roles, *event_rows.NAMED)]
        before, shape = self.before, self.options.shape
        with tqdm(total=self.files.bytes, desc="read", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            for piece in self.files.pieces(names, watched):
                piece = shape.events(piece, self.roles, before)
                before += len(piece.rows)
                rows = event_rows.clean(piece, self.roles, self.files.where, self.found)
                events, shown = event_rows.encode(rows, self.vocabularies)
                if self.file_parts is not None:
                    events["part"] = self.file_parts[events["row"] // event_files.FILE]
                self.store.append(events, shown)
                check_actions(self.files.where, self.roles, len(self.vocabularies["action"]))
                bar.update(piece.size)
        if not self.found.rows:
            raise UserError(f"{self.files.where}: there are no rows after the header")

    # --- sorting

    def sort(self, order: Order = ordered, known: typing.Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Deals the events out to sorted buckets without bad rows, or refuses the files.

        Args:
          order: puts distinct users in the order of the log.
          known: gives a mask of those of sorted events, of whole users, that the log has already.
        """
        where = f"{self.files.where}: column {self.roles['time']!r}"
        self.kind = self.found.census.decide(self.options.time_unit, where, self.files.place)
        self.mixed = self.found.census.mixed(self.kind)
        texts = self.vocabularies["user"].texts()
        self.users = order(texts)
        place = {user: i for i, user in enumerate(self.users)}
        rank = np.zeros(len(texts) + 1, np.int32)
        rank[1:] = [place[user] for user in texts]
        self.buckets = sorted_events.deal(self.store, rank, self.folder, self._convert)
        for bucket in tqdm(self.buckets, desc="sort", disable=None, leave=False):
            events, shown = bucket.load()
            events, shown = event_rows.in_order(events, shown, self.found)
            if known is not None:
                again = known(events)
                self.found.problems.add("duplicates", "that the log has already", events["row"][again])
                events, shown = sorted_events.take(events, shown, ~again)
            bucket.replace(events, shown)
            self._check_parts(events)
        self.found.problems.check(self.files.where, self.found.rows, self.files.place)
        if self.disorder:
            parts.refuse(self.files.where, *self.disorder)
        self._leave_out_rare()

    def _check_parts(self, events: np.ndarray) -> None:
        at = parts.disorder(events["user"], events["part"])
        if at > 0 and self.disorder is None:
            both = [
                (int(e["part"]), int(e["time"]) / 1e9, self.files.place(int(e["row"]))) for e in events[at - 1 : at + 1]
            ]
            self.disorder = self.users[events["user"][at]], both

    def _convert(self, events: np.ndarray) -> np.ndarray:
        times = timestamps.Times(*(events[name] for name in ("time", "fraction", "form")))
        events["time"], good = event_rows.moments(times, events["row"], self.kind, self.mixed, self.found)
        return good

    def _leave_out_rare(self) -> None:
        """Leaves out rare items with their events, then users with few events; or what a k-core leaves out."""
        if (least := self.options.k_core) is not None:
            events = int(self.count("action").sum())
            left, out = sorted_events.k_core(self.buckets, len(self.vocabularies["item"]) + 1, least)
            if events and not left[1:].any():
                raise UserError(
                    f"{self.files.where}: of {events:,} events none with an item is left by a {least}-core: "
                    "give a lower --k-core"
                )
            self.left_out = {"k_core": least, **out}
            return
        least_item, least_user = self.options.min_item_events, self.options.min_user_events
        count = self.count("item")
        rare = (count > 0) & (count < least_item)
        rare[0] = False
        before = {"items": int(rare.sum()), "users": int((self.count("user", -1) > 0).sum()), "events": 0}
        if least_item <= 1 and least_user <= 1:
            return
        for bucket in self.buckets:
            events, shown = bucket.load()
            size = len(events)
            events, shown = sorted_events.thin(events, shown, rare, least_user)
            before["events"] += size - len(events)
            bucket.replace(events, shown)
        left = int((self.count("user", -1) > 0).sum())
        self.left_out = {**before, "users": before["users"] - left}

    def count(self, role: str, extra: int = 0) -> np.ndarray:
        """Events of each code of a role."""
        size = len(self.vocabularies[role]) + 1 + extra
        total = np.zeros(size, np.int64)
        for bucket in self.buckets:
            for events, _ in bucket.slices():
                total += np.bincount(events[role], minlength=size)
        return total

    def shown(self) -> np.ndarray:
        """How often each item code was shown."""
        total = np.zeros(len(self.vocabularies["item"]) + 1, np.int64)
        for bucket in self.buckets:
            for _, shown in bucket.slices():
                total += np.bincount(shown, minlength=len(total))
        return total

    def records(self, codes: dict[str, np.ndarray], items: int) -> typing.Iterator[dict[str, typing.Any]]:
        """The users of all buckets in their order, with the log's own ids for `codes`."""
        for bucket in self.buckets:
            events, shown = bucket.load()
            for role, ids in codes.items():
                events[role] = ids[events[role]]
            yield from sorted_events.records(events, codes["item"][shown], self.users, items)
            bucket.delete()


def check_actions(where: str, roles: typing.Mapping[str, str], count: int) -> None:
    """Refuses a column that names no actions."""
    if count > MAX_ACTIONS:
        raise UserError(
            f"{where}: column {roles['action']!r} holds more than {MAX_ACTIONS:,} different actions: "
            "name the right one with --columns action=..."
        )
