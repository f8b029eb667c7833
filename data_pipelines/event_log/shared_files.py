"""Files that several machines share: on a disk that all of them mount, or in a store that Apache Beam knows (`gs://`, ...)."""

from __future__ import annotations

import contextlib
import pathlib
import pickle
import shutil
import tempfile
import typing
import uuid

from synergen_jax.errors import UserError


def systems():
    """Apache Beam's file systems."""
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError:
        raise UserError("Apache Beam is not installed: pip install 'synergen-jax[beam]'") from None
    return FileSystems


def is_remote(path: str | pathlib.Path) -> bool:
    """Whether a path is one of a store, not of a disk."""
    return "://" in str(path)


def absolute(path: str | pathlib.Path) -> str:
    """The path as other processes name it."""
    return str(path) if is_remote(path) else str(pathlib.Path(path).expanduser().resolve())


@contextlib.contextmanager
def fetched(path: str) -> typing.Iterator[pathlib.Path]:
    """The file on a disk of this machine: itself, or a copy that is removed at the end."""
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield copy(path, pathlib.Path(folder))


def copy(path: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of the file in a folder of this machine."""
    from apache_beam.io.filesystem import CompressionTypes

    target = folder / path.rpartition("/")[2]
    with (
        systems().open(path, compression_type=CompressionTypes.UNCOMPRESSED) as source,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, 1 << 20)
    return target


def put(path: str, write: typing.Callable[[pathlib.Path], object]) -> None:
    """Writes a file whole or not at all, however often and by whomever it is tried.

    Args:
      write: writes the file to a path of this machine.
    """
    from apache_beam.io.filesystem import CompressionTypes

    half = f"{path}.{uuid.uuid4().hex}.half"
    with tempfile.TemporaryDirectory() as folder:
        write(made := pathlib.Path(folder) / "file")
        with (
            made.open("rb") as file,
            systems().create(half, compression_type=CompressionTypes.UNCOMPRESSED) as target,
        ):
            shutil.copyfileobj(file, target, 1 << 20)
    systems().rename([half], [path])


def save(path: str, value: typing.Any) -> None:
    """Writes a value for `load`, which trusts the file."""
    put(path, lambda file: file.write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))


def load(path: str) -> typing.Any:
    """What `save` wrote."""
    with fetched(path) as file:
        return pickle.loads(file.read_bytes())


def delete(folder: str) -> None:
    """Removes a folder and all that lies in it."""
    systems().delete([f"{folder}/" if is_remote(folder) else folder])
