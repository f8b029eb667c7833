"""Tables of events in files, read piece by piece: columns, row numbers, and the lines that are broken.

CSV and TSV (`delimited_text`) and JSON lines (`json_lines`), packed by gzip or zstd or not, or parquet. A line of text is
one row: no quoted field of it may hold a line break. So a broken line costs no other line, and the number of a row is
that of its line.
"""

from __future__ import annotations

import glob
import pathlib
import typing

import numpy as np

from data_pipelines.files import parts
from data_pipelines.importing import delimited_text, json_lines, packed_text
from data_pipelines.importing.packed_text import Piece
from synergen_jax.errors import UserError, first_line, nearest

if typing.TYPE_CHECKING:
    import polars as pl

ROWS = 500_000  # rows of a parquet file that are read at a time
FILE = 1 << 40  # row or line r of file n is row n * FILE + r of all files
Path = typing.TypeVar("Path", bound=pathlib.PurePath)
FORMS = dict.fromkeys((".csv", ".tsv", ".txt"), "delimited text") | {".parquet": "parquet"}
FORMS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "JSON lines")
TEXT = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLES = (*TEXT, *(f"{one}{packed}" for one in TEXT for packed in packed_text.PACKED), ".parquet")  # of a folder
WANTED = "a .csv, .tsv, .jsonl or .parquet file is wanted; text may be packed, .csv.gz or .csv.zst"


class EventFiles:
    """One file, a folder of files of one form, or those that a pattern like `logs/*.parquet` names.

    Raises:
      UserError: there is no such file, it is empty, or the files have different columns; a folder holds tables that
        cannot be read, or files of several forms. What is no table by its name is `ignored`.
    """

    def __init__(self, pattern: str | pathlib.Path):
        self.where = str(pattern)
        self.paths, self.ignored = _find(self.where)
        self.form = form(self.paths[0])
        heads = [_names(path, self.form) for path in self.paths]
        self.names = heads[0]
        if self.form == "JSON lines":  # where a line may lack what another one has
            self.names = list(dict.fromkeys(name for names in heads for name in names))
        for path, names in zip(self.paths, heads):
            if repeated := [name for name in names if names.count(name) > 1]:
                raise UserError(f"{path}: column {repeated[0]!r} comes twice")
            if self.form != "JSON lines" and not set(self.names) <= set(names):
                lacking = next(name for name in self.names if name not in names)
                raise UserError(f"{path}: there is no column {lacking!r}, which {self.paths[0].name} has")
        self.bytes = sum(path.stat().st_size for path in self.paths)

    def by_part(self) -> np.ndarray:
        """Puts the files in the order of the parts of a split that their names tell; the codes of these, int8 (files,).

        Raises:
          UserError: the name of one tells none, or several.
        """
        self.paths = sorted(self.paths, key=lambda path: (parts.of_file(path.name), path))
        return np.array([parts.of_file(path.name) for path in self.paths], np.int8)

    def pieces(self, columns: typing.Sequence[str], watched: typing.Sequence[str] = ()) -> typing.Iterator[Piece]:
        """All rows, in bounded memory; `watched` are columns that the files are not known to have: see `json_lines.pieces`."""
        for number in range(len(self.paths)):
            yield from self.pieces_of(number, columns, watched)

    def pieces_of(
        self, number: int, columns: typing.Sequence[str], watched: typing.Sequence[str] = ()
    ) -> typing.Iterator[Piece]:
        """The rows of one file."""
        path, start = self.paths[number], number * FILE
        if self.form == "JSON lines":
            return json_lines.pieces(path, columns, start, watched)
        return (_parquet_pieces if self.form == "parquet" else delimited_text.pieces)(path, columns, start)

    def place(self, row: int) -> str:
        """Where a row stands: "line 7", or "part-2.parquet row 7"."""
        file, row = divmod(row, FILE)
        name = f"{self.paths[file].name} " if len(self.paths) > 1 else ""
        return f"{name}{'row' if self.form == 'parquet' else 'line'} {row}"


def form(path: pathlib.PurePath) -> str:
    """The form of a table by its name, one of FORMS; "" if that tells none."""
    found = FORMS.get(packed_text.ending(path), "")
    return "" if found == "parquet" and path.suffix in packed_text.PACKED else found


def _names(path: pathlib.Path, kind: str) -> list[str]:
    """The names of a file's columns."""
    if kind == "JSON lines":
        return json_lines.names(path)
    return _parquet_names(path) if kind == "parquet" else delimited_text.Header(path).names


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

    Floats that are all whole, as pandas makes of whole numbers with gaps, are whole numbers, and NaN is missing.

    Raises:
      UserError: the column is of another type, or holds bytes that are no UTF-8.
    """
    import polars as pl

    kind = column.dtype
    if kind == pl.Binary:
        raise UserError(f"{where} holds bytes, where text or whole numbers are wanted: store it as text")
    if lists and isinstance(kind, pl.List) and (kind.inner == pl.String or kind.inner.is_integer()):
        return column.cast(pl.List(pl.String)).list.join(lists, ignore_nulls=True)
    if kind.is_float():
        column = column.fill_nan(None)
        digits = (
            24 if kind == pl.Float32 else 53 if kind == pl.Float64 else 11
        )  # that hold each whole number below 2^digits
        if (odd := column.filter((column != column.round()) | (column.abs() >= 2**digits))).len():
            raise UserError(f"{where} is of type {kind} and holds {odd[0]}, where text or whole numbers are wanted")
        return column.cast(pl.Int64).cast(pl.String)
    whole = kind.is_integer() or (isinstance(kind, pl.Decimal) and not kind.scale)
    if not (kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) or whole):
        raise UserError(f"{where} is of type {kind}, where text or whole numbers are wanted")
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
        if path.name.endswith(tuple(endings)):
            (others if hidden else found).append(path)
        elif not hidden:
            packed = {suffix.lower() for suffix in path.suffixes} & {*endings}
            (odd if packed else others).append(path)
    if odd:
        raise UserError(
            f"{odd[0]}: a table by its name, but none that ends in {', '.join((*TEXT, '.parquet'))}, or, packed, in .csv.gz or "
            ".csv.zst: unpack or rename it"
        )
    return found, [path.name for path in others]


def _find(pattern: str) -> tuple[list[pathlib.Path], list[str]]:
    path, ignored = pathlib.Path(pattern).expanduser(), []
    if path.is_dir():
        found, ignored = tables([one for one in path.iterdir() if not one.is_dir()])
        ignored += sorted(f"{one.name}/" for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
        if not found:
            raise UserError(f"{path}: the folder holds no .parquet, .csv, .tsv or .jsonl file")
    elif path.is_file():
        found = [path]
    else:
        found = [pathlib.Path(name) for name in sorted(glob.glob(str(path)))]
        if not found:
            raise UserError(f"{path}: there is no such file or folder")
    one_form(pattern, found)
    return found, ignored


def one_form(pattern: str, paths: typing.Sequence[pathlib.PurePath]) -> str:
    """The form that all files have.

    Raises:
      UserError: one is no table by its name, or they have several forms.
    """
    if odd := [path for path in paths if not form(path)]:
        raise UserError(f"{odd[0]}: {WANTED}")
    if len(forms := sorted({form(path) for path in paths})) > 1:
        raise UserError(f"{pattern}: {' and '.join(forms)} together: give them apart")
    return forms[0]


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
