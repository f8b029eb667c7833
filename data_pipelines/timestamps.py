"""Points in time as people write them, to whole Unix seconds: numbers of a unit, or ISO 8601.

What the numbers of a column count is told from the whole column or asked, never from a row: `parse` reads values as
they are written, piece by piece, `Census` watches all pieces, and `seconds` converts once the kind is known. The ranges
of the units, from 1990 to a day from now, do not overlap, so a column in one unit cannot be taken for another.
"""

from __future__ import annotations

import time
import typing

import numpy as np

from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
KINDS = ("auto", *UNITS, "iso")
EARLIEST = 631_152_000  # 1990-01-01: numbers are not told apart by earlier moments
DAY = 86_400

MISSING, NUMBER, ZONED, ZONELESS, UNREADABLE = range(5)  # how a value is written
REASONS = ("", "an unreadable time", "time 0", "a time before 1970", "a time in the future")

_ISO = (
    r"^(?<date>\d{4}-?\d{2}-?\d{2})(?:[T ](?<minute>\d{2}:?\d{2})(?::?(?<second>\d{2})(?:[.,]\d+)?)?"
    r" ?(?<zone>Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)


def parse(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Reads values as they are written, whatever they count.

    Args:
      column: text without surrounding space, whole or broken numbers, dates, or datetimes; null is missing.

    Returns:
      number: int64; of a NUMBER the number itself, fractions cut off downwards; of ISO 8601 the Unix seconds, UTC where
        it is ZONELESS.
      form: int8, one of MISSING, NUMBER, ZONED, ZONELESS, UNREADABLE.

    Raises:
      UserError: the column's type is none of these.
    """
    import polars as pl

    form = np.where(column.is_null().to_numpy(), MISSING, UNREADABLE).astype(np.int8)
    number = np.zeros(len(column), np.int64)

    def put(values: pl.Series, kind: int) -> None:
        there = values.is_not_null().to_numpy()
        number[there], form[there] = values.drop_nulls().to_numpy(), kind

    if column.dtype in (pl.Date, pl.Datetime):
        kind = ZONED if getattr(column.dtype, "time_zone", None) else ZONELESS
        put(column.cast(pl.Datetime("us")).dt.timestamp("us") // 10**6, kind)
    elif column.dtype.is_integer():
        put(column.cast(pl.Int64, strict=False), NUMBER)
    elif column.dtype.is_float():
        form[column.is_nan().fill_null(False).to_numpy()] = MISSING
        put(column.floor().cast(pl.Int64, strict=False), NUMBER)
    elif column.dtype == pl.String:
        whole = column.cast(pl.Int64, strict=False)
        put(whole, NUMBER)
        if (form == UNREADABLE).any():
            put(
                column.cast(pl.Float64, strict=False)
                .floor()
                .cast(pl.Int64, strict=False)
                .zip_with(whole.is_null(), whole),
                NUMBER,
            )
        rest = np.flatnonzero(form == UNREADABLE)
        if len(rest):
            values, zoned = _iso(column.gather(rest))
            there = values.is_not_null().to_numpy()
            number[rest[there]] = values.drop_nulls().to_numpy()
            form[rest[there]] = np.where(zoned.to_numpy()[there], ZONED, ZONELESS)
    elif column.dtype != pl.Null:
        raise UserError(f"times cannot be read from a column of type {column.dtype}")
    return number, form


def _iso(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Unix seconds of ISO 8601 text, null where it is none, and whether a zone was written."""
    import polars as pl

    found = texts.to_frame("text").select(pl.col("text").str.extract_groups(_ISO)).unnest("text")
    digits = lambda name: pl.col(name).str.replace_all(r"\D", "")
    moment = (digits("date") + digits("minute").fill_null("0000") + pl.col("second").fill_null("00")).str.to_datetime(
        "%Y%m%d%H%M%S", strict=False, time_unit="us"
    )
    zone = pl.when(pl.col("zone").str.contains(r"^[+-]")).then(digits("zone").str.pad_end(4, "0"))
    minutes = zone.str.slice(0, 2).cast(pl.Int64) * 60 + zone.str.slice(2, 2).cast(pl.Int64)
    sign = pl.when(pl.col("zone").str.starts_with("-")).then(-1).otherwise(1)
    east = (60 * sign * minutes).fill_null(0)
    made = found.select(moment.dt.epoch("s") - east, zoned=pl.col("zone").is_not_null())
    return made.to_series(0), made.to_series(1)


class Census:
    """What a whole column of times looks like, gathered piece by piece."""

    def __init__(self, now: float | None = None):
        self.latest = int(time.time() if now is None else now) + DAY
        self.count = dict.fromkeys((*UNITS, "iso", "other"), 0)
        self.zoneless = 0
        self._first: dict[str, tuple[int, int]] = {}  # kind -> row and number of the first example

    def add(self, number: np.ndarray, form: np.ndarray, rows: np.ndarray) -> None:
        """Counts what `parse` made of the values in some rows, which are numbered over the whole column.

        Zero and negative numbers are no times in any unit, and tell nothing.
        """
        rest = (form == NUMBER) & (number > 0)
        for unit, size in UNITS.items():
            self._see(unit, rest & (number >= EARLIEST * size) & (number <= self.latest * size), number, rows)
            rest &= (number < EARLIEST * size) | (number > self.latest * size)
        self._see("other", rest, number, rows)
        self._see("iso", (form == ZONED) | (form == ZONELESS), number, rows)
        self.zoneless += int((form == ZONELESS).sum())

    def _see(self, kind: str, mask: np.ndarray, number: np.ndarray, rows: np.ndarray) -> None:
        if there := int(mask.sum()):
            at = int(mask.argmax())
            self.count[kind] += there
            self._first.setdefault(kind, (int(rows[at]), int(number[at])))

    def merge(self, other: Census) -> None:
        """Adds what was counted in later rows."""
        for kind, count in other.count.items():
            self.count[kind] += count
        self.zoneless += other.zoneless
        self._first = {**other._first, **self._first}

    def decide(self, asked: str, where: str, place: typing.Callable[[int], str] = "row {}".format) -> str:
        """The kind of the column: what was asked for, or the one that all its values have.

        Args:
          asked: one of KINDS.
          where: file and column, for messages.
          place: names a row in messages.

        Raises:
          UserError: `asked` is "auto" and the values are of several kinds or of none, or what was asked for fits no
            value where another unit fits all.
        """
        there = [kind for kind, count in self.count.items() if count]
        if asked != "auto":
            if asked in UNITS and len(there) == 1 and there[0] in UNITS and there[0] != asked:
                raise UserError(
                    f"{where}: read as {asked}, no time lies within 1990 and now; as {there[0]} all do: "
                    f"give --time-unit {there[0]}"
                )
            return asked
        if len(there) == 1 and there[0] != "other":
            return there[0]
        if not there:
            return "seconds"  # nothing but missing and bad values, which are refused by row
        examples = []
        for kind in sorted(there, key=self._first.__getitem__):
            row, number = self._first[kind]
            what = {"iso": "ISO 8601", "other": f"{number}, no time since 1990 in any unit"}.get(
                kind, f"{number}, {kind}"
            )
            examples.append(f"{self.count[kind]:,} like {place(row)} ({what})")
        say = "times of several kinds" if len(there) > 1 else "what its numbers count cannot be told"
        raise UserError(
            f"{where}: {say}: {'; '.join(examples)}; say which is right with --time-unit {'|'.join(KINDS[1:])}"
        )


def seconds(number: np.ndarray, form: np.ndarray, kind: str, latest: int) -> tuple[np.ndarray, np.ndarray]:
    """Unix seconds of what `parse` read, and what is wrong with each: an index of REASONS, 0 if nothing.

    Args:
      kind: what `Census.decide` said.
      latest: the last second that does not lie in the future.
    """
    readable = (form == ZONED) | (form == ZONELESS) if kind == "iso" else form == NUMBER
    value = number // UNITS.get(kind, 1)
    wrong = np.select([~readable, number == 0, number < 0, value > latest], [1, 2, 3, 4], 0)
    wrong[(wrong == 0) & (value == 0)] = 2
    return value, wrong.astype(np.int8)
