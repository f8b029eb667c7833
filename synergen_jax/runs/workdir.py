"""The folder of one run: its resolved config, the log it was trained on, and the checks that both still fit.

config.json      the resolved config
log.json         {"path", "fingerprint"} of the event log, and "init_from", the run whose parameters it began with
phase.json       {"name", "angles"} of the run's own phase function, if it has one
run.lock         who trains in it; empty when nobody does
counts.npz       training events of each item and query
checkpoints/     Orbax; each holds the config, too;  STEP.damaged  one that a resumed run could not read
metrics.jsonl    one JSON object a logged step;  tensorboard/  the same for TensorBoard
ranker/          the second stage, if `synergen rerank` fitted one
evaluation_SPLIT.json, report_SPLIT.html   what `synergen evaluate` found, unless it was given another folder
each_SPLIT.npz   the same target by target, for comparisons of runs
"""

from __future__ import annotations

import collections.abc
import contextlib
import json
import os
import pathlib
import re
import tempfile
import typing
import zipfile
import zlib

import numpy as np

from synergen_jax import config as configs
from synergen_jax.batch import AnyArray
from synergen_jax.config import Config
from synergen_jax.errors import NotWritten, UserError, first_line, writing
from synergen_jax.processes import run_lock
from synergen_jax.training import identity

# What a run that is killed at its very beginning leaves.
_FIRST = re.compile(rf"(log|phase)\.json|(log|config|phase)(\.\d+)?\.tmp|{re.escape(run_lock.FILE)}")


def start(
    workdir: pathlib.Path,
    config: Config,
    log_path: pathlib.Path,
    fingerprint: str,
    phase: identity.Phase | None = None,
    init_from: pathlib.Path | None = None,
) -> None:
    """Makes the folder of a run, or checks that the one that is there belongs to the same config, log and phase.

    Args:
      phase: what `rope.describe` says of the run's phase; None: it is the built-in one.
      init_from: the run whose parameters it begins with.

    Raises:
      UserError: see `check`; or the disk is full.
    """
    check(workdir, config, fingerprint, phase)
    workdir.mkdir(parents=True, exist_ok=True)
    if phase and phase["name"]:
        write_json(workdir / "phase.json", phase)
    begun = {"init_from": str(init_from.resolve())} if init_from else {}
    write_json(workdir / "log.json", {"path": str(log_path.resolve()), "fingerprint": fingerprint} | begun)
    write_json(workdir / "config.json", configs.to_dict(config))


def check(workdir: pathlib.Path, config: Config, fingerprint: str, phase: identity.Phase | None = None) -> None:
    """What `start` refuses; writes nothing.

    Raises:
      UserError: the folder is of another config, log or phase, is damaged, or is no workdir at all.
    """
    if (workdir / "config.json").exists():
        old, log = read(workdir)
        if log["fingerprint"] != fingerprint:
            raise UserError(f"{workdir} was trained on another log ({log['path']}): give another --workdir")
        if changed := identity.altered(old, config):
            each = ", ".join(f"{name} {was!r} -> {now!r}" for name, (was, now) in changed.items())
            raise UserError(
                f"{workdir} belongs to another config ({each}; the first is that of its config.json): give another "
                "--workdir, or the old values"
            )
        _refuse_more_steps(workdir, old, config)
        identity.refuse_other_phase(workdir, read_phase(workdir), phase)
    elif workdir.exists() and (not workdir.is_dir() or not all(_FIRST.fullmatch(p.name) for p in workdir.iterdir())):
        if cure := _cure(workdir):
            raise UserError(f"{workdir / 'config.json'} is missing: {cure}")
        raise UserError(f"{workdir} exists and is no workdir of synergen: give a new or empty folder")


def _refuse_more_steps(workdir: pathlib.Path, old: Config, new: Config) -> None:
    """Refuses more steps than before, by which the learning rate goes, of a run that is not finished."""
    if new.run.steps <= old.run.steps:
        return
    told, file = newest_info(workdir)
    step = int(file.parent.parent.name) if file else 0
    if step < old.run.steps and not told.get("progress", {}).get("stopped"):
        raise UserError(
            f"{workdir} is at step {step} of {old.run.steps}: run.steps, by which the learning rate falls, may be raised once "
            "those are done"
        )


