"""The service from its first moment to its last: a socket, uvicorn, signals, and the end of the engine."""

from __future__ import annotations

import asyncio
import socket
import sys
import types

import uvicorn

from synergen_jax.errors import UserError
from synergen_jax.serving.http import app, logs
from synergen_jax.serving.http.settings import Engine, Settings


def listen(host: str, port: int) -> socket.socket:
    """A socket that has its address, and lets nobody in yet.

    Args:
      port: 0: any that is free.

    Raises:
      UserError: the address is taken, or is none of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port}: a port lies within 0 .. {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error}") from None
    return bound


def serve(engine: Engine, settings: Settings, bound: socket.socket) -> int:
    """Answers requests until SIGTERM or SIGINT, then closes the engine.

    First /readyz says 503 for `drain` seconds, so that whoever sends requests sends them elsewhere; then no more are
    taken, and those that run have `grace` seconds. A second signal ends the waiting.

    Returns:
      How many requests there were.
    """
    logs.begin(sys.stderr)
    service = app.Service(engine, settings)
    config = uvicorn.Config(
        app.create(service, settings),
        log_config=None,
        access_log=False,
        http="h11",  # httptools is faster, and keeps headers of any size in memory
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.grace,
    )
    server = _Server(config, service, settings.drain)
    host, port = bound.getsockname()[:2]
    logs.say("serving", host=host, port=port, model=engine.name, keys=settings.keys is not None)
    try:
        server.run(sockets=[bound])
    finally:
        service.close()
        engine.close()
        logs.say("ended")
    return server.server_state.total_requests


class _Server(uvicorn.Server):
    """uvicorn's, which ends in two steps, and with status 0."""

    def __init__(self, config: uvicorn.Config, service: app.Service, drain: float):
        super().__init__(config)
        self._service, self._drain = service, drain
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Remembers the loop, which signals speak to."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """A signal has come: uvicorn would send it to the process once more after the end."""
        if self._service.stopping or self._loop is None:
            self.should_exit = True
            return
        self._service.stopping = True
        self._loop.call_soon_threadsafe(self._loop.call_later, self._drain, self._end)

    def _end(self) -> None:
        self.should_exit = True
