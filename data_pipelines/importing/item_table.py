"""A table of items: ids, titles, texts, tags, vectors. It is read whole, as the catalogue of a log is held whole."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
import typing

import numpy as np

from data_pipelines.importing import delimited_text, event_files, packed_text
from data_pipelines.importing.bad_rows import Problems, is_missing
from data_pipelines.sources.interactions import MAX_TAGS, multi_hot
from synergen_jax.errors import UserError

ROLES = ("item", "title", "text")


@dataclasses.dataclass(frozen=True)
class Items:
    """The rows of the file, one an item. A title, text or tag that is missing is empty."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    tags: dict[str, list[tuple[str, ...]]]  # column -> the tags of each item
    vectors: dict[str, np.ndarray]  # name -> (items, width) float16

    @property
    def words(self) -> list[str]:
        """Title and text of each item, or what there is of both."""
        return [" ".join(filter(None, pair)) for pair in zip(self.titles, self.texts)]


class Described(typing.NamedTuple):
    """A catalogue in the order of a log's item ids, the empty one first."""

    titles: list[str]
    texts: list[str]  # title and text, or what there is of both
    matrices: dict[str, np.ndarray]
    columns: dict[str, list[str]]  # what the columns of a matrix stand for
    without_row: int  # items that the file does not have


def read(
    path: pathlib.Path,
    columns: typing.Mapping[str, str],
    tags: typing.Sequence[str],
    vectors: typing.Mapping[str, pathlib.Path],
    drop: typing.Collection[str],
    options: bool = True,
) -> Items:
    """Reads a CSV, TSV, JSON lines or parquet file.

    Args:
      columns: role -> name of its column; roles are ROLES.
      tags: columns whose values, set apart by `|`, become multi-hot matrices.
      vectors: name of a matrix -> .npy file with a row for each row of the file.
      drop: kinds of bad rows that are left out; see `bad_rows`.
      options: whether messages may advise an import's options.

    Raises:
      UserError: the file cannot be read, lacks a column, or has bad rows of other kinds.
    """
    files = event_files.EventFiles(path)
    if len(files.paths) > 1:
        raise UserError(f"{path}: one file of items is wanted, not {len(files.paths)}")
    roles = event_files.roles(files, columns, ROLES, required=("item",), flag="--item-columns" if options else "")
    problems = Problems(drop)
    wanted = list(dict.fromkeys([*roles.values(), *tags]))
    if missing := [name for name in tags if name not in files.names]:
        raise UserError(f"{path}: there is no column {missing[0]!r} for --tags; it has {', '.join(files.names)}")
    read = _csv if files.form == "delimited text" else _pieces
    table, numbers = read(files, wanted, problems)
    ids = [value.strip() for value in table[roles["item"]]]
    first: dict[str, int] = {}
    for number, item in zip(numbers, ids):
        if is_missing(item):
            problems.add("missing", "without an item", [number])
        elif item in first:
            problems.add("duplicates", "with an item that came before", [number])
        else:
            first[item] = number
    rows = len(ids) + problems.counts().get("bad-lines", 0)
    problems.check(str(path), rows, files.place, "--drop" if options else "")
    keep = [place for place, number in enumerate(numbers) if first.get(ids[place]) == number]
    there = lambda text: "" if is_missing(text := " ".join(text.split())) else text
    column = lambda role: [there(table[roles[role]][i]) for i in keep] if role in roles else [""] * len(keep)
    split = lambda text: tuple(dict.fromkeys(filter(None, map(there, text.split("|")))))
    found = {name: [split(table[name][i]) for i in keep] for name in tags}
    for name, values in found.items():
        if len(set().union(*values)) > MAX_TAGS:
            raise UserError(f"{path}: column {name!r} has more than {MAX_TAGS} different values: too many for --tags")
        if not any(values):
            raise UserError(f"{path}: column {name!r}, given to --tags, is empty")
    matrices = {
        name: _vectors(pathlib.Path(file), np.array(keep, np.int64), len(ids)) for name, file in vectors.items()
    }
    return Items([ids[i] for i in keep], column("title"), column("text"), found, matrices)


def describe(ids: typing.Sequence[str], items: Items | None) -> Described:
    """What is known of a log's items; one that the file lacks, or that has no title there, goes by its id.

    Ids are titles, to be shown, and no texts, to be searched, unless the file describes nothing in words.
    """
    row = {item: i for i, item in enumerate(items.ids)} if items else {}
    at = np.array([row.get(item, -1) for item in ids])
    titles, texts = list(ids), list(ids)
    if items and any(items.words):
        titles = [(i >= 0 and items.titles[i]) or item for i, item in zip(at, ids)]
        texts = [items.words[i] if i >= 0 else "" for i in at]
    matrices, columns = {}, {}
    for name, tags in (items.tags if items else {}).items():
        matrices[name], columns[name] = multi_hot([tags[i] if i >= 0 else () for i in at])
    for name, vectors in (items.vectors if items else {}).items():
        matrices[name] = np.zeros((len(ids), vectors.shape[1]), np.float16)
        matrices[name][at >= 0] = vectors[at[at >= 0]]
    return Described(titles, texts, matrices, columns, int((at[1:] < 0).sum()))


def _vectors(path: pathlib.Path, keep: np.ndarray, rows: int) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an array that numpy.save wrote: {error}") from None
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or len(vectors) != rows:
        raise UserError(
            f"{path}: an array {vectors.shape} of {vectors.dtype}, not {rows:,} rows of numbers, one an item"
        )
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors[keep], np.float16)
    if (wrong := ~np.isfinite(vectors).all(1)).any():
        row = int(keep[np.argmax(wrong)])
        raise UserError(f"{path}: row {row:,} (from 0) is not finite in float16: {int(wrong.sum()):,} rows are so")
    return vectors


def _pieces(files: event_files.EventFiles, wanted, problems: Problems) -> tuple[dict[str, list[str]], list[int]]:
    """Parquet and JSON lines."""
    table: dict[str, list[str]] = {name: [] for name in wanted}
    numbers: list[int] = []
    for piece in files.pieces(wanted, [role for role in ROLES if role not in files.names]):
        for name in wanted:
            values = event_files.text(piece.columns[name], f"{files.where}: column {name!r}", lists="|")
            table[name] += [value or "" for value in values.to_list()]
        for why, rows in piece.broken.items():
            problems.add("bad-lines", f"with {why}", rows)
        numbers += piece.rows.tolist()
    return table, numbers


def _csv(files: event_files.EventFiles, wanted, problems: Problems) -> tuple[dict[str, list[str]], list[int]]:
    """As RFC 4180 has it: a quoted text may hold line breaks. Numbers are those of each row's last line."""
    path, names = files.paths[0], files.names
    with packed_text.Reader(path) as file:
        data = file.read_all()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8 text: save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimited_text.Header(path).separator, strict=True)
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
