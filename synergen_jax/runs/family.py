"""A family of configs, each with several seeds, trained, evaluated and put into one table: what `synergen sweep` does.

A family is a TOML file: the config that all start from, and under each variant's name the settings that it changes.

    base = "ml_100k_search"

    [variants.joint]

    [variants.search-only]
    loss.recommendation_weight = 0.0
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tomllib
import typing

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.errors import Stopped, UserError
from synergen_jax.evaluation import findings, report
from synergen_jax.runs import comparison, workdir
from synergen_jax.training.loop import NotFiniteError

# Columns of the table: heading -> where the number lies in an evaluation's JSON, "SYSTEM" standing for the system.
COLUMNS = {
    "HR@10": ("SYSTEM", "hr@10"),
    "NDCG@10": ("SYSTEM", "ndcg@10"),
    "search NDCG@10": ("slices", "search", "SYSTEM", "ndcg@10"),
    "search HR@10": ("slices", "search", "SYSTEM", "hr@10"),
    "rec. NDCG@10": ("slices", "recommendation", "SYSTEM", "ndcg@10"),
    "rec. HR@10": ("slices", "recommendation", "SYSTEM", "hr@10"),
    "new items HR@50": ("slices", "new items, never in training", "SYSTEM", "hr@50"),
    "list NDCG@10": ("SYSTEM", "list_ndcg@10/engage"),
    "list AUC": ("SYSTEM", "grouped_auc/engage"),
    "shown MRR": ("shown", "SYSTEM", "list_mrr", "mean"),
}


class Family(typing.NamedTuple):
    """A config that all variants start from, and each variant's own."""

    base: str
    variants: dict[str, Config]


def load(path: pathlib.Path, overrides: typing.Sequence[str] = ()) -> Family:
    """Reads a family; `overrides` are command-line words that hold for all variants.

    Raises:
      UserError: the file does not parse, a variant's settings are wrong or hold nothing back to be compared on, or the
        overrides hold a seed.
    """
    if any(word.partition("=")[0] in ("--data.seed", "--run.seed") for word in overrides):
        raise UserError("the seeds of a family's runs are given by --seeds, not by --data.seed and --run.seed")
    if not path.is_file():
        shipped = configs.shipped(families=True)
        if str(path) not in shipped:
            raise UserError(f"no family file {str(path)!r}; shipped families: {', '.join(shipped) or 'none'}")
        path = shipped[str(path)]
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a family: {error}") from None
    variants = tree.get("variants")
    if set(tree) != {"base", "variants"} or not isinstance(variants, dict) or not variants:
        raise UserError(f"{path}: a family has a `base`, and under `[variants.NAME]` what each variant changes")
    base = configs.to_dict(configs.load(tree["base"]))
    made = {}
    for name, changes in variants.items():
        if not isinstance(changes, dict) or not all(isinstance(values, dict) for values in changes.values()):
            raise UserError(f"{path}: [variants.{name}] holds settings as section.key = value")
        merged = base | {section: base.get(section, {}) | values for section, values in changes.items()}
        made[name] = configs.override(configs.from_dict(merged, f"{path}: variant {name}"), overrides)
        if not made[name].data.measured:
            raise UserError(
                f"variant {name}: data.split 'none' trains on all events, and variants are compared by what is held "
                "back: give another data.split; `synergen train` trains the chosen one with 'none', and as many steps, "
                "to serve"
            )
    return Family(tree["base"], made)


