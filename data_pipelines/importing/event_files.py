"""Tables of events in CSV, TSV or parquet, read piece by piece: text columns, row numbers, and the lines that are broken.

A line of a CSV file is one row: no quoted field of it may hold a line break. So a broken line costs no other line, and
the number of a row is that of its line.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import pathlib
import typing

import numpy as np

from synergen_jax.errors import UserError, first_line, nearest

if typing.TYPE_CHECKING:
    import polars as pl

BLOCK = 32 << 20  # bytes of a CSV file that are read at a time
ROWS = 500_000  # rows of a parquet file that are read at a time
FILE = 1 << 40  # row or line r of file n is row n * FILE + r of all files
SEPARATORS = ",\t;|"
Path = typing.TypeVar("Path", bound=pathlib.PurePath)
TABLES = (".csv", ".parquet", ".tsv")  # of a folder, these alone
LINE_FEED, RETURN, QUOTE = b'\n\r"'

NOT_UTF8, NUL, UNCLOSED, STRAY = (
    "bytes that are not UTF-8",
    "a NUL byte",
    "a quoted field that does not end on its line",
    "a quote inside a field (put the field in quotes and double it)",
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows in the order of the file, and the lines between them that cannot be read."""

    columns: pl.DataFrame  # as they are in the file: text from CSV, any type from parquet
    rows: np.ndarray  # (rows,) int64: numbers over all files
    broken: dict[str, np.ndarray]  # reason -> numbers of rows
    size: int  # bytes that were read for it, about


class EventFiles:
    """One file, a folder of parquet or CSV files, or those that a pattern like `logs/*.parquet` names.

    Raises:
      UserError: there is no such file, it is empty, or the files have different columns; a folder holds packed tables,
        or parquet and other files together. What is no table by its name is `ignored`.
    """

    def __init__(self, pattern: str | pathlib.Path):
        self.where = str(pattern)
        self.paths, self.ignored = _find(self.where)
        self.parquet = self.paths[0].suffix == ".parquet"
        heads = [_parquet_names(path) if self.parquet else _Header(path).names for path in self.paths]
        self.names = heads[0]
        for path, names in zip(self.paths, heads):
            if repeated := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: column {repeated[0]!r} comes twice")
            if not set(self.names) <= set(names):
                lacking = next(name for name in self.names if name not in names)
                raise UserError(f"{path}: there is no column {lacking!r}, which {self.paths[0].name} has")
        self.bytes = sum(path.stat().st_size for path in self.paths)

    def pieces(self, columns: typing.Sequence[str]) -> typing.Iterator[Piece]:
        """All rows, in bounded memory."""
        for number in range(len(self.paths)):
            yield from self.pieces_of(number, columns)

    def pieces_of(self, number: int, columns: typing.Sequence[str]) -> typing.Iterator[Piece]:
        """The rows of one file."""
        read = _parquet_pieces if self.parquet else _csv_pieces
        return read(self.paths[number], columns, number * FILE)

    def place(self, row: int) -> str:
        """Where a row stands: "line 7", or "part-2.parquet row 7"."""
        file, row = divmod(row, FILE)
        name = f"{self.paths[file].name} " if len(self.paths) > 1 else ""
        return f"{name}{'row' if self.parquet else 'line'} {row}"


def separator(path: pathlib.Path) -> str:
    """What sets the columns of a CSV file apart."""
    return _Header(path).separator


def roles(
    files: EventFiles,
    columns: typing.Mapping[str, str],
    known: typing.Sequence[str],
    required: typing.Sequence[str],
    flag: str,
) -> dict[str, str]:
    """The column of each role that the files have: the one that was given, or the one that is called like the role.

    Args:
      flag: the option that gives columns; "": whoever asks has none.

    Raises:
      UserError: an unknown role, a column that was given or is required and is not there.
    """
    if wrong := [role for role in columns if role not in known]:
        raise UserError(f"{flag}: {wrong[0]!r} is none of {', '.join(known)}{nearest(wrong[0], known)}")
    for role, name in columns.items():
        if name not in files.names:
            raise UserError(
                f"{files.where}: there is no column {name!r} for {role}{nearest(name, files.names)}; "
                f"it has {', '.join(files.names)}"
            )
    found = {role: columns.get(role, role) for role in known if columns.get(role, role) in files.names}
    for role in required:
        if role not in found:
            near = nearest(role, [name for name in files.names if name not in known])
            raise UserError(
                f"{files.where}: there is no column {role!r}{near}; it has "
                f"{', '.join(files.names)}; {f'name the right one with {flag} {role}=...' if flag else 'rename the right one'}"
            )
    return found


def text(column: pl.Series, where: str, lists: str = "") -> pl.Series:
    """A column of text or whole numbers as text; lists are joined by `lists`, where that is given.

    Raises:
      UserError: the column is of another type, or holds bytes that are no UTF-8.
    """
    import polars as pl

    kind = column.dtype
    if kind == pl.Binary:
        raise UserError(f"{where} holds bytes, where text or whole numbers are wanted: store it as text")
    if lists and isinstance(kind, pl.List) and (kind.inner == pl.String or kind.inner.is_integer()):
        return column.cast(pl.List(pl.String)).list.join(lists, ignore_nulls=True)
    whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and not kind.scale)
    if not (kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) or whole):
        cure = ": store 7.0 as 7 (in pandas, .astype('Int64'))" if kind.is_float() else ""
        raise UserError(f"{where} is of type {kind}, where text or whole numbers are wanted{cure}")
    return column.cast(pl.String)


