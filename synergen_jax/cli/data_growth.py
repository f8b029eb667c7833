"""`synergen data append`, `delete-user` and `keep`: the next version of a log, and what they share with an import."""

from __future__ import annotations

import argparse
import pathlib
import time
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say

if typing.TYPE_CHECKING:
    from data_pipelines.event_log.event_log import EventLog


def declare(actions: shared.Commands) -> None:
    """Adds the actions."""
    more = shared.command(
        actions,
        "append",
        "Add events, users, items and queries to a log: its next version. Ids keep their meaning (docs/your-data.md).",
        "synergen data append shop monday.csv\n  synergen data append shop monday.csv --items new-items.csv --drop duplicates",
        append,
        leaves=True,
    )
    more.add_argument("name", help="name of a log, or its folder")
    events(more)
    table(more)
    less = shared.command(
        actions,
        "delete-user",
        "Take users with all their events out of a log and of all its versions.",
        "synergen data delete-user shop u17 u23",
        delete_user,
        leaves=True,
    )
    less.add_argument("name", help="name of a log, or its folder")
    less.add_argument("user", nargs="+", help="ids of users")
    less.add_argument("--force", action="store_true", help="also where runs were trained on a version that has them")
    keep_ = shared.command(
        actions,
        "keep",
        "Keep the events of the last days: the next version of a log.",
        "synergen data keep shop --days 90",
        keep,
        leaves=True,
    )
    keep_.add_argument("name", help="name of a log, or its folder")
    keep_.add_argument("--days", type=float, required=True, help="before the newest event")


# --- what an import and an append are asked ------------------------------------------------------------------------


def events(own: argparse.ArgumentParser) -> None:
    """The argument that names the table of events."""
    own.add_argument(
        "events",
        help="a .csv, .tsv, .jsonl or .parquet file (text may be packed: .csv.gz, .csv.zst), a folder of them, or a "
        "pattern in quotes",
    )


def table(own: argparse.ArgumentParser) -> None:
    """Arguments that say how the tables of events and of items are read."""
    own.add_argument("--items", type=pathlib.Path, help="table of items with columns item, and if you like title, text")
    own.add_argument(
        "--columns",
        help="roles: user, item, time, action, query, request, shown; and part, of a split that the data give",
        metavar="ROLE=COLUMN,...",
        action="append",
        default=[],
    )
    own.add_argument(
        "--item-columns", help="roles: item, title, text", metavar="ROLE=COLUMN,...", action="append", default=[]
    )
    own.add_argument(
        "--time-unit",
        default="auto",
        metavar="UNIT",
        help="seconds, milliseconds, microseconds, nanoseconds or iso (default: told from the whole column, or asked)",
    )
    own.add_argument(
        "--lists",
        nargs="?",
        const="",
        metavar="SEPARATOR",
        help="each row is a user or a session, and all columns but the user's hold lists, side by side, whose entries this "
        "sets apart, as in --lists '|'; lists of parquet and JSON need none",
    )
    own.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="KIND,...",
        help="leave out and count these bad rows: bad-lines, missing, bad-times, bad-parts, duplicates, or all "
        "(default: refuse them)",
    )
    own.add_argument(
        "--vectors",
        metavar="NAME=FILE.npy",
        help="a vector an item, in the order of its table",
        action="append",
        default=[],
    )


def append(arguments, _) -> dict[str, typing.Any]:
    """`synergen data append`."""
    from data_pipelines.importing import append as appending
    from data_pipelines.importing.options import Options

    start = time.perf_counter()
    options = Options(
        columns=pairs("--columns", arguments.columns),
        item_columns=pairs("--item-columns", arguments.item_columns),
        time_unit=arguments.time_unit,
        drop=words(arguments.drop),
        vectors={matrix: pathlib.Path(path) for matrix, path in pairs("--vectors", arguments.vectors).items()},
        lists=arguments.lists,
    )
    made = appending.append(
        arguments.name, arguments.events, items=arguments.items, options=options, data_dir=arguments.data_dir
    )
    change = made.change
    dropped = ", ".join(f"{count:,} {kind}" for kind, count in change["dropped"].items())
    say(f"{change['rows']:,} rows read, {change['events']:,} events join" + f"; dropped: {dropped}" * bool(dropped))
    new = ", ".join(f"{change[f'new_{kind}']:,} {plural}" for kind, plural in NEW.items())
    say(f"new: {new}")
    if change["new_action"]:
        say(f"new actions count for the label {next(iter(made.log.labels))} alone")
    if tags := change.get("unknown_tags"):
        say(f"{len(tags):,} tags that the log does not have are passed over: {', '.join(tags[:5])}")
    if not change["events"] and not change.get("described"):
        say("nothing is new")
    return _made(made.log, made.removed, start) | {"change": change}


NEW = {"user": "users", "item": "items", "query": "queries", "action": "actions"}


def delete_user(arguments, _) -> dict[str, typing.Any]:
    """`synergen data delete-user`."""
    from data_pipelines.event_log import growing
    from data_pipelines.sources.prepare import locate

    start = time.perf_counter()
    made, removed = growing.delete_users(locate(arguments.name, arguments.data_dir), arguments.user, arguments.force)
    return _made(made, removed, start)


def keep(arguments, _) -> dict[str, typing.Any]:
    """`synergen data keep`."""
    from data_pipelines.event_log import growing
    from data_pipelines.sources.prepare import locate

    start = time.perf_counter()
    made, removed = growing.keep_days(locate(arguments.name, arguments.data_dir), arguments.days)
    return _made(made, removed, start)


def _made(log: EventLog, removed: list[int], start: float) -> dict[str, typing.Any]:
    """Says which version there is now."""
    found = {"log": log.name, "version": log.version, **log.summary(), "path": str(log.path), "removed": removed}
    counts = ", ".join(f"{found[name]:,} {name}" for name in ("events", "users", "items", "queries"))
    say(
        f"{log.name}, version {log.version}: {counts}, {found['from']} to {found['to']} ({time.perf_counter() - start:.1f} s)"
    )
    if removed:
        say(f"removed, as no run needs them: version {', '.join(map(str, removed))}")
    say(f"event log: {log.path}")
    return found


def words(values: typing.Sequence[str], separator: str = ",") -> list[str]:
    return [word.strip() for value in values for word in value.split(separator) if word.strip()]


def pairs(flag: str, values: typing.Sequence[str], separator: str = ",") -> dict[str, str]:
    """`a=x,b=y`, or one pair a value where there is no separator."""
    found: dict[str, str] = {}
    for word in words(values, separator) if separator else values:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UserError(f"{flag}: {word!r} is not of the form NAME=VALUE")
        if key.strip() in found:
            raise UserError(f"{flag}: {key.strip()!r} is given twice")
        found[key.strip()] = value.strip()
    return found
