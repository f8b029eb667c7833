"""The ladder's runs: every variant of a family with every seed, each trained, evaluated and written down as one line of JSON.

DIR/ladder.json   what was asked for: family, log, variants, seeds
DIR/runs.jsonl    a line a finished run
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import pathlib
import time
import typing

import jax
import jax.numpy as jnp
import json_lines
import numpy as np
from batches import Batches, Source, relevant
from json_lines import Entry

from synergen_jax import config as configs
from synergen_jax.batch import EvalBatch, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, metrics, model_answers, protocol, slices
from synergen_jax.model import synergen
from synergen_jax.runs import workdir
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue, place_catalogue
from synergen_jax.training import loop, train_step

RUNS, PLAN = "runs.jsonl", "ladder.json"
IN_FLIGHT = 4  # steps that are on their way before the loss of the first is looked at


class OutOfTimeError(Exception):
    """The budget ended in the middle of a run."""


class Run(typing.NamedTuple):
    """One run of the ladder."""

    variant: str
    seed: int
    config: Config


def planned(variants: collections.abc.Mapping[str, Config], seeds: collections.abc.Iterable[int]) -> list[Run]:
    """All runs, in an order that leaves whole rungs behind when it is stopped: the first variant with all seeds, the next."""
    seeds = list(seeds)
    return [Run(name, seed, configs.seeded(config, seed)) for name, config in variants.items() for seed in seeds]


# --- what is written ------------------------------------------------------------------------------------------


def read(folder: pathlib.Path) -> list[Entry]:
    """The finished runs of a ladder.

    Raises:
      UserError: a line is damaged.
    """
    return json_lines.read(folder / RUNS, ("variant", "seed", "config", "metrics"), "run of the ladder")


def append(folder: pathlib.Path, entry: Entry) -> None:
    """Adds a finished run."""
    json_lines.append(folder / RUNS, entry)


def left(runs: list[Run], finished: list[Entry], fingerprint: str, folder: pathlib.Path) -> list[Run]:
    """The runs that are not finished.

    Raises:
      UserError: a finished run was made with other settings, or of another log.
    """
    done = {(entry["variant"], entry["seed"]): entry for entry in finished}
    for run in runs:
        if (entry := done.get((run.variant, run.seed))) is None:
            continue
        where = f"{folder}: {run.variant}, seed {run.seed}, is there already"
        if entry["fingerprint"] != fingerprint:
            raise UserError(f"{where}, of another log: give another --out")
        if changed := configs.differences(configs.from_dict(entry["config"], str(folder / RUNS)), run.config):
            name, (was, now) = next(iter(changed.items()))
            raise UserError(f"{where}, with {name} {was!r} in place of {now!r}: give another --out")
    return [run for run in runs if (run.variant, run.seed) not in done]


# --- one run --------------------------------------------------------------------------------------------------


class Trainer:
    """A variant's model and its compiled step, which its seeds share."""

    def __init__(self, config: Config, spec: LogSpec):
        self.mesh = device_mesh.make_mesh(config.mesh, jax.devices()[:1])
        device_mesh.micro_batches(config, self.mesh)  # refuses a batch that does not divide
        self.config, self.model = config, train_step.make_model(config, spec)
        self._shardings = jax.tree.map(lambda x: x.sharding, train_step.abstract_state(config, self.model, self.mesh))
        out = self._shardings, device_mesh.whole(self.mesh)
        self.step = jax.jit(self._step, out_shardings=out, donate_argnums=0)

    def _step(self, state, batch, catalogue, seed):
        """`train_step.make_step` with the seed as an argument: a constant would have the step compiled for every seed."""
        config = dataclasses.replace(self.config, run=dataclasses.replace(self.config.run, seed=seed))
        return train_step.make_step(config, self.model, self.mesh, self._shardings)(state, batch, catalogue)

    def start(self, config: Config):
        """The state before the first step of a run."""
        return train_step.init_state(config, self.model, self.mesh)[0]


class Session(typing.NamedTuple):
    """A command: when it must end, and whom it tells how far it has come."""

    deadline: float  # a moment of `time.monotonic`
    say: typing.Callable[[str], None]


