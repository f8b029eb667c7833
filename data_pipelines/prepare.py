"""From the name of a data set to a prepared event log on disk."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

from data_pipelines import atomic, event_log, movielens, sources
from data_pipelines.event_log import EventLog
from data_pipelines.interactions import log_parts
from synergen_jax.errors import UserError


def default_data_dir() -> pathlib.Path:
    """$SYNERGEN_DATA, or ~/.cache/synergen."""
    return pathlib.Path(os.environ.get("SYNERGEN_DATA") or "~/.cache/synergen").expanduser()


def prepare(
    name: str,
    *,
    source: str | pathlib.Path | None = None,
    data_dir: str | pathlib.Path | None = None,
    force: bool = False,
) -> EventLog:
    """Fetches, checks and converts a data set; a log that is already whole is reused.

    `name` is "ml-100k", "ml-1m", or a folder of RecBole's atomic files, whose log is then called after its .inter
    file; any other name needs `source`, that folder. A given `source` whose bytes differ from those of the log that is
    there is converted anew, and so is everything with `force`.
    """
    data_dir = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    if name not in sources.SOURCES and source is None:
        if not pathlib.Path(name).expanduser().is_dir():
            known = ", ".join(sources.SOURCES)
            raise UserError(f"{name!r} is neither one of {known} nor a folder of atomic files; or give --source PATH")
        source = pathlib.Path(name).expanduser()
        name = pathlib.Path(atomic.find(source).interactions[0]).stem
        if name in sources.SOURCES:
            name = f"{name}-atomic"  # the plain name stands for the data set as it was published
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"log name {name!r} may hold letters, digits and . _ - alone")

    path = data_dir / "logs" / name
    raw = _given(name, source) if source is not None else None
    if not force and (path / "log.json").is_file():
        try:
            log = EventLog.load(path)
            log[len(log) - 1]
        except UserError:
            pass  # a damaged log is prepared again
        else:
            if raw is None or raw.sha256() == log.source.get("sha256"):
                return log
    raw = raw or sources.fetch(name, downloads=data_dir / "downloads")
    data = movielens.interactions(name, raw) if name in sources.SOURCES else atomic.interactions(raw)
    if path.is_dir() and not (path / "log.json").exists():
        shutil.rmtree(path)  # half a log, which nothing reads
    about = {"origin": raw.origin, "sha256": raw.sha256()}
    return event_log.write(path, name=name, source=about, **log_parts(data))


def _given(name: str, source: str | pathlib.Path) -> sources.Raw:
    if name in sources.SOURCES:
        return sources.fetch(name, source, downloads=pathlib.Path())
    folder = pathlib.Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of atomic files")
    return atomic.find(folder)


def locate(log: str | pathlib.Path, data_dir: str | pathlib.Path | None = None) -> pathlib.Path:
    """The folder of a prepared log, by its name or by the folder itself."""
    logs = (pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()) / "logs"
    for folder in (logs / str(log), pathlib.Path(log).expanduser()):
        if (folder / "log.json").is_file():
            return folder
    found = ", ".join(sorted(path.parent.name for path in logs.glob("[!.]*/log.json"))) or "none"
    raise UserError(
        f"no prepared log {str(log)!r} (prepared: {found}); run `synergen data prepare {log}` or `synergen data import`"
    )
