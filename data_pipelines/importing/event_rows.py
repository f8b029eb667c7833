"""Rows of a table of events: cleaned piece by piece, then encoded as integers. What is found in them is counted."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from data_pipelines.files import parts
from data_pipelines.importing import event_files, sorted_events, timestamps
from data_pipelines.importing.bad_rows import MISSING, Problems
from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

ROLES = ("user", "item", "time", "action", "query", "request", "shown", "part")
NAMED = ("part",)  # roles whose column must be named: the role's own name is no default
CODED = ("user", "item", "query", "action")  # roles whose texts have a vocabulary
REQUIRED = (
    "user",
    "action",
)  # that each row of a log has if there is such a column, beside a time, and an item or a query
MAX_ACTIONS = 1000  # distinct values above which a column names no actions


@dataclasses.dataclass
class Found:
    """What was found in some rows. What two machines found of different rows can be merged."""

    problems: Problems
    census: timestamps.Census
    rows: int = 0  # bad ones included
    words: int = 0  # values like NULL that count as missing
    late: int = 0  # events that come in the files after a later one of their user
    split: int = 0  # requests that other events interrupt
    inherited: int = 0  # events that have the query of their request
    example: str = ""  # the first time that cannot be read

    def merge(self, other: Found) -> None:
        """Adds what was found in later rows."""
        self.problems.merge(other.problems)
        self.census.merge(other.census)
        for name in ("rows", "words", "late", "split", "inherited"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.example = self.example or other.example


class Rows(typing.NamedTuple):
    """Rows that lack nothing."""

    # Role, all but "time" -> text with single spaces, null where it is missing; "part" -> its code, see `parts`.
    columns: dict[str, pl.Series]
    times: timestamps.Times  # as they are written
    row: np.ndarray  # (rows,) int64: numbers over all files


def clean(
    piece: event_files.Piece,
    roles: typing.Mapping[str, str],
    where: str,
    found: Found,
    required: typing.Collection[str] = REQUIRED,
) -> Rows:
    """The rows of a piece that lack nothing; what is wrong with the others is added to `found`.

    Args:
      roles: the column of each role.
      where: names the files in messages.
      required: roles of REQUIRED that no row may lack.

    Raises:
      UserError: a column is of a type that cannot be read.
    """
    import polars as pl

    for reason, rows in piece.broken.items():
        found.problems.add("bad-lines", f"with {reason}", rows)
        found.rows += len(rows)
    found.rows += len(piece.rows)
    columns = {role: piece.columns[name] for role, name in roles.items()}
    time = columns.pop("time")
    place = lambda role: f"{where}: column {roles[role]!r}"
    if time.dtype in (pl.Float32, getattr(pl, "Float16", pl.Float32)):  # polars has not always had the smaller one
        raise UserError(
            f"{place('time')} is of type {time.dtype}, in which today's seconds are rounded to some two minutes: "
            "store it as whole numbers or Float64"
        )
    if time.dtype.is_decimal():
        time = time.cast(pl.String)
    if not (isinstance(time.dtype, pl.Date | pl.Datetime) or time.dtype.is_integer() or time.dtype.is_float()):
        time = _text(time, place("time"), found)
    times = timestamps.parse(time)
    shown = columns.pop("shown", None)
    columns = {role: _text(column, place(role), found, role == "query") for role, column in columns.items()}
    absent = {role: column.is_null().to_numpy() for role, column in columns.items()}
    everywhere = np.ones(len(piece.rows), bool)
    lacking = lambda role: absent[role] if role in absent and role in required else ~everywhere
    faults = {
        "without a user": lacking("user"),
        "with neither an item nor a query": absent.get("item", everywhere) & absent.get("query", everywhere),
        "without an action": lacking("action"),
        "without a time": times.form == timestamps.MISSING,
    }
    keep = everywhere
    for reason, wrong in faults.items():
        found.problems.add("missing", reason, piece.rows[wrong & keep])
        keep = keep & ~wrong
    if "part" in columns:
        words = columns["part"].str.to_lowercase()
        columns["part"] = words.replace_strict(parts.WORDS, default=None, return_dtype=pl.Int8)
        found.problems.add("missing", "without a part", piece.rows[absent["part"] & keep])
        keep = keep & ~absent["part"]
        odd = columns["part"].is_null().to_numpy() & keep
        for row in np.flatnonzero(odd)[:1].tolist():
            reason = f"with a part that is none of {', '.join(parts.NAMES)}"
            found.problems.add("bad-parts", reason, piece.rows[odd], str(words[row]))
        keep = keep & ~odd
    found.census.add(times.take(keep), piece.rows[keep])
    if (odd := keep & (times.form == timestamps.UNREADABLE)).any():
        found.example = found.example or str(time[int(odd.argmax())])
    if shown is not None:
        columns["shown"] = event_files.text(shown, place("shown"), lists="|")
    columns = {role: column.filter(keep) for role, column in columns.items()}
    return Rows(columns, times.take(keep), piece.rows[keep])


def _text(column: pl.Series, where: str, found: Found, single_spaces: bool = False) -> pl.Series:
    """What `trimmed` gives; words like NULL are counted."""
    column, words = trimmed(column, where, single_spaces)
    found.words += words
    return column


def trimmed(column: pl.Series, where: str, single_spaces: bool = False) -> tuple[pl.Series, int]:
    """Text without surrounding space, null where it is missing; and how many are missing by a word like NULL."""
    column = event_files.text(column, where).str.strip_chars()
    if single_spaces:
        column = column.str.replace_all(r"\s+", " ")
    missing = column.is_in(MISSING).fill_null(False)
    return column.set(missing, None), int((missing & (column != "")).sum())


def moments(
    times: timestamps.Times, row: np.ndarray, kind: str, mixed: bool, found: Found
) -> tuple[np.ndarray, np.ndarray]:
    """Nanoseconds since 1970 of times as they are written, and the mask of good ones; others are added to `found`.

    Args:
      kind: what `Census.decide` said; mixed: what `Census.mixed` did.
    """
    value, wrong = timestamps.moments(times, kind, found.census.latest, mixed)
    for number, reason in enumerate(timestamps.REASONS[1:], 1):
        example = found.example if number == 1 else ""
        found.problems.add("bad-times", f"with {reason}", row[wrong == number], example)
    return value, wrong == 0


def in_order(events: np.ndarray, shown: np.ndarray, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Events of whole users by user and time, without repeated rows, each with the query of its request."""
    found.late += sorted_events.late(events)
    events, shown = sorted_events.sort(events, shown)
    again = sorted_events.repeats(events)
    found.problems.add("duplicates", "that repeat an earlier row", events["row"][again])
    events, shown = sorted_events.take(events, shown, np.delete(np.arange(len(events)), again))
    found.split += sorted_events.split_requests(events)
    found.inherited += sorted_events.inherit_queries(events)
    return events, shown


