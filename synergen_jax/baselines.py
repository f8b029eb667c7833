"""Systems that learn nothing or little, to be ranked beside a model: scores of candidate lists, numpy throughout.

Each takes an `EvalBatch` and the training counts of the items, (V,), and gives scores (B, K), higher is better.
"""

from __future__ import annotations

import numpy as np

from synergen_jax.batch import EvalBatch


def most_popular(batch: EvalBatch, counts: np.ndarray) -> np.ndarray:
    """The number of training events of each candidate."""
    return np.asarray(counts, np.float64)[batch.ranking.item[:, 0]]


def shown_order(batch: EvalBatch, counts: np.ndarray) -> np.ndarray:
    """The order in which the list was shown, candidates that were not shown last."""
    del counts
    return np.where(batch.position > 0, -batch.position, -np.inf)


def last_seen_first(batch: EvalBatch, counts: np.ndarray) -> np.ndarray:
    """Candidates of the user's context first, the latest before all others; the rest in the order shown."""
    del counts
    item, events = batch.ranking.item[:, 0], batch.events.item
    same = (item[:, :, None] == events[:, None, :]) & (item > 0)[:, :, None]
    latest = np.max(same * np.arange(1, events.shape[1] + 1), axis=2)  # place in the context from 1; 0: not in it
    after = batch.position.max() + 1  # the place of those that were not shown
    return latest * (after + 1.0) - np.where(batch.position > 0, batch.position, after)


LISTS = {"shown_order": shown_order, "last_seen_first": last_seen_first, "most_popular": most_popular}
