"""From the name of a data set to a prepared event log on disk."""

from __future__ import annotations

import json
import os
import pathlib
import re
import typing

from data_pipelines.event_log import event_log, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import matrices, text
from data_pipelines.files import disk
from data_pipelines.sources import (
    amazon_beauty,
    amazon_reviews,
    fetch,
    lastfm,
    movielens,
    recbole,
    search_queries,
    tmdb,
    trivago,
)
from data_pipelines.sources.interactions import log_parts
from synergen_jax.errors import UserError

SEARCH = {**{f"{name}-search": name for name in fetch.SOURCES}, tmdb.NAME: tmdb.OF}  # with generated queries
KNOWN = (*fetch.SOURCES, *SEARCH)


class Raw(typing.Protocol):
    """The files of a source."""

    @property
    def origin(self) -> str: ...
    def sha256(self) -> str: ...


class Given(typing.Protocol):
    """A module whose source is read from `--source` alone."""

    @property
    def NAME(self) -> str: ...
    @property
    def TEXT(self) -> str:
        """The encoder where none is asked for."""
        ...

    @property
    def SETTINGS(self) -> dict[str, typing.Any]:
        """What else a log of it depends on; a "seed" may be given."""
        ...

    def find(self, source: str | pathlib.Path | None, /) -> tuple[str, typing.Any]:
        """The log's name, and the source's files."""
        ...

    # Any: the files that its own `find` gave.
    def log_parts(
        self, raw: typing.Any, settings: typing.Mapping[str, typing.Any], /
    ) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
        """What `event_log.write` takes, name and source aside; and what the log's `source` says of it."""
        ...


GIVEN: dict[str, Given] = {
    trivago.NAME: trivago,
    amazon_beauty.NAME: amazon_beauty,
    amazon_reviews.NAME: amazon_reviews,
    lastfm.NAME: lastfm,
}


def default_data_dir() -> pathlib.Path:
    """$SYNERGEN_DATA, or ~/.cache/synergen."""
    return pathlib.Path(os.environ.get("SYNERGEN_DATA") or "~/.cache/synergen").expanduser()


def logs_folder(data_dir: str | pathlib.Path | None = None) -> pathlib.Path:
    """Where event logs lie, below a data folder or the default one."""
    return (pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()) / "logs"


def prepare(
    name: str,
    *,
    source: str | pathlib.Path | None = None,
    data_dir: str | pathlib.Path | None = None,
    force: bool = False,
    encoder: str | None = None,
    query_share: float | None = None,
    seed: int | None = None,
    matrix: typing.Sequence[str] = (),
    films: str | pathlib.Path | None = None,
) -> EventLog:
    """Fetches, checks and converts a data set; a log that is already whole is reused.

    `name` is "ml-100k", "ml-1m", one of these with "-search" for generated queries; "ml-1m-tmdb", which needs `films`;
    one of `GIVEN`, which needs a `source` (the logs of "trivago" and "amazon-reviews" are called after its files); or a
    folder of RecBole's atomic files, whose log is then called after its .inter file; any other name needs `source`,
    that folder. A log that was made with other settings, or from a given `source` of other bytes, is made anew, and so
    is everything with `force`; without it, a log that was imported, or prepared from files of another place, is not
    replaced.

    Args:
      encoder: what `text.make` takes, or "none". By default "-search" and "-tmdb" logs, Amazon's, Last.fm's, and atomic
        files with titles or tags, have "tfidf", others none.
      query_share: share of the events that become searches, of MovieLens with "-search" and "-tmdb" alone; and `seed`
        of their draws, or of the order of Last.fm's artists.
      matrix: further matrices of items, `NAME=FILE.npy` each.
      films: the CSV file of TMDB's keywords and actors, for "ml-1m-tmdb" alone.
    """
    data_dir = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    given, described = GIVEN.get(name), _described(name, films)
    name, source, raw = _named(name, source)
    files = [matrices.File.parse(text) for text in matrix]
    path = logs_folder(data_dir) / name
    disk.remove_leftovers(path.parent)
    event_log.check_place(path)  # now rather than at the end
    if raw is None and source is not None:
        raw = _given(name, source)
    own = raw if isinstance(raw, fetch.Raw) and not given and name not in KNOWN else None  # atomic files
    # Texts that nobody asked for are no reason to make a log anew, which runs were trained on.
    free = ("text",) if own and not encoder else ()
    if not encoder:
        words = name in SEARCH or (own and _has_words(own))
        encoder = given.TEXT if given else "tfidf" if words else "none"
    settings = _settings(name, given, encoder, query_share, seed, files)
    if described:
        settings["films"] = described.sha256()
    if not force and (path / "log.json").is_file():
        _refuse_another(path, raw if name not in KNOWN else None)
        if (log := _reusable(path, raw, settings, free)) is not None:
            return log
    versions.refuse_needed(path, f"preparing {name} anew", force)
    raw = raw or fetch.fetch(SEARCH.get(name, name), downloads=data_dir / "downloads")
    parts, said = _parts(name, given, raw, settings, described)
    about = {"origin": raw.origin, "sha256": raw.sha256(), "settings": settings, **said}
    if files:
        about["matrices"] = _join(parts, files)
    if "text" in settings:
        _encode(parts, encoder, data_dir / "text-cache")
    log = event_log.write(path, name=name, source=about, **parts)
    versions.remove_others(log.path)
    return log


