"""What each command does: the one place where data pipelines and the library are put together.

Every command takes the parsed arguments and the settings that were left over, prints for people, and returns what
`--json` prints.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
import typing

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.feed import examples, feed, splits, windows
from data_pipelines.sources.prepare import locate, logs_folder
from data_pipelines.sources.prepare import prepare as prepare_log
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue
from synergen_jax.cli import ask, compile_cache
from synergen_jax.cli import bench as bench_commands
from synergen_jax.cli import data as data_commands
from synergen_jax.cli import plan as plan_commands
from synergen_jax.cli import sweep as sweep_commands
from synergen_jax.config import Config
from synergen_jax.errors import UserError, naming, writing
from synergen_jax.evaluation import baselines, findings, report
from synergen_jax.evaluation import protocol as evaluation
from synergen_jax.model import rope, synergen
from synergen_jax.processes import cluster, run_lock
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import train, workdir
from synergen_jax.training.checkpoint import Checkpoints
from synergen_jax.training.metric_log import FILE as METRICS


def say(text: str = "") -> None:
    """Prints at once, also into a pipe; of several processes the first alone does."""
    if cluster.first():
        print(text, flush=True)


def keep_compiled(arguments) -> None:
    """Lets a command find what an earlier one has compiled, in the data folder.

    Not where compiling is what is measured, nor on several processes: of these the first alone would write, and where they
    share no folder, it would load what the others still compile together.
    """
    compiles = arguments.command not in ("data", "bench", "plan")
    if compiles and not arguments.no_compile_cache and cluster.count() == 1:
        compile_cache.begin(logs_folder(arguments.data_dir).parent / "jax-cache")


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and its log, and what follows from both."""

    config: Config
    log: EventLog
    folder: pathlib.Path | None = None  # the workdir, which keeps the training counts: a large log takes long to count
    phase: rope.Phase | None = None  # an encoding of time and order of one's own, in place of `config.model.rope`

    @functools.cached_property
    def split(self):
        return splits.split(self.log, self.config.data)

    @functools.cached_property
    def training(self):
        """What is trained on: (log, split), without the cold items."""
        return splits.hold_out(self.log, self.split, self.config.data.cold_items, self.config.data.seed)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        sizes = self.log.spec.items, self.log.spec.queries
        if self.folder is not None and (counts := workdir.read_counts(self.folder, sizes, self.log.fingerprint)):
            return Catalogue(dict(self.log.item_matrices), dict(self.log.query_matrices), *counts)
        return examples.catalogue(*self.training)

    @functools.cached_property
    def model(self) -> synergen.SynerGen:
        return train.make_model(self.config, self.log.spec, self.phase)

    def resolved(self, pack: bool | None = None) -> Run:
        """The run with `data.pack` decided where it is "auto": as given, or by the lengths of the log's histories.

        What was read of the log does not depend on it, and is kept.
        """
        if self.config.data.pack != "auto":
            return self
        if pack is None:
            config = examples.resolved(self.config, self.training[1])
        else:
            config = dataclasses.replace(self.config, data=dataclasses.replace(self.config.data, pack=pack))
        run = dataclasses.replace(self, config=config)
        vars(run).update({name: found for name, found in vars(self).items() if name in ("split", "training")})
        return run

    def targets(self, part: str):
        return feed.evaluation_feed(self.log, self.split, part, self.config)


def data(arguments, _) -> dict[str, typing.Any]:
    """`synergen data ...`."""
    return data_commands.RUN[arguments.action](arguments, say)


def fit(arguments, settings) -> dict[str, typing.Any]:
    """`synergen train`."""
    with cluster.together():
        config = configs.load(arguments.config, settings)
        log = EventLog.load(locate(config.data.log, arguments.data_dir))
    cluster.same("config", repr(config))
    cluster.same("log", log.fingerprint)
    return fit_run(Run(config, log), arguments.workdir)


def fit_run(run: Run, folder: str | pathlib.Path) -> dict[str, typing.Any]:
    """Trains a run in a workdir, or goes on where that left off, as `synergen train` does; prints, and returns its JSON.

    Raises:
      UserError: wrong input, as everywhere; the folder belongs to another run, or another process trains in it.
    """
    folder = pathlib.Path(folder)
    phase = rope.describe(run.config.model, run.phase)
    with cluster.together():
        stored = str(workdir.packed(folder)) if cluster.first() else ""
    stored = cluster.everyone(stored)[0]  # others may not see the folder
    with cluster.together():
        run = run.resolved({"True": True, "False": False}.get(stored))
        mesh = device_mesh.make_mesh(run.config.mesh)
        device_mesh.micro_batches(run.config, mesh)  # refuses a batch that does not divide
        train.abstract_state(run.config, run.model, mesh)  # refuses a model that does not fit the mesh
        batches = feed.train_feed(*run.training, run.config, run.catalogue.counts, *device_mesh.block(mesh))
        targets = run.targets("validation")
        if cluster.first():  # once nothing is left to be refused
            workdir.check(folder, run.config, run.log.fingerprint, phase)
    with run_lock.alone(folder):
        return _fit(run, folder, mesh, batches, targets, phase)


