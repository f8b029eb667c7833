"""How far the first variant of a family leads the others, and baselines: target by target, over all its seeds."""

from __future__ import annotations

import collections.abc
import typing

import numpy as np

from synergen_jax.evaluation import metrics, slices

Each = dict[str, np.ndarray]
"""What an evaluation found target by target: `protocol.Report.each`."""

SLICES = ("all", "search", "recommendation", slices.NEW_PAIRS)
STAGES = ("model", "model_second_stage")  # of which variants are compared with each other


def leads(found: collections.abc.Mapping[str, collections.abc.Sequence[Each]]) -> list[dict[str, typing.Any]]:
    """Rows of a table: the first variant less each other one, and less each other system of its own evaluations.

    A target's value is its mean over the seeds; the interval is a bootstrap over users of the difference of these, so that
    it tells how far other users would move the lead. How far other seeds would is told by the leads of each seed, in
    order. Variants of other targets than the first one's are left out.

    Args:
      found: variant -> seed by seed.
    """
    name, first = next(iter(found.items()))
    rows = []
    for metric, users in (("ndcg@10", "user"), ("list_mrr", "list_user")):
        if users not in first[0]:
            continue
        masks = {"lists": np.ones(len(first[0][users]), bool)} if metric == "list_mrr" else _masks(first[0])
        for where, mask in masks.items():
            for of, over, mine, theirs in _pairs(name, found, metric, users):
                gains = [one[mask] - other[mask] for one, other in zip(mine, theirs, strict=True)]
                if np.isfinite(gains).any() and (metric == "list_mrr" or np.isfinite(gains).all()):
                    lead = metrics.summary({"lead": np.mean(gains, axis=0)}, first[0][users][mask])["lead"]
                    seeds = " ".join(f"{np.nanmean(gain):+.4f}" for gain in gains)
                    rows.append(
                        {"metric": metric, "of": where, "system": of, "over": over, "lead": lead, "seeds": seeds}
                    )
    return rows


def _masks(each: Each) -> dict[str, np.ndarray]:
    return {name: each[f"slice/{name}"] for name in SLICES if f"slice/{name}" in each}


def _pairs(
    name: str, found: collections.abc.Mapping[str, collections.abc.Sequence[Each]], metric: str, users: str
) -> collections.abc.Iterator[tuple[str, str, list[np.ndarray], list[np.ndarray]]]:
    """What is compared: names, and values seed by seed."""
    first, others = found[name], {variant: runs for variant, runs in found.items() if variant != name}
    same = lambda run: users in run and np.array_equal(run[users], first[0][users])
    values = lambda runs, system: [run[f"{metric}/{system}"] for run in runs if f"{metric}/{system}" in run]
    for stage in STAGES:
        mine = values(first, stage)
        if len(mine) == len(first):
            for variant, runs in others.items():
                theirs = values(runs, stage)
                if len(theirs) == len(mine) and all(map(same, runs)):
                    yield f"{name}: {stage}", f"{variant}: {stage}", mine, theirs
    systems = [key.removeprefix(f"{metric}/") for key in first[0] if key.startswith(f"{metric}/")]
    mine = values(first, "model")
    for system in systems:
        theirs = values(first, system)
        if system != "model" and len(theirs) == len(mine):
            yield f"{name}: model", system, mine, theirs
