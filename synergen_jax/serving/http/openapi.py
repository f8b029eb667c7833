"""The service's description of itself, as OpenAPI has it."""

from __future__ import annotations

import http
import typing

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from synergen_jax.serving.http import answers, problems

_BODY = (400, 401, 408, 413, 415, 422, 429, 500)
ASKING = (*_BODY, 503, 504)
WRITING = (*_BODY, 503)
SHOWING = (401, 404, 422, 429, 500, 503, 504)
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def refusals(*statuses: int) -> dict[int | str, dict[str, typing.Any]]:
    """What an endpoint may answer beside what it is asked for."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


def described(app: FastAPI, keys: bool) -> dict[str, typing.Any]:
    """The description, made once.

    Args:
      keys: callers need one.
    """
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = made.setdefault("components", {})
        parts.setdefault("schemas", {})["ProblemDetails"] = answers.ProblemDetails.model_json_schema()
        if keys:
            parts["securitySchemes"] = SCHEMES
            made["security"] = [{name: []} for name in SCHEMES]
        app.openapi_schema = made
    return app.openapi_schema
