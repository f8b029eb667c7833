"""From rows of other shapes to a row an event: lists side by side in one row, and the order of a file in place of times."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from data_pipelines.importing.packed_text import Piece
from data_pipelines.importing.timestamps import EARLIEST

if typing.TYPE_CHECKING:
    import polars as pl

UNEQUAL = "lists of different lengths"
ORDERS = ("time", "file")
TIMES = "(the order of the file)"  # the column of times that it makes


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a row of a table is."""

    # None: an event. Otherwise a row is a user or a session: each role but the user has lists, side by side, of parquet or
    # JSON, or texts set apart by this; what is no list there, in parquet and JSON, holds for all events of its row.
    lists: str | None = None
    order: str = "time"  # "file": events have no times but the order in which they come

    def events(self, piece: Piece, roles: typing.Mapping[str, str], before: int) -> Piece:
        """A piece with a row an event. Rows of unequal lists are `broken` in it.

        Args:
          roles: the column of each role; "time" -> TIMES where `order` is "file".
          before: events that came before, which times count on from.
        """
        if self.lists is not None:
            piece = _exploded(piece, roles, self.lists)
        if self.order == "file":
            import polars as pl

            # A second apart: the order of events of one user is that of the file, and a split by share cuts the file.
            time = EARLIEST + before + np.arange(len(piece.rows), dtype=np.int64)
            piece = dataclasses.replace(piece, columns=piece.columns.with_columns(pl.Series(TIMES, time)))
        return piece


EVENTS = Shape()


def _exploded(piece: Piece, roles: typing.Mapping[str, str], separator: str) -> Piece:
    import polars as pl

    wanted = list(dict.fromkeys(name for role, name in roles.items() if name in piece.columns.columns))
    lists = {name: _lists(piece.columns[name], separator) for name in wanted if name != roles["user"]}
    sizes = {name: column.list.len().to_numpy() for name, column in lists.items() if column is not None}
    first = next(iter(sizes.values()), np.ones(len(piece.rows), np.int64)).astype(np.int64)
    equal = np.logical_and.reduce([size == first for size in sizes.values()] or [np.ones(len(piece.rows), bool)])
    index = np.repeat(np.flatnonzero(equal), first[equal])
    columns = []
    for name in wanted:
        column = lists.get(name)
        if column is None:
            columns.append(piece.columns[name].gather(index))
        else:
            kept = column.filter(pl.Series(equal & (first > 0)))
            columns.append(kept.explode().alias(name))
    broken = dict(piece.broken)
    if not equal.all():
        broken[UNEQUAL] = piece.rows[~equal]
    return Piece(pl.DataFrame(columns), piece.rows[index], broken, piece.size)


def _lists(column: pl.Series, separator: str) -> pl.Series | None:
    """The lists of a column, an empty one where there is none; None where it holds none, but values for whole rows."""
    import polars as pl

    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(column.dtype, pl.List):
        return column.fill_null([])
    if not separator or column.dtype not in (pl.String, pl.Null):
        return None
    column = column.cast(pl.String)
    if separator.isspace():
        column = column.str.strip_chars().str.replace_all(r"\s+", separator)
    return column.set(column == "", None).str.split(separator).fill_null([])
