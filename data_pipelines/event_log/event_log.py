"""The event log: one record a user in ArrayRecord, and the tables beside it.

    LOG/log.json            name, fingerprint, sizes of all other files; written last, so a log that has it is whole
    LOG/items.json          original ids, titles and texts to search, index = item id, [0] == ""
    LOG/queries.json        texts, index = query id, [0] == ""
    LOG/users.json          original ids, index = record
    LOG/lengths.npy         (users,) int32: events of each user
    LOG/given_split.npy     (users, 2) int32: where training ends and test begins, if the data give a split
    LOG/item_matrices/*.npy, LOG/query_matrices/*.npy     (ids, width) float16, row 0 zero
    LOG/text_encoder/       what made the matrices "text", if there are such
    LOG/event_log_tfds/1.0.0/   the records, written by TensorFlow Datasets

Id 0 is "none" everywhere. A log is valid or is refused; nothing is dropped.
"""

from __future__ import annotations

import bisect
import contextlib
import datetime
import difflib
import io
import json
import pathlib
import re
import shutil
import threading
import types
import typing

import numpy as np

from data_pipelines.event_log.log_parts import Parts, PassingRecords
from data_pipelines.event_log.stored_records import StoredRecords, decode
from data_pipelines.features import text
from data_pipelines.files import disk
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError, first_line

FORMAT = 1


class Ancestor(typing.NamedTuple):
    """A version that a log goes on from: its sizes, id 0 included, tell which ids it has."""

    version: int
    fingerprint: str
    items: int
    queries: int
    actions: int
    users: int
    events: int
    last_time: int  # Unix seconds


RECORDS = "event_log_tfds/1.0.0"
_PARTS = re.compile(
    r"(items|queries|users)\.json|(lengths|given_split)\.npy|(item|query)_matrices/[^/]+\.npy|"
    rf"text_encoder/\w+\.(json|npy)|{re.escape(RECORDS)}/[^/]+"
)  # files of a log beside log.json, which is written last


