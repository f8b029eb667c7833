"""`synergen serve-log export`."""

from __future__ import annotations

import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.processes.cluster import say


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    log = commands.add_parser("serve-log", help="What was served, as a table to learn from.", allow_abbrev=False)
    actions = log.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = shared.command(
        actions,
        "export",
        "Write the events of a service, with the lists that they were chosen from, as a table that `data append` takes.",
        "synergen serve-log export runs/shop --out events.csv\n  synergen data append shop events.csv --drop duplicates",
        export,
        leaves=True,
    )
    made.add_argument("workdir", type=pathlib.Path, help="of the run that is served")
    made.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.csv")
    made.add_argument("--store", help="file or postgresql://... (default: serving.sqlite in the workdir)")
    made.add_argument("--shown", type=pathlib.Path, metavar="FOLDER", help="(default: shown in the workdir)")
    made.add_argument("--since", type=int, default=0, help="Unix seconds; earlier events are left out")


def export(arguments, _) -> dict[str, typing.Any]:
    """`synergen serve-log export`."""
    from synergen_jax.runs import serve_log

    found = serve_log.export(arguments.workdir, arguments.out, arguments.store, arguments.shown, arguments.since)
    say(
        f"{found['events']:,} events of {found['users']:,} users, {found['lists']:,} lists of what was shown: {found['out']}"
    )
    if found["without_list"]:
        say(f"{found['without_list']:,} answers that events refer to were not logged")
    return found
