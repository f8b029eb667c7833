"""Requests that are wrong, too large, too slow or meant to harm: each gets one clear problem, and none an error."""

import asyncio
import time

import pytest
from small_service import SmallService, refused

EVENT = {"user": "u", "item": "5", "action": "view", "time": 1_700_000_000, "id": "e1"}
POSTS = ("/v1/recommend", "/v1/search", "/v1/rank", "/v1/similar", "/v1/events")
SMALL = {"body": 4_000, "body_time": 0.3, "k": 20, "candidates": 3, "listed": 4, "events": 2, "query": 10}


@pytest.fixture(scope="module")
def service():
    with SmallService(limits=SMALL) as made:
        yield made


@pytest.fixture(autouse=True)
def still_answers(service):
    """Whatever came, the next request is answered, and nothing is left running."""
    yield
    assert service.post("/v1/recommend", {}).status_code == 200
    figures = service.call("GET", "/metrics").text
    assert "synergen_requests_in_flight 0.0" in figures and 'status="500"' not in figures


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"not json",
        b'{"user": NaN}',
        b'{"k": Infinity}',
        b'{"k": -Infinity}',
        b'{"user": "\xff\xfe"}',
        b'{"user": "\xed\xa0\x80"}',  # half of a surrogate pair as bytes
        b'{"user": "\\ud800"}',
        b'{"user": "\\udc00x"}',
        b'{"user": "a\nb"}',
        b"{'user': 'u'}",
        b'{"user": "u"} {}',
        b'\xef\xbb\xbf{"user": "u"}',
        '{"user": "u"}'.encode("utf-16"),
        b"\x00",
        b"[" * 3_000,
        b'{"a":' * 700,
        b'{"user": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
        b'{"k": ' + b"9" * 3_990 + b"9}",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json(service, path, body):
    answer = service.post(path, body)
    assert answer.status_code in (400, 413, 422)
    kind = {400: "invalid-json", 413: "body-too-large", 422: "invalid-request"}[answer.status_code]
    assert len(refused(answer, answer.status_code, kind)["detail"]) < 300


