"""A catalogue that grows while it is served."""

from __future__ import annotations

import collections.abc
import types

import numpy as np

from synergen_jax.batch import Catalogue, Floats, Ints
from synergen_jax.errors import UserError


def extended(
    catalogue: Catalogue,
    items: collections.abc.Mapping[str, np.ndarray] = types.MappingProxyType({}),
    queries: collections.abc.Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Catalogue:
    """A catalogue with new items or queries at its end, whose ids go on where the old ones end. No retraining.

    Args:
      items, queries: name of a semantic matrix -> new rows (n, width). A matrix that is not named has zero rows.

    Raises:
      UserError: there is no such matrix, or the rows do not fit it.
    """

    def grow(
        matrices: dict[str, Floats], counts: Ints, rows: collections.abc.Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Floats], Ints]:
        if not rows:
            return matrices, counts
        new = len(next(iter(rows.values())))
        for name, values in rows.items():
            if name not in matrices or values.shape != (new, matrices[name].shape[1]):
                raise UserError(f"new rows {name!r} of shape {values.shape} fit no semantic matrix of the catalogue")
        zero = lambda matrix: np.zeros((new, matrix.shape[1]), matrix.dtype)
        grown: dict[str, Floats] = {
            name: np.concatenate([matrix, np.asarray(rows.get(name, zero(matrix)), matrix.dtype)])
            for name, matrix in matrices.items()
        }
        return grown, np.concatenate([counts, np.zeros(new, np.int32)])

    item_matrices, counts = grow(catalogue.item_matrices, catalogue.counts, items)
    query_matrices, query_counts = grow(catalogue.query_matrices, catalogue.query_counts, queries)
    return Catalogue(item_matrices, query_matrices, counts, query_counts)
