"""The folder of one run: its resolved config, the log it was trained on, and the checks that both still fit.

config.json      the resolved config
log.json         {"path", "fingerprint"} of the event log
counts.npz       training events of each item and query
checkpoints/     Orbax;  STEP.damaged  one that a resumed run could not read
metrics.jsonl    one JSON object a logged step;  tensorboard/  the same for TensorBoard
evaluation_SPLIT.json, report_SPLIT.html   what `synergen evaluate` found, unless it was given another folder
"""

from __future__ import annotations

import collections.abc
import contextlib
import json
import pathlib
import tempfile
import typing
import zipfile

import numpy as np

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.errors import NotWritten, UserError

# Settings that a resumed run may change: they alter where and how often, never what is computed. See `start`, too.
FREE = (
    "mesh.",
    "evaluate.",
    "data.workers",
    "model.attention",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep",
    "run.patience",
)

_FIRST = ("log.json", "log.tmp", "config.tmp")  # what a run that is killed at its very beginning leaves


def start(workdir: pathlib.Path, config: Config, log_path: pathlib.Path, fingerprint: str) -> None:
    """Makes the folder of a run, or checks that the one that is there belongs to the same config and log.

    Raises:
      UserError: the folder is of another config or another log, or is no workdir at all.
    """
    if (workdir / "config.json").exists():
        old, log = read(workdir)
        if log["fingerprint"] != fingerprint:
            raise UserError(f"{workdir} was trained on another log ({log['path']}): give another --workdir")
        other = configs.differences(old, config)
        # How long the lists of a validation are decides what it finds: values of before would choose the checkpoint.
        by_lists = config.run.select not in ("ndcg@10", "hr@10")
        fixed = ("evaluate.rank_candidates",) if by_lists else ()
        changed = {k: v for k, v in other.items() if k in fixed or not k.startswith(FREE)}
        if changed:
            listed = ", ".join(f"{name} {was!r} -> {now!r}" for name, (was, now) in changed.items())
            raise UserError(
                f"{workdir} belongs to another config ({listed}): give another --workdir, or the old values"
            )
    elif workdir.exists() and (not workdir.is_dir() or any(p.name not in _FIRST for p in workdir.iterdir())):
        raise UserError(f"{workdir} exists and is no workdir of synergen: give a new or empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "log.json", {"path": str(log_path.resolve()), "fingerprint": fingerprint})
    write_json(workdir / "config.json", configs.to_dict(config))


def read(workdir: pathlib.Path) -> tuple[Config, dict[str, str]]:
    """The config and the log (path and fingerprint) of a run.

    Raises:
      UserError: there is no run in that folder.
    """
    if not (workdir / "config.json").is_file() or not (workdir / "log.json").is_file():
        raise UserError(f"{workdir} is no workdir of a run: `synergen train CONFIG --workdir {workdir}` makes one")
    config = configs.load(workdir / "config.json")
    try:
        log = json.loads((workdir / "log.json").read_text(encoding="utf-8"))
        return config, {"path": str(log["path"]), "fingerprint": str(log["fingerprint"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir / 'log.json'} is damaged ({error}): give another --workdir") from None


def write_counts(workdir: pathlib.Path, items: np.ndarray, queries: np.ndarray) -> None:
    """Keeps how often training meets each item, (V,), and each query, (queries,)."""
    temporary = workdir / "counts.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, items=items, queries=queries)
    temporary.replace(workdir / "counts.npz")


def read_counts(workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """What `write_counts` kept; None where there is nothing, or nothing whole."""
    try:
        with (workdir / "counts.npz").open("rb") as file, np.load(file) as found:
            return found["items"], found["queries"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def write_json(path: pathlib.Path, value: typing.Any) -> None:
    """Writes JSON so that the file is there whole, or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def try_writing(folder: pathlib.Path, instead: str) -> None:
    """Makes a folder that is not there, and writes a file to it, which goes again: before the work, not after it.

    Args:
      instead: what to do where it fails.

    Raises:
      UserError: there is no right to, the disk is read-only or full, or the path leads through a file.
    """
    with writing(folder, instead):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")


@contextlib.contextmanager
def writing(
    folder: pathlib.Path, instead: str, found: dict[str, typing.Any] | None = None
) -> collections.abc.Iterator[None]:
    """A block that writes to a folder: where it fails, the error says what to do, and holds what was found, if anything.

    Raises:
      NotWritten: with `found`; UserError: without.
    """
    try:
        yield
    except (OSError, UserError) as error:
        message = str(error)
        if isinstance(error, OSError):
            message = f"{folder} cannot be written ({error.strerror or error}): {instead}"
        raise UserError(message) if found is None else NotWritten(message, found) from None
