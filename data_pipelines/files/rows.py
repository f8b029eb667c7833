"""Delimited text, read whole and refused by file and line number when a row is wrong."""

from __future__ import annotations

import csv
import io
import math
import typing

import numpy as np

from synergen_jax.errors import UserError

LATEST = 4_102_444_800  # 2100-01-01: a later time is in milliseconds or is wrong


def decode(data: bytes, where: str, encoding: str = "utf-8") -> list[str]:
    """The lines of a file without their ends; one line feed at the end of the file is not a line of its own."""
    if not data.strip():
        raise UserError(f"{where}: the file is empty")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}:{line}: byte 0x{data[error.start]:02x} is not {encoding.upper()} text") from None
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return (text[:-1] if text.endswith("\n") else text).split("\n")


class Rows:
    """The columns of a delimited file, by name. `first` is the line number of the first row."""

    def __init__(self, lines: typing.Sequence[str], names: typing.Sequence[str], sep: str, where: str, first: int = 1):
        self.where, self.first = where, first
        self._fill([line.split(sep) for line in lines], names)

    def _fill(self, rows: typing.Sequence[typing.Sequence[str]], names: typing.Sequence[str]) -> None:
        if set(map(len, rows)) != {len(names)}:
            if not rows:
                raise UserError(f"{self.where}: there are no rows after the header")
            bad = next(i for i, row in enumerate(rows) if len(row) != len(names))
            raise self.error(bad, f"{len(rows[bad])} columns, not {len(names)} ({', '.join(names)})")
        self.columns = dict(zip(names, map(list, zip(*rows))))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def error(self, row: int, reason: str) -> UserError:
        """The error that names this row's line."""
        return UserError(f"{self.where}:{self.line(row)}: {reason}")

    def line(self, row: int) -> int:
        """The number of a row's line."""
        return self.first + row

    def tokens(self, name: str) -> list[str]:
        """A column of identifiers: text, never empty."""
        column = self.columns[name]
        if "" in column or any(token.isspace() for token in set(column)):
            bad = next(i for i, token in enumerate(column) if not token.strip())
            raise self.error(bad, f"{name} is empty")
        return column

    def unique(self, name: str) -> list[str]:
        """A column of identifiers in which none comes twice."""
        column = self.tokens(name)
        if len(set(column)) != len(column):
            seen: dict[str, int] = {}
            for row, token in enumerate(column):
                if token in seen:
                    raise self.error(row, f"{name} {token!r} comes a second time; line {self.line(seen[token])} has it")
                seen[token] = row
        return column

    def numbers(self, name: str) -> np.ndarray:
        """A column of finite numbers as float64."""
        column = self.columns[name]
        try:
            values = np.array(column).astype(np.float64)
        except ValueError:
            values = np.array([math.nan])
        if not np.isfinite(values).all():
            for row, text in enumerate(column):
                try:
                    number = float(text)
                except ValueError:
                    raise self.error(row, f"{name} {text!r} is not a number") from None
                if not math.isfinite(number):
                    raise self.error(row, f"{name} {text!r} is not a finite number")
        return values

    def integers(self, name: str, least: int, most: int) -> np.ndarray:
        """A column of whole numbers between two bounds as int64; 5.0 counts as 5."""
        values = self.numbers(name)
        wrong = (values < least) | (values > most) | (values != np.floor(values))
        if wrong.any():
            row = int(wrong.argmax())
            text = self.columns[name][row]
            if values[row] != np.floor(values[row]):
                raise self.error(row, f"{name} {text!r} is not a whole number")
            raise self.error(row, f"{name} {text!r} is not between {least} and {most}")
        return values.astype(np.int64)

    def times(self, name: str) -> np.ndarray:
        """A column of Unix times in seconds after 1970 as float64, which keeps fractions to 0.24 microseconds."""
        values = self.numbers(name)
        wrong = (values < 1) | (values >= LATEST)
        if wrong.any():
            row = int(wrong.argmax())
            text = self.columns[name][row]
            if values[row] < 1:
                reason = "must be above 0: Unix seconds"
            else:
                reason = "lies after 2100: Unix seconds are wanted, not milliseconds"
            raise self.error(row, f"{name} {text!r} {reason}")
        return values


class Csv(Rows):
    """The columns of a CSV file with a header, of which some must be there. Quoted fields may hold line breaks."""

    def __init__(self, data: bytes, where: str, required: typing.Sequence[str]):
        self.where = where
        reader = csv.reader(io.StringIO("\n".join(decode(data, where)), newline=""), strict=True)
        table, self._ends = [], [0]  # the last line of the header and of each row, from 1
        try:
            for row in reader:
                table.append(row)
                self._ends.append(reader.line_num)
        except csv.Error as error:  # a quote that does not end, for one
            raise UserError(f"{where}:{self._ends[-1] + 1}: not CSV ({error})") from None
        names, *found = table
        names[:1] = [name.removeprefix("\ufeff") for name in names[:1]]
        if missing := [name for name in required if name not in names]:
            raise UserError(f"{where}:1: there is no column {missing[0]}; it has {', '.join(names)}")
        self._fill(found, names)

    def line(self, row: int) -> int:
        """The number of the line where a row begins."""
        return self._ends[row + 1] + 1
