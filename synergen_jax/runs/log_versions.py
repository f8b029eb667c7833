"""Which version of its log a run is opened on: the one that it was trained on, or one that goes on from it."""

from __future__ import annotations

import dataclasses
import pathlib

from data_pipelines.event_log import versions
from data_pipelines.event_log.event_log import Ancestor, EventLog
from data_pipelines.sources.prepare import locate
from synergen_jax.batch import LogSpec
from synergen_jax.config import Config, DataConfig
from synergen_jax.errors import UserError

Place = str | pathlib.Path


def own(workdir: pathlib.Path, told: dict[str, str], log: EventLog) -> EventLog:
    """The version that a run goes on with: the one that it was trained on, where `log` is a later one.

    Args:
      told: what the workdir says of its log: "path" and "fingerprint".

    Raises:
      UserError: that version is gone.
    """
    if log.fingerprint == told["fingerprint"] or (was := log.ancestor(told["fingerprint"])) is None:
        return log
    place = versions.place(log.path, was.version)
    if not (place / "log.json").is_file():
        raise UserError(
            f"{workdir} was trained on version {was.version} of {log.name}, which is gone: it can be evaluated and asked on "
            f"version {log.version}; `synergen train CONFIG --init-from {workdir} --workdir NEW` goes on from its parameters"
        )
    return EventLog.load(place)


def of_run(
    workdir: pathlib.Path,
    config: Config,
    told: dict[str, str],
    data_dir: Place | None = None,
    wanted: Place | None = None,
    newest: bool = False,
) -> tuple[EventLog, Ancestor]:
    """The log that a run is opened on, and what is known of the version that it was trained on.

    Args:
      told: what the workdir says of its log.
      data_dir: where logs lie, in place of where the run's log lay.
      wanted: a log by name or folder, such as `shop@3`; None: the run's own version, or where that is gone the newest one.
      newest: the newest one that goes on from the run's.

    Raises:
      UserError: the log is gone, or another one that does not go on from the run's.
    """
    if wanted is not None:
        log = EventLog.load(locate(wanted, data_dir))
    else:
        path = pathlib.Path(told["path"])
        there = (path if path.exists() else versions.newest(path)) if data_dir is None else None
        log = EventLog.load(there or locate(config.data.log, data_dir))
        log = _newest(log, told["fingerprint"]) if newest else _trained_on(log, told["fingerprint"])
    if (was := log.ancestor(told["fingerprint"])) is None:
        raise UserError(
            f"{workdir} was trained on another log than {log.path} now holds: prepare that log again, or give a version that "
            "goes on from it"
        )
    return log, was


def _newest(log: EventLog, fingerprint: str) -> EventLog:
    """The newest version, if it goes on from that of the fingerprint; else the one that is given."""
    last = versions.newest(log.path)
    if last in (None, log.path):
        return log
    later = EventLog.load(last)
    return later if later.ancestor(fingerprint) else log


def _trained_on(log: EventLog, fingerprint: str) -> EventLog:
    """The version of the fingerprint, where it is there; else the newest one that goes on from it."""
    was = log.ancestor(fingerprint)
    place = versions.place(log.path, was.version) if was else None
    if place is not None and (place / "log.json").is_file():
        return log if place == log.path else EventLog.load(place)
    return _newest(log, fingerprint)


def spec_of(log: EventLog, was: Ancestor) -> LogSpec:
    """The sizes that a model of an earlier version was made with."""
    return dataclasses.replace(log.spec, items=was.items, queries=was.queries, actions=was.actions)


def measured_on(data: DataConfig, was: Ancestor) -> DataConfig:
    """The split by which a run of an earlier version is measured on a later one.

    One that was trained on all events is measured on what came since.
    """
    if data.measured:
        return data
    since = float(was.last_time + 1)
    return dataclasses.replace(data, split="time", validation_from=since, test_from=since)


def refuse_unfair(data: DataConfig, log: EventLog, was: Ancestor) -> None:
    """Refuses to measure a run on a later version where its test would hold what it was trained on.

    Raises:
      UserError: users or items are drawn by their number, which has changed.
    """
    if was.fingerprint == log.fingerprint:
        return
    drawn = "data.split by-user draws users" if data.split == "by-user" else "data.cold_items draws items"
    if data.split == "by-user" or data.cold_items:
        raise UserError(
            f"{drawn} anew for version {log.version} of {log.name}, among them such as version {was.version} trained on: "
            "evaluate on the version that the run was trained on"
        )
