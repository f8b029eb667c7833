"""The training step and the training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh
from jaxtyping import Array

from synergen_jax.batch import Feed, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import Stopped, UserError, nearest
from synergen_jax.model import attention, rope, synergen
from synergen_jax.processes import cluster, crash_report, run_lock
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue, catalogue_shardings
from synergen_jax.training import apply_gradients, identity, objective
from synergen_jax.training.checkpoint import Checkpoints
from synergen_jax.training.metric_log import MetricLog
from synergen_jax.training.optimiser import schedule

Validate = typing.Callable[[synergen.Params], dict[str, float]]
"""`validate(params)` gives validation metrics; `config.run.select` is that which chooses the checkpoint."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step maps to its successor. Everything else (feed, random keys) is a function of `step` and the seed."""

    step: Array  # () int32: steps done
    params: synergen.Params
    opt_state: typing.Any

    @property
    def served(self) -> synergen.Params:
        """The parameters that are validated, evaluated and served."""
        return apply_gradients.served(self.params, self.opt_state)


def make_model(config: Config, spec: LogSpec, phase: rope.Phase | None = None) -> synergen.SynerGen:
    """The model of a run; `phase` replaces the rotary encoding that `config.model.rope` names.

    Raises:
      UserError: its attention backend cannot run here, it names what the log does not have, or `phase` does not give an
        angle a rotary plane.
    """
    attention.check(config)
    if phase is not None:
        rope.describe(config.model, phase)
    _, auc, label = config.run.select.partition("auc/")
    if auc and label not in spec.labels:
        raise UserError(
            f"run.select {config.run.select}: the log has no label {label!r}{nearest(label, spec.labels)}; "
            f"it has {', '.join(spec.labels)}"
        )
    names = {name for name, _ in spec.item_matrices + spec.query_matrices}
    if unknown := [name for name in config.model.left_out if name not in names]:
        raise UserError(f"model.leave_out: the log has no matrix {unknown[0]!r}{nearest(unknown[0], names)}")
    if not config.model.item_ids and not any(config.model.uses(name) for name, _ in spec.item_matrices):
        raise UserError("model.item_ids is false, and no matrix of the log is used: items have no vectors")
    if config.loss.hard_candidates and spec.candidate_features:
        raise UserError(
            "loss.hard_candidates: items of no shown list lack the log's features of candidates "
            f"({', '.join(spec.candidate_features)}), by which the head would tell them from the others: set it to 0"
        )
    return synergen.SynerGen(config.model, spec, phase)


def _create(config: Config, model: synergen.SynerGen, key: Array) -> TrainState:
    """A fresh state, boxed with logical axes."""
    params = synergen.init(model, key)
    return TrainState(jnp.zeros((), jnp.int32), params, apply_gradients.init(config, params))


