"""The service's description of itself, as OpenAPI has it."""

from __future__ import annotations

import http
import typing

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from synergen_jax.serving.http import answers, limits, problems
from synergen_jax.serving.http.metrics import USERS
from synergen_jax.serving.http.settings import Settings

_BODY = (400, 401, 408, 413, 415, 421, 422, 429, 500)
ASKING = (*_BODY, 503, 504)
WRITING = (*_BODY, 503)
SHOWING = (401, 404, 421, 422, 429, 500, 503, 504)
SHOWN = f"{USERS}{{id}}"
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def refusals(*statuses: int) -> dict[int | str, dict[str, typing.Any]]:
    """What an endpoint may answer beside what it is asked for."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


def described(app: FastAPI, settings: Settings) -> dict[str, typing.Any]:
    """The description, made once: limits are those of the settings, and keys are told where they are needed."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = made["components"]
        parts["schemas"]["ProblemDetails"] = answers.ProblemDetails.model_json_schema()
        for name, fields in limits.described(settings.limits).items():
            for field, keywords in fields.items():
                _bound(parts["schemas"][name]["properties"][field], keywords)
        (shown,) = (one for one in made["paths"][SHOWN]["get"]["parameters"] if one["name"] == "last")
        _bound(shown["schema"], {"maximum": settings.limits.events})
        if settings.keys is not None:
            parts["securitySchemes"] = SCHEMES
            made["security"] = [{name: []} for name in SCHEMES]
        app.openapi_schema = made
    return app.openapi_schema


def _bound(schema: dict[str, typing.Any], keywords: dict[str, int]) -> None:
    """Adds keywords to a field's schema, or to that of what it is where it may be null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    (choices[0] if choices else schema).update(keywords)
