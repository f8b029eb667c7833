"""One or more ladders, put together for people: what was run, tables, and pictures."""

from __future__ import annotations

import collections.abc
import json
import pathlib
import typing

import plots
import results
import runs

from synergen_jax.errors import UserError
from synergen_jax.evaluation import report


def write(folders: collections.abc.Sequence[pathlib.Path], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes OUT.md and, where there is something to draw, OUT_curves.png, OUT_ladder.png and OUT_slices.png.

    Raises:
      UserError: a folder holds no ladder, or nothing finished; or they are of different logs, families or settings, or have the same run twice.
    """
    plans, entries = _gathered(folders)
    asked = list(dict.fromkeys((variant, seed) for plan in plans for variant, seed in plan["asked"]))
    ladder = results.Ladder.of(entries, plans[0]["variants"])
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


def _gathered(
    folders: collections.abc.Sequence[pathlib.Path],
) -> tuple[list[dict[str, typing.Any]], list[results.Entry]]:
    """The plans and the finished runs of all folders."""
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


def _about(plans, entries: list[results.Entry], ladder: results.Ladder, asked: list[tuple[str, int]]) -> list[str]:
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
    minutes = sum(entry["seconds"]["all"] for entry in entries) / 60
    parts.append(
        f"{some(e['device'] for e in entries)}; jax {some(e['versions']['jax'] for e in entries)}; commit "
        f"{some(e['commit'] or 'unknown' for e in entries)}; {len(entries)} runs, {minutes:.1f} minutes in all."
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
    if missing := _missing(entries, asked):
        parts.append(f"**Partial evidence**: {'; '.join(missing)}.")
    if ladder.failed:
        names = [f"{entry['variant']}, seed {entry['seed']}" for entry in ladder.failed]
        parts.append(f"**Not finite**, and so without results: {'; '.join(names)}.")
    return parts


def _missing(entries: list[results.Entry], asked: list[tuple[str, int]]) -> list[str]:
    """What was asked for and is not finished, in words."""
    done = {(entry["variant"], entry["seed"]) for entry in entries}
    wanted: dict[str, list[bool]] = {}
    for name, seed in asked:
        wanted.setdefault(name, []).append((name, seed) in done)
    missing = [
        f"{name} has {sum(found)} of {len(found)} seeds" for name, found in wanted.items() if any(found) != all(found)
    ]
    if none := [name for name, found in wanted.items() if not any(found)]:
        missing.append(f"not run: {', '.join(none)}")
    return missing


def _tables(ladder: results.Ladder) -> list[str]:
    changes = [
        {
            "variant": name,
            "changes": ", ".join(f"{k} = {json.dumps(v)}" for k, v in run["changes"].items()) or "nothing",
        }
        for name, seeds in ladder.variants.items()
        for run in list(seeds.values())[:1]
    ]
    parts = [report.markdown_table(results.rows(ladder)), "What each variant changes in the base config:"]
    parts.append(report.markdown_table(changes))
    for title, found in (
        ("Ranking of sampled candidates, or of the lists that were shown, by label", results.ranking_rows(ladder)),
        ("The items retrieved first, as the ranking head orders them", results.reranked_rows(ladder)),
        ("The recipe by slice", results.slice_rows(ladder.recipe)),
    ):
        if found:
            parts += [f"## {title}", report.markdown_table(found)]
    return parts
