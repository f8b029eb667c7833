"""What a log is written of: the parts that describe its ids, and its records, which pass one by one. Both are checked here."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np
from tqdm import tqdm

from data_pipelines.features import text
from data_pipelines.files import disk
from data_pipelines.files.records import DTYPES, FEATURES, Fingerprint, validate, validate_tables
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

NAMED = 5  # items of which nothing is known that a log names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """All of a log but its records, as `event_log.write` takes it and in the types of the files."""

    name: str
    item_ids: list[str]
    item_titles: list[str]
    item_texts: list[str]
    queries: list[str]
    actions: list[str]
    labels: dict[str, list[int]]
    item_matrices: dict[str, np.ndarray]  # float16
    query_matrices: dict[str, np.ndarray]
    item_columns: dict[str, list[str]]
    candidate_features: tuple[str, ...]
    text_encoder: text.Encoder | None

    def validate(self) -> None:
        """Refuses parts that do not fit each other."""
        names = ("item_ids", "item_titles", "item_texts", "queries", "actions")
        tables = {name: getattr(self, name) for name in names}
        matrices = (self.item_matrices, self.query_matrices)
        validate_tables(self.name, tables, self.labels, *matrices, self.item_columns, self.candidate_features)

    @property
    def sizes(self) -> LogSpec:
        """What a record is held against."""
        sizes = (len(self.item_ids), len(self.actions), len(self.queries))
        return LogSpec(*sizes, labels=tuple(self.labels), candidate_features=self.candidate_features)

    def fingerprint(self) -> Fingerprint:
        """The fingerprint of all that gives records their meaning, before the first record."""
        found = Fingerprint(items=self.item_ids, queries=self.queries, actions=self.actions, labels=self.labels)
        for kind, matrices in (("item", self.item_matrices), ("query", self.query_matrices)):
            for key, matrix in matrices.items():
                found.matrix(f"{kind}/{key}", matrix)
        if self.candidate_features:
            found.candidate_features(self.candidate_features)
        return found

    def save(self, folder: pathlib.Path) -> None:
        """Writes the files of items and queries to the folder of a log."""
        items = {"ids": self.item_ids, "titles": self.item_titles, "texts": self.item_texts}
        disk.write_json(folder / "items.json", {**items, "columns": self.item_columns})
        disk.write_json(folder / "queries.json", self.queries)
        for kind, matrices in (("item_matrices", self.item_matrices), ("query_matrices", self.query_matrices)):
            (folder / kind).mkdir()
            for key, matrix in matrices.items():
                disk.save(folder / kind / f"{key}.npy", matrix)
        if self.text_encoder:
            text.save(self.text_encoder, folder / "text_encoder")


class PassingRecords:
    """The records of a log on their way to its files, and what was told from them once all of them have passed."""

    def __init__(self, parts: Parts):
        self._parts, self._sizes = parts, parts.sizes
        self._fingerprint = parts.fingerprint()
        self._known = np.zeros(self._sizes.items, bool)  # items with an event, or with a number in some matrix
        for matrix in parts.item_matrices.values():
            self._known |= matrix.any(axis=1)
        self.user_ids: list[str] = []
        self.lengths: list[int] = []
        self.stops: list[np.ndarray] = []  # of a given split
        self.first_time, self.last_time = 2**63, 0

    def checked(self, users: typing.Iterable[dict[str, typing.Any]]) -> typing.Iterator[dict[str, typing.Any]]:
        """The records in the types of the files, features row after row, validated one by one; a log has some."""
        seen: set[str] = set()
        name, features = self._parts.name, bool(self._parts.candidate_features)
        for number, given in enumerate(tqdm(users, desc=f"write {name}", unit=" users", disable=None)):
            validate(given, self._sizes, f"{name}, record {number}")
            user = given["user_id"]
            if user in seen:
                raise UserError(f"{name}, record {number}: user {user!r} comes a second time")
            seen.add(user)
            shown = {FEATURES: np.asarray(given[FEATURES], "<f4")} if features else {}
            record = {"user_id": user} | {key: np.asarray(given[key], dtype) for key, dtype in DTYPES.items()} | shown
            self._count(record)
            self._given(given.get("given_split"), f"{name}, record {number} (user {user!r})")
            yield record | {key: values.ravel() for key, values in shown.items()}
        if not seen:
            raise UserError(f"{name}: a log without users")
        if self.stops:
            self._fingerprint.given_split(np.array(self.stops, np.int32))

    def _given(self, stops: np.ndarray | None, where: str) -> None:
        """Keeps where a user's training ends and test begins, which either all users have, or none."""
        if len(self.stops) != (0 if stops is None else len(self.user_ids) - 1):
            raise UserError(f"{where}: either all users have a given split, or none")
        if stops is not None:
            first, last = (int(stop) for stop in stops)
            if not 0 <= first <= last <= self.lengths[-1]:
                raise UserError(f"{where}: a split at {first} and {last} of {self.lengths[-1]} events")
            self.stops.append(stops)

    def _count(self, record: dict[str, typing.Any]) -> None:
        time = record["time"]
        self.user_ids.append(record["user_id"])
        self.lengths.append(len(record["item"]))
        self._known[record["item"]] = True
        self.first_time, self.last_time = min(self.first_time, int(time[0])), max(self.last_time, int(time[-1]))
        self._fingerprint.record(record)

    def save(self, folder: pathlib.Path) -> None:
        """Writes the files of users to the folder of a log."""
        disk.write_json(folder / "users.json", self.user_ids)
        disk.save(folder / "lengths.npy", np.array(self.lengths, np.int32))
        if self.stops:
            disk.save(folder / "given_split.npy", np.array(self.stops, np.int32))

    def fingerprint(self) -> str:
        """That of the whole log."""
        return self._fingerprint.hexdigest()

    def unknown_items(self) -> dict[str, int | list[str]]:
        """How many items have no event and zeros in every matrix, and the first few ids."""
        unknown = 1 + np.flatnonzero(~self._known[1:])
        return {"count": len(unknown), "first": [self._parts.item_ids[i] for i in unknown[:NAMED]]}
