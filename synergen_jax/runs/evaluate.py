"""Evaluates a trained run beside its baselines, and writes the reports: what `synergen evaluate` does."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import typing

import numpy as np
import scipy.sparse

from data_pipelines.feed import examples, windows
from synergen_jax.errors import UserError
from synergen_jax.evaluation import (
    baselines,
    feature_regression,
    findings,
    neighbours,
    protocol,
    query_counts,
    report,
)
from synergen_jax.model import rope
from synergen_jax.processes import cluster
from synergen_jax.runs import own_slices, rerank, workdir
from synergen_jax.runs import per_user as by_target
from synergen_jax.runs.run import Opened, Run, open_run
from synergen_jax.training.metric_log import FILE as METRICS


def evaluate(
    folder: str | pathlib.Path,
    split: str = "test",
    settings: typing.Sequence[str] = (),
    data_dir: str | pathlib.Path | None = None,
    phase: rope.Phase | None = None,
    out: str | pathlib.Path | None = None,
    per_user: str | pathlib.Path | None = None,
    slice_by: typing.Sequence[str | pathlib.Path] = (),
    log: str | pathlib.Path | None = None,
) -> dict[str, typing.Any]:
    """Evaluates a run as `synergen evaluate` does: prints, writes its reports, and returns its JSON.

    Args:
      split: "validation" or "test".
      settings: command-line words, such as `["--evaluate.scann", "false"]`.
      data_dir, phase: as in `load`.
      out: where the reports go; None: the run's folder.
      per_user: a .parquet file that gets a row a target; None: none is written.
      slice_by: tables with a column `item` or `user`, by whose further columns the targets are cut, too.
      log: a version that goes on from the run's, such as `shop@3`; None: the one that it was trained on. A run that was
        trained on all events is measured on what came since.

    Raises:
      UserError: as `load`, nothing can be written there, or a table of `slice_by` is refused.
      NotWritten: nothing could be written after the work; what was found is in it.
    """
    if split not in ("validation", "test"):
        raise UserError(f"split {split!r} must be validation or test")
    folder = pathlib.Path(folder)
    opened = open_run(folder, settings, data_dir, spread=True, phase=phase, log=log)
    tables = [pathlib.Path(path) for path in slice_by]
    file = None if per_user is None else pathlib.Path(per_user)
    return evaluate_open(opened, split, folder if out is None else pathlib.Path(out), file, tables)


def evaluate_open(
    opened: Opened,
    part: str,
    out: pathlib.Path,
    each: pathlib.Path | None = None,
    slice_by: typing.Sequence[pathlib.Path] = (),
) -> dict[str, typing.Any]:
    """Evaluates a run that is open, prints what is found, and writes it to `out`, and target by target to `each`.

    Args:
      each: as `per_user` of `evaluate`; slice_by: as there.

    Raises:
      UserError: nothing can be written there, or a table is refused, which is told before the work.
      NotWritten: nor could it be after the work, as on a disk that is full by then. What was found is printed, and in it.
    """
    run, config = opened.run, opened.run.config
    run.refuse_unmeasured(str(opened.folder))
    elsewhere = f"`synergen evaluate {opened.folder} --out FOLDER` writes elsewhere"
    own: list[own_slices.Column] = []
    with cluster.together():
        if cluster.first():
            workdir.try_writing(out, elsewhere)
            if each is not None:
                by_target.check(each)
            own = own_slices.read(slice_by, run.log)
        targets = run.targets(part)
    beside = _Beside()
    if cluster.first() and config.evaluate.baselines:
        beside = _baselines(run)
    elif not config.evaluate.baselines:
        beside.leave_out("evaluate.baselines is false", "what is beside popularity")
    second = None
    if not (opened.folder / rerank.FOLDER).is_dir():
        beside.leave_out("none was fitted (`synergen rerank`)", "model_second_stage")
    elif part == rerank.PART:
        beside.leave_out(f"it was fitted on the {part} part", "model_second_stage")
    elif cluster.count() > 1:
        beside.leave_out("several processes evaluate", "model_second_stage")
    else:
        second = rerank.second_stage(opened)
    found = protocol.evaluate(
        run.model,
        opened.params,
        run.catalogue,
        targets,
        config.evaluate,
        cluster.say,
        config.data.seed,
        beside.scorers,
        opened.mesh,
        beside.predictors,
        beside.left_out,
        beside.lists,
        beside.pairs,
        second,
        functools.partial(own_slices.masks, own),
    )
    if found is None:  # process 0 goes on
        return {}
    stated = _stated(opened, part, found, targets.repeated)
    cluster.say(findings.text(found, stated, config, run.log.spec.labels))
    about = {"split": part, "log": run.log.name, "step": opened.step, "protocol": stated}
    result = about | {"settings": findings.evaluated_by(config)} | findings.as_json(found)
    with workdir.reporting(out, elsewhere, result):
        workdir.write_each(out / f"each_{part}.npz", found.each)
        workdir.write_json(out / f"evaluation_{part}.json", result)
        curves = None
        if (opened.folder / METRICS).exists():
            report.plot_curves(opened.folder / METRICS, curves := out / "curves.png")
        page = findings.sections(found, stated, config, run.log.spec.labels, curves)
        report.html_page(f"SynerGen on {run.log.name}", page, out / f"report_{part}.html")
    cluster.say(f"\nreport: {out / f'report_{part}.html'}")
    if each is not None:
        with workdir.reporting(each.parent, by_target.INSTEAD, result):
            by_target.write(each, found, run.log, config.evaluate.k)
        cluster.say(f"a row a target: {each}")
    return result


def _stated(opened: Opened, part: str, found: protocol.Report, repeated: int) -> str:
    """The protocol in words, as it stands above every table."""
    run, config, step = opened.run, opened.run.config, opened.step
    stated = (
        f"{run.log.name}, {part} split ({config.data.split}), {found.targets:,} targets, full ranking over "
        f"{run.log.spec.items - 1:,} items, seen items {'filtered' if config.data.filter_seen else 'kept'}, metrics "
        f"expected over a random order of equal scores, checkpoint of step {step} chosen on validation {config.run.select}"
    )
    if run.trained_on is not None:
        stated += (
            f"; trained on version {run.trained_on.version} of the log and measured on version {run.log.version}, whose training "
            "part the baselines count"
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


@dataclasses.dataclass
class _Beside:
    """What is ranked beside the model, by name."""

    scorers: dict[str, baselines.Scorer] = dataclasses.field(default_factory=dict)
    predictors: dict[str, baselines.Predictor] = dataclasses.field(default_factory=dict)
    lists: dict[str, baselines.ListScorer] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # what the log has not what it takes for -> why
    pairs: scipy.sparse.csr_array | None = None  # training counts of (query, item)

    def leave_out(self, reason: str, *names: str) -> None:
        self.left_out |= dict.fromkeys(names, reason)


def _baselines(run: Run) -> _Beside:
    """The baselines of whoever has such a log."""
    config, counts, found = run.config, np.asarray(run.catalogue.counts), _Beside()
    if (recent := examples.recent_counts(*run.training)).any():
        found.scorers["most_recent"] = baselines.fixed(recent)
    else:
        found.leave_out("none of the newest events of training has an item", "most_recent")
    if config.data.cold_items:
        found.scorers["random"] = baselines.random(run.log.spec.items, config.data.seed)
    if config.data.filter_seen:
        found.leave_out("items that were seen are filtered (data.filter_seen)", "last_seen_first")
    else:
        found.scorers["last_seen_first"] = baselines.last_seen(counts)
    log, split = run.training
    user, item, query = windows.trained(log, split.train_stop, "query")
    near = None
    if config.evaluate.neighbours > 0:
        matrix = neighbours.user_items(user, item, (len(run.log), run.log.spec.items))
        near = neighbours.UserNeighbours(matrix, config.evaluate.neighbours)
        found.scorers["user_knn"] = neighbours.user_knn(near, counts)
        found.scorers["item_knn"] = neighbours.item_knn(matrix, counts)
    else:
        found.leave_out(
            f"evaluate.neighbours is {config.evaluate.neighbours}",
            "user_knn",
            "item_knn",
            "query_user_knn",
            "lookup_user_knn",
        )
    _add_searches(found, run, query, item, near)
    _add_labels(found, run)
    _add_features(found, run)
    return found


def _add_searches(
    found: _Beside, run: Run, query: np.ndarray, item: np.ndarray, near: neighbours.UserNeighbours | None
) -> None:
    """Adds what answers searches; `query` and `item` are those of the training events."""
    counts, spec = np.asarray(run.catalogue.counts), run.log.spec
    by_user = ["query_user_knn", "lookup_user_knn"] if near else []
    counted = ["popular_for_query", "query_lookup", *by_user]
    if len(run.log.queries) < 2:
        return found.leave_out("the log has no queries", "bm25", *counted)
    words = None
    try:
        words = found.scorers["bm25"] = baselines.bm25(run.log.item_texts, run.log.queries)
    except UserError as error:
        only_ids = run.log.item_texts == run.log.item_ids  # which stand in for texts where there are none
        found.leave_out("the items have no texts" if only_ids else str(error), "bm25", "query_lookup", *by_user[1:])
    found.pairs = query_counts.pair_counts(query, item, (spec.queries, spec.items))
    if not found.pairs.nnz:
        return found.leave_out("no training event has both a query and an item", *counted)
    found.scorers["popular_for_query"] = query_counts.popular_for_query(found.pairs, counts)
    if words:
        found.scorers["query_lookup"] = query_counts.query_lookup(found.pairs, counts, words)
    if near:
        found.scorers["query_user_knn"] = neighbours.query_user_knn(found.pairs, near, counts)
    if near and words:
        found.scorers["lookup_user_knn"] = neighbours.query_user_knn(found.pairs, near, counts, words)


def _add_labels(found: _Beside, run: Run) -> None:
    """Adds what predicts labels such as "like"; nothing where a log ranks whether an item is chosen, and no more."""
    if len(run.log.labels) < 2:
        return
    log, split = run.training
    user, item, label = windows.labelled(log, split.train_stop)
    if (label[:, 1:] == label[:1, 1:]).all():
        return found.leave_out("each label is the same in all events of training", "user_item_mean")
    sizes = len(run.log), run.log.spec.items
    found.predictors["user_item_mean"] = baselines.user_item_mean(user, item, label, sizes)


def _add_features(found: _Beside, run: Run) -> None:
    """Adds what goes by the features of candidates alone."""
    name, (log, split) = "feature_regression", run.training
    if not run.log.spec.candidate_features:
        return found.leave_out("the log has no candidate features", name)
    lists = windows.training_lists(log, split.train_stop, run.config.data.target_actions)
    try:
        fitted = feature_regression.FeatureRegression.fit(*lists)
    except UserError as error:
        return found.leave_out(str(error), name)
    found.lists[name], found.predictors[name] = fitted.within_lists, fitted.predict
