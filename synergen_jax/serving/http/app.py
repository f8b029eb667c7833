"""The endpoints: what each takes, what it asks of the engine, and what it answers."""

from __future__ import annotations

import collections.abc
import time
import typing
import urllib.parse

import pydantic_core
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Answer, TooLate
from synergen_jax.serving.http import answers, bodies, limits, metrics, openapi, problems
from synergen_jax.serving.http.door import Door
from synergen_jax.serving.http.problems import Problem
from synergen_jax.serving.http.settings import Engine, Settings
from synergen_jax.serving.http.threads import Threads

GRACE = 0.5  # seconds for which an engine may say itself that it was too late
LATE = "The request was not answered within its deadline."
UNSURE = "It was not done in time, and may still be done; send it again, events with the same ids."
_Made = typing.TypeVar("_Made")


class AnyText(Convertor[str]):
    """A part of a path that may be any text; the framework's own, `path`, ends where a line does."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """The same."""
        return value

    def to_string(self, value: str) -> str:
        """The same."""
        return value


register_url_convertor("text", AnyText())


class JsonRequest(Request):
    """A request whose JSON is what the standard says: UTF-8, no NaN, no halves of surrogates, no endless depth."""

    async def json(self) -> typing.Any:
        """The body.

        Raises:
          Problem: it is not JSON.
        """
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise Problem(400, "invalid-json", f"The body is not JSON: {error}") from None


class JsonRoute(APIRoute):
    """A route whose body is JSON, and says so: what a form of another site sends is not taken."""

    def get_route_handler(self) -> collections.abc.Callable[[Request], collections.abc.Coroutine[None, None, Response]]:
        """Checks the headers first."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if request.method == "POST":
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
                    raise Problem(415, "not-json", "The body must be sent as Content-Type: application/json, plain.")
            return await handle(JsonRequest(request.scope, request.receive))

        return checked


class Service:
    """What answers requests out of an engine."""

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.limits = engine, settings.limits
        self.stopping = False  # it takes requests still, and says that it will not for long
        self.asks = Threads(settings.threads, "ask")
        self.store = Threads(settings.store_threads, "store")
        self.scrapes = Threads(1, "metrics")
        self.metrics = metrics.Metrics(self._gauges)

    def close(self) -> None:
        """Lets the threads end."""
        for threads in (self.asks, self.store, self.scrapes):
            threads.close()

    async def recommend(self, request: Request, body: bodies.Recommend) -> answers.Answer:
        """Recommends items to a user."""
        return await self._ask(request, body)

    async def search(self, request: Request, body: bodies.Search) -> answers.Answer:
        """Searches for items, for a user."""
        return await self._ask(request, body)

    async def rank(self, request: Request, body: bodies.Rank) -> answers.Answer:
        """Scores items of the caller's for a user."""
        return await self._ask(request, body)

    async def similar(self, request: Request, body: bodies.Similar) -> answers.Found:
        """Finds the items most like one."""
        limits.check(body, self.limits)
        within = limits.seconds(body, self.limits)
        self._refuse_unready()
        found = await self.asks.call(within, LATE, lambda: self.engine.similar(body.item, body.k))
        return answers.Found(request_id=_id(request), model=self.engine.name, items=answers.items(found))

    async def add(self, request: Request, body: bodies.Events) -> answers.Outcomes:
        """Stores events; once it has answered, they are on disk, and every later answer knows them."""
        limits.check(body, self.limits)
        request.state.user = sorted({event.user for event in body.events})
        events = [event.event() for event in body.events]
        outcomes = await self._write(lambda: self.engine.add(events))
        return answers.Outcomes.of(_id(request), outcomes)

    async def user(
        self,
        request: Request,
        id: str,
        last: typing.Annotated[
            int | None, Query(ge=0, le=2**53, description="how many; else 100, or fewer by a setting")
        ] = None,
    ) -> answers.User:
        """Shows a user's newest events."""
        count = limits.last(last, self.limits)
        user = _user(request, id)
        history = await self.store.call(self.limits.longest, LATE, lambda: self.engine.history(user, count))
        return answers.User.of(_id(request), user, history)

    async def delete(self, request: Request, id: str) -> answers.Deleted:
        """Removes all of a user; of one whom nobody knows 0 events."""
        user = _user(request, id)
        deleted = await self._write(lambda: self.engine.delete(user))
        return answers.Deleted(request_id=_id(request), user=user, deleted=deleted)

    async def healthz(self, request: Request) -> answers.Health:
        """Says that the process lives."""
        return answers.Health(request_id=_id(request), status="alive")

    async def readyz(self, request: Request) -> answers.Health:
        """Says whether to send requests here."""
        if self.stopping:
            raise problems.stopping()
        self._refuse_unready()
        return answers.Health(request_id=_id(request), status="ready")

    async def prometheus(self) -> Response:
        """Tells figures to Prometheus."""
        text = await self.scrapes.call(self.limits.longest, "The figures were not there in time.", self.metrics.text)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def _ask(self, request: Request, body: bodies.Recommend | bodies.Rank) -> answers.Answer:
        limits.check(body, self.limits)
        within = limits.seconds(body, self.limits)
        request.state.user = body.user
        self._refuse_unready()
        ask, end = body.ask(), time.monotonic() + within

        def answer() -> Answer:
            if (left := end - time.monotonic()) <= 0:
                raise TooLate(LATE)
            return self.engine.ask(ask, left, _id(request))

        return answers.Answer.of(_id(request), await self.asks.call(within + GRACE, LATE, answer))

    async def _write(self, change: collections.abc.Callable[[], _Made]) -> _Made:
        try:
            return await self.store.call(self.limits.writing, UNSURE, change)
        except TooLate as error:
            raise Problem(503, "unavailable", str(error), problems.retry_after(problems.LATER)) from None

    def _refuse_unready(self) -> None:
        if self.engine.failed:
            raise Problem(503, "failed", "The model could not be started: the log of the service tells why.")
        if not self.engine.ready:
            wait = problems.retry_after(problems.LATER)
            raise Problem(503, "not-ready", "The model is being loaded and compiled.", wait)

    def _gauges(self) -> dict[str, float]:
        threads = {"threads_asking": self.asks.busy, "threads_storing": self.store.busy}
        return {"ready": float(self.engine.ready)} | threads | self.engine.gauges()


