"""What an evaluation found of each target, as columns of a table: places, hits and gains of each system."""

from __future__ import annotations

import collections.abc

import numpy as np

from synergen_jax.evaluation import metrics
from synergen_jax.evaluation.protocol import Report


def columns(found: Report, asked: collections.abc.Sequence[int], rows: slice) -> dict[str, np.ndarray]:
    """Columns (n,) of some targets, the i-th of each of the i-th target.

    "slice/NAME": whether it is in that slice. "rank/SYSTEM": its place, from 1, expected over a random order of equal
    scores; "hr@k/SYSTEM", "ndcg@k/SYSTEM" and "mrr/SYSTEM": what their means are the metrics of. NaN where a system
    says nothing of the target.

    Args:
      asked: the cut-offs; none: the usual ones.
      rows: which targets.
    """
    told = {f"slice/{name}": mask[rows] for name, mask in found.masks.items() if name != "all"}
    for system, ranks in found.ranks.items():
        told |= {
            f"{name}/{system}": values for name, values in _measured(ranks[rows], asked or metrics.CUTOFFS).items()
        }
    return told


def _measured(ranks: np.ndarray, ks: collections.abc.Sequence[int]) -> dict[str, np.ndarray]:
    """Place and metrics of places (n, 2), NaN where they are 0."""
    says = ranks[:, 0] > 0
    values = {"rank": ranks.mean(axis=1)} | metrics.retrieval_metrics(np.maximum(ranks, 1), ks)
    return {name: np.where(says, value, np.nan) for name, value in values.items()}
