"""How much a request may ask for, and which times make sense."""

from __future__ import annotations

import time

from synergen_jax.serving.http import bodies
from synergen_jax.serving.http.problems import Problem
from synergen_jax.serving.http.settings import Limits

AHEAD = 86_400  # seconds that a time may lie in the future: clocks differ
SHOWN = 100  # events, where a request does not say how many


def check(body: bodies.Body, limits: Limits) -> None:
    """Refuses a body that asks for too much, or that names a time which cannot be one."""
    match body:
        case bodies.Recommend():
            _most("k", body.k, limits.k)
            _most("allow", len(body.allow or ()), limits.listed)
            _most("deny", len(body.deny), limits.listed)
            _at("time", body.time)
        case bodies.Rank():
            _most("candidates", len(body.candidates), limits.candidates)
            _at("time", body.time)
        case bodies.Similar():
            _most("k", body.k, limits.k)
        case bodies.Events():
            _most("events", len(body.events), limits.events)
            for place, event in enumerate(body.events):
                _at(f"events.{place}.time", event.time)
                _words(f"events.{place}.query", event.query, limits)
    if isinstance(body, bodies.Search | bodies.Rank):
        _words("query", body.query, limits)


def described(limits: Limits) -> dict[str, dict[str, dict[str, int]]]:
    """The same, as the schemas of bodies have it: keywords by name and field."""
    query, k = {"maxLength": limits.query}, {"maximum": limits.k}
    timed = {"timeout_ms": {"maximum": round(limits.longest * 1000)}}
    listed = {name: {"maxItems": limits.listed} for name in ("allow", "deny")}
    return {
        "Recommend": {"k": k} | listed | timed,
        "Search": {"k": k, "query": query} | listed | timed,
        "Rank": {"candidates": {"maxItems": limits.candidates}, "query": query} | timed,
        "Similar": {"k": k} | timed,
        "Events": {"events": {"maxItems": limits.events}},
        "OneEvent": {"query": query},
    }


def seconds(body: bodies.Timed, limits: Limits) -> float:
    """Within which to answer.

    Raises:
      Problem: the request wants more than it may.
    """
    if body.timeout_ms is None:
        return limits.timeout
    _most("timeout_ms", body.timeout_ms, round(limits.longest * 1000))
    return body.timeout_ms / 1000


def last(count: int | None, limits: Limits) -> int:
    """How many events to show.

    Raises:
      Problem: more than one answer may have.
    """
    if count is None:
        return min(SHOWN, limits.events)
    _most("last", count, limits.events)
    return count


def _most(name: str, value: int, most: int) -> None:
    if value > most:
        raise Problem(422, "over-limit", f"{name}: {value} is more than the {most} that one request may have")


def _words(name: str, query: str, limits: Limits) -> None:
    if len(query) > limits.query:
        raise Problem(422, "over-limit", f"{name}: {len(query)} characters are more than {limits.query}")


def _at(name: str, at: int | None) -> None:
    if at is not None and at > time.time() + AHEAD:
        raise Problem(
            422, "invalid-request", f"{name}: {at} lies more than a day in the future; times are Unix seconds"
        )
