"""Parts of an evaluation's targets: by task, history and popularity of the item; searches by what training met."""

from __future__ import annotations

import collections.abc
import typing

import numpy as np

from synergen_jax.batch import Catalogue, EvalBatch
from synergen_jax.evaluation import metrics

if typing.TYPE_CHECKING:  # a validation needs no scipy
    import scipy.sparse

METRICS = ("hr@10", "ndcg@10", "hr@20", "ndcg@20", "hr@50", "mrr")
NEW_PAIRS = "new pairs, never in training"
OF_SEARCHES = ("queries met in training", "new queries", "pairs met in training", NEW_PAIRS)


def masks(
    batches: collections.abc.Iterable[EvalBatch],
    catalogue: Catalogue,
    pairs: scipy.sparse.csr_array | None = None,
) -> dict[str, np.ndarray]:
    """Which targets belong to each slice, name -> bool (n,); slices without a target are left out.

    "search" and "recommendation" tell whether the reader has a query. Searches are told apart by whether training met
    their query, and whether it met the query with this item. Of targets that were asked for at the very time of the last event
    that the reader sees, in a log of whole days on the same day, their order is that of the log. Histories are cut into thirds
    of the targets by how many events the reader sees. Items are cut by training events into the most popular ones that make up a third
    of all, the next, the last third, and new items, which training never met.

    Args:
      pairs: training counts of (query, item), (queries, V), as `query_counts.pair_counts` gives; None: they are not
        known, and no slice goes by them.
    """
    parts = []
    for batch in batches:
        real = batch.user >= 0
        visible = np.asarray(batch.reader.visible)[:, 0]
        last = np.take_along_axis(np.asarray(batch.events.time), np.maximum(visible - 1, 0)[:, None], axis=1)[:, 0]
        later = (visible > 0) & (np.asarray(batch.reader.time)[:, 0] > last)
        parts.append(np.stack([batch.reader.query[:, 0], visible, batch.target, later])[:, real])
    query, visible, target, later = np.concatenate(parts, axis=1)
    found = {"all": np.ones(len(query), bool), "search": query > 0, "recommendation": query == 0}
    met = [np.asarray(catalogue.query_counts)[query] > 0]
    if pairs is not None:
        met.append(np.asarray(pairs[query, target]).reshape(-1) > 0)
    both = (mask & (query > 0) for known in met for mask in (known, ~known))
    found |= dict(zip(OF_SEARCHES, both, strict=False))

    seen = visible > 0
    found |= {"asked after the last event's time": later > 0, "asked at the last event's time": seen & (later == 0)}

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


def about(batches: collections.abc.Iterable[EvalBatch]) -> dict[str, np.ndarray]:
    """Whose each target is, what it is, and how it was asked for: "user", "item", "query", "time", (n,)."""
    parts = []
    for batch in batches:
        real, reader = batch.user >= 0, batch.reader
        parts.append(np.stack([batch.user, batch.target, reader.query[:, 0], reader.time[:, 0]])[:, real])
    return dict(zip(("user", "item", "query", "time"), np.concatenate(parts, axis=1), strict=True))


def table(
    ranks: dict[str, np.ndarray], masks: dict[str, np.ndarray], asked: collections.abc.Sequence[int] = ()
) -> dict[str, dict]:
    """Retrieval metrics of each system in each slice: {slice: {"targets": n, system: {metric: mean}}}.

    Args:
      ranks: system -> (n, 2), 0 where it says nothing. A system that is silent on a target of a slice is not in it.
      asked: further cut-offs beside those of METRICS.
    """
    names = dict.fromkeys([*METRICS, *(f"{metric}@{k}" for metric in ("hr", "ndcg") for k in asked)])
    found: dict[str, dict] = {}
    for name, mask in masks.items():
        found[name] = {"targets": int(mask.sum())}
        for system, values in ranks.items():
            if (values[mask] > 0).all():
                measured = metrics.retrieval_metrics(values[mask], metrics.cutoffs(asked, (10, 20, 50)))
                found[name][system] = {metric: float(np.mean(measured[metric])) for metric in names}
    return found
