"""What every request passes on its way in and out: its id, keys, limits, what is counted and what is logged."""

from __future__ import annotations

import asyncio
import re
import time
import typing
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from synergen_jax.serving.http import logs, problems
from synergen_jax.serving.http.keys import Keys, names_loopback
from synergen_jax.serving.http.metrics import Metrics, template
from synergen_jax.serving.http.problems import Problem
from synergen_jax.serving.http.settings import Limits, Settings

OPEN = ("/healthz", "/readyz")  # without a key
ALWAYS = (*OPEN, "/metrics")  # however many requests run
SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
CLOSE = {"Connection": "close"}  # what a client still sends is not read


class Door:
    """Lets requests in to an application, and tells what became of them.

    An error that nobody foresaw is logged with its traceback, and its answer says nothing of it.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, model: str):
        self._app, self._settings, self._metrics, self._model = app, settings, metrics, model
        self._keys = None if settings.keys is None else Keys(settings.keys)
        self._running = 0  # requests that count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        counts = scope["path"] not in ALWAYS
        self._running += counts
        self._metrics.running.set(self._running)
        try:
            await self._let_in(visit, receive)
        finally:
            self._running -= counts
            self._metrics.running.set(self._running)
            self._tell(visit)

    async def _let_in(self, visit: _Visit, receive: Receive) -> None:
        try:
            self._check(visit.scope)
            await self._app(visit.scope, _bounded(receive, self._settings.limits), visit.send)
        except Problem as problem:
            await problem.response(visit.id)(visit.scope, receive, visit.send)
        except asyncio.CancelledError:  # the service ends, and waits no longer: whoever asked is told, and that is all
            if not visit.status:
                await problems.stopping().response(visit.id)(visit.scope, receive, visit.send)
        except Exception:
            logs.failed("error", request_id=visit.id, path=visit.path)
            if visit.status:
                raise  # the answer has begun: all that is left is to cut it off
            await problems.unforeseen().response(visit.id)(visit.scope, receive, visit.send)

    def _check(self, scope: Scope) -> None:
        """Refuses who has no key or calls by another name, what is too large, and what comes while too much runs."""
        if self._settings.local and not names_loopback(_header(scope, b"host").decode("latin-1")):
            raise Problem(
                421, "wrong-host", "Without API keys the service is called by localhost or 127.0.0.1 only.", CLOSE
            )
        if self._keys and scope["path"] not in OPEN and not self._keys.admit(scope["headers"]):
            raise Problem(
                401,
                "unauthorized",
                "An API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY.",
                {"WWW-Authenticate": "Bearer"} | CLOSE,
            )
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:18]) > self._settings.limits.body:
            raise _too_large(self._settings.limits)
        if scope["path"] not in ALWAYS and self._running > self._settings.requests:
            wait = problems.retry_after(1)
            raise Problem(429, "overloaded", "Too many requests run already; ask again later.", wait | CLOSE)

    def _tell(self, visit: _Visit) -> None:
        """Counts and logs a request that is over; status 0: it was cut off."""
        seconds = time.perf_counter() - visit.begin
        self._metrics.answered(visit.path, visit.scope["method"], visit.status, seconds)
        line: dict[str, typing.Any] = {
            "request_id": visit.id,
            "method": visit.scope["method"],
            "path": visit.path,
            "status": visit.status,
            "ms": round(seconds * 1000, 2),
            "model": self._model,
        }
        if self._settings.log_users:
            line |= {"full_path": visit.scope["path"], "user": visit.scope["state"].get("user")}
        logs.say("request", **line)


class _Visit:
    """One request: its id, and the status of its answer once that has begun."""

    def __init__(self, scope: Scope, send: Send):
        self.scope, self._send = scope, send
        self.path, self.status, self.begin = template(scope["path"]), 0, time.perf_counter()
        given = _header(scope, b"x-request-id")
        self.id = given.decode() if SANE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.id

    async def send(self, message: Message) -> None:
        """Passes a part of the answer on, with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["Cache-Control"] = "no-store"
        await self._send(message)


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _too_large(limits: Limits) -> Problem:
    return Problem(413, "body-too-large", f"The body has more than {limits.body} bytes.", CLOSE)


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """Receives a body as long as it is within its limits, whatever length was announced."""
    taken, whole, end = 0, False, asyncio.get_running_loop().time() + limits.body_time

    async def bounded() -> Message:
        nonlocal taken, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise Problem(
                408, "slow-body", f"The body has not come within {limits.body_time:g} seconds.", CLOSE
            ) from None
        taken += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if taken > limits.body:
            raise _too_large(limits)
        return message

    return bounded
