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
    shared.log_version(evaluate, "the version that it was trained on")
    evaluate.add_argument("--split", choices=("validation", "test"), default="test")
    evaluate.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where the report and its JSON go (default: the run's folder)",
    )
    evaluate.add_argument(
        "--per-user",
        type=pathlib.Path,
        metavar="FILE.parquet",
        help="write a row a target, of which a user may have several: user, item, time, query, slices, and each "
        "system's rank, HR@k and NDCG@k",
    )
    evaluate.add_argument(
        "--slice-by",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a table with a column `item` or `user` (original ids) and others, each of which cuts the targets by its "
        "values (may be given several times)",
    )


def run(arguments, settings) -> dict[str, typing.Any]:
    """Evaluates."""
    from synergen_jax.runs.evaluate import evaluate

    return evaluate(
        arguments.workdir,
        arguments.split,
        settings,
        arguments.data_dir,
        out=arguments.out,
        per_user=arguments.per_user,
        slice_by=arguments.slice_by,
        log=arguments.log,
    )