class EventLog:
    """A prepared log, for random access. Threads may share it; a pickled one is its path, opened anew."""

    path: pathlib.Path
    name: str
    fingerprint: str
    item_ids: list[str]
    item_titles: list[str]
    item_texts: list[str]  # what is to be searched of an item
    queries: list[str]
    actions: list[str]
    labels: dict[str, tuple[int, ...]]
    item_matrices: dict[str, np.ndarray]
    query_matrices: dict[str, np.ndarray]
    item_columns: dict[str, list[str]]  # what the columns of an item matrix stand for, where that is known
    lengths: np.ndarray
    given_split: np.ndarray | None  # int32 (users, 2): where training ends and test begins, if the data say so
    user_ids: list[str]
    candidate_features: tuple[str, ...]  # what the columns of `shown_feature` stand for
    source: dict[str, typing.Any]
    _about: dict[str, typing.Any]  # log.json: values as different as its keys

    @classmethod
    def load(cls, path: str | pathlib.Path) -> EventLog:
        """Opens a prepared log; a missing, half-written or damaged one is a `UserError`."""
        path = pathlib.Path(path).expanduser().resolve()
        if not path.is_dir():
            raise UserError(f"{path}: there is no such event log; prepare one with `synergen data prepare NAME`")
        if not (path / "log.json").is_file():
            raise UserError(
                f"{path}: not an event log, or one that was only half written: log.json is missing; prepare it again"
            )
        self = cls()
        self.path = path
        try:
            self._about = about = json.loads((path / "log.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise UserError(
                    f"{path}: format {about['format']} of event log, this version reads {FORMAT}: prepare it again"
                )
            for file, size in about["files"].items():
                found = (path / file).stat().st_size
                if found != size:
                    raise UserError(f"{path / file}: damaged: {found} bytes, not {size}; prepare the log again")
            self.name, self.fingerprint, self.source = about["name"], about["fingerprint"], about["source"]
            items = json.loads((path / "items.json").read_text(encoding="utf-8"))
            self.item_ids, self.item_titles, self.item_columns = items["ids"], items["titles"], items["columns"]
            self.item_texts = items.get("texts", self.item_titles)
            self.queries = json.loads((path / "queries.json").read_text(encoding="utf-8"))
            self.user_ids = json.loads((path / "users.json").read_text(encoding="utf-8"))
            self.actions = about["actions"]
            self.candidate_features = tuple(about.get("candidate_features", ()))
            self.labels = {name: tuple(ids) for name, ids in about["labels"].items()}
            self.lengths = np.load(path / "lengths.npy")
            given = "given_split.npy" in about["files"]
            self.given_split = np.load(path / "given_split.npy") if given else None
            self.item_matrices = {n: np.load(path / "item_matrices" / f"{n}.npy") for n in about["item_matrices"]}
            self.query_matrices = {n: np.load(path / "query_matrices" / f"{n}.npy") for n in about["query_matrices"]}
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing from the event log; prepare the log again") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); prepare the log again") from None
        self._open()
        return self

    @property
    def spec(self) -> LogSpec:
        """The sizes that fix a model's shapes."""
        widths = lambda matrices: tuple((name, matrix.shape[1]) for name, matrix in matrices.items())
        return LogSpec(
            items=len(self.item_ids),
            actions=len(self.actions),
            queries=len(self.queries),
            labels=tuple(self.labels),
            item_matrices=widths(self.item_matrices),
            query_matrices=widths(self.query_matrices),
            candidate_features=self.candidate_features,
        )

    def summary(self) -> dict[str, typing.Any]:
        """What one prints of a log."""
        day = lambda seconds: datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
        return {
            "events": int(self.lengths.sum(dtype=np.int64)),
            "users": len(self),
            "items": len(self.item_ids) - 1,
            "queries": len(self.queries) - 1,
            "from": day(self._about["first_time"]),
            "to": day(self._about["last_time"]),
            "fingerprint": self.fingerprint,
        }

    @property
    def unknown_items(self) -> tuple[int, list[str]]:
        """How many items have no event and zeros in every matrix, so that nothing can be said of them; the first few ids.

        Logs of earlier versions do not tell, and have none.
        """
        about = self._about.get("unknown_items", {"count": 0, "first": []})
        return about["count"], about["first"]

    @property
    def last_time(self) -> int:
        """When the newest event happened, Unix seconds."""
        return self._about["last_time"]

    @property
    def first_time(self) -> int:
        """When the oldest event happened, Unix seconds."""
        return self._about["first_time"]

    @property
    def version(self) -> int:
        """Which of the versions of a log that grows it is, from 1 (`versions`)."""
        return self._about.get("version", 1)

    @property
    def lineage(self) -> tuple[Ancestor, ...]:
        """The versions that it goes on from, oldest first; ids that they have mean the same in it."""
        return tuple(Ancestor(**one) for one in self._about.get("lineage", ()))

    @property
    def as_ancestor(self) -> Ancestor:
        """What the next version will say of this one."""
        spec = self.spec
        sizes = spec.items, spec.queries, spec.actions, len(self), int(self.lengths.sum(dtype=np.int64))
        return Ancestor(self.version, self.fingerprint, *sizes, self.last_time)

    def ancestor(self, fingerprint: str) -> Ancestor | None:
        """The version of that fingerprint, this one included; None: it does not go on from such a one."""
        found = (one for one in (*self.lineage, self.as_ancestor) if one.fingerprint == fingerprint)
        return next(found, None)

    def text_encoder(self) -> text.Encoder | None:
        """The encoder of the matrices "text", for queries and items that come later; None if the log has none."""
        has = any(file.startswith("text_encoder/") for file in self._about["files"])
        return text.load(self.path / "text_encoder") if has else None

    @property
    def query_note(self) -> str:
        """What must be said beside every result on a log whose queries, or times, are not what they seem; else ""."""
        if not self.source.get("generated_queries"):
            return self.source.get("note", "")
        made = self.source["queries"]
        return (
            f"queries are generated from {made.get('of', 'metadata')} ({made['templates']} templates, "
            f"{made['share']:.0%} of events, seed {made['seed']}), nobody typed them"
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, index: typing.SupportsIndex) -> dict[str, typing.Any]:
        """One user: `user_id` and arrays, `time` int64 and all others int32, sorted by time.

        Logs with F candidate features have `shown_feature` float32 (shown, F) as well.
        """
        i = index.__index__()
        if not -len(self) <= i < len(self):
            raise IndexError(f"user {i} of {len(self)}")
        try:
            return decode(self._reader()[i % len(self)], self.candidate_features)
        except UserError:
            raise
        except Exception as error:  # the reader raises what its C++ side makes of a damaged file
            raise UserError(
                f"{self.path}: record {i} cannot be read ({first_line(error)}); prepare the log again"
            ) from None

    def find_user(self, user_id: str) -> int:
        """The index of a user's record."""
        if self._numbers is None:
            self._numbers = {user: i for i, user in enumerate(self.user_ids)}
        if user_id not in self._numbers:
            ids = sorted(self.user_ids)
            at = bisect.bisect(ids, str(user_id))
            near = difflib.get_close_matches(str(user_id), ids[max(at - 1000, 0) : at + 1000], n=3, cutoff=0)
            raise UserError(f"log {self.name} has no user {user_id!r}; near it: {', '.join(map(repr, near))}")
        return self._numbers[user_id]

    def _open(self) -> None:
        self._numbers: dict[str, int] | None = None
        self._records: typing.Any = None
        self._lock = threading.Lock()

    def _reader(self):
        if self._records is None:
            with self._lock:
                if self._records is None:
                    # Bytes of our own decoding, not TFDS's decoded dict: that takes five times as long.
                    records = StoredRecords(self.path / RECORDS)
                    if len(records) != len(self):
                        raise UserError(f"{self.path}: {len(records)} records, not {len(self)}; prepare the log again")
                    self._records = records
        return self._records

    def __reduce__(self):
        return _same, (self.path, self.fingerprint)


