"""What each command does: the one place where data pipelines and the library are put together.

Every command takes the parsed arguments and the settings that were left over, prints for people, and returns what
`--json` prints.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import pathlib
import time
import typing

import jax
import numpy as np

from data_pipelines import feed, history, splits
from data_pipelines.event_log import EventLog
from data_pipelines.prepare import locate
from data_pipelines.prepare import prepare as prepare_log
from synergen_jax import config as configs
from synergen_jax import data_commands, report, sharding, train, workdir
from synergen_jax import evaluate as evaluation
from synergen_jax import model as models
from synergen_jax.batch import Catalogue
from synergen_jax.checkpoint import Checkpoints
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.logs import FILE as METRICS
from synergen_jax.recommender import Recommender

COLUMNS = ("hr@1", "hr@5", "hr@10", "hr@50", "hr@200", "ndcg@5", "ndcg@10", "ndcg@50", "ndcg@200", "mrr")


def say(text: str = "") -> None:
    """Prints at once, also into a pipe."""
    print(text, flush=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and its log, and what follows from both."""

    config: Config
    log: EventLog

    @functools.cached_property
    def split(self):
        return splits.split(self.log, self.config.data)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        return feed.catalogue(self.log, self.split)

    @functools.cached_property
    def model(self) -> models.SynerGen:
        return train.make_model(self.config, self.log.spec)

    def targets(self, part: str):
        return feed.evaluation_feed(self.log, self.split, part, self.config)


def data(arguments, _) -> dict[str, typing.Any]:
    """`synergen data ...`."""
    return data_commands.RUN[arguments.action](arguments, say)


def fit(arguments, settings) -> dict[str, typing.Any]:
    """`synergen train`."""
    config = configs.load(arguments.config, settings)
    log = EventLog.load(locate(config.data.log, arguments.data_dir))
    return _fit(Run(config, log), arguments.workdir)


def _fit(run: Run, folder: pathlib.Path) -> dict[str, typing.Any]:
    sharding.check_batch(
        run.config.data.batch, run.config.optimiser.accumulate, mesh := sharding.make_mesh(run.config.mesh)
    )
    split = run.split
    workdir.start(folder, run.config, run.log.path, run.log.fingerprint)
    say(f"train on {run.log.name}, mesh data {mesh.shape['data']} x model {mesh.shape['model']}, workdir {folder}")
    result = train.train(
        run.config,
        run.log.spec,
        run.catalogue,
        feed.train_feed(run.log, split, run.config),
        folder,
        evaluation.validator(run.model, run.catalogue, run.targets("validation")),
        say,
        run.log.fingerprint,
    )
    if result.events_per_second:
        report.plot_curves(folder / METRICS, folder / "curves.png")
        why = "no better validation" if result.stopped == "patience" else "all steps done"
        say(
            f"stopped at step {result.step} ({why}); best validation NDCG@10 {result.best:.4f} at step "
            f"{result.best_step}; {result.events_per_second:,.0f} events a second"
        )
    return {
        "workdir": str(folder),
        "step": result.step,
        "best_step": result.best_step,
        "validation_ndcg@10": result.best,
        "stopped": result.stopped,
        "events_per_second": result.events_per_second,
    }


def _open(folder: pathlib.Path, settings, data_dir) -> tuple[Run, models.Params, int]:
    """A finished or unfinished run, with the parameters of its best checkpoint and their step."""
    config, log = workdir.read(folder)
    changed = configs.override(config, settings)
    odd = [
        name for name in configs.differences(config, changed) if not name.startswith(("evaluate.", "data.filter_seen"))
    ]
    if odd:
        raise UserError(f"{odd[0]} is fixed by training; settings of an evaluation are evaluate.* and data.filter_seen")
    path = pathlib.Path(log["path"])
    log_found = EventLog.load(path if path.exists() else locate(config.data.log, data_dir))
    if log_found.fingerprint != log["fingerprint"]:
        raise UserError(f"{folder} was trained on another log than {log_found.path} now holds: prepare that log again")
    run = Run(changed, log_found)
    mesh = sharding.make_mesh(configs.MeshConfig(1, 1), jax.devices()[:1])
    with Checkpoints(folder / "checkpoints", keep=config.run.keep, say=say, read_only=True) as checkpoints:
        found = checkpoints.restore(train.abstract_state(config, run.model, mesh), best=True)
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet: let `synergen train` write one")
    return run, found[0].params, int(found[0].step)


def evaluate(arguments, settings) -> dict[str, typing.Any]:
    """`synergen evaluate`."""
    run, params, step = _open(arguments.workdir, settings, arguments.data_dir)
    return _evaluate(run, params, step, arguments.workdir, arguments.split)