def _fit(run: Run, folder: pathlib.Path, mesh: Mesh, batches, targets, phase: workdir.Phase) -> dict[str, typing.Any]:
    with cluster.together():
        if cluster.first():
            workdir.start(folder, run.config, run.log.path, run.log.fingerprint, phase)
            workdir.write_counts(folder, run.catalogue.counts, run.catalogue.query_counts, run.log.fingerprint)
    several = f", {cluster.count()} processes" if cluster.count() > 1 else ""
    fill = examples.row_fill(run.config.data, run.training[1])
    packing = f"{'' if run.config.data.pack else 'not '}packed ({fill:.0%} of a row a window)"
    say(
        f"train on {run.log.name}, mesh data {mesh.shape['data']} x model {mesh.shape['model']}{several}, {packing}, "
        f"workdir {folder}"
    )
    catalogue = place_catalogue(run.catalogue, mesh)
    validate = evaluation.validator(run.model, catalogue, targets)
    result = train.train(
        run.config,
        run.log.spec,
        catalogue,
        batches,
        folder,
        validate,
        say,
        run.log.fingerprint,
        run.phase,
    )
    if cluster.first():
        if (folder / METRICS).exists():
            with writing(folder / "curves.png"):
                report.plot_curves(folder / METRICS, folder / "curves.png")
        why = "no better validation" if result.stopped == "patience" else "all steps done"
        rate = f"; {result.events_per_second:,.0f} events a second" if result.events_per_second else ""
        say(
            f"stopped at step {result.step} ({why}); best validation {run.config.run.select} {result.best:.4f} at step "
            f"{result.best_step}{rate}"
        )
    return {
        "workdir": str(folder),
        "step": result.step,
        "best_step": result.best_step,
        f"validation_{run.config.run.select}": result.best,
        "stopped": result.stopped,
        "events_per_second": result.events_per_second,
    }


def load(
    folder: str | pathlib.Path, data_dir: str | pathlib.Path | None = None, phase: rope.Phase | None = None
) -> tuple[Run, synergen.Params]:
    """A run, and the parameters of its best checkpoint on the first device: what `recommender.Recommender` serves.

    Args:
      folder: a workdir of `synergen train`.
      data_dir: where logs lie, as `--data-dir`.
      phase: the function that the run was trained with, if that was not the built-in one.

    Raises:
      UserError: it is no workdir, has no checkpoint yet, its log is gone or another one, or it was trained with another
        config than its config.json has, or with another phase.
    """
    run, params, _, _ = _open(pathlib.Path(folder), [], data_dir, phase=phase)
    return run, params


def _open(
    folder: pathlib.Path, settings, data_dir, spread: bool = False, phase: rope.Phase | None = None
) -> tuple[Run, synergen.Params, int, Mesh]:
    """A finished or unfinished run, with the parameters of its best checkpoint, their step, and where they lie.

    Args:
      spread: over all devices of all processes, by the settings mesh.* or else each with all parameters; else on one.
    """
    with cluster.together():
        config, log = workdir.read(folder)
        # On what it was trained is another matter than on what it is evaluated.
        model = dataclasses.replace(config.model, attention="auto")
        trained_on = dataclasses.replace(config, model=model, mesh=configs.MeshConfig())
        changed = configs.override(trained_on, settings)
        free = ("evaluate.", "data.filter_seen", "mesh.")
        if odd := [name for name in configs.differences(trained_on, changed) if not name.startswith(free)]:
            raise UserError(
                f"{odd[0]} is fixed by training; settings of an evaluation are evaluate.*, mesh.* and data.filter_seen"
            )
        path = pathlib.Path(log["path"])
        there = data_dir is None and path.exists()
        log_found = EventLog.load(path if there else locate(config.data.log, data_dir))
        if log_found.fingerprint != log["fingerprint"]:
            raise UserError(
                f"{folder} was trained on another log than {log_found.path} now holds: prepare that log again"
            )
        workdir.refuse_other_phase(folder, workdir.read_phase(folder), rope.describe(config.model, phase))
        run = Run(dataclasses.replace(changed, mesh=config.mesh), log_found, folder, phase)
        mesh = device_mesh.make_mesh(changed.mesh, None if spread else jax.devices()[:1])
    cluster.same("config", repr(changed))
    with Checkpoints(folder / "checkpoints", keep=config.run.keep, say=say, read_only=True) as checkpoints:
        mine = train.identity(config, run.log.spec, run.log.fingerprint, phase)
        of = lambda saved: {} if saved["fingerprint"] else {"fingerprint": ""}  # who calls `train.train` may give none
        fits = lambda saved: train.refuse_others(folder, saved, mine | of(saved))
        found = checkpoints.restore(train.abstract_state(config, run.model, mesh), best=True, fits=fits)
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet: let `synergen train` write one")
    return run, found[0].served, int(found[0].step), mesh


