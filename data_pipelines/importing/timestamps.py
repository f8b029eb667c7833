"""Points in time as people write them, to nanoseconds since 1970: numbers of a unit, or ISO 8601.

What the numbers of a column count is told from the whole column or asked, never from a row: `parse` reads values as
they are written, piece by piece, `Census` watches all pieces, and `moments` converts once the kind is known. The ranges
of the units, from 1990 to a day from now, do not overlap, so a column in one unit cannot be taken for another.

Fractions are kept to the nanosecond, or as far as the value has them: a float64 of Unix seconds resolves 0.24
microseconds, and the two decimals of a text a hundredth of a second. A log keeps whole seconds; the order of its events,
and what counts as a repeat, are told from the moments before they are cut.
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
REASONS = (
    "",
    "an unreadable time",
    "time 0",
    "a time before 1970",
    "a time in the future",
    "a time of another unit",
)
BILLION = 10**9

_ISO = (
    r"^(?<date>\d{4}-?\d{2}-?\d{2})(?:[T ](?<minute>\d{2}:?\d{2})(?::?(?<second>\d{2})(?:[.,](?<fraction>\d+))?)?"
    r" ?(?<zone>Z|z|UTC|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?$"
)


class Times(typing.NamedTuple):
    """Points in time as they are written, (rows,) each.

    `number` is that of a NUMBER, cut downwards, and of ISO 8601 the Unix seconds, UTC where it is ZONELESS.
    """

    number: np.ndarray  # int64
    fraction: np.ndarray  # int32: what was cut, in billionths
    form: np.ndarray  # int8: one of MISSING, NUMBER, ZONED, ZONELESS, UNREADABLE

    def take(self, index: np.ndarray) -> Times:
        """Those of some rows, by index or mask."""
        return Times(*(values[index] for values in self))


def parse(column: pl.Series) -> Times:
    """Reads values as they are written, whatever they count.

    Args:
      column: text without surrounding space, whole or broken numbers, dates, or datetimes; null is missing.

    Raises:
      UserError: the column's type is none of these.
    """
    import polars as pl

    times = Times(
        np.zeros(len(column), np.int64),
        np.zeros(len(column), np.int32),
        np.where(column.is_null().to_numpy(), MISSING, UNREADABLE).astype(np.int8),
    )
    kind = column.dtype
    if kind == pl.Date:
        _put(times, column.to_physical().cast(pl.Int64) * DAY, 0, ZONELESS)
    elif isinstance(kind, pl.Datetime):
        size = {"ms": 10**3, "us": 10**6, "ns": BILLION}[kind.time_unit]
        count = column.to_physical()
        _put(times, count // size, count % size * (BILLION // size), ZONED if kind.time_zone else ZONELESS)
    elif kind.is_integer():
        _put(times, column.cast(pl.Int64, strict=False), 0, NUMBER)
    elif kind.is_float():
        times.form[column.is_nan().fill_null(False).to_numpy()] = MISSING
        _put(times, *_cut(column), NUMBER)
    elif kind == pl.String:
        _put(times, column.cast(pl.Int64, strict=False), 0, NUMBER)
        for read in (_decimals, _floats, _iso):
            rest = np.flatnonzero(times.form == UNREADABLE)
            if len(rest):
                _put(times, *read(column.gather(rest)), rest)
    elif kind != pl.Null:
        raise UserError(f"times cannot be read from a column of type {kind}")
    return times


def _put(
    times: Times,
    number: pl.Series,
    fraction: pl.Series | int,
    form: pl.Series | int,
    rows: np.ndarray | slice = slice(None),
) -> None:
    """Fills in those of some rows for which there is a number."""
    there = number.is_not_null().to_numpy()
    at = np.arange(len(times.form))[rows][there]
    for target, values in zip(times, (number, fraction, form)):
        target[at] = values if isinstance(values, int) else values.filter(there).to_numpy()


def _cut(numbers: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Broken numbers, cut downwards, and billionths; null where there is none in the range of int64."""
    import polars as pl

    whole = numbers.floor()
    billionths = ((numbers - whole) * BILLION).cast(pl.Int64, strict=False).clip(0, BILLION - 1)
    return whole.cast(pl.Int64, strict=False), billionths