def _same(path: pathlib.Path, fingerprint: str) -> EventLog:
    """A log that is opened again, in a worker of the feed for example. Another one at its place would go unseen."""
    log = EventLog.load(path)
    if log.fingerprint != fingerprint:
        raise UserError(f"{path}: the log was replaced by another one while it was in use: run the command again")
    return log


def write(
    path: str | pathlib.Path,
    *,
    name: str,
    users: typing.Iterable[dict[str, typing.Any]],
    item_ids: typing.Sequence[str],
    item_titles: typing.Sequence[str],
    queries: typing.Sequence[str],
    actions: typing.Sequence[str],
    labels: typing.Mapping[str, typing.Sequence[int]],
    item_matrices: typing.Mapping[str, np.ndarray] = types.MappingProxyType({}),
    query_matrices: typing.Mapping[str, np.ndarray] = types.MappingProxyType({}),
    item_columns: typing.Mapping[str, typing.Sequence[str]] = types.MappingProxyType({}),
    item_texts: typing.Sequence[str] | None = None,
    text_encoder: text.Encoder | None = None,
    candidate_features: typing.Sequence[str] = (),
    shards: typing.Sequence[pathlib.Path] = (),
    source: dict[str, typing.Any],
    before: EventLog | None = None,
) -> EventLog:
    """Validates a log and writes it to the folder `path`, whole or not at all; a log that was there is replaced.

    Texts of items, their titles if none are given, are no part of the fingerprint; matrices made of them are.

    Args:
      shards: ArrayRecord files that hold all `users` already, in their order. They are moved into the log.
      before: the version that this one goes on from.
    """
    path = pathlib.Path(path).expanduser().resolve()
    check_place(path)
    parts = Parts(
        name=name,
        item_ids=list(item_ids),
        item_titles=list(item_titles),
        item_texts=list(item_titles if item_texts is None else item_texts),
        queries=list(queries),
        actions=list(actions),
        labels={key: [int(action) for action in ids] for key, ids in labels.items()},
        item_matrices={key: np.asarray(matrix, np.float16) for key, matrix in item_matrices.items()},
        query_matrices={key: np.asarray(matrix, np.float16) for key, matrix in query_matrices.items()},
        item_columns={key: list(columns) for key, columns in item_columns.items()},
        candidate_features=tuple(candidate_features),
        text_encoder=text_encoder,
    )
    parts.validate()
    records = PassingRecords(parts)
    with disk.room(path.parent), _replacing(path) as folder:
        _write_records(folder, records.checked(users), bool(parts.candidate_features), shards)
        parts.save(folder)
        records.save(folder)
        disk.write_json(folder / "log.json", _about(folder, parts, records, source) | _descent(before))
        written = EventLog.load(folder)
        for index in (0, len(written) - 1):  # opens every part once before the log counts as whole
            if written[index]["user_id"] != records.user_ids[index]:
                raise RuntimeError(f"record {index} came back as another user's")
    return EventLog.load(path)


