"""`synergen train`."""

from __future__ import annotations

import json
import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.processes import cluster


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    train = shared.command(
        commands,
        "train",
        "Train a model, or go on where the workdir left off. Any setting can be given as --section.key VALUE.",
        "synergen train ml_100k --workdir runs/ml-100k --model.width 128 --run.steps 2000",
        run,
        settings=True,
        leaves=True,
    )
    train.add_argument("config", help="a TOML file, or the name of a shipped config")
    train.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="folder of the run: checkpoints, metrics, config"
    )
    train.add_argument(
        "--init-from",
        type=pathlib.Path,
        metavar="RUN",
        help="begin with the parameters of another run's best checkpoint, of the same log or a version before",
    )
    shared.cluster(train)


def run(arguments, settings) -> dict[str, typing.Any]:
    """Trains."""
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate
    from synergen_jax import config as configs
    from synergen_jax.runs import log_versions, workdir
    from synergen_jax.runs.run import Run
    from synergen_jax.runs.train import train

    with cluster.together():
        config = configs.load(arguments.config, settings)
        log = EventLog.load(locate(config.data.log, arguments.data_dir))
        told = json.dumps(workdir.log_of(arguments.workdir)) if cluster.first() else ""
    told = json.loads(cluster.everyone(told)[0])  # others may not see the folder
    with cluster.together():
        log = log if told is None else log_versions.own(arguments.workdir, told, log)
    cluster.same("config", repr(config))
    cluster.same("log", log.fingerprint)
    return train(Run(config, log), arguments.workdir, init_from=arguments.init_from)
