"""`synergen ...`: reads the command line, and turns wrong input into one clear line and exit status 2."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import typing

from synergen_jax import __version__
from synergen_jax.cli import (
    ask,
    bench,
    compile_cache,
    data,
    evaluate,
    pipes,
    plan,
    quickstart,
    rerank,
    serve,
    serve_log,
    sweep,
    train,
)
from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import NotWritten, Stopped, UserError
from synergen_jax.processes import cluster


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command declares its arguments beside what it does."""
    top = shared.Parser("synergen", formatter_class=shared.FORMAT)
    top.description = "SynerGen: search and recommendation, retrieval and ranking, in one Transformer."
    top.add_argument("--version", action="version", version=f"synergen-jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (quickstart, data, train, rerank, evaluate, sweep, bench, plan, ask, serve, serve_log):
        command.declare(commands)
    return top


def main(argv: typing.Sequence[str] | None = None) -> int:
    """Runs a command; the process's exit status is what it returns.

    0, also for a service that was asked to end; 1 for a failed run; 2 for wrong input; 130 where a person interrupted it, 143 where SIGTERM did; 141 where the
    reader of a command that only prints has left.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with pipes.readers_may_leave() as stops:
        try:
            status = _run(argv, stops)
        except Exception as error:
            if cluster.count() == 1:
                raise
            cluster.failed(error)
        cluster.leave(status)
    return status


@contextlib.contextmanager
def _cleaning_up() -> typing.Iterator[None]:
    """SIGTERM ends the process as an exception does, so that nothing half-written is left behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: typing.Sequence[str] | None, stops: typing.Callable[[bool], None]) -> int:
    as_json = False
    try:
        arguments, rest = parser().parse_known_args(argv)
        as_json = arguments.json
        stops(not arguments.leaves)
        if rest and not arguments.takes_settings:
            raise UserError(f"unknown argument {rest[0]!r}; see `synergen {arguments.command} --help`")
        _do(arguments, rest)
    except Stopped as error:
        print(f"synergen: the run has stopped: {error}", file=sys.stderr)
        return error.status
    except (UserError, OSError) as error:
        if isinstance(error, NotWritten) and as_json:
            print(json.dumps(error.found))
        print(f"synergen: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synergen: interrupted", file=sys.stderr)
        return 130
    return 0


def _do(arguments: argparse.Namespace, settings: list[str]) -> None:
    if arguments.command in ("train", "evaluate"):
        place = arguments.coordinator, arguments.processes, arguments.process
        cluster.join(*place, preemptible=arguments.command == "train")
    compile_cache.keep(arguments)
    with _cleaning_up() if arguments.command == "data" else contextlib.nullcontext():
        result = arguments.run(arguments, settings)
    if arguments.json and cluster.first():
        print(json.dumps(result))
    if sys.stdout:
        sys.stdout.flush()
