"""Files of text, packed by gzip or zstd or not, read piece by piece: lines that are rows, and lines that are broken."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from synergen_jax.errors import UserError, first_line

if typing.TYPE_CHECKING:
    import polars as pl

PACKED = {".gz": "gzip", ".zst": "zstd"}
LINE_FEED = ord("\n")
NOT_UTF8 = "bytes that are not UTF-8"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows in the order of the file, and the lines between them that cannot be read."""

    columns: pl.DataFrame  # as they are in the file: text from text, any type from parquet
    rows: np.ndarray  # (rows,) int64: numbers over all files
    broken: dict[str, np.ndarray]  # reason -> numbers of rows
    size: int  # bytes of the file that were read for it, about


def ending(path: pathlib.PurePath) -> str:
    """What a file holds by its name, as if it were unpacked: ".csv" of events.csv.gz."""
    return pathlib.PurePath(path.stem).suffix if path.suffix in PACKED else path.suffix


class Reader:
    """The text of a file, to be read once from its start, in a `with` block. `taken` says how much of the file was read."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __enter__(self) -> typing.Self:
        import pyarrow

        try:
            self._file = self._text = pyarrow.OSFile(str(self._path))
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or first_line(error)}") from None
        if kind := PACKED.get(self._path.suffix):
            self._text = pyarrow.CompressedInputStream(self._file, kind)
        return self

    def __exit__(self, *_) -> None:
        self._text.close()
        self._file.close()

    @property
    def taken(self) -> int:
        """Bytes of the file, packed as it is, that were read so far."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """The next `size` bytes of text, fewer at its end.

        Raises:
          UserError: the file is damaged, or not packed as its name says.
        """
        try:
            return self._text.read(size)
        except OSError as error:
            what = f"damaged, or no {PACKED.get(self._path.suffix, 'text')} file"
            raise UserError(f"{self._path}: {what}: {first_line(error)}") from None

    def read_all(self) -> bytes:
        """All that is left of the text."""
        return b"".join(iter(lambda: self.read(1 << 24), b""))

    def blocks(self, size: int) -> typing.Iterator[tuple[bytes, int]]:
        """Whole lines, each ended by one line feed, of `size` bytes or one line, and the bytes that were read for them."""
        rest, before = b"", self.taken
        while data := self.read(size):
            data = rest + data
            end = data.rfind(b"\n") + 1
            if end:
                now = self.taken
                yield data[:end].replace(b"\r\n", b"\n"), now - before
                before = now
            rest = data[end:]
        if rest:
            yield rest.removesuffix(b"\r") + b"\n", self.taken - before


def line_bounds(block: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where each line of a block starts, and where its line feed stands, (lines,) each."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == LINE_FEED)
    return np.append(0, ends[:-1] + 1), ends


def undecodable(block: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The places of the lines that are not UTF-8."""
    try:
        block.decode()
    except UnicodeDecodeError:
        bad = [i for i, (a, b) in enumerate(zip(starts.tolist(), ends.tolist())) if not _decodes(block[a:b])]
        return np.array(bad, np.int64)
    return np.zeros(0, np.int64)


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
