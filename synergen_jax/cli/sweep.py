"""`synergen sweep`: a family of configs, each with several seeds, in one table."""

from __future__ import annotations

import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError, naming
from synergen_jax.processes import cluster


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    sweep = shared.command(
        commands,
        "sweep",
        "Train and evaluate a family of configs with several seeds, and put all into one table.",
        "synergen sweep search_100k --workdir runs/ablations --seeds 0,1,2",
        run,
        settings=True,
        leaves=True,
    )
    sweep.add_argument("family", type=pathlib.Path, help="a TOML file, or the name of a shipped family")
    sweep.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs and of the table")
    sweep.add_argument("--seeds", type=shared.numbers, default=(0, 1), help="comma-separated (default: 0,1)")
    sweep.add_argument("--only", type=lambda text: text.split(","), default=[], help="these variants, comma-separated")
    sweep.add_argument(
        "--rerank", action="store_true", help="fit a second stage to each run, as `synergen rerank` does"
    )
    sweep.add_argument("--split", choices=("validation", "test"), default="validation")


def run(arguments, settings) -> dict[str, typing.Any]:
    """Trains and evaluates every variant with every seed."""
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate
    from synergen_jax.runs import family as families
    from synergen_jax.runs import rerank
    from synergen_jax.runs.evaluate import evaluate
    from synergen_jax.runs.run import Run
    from synergen_jax.runs.train import train
    from synergen_jax.training.train_step import make_model

    def fit(config, folder):
        return train(Run(config, logs[config.data.log]), folder)

    def judge(folder, part, config):
        settings = [f"--evaluate.baselines={str(config.evaluate.baselines).lower()}"]
        return evaluate(folder, part, settings, arguments.data_dir)

    def second_stage(folder):
        return rerank.rerank(folder, data_dir=arguments.data_dir)

    if arguments.rerank and arguments.split == rerank.PART:
        raise UserError(f"--rerank fits a second stage on the {rerank.PART} part, and is measured on --split test")
    family = families.load(arguments.family, settings)
    if unknown := [name for name in arguments.only if name not in family.variants]:
        raise UserError(f"--only {unknown[0]}: the family's variants are {', '.join(family.variants)}")
    if arguments.only:
        family = family._replace(variants={name: family.variants[name] for name in arguments.only})
    names = dict.fromkeys(config.data.log for config in family.variants.values())
    logs = {name: EventLog.load(locate(name, arguments.data_dir)) for name in names}
    for name, config in family.variants.items():  # what the log does not have is told before hours of training
        with naming(f"variant {name}"):
            make_model(config, logs[config.data.log].spec)
    return families.sweep(
        family,
        arguments.seeds,
        arguments.workdir,
        arguments.split,
        fit,
        judge,
        cluster.say,
        second_stage if arguments.rerank else None,
    )
