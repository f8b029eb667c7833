"""JSON lines, an object a line, read piece by piece. A column is a key, or a path of keys into nested objects: `meta.price`.

Numbers become text as they are written; those that are whole, `101.0`, are whole numbers. A list becomes a list of texts.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import typing

import numpy as np

from data_pipelines.importing import packed_text
from data_pipelines.importing.packed_text import NOT_UTF8, Piece, line_bounds, undecodable
from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

BLOCK = 32 << 20  # bytes of text that are read at a time
FIRST = 10_000  # lines that tell which columns there are
NOT_JSON = "what is no JSON object"

BOM = b"\xef\xbb\xbf"

Tree = dict[str, "Node"]
"""What is wanted of an object, by its keys."""


class Node(typing.NamedTuple):
    """What is wanted of a key."""

    inner: Tree  # of the object that it holds
    columns: list[str]  # names of columns that it is itself


def names(path: pathlib.Path) -> list[str]:
    """The columns that the first lines have, in the order in which they come up; those of nested objects by their paths.

    Raises:
      UserError: no line among them holds an object.
    """
    found: dict[str, None] = {}
    with packed_text.Reader(path) as text:
        lines = itertools.chain.from_iterable(block.splitlines() for block, _ in text.blocks(1 << 20))
        for line in itertools.islice(lines, FIRST):
            found |= dict.fromkeys(_paths(_loaded(line)))
    if not found:
        raise UserError(f"{path}: none of its first lines is a JSON object: a file of an object a line is wanted")
    return list(found)


def _loaded(line: bytes) -> typing.Any:
    try:
        return json.loads(line.removeprefix(BOM))
    except (ValueError, RecursionError):
        return None


def _paths(value: typing.Any, before: str = "") -> typing.Iterator[str]:
    """The columns of an object: its keys, those of objects in it behind theirs."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        name = f"{before}{key}"
        yield from _paths(inner, f"{name}.") if inner and isinstance(inner, dict) else [name]


def pieces(
    path: pathlib.Path, columns: typing.Sequence[str], start: int, watched: typing.Sequence[str] = ()
) -> typing.Iterator[Piece]:
    """The rows of a file; row r has the number `start + r`, its line's. An empty line is no row.

    Args:
      watched: columns that the first lines lack, and that no other line may have.

    Raises:
      UserError: a column holds objects, or a line has a column that is `watched`.
    """
    import polars as pl

    line = 1
    with packed_text.Reader(path) as text:
        for block, size in text.blocks(BLOCK):
            block = block.removeprefix(BOM) if line == 1 else block
            late = [name for name in watched if name.rpartition(".")[2].encode() in block]
            lines, places, broken, found, count = _read(block, [*columns, *late])
            for name in late:
                if len(at := np.flatnonzero(found[name].is_not_null().to_numpy())):
                    raise UserError(
                        f"{path}, line {line + int(places[at[0]])}: {name!r}, which the first {FIRST:,} lines lack: move a line "
                        "that has it to the top, or name another column"
                    )
            frame = pl.DataFrame([_typed(found[name], lines, f"{path}: column {name!r}") for name in columns])
            number = lambda rows, line=line: start + line + rows.astype(np.int64)
            yield Piece(frame, number(places), {why: number(rows) for why, rows in broken.items()}, size)
            line += count


def _read(
    block: bytes, columns: typing.Sequence[str]
) -> tuple[list[bytes], np.ndarray, dict[str, np.ndarray], dict[str, pl.Series], int]:
    """The objects of a block.

    Returns:
      The good lines, their places among all lines, the places of broken ones by reason, the columns as text, and the number
      of lines.
    """
    import polars as pl

    starts, ends = line_bounds(block)
    every, broken, left = block[:-1].split(b"\n"), {}, ends > starts
    if len(bad := undecodable(block, starts, ends)):
        broken[NOT_UTF8] = bad
        left[bad] = False
    places = np.array([place for place in np.flatnonzero(left).tolist() if every[place].strip()], np.int64)
    lines = [every[place] for place in places.tolist()]
    tree = _tree(columns)
    try:
        found = _columns(lines, tree)
    except pl.exceptions.PolarsError:
        whole = pl.Series([line.decode().strip() for line in lines], dtype=pl.String)
        # Of what stands for the line itself: no value of another kind, and nothing that is no JSON.
        good = (whole.str.starts_with("{") & whole.str.json_path_match("$").is_not_null()).to_numpy()
        broken[NOT_JSON] = places[~good]
        places, lines = places[good], [line for line, is_good in zip(lines, good.tolist()) if is_good]
        found = _columns(lines, tree)
    return lines, places, broken, found, len(ends)