def init_from(workdir: pathlib.Path, asked: pathlib.Path | None) -> pathlib.Path | None:
    """The run whose parameters a run begins with: as asked, or as the folder tells where nothing is asked.

    Raises:
      UserError: the folder's run began otherwise.
    """
    if not (workdir / "config.json").exists():
        return asked
    try:
        told = json.loads((workdir / "log.json").read_text(encoding="utf-8")).get("init_from")
    except (OSError, ValueError, AttributeError):
        return asked  # `read` says what is wrong with it
    if asked is not None and told != str(asked.resolve()):
        raise UserError(
            f"{workdir} began {f'with {told}' if told else 'afresh'}, not with {asked}: give another --workdir"
        )
    return pathlib.Path(told) if told else None


def read(workdir: pathlib.Path) -> tuple[Config, dict[str, str]]:
    """The config and the log (path and fingerprint) of a run.

    Raises:
      UserError: there is no run in that folder, a file is damaged, or no longer what its checkpoints were trained with.
    """
    told, _ = newest_info(workdir)
    if not (workdir / "config.json").is_file() and told:
        raise UserError(f"{workdir / 'config.json'} is missing: {_cure(workdir)}")
    if not (workdir / "config.json").is_file() or not ((workdir / "log.json").is_file() or told):
        raise UserError(f"{workdir} is no workdir of a run: `synergen train CONFIG --workdir {workdir}` makes one")
    try:
        config = configs.load(workdir / "config.json")
    except UserError as error:
        raise UserError(f"{error}; {cure}" if (cure := _cure(workdir)) else str(error)) from None
    if "config" in told:
        was = configs.from_dict(told["config"], f"{workdir / 'checkpoints'}: config")
        if changed := identity.altered(was, config):
            raise UserError(
                f"{workdir / 'config.json'} does not fit the checkpoints: {identity.listed(changed)}: put back what it was"
            )
    return config, _read_log(workdir, config, told.get("fingerprint"))


def log_of(workdir: pathlib.Path) -> dict[str, str] | None:
    """The log (path and fingerprint) of the run in a folder; None where there is no run yet.

    Raises:
      UserError: as `read`.
    """
    return read(workdir)[1] if (workdir / "config.json").exists() else None


def packed(workdir: pathlib.Path) -> bool | None:
    """Whether the run in a folder packs its rows, which it goes on to do when resumed; None where there is no run yet."""
    if not (workdir / "config.json").exists():
        return None
    return read(workdir)[0].data.pack is True


def _read_log(workdir: pathlib.Path, config: Config, trained_on: str | None) -> dict[str, str]:
    path = workdir / "log.json"
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        log, wrong = {"path": str(log["path"]), "fingerprint": str(log["fingerprint"])}, ""
    except FileNotFoundError:
        log, wrong = {}, f"{path} is missing, without which {workdir} is no workdir of a run"
    except (ValueError, KeyError, TypeError) as error:
        log, wrong = {}, f"{path} is damaged ({first_line(error)})"
    if trained_on and not wrong and log["fingerprint"] != trained_on:
        wrong = f"{path} does not fit the checkpoints, which were trained on another log"
    if wrong and trained_on:
        line = json.dumps({"path": config.data.log, "fingerprint": trained_on})
        raise UserError(f"{wrong}: put back {line} (path: the log's folder or name)")
    if wrong:
        raise UserError(f"{wrong}: give another --workdir")
    return log


