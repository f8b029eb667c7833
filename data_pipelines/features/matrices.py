"""Further semantic matrices of items (images, video, anything), joined to a log by name from .npy files."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import typing

import numpy as np

from data_pipelines.files import rows
from data_pipelines.files.records import MATRIX_NAME
from synergen_jax.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class File:
    """A matrix as it was given: NAME=FILE.npy, and beside it FILE.ids.txt if its rows are named."""

    name: str
    path: pathlib.Path

    @classmethod
    def parse(cls, given: str) -> File:
        """Reads `NAME=FILE.npy`."""
        name, equals, path = given.partition("=")
        if not equals or not path or not MATRIX_NAME.fullmatch(name):
            raise UserError(
                f"--matrix takes NAME=FILE.npy, the name of letters, digits, - and _ and not 'id', not {given!r}"
            )
        file = cls(name, pathlib.Path(path).expanduser())
        if not file.path.is_file():
            raise UserError(f"{file.path}: there is no such file")
        return file

    @property
    def ids(self) -> pathlib.Path:
        """One original id of an item a line, in the order of the matrix's rows."""
        return self.path.with_suffix(".ids.txt")

    def sha256(self) -> str:
        """Tells whether the files are still the same."""
        digest = hashlib.sha256()
        for path in (self.path, self.ids):
            if path.is_file():
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def read(file: File, item_ids: typing.Sequence[str]) -> tuple[np.ndarray, int]:
    """The matrix in the order of the log's items, float16 (items, width), and how many items have a row of zeros.

    Without a file of ids the rows must be the log's items in their order, row 0 zero. With one, each id must be an
    item of the log and come once; an item that is not named has a row of zeros.

    Raises:
      UserError: shape, type, values or ids are not such.
    """
    path = file.path
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a whole .npy file ({first_line(error)})") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: an archive; one matrix a .npy file is wanted")
    if found.ndim != 2 or not found.shape[1]:
        raise UserError(f"{path}: has shape {found.shape}, not (rows, width)")
    if found.dtype.kind != "f":
        raise UserError(f"{path}: holds {found.dtype}, not floating-point numbers")
    named = file.ids.is_file()
    number = _numbers(file, item_ids) if named else np.arange(len(item_ids))
    if len(found) != len(number):
        wanted = (
            f"the {len(number)} ids of {file.ids}"
            if named
            else f"{len(number)}: the log's {len(number) - 1} items after a row of zeros; or name its rows in {file.ids}"
        )
        raise UserError(f"{path}: has {len(found)} rows, not {wanted}")
    with np.errstate(over="ignore"):
        values = np.asarray(found).astype(np.float16)
    if (wrong := ~np.isfinite(values).all(axis=1)).any():
        row = int(wrong.argmax())
        what = (
            "is beyond float16 (65,504 at most): scale it" if np.isfinite(found[row]).all() else "holds NaN or infinity"
        )
        raise UserError(f"{path}: row {row} {what}")
    if not named and values[0].any():
        raise UserError(f"{path}: row 0 must be zero: it stands for no item, and item {item_ids[1]!r} has row 1")
    matrix = np.zeros((len(item_ids), found.shape[1]), np.float16)
    matrix[number] = values
    without = int((~matrix[1:].any(axis=1)).sum())
    if without == len(item_ids) - 1:
        raise UserError(f"{path}: no item has a row that is not zero")
    return matrix, without


def _numbers(file: File, item_ids: typing.Sequence[str]) -> np.ndarray:
    """The item of each row of a matrix whose rows are named."""
    try:
        content = file.ids.read_bytes()
    except OSError as error:
        raise UserError(f"{file.ids}: cannot be read: {error.strerror}") from None
    number = {item: i for i, item in enumerate(item_ids) if i}
    ids = rows.Rows([line.strip() for line in rows.decode(content, str(file.ids))], ("id",), "\n", str(file.ids))
    for row, item in enumerate(ids.unique("id")):
        if item not in number:
            raise ids.error(row, f"the log has no item {item!r}; take its row out of both files")
    return np.array([number[item] for item in ids.columns["id"]])
