"""Slices by columns of one's own: what `synergen evaluate --slice-by FILE` cuts the targets by."""

from __future__ import annotations

import collections
import collections.abc
import pathlib
import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from synergen_jax.errors import UserError

VALUES = 20  # of a column that have a slice each
NONE, OTHER = "(none)", "(other)"
IDS = ("item", "user")


class Column(typing.NamedTuple):
    """A column that tells a value of each item, or of each user."""

    name: str
    of: str  # one of IDS
    values: list[str]  # of each of the log's ids; NONE where the file has none


def read(paths: collections.abc.Sequence[pathlib.Path], log: EventLog) -> list[Column]:
    """Columns of tables that have a column `item` or `user`, original ids, and further ones.

    Raises:
      UserError: a file cannot be read, has neither of these columns or both, no further one, a column of another file,
        rows without an id, two values of one id; or none of its ids is in the log.
    """
    found: dict[str, tuple[Column, pathlib.Path]] = {}
    for path in paths:
        for column in _columns(path, log):
            if column.name in found:
                raise UserError(
                    f"--slice-by: column {column.name!r} is in {found[column.name][1]} and in {path}: rename one of "
                    "them"
                )
            found[column.name] = column, path
    return [column for column, _ in found.values()]


def masks(
    columns: collections.abc.Sequence[Column], about: collections.abc.Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Slices "COLUMN=VALUE", bool (n,), of targets whose "item" and "user", (n,) each, are numbers of the log.

    Each column puts each target into one slice: of the VALUES values with the most targets, of OTHER ones, or of NONE.
    """
    found = {}
    for column in columns:
        value = np.array(column.values, object)[about[column.of]]
        count = collections.Counter(value.tolist())
        own = sorted((one for one in count if one != NONE), key=lambda one: (-count[one], one))
        value[np.isin(value, own[VALUES:])] = OTHER
        for one in dict.fromkeys([*own[:VALUES], OTHER, NONE]):
            if (mask := value == one).any():
                found[f"{column.name}={one}"] = mask
    return found


def _columns(path: pathlib.Path, log: EventLog) -> list[Column]:
    """The columns of one file."""
    of, table = _table(path)
    ids = log.item_ids[1:] if of == "item" else log.user_ids
    if not table.keys() & set(ids):
        example = next(iter(table), "")
        raise UserError(
            f"{path}: none of its {len(table):,} {of}s, such as {example!r}, is in the log {log.name}, which has {of}s "
            f"such as {ids[0]!r}: give the ids of the log's table"
        )
    ids = ["", *ids] if of == "item" else ids
    names = list(next(iter(table.values())))
    return [Column(name, of, [table[one][name] if one in table else NONE for one in ids]) for name in names]


def _table(path: pathlib.Path) -> tuple[str, dict[str, dict[str, str]]]:
    """Whether a file is of items or users, and the values by column of each id."""
    from data_pipelines.importing import event_files
    from data_pipelines.importing.bad_rows import Problems, is_missing

    files = event_files.EventFiles(path)
    of, names = _of(path, files.names)
    there = lambda text: NONE if is_missing(text := " ".join((text or "").split())) else text
    found: dict[str, dict[str, str]] = {}
    problems, rows = Problems(), 0
    for piece in files.pieces([of, *names]):
        rows += len(piece.rows) + sum(map(len, piece.broken.values()))
        for why, lines in piece.broken.items():
            problems.add("bad-lines", f"with {why}", lines)
        text = [_text(piece.columns[name], f"{path}: column {name!r}") for name in (of, *names)]
        for number, key, *values in zip(piece.rows.tolist(), *text):
            told = dict(zip(names, map(there, values)))
            if is_missing(key := (key or "").strip()):
                problems.add("missing", f"without {'an item' if of == 'item' else 'a user'}", [number])
            elif found.setdefault(key, told) != told:
                why = f"with other values than an earlier row of the same {of} has"
                problems.add("duplicates", why, [number], key)
    problems.check(str(path), rows, files.place, "")
    if not found:
        raise UserError(f"{path}: there are no rows")
    return of, found


def _of(path: pathlib.Path, names: collections.abc.Sequence[str]) -> tuple[str, list[str]]:
    """Which of IDS a table has, and its further columns."""
    there = [name for name in IDS if name in names]
    if len(there) != 1:
        raise UserError(
            f"{path}: has {'both columns item and user' if there else 'neither a column item nor a column user'}, and "
            f"--slice-by goes by one of them; it has {', '.join(names)}: rename or remove columns"
        )
    further = [name for name in names if name not in IDS]
    if not further:
        raise UserError(f"{path}: has the column {there[0]!r} alone: add a column to slice by")
    return there[0], further


def _text(column: typing.Any, where: str) -> list[str | None]:
    """A column's values as text; of true and false, too."""
    import polars as pl

    from data_pipelines.importing import event_files

    return event_files.text(column.cast(pl.String) if column.dtype == pl.Boolean else column, where).to_list()