def create(service: Service, settings: Settings) -> FastAPI:
    """The application (ASGI) that answers for a service."""
    app = FastAPI(title="SynerGen", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = JsonRoute
    for path, answer, refused in (
        ("/v1/recommend", service.recommend, openapi.ASKING),
        ("/v1/search", service.search, openapi.ASKING),
        ("/v1/rank", service.rank, openapi.ASKING),
        ("/v1/similar", service.similar, openapi.ASKING),
        ("/v1/events", service.add, openapi.WRITING),
    ):
        app.add_api_route(path, answer, methods=["POST"], responses=openapi.refusals(*refused))
    users = f"{metrics.USERS}{{id:text}}"
    app.add_api_route(users, service.user, methods=["GET"], responses=openapi.refusals(*openapi.SHOWING))
    app.add_api_route(users, service.delete, methods=["DELETE"], responses=openapi.refusals(*openapi.SHOWING))
    for path, answer, refused, kind in (
        ("/healthz", service.healthz, (421,), JSONResponse),
        ("/readyz", service.readyz, (421, 503), JSONResponse),
        ("/metrics", service.prometheus, (401, 421, 504), PlainTextResponse),
    ):
        refusals = openapi.refusals(*refused)
        app.add_api_route(path, answer, methods=["GET"], responses=refusals, response_class=kind)
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    for kind in (HTTPException, RequestValidationError, UserError):
        app.add_exception_handler(kind, _refuse)
    app.add_middleware(Door, settings=settings, metrics=service.metrics, model=service.engine.name)
    app.openapi = lambda: openapi.described(app, settings)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """Tells what is wrong with a request."""
    problem = problems.of(error)
    if problem is None:
        raise error
    if problem.status_code == 405:
        there = [route for route in request.app.routes if route.path_regex.match(request.url.path)]
        methods = sorted({method for route in there for method in route.methods})
        problem.headers = {**(problem.headers or {}), "Allow": ", ".join(methods)}
    return problem.response(_id(request))


def _id(request: Request) -> str:
    return request.state.request_id


def _user(request: Request, told: str) -> str:
    """The user whom a path names, whatever characters the id has.

    Args:
      told: the same as the framework decoded it, where bytes that are no text have become question marks.

    Raises:
      Problem: it is no id.
    """
    raw = request.scope.get("raw_path", b"").decode("latin-1")
    try:
        whole = urllib.parse.unquote(raw, errors="strict") if raw else f"{metrics.USERS}{told}"
        user = bodies.check_id(whole.removeprefix(metrics.USERS))
    except ValueError as error:
        said = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Problem(422, "invalid-request", f"The user's id in the path {said}.") from None
    request.state.user = user
    return user
