"""Writing to disks that may be full, which numpy's own writers do not tell, in folders that a killed process may leave."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
import typing
import uuid

import numpy as np

from synergen_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def append(path: pathlib.Path, array: np.ndarray) -> None:
    """Adds the bytes of an array to a file; an `OSError` if it has no room for all of them."""
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(array).data)


class _Writer:
    """All that numpy is shown of a file: to a real one it would write behind Python's back."""

    def __init__(self, file: typing.BinaryIO):
        self.write = file.write


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """`numpy.save`, but an `OSError` if there is no room for all of it."""
    with path.open("wb") as file:
        np.save(_Writer(file), array)


def write_json(path: pathlib.Path, value: typing.Any) -> None:  # Any: whatever JSON can hold
    """Writes a value as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, be it in words alone, as the writer of the records does."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


@contextlib.contextmanager
def room(folder: pathlib.Path) -> typing.Iterator[None]:
    """Turns the error of a full disk into a `UserError` that names the folder which was written to."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if is_full(error):
            raise UserError(f"{folder}: the disk is full; nothing was written") from None
        raise


@contextlib.contextmanager
def scratch(folder: pathlib.Path, name: str, what: str) -> typing.Iterator[pathlib.Path]:
    """A new hidden folder `.NAME.WHAT....` that is removed at the end; it is called after its host and process, too."""
    made = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}.{what}.{_host()}-{os.getpid()}.", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes folders of `scratch` whose process was killed. Those of other hosts, which may live there, stay.

    What a process had moved away, as "old", to put something in its place, and could not, is put back.
    """
    for path in folder.glob(f".*.{_host()}-*"):
        found = re.fullmatch(rf"\.(.+)\.[\w-]+\.{_host()}-(\d+)\.\w+", path.name)
        if found and not _is_running(int(found[2])):
            with contextlib.suppress(OSError):  # there is no such thing, or another process was here first
                if not (folder / found[1]).exists():
                    (path / "old").rename(folder / found[1])
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _host() -> str:
    """Tells apart whatever has process numbers of its own: machines, be they of one name, and containers."""
    space = pathlib.Path("/proc/self/ns/pid")  # of the container, on Linux
    known = socket.gethostname(), uuid.getnode(), os.readlink(space) if space.is_symlink() else ""
    return hashlib.sha256(repr(known).encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True
