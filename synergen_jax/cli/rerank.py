"""`synergen rerank`."""

from __future__ import annotations

import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    rerank = shared.command(
        commands,
        "rerank",
        "Fit the second stage of a trained run: a ranker that orders what the model retrieves first.",
        "synergen rerank runs/ml-1m && synergen evaluate runs/ml-1m",
        run,
        settings=True,
        leaves=True,
    )
    rerank.add_argument("workdir", type=pathlib.Path)
    rerank.add_argument(
        "--lists", type=int, default=50_000, help="lists of the validation part, at most (default: 50000)"
    )
    rerank.add_argument("--seed", type=int, default=0, help="of the fit, and of which users stop it (default: 0)")


def run(arguments, settings) -> dict[str, typing.Any]:
    """Fits."""
    from synergen_jax.runs.rerank import rerank

    if arguments.lists < 1 or not 0 <= arguments.seed < 2**32:
        raise UserError("--lists is a whole number from 1 up, --seed one from 0 up")
    return rerank(arguments.workdir, settings, arguments.data_dir, arguments.lists, arguments.seed)