def _evaluate(run: Run, params: models.Params, step: int, folder: pathlib.Path, part: str) -> dict[str, typing.Any]:
    config = run.config
    targets = run.targets(part)
    found = evaluation.evaluate(run.model, params, run.catalogue, targets, config.evaluate, say, config.data.seed)
    protocol = (
        f"{run.log.name}, {part} split ({config.data.split}), {found.targets:,} targets, full ranking over "
        f"{run.log.spec.items - 1:,} items, seen items {'filtered' if config.data.filter_seen else 'kept'}, ties count "
        f"against the model, checkpoint of step {step} chosen on validation NDCG@10"
    )
    if targets.repeated:
        protocol += f"; {targets.repeated:,} events with an item that the user already had are no targets"
    rows = [
        {"system": system} | {name: values[name] for name in COLUMNS if name in values}
        for system, values in found.values.items()
    ]
    labels = [
        {"label": label, "system": system}
        | {
            name: value
            for key, value in values.items()
            if "/" in key
            for name, _, of in [key.partition("/")]
            if of == label
        }
        for label in run.log.spec.labels
        for system, values in found.values.items()
        if any(key.endswith(f"/{label}") for key in values)
    ]
    intervals = [
        {"metric": name}
        | {
            system: {"mean": found.values[system][name], "low": bounds[name][0], "high": bounds[name][1]}
            for system, bounds in found.intervals.items()
            if name in bounds
        }
        for name in COLUMNS
    ]
    say(f"\n{protocol}\n\nretrieval\n{report.table(rows, highlight=[c for c in COLUMNS if c in rows[0]])}")
    wide = config.evaluate.bootstrap and found.intervals["model"].get("hr@10")
    if wide:
        low, high = found.intervals["model"]["ndcg@10"]
        say(f"95% intervals of the model: HR@10 [{wide[0]:.4f}, {wide[1]:.4f}], NDCG@10 [{low:.4f}, {high:.4f}]")
    say(f"\nranking of {config.evaluate.rank_candidates} candidates a target\n{report.table(labels)}")
    if found.scann:
        say(f"\napproximate search (ScaNN) against exact\n{report.table([found.scann])}")
    result = {
        "split": part,
        "log": run.log.name,
        "step": step,
        "targets": found.targets,
        "protocol": protocol,
        **found.values,
        "intervals": found.intervals,
        "scann": found.scann,
    }
    workdir.write_json(folder / f"evaluation_{part}.json", result)
    if (folder / METRICS).exists():
        report.plot_curves(folder / METRICS, folder / "curves.png")
    page = [
        ("Protocol", report.Html(f"<p>{html.escape(protocol)}</p>")),
        ("Retrieval", report.html_table(rows, highlight=[c for c in COLUMNS if c in rows[0]])),
        ("95% bootstrap intervals", report.html_table(intervals)),
        ("Ranking", report.html_table(labels)),
        ("Approximate search", report.html_table([found.scann] if found.scann else [])),
        *([("Training", folder / "curves.png")] if (folder / "curves.png").exists() else []),
        ("Config", json.dumps(configs.to_dict(config), indent=2)),
    ]
    report.html_page(f"SynerGen on {run.log.name}", page, folder / f"report_{part}.html")
    say(f"\nreport: {folder / f'report_{part}.html'}")
    return result


def recommend(arguments, _) -> dict[str, typing.Any]:
    """`synergen recommend`."""
    run, params, _ = _open(arguments.workdir, [], arguments.data_dir)
    if arguments.user is not None:
        record, name = run.log[run.log.find_user(arguments.user)], f"user {arguments.user}"
    else:
        record, name = history.read(arguments.history, run.log), str(arguments.history)
    return _recommend(run, params, record, name, arguments.k, arguments.at, arguments.order)


def _recommend(
    run: Run, params, record, name: str, k: int, at: int | None = None, order: str = ""
) -> dict[str, typing.Any]:
    log = run.log
    events, offset = feed.user_history(record, run.config)
    last = int(record["time"][-1])
    at = last if at is None else at
    if at < last:
        raise UserError(f"--at {at} lies before the last event of {name}, at {last}")
    if at - offset >= 2**31:
        raise UserError(f"--at {at} is more than 68 years after the first event of {name}")
    recommender = Recommender(run.model, params, run.catalogue)
    cache = recommender.encode(jax.tree.map(np.asarray, events))
    seen = set(record["item"].tolist()) if run.config.data.filter_seen else set()
    found = recommender.recommend(cache, at - offset, k, exclude=seen, order=order)
    shown = min(10, len(record["item"]))
    say(f"{name}: {len(record['item'])} events, the last {shown} of them:")
    past = [
        {
            "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime(int(record["time"][i]))),
            "action": log.actions[record["action"][i]],
            "item": log.item_ids[record["item"][i]],
            "title": log.item_titles[record["item"][i]],
        }
        for i in range(len(record["item"]) - shown, len(record["item"]))
    ]
    say(report.table(past))
    answer = [
        {"rank": i + 1, "item": log.item_ids[r.item], "title": log.item_titles[r.item], "score": r.score}
        | r.probability
        for i, r in enumerate(found)
    ]
    say(f"\nrecommended{f', ordered by {order}' if order else ''}\n{report.table(answer)}")
    return {"history": past, "events": len(record["item"]), "recommendations": answer}


def quickstart(arguments, settings) -> dict[str, typing.Any]:
    """`synergen quickstart`."""
    start = time.perf_counter()
    marks = {}

    def step(number: int, text: str):
        say(f"{'' if number == 1 else chr(10)}[{number}/4] {text}")
        marks[number] = time.perf_counter() - start

    step(1, "prepare MovieLens-100K")
    log = prepare_log("ml-100k", source=arguments.source, data_dir=arguments.data_dir)
    summary = log.summary()
    say(f"{summary['events']:,} events, {summary['users']:,} users, {summary['items']:,} items in {log.path}")
    config = configs.load("quickstart", settings)
    run = Run(config, log)
    step(2, "train (some two minutes on two cores; interrupt it and run again: it goes on)")
    trained = _fit(run, arguments.workdir)
    step(3, "evaluate on the test split")
    run, params, best = _open(arguments.workdir, [], arguments.data_dir)
    evaluated = _evaluate(run, params, best, arguments.workdir, "test")
    user = log.user_ids[int(np.argmin(np.abs(log.lengths - np.median(log.lengths))))]
    step(4, f"recommend to user {user}, one of middling activity")
    answer = _recommend(run, params, log[log.find_user(user)], f"user {user}", 10)
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
}
