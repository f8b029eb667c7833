"""Parts of an evaluation's targets: by task, by the length of the history, by the popularity of the item."""

from __future__ import annotations

import collections.abc

import numpy as np

from synergen_jax.batch import Catalogue, EvalBatch
from synergen_jax.evaluation import metrics

METRICS = ("hr@10", "ndcg@10", "hr@50", "mrr")


def masks(batches: collections.abc.Iterable[EvalBatch], catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Which targets belong to each slice, name -> bool (n,); slices without a target are left out.

    "search" and "recommendation" tell whether the reader has a query. Histories are cut into thirds of the targets by
    how many events the reader sees. Items are cut by training events into the most popular ones that make up a third
    of all, the next, the last third, and new items, which training never met.
    """
    parts = []
    for batch in batches:
        real = batch.user >= 0
        parts.append(np.stack([batch.reader.query[:, 0], batch.reader.visible[:, 0], batch.target])[:, real])
    query, visible, target = np.concatenate(parts, axis=1)
    found = {"all": np.ones(len(query), bool), "search": query > 0, "recommendation": query == 0}

    low, high = np.quantile(visible, [1 / 3, 2 / 3], method="lower")
    for name, mask in (
        ("shortest", visible <= low),
        ("middle", (visible > low) & (visible <= high)),
        ("longest", visible > high),
    ):
        if mask.any():
            found[f"{name} histories, {visible[mask].min()}-{visible[mask].max()} events"] = mask

    counts = np.asarray(catalogue.counts)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # training events of more popular items
    third = np.empty(len(counts), np.int64)
    third[order] = np.minimum(before * 3 // max(counts.sum(), 1), 2)
    third[counts == 0] = 3
    for part, name in enumerate(("popular items", "middling items", "rare items", "new items, never in training")):
        found[name] = third[target] == part
    return {name: mask for name, mask in found.items() if mask.any() and (name == "all" or not mask.all())}


def table(ranks: dict[str, np.ndarray], masks: dict[str, np.ndarray]) -> dict[str, dict]:
    """Retrieval metrics of each system in each slice: {slice: {"targets": n, system: {metric: mean}}}.

    Args:
      ranks: system -> (n, 2), 0 where it says nothing. A system that is silent on a target of a slice is not in it.
    """
    found: dict[str, dict] = {}
    for name, mask in masks.items():
        found[name] = {"targets": int(mask.sum())}
        for system, values in ranks.items():
            if (values[mask] > 0).all():
                measured = metrics.retrieval_metrics(values[mask], (10, 50))
                found[name][system] = {metric: float(np.mean(measured[metric])) for metric in METRICS}
    return found
