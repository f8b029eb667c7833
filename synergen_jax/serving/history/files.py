"""Whose the file of an SQLite store is: one process writes it, and it stays the file that was opened."""

from __future__ import annotations

import fcntl
import os
import pathlib

from synergen_jax.errors import UserError
from synergen_jax.serving.history.store import Unavailable


def beside(path: pathlib.Path, what: str) -> pathlib.Path:
    """A file that goes with the one of a store: "wal" is SQLite's log of what is not in it yet, "lock" the writer's."""
    return path.with_name(f"{path.name}-{what}")


class Lock:
    """The right to write a store. The kernel takes it back when its process ends, however that ends.

    It is a lock of a file of its own, which stays: SQLite's locks of a file end when the process closes it anywhere.

    Raises:
      UserError: another store has it, in this process or in another one; or the folder cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        try:
            self._file = os.open(beside(path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path}: its folder cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._file, 20, 0).decode(errors="replace")
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise UserError(f"{path}: the file system has no locks ({error.strerror}): choose another") from None
            raise UserError(
                f"{path}: process {owner or 'of another program'} writes it already; one process at a time writes a "
                "file: for several servers, give a postgresql:// address"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Gives the right back."""
        os.close(self._file)


class Identity:
    """The files behind the names of a store's database and its log, as they are now.

    A process that has a file open goes on with it when its name is gone or leads to another file: what it stores then is
    lost with the process.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._files = self._now()

    def check(self) -> None:
        """Raises `Unavailable` if a name leads elsewhere by now."""
        if self._now() != self._files:
            raise Unavailable(
                f"{self._path}: the file, or {beside(self._path, 'wal').name} beside it, was removed or replaced while "
                "it was open: put it back, or open the store anew"
            )

    def _now(self) -> list[tuple[int, int] | None]:
        return [_number(name) for name in (self._path, beside(self._path, "wal"))]


def _number(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the names in a folder to disk: a file that was made there is not found after a power cut before that."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
