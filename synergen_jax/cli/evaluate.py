"""`synergen evaluate`."""

from __future__ import annotations

import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    evaluate = shared.command(
        commands,
        "evaluate",
        "Evaluate the best checkpoint of a run: full ranking, candidate ranking, exact and approximate search.",
        "synergen evaluate runs/ml-100k --split test --json",
        run,
        settings=True,
        leaves=True,
    )
    evaluate.add_argument("workdir", type=pathlib.Path)
    shared.cluster(evaluate)
    evaluate.add_argument("--split", choices=("validation", "test"), default="test")
    evaluate.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where the report and its JSON go (default: the run's folder)",
    )


def run(arguments, settings) -> dict[str, typing.Any]:
    """Evaluates."""
    from synergen_jax.runs.evaluate import evaluate

    return evaluate(arguments.workdir, arguments.split, settings, arguments.data_dir, out=arguments.out)
