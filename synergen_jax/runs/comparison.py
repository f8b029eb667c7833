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
      found: variant -> seed by seed, the same seeds in one order; {} where a seed has none, which is then left out of a
        comparison on both sides. A baseline that the first seed alone has is the same for all.
    """
    name, runs = next(iter(found.items()))
    first = next((run for run in runs if run), {})
    rows = []
    for metric, users in (("ndcg@10", "user"), ("list_mrr", "list_user")):
        if users not in first:
            continue
        masks = {"lists": np.ones(len(first[users]), bool)} if metric == "list_mrr" else _masks(first)
        for where, mask in masks.items():
            for of, over, both in _pairs(name, found, metric, users):
                gains = [one[mask] - other[mask] for one, other in both]
                if np.isfinite(gains).any() and (metric == "list_mrr" or np.isfinite(gains).all()):
                    lead = metrics.summary({"lead": np.mean(gains, axis=0)}, first[users][mask])["lead"]
                    seeds = " ".join(f"{np.nanmean(gain):+.4f}" for gain in gains)
                    rows.append(
                        {"metric": metric, "of": where, "system": of, "over": over, "lead": lead, "seeds": seeds}
                    )
    return rows


def _masks(each: Each) -> dict[str, np.ndarray]:
    return {name: each[f"slice/{name}"] for name in SLICES if f"slice/{name}" in each}


def _pairs(
    name: str, found: collections.abc.Mapping[str, collections.abc.Sequence[Each]], metric: str, users: str
) -> collections.abc.Iterator[tuple[str, str, list[tuple[np.ndarray, np.ndarray]]]]:
    """What is compared: names, and the values of both for each seed that has both."""
    first = next(run for run in found[name] if run)
    fits = lambda run, system: f"{metric}/{system}" in run and np.array_equal(run[users], first[users])

    def both(variant: str, mine: str, theirs: str) -> list[tuple[np.ndarray, np.ndarray]]:
        others = found[variant]
        if variant == name and theirs not in STAGES:
            others = [run if f"{metric}/{theirs}" in run else first for run in others]
        seeds = zip(found[name], others, strict=True)
        kept = [(one, other) for one, other in seeds if fits(one, mine) and fits(other, theirs)]
        return [(one[f"{metric}/{mine}"], other[f"{metric}/{theirs}"]) for one, other in kept]

    systems = [key.removeprefix(f"{metric}/") for key in first if key.startswith(f"{metric}/")]
    wanted = [(stage, variant, stage) for stage in STAGES for variant in found if variant != name]
    wanted += [("model", name, system) for system in systems if system != "model"]
    for mine, variant, theirs in wanted:
        if values := both(variant, mine, theirs):
            yield f"{name}: {mine}", theirs if variant == name else f"{variant}: {theirs}", values