def init_state(config: Config, model: synergen.SynerGen, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """A fresh state, born sharded on the mesh, and its shardings."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, model, mesh))
    create = jax.jit(lambda key: nn.unbox(_create(config, model, key)), out_shardings=shardings)
    return create(jax.random.key(config.run.seed)), shardings


def abstract_state(config: Config, model: synergen.SynerGen, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state on a mesh, at no cost."""
    boxed = jax.eval_shape(lambda key: _create(config, model, key), jax.random.key(0))
    shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(shape, nn.unbox(boxed), device_mesh.tree_shardings(boxed, mesh))


def make_step(config: Config, model: synergen.SynerGen, mesh: Mesh, shardings: TrainState):
    """The compiled training step: `step(state, batch, catalogue) -> (state, metrics)`. The old state is donated.

    A step is a pure function of state and batch: the random key is the seed's, folded with the step number. With
    `optimiser.accumulate` n > 1 the batch is cut into n micro-batches whose gradients add up to the whole batch's.
    """
    rate = schedule(config.optimiser, config.run.steps)

    def step(state: TrainState, batch: TrainBatch, catalogue: StoredCatalogue):
        micro = device_mesh.micro_batches(config, mesh, batch.ranking.item.shape[1])
        key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # along which attention kernels are split
            loss, filter_seen = config.loss, config.data.filter_seen
            value, parts, gradients = objective.value_and_grad(
                mesh, model, state.params, catalogue, batch, loss, key, state.step, micro, filter_seen
            )
        params, opt_state, norms = apply_gradients.apply(
            config, mesh, state.params, state.opt_state, state.step, gradients
        )
        metrics = {
            "loss": value,
            **{f"loss/{name}": part for name, part in parts.items()},
            **{f"norm/{name}": norm for name, norm in norms.items()},
            "learning_rate": rate(state.step),
            "padding": 1 - jnp.mean(batch.events.mask),  # share of the slots for events that hold none
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    whole = device_mesh.whole(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, device_mesh.batch_shardings(mesh), catalogue_shardings(mesh)),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )


@dataclasses.dataclass
class Result:
    """How a run ended."""

    state: TrainState
    step: int
    best_step: int
    best: float  # validation metric of the best step
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
    validate: Validate,
    say: typing.Callable[[str], None] = print,
    fingerprint: str = "",
    phase: rope.Phase | None = None,
) -> Result:
    """Trains to `config.run.steps`, or until validation stops getting better; goes on where `workdir` left off.

    Order of initialisation: a checkpoint in `workdir` if there is one, otherwise fresh parameters. Of several processes
    all call it; `feed` gives each its `sharding.block` of every batch, and process 0 writes.

    Args:
      catalogue: on the mesh of `config.mesh`.
      phase: the run's own encoding of time and order, see `make_model`. Every checkpoint keeps what it gives, and the
        config, and a run with others is refused.

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
    _, blocks = device_mesh.block(mesh)
    model = make_model(config, spec, phase)
    mine = identity.of(config, spec, fingerprint, phase)
    wanted = abstract_state(config, model, mesh)
    step_fn = make_step(config, model, mesh, jax.tree.map(lambda x: x.sharding, wanted))
    layout = device_mesh.batch_shardings(mesh)
    laid_out = {"mesh": list(mesh.devices.shape), "processes": cluster.count()}

    with (
        run_lock.alone(workdir),
        Checkpoints(workdir / "checkpoints", keep=config.run.keep, say=say) as checkpoints,
    ):
        progress, position = Progress(), 0
        fits = functools.partial(identity.refuse_others, workdir, mine=mine)
        found = checkpoints.restore(wanted, fits=fits)  # before there is a fresh state: two may not fit
        if found is None:
            state, _ = init_state(config, model, mesh)
        else:
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
        start = int(state.step)
        if progress.stopped == "patience" and not 0 < config.run.patience <= progress.waited:
            progress = dataclasses.replace(progress, stopped="")  # more patience than the run had
        if start >= config.run.steps or progress.stopped:
            why = f", and stopped after run.patience {config.run.patience}" if progress.stopped else ""
            say(f"nothing to do: {workdir} is at step {start} of {config.run.steps}{why}")
            return Result(state, start, progress.best_step, progress.best, progress.stopped or "steps", 0.0)

        hidden = None if cluster.first() else True  # None: shown in a terminal
        with (
            cluster.Stop() as stop,
            MetricLog(workdir if cluster.first() else None, start) as log,
            contextlib.closing(feed(position)) as batches,
            tqdm.tqdm(total=config.run.steps, initial=start, unit="step", disable=hidden, smoothing=0.05) as bar,
        ):
            meter = _Meter()
            pending = None  # metrics of the step before: fetched after the next one is on its way
            for step in range(start + 1, config.run.steps + 1):
                crash_report.at(step, checkpoints.folder)
                batch = next(batches)
                events = int(np.sum(batch.events.action > 0)) * blocks  # other blocks are drawn alike
                state, metrics = step_fn(state, device_mesh.place(batch, layout), catalogue)
                if pending is not None:
                    _finite(pending, step - 1)
                pending = metrics
                meter.add(events)
                bar.update()
                last = step == config.run.steps
                validates = last or (config.run.eval_every and step % config.run.eval_every == 0)
                stopping = 0 if last else stop.after(step)
                saves = last or validates or stopping or step % config.run.checkpoint_every == 0
                if step % config.run.log_every == 0 or saves:
                    values = _finite(pending, step)
                    meter.waited()
                    log.write(step, values | {"events_per_second": meter.rate()})
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                if validates:
                    with meter.paused():
                        progress = progress.after(step, _selected(config, validation := validate(state.served)))
                    log.write(step, {f"validation/{name}": value for name, value in validation.items()})
                    shown = sorted(name for name in validation if "/" not in name or name == config.run.select)
                    found = ", ".join(f"{name} {validation[name]:.4f}" for name in shown)
                    with bar.external_write_mode():
                        say(f"step {step}: loss {values['loss']:.4f}; validation {found}")
                    if config.run.patience and progress.waited >= config.run.patience and not last:
                        progress = dataclasses.replace(progress, stopped="patience")
                if saves:
                    where = {"next_batch": position + step - start, "progress": dataclasses.asdict(progress)}
                    info = where | mine | laid_out
                    with meter.paused():
                        run_lock.check(workdir)
                        checkpoints.save(step, state, info, progress.best_step)
                if progress.stopped:
                    break
                if stopping:
                    checkpoints.wait()
                    raise PreemptedError(step, stopping)
        return Result(state, step, progress.best_step, progress.best, progress.stopped or "steps", meter.overall())


def _laid_out(how: dict[str, typing.Any]) -> str:
    data, model = how["mesh"]
    return f"{how['processes']} process{'es' * (how['processes'] > 1)} on a mesh of data {data} x model {model}"


@dataclasses.dataclass(frozen=True)
class Progress:
    """What early stopping remembers; part of every checkpoint."""

    best_step: int = 0
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
