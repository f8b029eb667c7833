"""What is refused, and how it is told: problem details as RFC 9457 has them, in one clear sentence."""

from __future__ import annotations

import http
import json
import math
import typing

import fastapi
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Overloaded, TooLate, Unknown
from synergen_jax.serving.history.store import Unavailable

MEDIA_TYPE = "application/problem+json"
LATER = 5.0  # seconds after which to ask a store again that cannot do it now

# What the status alone says, for those that come from the framework.
KINDS = {400: "invalid-json", 404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}


class Problem(fastapi.HTTPException):
    """A request that is refused, or could not be answered.

    Args:
      kind: the last part of its `type`, by which programs tell problems apart.
      detail: one sentence.
      more: further members of the JSON object.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        headers: dict[str, str] | None = None,
        more: dict[str, typing.Any] | None = None,
    ):
        super().__init__(status, detail, headers)
        self.kind, self.more = kind, more or {}

    def response(self, request_id: str) -> Response:
        """The answer that tells it."""
        body = {
            "type": f"urn:problem:synergen:{self.kind}",
            "title": http.HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "detail": self.detail,
            "request_id": request_id,
        }
        return Response(json.dumps(body | self.more), self.status_code, self.headers, MEDIA_TYPE)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to ask again, in whole seconds."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def of(error: Exception) -> Problem | None:
    """The problem that an error is; None: an error that nobody foresaw."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return Problem(422, "invalid-request", _faults(error.errors()))
        case HTTPException():
            return _of_framework(error)
        case Overloaded():
            return Problem(429, "overloaded", str(error), retry_after(error.retry_after))
        case TooLate():
            return Problem(504, "too-late", str(error))
        case Unavailable():
            return Problem(503, "unavailable", str(error), retry_after(LATER))
        case Unknown():
            status = 404 if error.what == "user" else 422
            return Problem(status, f"unknown-{error.what}", str(error), more={"value": error.value})
        case UserError():
            return Problem(422, "invalid-request", str(error))
    return None


def unforeseen() -> Problem:
    """What is said of an error of the program: nothing of its inside, which the log tells."""
    return Problem(500, "internal", "The service has failed; its log tells why, under this request id.")


def stopping() -> Problem:
    """What is said while the service shuts down."""
    return Problem(503, "stopping", "The service is shutting down.", retry_after(LATER))


def _of_framework(error: HTTPException) -> Problem:
    details = {
        404: "There is no such path; /openapi.json lists those that there are.",
        405: "This path has other methods; the header Allow lists them.",
    }
    detail = details.get(error.status_code, str(error.detail))
    headers = dict(error.headers) if error.headers else None
    return Problem(error.status_code, KINDS.get(error.status_code, "refused"), detail, headers)


def _faults(errors: typing.Sequence[typing.Any]) -> str:
    """The first fault that validation found, by its place in the request, and how many more there are."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    said = str(first["msg"]).removeprefix("Value error, ")
    if len(place) > 200:  # an unknown field may have any name
        place = f"{place[:200]}..."
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place}: {said[:1].lower()}{said[1:]}{more}"