def _about(
    folder: pathlib.Path, parts: Parts, records: PassingRecords, source: dict[str, typing.Any]
) -> dict[str, typing.Any]:
    """What log.json says, when all other files are there."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        "format": FORMAT,
        "name": parts.name,
        "fingerprint": records.fingerprint(),
        "actions": parts.actions,
        "labels": parts.labels,
        "candidate_features": list(parts.candidate_features),
        "item_matrices": list(parts.item_matrices),
        "query_matrices": list(parts.query_matrices),
        "first_time": records.first_time,
        "last_time": records.last_time,
        "unknown_items": records.unknown_items(),
        "source": source,
        "files": {file.relative_to(folder).as_posix(): file.stat().st_size for file in files},
    }


def _descent(before: EventLog | None) -> dict[str, typing.Any]:
    """What log.json says of the versions before, where there are some."""
    if before is None:
        return {}
    lineage = [one._asdict() for one in (*before.lineage, before.as_ancestor)]
    return {"version": before.version + 1, "lineage": lineage}


def check_place(path: pathlib.Path) -> None:
    """Refuses to write a log over what is none, nor the rest of one that lost its log.json."""
    if not path.exists() or (path / "log.json").is_file():
        return
    files = (file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
    if not path.is_dir() or not all(map(_PARTS.fullmatch, files)):
        raise UserError(f"{path}: exists and is not an event log: move it away, or give another name or folder")


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> typing.Iterator[pathlib.Path]:
    """A new folder beside `path` that takes its place if all goes well, and is removed if not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.scratch(path.parent, path.name, "half-written") as folder:
            (folder / "new").mkdir()
            yield folder / "new"
            if path.exists():
                path.rename(folder / "old")
            try:
                (folder / "new").rename(path)
            except OSError:
                if (folder / "old").exists():
                    (folder / "old").rename(path)
                raise
    except OSError as error:
        if disk.is_full(error):
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _write_records(
    folder: pathlib.Path, records: typing.Iterator[dict], features: bool, shards: typing.Sequence[pathlib.Path]
) -> None:
    """Runs the TFDS builder without network, TensorFlow or a word on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        import tensorflow_datasets as tfds

        from data_pipelines.event_log.event_log_tfds.event_log_tfds_dataset_builder import Builder

        tfds.disable_progress_bar()
        settings = tfds.download.DownloadConfig(
            try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
        )
        Builder(records=records, shards=shards, candidate_features=features, data_dir=folder).download_and_prepare(
            download_dir=folder / "downloads", download_config=settings
        )
    shutil.rmtree(folder / "downloads", ignore_errors=True)