def evaluate(arguments, settings) -> dict[str, typing.Any]:
    """`synergen evaluate`."""
    run, params, step, mesh = _open(arguments.workdir, settings, arguments.data_dir, spread=True)
    return _evaluate(run, params, step, mesh, arguments.split, arguments.out or arguments.workdir)


def evaluate_run(
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
    run, params, step, mesh = _open(folder, settings, data_dir, spread=True, phase=phase)
    return _evaluate(run, params, step, mesh, split, folder if out is None else pathlib.Path(out))


def _evaluate(
    run: Run, params: synergen.Params, step: int, mesh: Mesh, part: str, out: pathlib.Path
) -> dict[str, typing.Any]:
    """Evaluates a run, prints what is found, and writes it to `out`.

    Raises:
      UserError: nothing can be written there, which is told before the work.
      NotWritten: nor could it be after the work, as on a disk that is full by then. What was found is printed, and in it.
    """
    config, elsewhere = run.config, f"`synergen evaluate {run.folder} --out FOLDER` writes elsewhere"
    with cluster.together():
        if cluster.first():
            workdir.try_writing(out, elsewhere)
        targets = run.targets(part)
    others, left_out = _baselines(run) if cluster.first() else ({}, {})
    predictors, no_predictors = _predictors(run) if cluster.first() else ({}, {})
    rest = others, mesh, predictors, left_out | no_predictors
    found = evaluation.evaluate(
        run.model, params, run.catalogue, targets, config.evaluate, say, config.data.seed, *rest
    )
    if found is None:  # process 0 goes on
        return {}
    protocol = (
        f"{run.log.name}, {part} split ({config.data.split}), {found.targets:,} targets, full ranking over "
        f"{run.log.spec.items - 1:,} items, seen items {'filtered' if config.data.filter_seen else 'kept'}, metrics "
        f"expected over a random order of equal scores, checkpoint of step {step} chosen on validation {config.run.select}"
    )
    if config.evaluate.bootstrap:
        protocol += "; intervals are a 95% bootstrap over users"
    if found.unknown_targets:
        protocol += (
            f"; nothing is known of {found.unknown_targets:,} targets, neither a learned vector nor a row of a matrix that is used: "
            "they rank behind all known items"
        )
    if targets.repeated:
        protocol += f"; {targets.repeated:,} events with an item that the user already had are no targets"
    if config.data.cold_items:
        protocol += f"; {config.data.cold_items:.0%} of the items were held out of training"
    if run.log.query_note:
        protocol += f"; {run.log.query_note}"
    say(findings.text(found, protocol, config, run.log.spec.labels))
    about = {"split": part, "log": run.log.name, "step": step, "protocol": protocol}
    about["settings"] = sweep_commands.evaluated_by(config)
    result = about | findings.as_json(found)
    with workdir.reporting(out, elsewhere, result):
        workdir.write_json(out / f"evaluation_{part}.json", result)
        curves = None
        if (run.folder / METRICS).exists():
            report.plot_curves(run.folder / METRICS, curves := out / "curves.png")
        page = findings.sections(found, protocol, config, run.log.spec.labels, curves)
        report.html_page(f"SynerGen on {run.log.name}", page, out / f"report_{part}.html")
    say(f"\nreport: {out / f'report_{part}.html'}")
    return result


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


def recommend(arguments, _) -> dict[str, typing.Any]:
    """`synergen recommend`."""
    ask.check_count(arguments.k)
    run, params, *_ = _open(arguments.workdir, [], arguments.data_dir)
    return ask.ask(run, params, arguments)


def search(arguments, _) -> dict[str, typing.Any]:
    """`synergen search`."""
    ask.check_count(arguments.k)
    run, params, *_ = _open(arguments.workdir, [], arguments.data_dir)
    return ask.ask(run, params, arguments, arguments.query)


def sweep(arguments, settings) -> dict[str, typing.Any]:
    """`synergen sweep`."""

    def fit_one(config: Config, folder: pathlib.Path):
        return fit_run(Run(config, logs[config.data.log]), folder)

    def evaluate_one(folder: pathlib.Path, part: str):
        run, params, step, mesh = _open(folder, [], arguments.data_dir, spread=True)
        return _evaluate(run, params, step, mesh, part, folder)

    family = sweep_commands.load(arguments.family, settings)
    if unknown := [name for name in arguments.only if name not in family.variants]:
        raise UserError(f"--only {unknown[0]}: the family's variants are {', '.join(family.variants)}")
    if arguments.only:
        family = family._replace(variants={name: family.variants[name] for name in arguments.only})
    names = dict.fromkeys(config.data.log for config in family.variants.values())
    logs = {name: EventLog.load(locate(name, arguments.data_dir)) for name in names}
    for name, config in family.variants.items():  # what the log does not have is told before hours of training
        with naming(f"variant {name}"):
            train.make_model(config, logs[config.data.log].spec)
    return sweep_commands.sweep(family, arguments.seeds, arguments.workdir, arguments.split, fit_one, evaluate_one, say)


def bench(arguments, settings) -> dict[str, typing.Any]:
    """`synergen bench`."""
    return bench_commands.bench(arguments, settings, say)


def plan(arguments, settings) -> dict[str, typing.Any]:
    """`synergen plan`."""
    return plan_commands.plan(arguments, settings, say)


def _prepared(arguments) -> EventLog:
    """MovieLens-100K: a log that is there, whatever it was prepared with, unless a source is given; or made now."""
    if not arguments.source:
        try:
            return EventLog.load(locate("ml-100k", arguments.data_dir))
        except UserError:
            pass  # none, or a damaged one
    return prepare_log("ml-100k", source=arguments.source, data_dir=arguments.data_dir)


def quickstart(arguments, settings) -> dict[str, typing.Any]:
    """`synergen quickstart`."""
    start = time.perf_counter()
    marks = {}

    def step(number: int, text: str):
        say(f"{'' if number == 1 else chr(10)}[{number}/4] {text}")
        marks[number] = time.perf_counter() - start

    config = configs.load("quickstart", settings)
    if config.data.log != "ml-100k":
        raise UserError(
            f"quickstart is on ml-100k: `synergen train quickstart --data.log {config.data.log}` trains on that"
        )
    step(1, "prepare MovieLens-100K")
    log = _prepared(arguments)
    summary = log.summary()
    say(f"{summary['events']:,} events, {summary['users']:,} users, {summary['items']:,} items in {log.path}")
    run = Run(config, log)
    step(2, "train (some two minutes on two cores; interrupt it and run again: it goes on)")
    trained = fit_run(run, arguments.workdir)
    step(3, "evaluate on the test split")
    run, params, best, mesh = _open(arguments.workdir, [], arguments.data_dir)
    evaluated = _evaluate(run, params, best, mesh, "test", arguments.workdir)
    user = log.user_ids[int(np.argmin(np.abs(log.lengths - np.median(log.lengths))))]
    step(4, f"recommend to user {user}, one of middling activity")
    answer = ask.answer(run, params, log[log.find_user(user)], f"user {user}", 10)
    ratio = evaluated["model"]["hr@10"] / max(evaluated["most_popular"]["hr@10"], 1e-9)
    say(
        f"\ndone in {time.perf_counter() - start:.0f} s: test HR@10 {evaluated['model']['hr@10']:.4f}, {ratio:.1f} times "
        f"most popular's\n  event log   {log.path}\n  run         {arguments.workdir} (config.json, checkpoints, metrics.jsonl, tensorboard)\n"
        f"  report      {arguments.workdir / 'report_test.html'}\n  next        synergen recommend {arguments.workdir} --user {user} -k 20"
    )
    return {"train": trained, "evaluate": evaluated, "recommend": answer, "seconds": time.perf_counter() - start}


RUN = {
    "quickstart": quickstart,
    "data": data,
    "train": fit,
    "evaluate": evaluate,
    "recommend": recommend,
    "search": search,
    "sweep": sweep,
    "bench": bench,
    "plan": plan,
}
