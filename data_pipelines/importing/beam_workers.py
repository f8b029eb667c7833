"""What the workers of `beam_log` do with a file of rows or with a bucket of users."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import io
import itertools
import pathlib
import typing

import numpy as np

from data_pipelines.event_log import shared_files, stored_records
from data_pipelines.files.records import DTYPES, validate
from data_pipelines.importing import event_files, event_rows, row_shapes, sorted_events, timestamps
from data_pipelines.importing.bad_rows import Problems
from data_pipelines.importing.event_rows import CODED, Found
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

COUNTED = ("item", "query", "action")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker must know."""

    inputs: tuple[str, ...]
    where: str
    roles: dict[str, str]
    now: float
    folder: str  # that all workers reach
    kind: str = ""  # what the times count
    mixed: bool = False  # some count something else
    example: str = ""  # the first time that cannot be read
    by_number: bool = False  # how users are ordered
    firsts: tuple[str, ...] = ()  # the first user of each bucket
    least: int = 1  # events that a user must have, when buckets are thinned
    stage: str = "sort"  # which wrote the buckets
    sizes: LogSpec | None = None
    shape: row_shapes.Shape = row_shapes.EVENTS

    def found(self) -> Found:
        return Found(Problems(), timestamps.Census(self.now), example=self.example)

    def key(self) -> typing.Callable[[str], typing.Any]:
        """What users are ordered by, as `interactions.ordered` has it."""
        return (lambda user: (int(user), user)) if self.by_number else (lambda user: user)

    def path(self, name: str, number: int | None = None) -> str:
        """A file of the shared folder."""
        return f"{self.folder}/{name}" + ("" if number is None else f"-{number:06d}")


@dataclasses.dataclass
class Report:
    """What came of one file or bucket; `number` is its place among all."""

    number: int
    found: Found
    bucket: bool = False
    actions: set[str] = dataclasses.field(default_factory=set)
    users: int = 0
    events: int = 0
    refused: str = ""  # the message of what the user must mend


