"""What ladders found, as rows of tables with the spread over seeds; `plots.py` draws the same, `write_up.py` has both."""

from __future__ import annotations

import collections.abc
import dataclasses
import statistics
import typing

RETRIEVAL = {"HR@10": "hr@10", "NDCG@10": "ndcg@10", "HR@50": "hr@50", "NDCG@50": "ndcg@50"} | {
    "HR@200": "hr@200",
    "NDCG@200": "ndcg@200",
    "MRR": "mrr",
}
SLICES = {
    "history": "histories",
    "activity": "users with",
    "popularity": "items",
}  # kind -> a word of its slices' names

Entry = dict[str, typing.Any]  # a finished run: a line of runs.jsonl
Seeds = dict[int, Entry]


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Finished runs that have metrics, by variant and seed, the recipe first if it is there."""

    variants: dict[str, Seeds]
    failed: list[Entry]  # runs whose loss was not finite before there was anything to evaluate
    first: str = ""  # the recipe's name; no variant where the recipe has no finished run

    @classmethod
    def of(cls, entries: collections.abc.Iterable[Entry], order: collections.abc.Iterable[str] = ()) -> Ladder:
        """Args:
        order: of the variants, the recipe first; others follow as they come.
        """
        variants: dict[str, Seeds] = {name: {} for name in order}
        failed = []
        for entry in entries:
            if entry["metrics"]:
                variants.setdefault(entry["variant"], {})[entry["seed"]] = entry
            else:
                failed.append(entry)
        first = next(iter(variants), "")
        return cls({name: dict(sorted(seeds.items())) for name, seeds in variants.items() if seeds}, failed, first)

    @property
    def recipe(self) -> Seeds:
        """The runs that others are compared with; {} where none of them is finished."""
        return self.variants.get(self.first, {})

    def gains(self, variant: str, metric: str = "ndcg@10") -> list[float]:
        """How much better each seed of a variant does on the test split than the recipe with the same seed."""
        mine = self.variants[variant]
        return [value(mine[s], metric) - value(self.recipe[s], metric) for s in mine if s in self.recipe]


def value(entry: Entry, metric: str, part: str = "test") -> float:
    """A retrieval metric of a run."""
    return entry["metrics"][part]["retrieval"][metric]


def spread(values: collections.abc.Collection[float], sign: str = "") -> str:
    """ "mean ± standard deviation"; of a single value the value alone."""
    mean = f"{statistics.fmean(values):{sign}.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def rows(ladder: Ladder) -> list[dict[str, typing.Any]]:
    """A row a variant: metrics, and the difference from the recipe, seed by seed."""
    table = []
    for name, seeds in ladder.variants.items():
        runs = list(seeds.values())
        row = {"variant": name, "seeds": len(runs)}
        row |= {title: spread([value(run, metric) for run in runs]) for title, metric in RETRIEVAL.items()}
        gains = ladder.gains(name)
        row["NDCG@10 less the recipe's"] = spread(gains, "+") if gains and seeds is not ladder.recipe else ""
        row["validation NDCG@10"] = spread([value(run, "ndcg@10", "validation") for run in runs])
        row["best step"] = f"{statistics.fmean([run['best_step'] for run in runs]):.0f}"
        row["s a run"] = f"{statistics.fmean([run['seconds']['all'] for run in runs]):.0f}"
        table.append(row)
    for name, found in _baselines(ladder, "retrieval").items():
        table.append({"variant": name} | {title: spread([one[m] for one in found]) for title, m in RETRIEVAL.items()})
    return table


def _baselines(ladder: Ladder, kind: str) -> dict[str, list[dict[str, float]]]:
    """The test metrics of one kind of each baseline that has such: one a seed of the recipe."""
    found: dict[str, list[dict[str, float]]] = {}
    for run in ladder.recipe.values():
        for name, kinds in run["metrics"]["test"]["baselines"].items():
            if kinds.get(kind):
                found.setdefault(name, []).append(kinds[kind])
    return found


def ranking_rows(ladder: Ladder) -> list[dict[str, typing.Any]]:
    """A row a variant, or baseline, and label: how well the ranking head tells what was received how."""
    table = []
    every = {
        name: [run["metrics"]["test"]["ranking"] for run in runs.values()] for name, runs in ladder.variants.items()
    }
    for name, found in (every | _baselines(ladder, "ranking")).items():
        for label in dict.fromkeys(metric.partition("/")[2] for run in found for metric in run):
            row = {"variant": name, "label": label}
            for title, metric in (("AUC", "auc"), ("log loss", "log_loss"), ("calibration error", "calibration_error")):
                values = [run[f"{metric}/{label}"] for run in found if f"{metric}/{label}" in run]
                row[title] = spread(values) if values else ""
            table.append(row)
    return table


def reranked_rows(ladder: Ladder) -> list[dict[str, typing.Any]]:
    """A row a variant: the first items as the ranking head orders them."""
    table = []
    for name, seeds in ladder.variants.items():
        found = [run["metrics"]["test"]["reranked"] for run in seeds.values()]
        if all(found):
            table.append({"variant": name} | {t: spread([run[m] for run in found]) for t, m in RETRIEVAL.items()})
    return table


def slices(seeds: Seeds) -> dict[str, dict[str, list[dict[str, float]]]]:
    """The slices of a variant's test targets: kind -> slice -> metrics and "targets" of each seed that has it."""
    kinds: dict[str, dict[str, list[dict[str, float]]]] = {kind: {} for kind in SLICES}
    for run in seeds.values():
        for name, found in run["metrics"]["test"]["slices"].items():
            for kind, word in SLICES.items():
                if word in name:
                    kinds[kind].setdefault(name, []).append({"targets": found["targets"]} | found["model"])
    return {kind: found for kind, found in kinds.items() if found}


def slice_rows(seeds: Seeds) -> list[dict[str, typing.Any]]:
    """A row a slice."""
    return [
        {"slice": name, "targets": int(statistics.fmean([run["targets"] for run in runs]))}
        | {
            title: spread([run[metric] for run in runs])
            for title, metric in (("HR@10", "hr@10"), ("NDCG@10", "ndcg@10"))
        }
        for found in slices(seeds).values()
        for name, runs in found.items()
    ]