def sweep(
    family: Family,
    seeds: typing.Sequence[int],
    folder: pathlib.Path,
    split: str,
    fit: typing.Callable[[Config, pathlib.Path], typing.Any],
    evaluate: typing.Callable[[pathlib.Path, str, Config], dict[str, typing.Any]],
    say: typing.Callable[[str], None],
    rerank: typing.Callable[[pathlib.Path], typing.Any] | None = None,
) -> dict[str, typing.Any]:
    """Trains and evaluates every variant with every seed, and writes `sweep_SPLIT.json` and `sweep_SPLIT.md`.

    What is finished is not done again, so that a sweep that was stopped goes on when it is run again.

    Args:
      fit: trains a config in a workdir; evaluate: evaluates a workdir on a split, by a config's `evaluate`. Both return their
        JSON. Baselines are the same for all runs, and evaluated beside the first one alone.
      rerank: fits the second stage of a workdir, before it is evaluated; None: there is none.

    Raises:
      UserError: nothing can be written to `folder`, which is told first; NotWritten: nor could it be at the end.
      Stopped: losses of some runs were not finite. The others are trained, evaluated and in the table before.
    """
    elsewhere = "give another --workdir"
    workdir.try_writing(folder, elsewhere)
    failed: list[str] = []
    found: dict[str, list[dict[str, typing.Any]]] = {}
    each: dict[str, list[comparison.Each]] = {}
    total = len(family.variants) * len(seeds)
    first = next(iter(family.variants))
    for number, (name, seed) in enumerate(((n, s) for n in family.variants for s in seeds), start=1):
        config = configs.seeded(family.variants[name], seed)
        # Items or users that training does not meet are drawn by the seed; without such, baselines are the same.
        if name != first or (found and not config.data.drawn):
            config = configs.override(config, ["--evaluate.baselines", "false"])
        where = folder / name / f"seed-{seed}"
        say(f"\n[{number}/{total}] {name}, seed {seed}: {where}")
        done, beside = where / f"evaluation_{split}.json", where / f"each_{split}.npz"
        try:
            trained = fit(config, where)
        except NotFiniteError as error:
            failed.append(f"{name}, seed {seed}: {error}")
            each.setdefault(name, []).append({})
            say(f"without a result: {error}")
            continue
        result = _found(done)
        # Not of an earlier checkpoint, nor by other settings: somebody may have looked at a run that was not finished.
        now = {"step": trained["best_step"], "settings": findings.evaluated_by(config)}
        whole = (rerank is None or "model_second_stage" in result) and beside.is_file()
        if not whole or {name: result.get(name) for name in now} != now:
            if rerank is not None:
                rerank(where)
            result = evaluate(where, split, config)
        found.setdefault(name, []).append(result)
        each.setdefault(name, []).append(workdir.read_each(beside))
    without = Stopped(f"{len(failed)} of {total} runs are without a result: {'; '.join(failed)}")
    if not found:
        raise without
    rows = table(found)
    protocol = next(iter(found.values()))[0]["protocol"].partition(", checkpoint of step")[0]
    title = f"{family.base}, {split} split, seeds {', '.join(map(str, seeds))}: mean ± standard deviation over seeds"
    ahead = comparison.leads(each)
    told = "Leads, target by target, of means over seeds (95% bootstrap over users), and of each seed"
    say(f"\n{title}\n{protocol}\n\n{report.table(rows)}\n\n{told}\n{report.table(ahead)}")
    summary = {"base": family.base, "split": split, "seeds": list(seeds), "protocol": protocol, "table": rows}
    summary |= {"leads": ahead}
    with workdir.reporting(folder, elsewhere, summary):
        with report.replacing(folder / f"sweep_{split}.md") as temporary:
            tables = report.markdown_table(rows), f"{told}:", report.markdown_table(ahead)
            temporary.write_text("\n\n".join((title, protocol, *tables)) + "\n", encoding="utf-8")
        workdir.write_json(folder / f"sweep_{split}.json", summary | {"runs": found, "failed": failed})
    say(f"\ntable: {folder / f'sweep_{split}.md'}")
    if failed:
        raise without
    return summary


def _found(path: pathlib.Path) -> dict[str, typing.Any]:
    """An evaluation's JSON; {} where there is none, or none that is whole."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def table(found: dict[str, list[dict[str, typing.Any]]]) -> list[dict[str, str]]:
    """A row a variant, then a row each other system of the first variant's evaluations.

    The last column says what each goes by (`knowledge`): like is to be compared with like. Baselines may be known beside some
    of these alone, and are the same for all; what a model says must be known in each.
    """
    first = next(iter(found.values()))
    systems = dict.fromkeys(s for part in (first[0], *first[0]["slices"].values(), first[0]["shown"]) for s in part)
    told = lambda results, system: results[0].get("knows", {}).get(system, "")  # evaluations of before do not tell
    knows = lambda results, system: {"knows": text} if (text := told(results, system)) else {}
    rows = {name: _numbers(results, "model") | knows(results, "model") for name, results in found.items()}
    for system in (system for system in systems if system not in ("model", "model_scann")):
        baseline = not system.startswith("model")
        knowing = [result for result in first if not baseline or _numbers([result], system)]
        if knowing and (numbers := _numbers(knowing, system)):
            rows[f"{next(iter(found))}: {system}"] = numbers | knows(knowing, system)
    return [{"variant": name} | numbers for name, numbers in rows.items()]


def _numbers(results: list[dict[str, typing.Any]], system: str) -> dict[str, str]:
    """Each column's mean and spread over seeds, where the evaluations have it."""
    numbers = {}
    for heading, path in COLUMNS.items():
        where = [system if part == "SYSTEM" else part for part in path]
        values = [value for result in results if (value := _at(result, where)) is not None]
        if len(values) == len(results):
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            numbers[heading] = f"{statistics.fmean(values):.4f}{spread}"
    return numbers


def _at(tree: typing.Any, path: list[str]) -> float | None:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, (int, float)) else None
