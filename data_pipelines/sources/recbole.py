"""RecBole's atomic files: tab-separated text with a header of `name:type`, one .inter and perhaps one .item file."""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.files import rows
from data_pipelines.sources.fetch import Raw
from data_pipelines.sources.interactions import MAX_TAGS, Interactions
from synergen_jax.errors import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
TITLES = ("item_title", "title", "movie_title", "name")  # the first that there is holds an item's title


class Table(rows.Rows):
    """The columns of an atomic file, and the type of each."""

    def __init__(self, data: bytes, where: str):
        lines = rows.decode(data, where)
        self.types = header(lines[0], where)
        super().__init__(lines[1:], list(self.types), "\t", where, first=2)


def header(line: str, where: str) -> dict[str, str]:
    """The columns that the first line of an atomic file names, and the type of each."""
    types: dict[str, str] = {}
    for field in line.removeprefix("\ufeff").split("\t"):
        name, _, kind = field.partition(":")
        if kind not in TYPES or not name:
            raise UserError(f"{where}:1: the header must hold name:type with type {', '.join(TYPES)}, not {field!r}")
        if name in types:
            raise UserError(f"{where}:1: column {name} comes twice")
        types[name] = kind
    return types


def table(data: bytes, where: str, required: typing.Sequence[str]) -> Table:
    """Reads an atomic file that must have these columns."""
    found = Table(data, where)
    if missing := [name for name in required if name not in found.types]:
        raise UserError(f"{where}:1: there is no column {missing[0]}; it has {', '.join(found.types)}")
    return found


def find(folder: pathlib.Path) -> Raw:
    """The atomic files of a folder: its only .inter file and the .item file of the same name, if there is one."""
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        raise UserError(f"{folder}: {len(found)} .inter files, where one is wanted")
    items = found[0].with_suffix(".item")
    read = lambda path: (path.name, path.read_bytes(), str(path))
    try:
        return Raw(read(found[0]), read(items) if items.is_file() else None, str(folder.resolve()))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def passed_over(raw: Raw, read: Interactions) -> dict[str, list[str]]:
    """What a folder of atomic files holds that is not `read` of it, for the log's own record: other files, and columns."""
    head = lambda file: list(header(rows.decode(file[1].partition(b"\n")[0], file[2])[0], file[2]))
    tables = [(raw.interactions, {"user_id", "item_id", "timestamp", "rating"})]
    if raw.items:
        title = next((name for name in TITLES if name in head(raw.items)), "")
        tables.append((raw.items, {"item_id", title, *read.tags}))
    columns = [f"{file[0]}: {name}" for file, known in tables for name in head(file) if name not in known]
    known = [file[0] for file, _ in tables]
    found = sorted(path.name for path in pathlib.Path(raw.origin).iterdir() if not path.name.startswith("."))
    return {"ignored_files": [name for name in found if name not in known], "unused_columns": columns}


def interactions(raw: Raw) -> Interactions:
    """Reads any atomic data set with user_id, item_id and timestamp.

    Whole ratings, 0 to 100, become actions; ratings with fractions are not told apart. The items of the log are those
    that somebody interacted with. Each token_seq column of the .item file, its title aside, that has at most 512
    distinct values becomes a matrix.
    """
    inter = table(raw.interactions[1], raw.interactions[2], ("user_id", "item_id", "timestamp"))
    ratings = None
    if "rating" in inter.types:
        numbers = inter.numbers("rating")
        if (wrong := (numbers < 0) | (numbers > 100)).any():
            row = int(wrong.argmax())
            raise inter.error(row, f"rating {inter.columns['rating'][row]!r} is not between 0 and 100")
        if (numbers == np.floor(numbers)).all():
            ratings = numbers.astype(np.int64)
    titles, tags = descriptions(raw)
    return Interactions(
        inter.tokens("user_id"), inter.tokens("item_id"), inter.times("timestamp"), ratings, titles, tags
    )


def descriptions(raw: Raw) -> tuple[dict[str, str], dict[str, dict[str, tuple[str, ...]]]]:
    """What the .item file says: item -> title, and column -> item -> its tags."""
    titles: dict[str, str] = {}
    tags: dict[str, dict[str, tuple[str, ...]]] = {}
    if raw.items:
        items = table(raw.items[1], raw.items[2], ("item_id",))
        ids = items.unique("item_id")
        title = next((name for name in TITLES if name in items.types), None)
        if title:
            titles = {item: " ".join(text.split()) for item, text in zip(ids, items.columns[title])}
        for name, kind in items.types.items():
            if kind == "token_seq" and name != title:
                found = {item: tuple(dict.fromkeys(text.split())) for item, text in zip(ids, items.columns[name])}
                if len(set().union(*found.values())) <= MAX_TAGS:
                    tags[name] = found
    return titles, tags