class Vocabulary:
    """Distinct texts, numbered from 1 in the order in which they come."""

    def __init__(self):
        import polars as pl

        self._known = pl.DataFrame(schema={"value": pl.String, "code": pl.Int32})

    def codes(self, values: pl.Series) -> np.ndarray:
        """The number of each text, int32 (n,); null is 0."""
        import polars as pl

        rows = values.alias("value").to_frame()
        fresh = rows.drop_nulls().unique(maintain_order=True).join(self._known, on="value", how="anti")
        numbers = pl.int_range(len(self) + 1, len(self) + 1 + pl.len(), dtype=pl.Int32).alias("code")
        self._known = pl.concat([self._known, fresh.with_columns(numbers)], rechunk=True)
        found = rows.join(self._known, on="value", how="left", maintain_order="left")
        return found["code"].fill_null(0).to_numpy()

    def __len__(self) -> int:
        return len(self._known)

    def texts(self) -> list[str]:
        """All texts; the one with number n stands at n - 1."""
        return self._known["value"].to_list()


def encode(rows: Rows, vocabularies: typing.Mapping[str, Vocabulary]) -> tuple[np.ndarray, np.ndarray]:
    """Events of integer codes, (rows,) EVENT, and the items of their shown lists one list after the other, int32.

    Args:
      vocabularies: one for each role of CODED; they grow.
    """
    import polars as pl

    events = np.zeros(len(rows.row), sorted_events.EVENT)
    events["row"] = rows.row
    events["time"], events["fraction"], events["form"] = rows.times
    for role, vocabulary in vocabularies.items():
        if role in rows.columns:
            events[role] = vocabulary.codes(rows.columns[role])
    if "action" not in rows.columns:
        events["action"] = vocabularies["action"].codes(pl.Series(["interact"]))[0]
    if "part" in rows.columns:
        events["part"] = rows.columns["part"].to_numpy()
    if "request" in rows.columns:
        request = rows.columns["request"]
        hashes = pl.DataFrame({"user": events["user"], "request": request}).hash_rows().to_numpy()
        events["request"] = np.where(request.is_null().to_numpy(), 0, np.maximum(hashes, 1))
    if "shown" not in rows.columns:
        return events, np.zeros(0, np.int32)
    each = pl.DataFrame({"item": rows.columns["shown"].str.split("|")}).with_row_index("event").explode("item")
    each = each.with_columns(pl.col("item").str.strip_chars())
    each = each.filter(pl.col("item").is_not_null() & ~pl.col("item").is_in(MISSING))
    events["shown"] = np.bincount(each["event"].to_numpy(), minlength=len(events))
    return events, vocabularies["item"].codes(each["item"])