def tables(paths: typing.Sequence[Path], endings: typing.Sequence[str] = TABLES) -> tuple[list[Path], list[str]]:
    """Those of a folder's files that are tables by their names, and the names of the others, hidden tables among them.

    Other hidden files are what programs leave, and are not told: `_SUCCESS`, `.part-0.csv.crc`.

    Raises:
      UserError: a table that could not be read: packed, for example, or with an ending in capitals.
    """
    found, others, odd = [], [], []
    for path in sorted(paths):
        hidden = path.name.startswith((".", "_"))
        if path.suffix in endings:
            (others if hidden else found).append(path)
        elif not hidden:
            packed = {suffix.lower() for suffix in path.suffixes} & {*endings}
            (odd if packed else others).append(path)
    if odd:
        raise UserError(
            f"{odd[0]}: a table by its name, but none that ends in {', '.join(TABLES)}: unpack or rename it"
        )
    return found, [path.name for path in others]


def _find(pattern: str) -> tuple[list[pathlib.Path], list[str]]:
    path, ignored = pathlib.Path(pattern).expanduser(), []
    if path.is_dir():
        found, ignored = tables([one for one in path.iterdir() if not one.is_dir()])
        ignored += sorted(f"{one.name}/" for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
        if not found:
            raise UserError(f"{path}: the folder holds no .parquet, .csv or .tsv file")
    elif path.is_file():
        found = [path]
    else:
        found = [pathlib.Path(name) for name in sorted(glob.glob(str(path)))]
        if not found:
            raise UserError(f"{path}: there is no such file or folder")
    if len({path.suffix == ".parquet" for path in found}) > 1:
        raise UserError(f"{pattern}: parquet and other files together: give them apart")
    if odd := [path for path in found if path.suffix not in (".parquet", ".csv", ".tsv", ".txt")]:
        raise UserError(f"{odd[0]}: a .csv, .tsv or .parquet file is wanted")
    return found, ignored


# --- parquet --------------------------------------------------------------------------------------------------


def _parquet_names(path: pathlib.Path) -> list[str]:
    with _readable(path) as file:
        return list(file.schema_arrow.names)


def _readable(path: pathlib.Path):
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file: {first_line(error)}") from None


def _parquet_pieces(path: pathlib.Path, columns: typing.Sequence[str], start: int) -> typing.Iterator[Piece]:
    import polars as pl
    import pyarrow

    with _readable(path) as file:
        total, done = max(file.metadata.num_rows, 1), 0
        try:
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                batch.validate(full=True)
                rows = np.arange(done + 1, done + 1 + len(batch), dtype=np.int64)
                size = path.stat().st_size * len(batch) // total
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)  # of a batch of rows; of one column it were a series
                yield Piece(frame.select(columns), start + rows, {}, size)
                done += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged after row {done:,}: {first_line(error)}") from None


# --- delimited text -------------------------------------------------------------------------------------------


class _Header:
    """The first line of a CSV file: separator and names."""

    def __init__(self, path: pathlib.Path):
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: UTF-16 text: save it as UTF-8")
        if not line.strip():
            raise UserError(f"{path}: the file is empty, or its first line is, which must name the columns")
        try:
            text = line.decode("utf-8-sig").strip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:1: byte 0x{line[error.start]:02x} is not UTF-8 text") from None
        if "\r" in text:
            raise UserError(f"{path}: its lines end in carriage returns alone: save it with line feeds")
        self.separator = max(SEPARATORS, key=text.count)  # the first of those that come equally often
        self.names = [name.strip() for name in next(csv.reader([text], delimiter=self.separator))]
        self.end = len(line)


def _csv_pieces(path: pathlib.Path, columns: typing.Sequence[str], start: int) -> typing.Iterator[Piece]:
    import polars as pl

    header = _Header(path)
    schema = {f"{place}": pl.String for place in range(len(header.names))}
    wanted = [header.names.index(name) for name in columns]
    line = 2
    with path.open("rb") as file:
        file.seek(header.end)
        for block in _blocks(file):
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
            yield Piece(frame, number(good), {why: number(rows) for why, rows in broken.items()}, len(block))
            line += lines


def _blocks(file: typing.BinaryIO) -> typing.Iterator[bytes]:
    """Whole lines, each ended by one line feed."""
    rest = b""
    while data := file.read(BLOCK):
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            yield data[:end].replace(b"\r\n", b"\n")
        rest = data[end:]
    if rest:
        yield rest.removesuffix(b"\r") + b"\n"


def _check(block: bytes, separator: bytes, width: int) -> tuple[bytes, np.ndarray, dict[str, np.ndarray], int]:
    """Tells a block's good lines from the broken ones.

    Returns:
      The good lines, their places among all lines, the places of broken ones by reason, and the number of lines. An
      empty line is neither.
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == LINE_FEED)
    starts = np.append(0, ends[:-1] + 1)
    left = ends > starts  # lines that nothing was found against yet
    broken: dict[str, np.ndarray] = {}

    def refuse(why: str, lines: np.ndarray) -> None:
        wrong = np.zeros(len(ends), bool)
        wrong[lines] = True
        if (wrong & left).any():
            broken[why] = np.flatnonzero(wrong & left)
            left[wrong] = False

    try:
        block.decode()
    except UnicodeDecodeError:
        refuse(NOT_UTF8, np.array([i for i, (a, b) in enumerate(zip(starts, ends)) if not _decodes(block[a:b])]))
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


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
