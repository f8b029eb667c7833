"""A run: a config and its log, and what follows from both; and a trained one, opened again."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import typing

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.event_log.event_log import Ancestor, EventLog
from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.model import grown, rope, synergen
from synergen_jax.processes import cluster
from synergen_jax.runs import log_versions, workdir
from synergen_jax.sharding import device_mesh
from synergen_jax.training import identity, train_step
from synergen_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and its log, and what follows from both."""

    config: Config
    log: EventLog
    folder: pathlib.Path | None = None  # the workdir, which keeps the training counts: a large log takes long to count
    phase: rope.Phase | None = None  # an encoding of time and order of one's own, in place of `config.model.rope`
    trained_on: Ancestor | None = None  # the version that a trained run learned from, where `log` is a later one

    @functools.cached_property
    def split(self):
        return splits.split(self.log, self.config.data)

    @functools.cached_property
    def training(self):
        """What is trained on: (log, split), without the cold items."""
        return splits.hold_out(self.log, self.split, self.config.data.cold_items, self.config.data.seed)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        if self.trained_on is not None:
            return self._of_before(self.trained_on)
        sizes = self.log.spec.items, self.log.spec.queries
        if self.folder is not None and (counts := workdir.read_counts(self.folder, sizes, self.log.fingerprint)):
            return Catalogue(dict(self.log.item_matrices), dict(self.log.query_matrices), *counts)
        return examples.catalogue(*self.training)

    def _of_before(self, was: Ancestor) -> Catalogue:
        """The log's matrices, and how often training met what: nothing of what came later."""
        assert self.folder is not None
        counts = workdir.read_counts(self.folder, (was.items, was.queries), was.fingerprint)
        if counts is None:
            raise UserError(
                f"{self.folder / 'counts.npz'} is missing or damaged, without which one cannot tell what the run was trained on: "
                "the command that trained it writes it again"
            )
        sizes = self.log.spec.items, self.log.spec.queries
        items, queries = (np.pad(count, (0, size - len(count))) for count, size in zip(counts, sizes))
        return Catalogue(dict(self.log.item_matrices), dict(self.log.query_matrices), items, queries)

    @functools.cached_property
    def model(self) -> synergen.SynerGen:
        return train_step.make_model(self.config, self.log.spec, self.phase)

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

    def feed(self, step: int = 0) -> typing.Generator[TrainBatch, None, None]:
        """The batches of the steps from `step` on, of one process."""
        run = self.resolved()
        return feed.train_feed(*run.training, run.config, run.catalogue.counts)(step)

    def refuse_unmeasured(self, where: str = "this run") -> None:
        """Refuses to measure a run of which nothing is held back.

        Raises:
          UserError: `data.split` is "none".
        """
        if not self.config.data.measured:
            raise UserError(
                f"{where} was trained on all events (data.split 'none'): nothing is held back that it could be "
                "measured on; train with another data.split to measure, then with 'none' and as many steps to serve"
            )

    def targets(self, part: str):
        """The batches of the split "validation" or "test".

        Raises:
          UserError: there is none, or nothing is held back.
        """
        self.refuse_unmeasured()
        if self.trained_on is not None:
            log_versions.refuse_unfair(self.config.data, self.log, self.trained_on)
        if not np.any(np.diff(self.split.targets(part)) > 0):
            raise UserError(
                f"the {self.config.data.split} split leaves no {part} events: change data.split or its settings"
            )
        return feed.evaluation_feed(self.log, self.split, part, self.config)


class Opened(typing.NamedTuple):
    """A trained run, the parameters of its best checkpoint (its newest where nothing is validated), step and mesh."""

    run: Run
    folder: pathlib.Path
    params: synergen.Params
    step: int
    mesh: Mesh


