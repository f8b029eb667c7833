"""RecBole's atomic files: tab-separated text with a header of `name:type`, one .inter and perhaps one .item file.

In place of the one, .train.inter, .valid.inter and .test.inter are a split that the data give.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.files import parts, rows
from data_pipelines.sources.fetch import Raw
from data_pipelines.sources.interactions import MAX_TAGS, Interactions
from synergen_jax.errors import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
SPLIT = (".train", ".valid", ".test")
ENDINGS = ".train.inter, .valid.inter and .test.inter"
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


def stem(name: str) -> str:
    """What a .inter file is called after: `ml` of ml.inter, and of ml.train.inter."""
    path = pathlib.Path(pathlib.Path(name).stem)
    return path.stem if path.suffix in SPLIT else path.name


def _split(folder: pathlib.Path, found: list[pathlib.Path], name: str) -> list[pathlib.Path]:
    """The three files of a split, in the order of its parts, if no other .inter file is there."""
    wanted = [folder / f"{name}{part}.inter" for part in SPLIT]
    if lacking := [path.name for path in wanted if path not in found]:
        raise UserError(
            f"{folder}: there is no {lacking[0]}, where NAME{ENDINGS} are wanted; a part that stands alone must be "
            f"called {name}.inter"
        )
    if others := [path.name for path in found if path not in wanted]:
        raise UserError(
            f"{folder}: {others[0]} beside {wanted[0].name}: move away what is not to be read, the one or the three"
        )
    return wanted


def find(folder: pathlib.Path) -> Raw:
    """The atomic files of a folder: its only .inter file, or its three, and the .item file of that name, if any.

    Raises:
      UserError: there are more, or less; a file cannot be read.
    """
    found = sorted(folder.glob("*.inter"))
    if some := [path for path in found if pathlib.Path(path.stem).suffix in SPLIT]:
        found = _split(folder, found, pathlib.Path(some[0].stem).stem)
    elif len(found) != 1:
        raise UserError(f"{folder}: {len(found)} .inter files, where one is wanted, or NAME{ENDINGS}")
    items = folder / f"{stem(found[0].name)}.item"
    read = lambda path: (path.name, path.read_bytes(), str(path))
    try:
        first, *more = map(read, found)
        return Raw(first, read(items) if items.is_file() else None, str(folder.resolve()), tuple(more))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def passed_over(raw: Raw, read: Interactions) -> dict[str, list[str]]:
    """What a folder of atomic files holds that is not `read` of it, for the log's own record: other files, and columns."""
    head = lambda file: list(header(rows.decode(file[1].partition(b"\n")[0], file[2])[0], file[2]))
    inters = (raw.interactions, *raw.more)
    tables = [(file, {"user_id", "item_id", "timestamp", "rating"}) for file in inters]
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
    distinct values becomes a matrix. Of three files, each is a part of the split.

    Raises:
      UserError: a row is wrong; the files have different columns; a user's parts are out of order.
    """
    inters = [table(file[1], file[2], ("user_id", "item_id", "timestamp")) for file in (raw.interactions, *raw.more)]
    for inter in inters[1:]:
        if odd := sorted(set(inter.types) ^ set(inters[0].types)):
            raise UserError(f"{inter.where}:1: column {odd[0]} is not in all of the three files")
    titles, tags = descriptions(raw)
    return Interactions(
        [user for inter in inters for user in inter.tokens("user_id")],
        [item for inter in inters for item in inter.tokens("item_id")],
        np.concatenate([inter.times("timestamp") for inter in inters]),
        _ratings(inters),
        titles,
        tags,
        part=_parts(inters) if raw.more else None,
    )


def _ratings(inters: list[Table]) -> np.ndarray | None:
    """The ratings of all rows, if there are such and they are whole."""
    if "rating" not in inters[0].types:
        return None
    found = []
    for inter in inters:
        found.append(numbers := inter.numbers("rating"))
        if (wrong := (numbers < 0) | (numbers > 100)).any():
            row = int(wrong.argmax())
            raise inter.error(row, f"rating {inter.columns['rating'][row]!r} is not between 0 and 100")
    every = np.concatenate(found)
    return every.astype(np.int64) if (every == np.floor(every)).all() else None


def _parts(inters: list[Table]) -> np.ndarray:
    """The code of each row's part, int8; refused where a user's parts are not in the order of times."""
    sizes = [len(inter) for inter in inters]
    part = np.repeat(np.arange(1, 1 + len(inters), dtype=np.int8), sizes)
    users = [user for inter in inters for user in inter.tokens("user_id")]
    time = np.concatenate([inter.times("timestamp") for inter in inters])
    _, user = np.unique(users, return_inverse=True)
    order = np.lexsort((part, time, user))
    if (at := parts.disorder(user[order], part[order])) > 0:
        events = []
        for row in order[at - 1 : at + 1].tolist():
            inter = inters[part[row] - 1]
            line = inter.line(row - sum(sizes[: part[row] - 1]))
            events.append((int(part[row]), float(time[row]), f"{pathlib.Path(inter.where).name} line {line}"))
        parts.refuse(str(pathlib.Path(inters[0].where).parent), users[order[at]], events)
    return part


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