class Trained(typing.NamedTuple):
    """What training found."""

    params: synergen.Params | None  # the best ones; None where the loss was not finite before the first validation
    progress: loop.Progress
    steps: int
    stopped: str  # "steps", "patience", or "not finite"
    curve: list[dict[str, float]]  # a validation each
    seconds: dict[
        str, float
    ]  # compile: until the first step is done; train; of both feed, the wait for batches; validate
    events_per_second: float


class _Laps:
    """`Trained.seconds`."""

    def __init__(self):
        self.seconds = {"compile": 0.0, "train": 0.0, "feed": 0.0, "validate": 0.0}
        self._mark = time.monotonic()

    def end(self, name: str) -> None:
        """What came after the lap before went into this."""
        now = time.monotonic()
        self.seconds[name] += now - self._mark
        self._mark = now

    def wait(self, feed: collections.abc.Iterator[TrainBatch]) -> TrainBatch:
        """The next batch; the lap goes on."""
        asked = time.monotonic()
        batch = next(feed)
        self.seconds["feed"] += time.monotonic() - asked
        return batch


class _Best:
    """The best parameters so far by the metric `select`, and all validations."""

    def __init__(self, select: str):
        self._select = select
        self.params: synergen.Params | None = None
        self.progress = loop.Progress()
        self.curve: list[dict[str, float]] = []

    def add(self, step: int, values: dict[str, float], losses: list[jax.Array], params: synergen.Params) -> None:
        """Notes a validation, and the mean of the losses since the one before.

        Raises:
          UserError: `select` was not validated.
        """
        if self._select not in values:
            raise UserError(f"run.select {self._select} is not among what was validated: {', '.join(values)}")
        self.progress = self.progress.after(step, values[self._select])
        if self.progress.best_step == step:
            self.params = jax.tree.map(jnp.copy, params)  # the next step takes the state's own memory
        self.curve.append({"step": step, "loss": float(np.mean(jax.device_get(losses)))} | values)


def trained(
    trainer: Trainer,
    config: Config,
    catalogue: StoredCatalogue,
    feed: collections.abc.Iterator[TrainBatch],
    validate: loop.Validate,
    session: Session,
) -> Trained:
    """Trains to `run.steps` or until `run.patience` ends, and keeps the best parameters in memory.

    Raises:
      OutOfTimeError: the session's deadline has passed.
    """
    run, seed = config.run, np.uint32(config.run.seed)
    layout = device_mesh.batch_shardings(trainer.mesh)
    laps, best = _Laps(), _Best(run.select)
    state = trainer.start(config)
    losses, events, step, stopped = [], 0, 0, "steps"
    for step in range(1, run.steps + 1):
        batch = laps.wait(feed)
        state, found = trainer.step(state, jax.device_put(batch, layout), catalogue, seed)
        losses.append(found["loss"] + 0 * found["norm/gradient"])  # not finite where either is not
        if step == 1:
            jax.block_until_ready(losses)
            laps.end("compile")
        else:
            events += int(np.count_nonzero(batch.events.action))
        last = step == run.steps
        validates = last or (run.eval_every and step % run.eval_every == 0)
        if not np.isfinite(float(losses[-1 if validates else max(len(losses) - IN_FLIGHT, 0)])):
            stopped = "not finite"
            break
        if time.monotonic() > session.deadline:
            raise OutOfTimeError
        if not validates:
            continue
        laps.end("train")
        best.add(step, validate(state.served), losses, state.served)
        losses = []
        laps.end("validate")
        now = best.curve[-1]
        session.say(f"step {step}: loss {now['loss']:.4f}, validation {run.select} {now[run.select]:.4f}")
        if run.patience and best.progress.waited >= run.patience and not last:
            stopped = "patience"
            break
    laps.end("train")
    rate = events / max(laps.seconds["train"], 1e-9)
    return Trained(best.params, best.progress, step, stopped, best.curve, laps.seconds, rate)


class Targets(typing.NamedTuple):
    """The targets of one part, "validation" or "test"."""

    host: list[EvalBatch]
    placed: list[EvalBatch]  # the same on the device

    @classmethod
    def of(cls, feeds: Batches, config: Config, part: str, device: jax.Device) -> Targets:
        """Those that a config asks for."""
        host = feeds.targets(config, part)
        return cls(host, jax.device_put(host, device))


