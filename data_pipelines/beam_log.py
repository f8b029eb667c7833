"""Imports a table by Apache Beam, on as many machines as there are: the records, and the fingerprint, that `own_log` makes.

Beam does what is done to rows; what is decided about all of them is decided here, between one pipeline and the next:

    survey   each file: rows are cleaned and what is wrong with them counted; events of each user
             -> what the times count; buckets of neighbouring users
    sort     each file again: rows are dealt out to buckets; each bucket is sorted, freed of repeats, and kept;
             events of each item, query and action
             -> bad rows refuse the table; the ids
    thin     each bucket, if rare items or users are to be left out; counted again
    write    each bucket: texts become ids, and its records, validated, one ArrayRecord shard
             -> the fingerprint, which goes through all records once; the log

All that workers leave for each other lies in one folder that all of them reach.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import shlex
import tempfile
import time
import typing
import uuid

import numpy as np
from tqdm import tqdm

from data_pipelines import event_files, event_log, event_rows, own_log, shared_files, sorted_events, timestamps
from data_pipelines.event_log import EventLog
from data_pipelines.event_rows import CODED, Found
from data_pipelines.interactions import ordered
from data_pipelines.prepare import default_data_dir
from data_pipelines.problems import Problems
from data_pipelines.records import DTYPES, validate
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

BUCKET = 1_000_000  # events of a bucket, or eight times as many shown items; a user is never divided
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
    example: str = ""  # the first time that cannot be read
    by_number: bool = False  # how users are ordered
    firsts: tuple[str, ...] = ()  # the first user of each bucket
    least: int = 1  # events that a user must have, when buckets are thinned
    stage: str = "sort"  # which wrote the buckets
    sizes: LogSpec | None = None

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
    actions: set[str] = dataclasses.field(default_factory=set)
    users: int = 0
    events: int = 0
    refused: str = ""  # the message of what the user must mend


def import_log(
    events: str | pathlib.Path,
    *,
    name: str,
    runner: str,
    beam_options: str = "",
    folder: str | pathlib.Path | None = None,
    items: str | pathlib.Path | None = None,
    options: own_log.Options = own_log.Options(),
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
) -> EventLog:
    """As `own_log.import_log`, by a runner of Apache Beam.

    Args:
      events: may also be a pattern or folder of a store that Beam knows, such as `gs://bucket/events/*.parquet`.
      runner: `DirectRunner`, `DataflowRunner`, `FlinkRunner`, `SparkRunner` or another that Beam has.
      beam_options: that runner's options, as on a command line.
      folder: for intermediate files; all workers and this machine must reach it. Default: beside the log.

    Raises:
      UserError: as `own_log.import_log`; Apache Beam is not installed, or has no such runner.
    """
    shared_files.systems()
    options = own_log.checked(name, items, options)
    logs = (pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()) / "logs"
    files = _Remote(str(events)) if shared_files.is_remote(events) else event_files.EventFiles(events)
    inputs = files.urls if isinstance(files, _Remote) else tuple(map(shared_files.absolute, files.paths))
    roles, table = own_log.opened(files, items, options)
    own_log.make(logs)
    with tempfile.TemporaryDirectory(prefix=f".{name}.import.", dir=logs) as own:
        shared = shared_files.absolute(own if folder is None else f"{folder}/{name}-{uuid.uuid4().hex[:8]}")
        if not shared_files.systems().exists(shared):
            shared_files.systems().mkdirs(shared)
        job = Job(inputs, files.where, roles, time.time() if now is None else now, shared)
        try:
            run = _Import(job, files, options, functools.partial(_run, runner, beam_options))
            return run.write(logs / name, name, items, table, pathlib.Path(own))
        finally:
            if folder is not None:
                shared_files.systems().delete([shared])


class _Remote(event_files.EventFiles):
    """Files of a store. Columns are those of the first; what another one lacks, its worker says."""

    def __init__(self, pattern: str):
        self.where = pattern
        found = [match.path for match in shared_files.systems().match([pattern])[0].metadata_list]
        if not found or found == [pattern.rstrip("/")] and not pathlib.PurePosixPath(pattern).suffix:
            folder = f"{pattern.rstrip('/')}/*"
            found = [match.path for match in shared_files.systems().match([folder])[0].metadata_list]
        found = [url for url in found if url.endswith((".parquet", ".csv", ".tsv", ".txt"))]
        if not found:
            raise UserError(f"{pattern}: there is no .parquet, .csv or .tsv file")
        self.urls = tuple(sorted(found))
        self.paths = [pathlib.PurePosixPath(url) for url in self.urls]
        if len({path.suffix == ".parquet" for path in self.paths}) > 1:
            raise UserError(f"{pattern}: parquet and other files together: give them apart")
        self.parquet = self.paths[0].suffix == ".parquet"
        with shared_files.fetched(self.urls[0]) as path:
            self.names = event_files.EventFiles(path).names


def _run(runner: str, flags: str, build: typing.Callable) -> None:
    """Runs a pipeline to its end. `build` adds its steps."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        pipeline = beam.Pipeline(options=PipelineOptions(shlex.split(flags), runner=runner))
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam {runner}: {error}") from None
    with pipeline:
        build(pipeline)