def _described(name: str, films: str | pathlib.Path | None) -> tmdb.File | None:
    """The file of films, for the log that needs one and for no other."""
    if name == tmdb.NAME:
        if films is None:
            raise UserError(f"{name} needs --films FILE.csv, a table with the columns {', '.join(tmdb.COLUMNS)}")
        return tmdb.File.read(films)
    if films is not None:
        raise UserError(f"--films is for {tmdb.NAME} alone, not for {name}: leave it out, or prepare {tmdb.NAME}")
    return None


def _named(name: str, source: str | pathlib.Path | None) -> tuple[str, str | pathlib.Path | None, Raw | None]:
    """The log's name, where its files are if that is known, and the files themselves if the name was told from them."""
    raw = None
    if given := GIVEN.get(name):
        name, raw = given.find(source)
        name += f"-{given.NAME}" if name in KNOWN else ""
    elif name not in KNOWN and source is None:
        source = pathlib.Path(name).expanduser()
        if not source.is_dir():
            names = ", ".join((*KNOWN, *GIVEN))
            raise UserError(f"{name!r} is neither one of {names} nor a folder of atomic files; or give --source PATH")
        name = recbole.stem(recbole.find(source).interactions[0])
        if name in KNOWN:
            name = f"{name}-atomic"  # the plain name stands for the data set as it was published
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"log name {name!r} may hold letters, digits and . _ - alone")
    return name, source, raw


def _reusable(
    path: pathlib.Path, raw: Raw | None, settings: dict[str, typing.Any], free: typing.Collection[str]
) -> EventLog | None:
    """The log that is there, if it is whole, of the bytes of `raw` if these are given, and was made with these settings.

    Args:
      free: settings that may differ.
    """
    try:
        log = EventLog.load(path)
        log[len(log) - 1]
    except UserError:
        return None  # a damaged log is prepared again
    rest = lambda given: {key: value for key, value in given.items() if key not in free}
    same = rest(log.source.get("settings", {})) == rest(settings)
    return log if same and (raw is None or raw.sha256() == log.source.get("sha256")) else None


