"""What ladders found, for people: tables with the spread over seeds; `plots.py` draws the same."""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import pathlib
import statistics
import typing

from synergen_jax.errors import UserError
from synergen_jax.evaluation import report

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


# --- one or more folders, put together ------------------------------------------------------------------------


def write(folders: collections.abc.Sequence[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes OUT.md and, where there is something to draw, OUT_curves.png, OUT_ladder.png and OUT_slices.png.

    Raises:
      UserError: a folder holds no ladder, or nothing finished; or they are of different logs, families or settings, or have the same run twice.
    """
    import plots

    plans, entries = _gathered(folders)
    asked = list(dict.fromkeys((variant, seed) for plan in plans for variant, seed in plan["asked"]))
    ladder = Ladder.of(entries, plans[0]["variants"])
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = {
        "Validation NDCG@10 by step: mean and range over seeds": plots.curves,
        "Test NDCG@10 less the recipe's: mean, standard deviation, and each seed": plots.ladder,
        "Test NDCG@10 of the recipe by slice: mean and standard deviation over seeds": plots.slices,
    }
    written, pictures = [out.with_name(f"{out.name}.md")], []
    for title, draw in drawn.items():
        path = out.with_name(f"{out.name}_{draw.__name__}.png")
        if draw(ladder, path):
            written.append(path)
            pictures.append(f"![{title}]({path.name})\n\n{title}.")
    text = "\n\n".join([*_about(plans, entries, ladder, asked), *_tables(ladder), *pictures])
    with report.replacing(written[0]) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return written


def _gathered(folders: collections.abc.Sequence[pathlib.Path]) -> tuple[list[dict[str, typing.Any]], list[Entry]]:
    """The plans and the finished runs of all folders."""
    import runs

    plans, found = [], {}
    for folder in folders:
        path = folder / runs.PLAN
        try:
            plans.append(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{folder}: no folder of a ladder ({path.name}: {error.strerror})") from None
        except ValueError:
            raise UserError(f"{path}: damaged; the command that wrote the folder writes it anew") from None
        if plans[-1]["fingerprint"] != plans[0]["fingerprint"]:
            raise UserError(f"{folder} is of another log than {folders[0]}: report them apart")
        for name in ("family", "settings"):
            if plans[-1][name] != plans[0][name]:
                raise UserError(
                    f"{folder} has {name} {plans[-1][name]!r}, and {folders[0]} {plans[0][name]!r}: report them apart"
                )
        for entry in runs.read(folder):
            key = entry["variant"], entry["seed"]
            if key in found:
                raise UserError(f"{folder}: {key[0]}, seed {key[1]}, is in another of the folders, too")
            found[key] = entry
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no run is finished yet")
    return plans, list(found.values())


def _about(plans, entries: list[Entry], ladder: Ladder, asked: list[tuple[str, int]]) -> list[str]:
    plan = plans[0]
    some = lambda values: ", ".join(dict.fromkeys(str(value) for value in values))
    first = entries[0]["config"]
    ties = some(e.get("ties", "against the model") for e in entries)  # as in runs that do not say
    parts = [f"# Ladder {plan['family']} on {plan['log']}"]
    parts.append(
        f"Test split ({first['data']['split']}), full ranking, seen items "
        f"{'filtered' if first['data']['filter_seen'] else 'kept'}, ties {ties}. Parameters are chosen by "
        f"validation {first['run']['select']} alone. Numbers are means ± standard deviations over seeds; differences "
        "from the recipe (the first variant) are taken seed by seed before."
    )
    hours = sum(entry["seconds"]["all"] for entry in entries) / 60
    parts.append(
        f"{some(e['device'] for e in entries)}; jax {some(e['versions']['jax'] for e in entries)}; commit "
        f"{some(e['commit'] or 'unknown' for e in entries)}; {len(entries)} runs, {hours:.1f} minutes in all."
    )
    if plan.get("matrices"):  # what a log was prepared with decides them
        widths = ", ".join(f"{name} ({width} wide)" for name, width in plan["matrices"].items())
        parts.append(f"Matrices of the items in the log: {widths}.")
    words = "".join(f" {word}" for word in plan["settings"])
    seeds = ",".join(map(str, dict.fromkeys(seed for _, seed in asked)))
    parts.append(
        f"```sh\npython experiments/ladder/ladder.py run {plan['log']}.npz --family {plan['family']} --seeds {seeds} "
        f"--out ladder{words}\n```"
    )
    done = {(entry["variant"], entry["seed"]) for entry in entries}
    wanted: dict[str, list[bool]] = {}
    for name, seed in asked:
        wanted.setdefault(name, []).append((name, seed) in done)
    missing = [
        f"{name} has {sum(found)} of {len(found)} seeds" for name, found in wanted.items() if any(found) != all(found)
    ]
    if none := [name for name, found in wanted.items() if not any(found)]:
        missing.append(f"not run: {', '.join(none)}")
    if missing:
        parts.append(f"**Partial evidence**: {'; '.join(missing)}.")
    if ladder.failed:
        names = [f"{entry['variant']}, seed {entry['seed']}" for entry in ladder.failed]
        parts.append(f"**Not finite**, and so without results: {'; '.join(names)}.")
    return parts


def _tables(ladder: Ladder) -> list[str]:
    changes = [
        {
            "variant": name,
            "changes": ", ".join(f"{k} = {json.dumps(v)}" for k, v in run["changes"].items()) or "nothing",
        }
        for name, seeds in ladder.variants.items()
        for run in list(seeds.values())[:1]
    ]
    parts = [report.markdown_table(rows(ladder)), "What each variant changes in the base config:"]
    parts.append(report.markdown_table(changes))
    for title, found in (
        ("Ranking of sampled candidates, or of the lists that were shown, by label", ranking_rows(ladder)),
        ("The items retrieved first, as the ranking head orders them", reranked_rows(ladder)),
        ("The recipe by slice", slice_rows(ladder.recipe)),
    ):
        if found:
            parts += [f"## {title}", report.markdown_table(found)]
    return parts
