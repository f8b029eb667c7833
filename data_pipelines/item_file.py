"""A table of items: ids, titles, texts, tags, vectors. It is read whole, as the catalogue of a log is held whole."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
import typing

import numpy as np

from data_pipelines import event_files
from data_pipelines.interactions import MAX_TAGS
from data_pipelines.problems import Problems, is_missing
from synergen_jax.errors import UserError

ROLES = ("item", "title", "text")


@dataclasses.dataclass(frozen=True)
class Items:
    """The rows of the file, one an item. A title, text or tag that is missing is empty."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    tags: dict[str, list[tuple[str, ...]]]  # column -> the tags of each item
    rows: np.ndarray  # (items,): the place of each in the file, counted without broken lines


def read(path: pathlib.Path, columns: typing.Mapping[str, str], tags: typing.Sequence[str], drop) -> Items:
    """Reads a CSV, TSV or parquet file.

    Args:
      columns: role -> name of its column; roles are ROLES.
      tags: columns whose values, set apart by `|`, become multi-hot matrices.
      drop: kinds of bad rows that are left out; see `problems`.

    Raises:
      UserError: the file cannot be read, lacks a column, or has bad rows of other kinds.
    """
    files = event_files.EventFiles(path)
    if len(files.paths) > 1:
        raise UserError(f"{path}: one file of items is wanted, not {len(files.paths)}")
    roles = event_files.roles(files, columns, ROLES, required=("item",), flag="--item-columns")
    problems = Problems(drop)
    wanted = list(dict.fromkeys([*roles.values(), *tags]))
    if missing := [name for name in tags if name not in files.names]:
        raise UserError(f"{path}: there is no column {missing[0]!r} for --tags; it has {', '.join(files.names)}")
    table, numbers = (_parquet if files.parquet else _csv)(files.paths[0], files.names, wanted, problems)
    ids = [" ".join(value.split()) for value in table[roles["item"]]]
    first: dict[str, int] = {}
    for number, item in zip(numbers, ids):
        if is_missing(item):
            problems.add("missing", "without an item", [number])
        elif item in first:
            problems.add("duplicates", "with an item that came before", [number])
        else:
            first[item] = number
    problems.check(str(path), len(ids), files.place if files.parquet else "line {}".format)
    keep = [place for place, number in enumerate(numbers) if first.get(ids[place]) == number]
    column = lambda role: [" ".join(table[roles[role]][i].split()) for i in keep] if role in roles else [""] * len(keep)
    split = lambda text: tuple(dict.fromkeys(tag.strip() for tag in text.split("|") if tag.strip()))
    found = {name: [split(table[name][i]) for i in keep] for name in tags}
    for name, values in found.items():
        if len(set().union(*values)) > MAX_TAGS:
            raise UserError(f"{path}: column {name!r} has more than {MAX_TAGS} different values: too many for --tags")
    return Items([ids[i] for i in keep], column("title"), column("text"), found, np.array(keep, np.int64))


def _parquet(path, names, wanted, problems) -> tuple[dict[str, list[str]], range]:
    pieces = list(event_files.EventFiles(path).pieces(wanted))
    table: dict[str, list[str]] = {name: [] for name in wanted}
    for piece in pieces:
        for name in wanted:
            values = event_files.text(piece.columns[name], f"{path}: column {name!r}", lists="|")
            table[name] += [value or "" for value in values.to_list()]
    return table, range(1, 1 + len(table[wanted[0]]))


def _csv(path: pathlib.Path, names, wanted, problems) -> tuple[dict[str, list[str]], list[int]]:
    """As RFC 4180 has it: a quoted text may hold line breaks. Numbers are those of each row's last line."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8 text: save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=event_files.separator(path), strict=True)
    places = [names.index(name) for name in wanted]
    rows, numbers = [], []
    try:
        next(reader)
        for row in reader:
            if len(row) == len(names):
                rows.append([row[place] for place in places])
                numbers.append(reader.line_num)
            elif row:
                why = f"with {len(row)} columns where the header has {len(names)}"
                problems.add("bad-lines", why, [reader.line_num])
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from None
    return {name: [row[i] for row in rows] for i, name in enumerate(wanted)}, numbers
