"""Baselines that look up what a query led to in training. On recommendations they say nothing.

A log whose queries come back is partly a dictionary, and a model is to be held against the dictionary, not against
chance. Keys are lexicographic, and exactly so: see `baselines.lifted`.
"""

from __future__ import annotations

import collections.abc

import numpy as np
import scipy.sparse

from synergen_jax.batch import EvalBatch
from synergen_jax.evaluation import baselines


def pair_counts(query: np.ndarray, item: np.ndarray, sizes: tuple[int, int]) -> scipy.sparse.csr_array:
    """How often each query led to each item, (queries, V), of n events with an item; query 0, none, is left out.

    Args:
      query, item: (n,) each; sizes: queries, and V.
    """
    asked = query > 0
    ones = np.ones(int(asked.sum()), np.int64)
    return scipy.sparse.csr_array((ones, (query[asked], item[asked])), shape=sizes)


def row(matrix: scipy.sparse.csr_array, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a row's entries, and their values."""
    part = slice(matrix.indptr[number], matrix.indptr[number + 1])
    return matrix.indices[part], matrix.data[part]


def sizes(matrix: scipy.sparse.csr_array) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    assert matrix.shape is not None  # as scipy's types allow
    return matrix.shape


def popular_for_query(pairs: scipy.sparse.csr_array, counts: np.ndarray) -> baselines.Scorer:
    """Popularity within the query: training count of (query, item), then of the item.

    A query that training never met leaves popularity alone.

    Args:
      pairs: of `pair_counts`; counts: of items, (V,).
    """
    base = baselines.dense_ranks(counts)
    return by_query(lambda query: baselines.lifted(base, *row(pairs, query)))


def query_lookup(pairs: scipy.sparse.csr_array, counts: np.ndarray, words: baselines.Scorer) -> baselines.Scorer:
    """A lookup: training count of (query, item), then BM25 of the query's words in the item's text, then popularity.

    Args:
      pairs, counts: as those of `popular_for_query`; words: of `baselines.bm25`, scores of 0 or more.
    """
    base = baselines.dense_ranks(counts)

    def score(batch: EvalBatch) -> np.ndarray | None:
        matched = words(batch)
        if matched is None:
            return None
        asked = batch.reader.query[:, 0]
        found = np.full(matched.shape, np.nan, np.float32)
        for query in map(int, np.unique(asked[asked > 0])):
            rows = np.flatnonzero(asked == query)
            count = np.zeros(matched.shape[1], np.int64)
            items, values = row(pairs, query)
            count[items] = values
            items = np.flatnonzero((count > 0) | (matched[rows[0]] > 0))
            found[rows] = baselines.lifted(base, items, count[items], matched[rows[0], items])
        return found

    return score


def by_query(scores: collections.abc.Callable[[int], np.ndarray]) -> baselines.Scorer:
    """A scorer that asks for the scores (V,) of each query of a batch once; a row of NaN where there is no query."""

    def score(batch: EvalBatch) -> np.ndarray | None:
        asked = batch.reader.query[:, 0]
        if not asked.any():
            return None
        queries, number = np.unique(asked, return_inverse=True)
        known = [scores(query) for query in queries[queries > 0].tolist()]
        nothing = [np.full(len(known[0]), np.nan, np.float32)] if queries[0] == 0 else []
        return np.stack(nothing + known)[number.reshape(-1)]

    return score
