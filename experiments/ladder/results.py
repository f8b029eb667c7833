"""What a ladder found, for people: tables with the spread over seeds, and plots."""

from __future__ import annotations

import collections.abc
import json
import pathlib
import statistics
import typing

import runs

from synergen_jax import report
from synergen_jax.errors import UserError

RETRIEVAL = {
    "HR@10": "hr@10",
    "NDCG@10": "ndcg@10",
    "HR@50": "hr@50",
    "NDCG@50": "ndcg@50",
    "HR@200": "hr@200",
    "MRR": "mrr",
}

Entries = list[dict[str, typing.Any]]  # finished runs


def by_variant(entries: Entries) -> dict[str, dict[int, dict[str, typing.Any]]]:
    """Finished runs that have metrics: variant -> seed -> run, both in the order in which they come."""
    found: dict[str, dict[int, dict[str, typing.Any]]] = {}
    for entry in entries:
        if entry["metrics"]:
            found.setdefault(entry["variant"], {})[entry["seed"]] = entry
    return found


def spread(values: collections.abc.Sequence[float], sign: str = "") -> str:
    """ "mean ± standard deviation"; of a single value the value alone."""
    mean = f"{statistics.fmean(values):{sign}.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def retrieval(entry: dict[str, typing.Any], metric: str, part: str = "test") -> float:
    """A metric of a run."""
    return entry["metrics"][part]["retrieval"][metric]


def gains(mine: dict[int, dict], recipe: dict[int, dict], metric: str = "ndcg@10") -> list[float]:
    """How much better each seed of a variant does than the recipe with the same seed."""
    return [retrieval(mine[seed], metric) - retrieval(recipe[seed], metric) for seed in mine if seed in recipe]


def rows(entries: Entries) -> list[dict[str, typing.Any]]:
    """A row a variant: test metrics, and the difference from the first variant, seed by seed."""
    found = by_variant(entries)
    recipe = next(iter(found.values()), {})
    table = []
    for name, seeds in found.items():
        row = {"variant": name, "seeds": len(seeds)}
        row |= {title: spread([retrieval(e, metric) for e in seeds.values()]) for title, metric in RETRIEVAL.items()}
        differences = gains(seeds, recipe)
        row["NDCG@10 less recipe's"] = spread(differences, "+") if differences and seeds is not recipe else ""
        row["best step"] = f"{statistics.fmean([e['best_step'] for e in seeds.values()]):.0f}"
        row["s a run"] = f"{statistics.fmean([e['seconds']['all'] for e in seeds.values()]):.0f}"
        table.append(row)
    return table


def write(folders: collections.abc.Sequence[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
    raise UserError("not yet")
