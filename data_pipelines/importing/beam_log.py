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

import contextlib
import dataclasses
import json
import pathlib
import shlex
import time
import typing
import uuid

import numpy as np
from tqdm import tqdm

from data_pipelines.event_log import event_log, shared_files, stored_records, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.files import disk
from data_pipelines.importing import beam_workers, event_files, gathered, own_log
from data_pipelines.importing.bad_rows import Problems
from data_pipelines.importing.options import Options, check_name, checked
from data_pipelines.sources.interactions import ordered
from data_pipelines.sources.prepare import logs_folder
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

BUCKET = 1_000_000  # events of a bucket, or eight times as many shown items; a user is never divided


def import_log(
    events: str | pathlib.Path,
    *,
    name: str,
    runner: str,
    beam_options: str = "",
    folder: str | pathlib.Path | None = None,
    items: str | pathlib.Path | None = None,
    options: Options | None = None,
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
    force: bool = False,
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
    shared_files.systems().set_options(_options(runner, beam_options))
    check_name(name)
    options = checked(items, options or Options())
    if options.order == "file":
        raise UserError("--order file is the order in which one machine reads: leave out --beam, or give times")
    if "part" in options.columns or options.part_files:
        raise UserError("a split that the data give is imported on one machine: leave out --beam, or the parts")
    if options.k_core is not None:
        raise UserError("--k-core goes through all events again and again on one machine: leave out --beam or --k-core")
    logs = logs_folder(data_dir)
    files = _Remote(str(events)) if shared_files.is_remote(events) else event_files.EventFiles(events)
    inputs = files.urls if isinstance(files, _Remote) else tuple(map(shared_files.absolute, files.paths))
    roles, table = own_log.opened(files, items, options)
    own_log.make(logs)
    disk.remove_leftovers(logs)
    event_log.check_place(logs / name)  # now rather than at the end
    versions.refuse_needed(logs / name, f"importing {name} again", force)
    with disk.room(logs), disk.scratch(logs, name, "import") as own:
        shared = shared_files.absolute(
            own if folder is None else f"{str(folder).rstrip('/')}/{name}-{uuid.uuid4().hex[:8]}"
        )
        if not shared_files.systems().exists(shared):
            shared_files.systems().mkdirs(shared)
        now = time.time() if now is None else now
        job = beam_workers.Job(inputs, files.where, roles, now, shared, shape=options.shape)
        try:
            run = _Import(job, files, options, lambda build: _run(_options(runner, beam_options), build))
            log = run.write(logs / name, name, items, table, own)
        finally:
            if folder is not None:
                with contextlib.suppress(OSError):  # what cannot be removed must not cost the log
                    shared_files.delete(shared)
    versions.remove_others(log.path)
    return log


class _Remote(event_files.EventFiles):
    """Files of a store. Columns are those of the first; what another one lacks, its worker says."""

    def __init__(self, pattern: str):
        self.where = pattern
        found = [match.path for match in shared_files.systems().match([pattern])[0].metadata_list]
        endings = (*event_files.TABLES, ".txt", ".json")
        if not found or (found == [pattern.rstrip("/")] and not pathlib.PurePosixPath(pattern).suffix):
            folder = f"{pattern.rstrip('/')}/*"
            found = [match.path for match in shared_files.systems().match([folder])[0].metadata_list]
            endings = event_files.TABLES
        urls = {pathlib.PurePosixPath(url): url for url in found}
        kept, self.ignored = event_files.tables([*urls], endings)
        found = [urls[path] for path in kept]
        if not found:
            raise UserError(f"{pattern}: there is no .parquet, .csv, .tsv or .jsonl file")
        self.urls = tuple(sorted(found))
        self.paths = [pathlib.PurePosixPath(url) for url in self.urls]
        self.form = event_files.one_form(pattern, self.paths)
        with shared_files.fetched(self.urls[0]) as path:
            self.names = event_files.EventFiles(path).names


def _options(runner: str, flags: str):
    """Beam's options; `--beam` and `--beam-options` as they were given."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import create_runner

    try:
        create_runner(runner)
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam {runner}: {error}") from None
    return PipelineOptions(shlex.split(flags), runner=runner)


def _run(options, build: typing.Callable) -> None:
    """Runs a pipeline to its end. `build` adds its steps."""
    import apache_beam as beam

    with beam.Pipeline(options=options) as pipeline:
        build(pipeline)


class _Import:
    """The machine that launches the pipelines and decides between them."""

    def __init__(self, job: beam_workers.Job, files: event_files.EventFiles, options: Options, run: typing.Callable):
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
            there = {role: list(counts[role]) for role in beam_workers.COUNTED}
            tables = own_log.log_tables(self.files.where, self.found.rows, there, table)
            bar.update()
            shards = self._shards(buckets, tables, folder)
        met = [item for item, (events, _) in counts["item"].items() if events]
        about = {"left_out": self.left_out, **own_log.items_met(met, tables["item"], table)}
        about = own_log.source(self.files, self.job.roles, self.options, items, self.found, self.job.kind) | about
        return own_log.write(path, name, _stored(shards), tables, table, self.options, about, shards)

    def _pipeline(self, stage: str, numbers: typing.Iterable[int], build: typing.Callable) -> list[beam_workers.Report]:
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
        reports = sorted(shared_files.load(target), key=lambda report: (report.bucket, report.number))
        for report in reports:
            if report.refused:
                raise UserError(report.refused)
        return reports

    def _survey(self) -> None:
        import apache_beam as beam
        from apache_beam.io import textio

        job = self.job

        def build(numbers):
            found = numbers | "survey" >> beam.FlatMap(beam_workers.survey, job).with_outputs("report", main="users")
            _ = (
                found.users
                | "events of each user" >> beam.CombinePerKey(sum)
                | "users to text" >> beam.Map(json.dumps)
                | "keep users" >> textio.WriteToText(job.path("users"))
            )
            return found.report

        actions: set[str] = set()
        for report in self._pipeline("survey", range(len(job.inputs)), build):
            self.found.merge(report.found)
            actions |= report.actions
        if not self.found.rows:
            raise UserError(f"{job.where}: there are no rows after the header")
        gathered.check_actions(job.where, job.roles, len(actions))
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
            mixed=self.found.census.mixed(kind),
            example=self.found.example,
            by_number=all(user.isdecimal() for user in users),
            firsts=tuple(users[start] for start in starts),
        )

    def _sort(self) -> tuple[list[beam_workers.Report], dict[str, dict[str, tuple[int, int]]]]:
        import apache_beam as beam

        job = self.job

        def build(numbers):
            dealt = numbers | "deal" >> beam.FlatMap(beam_workers.deal, job).with_outputs("report", main="rows")
            buckets = dealt.rows | "rows of each bucket" >> beam.GroupByKey()
            done = buckets | "sort" >> beam.FlatMap(beam_workers.sort, job).with_outputs("report", main="counts")
            _count(done.counts, job.path("sort-counts"))
            return (dealt.report, done.report) | "both reports" >> beam.Flatten()

        reports = self._pipeline("sort", range(len(job.inputs)), build)
        for report in reports:
            self.found.merge(report.found)
        return [report for report in reports if report.events], _counts(job.path("sort-counts"))

    def _thin(self, buckets: list[beam_workers.Report], counts) -> tuple[list[beam_workers.Report], dict]:
        import apache_beam as beam

        rare = [item for item, (events, _) in counts["item"].items() if 0 < events < self.options.min_item_events]
        job = dataclasses.replace(self.job, least=self.options.min_user_events)
        shared_files.save(job.path("rare"), rare)

        def build(numbers):
            done = numbers | "thin" >> beam.FlatMap(beam_workers.thin, job).with_outputs("report", main="counts")
            _count(done.counts, job.path("thin-counts"))
            return done.report

        reports = self._pipeline("thin", (report.number for report in buckets), build)
        total = lambda reports, what: sum(getattr(report, what) for report in reports)
        self.left_out = {"items": len(rare)} | {
            what: total(buckets, what) - total(reports, what) for what in ("users", "events")
        }
        self.job = dataclasses.replace(job, stage="thin")
        return [report for report in reports if report.events], _counts(job.path("thin-counts"))

    def _shards(
        self, buckets: list[beam_workers.Report], tables: dict[str, list[str]], folder: pathlib.Path
    ) -> list[pathlib.Path]:
        """One a bucket, in the order of users, on a disk of this machine."""
        import apache_beam as beam
        import polars as pl

        for role in beam_workers.COUNTED:
            table = pl.DataFrame({"text": pl.Series(tables[role], dtype=pl.String)})
            table = table.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code"))
            shared_files.put(self.job.path(f"{role}-ids"), table.write_ipc)
        items, actions, queries = (len(tables[role]) for role in ("item", "action", "query"))
        sizes = LogSpec(items, actions, queries, ("engage",))
        job = self.job = dataclasses.replace(self.job, sizes=sizes)
        numbers = [report.number for report in buckets]
        self._pipeline("write", numbers, lambda start: start | "write" >> beam.Map(beam_workers.write, job))
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
    from apache_beam.io import textio

    _ = (
        counts
        | "count" >> beam.CombinePerKey(beam_workers.add_pairs)
        | "counts to text" >> beam.Map(json.dumps)
        | "keep counts" >> textio.WriteToText(prefix)
    )


def _counts(prefix: str) -> dict[str, dict[str, tuple[int, int]]]:
    """role -> text -> (events, times shown)"""
    counts: dict[str, dict] = {role: {} for role in beam_workers.COUNTED}
    for (role, text), (events, shown) in _lines(prefix):
        counts[role][text] = events, shown
    return counts


def _stored(shards: typing.Iterable[pathlib.Path]) -> typing.Iterator[dict[str, typing.Any]]:
    """The records of ArrayRecord files, one file after the other."""
    from array_record.python.array_record_module import ArrayRecordReader

    for shard in shards:
        reader = ArrayRecordReader(str(shard))
        for start in range(0, total := reader.num_records(), 1000):
            for raw in reader.read(start, min(start + 1000, total)):
                yield stored_records.decode(raw)
        reader.close()
