"""The training loop: resume or begin, step after step, validate, save, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
import typing

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from synergen_jax.batch import Feed, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import Stopped, UserError
from synergen_jax.model import rope, synergen
from synergen_jax.processes import cluster, crash_report, run_lock
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue
from synergen_jax.training import identity, train_step
from synergen_jax.training.checkpoint import Checkpoints
from synergen_jax.training.metric_log import MetricLog
from synergen_jax.training.optimiser import schedule
from synergen_jax.training.train_step import TrainState

Validate = typing.Callable[[synergen.Params], dict[str, float]]
"""`validate(params)` gives validation metrics; `config.run.select` is that which chooses the checkpoint."""
Say = typing.Callable[[str], None]


@dataclasses.dataclass
class Result:
    """How a run ended."""

    state: TrainState
    step: int
    best_step: int  # 0: nothing was validated, and the last checkpoint is served
    best: float  # validation metric of the best step; -1 where nothing was validated
    stopped: str  # "steps", or "patience"
    events_per_second: float


class NotFiniteError(Stopped, FloatingPointError):
    """The loss became NaN or infinite."""


class PreemptedError(Stopped):
    """The run was asked to stop, and has written a checkpoint."""

    def __init__(self, step: int, status: int):
        super().__init__(f"asked to stop at step {step}, whose checkpoint is written: the same command goes on from it")
        self.status = status


def train(
    config: Config,
    spec: LogSpec,
    catalogue: StoredCatalogue,
    feed: Feed,
    workdir: pathlib.Path,
    validate: Validate | None,
    say: typing.Callable[[str], None] = print,
    fingerprint: str = "",
    phase: rope.Phase | None = None,
    initial: typing.Callable[[Mesh], synergen.Params] | None = None,
) -> Result:
    """Trains to `config.run.steps`, or until validation stops getting better; goes on where `workdir` left off.

    Order of initialisation: a checkpoint in `workdir` if there is one, otherwise what `initial` gives, otherwise fresh
    parameters. Of several processes
    all call it; `feed` gives each its `device_mesh.block` of every batch, and process 0 writes.

    Args:
      catalogue: on the mesh of `config.mesh`.
      validate: None validates nothing: all steps are done, and there is no best checkpoint.
      phase: the run's own encoding of time and order, see `make_model`. Every checkpoint keeps what it gives, and the
        config, and a run with others is refused.
      initial: gives parameters on the mesh, of a model of this config and `spec`.

    Raises:
      ValueError: the catalogue lies on another mesh.
      UserError: the mesh, the batch and the model do not fit together, `workdir` belongs to other data, another config or
        another phase, another process trains in it, or the disk is full.
      NotFiniteError: the loss of a step is not finite; the message names the step. Checkpoints before it are kept.
      PreemptedError: SIGTERM or SIGINT came; the step that ran is finished, and its checkpoint is on disk.
    """
    mesh = device_mesh.make_mesh(config.mesh)
    if catalogue.mesh != mesh:
        raise ValueError(f"the catalogue lies on {catalogue.mesh}, and the config asks for {mesh}")
    device_mesh.micro_batches(config, mesh)  # refuses a batch that does not divide
    model = train_step.make_model(config, spec, phase)
    wanted = train_step.abstract_state(config, model, mesh)
    step = train_step.make_step(config, model, mesh, jax.tree.map(lambda x: x.sharding, wanted))
    mine, laid_out = identity.of(config, spec, fingerprint, phase), _layout(mesh)
    with (
        run_lock.alone(workdir),
        Checkpoints(workdir / "checkpoints", keep=config.run.keep, say=say) as checkpoints,
    ):
        begun = _resumed(config, workdir, checkpoints, (wanted, mine, laid_out), say)
        if begun is None:
            fresh = train_step.init_state(config, model, mesh)[0]
            begun = _Begun(train_step.begun_with(fresh, initial(mesh)) if initial else fresh, Progress(), 0)
        start = int(begun.state.step)
        if start >= config.run.steps or begun.progress.stopped:
            return _nothing_to_do(config, workdir, begun, start, say)
        hidden = None if cluster.first() else True  # None: shown in a terminal
        with (
            cluster.Stop() as stop,
            MetricLog(workdir if cluster.first() else None, start) as log,
            contextlib.closing(feed(begun.position)) as batches,
            tqdm.tqdm(total=config.run.steps, initial=start, unit="step", disable=hidden, smoothing=0.05) as bar,
        ):
            out = _Out(workdir, checkpoints, log, bar, say, mine | laid_out)
            return _Loop(config, begun, step, catalogue, out).run(batches, validate, stop)


class _Begun(typing.NamedTuple):
    """Where a run begins, or goes on."""

    state: TrainState
    progress: Progress
    position: int  # of the feed: the number of the next batch


def _layout(mesh: Mesh) -> dict[str, typing.Any]:
    return {"mesh": list(mesh.devices.shape), "processes": cluster.count()}


def _resumed(
    config: Config, workdir: pathlib.Path, checkpoints: Checkpoints, expected: tuple, say: Say
) -> _Begun | None:
    """The newest checkpoint that can be read; None: there is none. Before there is a fresh state: two may not fit.

    Args:
      expected: shapes and shardings of the state, the run's identity, and its layout.
    """
    wanted, mine, laid_out = expected
    found = checkpoints.restore(wanted, fits=functools.partial(identity.refuse_others, workdir, mine=mine))
    if found is None:
        return None
    state, saved = found
    progress, position = Progress(**saved["progress"]), saved["next_batch"]
    say(f"resumed from step {int(state.step)} of {workdir}")
    if config.data.crop and "config" not in saved:  # checkpoints of before keep no config
        say("its checkpoint is of a version whose data.crop moved windows back alone: from here on both ways")
    if (before := {name: saved.get(name, now) for name, now in laid_out.items()}) != laid_out:
        say(
            f"it was written by {_laid_out(before)}, and goes on with {_laid_out(laid_out)}: the parameters are "
            f"the same to the bit, the feed begins anew at batch {position}, and sums may round otherwise"
        )
    before = saved.get("config", {}).get("run", {}).get("steps", config.run.steps)
    if config.run.steps > before:
        progress = dataclasses.replace(progress, stopped="", waited=0)
        rates = (float(np.asarray(schedule(config.optimiser, n)(state.step))) for n in (before, config.run.steps))
        was, now = (f"{rate:.2g}" for rate in rates)
        say(
            f"it had {before} steps, and goes on to {config.run.steps}: the learning rate, at {was}, goes on from {now}"
        )
    if progress.stopped == "patience" and not 0 < config.run.patience <= progress.waited:
        progress = dataclasses.replace(progress, stopped="")  # more patience than the run had
    return _Begun(state, progress, position)


def _nothing_to_do(config: Config, workdir: pathlib.Path, begun: _Begun, start: int, say: Say) -> Result:
    state, progress = begun.state, begun.progress
    why = f", and stopped after run.patience {config.run.patience}" if progress.stopped else ""
    say(f"nothing to do: {workdir} is at step {start} of {config.run.steps}{why}")
    return Result(state, start, progress.best_step, progress.best, progress.stopped or "steps", 0.0)


class _Out(typing.NamedTuple):
    """Where a loop writes and speaks."""

    workdir: pathlib.Path
    checkpoints: Checkpoints
    log: MetricLog
    bar: tqdm.tqdm
    say: Say
    about: dict[str, typing.Any]  # what every checkpoint's info says beside where the run stands


class _Loop:
    """A run between two of its steps.

    Args:
      step: `step(state, batch, catalogue) -> (state, metrics)`, as `train_step.make_step` gives it.
    """

    def __init__(self, config: Config, begun: _Begun, step, catalogue: StoredCatalogue, out: _Out):
        self._config, self._step, self._catalogue, self._out = config, step, catalogue, out
        self._state, self._progress, position = begun
        self._ahead = position - int(self._state.step)  # of the feed before the step
        self._layout = device_mesh.batch_shardings(catalogue.mesh)
        _, self._blocks = device_mesh.block(catalogue.mesh)
        self._pending = None  # metrics of the step before: fetched after the next one is on its way
        self._meter = _Meter()

    def run(self, batches: typing.Iterator[TrainBatch], validate: Validate | None, stop: cluster.Stop) -> Result:
        """Steps until all are done, validation stops getting better, or the run is asked to stop."""
        how, step = self._config.run, int(self._state.step)
        while step < how.steps and not self._progress.stopped:
            step += 1
            crash_report.at(step, self._out.checkpoints.folder)
            self._do(step, next(batches))
            last = step == how.steps
            due = last or (how.eval_every and step % how.eval_every == 0)
            stopping = 0 if last else stop.after(step)
            saves = last or (due and validate) or stopping or step % how.checkpoint_every == 0
            if step % how.log_every == 0 or saves:
                loss = self._write(step)
                if due and validate:  # which saves, too
                    self._validate(step, loss, validate)
                    if how.patience and self._progress.waited >= how.patience and not last:
                        self._progress = dataclasses.replace(self._progress, stopped="patience")
            if saves:
                self._save(step)
            if stopping and not self._progress.stopped:
                self._out.checkpoints.wait()
                raise PreemptedError(step, stopping)
        done = self._progress
        return Result(self._state, step, done.best_step, done.best, done.stopped or "steps", self._meter.overall())

    def _do(self, step: int, batch: TrainBatch) -> None:
        events = int(np.sum(batch.events.mask)) * self._blocks  # other blocks are drawn alike
        self._state, metrics = self._step(self._state, device_mesh.place(batch, self._layout), self._catalogue)
        if self._pending is not None:
            _finite(self._pending, step - 1)
        self._pending = metrics
        self._meter.add(events)
        self._out.bar.update()

    def _write(self, step: int) -> float:
        """Writes the step's metrics down; its loss."""
        values = _finite(self._pending, step)
        self._meter.waited()
        self._out.log.write(step, values | {"events_per_second": self._meter.rate()})
        self._out.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        return values["loss"]

    def _validate(self, step: int, loss: float, validate: Validate) -> None:
        with self._meter.paused():
            validation = validate(self._state.served)
            self._progress = self._progress.after(step, _selected(self._config, validation))
        self._out.log.write(step, {f"validation/{name}": value for name, value in validation.items()})
        shown = sorted(name for name in validation if "/" not in name or name == self._config.run.select)
        found = ", ".join(f"{name} {validation[name]:.4f}" for name in shown)
        with self._out.bar.external_write_mode():
            self._out.say(f"step {step}: loss {loss:.4f}; validation {found}")

    def _save(self, step: int) -> None:
        where = {"next_batch": self._ahead + step, "progress": dataclasses.asdict(self._progress)}
        with self._meter.paused():
            run_lock.check(self._out.workdir)
            self._out.checkpoints.save(step, self._state, where | self._out.about, self._progress.best_step)


