"""A prepared log in one file: what training and evaluation read of it, for a machine without ArrayRecord and TFDS.

    about      JSON as bytes: format, name, fingerprint, actions, labels, candidate features, user ids
    length     (users,) int32: events of each user; shown_length likewise: rows of their shown lists
    FIELD      the records' arrays, one user after the other: item, action, ..., shown_action (`records.DTYPES`)
    item_matrix/NAME, query_matrix/NAME     (ids, width) float16

Titles, texts and original item ids stay behind.
"""

from __future__ import annotations

import json
import os
import pathlib
import typing
import zipfile
import zlib

import numpy as np

from data_pipelines.files.records import DTYPES, EVENT_FIELDS, FEATURES
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError, first_line

FORMAT = 1
MATRICES = "item_matrix", "query_matrix"


def write(log: typing.Any, path: pathlib.Path) -> None:
    """Writes all records of an `EventLog`, or of what is like one, to one compressed file, whole or not at all."""
    records = [log[user] for user in range(len(log))]
    features = list(log.spec.candidate_features)
    about = {
        "format": FORMAT,
        "name": log.name,
        "fingerprint": log.fingerprint,
        "items": log.spec.items,
        "queries": log.spec.queries,
        "actions": list(log.actions),
        "labels": {name: list(ids) for name, ids in log.labels.items()},
        "candidate_features": features,
        "users": [record["user_id"] for record in records],
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for name, field in (("length", "item"), ("shown_length", "shown_item")):
        arrays[name] = np.array([len(record[field]) for record in records], np.int32)
    for name in (*DTYPES, *((FEATURES,) if features else ())):
        arrays[name] = np.concatenate([record[name] for record in records])
    for kind, matrices in zip(MATRICES, (log.item_matrices, log.query_matrices)):
        arrays |= {f"{kind}/{name}": np.asarray(matrix, np.float16) for name, matrix in matrices.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class ArrayLog:
    """What `write` wrote, in memory: of an `EventLog`, what training and evaluation ask for.

    A pickled one is its path, opened anew.

    Raises:
      UserError: there is no such file, or it is damaged, or no log.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; make it by `ladder.py prepare LOG --out {path}`")
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            about = json.loads(arrays.pop("about").tobytes())
            if about["format"] != FORMAT:
                raise UserError(f"{path}: format {about['format']}, this version reads {FORMAT}: prepare it again")
            self.name, self.fingerprint = about["name"], about["fingerprint"]
            self.actions: list[str] = about["actions"]
            self.labels = {name: tuple(ids) for name, ids in about["labels"].items()}
            self.user_ids: list[str] = about["users"]
            ends = lambda name: np.concatenate([[0], np.cumsum(arrays.pop(name), dtype=np.int64)])
            self._events, self._shown = ends("length"), ends("shown_length")
            matrices = [
                {n.partition("/")[2]: arrays.pop(n) for n in list(arrays) if n.startswith(f"{kind}/")}
                for kind in MATRICES
            ]
            self.item_matrices, self.query_matrices = matrices
            widths = lambda matrices: tuple((name, matrix.shape[1]) for name, matrix in matrices.items())
            self.spec = LogSpec(
                items=about["items"],
                actions=len(self.actions),
                queries=about["queries"],
                labels=tuple(self.labels),
                item_matrices=widths(self.item_matrices),
                query_matrices=widths(self.query_matrices),
                candidate_features=tuple(about["candidate_features"]),
            )
            for name in (*DTYPES, *((FEATURES,) if self.spec.candidate_features else ())):
                rows = self._events[-1] if name in EVENT_FIELDS else self._shown[-1]
                if len(arrays[name]) != rows:
                    raise ValueError(f"{name} has {len(arrays[name])} rows, not {rows}")
            self._arrays = arrays
        except UserError:
            raise
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as e:
            raise UserError(
                f"{path}: damaged, or no log of the ladder ({type(e).__name__}: {first_line(e)}); prepare it again"
            ) from None

    @property
    def lengths(self) -> np.ndarray:
        """Events of each user, (users,)."""
        return np.diff(self._events)

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, index: typing.SupportsIndex) -> dict[str, typing.Any]:
        """One user's record, as `EventLog` gives it."""
        user = index.__index__()
        if not 0 <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        events, shown = (slice(ends[user], ends[user + 1]) for ends in (self._events, self._shown))
        parts = {name: x[events if name in EVENT_FIELDS else shown] for name, x in self._arrays.items()}
        return {"user_id": self.user_ids[user]} | parts

    def __reduce__(self):
        return ArrayLog, (self.path,)