def newest_info(workdir: pathlib.Path) -> tuple[dict[str, typing.Any], pathlib.Path | None]:
    """What the newest checkpoint that can be read says of its run, and the file; ({}, None) where there is none.

    Read as the JSON that it is, so that a folder can be judged before anything is opened or compiled.
    """
    steps = (path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
    for step in sorted(steps, key=lambda path: int(path.name), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            info = json.loads((step / "info" / "metadata").read_text(encoding="utf-8"))
            if isinstance(info, dict) and "next_batch" in info:
                return info, step / "info" / "metadata"
    return {}, None


def _cure(workdir: pathlib.Path) -> str:
    """How a config.json that is of no use can be had again; "" where there are no checkpoints that would need it."""
    told, file = newest_info(workdir)
    if file is None:
        return ""
    if "config" in told:
        return f'what the run was trained with stands under "config" in {file}: put that back'
    return (
        "its checkpoints are worth nothing without it: a run with the same settings in another folder writes the same"
    )


# --- the phase ------------------------------------------------------------------------------------------------


def read_phase(workdir: pathlib.Path) -> identity.Phase | None:
    """The phase that a run was trained with, as its checkpoints or its folder tell; None: they tell of none.

    Raises:
      UserError: the file is damaged.
    """
    told, _ = newest_info(workdir)
    path = workdir / "phase.json"
    if "phase" in told or not path.is_file():
        return told.get("phase")
    try:
        phase = json.loads(path.read_text(encoding="utf-8"))
        return {"name": str(phase["name"]), "angles": phase["angles"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): give another --workdir") from None


# --- training counts ------------------------------------------------------------------------------------------


def write_counts(workdir: pathlib.Path, items: AnyArray, queries: AnyArray, fingerprint: str = "") -> None:
    """Keeps how often training meets each item, (V,), and each query, (queries,), of the log of that fingerprint."""
    with replacing(workdir / "counts.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, items=items, queries=queries, log=np.array(fingerprint))


def read_counts(
    workdir: pathlib.Path, sizes: tuple[int, int] | None = None, fingerprint: str = ""
) -> tuple[np.ndarray, np.ndarray] | None:
    """What `write_counts` kept; None where there is nothing, nothing whole, or counts of another log.

    Args:
      sizes: how many items and queries the log has, id 0 included; None: any.
      fingerprint: the log's.
    """
    try:
        with (workdir / "counts.npz").open("rb") as file, np.load(file) as found:
            counts = found["items"], found["queries"]
            of = str(found["log"]) if "log" in found else fingerprint  # runs of before do not say
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    fit = sizes is None or [count.shape for count in counts] == [(size,) for size in sizes]
    return counts if fit and of == fingerprint and all(count.dtype == np.int32 for count in counts) else None


def write_each(path: pathlib.Path, each: dict[str, np.ndarray]) -> None:
    """Writes arrays by name so that the file is there whole, or not at all.

    Raises:
      UserError: the disk is full, or the like.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **typing.cast(dict[str, typing.Any], each))


def read_each(path: pathlib.Path) -> dict[str, np.ndarray]:
    """What `write_each` wrote; {} where there is nothing, or nothing whole."""
    try:
        with path.open("rb") as file, np.load(file) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def write_json(path: pathlib.Path, value: typing.Any) -> None:
    """Writes JSON so that the file is there whole, or not at all.

    Raises:
      UserError: the disk is full, or the like.
    """
    text = json.dumps(value, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> typing.Iterator[pathlib.Path]:
    """A temporary path that replaces `path` if all goes well, and is removed if it does not."""
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def try_writing(folder: pathlib.Path, instead: str) -> None:
    """Makes a folder that is not there, and writes a file to it, which goes again: before the work, not after it.

    Args:
      instead: what to do where it fails.

    Raises:
      UserError: there is no right to, the disk is read-only or full, or the path leads through a file.
    """
    with reporting(folder, instead):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")


@contextlib.contextmanager
def reporting(
    folder: pathlib.Path, instead: str, found: dict[str, typing.Any] | None = None
) -> collections.abc.Iterator[None]:
    """A block that writes to a folder: where it fails, the error says what to do, and holds what was found, if anything.

    Raises:
      NotWritten: with `found`; UserError: without.
    """
    try:
        yield
    except (OSError, UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        message = str(error)
        if isinstance(cause, OSError):
            message = f"{folder} cannot be written ({cause.strerror or cause}): {instead}"
        raise UserError(message) if found is None else NotWritten(message, found) from None
