"""Sends made-up requests, valid and invalid by the service's own description, and counts what is answered.

No request may be answered by an error (5xx), nor otherwise than the description says. The service runs in this process,
over the fake engine of its tests. Needs `pip install '.[serve]' schemathesis`.

    PYTHONPATH=tests/serving python experiments/serving/fuzz.py --examples 200

Status 0: nothing was found.
"""

from __future__ import annotations

import argparse
import collections
import logging
import sys

import hypothesis
import schemathesis
from fake_engine import FakeEngine
from schemathesis.core.failures import Failure, FailureGroup

from synergen_jax.serving.http import app
from synergen_jax.serving.http.settings import Limits, Settings


class AnyEngine(FakeEngine):
    """The fake one, which knows whatever items and actions it is asked for."""

    def _known(self, item):
        pass

    def _known_action(self, place, action):
        pass


def expected(response) -> bool:
    """Whether a request may be refused so, whatever the description says of its form.

    What it names is not there or makes no sense, time was short, or it is too large as a whole.
    """
    told = response.json() if response.status_code >= 400 else {}
    said = ("neither an item nor a query", "in the future", "bytes; an id", "deadline")
    named = told.get("type", "").startswith("urn:problem:synergen:unknown-")
    return named or response.status_code == 413 or any(part in told.get("detail", "") for part in said)


def fuzz(operation: schemathesis.APIOperation, mode: schemathesis.GenerationMode, examples: int):
    """How often each status was answered, and what was found: a failure's title and how to make it again."""
    statuses, found = collections.Counter(), {}

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def ask(case):
        response = case.call()
        statuses[response.status_code] += 1
        if response.status_code == 404:  # nobody is unknown to a store: the path did not lead where it says
            found.setdefault("Not found", case.as_curl_command())
        try:
            case.validate_response(response)
        except (Failure, FailureGroup) as error:
            if expected(response):
                return
            for one in getattr(error, "exceptions", [error]):
                found.setdefault(one.title, f"{one}\n{case.as_curl_command()[:500]}\n{response.text[:300]}")

    ask()
    return statuses, found


def main() -> int:
    """Fuzzes every endpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, metavar="N", help="requests an endpoint and kind")
    arguments = parser.parse_args()
    logging.getLogger("synergen_jax.serving.http").setLevel(logging.WARNING)
    settings = Settings(limits=Limits(timeout=5.0))
    service = app.Service(AnyEngine(), settings)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app.create(service, settings))
    wrong = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            try:
                statuses, found = fuzz(operation, mode, arguments.examples)
            except hypothesis.errors.Unsatisfiable:
                continue  # an endpoint without arguments has no invalid ones
            print(f"{operation.method.upper():6} {operation.path:16} {mode.value:8} {dict(sorted(statuses.items()))}")
            for text in found.values():
                print(text)
            wrong += len(found)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