@pytest.mark.parametrize(
    "body, named",
    [
        (b"", "the body"),
        (b"null", "the body"),
        (b"[]", "the body"),
        (b'"text"', "the body"),
        (b"7", "the body"),
        ({"user": 196}, "user"),
        ({"user": ["u"]}, "user"),
        ({"user": ""}, "user"),
        ({"user": "a\0b"}, "user: holds a NUL"),
        ({"user": "x" * 1025}, "user: has 1025 bytes"),
        ({"user": "\u4eba" * 400}, "user: has 1200 bytes"),
        ({"k": "3"}, "k"),
        ({"k": 3.5}, "k"),
        ({"k": True}, "k"),
        ({"k": 0}, "k"),
        ({"k": -1}, "k"),
        (b'{"k": 1e999}', "k"),
        (b'{"k": 1e300}', "k"),
        ({"k": 10**30}, "k"),
        ({"k": None}, "k"),
        ({"time": "2026-01-05"}, "time"),
        ({"time": 1.5}, "time"),
        ({"time": 0}, "time"),
        ({"time": -5}, "time"),
        ({"time": 10**17}, "time"),
        ({"allow": "5"}, "allow"),
        ({"allow": [5]}, "allow.0"),
        ({"deny": None}, "deny"),
        ({"deny": {"1": "2"}}, "deny"),
        ({"keep_seen": 1}, "keep_seen"),
        ({"order": 1}, "order"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": "100"}, "timeout_ms"),
        ({"users": "u"}, "users"),
        ({"query": "shoe"}, "query"),
        ({"__class__": 1, "x": 2}, "(and 1 more)"),
        ({"y" * 3000: 1}, "..."),
    ],
    ids=lambda value: repr(value)[:32],
)
def test_a_body_of_another_form(service, body, named):
    answer = service.post("/v1/recommend", body)
    assert named in refused(answer, 422, "invalid-request")["detail"]
    assert len(answer.json()["detail"]) < 400


@pytest.mark.parametrize(
    "path, body, named",
    [
        ("/v1/search", {"user": "u"}, "query"),
        ("/v1/search", {"query": ""}, "query"),
        ("/v1/rank", {"user": "u"}, "candidates"),
        ("/v1/rank", {"candidates": []}, "candidates"),
        ("/v1/similar", {}, "item"),
        ("/v1/events", {"events": []}, "events"),
        ("/v1/events", EVENT, "events"),
        ("/v1/events", {"events": [EVENT, EVENT | {"time": None}]}, "events.1.time"),
        ("/v1/events", {"events": [EVENT | {"item": ""}]}, "events.0: has neither"),
        ("/v1/events", {"events": [EVENT | {"action": ""}]}, "events.0.action"),
        ("/v1/events", {"events": [EVENT | {"id": "x" * 1025}]}, "events.0.id"),
    ],
)
def test_what_is_required(service, path, body, named):
    assert named in refused(service.post(path, body), 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    "path, body, named",
    [
        ("/v1/recommend", {"k": 21}, "k: 21"),
        ("/v1/recommend", {"allow": ["1"] * 5}, "allow: 5"),
        ("/v1/recommend", {"deny": ["1"] * 5}, "deny: 5"),
        ("/v1/recommend", {"timeout_ms": 10_001}, "timeout_ms"),
        ("/v1/search", {"query": "x" * 11}, "query"),
        ("/v1/rank", {"candidates": ["1"] * 4}, "candidates: 4"),
        ("/v1/similar", {"item": "1", "k": 21}, "k: 21"),
        ("/v1/events", {"events": [EVENT] * 3}, "events: 3"),
        ("/v1/events", {"events": [EVENT | {"query": "x" * 11}]}, "events.0.query"),
    ],
)
def test_more_than_one_request_may_have(service, path, body, named):
    assert named in refused(service.post(path, body), 422, "over-limit")["detail"]


def test_times_in_the_future(service):
    soon, late = int(time.time()) + 80_000, int(time.time()) + 90_000
    assert service.post("/v1/recommend", {"time": soon}).status_code == 200
    refused(service.post("/v1/recommend", {"time": late}), 422, "invalid-request", "time", "future")
    refused(service.post("/v1/rank", {"candidates": ["1"], "time": late}), 422, "invalid-request", "future")
    milliseconds = {"events": [EVENT, EVENT | {"time": 1_700_000_000_000}]}
    refused(service.post("/v1/events", milliseconds), 422, "invalid-request", "events.1.time", "Unix seconds")


def chunks(count, size=1_000, wait=0.0):
    """A body in pieces, without an end that was announced."""

    async def pieces():
        yield b'{"user": "'
        for _ in range(count):
            await asyncio.sleep(wait)
            pieces.sent += size
            yield b"x" * size
        yield b'"}'

    pieces.sent = 0
    return pieces


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_is_too_large(service, path):
    refused(service.post(path, b" " * 4_001), 413, "body-too-large", "4000")
    pieces = chunks(1_000_000)
    refused(
        service.call("POST", path, content=pieces(), headers={"content-type": "application/json"}),
        413,
        "body-too-large",
    )
    assert pieces.sent < 10_000, "the rest is not read"


@pytest.mark.parametrize("length", ["4001", "9" * 30, "5", "0", "-1", "x"])
def test_a_length_that_lies(service, length):
    headers = {"content-type": "application/json", "content-length": length}
    answer = service.call("POST", "/v1/recommend", content=chunks(100)(), headers=headers)
    refused(answer, 413, "body-too-large")


def test_a_body_that_does_not_come(service):
    pieces = chunks(100, 1, 0.05)
    headers = {"content-type": "application/json"}
    refused(service.call("POST", "/v1/recommend", content=pieces(), headers=headers), 408, "slow-body", "0.3")
    assert pieces.sent < 20


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": ""},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_sent_as_something_else(service, headers):
    refused(service.post("/v1/recommend", b"{}", **headers), 415, "not-json", "application/json")
    assert service.post("/v1/recommend", b"{}", **{"content-type": "Application/JSON; charset=utf-8"}).is_success


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("GET", "/v1/recommend", "POST"),
        ("PUT", "/v1/events", "POST"),
        ("POST", "/v1/users/u", "DELETE, GET"),
        ("HEAD", "/v1/users/u", "DELETE, GET"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("TRACE", "/v1/search", "POST"),
        ("BREW", "/v1/search", "POST"),
    ],
)
def test_another_method(service, method, path, allowed):
    answer = service.call(method, path)
    if method == "HEAD":
        assert answer.status_code == 405 and not answer.content
    else:
        refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/nope", "/v1", "/v1/recommend/", "/v1/users", "/docs", "//healthz"])
def test_another_path(service, path):
    refused(service.call("GET", path), 404, "not-found")
    assert service.call("HEAD", path).status_code == 404


@pytest.mark.parametrize("path", ["", "%FF", "%ED%A0%80", "%00", "a%00b", "x" * 1025])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_path_that_names_no_user(service, method, path):
    refused(service.call(method, f"/v1/users/{path}"), 422, "invalid-request", "user's id")


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "NaN", "3", "9" * 5_000, ""])
def test_how_many_events_are_shown(service, last):
    answer = service.call("GET", f"/v1/users/u?last={last}")
    refused(answer, 422, "over-limit" if last == "3" else "invalid-request", "last")
    assert service.call("GET", "/v1/users/u").status_code == 200


def test_a_whole_number_may_be_written_in_any_way(service):
    for text in (b'{"k": 3.0}', b'{"k": 0.3e1}', b'{"k": 3}'):
        assert len(service.post("/v1/recommend", text).json()["items"]) == 3