def load(
    folder: str | pathlib.Path,
    data_dir: str | pathlib.Path | None = None,
    phase: rope.Phase | None = None,
    log: str | pathlib.Path | None = None,
) -> tuple[Run, synergen.Params]:
    """A run, and the parameters of its best checkpoint on the first device: what `serving.recommender.Recommender` serves.

    Args:
      folder: a workdir of `synergen train`; of one with `data.split` "none" the newest checkpoint is the best.
      data_dir: where logs lie, as `--data-dir`.
      phase: the function that the run was trained with, if that was not the built-in one.
      log: a version that goes on from the run's, such as `shop@3`; None: the newest one.

    Raises:
      UserError: it is no workdir, has no checkpoint yet, its log is gone or another one, or it was trained with another
        config than its config.json has, or with another phase.
    """
    opened = open_run(pathlib.Path(folder), [], data_dir, phase=phase, log=log, newest=True)
    return opened.run, opened.params


def open_run(
    folder: pathlib.Path,
    settings,
    data_dir,
    spread: bool = False,
    phase: rope.Phase | None = None,
    log: str | pathlib.Path | None = None,
    newest: bool = False,
) -> Opened:
    """A finished or unfinished run, with the parameters of its best checkpoint, their step, and where they lie.

    On a later version of its log than it was trained on, its parameters are grown.

    Args:
      spread: over all devices of all processes, by the settings mesh.* or else each with all parameters; else on one.
      log, newest: as `wanted` and `newest` of `log_versions.of_run`.
    """
    with cluster.together():
        config, told = workdir.read(folder)
        # On what it was trained is another matter than on what it is evaluated.
        model = dataclasses.replace(config.model, attention="auto")
        trained_on = dataclasses.replace(config, model=model, mesh=configs.MeshConfig())
        changed = configs.override(trained_on, settings)
        free = ("evaluate.", "data.filter_seen", "mesh.")
        if odd := [name for name in configs.differences(trained_on, changed) if not name.startswith(free)]:
            raise UserError(
                f"{odd[0]} is fixed by training; settings of an evaluation are evaluate.*, mesh.* and data.filter_seen"
            )
        found_log, was = log_versions.of_run(folder, config, told, data_dir, log, newest)
        later = was.fingerprint != found_log.fingerprint
        identity.refuse_other_phase(folder, workdir.read_phase(folder), rope.describe(config.model, phase))
        on, changed = changed.mesh, dataclasses.replace(changed, mesh=config.mesh)
        if later:
            changed = dataclasses.replace(changed, data=log_versions.measured_on(changed.data, was))
        run = Run(changed, found_log, folder, phase, was if later else None)
        mesh = device_mesh.make_mesh(on, None if spread else jax.devices()[:1])
    cluster.same("config", repr(changed))
    spec = log_versions.spec_of(found_log, was)
    if later:
        grown.refuse(spec, found_log.spec)
    state = restored(folder, config, train_step.make_model(run.config, spec, phase), mesh, was.fingerprint)
    params = for_log(state.served, spec, run, mesh) if later else state.served
    return Opened(run, folder, params, int(state.step), mesh)


def for_log(params: synergen.Params, spec: LogSpec, run: Run, mesh: Mesh) -> synergen.Params:
    """Parameters of a model of `spec` for the run's log, which has grown since."""
    wanted = train_step.abstract_state(run.config, run.model, mesh).params
    how = jax.tree.map(lambda x: x.sharding, wanted)
    return jax.jit(lambda old: grown.grown(old, spec, run.log.spec), out_shardings=how)(params)


def restored(
    folder: pathlib.Path, config: Config, model: synergen.SynerGen, mesh: Mesh, fingerprint: str
) -> train_step.TrainState:
    """The best checkpoint of a run.

    Args:
      model: of the log that it was trained on, whose fingerprint is `fingerprint`.

    Raises:
      UserError: there is none, or it is of another run.
    """
    with Checkpoints(folder / "checkpoints", keep=config.run.keep, say=cluster.say, read_only=True) as checkpoints:
        mine = identity.of(config, model.spec, fingerprint, model.phase)
        of = lambda saved: {} if saved["fingerprint"] else {"fingerprint": ""}  # who calls `loop.train` may give none
        fits = lambda saved: identity.refuse_others(folder, saved, mine | of(saved))
        found = checkpoints.restore(train_step.abstract_state(config, model, mesh), best=True, fits=fits)
    if found is None:
        raise UserError(f"{folder} has no checkpoint yet: let `synergen train` write one")
    return found[0]