def _floats(texts: pl.Series) -> tuple[pl.Series, pl.Series, int]:
    """Numbers in any form, such as 1.7e9."""
    import polars as pl

    return *_cut(texts.cast(pl.Float64, strict=False)), NUMBER


def _decimals(texts: pl.Series) -> tuple[pl.Series, pl.Series, int]:
    """Numbers with a decimal point, digit by digit: a float64 would lose nanoseconds of today's times."""
    import polars as pl

    found = texts.to_frame("text").select(pl.col("text").str.extract_groups(r"^(?<whole>\d+)\.(?<fraction>\d+)$"))
    found = found.unnest("text").select(pl.col("whole").cast(pl.Int64, strict=False), _billionths("fraction"))
    return found["whole"], found["fraction"], NUMBER


def _billionths(name: str) -> pl.Expr:
    """The digits after a decimal point as billionths; more than nine are cut."""
    import polars as pl

    return pl.col(name).fill_null("0").str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int64)


def _iso(texts: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Unix seconds of ISO 8601 text, null where it is none, billionths of a second, and ZONED or ZONELESS."""
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
    form = pl.when(pl.col("zone").is_null()).then(ZONELESS).otherwise(ZONED)
    made = found.select(number=moment.dt.epoch("s") - east, fraction=_billionths("fraction"), form=form)
    return made["number"], made["fraction"], made["form"]


class Census:
    """What a whole column of times looks like, gathered piece by piece."""

    def __init__(self, now: float | None = None):
        self.latest = int(time.time() if now is None else now) + DAY
        self.count = dict.fromkeys((*UNITS, "iso", "other"), 0)
        self.zoneless = 0
        self._first: dict[str, tuple[int, int]] = {}  # kind -> row and number of the first example

    def add(self, times: Times, rows: np.ndarray) -> None:
        """Counts what `parse` made of the values in some rows, which are numbered over the whole column.

        Zero and negative numbers are no times in any unit, and tell nothing.
        """
        number, _, form = times
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

    def mixed(self, kind: str) -> bool:
        """Whether there are times since 1990 in the unit `kind`, and in another one as well."""
        return kind in UNITS and self.count[kind] > 0 and any(self.count[unit] for unit in UNITS if unit != kind)

    def merge(self, other: Census) -> None:
        """Adds what was counted in later rows."""
        for kind, count in other.count.items():
            self.count[kind] += count
        self.zoneless += other.zoneless
        self._first = {**other._first, **self._first}

    def decide(
        self,
        asked: str,
        where: str,
        place: typing.Callable[[int], str] = "row {}".format,
        cure: str = f"say which is right with --time-unit {'|'.join(KINDS[1:])}",
    ) -> str:
        """The kind of the column: what was asked for, or the one that all its values have.

        Args:
          asked: one of KINDS.
          where: file and column, for messages.
          place: names a row in messages.
          cure: what helps where it cannot be told.

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
        raise UserError(f"{where}: {say}: {'; '.join(examples)}; {cure}")


def moments(times: Times, kind: str, latest: int, mixed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds since 1970, int64, of what `parse` read, and what is wrong with each: an index of REASONS, 0 if nothing.

    What is wrong has the moment 0.

    Args:
      kind: what `Census.decide` said.
      latest: the last second that does not lie in the future.
      mixed: what `Census.mixed` said: a number that lies before 1990, but not as one of a larger unit, is wrong.
    """
    number, fraction, form = times
    readable = (form == ZONED) | (form == ZONELESS) if kind == "iso" else form == NUMBER
    size = UNITS.get(kind, 1)
    value = number // size
    other = np.zeros(len(number), bool)
    for unit in UNITS.values() if mixed else ():
        if unit < size:
            other |= (value < EARLIEST) & (number >= EARLIEST * unit) & (number <= latest * unit)
    wrong = np.select([~readable, value == 0, value < 0, value > latest, other], [1, 2, 3, 4, 5], 0)
    value = np.where(wrong == 0, value, 0)
    part = number % size * (BILLION // size) + fraction // size
    return np.where(wrong == 0, value * BILLION + part, 0), wrong.astype(np.int8)
