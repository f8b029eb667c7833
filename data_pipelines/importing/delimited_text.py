"""Delimited text, read piece by piece: a line is one row, so that a broken line costs no other line."""

from __future__ import annotations

import csv
import pathlib
import typing

import numpy as np

from data_pipelines.importing import packed_text
from data_pipelines.importing.packed_text import LINE_FEED, NOT_UTF8, Piece, line_bounds, undecodable
from synergen_jax.errors import UserError

BLOCK = 32 << 20  # bytes of text that are read at a time
SEPARATORS = ",\t;|"
QUOTE = ord('"')

NUL, UNCLOSED, STRAY = (
    "a NUL byte",
    "a quoted field that does not end on its line",
    "a quote inside a field (put the field in quotes and double it)",
)


class Header:
    """The first line of a CSV file: separator and names."""

    def __init__(self, path: pathlib.Path):
        with packed_text.Reader(path) as text:
            line = text.read(1 << 20)
            line = line[: line.find(b"\n") + 1] or line
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: UTF-16 text: save it as UTF-8")
        if not line.strip():
            raise UserError(f"{path}: the file is empty, or its first line is, which must name the columns")
        try:
            names = line.decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:1: byte 0x{line[error.start]:02x} is not UTF-8 text") from None
        if "\r" in names:
            raise UserError(f"{path}: its lines end in carriage returns alone: save it with line feeds")
        self.separator = max(SEPARATORS, key=names.count)  # the first of those that come equally often
        self.names = [name.strip() for name in next(csv.reader([names], delimiter=self.separator))]
        self.end = len(line)


def pieces(path: pathlib.Path, columns: typing.Sequence[str], start: int) -> typing.Iterator[Piece]:
    """The rows of a file; row r has the number `start + r`, its line's."""
    import polars as pl

    header = Header(path)
    schema = {f"{place}": pl.String for place in range(len(header.names))}
    wanted = [header.names.index(name) for name in columns]
    line = 2
    with packed_text.Reader(path) as text:
        text.read(header.end)
        for block, size in text.blocks(BLOCK):
            clean, good, broken, lines = _check(block, header.separator.encode(), len(header.names))
            if len(good):
                frame = pl.read_csv(
                    clean, has_header=False, separator=header.separator, schema=schema, columns=wanted, quote_char='"'
                )
            else:
                frame = pl.DataFrame(schema={str(place): pl.String for place in wanted})
            if len(frame) != len(good):
                raise RuntimeError(f"{path}: {len(frame)} rows read from {len(good)} lines after line {line - 1}")
            frame = frame.select(pl.col(str(place)).alias(name) for place, name in zip(wanted, columns))
            number = lambda rows, line=line: start + line + rows.astype(np.int64)
            yield Piece(frame, number(good), {why: number(rows) for why, rows in broken.items()}, size)
            line += lines


def _check(block: bytes, separator: bytes, width: int) -> tuple[bytes, np.ndarray, dict[str, np.ndarray], int]:
    """Tells a block's good lines from the broken ones.

    Returns:
      The good lines, their places among all lines, the places of broken ones by reason, and the number of lines. An
      empty line is neither.
    """
    data = np.frombuffer(block, np.uint8)
    starts, ends = line_bounds(block)
    left = ends > starts  # lines that nothing was found against yet
    broken: dict[str, np.ndarray] = {}

    def refuse(why: str, lines: np.ndarray) -> None:
        wrong = np.zeros(len(ends), bool)
        wrong[lines] = True
        if (wrong & left).any():
            broken[why] = np.flatnonzero(wrong & left)
            left[wrong] = False

    refuse(NOT_UTF8, undecodable(block, starts, ends))
    if b"\0" in block:
        refuse(NUL, np.searchsorted(ends, np.flatnonzero(data == 0)))
    places = np.flatnonzero(data == separator[0])
    if b'"' in block:
        quotes = np.flatnonzero(data == QUOTE)
        before = np.searchsorted(quotes, starts)  # quotes before each line
        line = np.searchsorted(ends, quotes)
        opens = (np.arange(len(quotes)) - before[line]) % 2 == 0
        outside = (separator[0], LINE_FEED, QUOTE)
        previous = np.where(quotes > 0, data[quotes - 1], LINE_FEED)
        refuse(STRAY, line[~np.isin(np.where(opens, previous, data[quotes + 1]), outside)])
        refuse(UNCLOSED, np.flatnonzero(np.diff(np.append(before, len(quotes))) % 2))
        line = np.searchsorted(ends, places)
        places = places[(np.searchsorted(quotes, places) - before[line]) % 2 == 0]
    count = 1 + np.diff(np.append(np.searchsorted(places, starts), len(places)))
    for found in np.unique(count[left & (count != width)]):
        refuse(f"{found} columns where the header has {width}", np.flatnonzero(count == found))
    if not broken and left.all():
        return block, np.flatnonzero(left), broken, len(ends)
    return data[np.repeat(left, ends - starts + 1)].tobytes(), np.flatnonzero(left), broken, len(ends)
