"""Sources of two CSV files, gzipped or plain, of events and of items, that the user has in one folder."""

from __future__ import annotations

import pathlib
import typing

from data_pipelines.files import packed, rows
from data_pipelines.sources import fetch
from synergen_jax.errors import UserError


def find(name: str, files: tuple[str, str], source: str | pathlib.Path | None) -> tuple[str, fetch.Raw]:
    """The two `files`, of events and of items, or else both with `.gz`; and `name`, that of their log.

    Raises:
      UserError: no folder is given, or it does not hold both.
    """
    zipped = (f"{files[0]}.gz", f"{files[1]}.gz")
    if source is None:
        raise UserError(f"{name} is not fetched: give --source FOLDER, which holds {' and '.join(zipped)}")
    return name, fetch.read(pathlib.Path(source).expanduser().resolve(), (zipped, files))


def tables(raw: fetch.Raw, events: typing.Sequence[str], items: typing.Sequence[str]) -> tuple[rows.Csv, rows.Csv]:
    """The rows of both files.

    Args:
      events, items: the columns that each must have.

    Raises:
      UserError: a file is damaged, or lacks a column.
    """
    assert raw.items, "find takes both"
    one, other = (
        rows.Csv(packed.unpacked(data, name, where), where, columns)
        for (name, data, where), columns in ((raw.interactions, events), (raw.items, items))
    )
    return one, other