class _Import:
    """The machine that launches the pipelines and decides between them."""

    def __init__(self, job: Job, files: event_files.EventFiles, options: own_log.Options, run: typing.Callable):
        self.job, self.files, self.options, self._run = job, files, options, run
        self.found = job.found()
        self.found.problems = Problems(options.drop)
        self.left_out: dict[str, int] = {}

    def write(self, path: pathlib.Path, name: str, items, table, folder: pathlib.Path) -> EventLog:
        """The whole import, to a log at `path`; `folder` is one of this machine."""
        with tqdm(total=3, desc="beam", unit=" pipelines", disable=None, leave=False) as bar:
            self._survey()
            bar.update()
            buckets, counts = self._sort()
            self.found.problems.check(self.files.where, self.found.rows, self.files.place)
            if self.options.min_item_events > 1 or self.options.min_user_events > 1:
                buckets, counts = self._thin(buckets, counts)
            there = {role: list(counts[role]) for role in COUNTED}
            tables = own_log.log_tables(self.files.where, self.found.rows, there, table)
            bar.update()
            shards = self._shards(buckets, tables, folder)
        with_events = sum(events > 0 for events, _ in counts["item"].values())
        about = {"left_out": self.left_out, "items_without_events": len(tables["item"]) - 1 - with_events}
        about = own_log.source(self.files, self.job.roles, self.options, items, self.found, self.job.kind) | about
        return own_log.write(path, name, _stored(shards), tables, table, self.options, about, shards)

    def _pipeline(self, stage: str, numbers: typing.Iterable[int], build: typing.Callable) -> list[Report]:
        """Runs a pipeline over files or buckets; the reports of its workers in order."""
        import apache_beam as beam

        numbers, target = list(numbers), self.job.path(f"{stage}-reports")

        def whole(pipeline):
            start = pipeline | "numbers" >> beam.Create(numbers) | "spread" >> beam.Reshuffle()
            _ = (
                build(start)
                | "all reports" >> beam.combiners.ToList()
                | "keep reports" >> beam.Map(lambda reports: shared_files.save(target, reports))
            )

        self._run(whole)
        reports = sorted(shared_files.load(target), key=lambda report: report.number)
        for report in reports:
            if report.refused:
                raise UserError(report.refused)
        return reports

    def _survey(self) -> None:
        import apache_beam as beam

        job = self.job

        def build(numbers):
            found = numbers | "survey" >> beam.FlatMap(_survey, job).with_outputs("report", main="users")
            _ = (
                found.users.with_output_types(tuple[str, float])
                | "events of each user" >> beam.CombinePerKey(sum)
                | "users to text" >> beam.Map(json.dumps)
                | "keep users" >> beam.io.WriteToText(job.path("users"))
            )
            return found.report

        actions: set[str] = set()
        for report in self._pipeline("survey", range(len(job.inputs)), build):
            self.found.merge(report.found)
            actions |= report.actions
        if not self.found.rows:
            raise UserError(f"{job.where}: there are no rows after the header")
        own_log.check_actions(job.where, job.roles, len(actions))
        where = f"{job.where}: column {job.roles['time']!r}"
        kind = self.found.census.decide(self.options.time_unit, where, self.files.place)
        own_log.make_labels(sorted(actions), self.options.labels)  # refuses now rather than at the end
        weights = dict(_lines(job.path("users")))
        users = ordered(weights)
        weight = np.cumsum([0.0, *map(weights.__getitem__, users)])[:-1]
        starts = np.flatnonzero(np.diff(weight // BUCKET, prepend=-1) > 0)
        self.job = dataclasses.replace(
            job,
            kind=kind,
            example=self.found.example,
            by_number=all(user.isdecimal() for user in users),
            firsts=tuple(users[start] for start in starts),
        )

    def _sort(self) -> tuple[list[Report], dict[str, dict[str, tuple[int, int]]]]:
        import apache_beam as beam

        job = self.job

        def build(numbers):
            dealt = numbers | "deal" >> beam.FlatMap(_deal, job).with_outputs("report", main="rows")
            buckets = dealt.rows.with_output_types(tuple[int, bytes]) | "rows of each bucket" >> beam.GroupByKey()
            done = buckets | "sort" >> beam.FlatMap(_sort, job).with_outputs("report", main="counts")
            _count(done.counts, job.path("sort-counts"))
            return (dealt.report, done.report) | "both reports" >> beam.Flatten()

        reports = self._pipeline("sort", range(len(job.inputs)), build)
        for report in reports:
            self.found.merge(report.found)
        return [report for report in reports if report.events], _counts(job.path("sort-counts"))

    def _thin(self, buckets: list[Report], counts) -> tuple[list[Report], dict]:
        import apache_beam as beam

        rare = [item for item, (events, _) in counts["item"].items() if 0 < events < self.options.min_item_events]
        job = dataclasses.replace(self.job, least=self.options.min_user_events)
        shared_files.save(job.path("rare"), rare)

        def build(numbers):
            done = numbers | "thin" >> beam.FlatMap(_thin, job).with_outputs("report", main="counts")
            _count(done.counts, job.path("thin-counts"))
            return done.report

        reports = self._pipeline("thin", (report.number for report in buckets), build)
        total = lambda reports, what: sum(getattr(report, what) for report in reports)
        self.left_out = {"items": len(rare)} | {
            what: total(buckets, what) - total(reports, what) for what in ("users", "events")
        }
        self.job = dataclasses.replace(job, stage="thin")
        return [report for report in reports if report.events], _counts(job.path("thin-counts"))

    def _shards(self, buckets: list[Report], tables: dict[str, list[str]], folder: pathlib.Path) -> list[pathlib.Path]:
        """One a bucket, in the order of users, on a disk of this machine."""
        import apache_beam as beam
        import polars as pl

        for role in COUNTED:
            table = pl.DataFrame({"text": pl.Series(tables[role], dtype=pl.String)})
            table = table.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code"))
            shared_files.put(self.job.path(f"{role}-ids"), table.write_ipc)
        sizes = LogSpec(*(len(tables[role]) for role in ("item", "action", "query")), ("engage",))
        job = self.job = dataclasses.replace(self.job, sizes=sizes)
        numbers = [report.number for report in buckets]
        self._pipeline("write", numbers, lambda start: start | "write" >> beam.Map(_write, job))
        shards = [job.path("shard", number) for number in numbers]
        return [
            shared_files.copy(shard, folder) if shared_files.is_remote(shard) else pathlib.Path(shard)
            for shard in shards
        ]


def _lines(prefix: str) -> typing.Iterator[typing.Any]:
    """What Beam wrote as text, a line of JSON each."""
    for match in shared_files.systems().match([f"{prefix}-*-of-*"])[0].metadata_list:
        with shared_files.fetched(match.path) as path, path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _count(counts, prefix: str) -> None:
    """Sums (role, text) -> (events, times shown) over all buckets."""
    import apache_beam as beam

    _ = (
        counts.with_output_types(tuple[tuple[str, str], tuple[int, int]])
        | "count" >> beam.CombinePerKey(_sum)
        | "counts to text" >> beam.Map(json.dumps)
        | "keep counts" >> beam.io.WriteToText(prefix)
    )


def _sum(pairs):
    events = shown = 0
    for one, other in pairs:
        events, shown = events + one, shown + other
    return events, shown


def _counts(prefix: str) -> dict[str, dict[str, tuple[int, int]]]:
    """role -> text -> (events, times shown)"""
    counts: dict[str, dict] = {role: {} for role in COUNTED}
    for (role, text), (events, shown) in _lines(prefix):
        counts[role][text] = events, shown
    return counts


def _stored(shards: typing.Iterable[pathlib.Path]) -> typing.Iterator[dict[str, typing.Any]]:
    """The records of ArrayRecord files, one file after the other."""
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    for shard in shards:
        reader = ArrayRecordReader(str(shard))
        for start in range(0, total := reader.num_records(), 1000):
            for raw in reader.read(start, min(start + 1000, total)):
                yield event_log.decode(tf_example_pb2.Example.FromString(raw))
        reader.close()


# --- what workers do ------------------------------------------------------------------------------------------


def _tagged(report: Report):
    import apache_beam as beam

    return beam.pvalue.TaggedOutput("report", report)


def _cleaned(number: int, job: Job, found: Found) -> typing.Iterator[event_rows.Rows]:
    """The rows of one file, numbered over all files; what is wrong with others is added to `found`."""
    url, columns = job.inputs[number], list(dict.fromkeys(job.roles.values()))
    with shared_files.fetched(url) as path:
        try:
            file = event_files.EventFiles(path)
            if lacking := [name for name in columns if name not in file.names]:
                raise UserError(f"{path}: there is no column {lacking[0]!r}; it has {', '.join(file.names)}")
            for piece in file.pieces(columns):
                base = number * event_files.FILE
                broken = {reason: base + rows for reason, rows in piece.broken.items()}
                piece = dataclasses.replace(piece, rows=base + piece.rows, broken=broken)
                yield event_rows.clean(piece, job.roles, job.where, found)
        except UserError as error:
            raise UserError(str(error).replace(str(path), url)) from None


def _survey(number: int, job: Job):
    """(user, weight), and a report."""
    import polars as pl

    report = Report(number, job.found())
    try:
        for rows in _cleaned(number, job, report.found):
            shown = rows.columns.get("shown", pl.Series([None], dtype=pl.String).new_from_index(0, len(rows.row)))
            weight = 1 + (1 + shown.str.count_matches("|", literal=True)).fill_null(0) / 8
            users = pl.DataFrame({"user": rows.columns["user"], "weight": weight}).group_by("user").sum()
            yield from users.iter_rows()
            actions = rows.columns.get("action", pl.Series(["interact"])).unique()
            report.actions |= set(actions.head(event_rows.MAX_ACTIONS + 1).to_list())
            report.actions = set(itertools.islice(report.actions, event_rows.MAX_ACTIONS + 1))
    except UserError as error:
        report.refused = str(error)
    yield _tagged(report)


def _deal(number: int, job: Job):
    """(bucket, rows as Arrow bytes), and a report."""
    import polars as pl

    report, key = Report(number, job.found()), job.key()
    firsts = [key(user) for user in job.firsts]
    for rows in _cleaned(number, job, job.found()):
        time, good = event_rows.seconds(rows.time, rows.form, rows.row, job.kind, report.found)
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
        yield _tagged(Report(number, found, users=len(np.unique(self.events["user"])), events=len(self.events)))


def _sort(bucket, job: Job):
    """Sorts and keeps the rows of a bucket; what `_Bucket.results` yields."""
    import polars as pl

    number, parts = bucket
    frame = pl.concat([pl.read_ipc(io.BytesIO(part)) for part in parts]).sort("row")
    texts = {role: frame[role] for role in frame.columns if role not in ("row", "time")}
    rows = event_rows.Rows(texts, frame["time"].to_numpy(), np.zeros(len(frame), np.int8), frame["row"].to_numpy())
    vocabularies = {role: event_rows.Vocabulary() for role in CODED}
    events, shown = event_rows.encode(rows, vocabularies)
    texts = {role: vocabulary.texts() for role, vocabulary in vocabularies.items()}
    users = sorted(texts["user"], key=job.key())
    rank = {user: i for i, user in enumerate(users)}
    events["user"] = np.array([-1, *map(rank.__getitem__, texts["user"])], np.int32)[events["user"]]
    found = job.found()
    found = dataclasses.replace(found, example="")
    sorted_ = _Bucket(*event_rows.in_order(events, shown, found), texts | {"user": users})
    shared_files.save(job.path("sort", number), sorted_)
    # Reports of buckets come after those of files.
    yield from sorted_.results(number, found)


def _thin(number: int, job: Job):
    """Leaves rare items and users out of a bucket, and keeps the rest; what `_Bucket.results` yields."""
    bucket: _Bucket = shared_files.load(job.path("sort", number))
    rare = _rare(job.path("rare"))
    mask = np.array([False, *(item in rare for item in bucket.texts["item"])])
    thinned = _Bucket(*sorted_events.thin(bucket.events, bucket.shown, mask, job.least), bucket.texts)
    shared_files.save(job.path("thin", number), thinned)
    yield from thinned.results(number, job.found())


def _write(number: int, job: Job) -> Report:
    """Writes the records of a bucket, validated, to a shard."""
    bucket: _Bucket = shared_files.load(job.path(job.stage, number))
    report, events, shown = Report(number, job.found()), bucket.events, bucket.shown
    for role in COUNTED:
        codes = _codes(job.path(f"{role}-ids"), bucket.texts[role])
        events[role] = codes[events[role]]
        shown = codes[shown] if role == "item" else shown
    records = sorted_events.records(events, shown, bucket.texts["user"], job.sizes.items)
    try:
        shared_files.put(job.path("shard", number), lambda path: _write_shard(path, records, job))
    except UserError as error:
        report.refused = str(error)
    return report


def _write_shard(path: pathlib.Path, records: typing.Iterable[dict], job: Job) -> None:
    from data_pipelines.event_log_tfds import event_log_tfds_dataset_builder as builder

    form = builder.features()

    def serialised():
        for record in records:
            validate(record, job.sizes, job.where)
            typed = {name: np.asarray(record[name], dtype) for name, dtype in DTYPES.items()}
            yield form.serialize_example({"user_id": record["user_id"], **typed})

    builder.write_shard(path, serialised())


def _codes(path: str, texts: list[str]) -> np.ndarray:
    """The ids of texts, after that of none; 0 where a text has none."""
    import polars as pl

    wanted = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    found = wanted.join(_ids(path), on="text", how="left", maintain_order="left")
    return np.append(np.int32(0), found["code"].fill_null(0).to_numpy())


@functools.lru_cache(maxsize=len(COUNTED))
def _ids(path: str) -> pl.DataFrame:
    """A table of ids, once in each process."""
    import polars as pl

    with shared_files.fetched(path) as file:
        return pl.read_ipc(file, memory_map=False)


@functools.lru_cache(maxsize=1)
def _rare(path: str) -> frozenset[str]:
    return frozenset(shared_files.load(path))