def _tree(columns: typing.Iterable[str]) -> Tree:
    """The keys by which columns are found: `a.b` is the key b of what a holds, or a key of that name."""
    made: Tree = {}
    for name in columns:
        *way, last = name.split(".")
        at = made
        for key in way:
            at = at.setdefault(key, Node({}, [])).inner
        at.setdefault(last, Node({}, [])).columns.append(name)
        if way:
            made.setdefault(name, Node({}, [])).columns.append(name)
    return made


def _columns(lines: typing.Sequence[bytes], tree: Tree) -> dict[str, pl.Series]:
    """The columns of some objects as text, null where an object lacks one.

    Raises:
      polars.exceptions.PolarsError: a line is no object.
    """
    import polars as pl

    kinds = {key: pl.String for key in tree}
    frame = pl.read_ndjson(b"\n".join(lines), schema=kinds) if lines else pl.DataFrame(schema=kinds)
    if len(frame) != len(lines):
        raise RuntimeError(f"{len(frame)} objects read from {len(lines)} lines")
    found: dict[str, pl.Series] = {}
    for key, node in tree.items():
        text = frame[key]
        parts = {name: text for name in node.columns}
        if node.inner:
            is_object = text.str.starts_with("{") & text.str.json_path_match("$").is_not_null()
            at = np.flatnonzero(is_object.fill_null(False).to_numpy())
            inside = _columns([one.encode() for one in text.gather(at).to_list()], node.inner)
            for name, some in inside.items():
                places = pl.DataFrame({"at": at, "value": some}, schema={"at": pl.Int64, "value": pl.String})
                rows = pl.DataFrame({"at": np.arange(len(lines))}, schema={"at": pl.Int64})
                parts[name] = rows.join(places, on="at", how="left", maintain_order="left")["value"]
        for name, part in parts.items():
            found[name] = found[name].fill_null(part) if name in found else part
    return {name: column.alias(name) for name, column in found.items()}


def _typed(column: pl.Series, lines: typing.Sequence[bytes], where: str) -> pl.Series:
    """A column of text; of lists of texts, where a line has a list there.

    Raises:
      UserError: a line has an object there.
    """
    import polars as pl

    odd = column.str.contains(r"^[\[{]").fill_null(False)  # a list, an object, or a text that begins like one
    if not odd.any():
        return column
    name, values = column.name, column.to_list()
    for at in np.flatnonzero(odd.to_numpy()).tolist():
        values[at] = _value(json.loads(lines[at]), name)
        if isinstance(values[at], dict):
            keys = ", ".join(f"{name}.{key}" for key in values[at])
            raise UserError(
                f"{where} holds objects, where text or numbers are wanted; there are {keys or 'no keys in it'}"
            )
    if not any(isinstance(value, list) for value in values):
        return column
    lists = [value if value is None or isinstance(value, list) else [value] for value in values]
    if any(isinstance(value, list | dict) for one in lists if one is not None for value in one):
        raise UserError(f"{where} holds lists of lists or of objects, where lists of texts or numbers are wanted")
    told = [None if one is None else [_text(value) for value in one] for one in lists]
    return pl.Series(name, told, pl.List(pl.String))


def _value(record: typing.Any, name: str) -> typing.Any:
    """What an object has for a column."""
    if name in record:
        return record[name]
    for key in name.split("."):
        record = record[key]
    return record


def _text(value: typing.Any) -> str | None:
    """An entry of a list as text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
