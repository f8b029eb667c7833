"""A client of `synergen serve` in the standard library, to be copied. Shows answers before and after an event:

python experiments/serving/client.py http://127.0.0.1:8000 USER ITEM ACTION [KEY]
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
import typing
import urllib.error
import urllib.request
import uuid

Json = dict[str, typing.Any]


class Client:
    """A service at an address. What it cannot do now (429, 503) is asked again, when it says so."""

    def __init__(self, url: str, key: str = "", timeout: float = 10, attempts: int = 5):
        self.url, self.timeout, self.attempts = url.rstrip("/"), timeout, attempts
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def recommend(self, user: str | None, **more: typing.Any) -> Json:
        """The best items of a user; None: nobody in particular."""
        return self.call("/v1/recommend", {"user": user} | more)

    def search(self, query: str, **more: typing.Any) -> Json:
        """The items that words ask for."""
        return self.call("/v1/search", {"query": query} | more)

    def rank(self, candidates: list[str], **more: typing.Any) -> Json:
        """Scores of items."""
        return self.call("/v1/rank", {"candidates": candidates} | more)

    def add(self, events: list[Json]) -> Json:
        """Stores events. Each has an id before it is sent, so that one that is sent again is stored once."""
        return self.call("/v1/events", {"events": [{"id": uuid.uuid4().hex} | event for event in events]})

    def call(self, path: str, body: Json) -> Json:
        """An answer; raises `ValueError` with the problem of what is refused, `OSError` where nobody answers."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), self.headers)
        for attempt in range(1, self.attempts + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or attempt == self.attempts:
                    raise ValueError(error.read().decode()) from None
                wait = float(error.headers.get("Retry-After", 1))
            except (OSError, http.client.HTTPException):
                if attempt == self.attempts:
                    raise
                wait = 0.1 * 2**attempt
            time.sleep(wait * random.uniform(1, 1.5))  # not all clients at once
        raise ValueError("attempts: at least one")


if __name__ == "__main__":
    url, user, item, action, *key = sys.argv[1:]
    client = Client(url, *key)
    before = client.recommend(user)
    event = {"user": user, "item": item, "action": action, "time": int(time.time()), "request": before["request_id"]}
    print(client.add([event])["outcomes"])
    for answer in (before, client.recommend(user)):
        print(answer["version"], [one["item"] for one in answer["items"]])