def _parts(
    name: str, given: Given | None, raw: typing.Any, settings: dict[str, typing.Any], described: tmdb.File | None
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """What `event_log.write` takes, without further matrices and texts; and what the log's `source` says of it."""
    if given:
        return given.log_parts(raw, settings)
    of = SEARCH.get(name, name)
    data = movielens.interactions(of, raw) if of in fetch.SOURCES else recbole.interactions(raw)
    if name not in SEARCH:
        return log_parts(data), {} if of in fetch.SOURCES else recbole.passed_over(raw, data)
    made = {key: settings[key] for key in ("share", "seed")}
    if described:
        films = described.films(data.titles)
        parts, queries = tmdb.add(log_parts(tmdb.with_texts(data, films)), films, **made)
        return parts, {"generated_queries": True, "queries": queries | made, "films": str(described.path)}
    parts = log_parts(data)
    queries = {"templates": len(search_queries.TEMPLATES), **made}
    return search_queries.add(parts, **made), {"generated_queries": True, "queries": queries}


def _has_words(raw: fetch.Raw) -> bool:
    """Whether atomic files describe an item in words."""
    titles, tags = recbole.descriptions(raw)
    return any(titles.values()) or any(any(of.values()) for of in tags.values())


def _refuse_another(path: pathlib.Path, raw: Raw | None) -> None:
    """Refuses to replace a log, be it damaged, that was imported, or that was prepared from another place than `raw`."""
    try:
        source = json.loads((path / "log.json").read_text(encoding="utf-8"))["source"]
        origin, sha256 = source.get("origin", "a table"), source.get("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # nothing is known of it
    if sha256 is None or (raw and raw.origin != origin and raw.sha256() != sha256):
        raise UserError(
            f"{path} is the log that was {'imported' if sha256 is None else 'prepared'} from {origin}: --force prepares "
            f"another in its place; to keep it, move the folder away, or prepare with another --data-dir"
        )


def _settings(
    name: str,
    given: Given | None,
    encoder: str,
    query_share: float | None,
    seed: int | None,
    files: list[matrices.File],
) -> dict[str, typing.Any]:
    """All that a log depends on but its source, as its log.json keeps it; {} for a plain log."""
    found: dict[str, typing.Any] = dict(given.SETTINGS) if given else {}
    if "seed" in found and query_share is None:
        found["seed"] = seed or 0
        if found["seed"] < 0:
            raise UserError(f"--seed must not be below 0, not {seed}")
    elif name in SEARCH:
        found |= {"share": search_queries.SHARE if query_share is None else float(query_share), "seed": seed or 0}
    elif query_share is not None or seed is not None:
        raise UserError(f"{name} has no generated queries, so no share or seed of them; {', '.join(SEARCH)} have")
    if encoder != "none":
        found["text"] = text.identity(encoder)
    if files:
        found["matrices"] = {file.name: file.sha256() for file in files}
        if len(found["matrices"]) < len(files):
            raise UserError("--matrix: a name comes twice")
    return found


def _join(parts: dict[str, typing.Any], files: list[matrices.File]) -> dict[str, typing.Any]:
    """Adds further matrices to the parts of a log; what is to be said of each."""
    said = {}
    for file in files:
        if file.name in (*parts.setdefault("item_matrices", {}), "text"):
            raise UserError(f"--matrix {file.name}: the log has a matrix of that name; give another")
        matrix, without = matrices.read(file, parts["item_ids"])
        parts["item_matrices"][file.name] = matrix
        said[file.name] = {"file": str(file.path.resolve()), "width": matrix.shape[1], "items_without": without}
    return said


def _encode(parts: dict[str, typing.Any], encoder: str, cache: pathlib.Path) -> None:
    """Adds the matrices of texts to the parts of a log."""
    words = parts.get("item_texts", [""])
    text.check_words(encoder, words, parts["queries"])
    parts["text_encoder"], found = text.matrices(encoder, words, parts["queries"], cache)
    for kind, matrix in found.items():
        parts[f"{kind}_matrices"] = {**parts.get(f"{kind}_matrices", {}), "text": matrix}


def _given(name: str, source: str | pathlib.Path) -> fetch.Raw:
    if SEARCH.get(name, name) in fetch.SOURCES:
        return fetch.fetch(SEARCH.get(name, name), source, downloads=pathlib.Path())
    folder = pathlib.Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of atomic files")
    return recbole.find(folder)


def locate(log: str | pathlib.Path, data_dir: str | pathlib.Path | None = None) -> pathlib.Path:
    """The folder of a prepared log, by its name or by the folder itself.

    Of a log that grew the name stands for the newest version, and NAME@2 for the second (`versions`).
    """
    logs = logs_folder(data_dir)
    for folder in (versions.named(logs, str(log)), pathlib.Path(log).expanduser()):
        if folder is not None and (folder / "log.json").is_file():
            return folder
    found = ", ".join(sorted(path.parent.name for path in logs.glob("[!.]*/log.json"))) or "none"
    raise UserError(
        f"no prepared log {str(log)!r} (prepared: {found}); run `synergen data prepare {log}` or `synergen data import`"
    )
