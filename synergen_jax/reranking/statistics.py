"""What training tells of items beside learned parameters: when each was chosen, together with what, and for which query."""

from __future__ import annotations

import dataclasses
import pathlib
import typing
import zipfile
import zlib

import numpy as np
import scipy.sparse

from synergen_jax.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts of n training events with an item, over V items and the queries of a log, ids 0 included; numpy."""

    time: np.ndarray  # (n,) int64 Unix seconds of the events: item by item, each item's own going up
    begin: np.ndarray  # (V + 1,) int64: those of item v are begin[v] .. begin[v + 1] - 1
    near: scipy.sparse.csr_array  # (V, V): cosines of each item with the items that most often go with it
    pairs: scipy.sparse.csr_array  # (queries, V): how often each query led to each item

    @classmethod
    def of(
        cls, item: np.ndarray, time: np.ndarray, near: scipy.sparse.csr_array, pairs: scipy.sparse.csr_array
    ) -> typing.Self:
        """Sorts the events, (n,) each, by item and time, and the columns of the matrices."""
        near, pairs = near.copy(), pairs.copy()
        near.sort_indices()
        pairs.sort_indices()
        order = np.lexsort((time, item))
        begin = np.searchsorted(item[order], np.arange(typing.cast(tuple[int, int], near.shape)[0] + 1))
        return cls(time[order].astype(np.int64), begin.astype(np.int64), near, pairs)

    def before(self, item: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """How many events each item has before a moment, Unix seconds; both of one shape, which the result has, too."""
        low, high = self.begin[item], self.begin[item + 1]
        first = low.copy()
        while np.any(open_ := low < high):  # a binary search for each
            middle = (low + high) // 2
            earlier = open_ & (self.time[np.minimum(middle, len(self.time) - 1)] < moment)
            low, high = np.where(earlier, middle + 1, low), np.where(open_ & ~earlier, middle, high)
        return low - first

    def save(self, path: pathlib.Path) -> None:
        """Writes one file."""
        parts = {"time": self.time, "begin": self.begin}
        for name in ("near", "pairs"):
            matrix = getattr(self, name)
            parts |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
            parts[f"{name}_shape"] = np.array(matrix.shape)
        with path.open("wb") as file:
            np.savez_compressed(file, **typing.cast(dict[str, typing.Any], parts))

    @classmethod
    def load(cls, path: pathlib.Path) -> typing.Self:
        """Reads what `save` wrote.

        Raises:
          UserError: it is not there, or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file) as found:
                sparse = lambda name: scipy.sparse.csr_array(
                    tuple(found[f"{name}_{part}"] for part in ("data", "indices", "indptr")),
                    shape=tuple(found[f"{name}_shape"].tolist()),
                )
                return cls(found["time"], found["begin"], sparse("near"), sparse("pairs"))
        except FileNotFoundError:
            raise UserError(f"{path} is missing: `synergen rerank` writes it again") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}): `synergen rerank` writes it again") from None