def measured(
    asked: model_answers.PlacedModel, config: Config, source: Source, targets: Targets
) -> dict[str, typing.Any]:
    """The metrics of all targets of one part: "retrieval", "reranked", "ranking" (by label), "slices" and "baselines"."""
    spec, rerank = asked.model.spec, config.evaluate.rerank
    said = model_answers.answers(asked, targets.placed, rerank=rerank)
    mean = lambda ranks: {name: float(np.mean(x)) for name, x in metrics.retrieval_metrics(ranks).items()}

    def by_label(logits: np.ndarray) -> dict[str, float]:
        return {name: value["mean"] for name, value in protocol.by_label(spec.labels, said, logits).items()}

    liked = baselines.user_item_mean(*source.labelled, (len(source.log), source.log.spec.items))
    popular = baselines.fixed(source.catalogue.counts)
    masks = slices.masks(targets.host, source.catalogue) | activity(targets.host, source)
    return {
        "targets": len(said.ranks),
        "retrieval": mean(said.ranks),
        "reranked": mean(said.reranked) if rerank else {},
        "ranking": by_label(said.logits),
        "slices": slices.table({"model": said.ranks}, masks),
        "baselines": {
            "most_popular": {"retrieval": mean(protocol.baseline_ranks(popular, targets.host, spec.items))},
            "user_item_mean": {
                "ranking": by_label(np.concatenate([liked(batch)[batch.user >= 0] for batch in targets.host]))
            },
        },
    }


def activity(targets: collections.abc.Iterable[EvalBatch], source: Source) -> dict[str, np.ndarray]:
    """Fifths of the targets by how many training events their users have, beyond what a window holds: name -> (n,)."""
    users = np.concatenate([batch.user[batch.user >= 0] for batch in targets])
    events = source.split.train_stop[users]
    fifth = np.searchsorted(np.quantile(events, [0.2, 0.4, 0.6, 0.8], method="lower"), events)
    masks = [fifth == part for part in range(5) if (fifth == part).any()]
    return {f"users with {events[mask].min()}-{events[mask].max()} training events": mask for mask in masks}


# --- the ladder -----------------------------------------------------------------------------------------------


def _note(folder: pathlib.Path, plan: dict[str, typing.Any], runs: list[Run]) -> None:
    """Writes down what was asked for, beside what earlier commands asked for: a report tells what is missing.

    Raises:
      UserError: an earlier command was given another family or other settings: its runs are not to be compared with these.
    """
    asked = [[run.variant, run.seed] for run in runs]
    try:
        old = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        before, was = old["asked"], {name: old[name] for name in ("family", "settings")}
    except (OSError, ValueError, KeyError, TypeError):
        before, was = [], {}
    for name, value in was.items():
        if value != plan[name]:
            raise UserError(
                f"{folder} is a ladder with {name} {value!r} in place of {plan[name]!r}: give another --out"
            )
    workdir.write_json(folder / PLAN, plan | {"asked": before + [one for one in asked if one not in before]})


class Asked(typing.NamedTuple):
    """What a ladder's command asks for."""

    variants: dict[str, Config]
    base: Config  # that all variants start from
    seeds: collections.abc.Sequence[int]
    command: dict[str, typing.Any]  # what `ladder.json` tells of it: family, variants, settings
    after: collections.abc.Sequence[pathlib.Path] = ()  # folders of earlier ladders, whose runs are not run again


def _whole(folder: pathlib.Path) -> list[Entry]:
    """The runs of an earlier ladder.

    Raises:
      UserError: there is none.
    """
    if not (folder / RUNS).is_file() and not (folder / PLAN).is_file():
        raise UserError(f"--after {folder}: no ladder: neither {RUNS} nor {PLAN} is there")
    return read(folder)


class Told(typing.NamedTuple):
    """How a ladder's command ended."""

    finished: list[Entry]  # of the runs that it was asked for
    left: list[Run]


