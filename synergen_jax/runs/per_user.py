"""Results of each target in one parquet file: what `synergen evaluate --per-user FILE` writes."""

from __future__ import annotations

import collections.abc
import pathlib
import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from synergen_jax.errors import UserError
from synergen_jax.evaluation import per_target
from synergen_jax.evaluation.protocol import Report
from synergen_jax.runs import workdir

if typing.TYPE_CHECKING:
    import pyarrow

ROWS = 50_000  # targets that are put into columns at a time
INSTEAD = "give another --per-user FILE"


def check(path: pathlib.Path) -> None:
    """Whether a file can be written there; its folder is made.

    Raises:
      UserError: its name does not end in .parquet, it is a folder, or nothing can be written there.
    """
    if path.suffix != ".parquet":
        raise UserError(f"--per-user {path}: a parquet file is written: give a name that ends in .parquet")
    if path.is_dir():
        raise UserError(
            f"--per-user {path} is a folder: give the name of a file in it, such as {path / 'each.parquet'}"
        )
    workdir.try_writing(path.parent, INSTEAD)


def write(path: pathlib.Path, found: Report, log: EventLog, asked: collections.abc.Sequence[int]) -> None:
    """Writes a row a target, in the order of the targets; the file is there whole, or not at all.

    Args:
      asked: the cut-offs; none: the usual ones.

    Raises:
      UserError: the disk is full, or the like.
    """
    import pyarrow.parquet

    with workdir.replacing(path) as temporary:
        parts = _tables(found, log, asked)
        first = next(parts)
        with pyarrow.parquet.ParquetWriter(temporary, first.schema) as file:
            file.write_table(first)
            for part in parts:
                file.write_table(part)


def _tables(
    found: Report, log: EventLog, asked: collections.abc.Sequence[int]
) -> collections.abc.Iterator[pyarrow.Table]:
    """The rows, some at a time."""
    import pyarrow

    about = found.about
    users, which = np.unique(about["user"], return_inverse=True)
    begin = np.array([log[user]["time"][0] for user in users], np.int64)[which]  # times of batches count from there
    name = lambda ids, names: pyarrow.array([names[i] for i in ids.tolist()], pyarrow.string())
    for start in range(0, found.targets, ROWS):
        rows = slice(start, start + ROWS)
        some = {key: values[rows] for key, values in about.items()}
        told = {
            "user": name(some["user"], log.user_ids),
            "item": name(some["item"], log.item_ids),
            "time": begin[rows] + some["time"],
            "query": name(some["query"], [None, *log.queries[1:]]),
        }
        # NaN is missing: a system says nothing of the target.
        measured = per_target.columns(found, asked, rows).items()
        yield pyarrow.table(told | {key: pyarrow.array(values, from_pandas=True) for key, values in measured})
