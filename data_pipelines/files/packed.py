"""Text that may be gzipped, told by the ending of its name: whole, or line by line."""

from __future__ import annotations

import gzip
import pathlib
import typing
import zlib

from synergen_jax.errors import UserError, first_line

DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)  # what reading a .gz that is cut off or none at all raises


def unpacked(data: bytes, name: str, where: str) -> bytes:
    """The content of a file that was read whole."""
    if not name.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except DAMAGED as error:
        raise _damaged(where, error) from None


def lines(path: pathlib.Path) -> typing.Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1; one line at a time is in memory.

    Raises:
      UserError: the file cannot be read, or is a damaged .gz.
    """
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line := line.strip():
                    yield number, line
    except DAMAGED as error:  # the first of them is an OSError
        raise _damaged(str(path), error) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from None


def _damaged(where: str, error: BaseException) -> UserError:
    return UserError(f"{where}: not a whole .gz file ({first_line(error)}): fetch it again, or unpack it yourself")
