"""What an evaluation found: as text for a terminal, as JSON for programs, as sections of a page."""

from __future__ import annotations

import html
import json
import pathlib
import typing

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.evaluation import report, slices
from synergen_jax.evaluation.protocol import Report

COLUMNS = ("hr@1", "hr@5", "hr@10", "hr@50", "hr@200", "ndcg@5", "ndcg@10", "ndcg@50", "ndcg@200", "mrr")

Cutoffs = typing.Sequence[int]
Rows = list[dict[str, typing.Any]]


def text(found: Report, protocol: str, config: Config, labels: tuple[str, ...]) -> str:
    """Tables for people, under the protocol."""
    k = config.evaluate.k
    rows, best = _retrieval(found, k), [name for name in columns(k) if name in found.values["model"]]
    parts = [protocol, f"retrieval\n{report.table(rows, highlight=best)}"]
    if "hr@10" in found.intervals["model"]:
        bounds = [(f"{m}@{at}", found.intervals["model"][f"{m}@{at}"]) for at in k or (10,) for m in ("hr", "ndcg")]
        told = ", ".join(f"{name.upper()} [{low:.4f}, {high:.4f}]" for name, (low, high) in bounds)
        parts[-1] += f"\n95% bootstrap over users, of the model: {told}"
    parts.append(f"the model's lead, target by target\n{report.table(_leads(found))}")
    parts.append(f"retrieval by slice\n{report.table(_slices(found, k))}")
    parts.append(
        f"ranking of {config.evaluate.rank_candidates} candidates a target\n{report.table(_ranking(found, labels, k))}"
    )
    if found.shown:
        rows = [{name: v["mean"] if isinstance(v, dict) else v for name, v in row.items()} for row in _shown(found, k)]
        best = [name for name in rows[0] if name not in ("system", "knows")]
        parts.append(
            f"ranking within the list that was shown, {found.lists:,} lists\n{report.table(rows, highlight=best)}"
        )
    if found.scann:
        parts.append(f"approximate search (ScaNN) against exact\n{report.table([found.scann])}")
    return "\n" + "\n\n".join(parts)


def as_json(found: Report) -> dict[str, typing.Any]:
    """Everything that was found; each system's metrics stand under its name."""
    return {
        "targets": found.targets,
        **found.values,
        "intervals": found.intervals,
        "slices": found.slices,
        "scann": found.scann,
        "shown": found.shown,
        "lists": found.lists,
        "leads": found.leads,
        "unknown_targets": found.unknown_targets,
        "left_out": found.left_out,
        "slice_leads": found.slice_leads,
        "knows": found.knows,
    } | ({"asked_leads": found.asked_leads} if found.asked_leads else {})


def sections(
    found: Report, protocol: str, config: Config, labels: tuple[str, ...], curves: pathlib.Path | None
) -> list[tuple[str, str | pathlib.Path]]:
    """Headings and contents for `report.html_page`."""
    k = config.evaluate.k
    intervals = [
        {"metric": name}
        | {
            system: {"mean": found.values[system][name], "low": bounds[name][0], "high": bounds[name][1]}
            for system, bounds in found.intervals.items()
            if name in bounds
        }
        for name in columns(k)
    ]
    best = [name for name in columns(k) if name in found.values["model"]]
    page: list[tuple[str, str | pathlib.Path]] = [
        ("Protocol", report.Html(f"<p>{html.escape(protocol)}</p>")),
        ("Retrieval", report.html_table(_retrieval(found, k), highlight=best)),
        ("95% bootstrap over users", report.html_table(intervals)),
        ("The model's lead, target by target", report.html_table(_leads(found))),
        ("Retrieval by slice", report.html_table(_slices(found, k))),
        ("Ranking", report.html_table(_ranking(found, labels, k))),
    ]
    if found.shown:
        page.append(("Ranking within the list that was shown", report.html_table(_shown(found, k))))
    if found.scann:
        page.append(("Approximate search", report.html_table([found.scann])))
    if found.left_out:
        why = [{"system": system, "why": reason} for system, reason in found.left_out.items()]
        page.append(("Left out", report.html_table(why)))
    if curves:
        page.append(("Training", curves))
    return [*page, ("Config", json.dumps(configs.to_dict(config), indent=2))]


def columns(asked: Cutoffs) -> tuple[str, ...]:
    """Metrics of retrieval that are shown: those at the cut-offs that were asked for, or else the usual ones."""
    if not asked:
        return COLUMNS
    return (*(f"hr@{k}" for k in asked), *(f"ndcg@{k}" for k in asked), "mrr")


def _wanted(values: dict[str, typing.Any], asked: Cutoffs) -> dict[str, typing.Any]:
    """Those of a system's metrics that are shown where cut-offs were asked for; all where none were."""
    cut = {f"{metric}@{k}" for metric in ("hr", "ndcg", "list_ndcg") for k in asked}
    keeps = lambda name: not asked or name in cut or not name.startswith(("hr@", "ndcg@", "list_ndcg@"))
    return {name: value for name, value in values.items() if keeps(name)}


def _retrieval(found: Report, asked: Cutoffs) -> Rows:
    shown = columns(asked)
    return [
        {"system": system} | {name: values[name] for name in shown if name in values} | {"knows": found.knows[system]}
        for system, values in found.values.items()
        if any(name.startswith("hr@") for name in values)
    ]


def _leads(found: Report) -> Rows:
    """Over all targets, or lists, by metric; and in the other slices in which leads are told."""
    told = found.asked_leads or {"ndcg@10": found.slice_leads}
    every = [("all", metric, by_slice["all"]) for metric, by_slice in told.items()]
    every += [("all", metric, leads) for metric, leads in found.leads.items() if metric != "ndcg@10"]
    every += [
        (name, metric, leads) for metric, by_slice in told.items() for name, leads in by_slice.items() if name != "all"
    ]
    return [
        {"slice": name, "metric": metric, "over": system, "lead": lead}
        for name, metric, leads in every
        for system, lead in leads.items()
    ]


def _slices(found: Report, asked: Cutoffs) -> Rows:
    """Every system in tasks and in slices of searches, and the model beside simple baselines in the others."""
    tasks, few = ("search", "recommendation", *slices.OF_SEARCHES), ("model", "most_popular", "random")
    return [
        {"slice": name, "targets": f"{values['targets']:,}", "system": system} | _wanted(measured, asked)
        for name, values in found.slices.items()
        for system, measured in values.items()
        if name != "all" and system != "targets" and (name in tasks or system in few)
    ]


def _ranking(found: Report, labels: tuple[str, ...], asked: Cutoffs) -> Rows:
    rows = []
    for label in labels:
        for system, values in found.values.items():
            own = {key.partition("/")[0]: value for key, value in values.items() if key.partition("/")[2] == label}
            rows += [{"label": label, "system": system} | _wanted(own, asked)] if own else []
    return rows


def _shown(found: Report, asked: Cutoffs) -> Rows:
    return [
        {"system": system} | _wanted(values, asked) | {"knows": found.knows[system]}
        for system, values in found.shown.items()
    ]


def evaluated_by(config: Config) -> dict[str, typing.Any]:
    """The settings that an evaluation depends on and `synergen evaluate` may change; part of its JSON."""
    # Evaluations from when ties counted against the model, or targets were resampled one by one, are other ones.
    own = {"filter_seen": config.data.filter_seen, "ties": "expected", "resampled": "users"}
    told = configs.to_dict(config)["evaluate"] | own
    return told if config.evaluate.k else {name: value for name, value in told.items() if name != "k"}
