"""Writing to disks that may be full. numpy's own writers do not tell: they ignore the error of the last flush."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import types
import typing

import numpy as np

from synergen_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def append(path: pathlib.Path, array: np.ndarray) -> None:
    """Adds the bytes of an array to a file; an `OSError` if it has no room for all of them."""
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(array))


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """`numpy.save`, but an `OSError` if there is no room for all of it."""
    with path.open("wb") as file:
        np.save(types.SimpleNamespace(write=file.write), array)  # a real file numpy would write behind Python's back


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
