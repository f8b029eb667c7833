"""The parameters of another run, with which one begins: `synergen train --init-from`."""

from __future__ import annotations

import dataclasses
import pathlib

from jax.sharding import Mesh

from data_pipelines.event_log.event_log import Ancestor
from synergen_jax import config as configs
from synergen_jax.batch import LogSpec
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.model import grown, rope, synergen
from synergen_jax.runs import log_versions, workdir
from synergen_jax.runs.run import Run, for_log, restored
from synergen_jax.training import identity, train_step

# Settings of a model that may differ: they change how it is trained or computed, not what its parameters mean.
FREE = ("dropout", "id_dropout", "dtype", "attention", "remat")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run whose parameters fit another one's model."""

    folder: pathlib.Path
    config: Config
    was: Ancestor  # the version of the log that it was trained on
    spec: LogSpec
    run: Run  # the one that begins with them

    def params(self, mesh: Mesh) -> synergen.Params:
        """Its best checkpoint's parameters on a mesh, grown to the log of the run that begins."""
        model = train_step.make_model(self.config, self.spec, self.run.phase)
        found = restored(self.folder, self.config, model, mesh, self.was.fingerprint).served
        return for_log(found, self.spec, self.run, mesh)


def source(folder: pathlib.Path, run: Run) -> Source:
    """The run in `folder`, if `run` can begin with its parameters. Reads no array.

    Raises:
      UserError: there is none, its log is neither that of `run` nor a version before, or its model is another one.
    """
    config, told = workdir.read(folder)
    if (was := run.log.ancestor(told["fingerprint"])) is None:
        raise UserError(
            f"--init-from {folder} was trained on {told['path']}, and {run.log.path} does not go on from that: their ids mean "
            "different things"
        )
    differs = configs.differences(config, run.config)
    other = {name: pair for name, pair in differs.items() if name.startswith("model.") and name[6:] not in FREE}
    if other:
        each = ", ".join(f"{name} {was!r} there and {now!r} here" for name, (was, now) in other.items())
        raise UserError(f"--init-from {folder} has another model: {each}: give the same")
    identity.refuse_other_phase(folder, workdir.read_phase(folder), rope.describe(run.config.model, run.phase))
    spec = log_versions.spec_of(run.log, was)
    grown.refuse(spec, run.log.spec)
    return Source(folder, config, was, spec, run)