def _laid_out(how: dict[str, typing.Any]) -> str:
    data, model = how["mesh"]
    return f"{how['processes']} process{'es' * (how['processes'] > 1)} on a mesh of data {data} x model {model}"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What early stopping remembers; part of every checkpoint."""

    best_step: int = 0  # 0: nothing was validated yet, so that `Checkpoints.restore` takes the newest
    best: float = -1.0
    waited: int = 0  # validations since the best
    stopped: str = ""

    def after(self, step: int, value: float) -> Progress:
        """The memory after one more validation."""
        best_step = step if value >= self.best else self.best_step  # ties: the newer, as in the checkpoints
        waited = 0 if value > self.best else self.waited + 1
        return Progress(best_step, max(value, self.best), waited)


def _selected(config: Config, validation: dict[str, float]) -> float:
    if config.run.select not in validation:
        raise UserError(f"run.select {config.run.select} is not among what was validated: {', '.join(validation)}")
    return float(validation[config.run.select])


def _finite(metrics, step: int) -> dict[str, float]:
    """A step's metrics on the host."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not np.isfinite([values["loss"], values["norm/gradient"]]).all():
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise NotFiniteError(f"step {step}: the loss or its gradient is not finite ({parts})")
    return values


class _Meter:
    """Events a second of training alone: pauses and the first step, which compiles, do not count."""

    def __init__(self):
        self._events = self._seconds = self._all_events = self._all_seconds = 0.0
        self._mark = None

    def add(self, events: int):
        now = time.perf_counter()
        if self._mark is not None:
            self._events += events
            self._seconds += now - self._mark
        self._mark = now

    def waited(self):
        """What the step that was added last was waited for counts, too; of the first one it does not."""
        if self._events or self._all_events:
            self.add(0)
        else:
            self._mark = time.perf_counter()

    def rate(self) -> float:
        """Since the last call."""
        rate = self._events / self._seconds if self._seconds else 0.0
        self._all_events += self._events
        self._all_seconds += self._seconds
        self._events = self._seconds = 0.0
        return rate

    def overall(self) -> float:
        """Since the start."""
        return self._all_events / self._all_seconds if self._all_seconds else 0.0

    @contextlib.contextmanager
    def paused(self):
        """A context whose time does not count."""
        yield
        self._mark = time.perf_counter()
