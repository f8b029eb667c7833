"""The versions of a log that grows, side by side, and the runs that were trained on each.

    LOGS/NAME, LOGS/NAME@2, LOGS/NAME@3     each a whole event log
    LOGS/.runs/*.json                       a run each: {"workdir", "log", "fingerprint"}

A version is never changed. What is appended, or left out, makes the next one by a single rename. The name alone stands
for the newest; NAME@1 is the first. Ids mean the same in all versions that follow one from another, as `EventLog.lineage`
tells. A version stays as long as it is the newest, or a run that was trained on it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import re
import shutil
import typing

from data_pipelines.files import disk
from synergen_jax.errors import UserError, writing

RUNS = ".runs"
_NAME = re.compile(r"(.+?)(?:@([1-9]\d*))?")


def parse(name: str) -> tuple[str, int | None]:
    """A log's plain name, and the version that is asked for; None: the newest.

    >>> parse("shop@2"), parse("shop")
    (('shop', 2), ('shop', None))
    """
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2]) if found[2] else None) if found else (name, None)


def place(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Where a version lies.

    Args:
      folder: that of any version of the log.
    """
    name, _ = parse(folder.name)
    return folder.with_name(name if number == 1 else f"{name}@{number}")


def existing(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The versions that are there, oldest first: number -> folder.

    Args:
      folder: that of any version, be it there or not.
    """
    name, _ = parse(folder.name)
    found = {1: folder.with_name(name)}
    for path in folder.parent.glob("*@*"):
        plain, number = parse(path.name)
        if plain == name and number:
            found[number] = path
    return {number: path for number, path in sorted(found.items()) if (path / "log.json").is_file()}


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the newest version; None: there is none."""
    return next(reversed(existing(folder).values()), None)


def named(logs: pathlib.Path, name: str) -> pathlib.Path | None:
    """The folder that a name, or a name and a version, stands for; None: there is no such log."""
    plain, number = parse(name)
    if not plain or "/" in name:
        return None
    found = existing(logs / plain)
    return found.get(number) if number else next(reversed(found.values()), None)


# --- the runs that need a version ---------------------------------------------------------------------------------


def register(folder: pathlib.Path, fingerprint: str, workdir: pathlib.Path) -> bool:
    """Notes that a run is trained on a version, which then stays; False where nothing can be written beside the log."""
    workdir, runs = workdir.resolve(), folder.parent / RUNS
    file = runs / f"{hashlib.sha256(str(workdir).encode()).hexdigest()[:16]}.json"
    told = {"workdir": str(workdir), "log": folder.name, "fingerprint": fingerprint}
    if _read(file) == told:
        return True
    try:
        runs.mkdir(exist_ok=True)
        with disk.scratch(runs, file.stem, "run") as made:
            disk.write_json(made / file.name, told)
            (made / file.name).replace(file)
    except OSError:
        return False
    return True


def needing(folder: pathlib.Path) -> list[pathlib.Path]:
    """The workdirs of the runs that were trained on a version and are there, as far as can be told.

    A run whose folder lies where this machine cannot look counts as there.
    """
    found = []
    for file in sorted((folder.parent / RUNS).glob("*.json")):
        told = _read(file)
        if told and told["log"] == folder.name and _is_there(pathlib.Path(told["workdir"]), told["fingerprint"]):
            found.append(pathlib.Path(told["workdir"]))
    return found


def _read(file: pathlib.Path) -> dict[str, str]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return {name: str(told[name]) for name in ("workdir", "log", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_there(workdir: pathlib.Path, fingerprint: str) -> bool:
    try:
        log = json.loads((workdir / "log.json").read_text(encoding="utf-8"))
        return str(log["fingerprint"]) == fingerprint
    except FileNotFoundError:
        return not workdir.parent.is_dir()
    except (OSError, ValueError, KeyError, TypeError):
        return True


def listed(runs: typing.Sequence[pathlib.Path], most: int = 5) -> str:
    """Some runs, for messages."""
    return ", ".join(map(str, runs[:most])) + f" and {len(runs) - most:,} more" * (len(runs) > most)


# --- taking versions away ------------------------------------------------------------------------------------------


def refuse_needed(folder: pathlib.Path, doing: str, force: bool) -> None:
    """Refuses what takes all versions of a log away while runs need them, unless `force`.

    Args:
      doing: what is asked for, such as "importing shop again".
    """
    needed = {run: None for path in existing(folder).values() for run in needing(path)}
    if needed and not force:
        raise UserError(
            f"{doing} takes away what runs were trained on: {listed(list(needed))} can then no longer be trained further, "
            "evaluated or asked; give another name, add to the log by `synergen data append`, or give --force"
        )


def remove(folder: pathlib.Path) -> None:
    """Removes a version: first out of sight by one rename, so that none is ever seen half."""
    with writing(folder), disk.scratch(folder.parent, folder.name, "removed") as out:
        with contextlib.suppress(FileNotFoundError):
            folder.rename(out / "gone")
        shutil.rmtree(out / "gone", ignore_errors=True)


def remove_others(folder: pathlib.Path) -> None:
    """Removes all versions but one."""
    for path in existing(folder).values():
        if path != folder:
            remove(path)


def prune(folder: pathlib.Path) -> list[int]:
    """Removes the versions before the newest that no run needs; their numbers."""
    found = existing(folder)
    gone = [number for number, path in list(found.items())[:-1] if not needing(path)]
    for number in gone:
        remove(found[number])
    return gone