def climb(asked: Asked, folder: pathlib.Path, feeds: Batches, about: dict[str, typing.Any], session: Session) -> Told:
    """Runs what is finished neither in `folder` nor, on such a device, in an earlier one, until the session's deadline.

    Args:
      about: what every line tells beside the run itself.
    """
    log, runs = feeds.log, planned(asked.variants, asked.seeds)
    before = [entry for one in asked.after for entry in _whole(one)]
    others = {entry["device"] for entry in before} - {about["device"]}
    if others:
        session.say(f"what ran on {', '.join(sorted(others))} is run again on {about['device']}")
        before = [entry for entry in before if entry["device"] not in others]
    finished = before + read(folder)
    todo = left(runs, finished, log.fingerprint, folder)
    folder.mkdir(parents=True, exist_ok=True)
    about_log = {"log": log.name, "fingerprint": log.fingerprint, "matrices": dict(log.spec.item_matrices)}
    _note(folder, asked.command | about_log, runs)
    trainers: dict[str, Trainer] = {}
    while todo:
        run = todo[0]
        needs = _seconds(run, [entry for entry in finished if entry["device"] == about["device"]])
        if time.monotonic() + needs > session.deadline:
            session.say(f"no time is left for {run.variant}, seed {run.seed}, which takes some {needs:.0f} s")
            break
        session.say(f"[{len(runs) - len(todo) + 1}/{len(runs)}] {run.variant}, seed {run.seed}")
        if run.variant not in trainers:
            trainers = {run.variant: Trainer(run.config, log.spec)}  # the one before is not needed any more
        keep = any(relevant(other.config) == relevant(run.config) for other in todo[1:])
        try:
            entry = _run(run, trainers[run.variant], feeds, keep, session)
        except OutOfTimeError:
            session.say(f"the time is over: {run.variant}, seed {run.seed}, is not written")
            break
        if not keep:
            feeds.forget(run.config)
        entry = {"variant": run.variant, "seed": run.seed, "changes": _changes(asked.base, run.config)} | entry | about
        append(folder, entry | {"fingerprint": log.fingerprint, "config": configs.to_dict(run.config)})
        finished = before + read(folder)
        todo = todo[1:]
    wanted = {(run.variant, run.seed) for run in runs}
    return Told([entry for entry in finished if (entry["variant"], entry["seed"]) in wanted], todo)


def _seconds(run: Run, finished: list[Entry]) -> float:
    """What a run will take, by the longest one of its variant, or else of all that are finished; 0 where none is."""
    took = [entry["seconds"]["all"] for entry in finished if entry["variant"] == run.variant]
    return max(took or [entry["seconds"]["all"] for entry in finished], default=0.0)


def _changes(base: Config, config: Config) -> dict[str, typing.Any]:
    """The settings in which a variant differs from the base config, its seed aside."""
    changes = {name: now for name, (_, now) in configs.differences(base, config).items()}
    return {name: now for name, now in changes.items() if name not in ("data.seed", "run.seed")}


def _run(run: Run, trainer: Trainer, feeds: Batches, keep: bool, session: Session) -> dict[str, typing.Any]:
    start = time.monotonic()
    config, device = run.config, trainer.mesh.devices.flat[0]
    source = feeds.source(relevant(config))
    feed = feeds.train(config, keep)  # nothing is made yet
    try:
        targets = Targets.of(feeds, config, "validation", device)
        catalogue = place_catalogue(source.catalogue, trainer.mesh)
        validate = protocol.validator(trainer.model, catalogue, targets.placed)
        prepared = time.monotonic() - start
        found = trained(trainer, config, catalogue, feed, validate, session)
    finally:
        feed.close()
    mark = time.monotonic()
    results = {}
    if found.params is not None:
        asked = model_answers.PlacedModel.of(trainer.model, found.params, catalogue)
        results["validation"] = measured(asked, config, source, targets)
        results["test"] = measured(asked, config, source, Targets.of(feeds, config, "test", device))
        kept = results["test"]["retrieval"]
        session.say(
            f"test HR@10 {kept['hr@10']:.4f}, NDCG@10 {kept['ndcg@10']:.4f}; best step {found.progress.best_step}"
        )
    now = time.monotonic()
    seconds = {"prepare": prepared} | found.seconds | {"evaluate": now - mark, "all": now - start}
    return {
        "steps": found.steps,
        "best_step": found.progress.best_step,
        "stopped": found.stopped,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "events_per_second": round(found.events_per_second, 1),
        "validation": found.curve,
        "ties": "expected over a random order",
        "metrics": results,
    }
