"""`synergen serve`: a trained model over HTTP (docs/serving.md)."""

from __future__ import annotations

import argparse
import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError, first_line

EXTRA = ("fastapi", "pydantic", "pydantic_core", "starlette", "uvicorn", "prometheus_client")


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    serve = shared.command(
        commands,
        "serve",
        "Answer over HTTP: recommendations, searches, ranking, events that are kept; docs/serving.md tells of it.",
        "synergen serve runs/ml-100k --port 8000",
        run,
        leaves=True,
    )
    serve.add_argument("workdir", type=pathlib.Path)
    shared.log_version(serve, "the newest version")
    _place(serve)
    _limits(serve)
    _engine(serve)


def _place(to: argparse.ArgumentParser) -> None:
    """Arguments that say where the service listens, to whom, and what it tells."""
    group = to.add_argument_group("where, and for whom")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    group.add_argument("--api-keys", type=pathlib.Path, metavar="FILE", help="a key a line; callers need one of them")
    group.add_argument(
        "--no-api-keys", action="store_true", help="there are none: other machines may call, too, by any name"
    )
    group.add_argument("--log-users", action="store_true", help="log lines tell the ids of users")
    group.add_argument(
        "--drain", type=float, default=1.0, metavar="SECONDS", help="after SIGTERM: /readyz is 503, requests are taken"
    )
    group.add_argument(
        "--grace",
        type=int,
        default=30,
        metavar="SECONDS",
        help="then: for running requests to finish (default: 30)",
    )


def _limits(to: argparse.ArgumentParser) -> None:
    """Arguments that say how much a request may ask for, and how many run."""
    group = to.add_argument_group("limits")
    for name, default, text in (
        ("body", 1 << 20, "bytes of a request's body"),
        ("k", 1_000, "items of an answer"),
        ("candidates", 1_000, "candidates of a ranking"),
        ("listed", 10_000, "items that a request allows or denies"),
        ("events", 1_000, "events of a call"),
        ("query", 1_000, "characters of a query"),
    ):
        group.add_argument(
            f"--max-{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default:,})"
        )
    for name, default, text in (
        ("timeout", 2.0, "for an answer, where a request says nothing"),
        ("max-timeout", 10.0, "that a request may say"),
        ("write-timeout", 30.0, "for events to be stored or removed"),
    ):
        group.add_argument(
            f"--{name}", type=float, default=default, metavar="SECONDS", help=f"{text} (default: {default:g})"
        )
    for name, default, text in (
        ("requests", 512, "requests at once; further ones get 429"),
        ("threads", 64, "calls of the engine at once that ask"),
        ("store-threads", 16, "calls at once that store, show or remove events"),
    ):
        group.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")


def _engine(to: argparse.ArgumentParser) -> None:
    """Arguments of the engine."""
    group = to.add_argument_group("the engine")
    group.add_argument(
        "--store", metavar="FILE|URL", help="histories: a file, or postgresql://... (default: RUN/serving.sqlite)"
    )
    group.add_argument(
        "--shown", type=pathlib.Path, metavar="FOLDER", help="for the log of what was shown (default: RUN/shown)"
    )
    group.add_argument(
        "--shown-share", type=float, default=1.0, metavar="SHARE", help="of the answers that are logged (default: 1)"
    )
    group.add_argument("--queue", type=int, default=256, metavar="N", help="requests that may wait (default: 256)")
    group.add_argument(
        "--slots", type=int, default=1_024, metavar="N", help="histories kept on the device (default: 1,024)"
    )
    group.add_argument(
        "--host-memory", type=float, default=1.0, metavar="GIB", help="for histories kept in memory (default: 1)"
    )


def run(arguments, _) -> dict[str, typing.Any]:
    """Serves until SIGTERM or SIGINT."""
    try:
        from synergen_jax.serving.http import keys, server
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UserError(f"serving needs more ({first_line(error)}): pip install 'synergen-jax[serve]'") from None
    keys.check_exposure(arguments.host, arguments.api_keys is not None, arguments.no_api_keys)
    settings = _settings(arguments)
    with server.listen(arguments.host, arguments.port) as bound:  # a taken port is told before the model is loaded
        return {"requests": server.serve(_open(arguments), settings, bound)}


def _settings(arguments):
    from synergen_jax.serving.http import keys
    from synergen_jax.serving.http.settings import Limits, Settings

    limits = Limits(
        body=arguments.max_body,
        k=arguments.max_k,
        candidates=arguments.max_candidates,
        listed=arguments.max_listed,
        events=arguments.max_events,
        query=arguments.max_query,
        timeout=arguments.timeout,
        longest=arguments.max_timeout,
        writing=arguments.write_timeout,
    )
    return Settings(
        limits=limits,
        keys=None if arguments.api_keys is None else keys.read(arguments.api_keys),
        local=arguments.api_keys is None and not arguments.no_api_keys,
        requests=arguments.requests,
        threads=arguments.threads,
        store_threads=arguments.store_threads,
        log_users=arguments.log_users,
        drain=arguments.drain,
        grace=arguments.grace,
    )


def _open(arguments):
    """The engine of a run; it may still be getting ready."""
    from synergen_jax.runs import serve
    from synergen_jax.serving import engine

    settings = engine.Settings(
        slots=arguments.slots,
        host_bytes=round(arguments.host_memory * 2**30),
        waiting=arguments.queue,
        most=max(arguments.max_k, arguments.max_candidates),
    )
    return serve.open_engine(
        arguments.workdir,
        arguments.store,
        data_dir=arguments.data_dir,
        log=arguments.log,
        settings=settings,
        shown=arguments.shown,
        share=arguments.shown_share,
    )
