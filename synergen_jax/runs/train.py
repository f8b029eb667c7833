"""Trains a run in its workdir, or goes on where that left off: what `synergen train` does."""

from __future__ import annotations

import pathlib
import typing

from jax.sharding import Mesh

from data_pipelines.event_log import versions
from data_pipelines.feed import examples, feed
from synergen_jax.errors import writing
from synergen_jax.evaluation import protocol, report
from synergen_jax.model import rope
from synergen_jax.processes import cluster, run_lock
from synergen_jax.runs import initial, workdir
from synergen_jax.runs.run import Run
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import identity, loop, train_step
from synergen_jax.training.metric_log import FILE as METRICS

ALL_EVENTS = "trained on all events: nothing is held back, so nothing is validated; the last checkpoint is served"


def train(run: Run, folder: str | pathlib.Path, init_from: str | pathlib.Path | None = None) -> dict[str, typing.Any]:
    """Trains a run in a workdir, or goes on where that left off, as `synergen train` does; prints, and returns its JSON.

    Args:
      init_from: another run, of the same log or of a version before: its best checkpoint's parameters are those to begin
        with. Rows of items, queries and actions that it did not know begin as zeros.

    Raises:
      UserError: wrong input, as everywhere; the folder belongs to another run, or another process trains in it; or the
        parameters of `init_from` do not fit.
    """
    folder = pathlib.Path(folder)
    begins = None if init_from is None else pathlib.Path(init_from)
    phase = rope.describe(run.config.model, run.phase)
    with cluster.together():
        stored = str(workdir.packed(folder)) if cluster.first() else ""
    stored = cluster.everyone(stored)[0]  # others may not see the folder
    with cluster.together():
        run = run.resolved({"True": True, "False": False}.get(stored))
        mesh = device_mesh.make_mesh(run.config.mesh)
        device_mesh.micro_batches(run.config, mesh)  # refuses a batch that does not divide
        train_step.abstract_state(run.config, run.model, mesh)  # refuses a model that does not fit the mesh
        batches = feed.train_feed(*run.training, run.config, run.catalogue.counts, *device_mesh.block(mesh))
        targets = run.targets("validation") if run.config.data.measured else None
        if cluster.first():  # once nothing is left to be refused
            workdir.check(folder, run.config, run.log.fingerprint, phase)
            begins = workdir.init_from(folder, begins)
    begins = pathlib.Path(said) if (said := cluster.everyone(str(begins or ""))[0]) else None
    with cluster.together():
        source = None if begins is None else initial.source(begins, run)
    with run_lock.alone(folder):
        return _train(run, folder, mesh, batches, targets, phase, source)


def _keep_log(run: Run, folder: pathlib.Path) -> None:
    """Sees to it that the version of the log stays as long as the run is there."""
    if not versions.register(run.log.path, run.log.fingerprint, folder):
        cluster.say(
            f"note: {run.log.path.parent} cannot be written: who may write there does not see that this run needs {run.log.name}"
        )


def _train(
    run: Run,
    folder: pathlib.Path,
    mesh: Mesh,
    batches,
    targets,
    phase: identity.Phase,
    source: initial.Source | None,
) -> dict[str, typing.Any]:
    with cluster.together():
        if cluster.first():
            begins = None if source is None else source.folder
            workdir.start(folder, run.config, run.log.path, run.log.fingerprint, phase, begins)
            _keep_log(run, folder)
            workdir.write_counts(folder, run.catalogue.counts, run.catalogue.query_counts, run.log.fingerprint)
    several = f", {cluster.count()} processes" if cluster.count() > 1 else ""
    fill = examples.row_fill(run.config.data, run.training[1])
    packing = f"{'' if run.config.data.pack else 'not '}packed ({fill:.0%} of a row a window)"
    cluster.say(
        f"train on {run.log.name}, mesh data {mesh.shape['data']} x model {mesh.shape['model']}{several}, {packing}, "
        f"workdir {folder}"
    )
    catalogue = place_catalogue(run.catalogue, mesh)
    validate = None if targets is None else protocol.validator(run.model, catalogue, targets)
    result = loop.train(
        run.config,
        run.log.spec,
        catalogue,
        batches,
        folder,
        validate,
        cluster.say,
        run.log.fingerprint,
        run.phase,
        None if source is None else source.params,
    )
    if cluster.first():
        if (folder / METRICS).exists():
            with writing(folder / "curves.png"):
                report.plot_curves(folder / METRICS, folder / "curves.png")
        why = "no better validation" if result.stopped == "patience" else "all steps done"
        rate = f"; {result.events_per_second:,.0f} events a second" if result.events_per_second else ""
        best = f"best validation {run.config.run.select} {result.best:.4f} at step {result.best_step}"
        cluster.say(f"stopped at step {result.step} ({why}); {ALL_EVENTS if validate is None else best}{rate}")
    best = {"best_step": result.best_step, f"validation_{run.config.run.select}": result.best}
    return {
        "workdir": str(folder),
        "step": result.step,
        **(best if validate else {"served_step": result.step, "note": ALL_EVENTS}),
        "stopped": result.stopped,
        "events_per_second": result.events_per_second,
    }
