"""What is served: a trained model with the catalogue and the words of its log. `runs/serve.py` makes one of a run."""

from __future__ import annotations

import collections.abc
import dataclasses

import numpy as np

from synergen_jax.batch import Catalogue
from synergen_jax.model import synergen

Encode = collections.abc.Callable[[collections.abc.Sequence[str]], np.ndarray]
"""Rows (n, width) float32 of the matrix "text" for queries; zeros where no word is known."""


@dataclasses.dataclass(frozen=True)
class Past:
    """Events of one user in order, (n,) each; ids are those of the catalogue."""

    time: np.ndarray  # int64, Unix seconds
    item: np.ndarray  # int32
    action: np.ndarray
    query: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def of(cls, rows: collections.abc.Sequence[tuple[int, int, int, int]]) -> Past:
        """Of (time, item, action, query) tuples."""
        table = np.array(rows, np.int64).reshape(-1, 4)
        return cls(table[:, 0], *(table[:, i].astype(np.int32) for i in (1, 2, 3)))

    def rows(self) -> list[tuple[int, int, int, int]]:
        """(time, item, action, query) of each event."""
        return list(zip(*(getattr(self, name).tolist() for name in ("time", "item", "action", "query"))))


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A trained model, and what turns original ids into its ids and back."""

    name: str  # log, version and step: which model it is
    model: synergen.SynerGen
    params: synergen.Params
    catalogue: Catalogue  # on the host
    items: collections.abc.Sequence[str]  # original ids, index = id, [0] == ""
    actions: collections.abc.Sequence[str]
    queries: collections.abc.Sequence[str]
    encode: Encode | None  # None: queries are known by their texts alone
    past: collections.abc.Callable[[str], Past | None]  # what the log has of a user; None: nothing
    max_history: int  # L: events that the model sees at most
    filter_seen: bool  # what a user had does not come back, unless a request says otherwise
    uses_query_text: bool  # whether the model uses the matrix "text" of queries
