"""A service over the fake engine, or another one, called without a network."""

import asyncio
import json

import httpx
from fake_engine import FakeEngine

from synergen_jax.serving.http import app
from synergen_jax.serving.http.settings import Limits, Settings


class SmallService:
    """A service and its callers.

    Args:
      engine: another one than the fake.
      limits, settings: those that are not as usual.
    """

    def __init__(self, limits=None, engine=None, **settings):
        self.engine = engine or FakeEngine()
        few = {"threads": 4, "store_threads": 2}
        settings = Settings(limits=Limits(**(limits or {})), **(few | settings))
        self.service = app.Service(self.engine, settings)
        self.app = app.create(self.service, settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.service.close()

    def call(self, method, path, **request):
        """What is answered to one request, as httpx takes it."""
        return self.together((method, path, request))[0]

    def post(self, path, body, **headers):
        """What is answered to JSON, given as an object or as bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, content=content, headers={"content-type": "application/json"} | headers)

    def get(self, path):
        """What is answered to a GET."""
        return self.call("GET", path)

    def together(self, *requests):
        """What is answered to requests that run at once."""

        async def run():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
                calls = (client.request(method, path, **request) for method, path, request in requests)
                return await asyncio.gather(*calls)

        return asyncio.run(run())


def refused(answer, status, kind, *parts):
    """Asserts that an answer is a problem of a kind, whose sentence holds some parts."""
    body = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"urn:problem:synergen:{kind}"), body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == status and body["title"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert all(part in body["detail"] for part in parts), body["detail"]
    assert "\n" not in body["detail"] and "Traceback" not in answer.text
    return body