def add_pairs(pairs: typing.Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The sum of pairs."""
    events = shown = 0
    for one, other in pairs:
        events, shown = events + one, shown + other
    return events, shown


def _tagged(report: Report):
    from apache_beam import pvalue

    return pvalue.TaggedOutput("report", report)


def _cleaned(number: int, job: Job, found: Found) -> typing.Iterator[event_rows.Rows]:
    """The rows of one file, numbered over all files; what is wrong with others is added to `found`."""
    url, columns = job.inputs[number], list(dict.fromkeys(job.roles.values()))
    with shared_files.fetched(url) as path:
        try:
            file = event_files.EventFiles(path)
            lacking = [name for name in columns if name not in file.names]
            if lacking and file.form != "JSON lines":
                raise UserError(f"{path}: there is no column {lacking[0]!r}; it has {', '.join(file.names)}")
            for piece in file.pieces(
                columns, [r for r in event_rows.ROLES if r not in (*job.roles, *event_rows.NAMED)]
            ):
                base = number * event_files.FILE
                broken = {reason: base + rows for reason, rows in piece.broken.items()}
                piece = dataclasses.replace(piece, rows=base + piece.rows, broken=broken)
                piece = job.shape.events(piece, job.roles, 0)
                yield event_rows.clean(piece, job.roles, job.where, found)
        except UserError as error:
            raise UserError(str(error).replace(str(path), url)) from None


def survey(number: int, job: Job):
    """(user, weight), and a report."""
    import polars as pl

    report = Report(number, job.found())
    try:
        for rows in _cleaned(number, job, report.found):
            shown = pl.col("shown").str.count_matches("|", literal=True).fill_null(0) if "shown" in rows.columns else 0
            users = pl.DataFrame(rows.columns).select("user", weight=1 + shown / 8).group_by("user").sum()
            yield from users.iter_rows()
            actions = rows.columns.get("action", pl.Series(["interact"])).unique()
            report.actions |= set(actions.head(event_rows.MAX_ACTIONS + 1).to_list())
            report.actions = set(itertools.islice(report.actions, event_rows.MAX_ACTIONS + 1))
    except UserError as error:
        report.refused = str(error)
    yield _tagged(report)


def deal(number: int, job: Job):
    """(bucket, rows as Arrow bytes), and a report."""
    import polars as pl

    report, key = Report(number, job.found()), job.key()
    firsts = [key(user) for user in job.firsts]
    for rows in _cleaned(number, job, job.found()):
        time, good = event_rows.moments(rows.times, rows.row, job.kind, job.mixed, report.found)
        frame = pl.DataFrame({"row": rows.row, "time": time, **rows.columns}).filter(good)
        users = frame["user"].unique()
        bucket = pl.Series([bisect.bisect_right(firsts, key(user)) - 1 for user in users], dtype=pl.Int64)
        frame = frame.join(pl.DataFrame({"user": users, "bucket": bucket}), on="user")
        for (target,), part in frame.partition_by("bucket", as_dict=True, include_key=False).items():
            part.write_ipc(data := io.BytesIO(), compression="zstd")
            yield target, data.getvalue()
    yield _tagged(report)


class _Bucket(typing.NamedTuple):
    """Sorted events of whole users, whose codes count within the bucket: 0 is none, `texts[role][code - 1]`."""

    events: np.ndarray  # EVENT; `user` counts from 0
    shown: np.ndarray
    texts: dict[str, list[str]]

    def results(self, number: int, found: Found):
        """((role, text), (events, times shown)), and a report."""
        for role in COUNTED:
            size = len(self.texts[role]) + 1
            events = np.bincount(self.events[role], minlength=size)[1:].tolist()
            shown = np.bincount(self.shown if role == "item" else [], minlength=size)[1:].tolist()
            for text, *count in zip(self.texts[role], events, shown):
                if any(count):
                    yield (role, text), tuple(count)
        users = len(np.unique(self.events["user"]))
        yield _tagged(Report(number, found, bucket=True, users=users, events=len(self.events)))


def sort(bucket, job: Job):
    """Sorts and keeps the rows of a bucket; what `_Bucket.results` yields."""
    import polars as pl

    number, parts = bucket
    frame = pl.concat([pl.read_ipc(io.BytesIO(part)) for part in parts]).sort("row")
    texts = {role: frame[role] for role in frame.columns if role not in ("row", "time")}
    none = np.zeros(len(frame), np.int8)
    rows = event_rows.Rows(texts, timestamps.Times(frame["time"].to_numpy(), none, none), frame["row"].to_numpy())
    vocabularies = {role: event_rows.Vocabulary() for role in CODED}
    events, shown = event_rows.encode(rows, vocabularies)
    texts = {role: vocabulary.texts() for role, vocabulary in vocabularies.items()}
    users = sorted(texts["user"], key=job.key())
    rank = {user: i for i, user in enumerate(users)}
    events["user"] = np.array([-1, *map(rank.__getitem__, texts["user"])], np.int32)[events["user"]]
    found = job.found()
    in_order = _Bucket(*event_rows.in_order(events, shown, found), texts | {"user": users})
    shared_files.save(job.path("sort", number), in_order)
    yield from in_order.results(number, found)


def thin(number: int, job: Job):
    """Leaves rare items and users out of a bucket, and keeps the rest; what `_Bucket.results` yields."""
    bucket: _Bucket = shared_files.load(job.path("sort", number))
    rare = _rare(job.path("rare"))
    mask = np.array([False, *(item in rare for item in bucket.texts["item"])])
    thinned = _Bucket(*sorted_events.thin(bucket.events, bucket.shown, mask, job.least), bucket.texts)
    shared_files.save(job.path("thin", number), thinned)
    yield from thinned.results(number, job.found())


def write(number: int, job: Job) -> Report:
    """Writes the records of a bucket, validated, to a shard."""
    sizes = job.sizes
    assert sizes is not None  # the ids are known by now
    bucket: _Bucket = shared_files.load(job.path(job.stage, number))
    report, events, shown = Report(number, job.found()), bucket.events, bucket.shown
    for role in COUNTED:
        codes = _codes(job.path(f"{role}-ids"), bucket.texts[role])
        events[role] = codes[events[role]]
        shown = codes[shown] if role == "item" else shown
    records = sorted_events.records(events, shown, bucket.texts["user"], sizes.items)
    try:
        shared_files.put(job.path("shard", number), lambda path: _write_shard(path, records, sizes, job.where))
    except UserError as error:
        report.refused = str(error)
    return report


def _write_shard(path: pathlib.Path, records: typing.Iterable[dict], sizes: LogSpec, where: str) -> None:
    from data_pipelines.event_log.event_log_tfds import event_log_tfds_dataset_builder

    writer = event_log_tfds_dataset_builder.open_shard(path)
    try:
        for record in records:
            validate(record, sizes, where)
            typed = {name: np.asarray(record[name], dtype) for name, dtype in DTYPES.items()}
            writer.write(stored_records.encode({"user_id": record["user_id"], **typed}))
    finally:
        writer.close()


def _codes(path: str, texts: list[str]) -> np.ndarray:
    """The ids of texts, after that of none; 0 where a text has none."""
    import polars as pl

    wanted = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    few = _ids(path).join(wanted, on="text", how="semi")  # the large table is gone through, not hashed
    found = wanted.join(few, on="text", how="left", maintain_order="left")
    return np.append(np.int32(0), found["code"].fill_null(0).to_numpy())


@functools.lru_cache(maxsize=len(COUNTED))
def _ids(path: str) -> pl.DataFrame:
    """A table of ids, once in each process."""
    import polars as pl

    with shared_files.fetched(path) as file:
        return pl.read_ipc(file)


@functools.lru_cache(maxsize=1)
def _rare(path: str) -> frozenset[str]:
    return frozenset(shared_files.load(path))
