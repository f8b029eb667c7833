"""Evaluates a trained run beside its baselines, and writes the reports: what `synergen evaluate` does."""

from __future__ import annotations

import pathlib
import typing

from data_pipelines.feed import examples, windows
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, findings, protocol, report
from synergen_jax.model import rope
from synergen_jax.processes import cluster
from synergen_jax.runs import workdir
from synergen_jax.runs.run import Opened, Run, open_run
from synergen_jax.training.metric_log import FILE as METRICS


def evaluate(
    folder: str | pathlib.Path,
    split: str = "test",
    settings: typing.Sequence[str] = (),
    data_dir: str | pathlib.Path | None = None,
    phase: rope.Phase | None = None,
    out: str | pathlib.Path | None = None,
) -> dict[str, typing.Any]:
    """Evaluates a run as `synergen evaluate` does: prints, writes its reports, and returns its JSON.

    Args:
      split: "validation" or "test".
      settings: command-line words, such as `["--evaluate.scann", "false"]`.
      data_dir, phase: as in `load`.
      out: where the reports go; None: the run's folder.

    Raises:
      UserError: as `load`, or nothing can be written there.
      NotWritten: nothing could be written after the work; what was found is in it.
    """
    if split not in ("validation", "test"):
        raise UserError(f"split {split!r} must be validation or test")
    folder = pathlib.Path(folder)
    opened = open_run(folder, settings, data_dir, spread=True, phase=phase)
    return evaluate_open(opened, split, folder if out is None else pathlib.Path(out))


def evaluate_open(opened: Opened, part: str, out: pathlib.Path) -> dict[str, typing.Any]:
    """Evaluates a run that is open, prints what is found, and writes it to `out`.

    Raises:
      UserError: nothing can be written there, which is told before the work.
      NotWritten: nor could it be after the work, as on a disk that is full by then. What was found is printed, and in it.
    """
    run, config = opened.run, opened.run.config
    elsewhere = f"`synergen evaluate {opened.folder} --out FOLDER` writes elsewhere"
    with cluster.together():
        if cluster.first():
            workdir.try_writing(out, elsewhere)
        targets = run.targets(part)
    others, left_out = _baselines(run) if cluster.first() else ({}, {})
    predictors, no_predictors = _predictors(run) if cluster.first() else ({}, {})
    found = protocol.evaluate(
        run.model,
        opened.params,
        run.catalogue,
        targets,
        config.evaluate,
        cluster.say,
        config.data.seed,
        others,
        opened.mesh,
        predictors,
        left_out | no_predictors,
    )
    if found is None:  # process 0 goes on
        return {}
    stated = _stated(opened, part, found, targets.repeated)
    cluster.say(findings.text(found, stated, config, run.log.spec.labels))
    about = {"split": part, "log": run.log.name, "step": opened.step, "protocol": stated}
    result = about | {"settings": findings.evaluated_by(config)} | findings.as_json(found)
    with workdir.reporting(out, elsewhere, result):
        workdir.write_json(out / f"evaluation_{part}.json", result)
        curves = None
        if (opened.folder / METRICS).exists():
            report.plot_curves(opened.folder / METRICS, curves := out / "curves.png")
        page = findings.sections(found, stated, config, run.log.spec.labels, curves)
        report.html_page(f"SynerGen on {run.log.name}", page, out / f"report_{part}.html")
    cluster.say(f"\nreport: {out / f'report_{part}.html'}")
    return result


def _stated(opened: Opened, part: str, found: protocol.Report, repeated: int) -> str:
    """The protocol in words, as it stands above every table."""
    run, config, step = opened.run, opened.run.config, opened.step
    stated = (
        f"{run.log.name}, {part} split ({config.data.split}), {found.targets:,} targets, full ranking over "
        f"{run.log.spec.items - 1:,} items, seen items {'filtered' if config.data.filter_seen else 'kept'}, metrics "
        f"expected over a random order of equal scores, checkpoint of step {step} chosen on validation {config.run.select}"
    )
    if config.evaluate.bootstrap:
        stated += "; intervals are a 95% bootstrap over users"
    if found.unknown_targets:
        stated += (
            f"; nothing is known of {found.unknown_targets:,} targets, neither a learned vector nor a row of a matrix that is used: "
            "they rank behind all known items"
        )
    if repeated:
        stated += f"; {repeated:,} events with an item that the user already had are no targets"
    if config.data.cold_items:
        stated += f"; {config.data.cold_items:.0%} of the items were held out of training"
    if run.log.query_note:
        stated += f"; {run.log.query_note}"
    return stated


def _baselines(run: Run) -> tuple[dict[str, baselines.Scorer], dict[str, str]]:
    """Baselines by name, and those that the log has not what it takes for, each with the reason."""
    config, others, left_out = run.config, {}, {}
    if (counts := examples.recent_counts(*run.training)).any():
        others["most_recent"] = baselines.fixed(counts)
    else:
        left_out["most_recent"] = "none of the newest events of training has an item"
    if config.data.cold_items:
        others["random"] = baselines.random(run.log.spec.items, config.data.seed)
    if len(run.log.queries) > 1:
        try:
            others["bm25"] = baselines.bm25(run.log.item_texts, run.log.queries)
        except UserError as error:
            only_ids = run.log.item_texts == run.log.item_ids  # which stand in for texts where there are none
            left_out["bm25"] = "the items have no texts" if only_ids else str(error)
    return others, left_out


def _predictors(run: Run) -> tuple[dict[str, baselines.Predictor], dict[str, str]]:
    """As `_baselines`, of labels such as "like"; none where a log ranks whether an item is chosen, and no more."""
    if len(run.log.labels) < 2:
        return {}, {}
    log, split = run.training
    user, item, label = windows.labelled(log, split.train_stop)
    if (label[:, 1:] == label[:1, 1:]).all():
        return {}, {"user_item_mean": "each label is the same in all events of training"}
    return {"user_item_mean": baselines.user_item_mean(user, item, label, (len(run.log), run.log.spec.items))}, {}
