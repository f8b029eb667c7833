"""What each endpoint asks of the engine, what it answers, and which problem each error becomes."""

import json
import time
from urllib.parse import quote

import pytest
from small_service import SmallService, refused

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Ask, Overloaded, TooLate, Unknown
from synergen_jax.serving.history.store import Unavailable

EVENT = {"user": "u", "item": "5", "action": "view", "time": 1_700_000_000, "id": "e1"}
ASKS = (
    ("/v1/recommend", {}),
    ("/v1/search", {"query": "shoe"}),
    ("/v1/rank", {"candidates": ["7", "3"]}),
    ("/v1/similar", {"item": "7"}),
)


@pytest.fixture
def service():
    with SmallService() as made:
        yield made


def test_a_recommendation(service):
    answer = service.post("/v1/recommend", {"user": "u", "k": 2, "time": 1_700_000_100})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": answer.headers["x-request-id"],
        "model": "shop@1, step 10",
        "items": [
            {"item": "1", "score": 1.0, "probability": {"buy": 0.5}},
            {"item": "2", "score": 0.5, "probability": {"buy": 0.5}},
        ],
        "version": 0,
        "events": 0,
        "time": 1_700_000_100,
        "query_known": True,
        "unknown_words": [],
    }


def test_the_engine_is_asked_what_the_body_says(service):
    body = {
        "user": "a/b\n\u00e9",
        "k": 3,
        "time": 5,
        "order": "buy",
        "allow": ["1", "2"],
        "deny": ["2"],
        "keep_seen": True,
        "timeout_ms": 700,
    }
    assert service.post("/v1/search", body | {"query": "red shoe"}).json()["unknown_words"] == ["red"]
    assert service.post("/v1/recommend", {}).status_code == 200
    assert service.post("/v1/rank", {"candidates": ["7", "3"], "query": "q", "user": "u"}).status_code == 200
    (search, within), (plain, usual), (rank, _) = service.engine.asked
    assert search == Ask("a/b\n\u00e9", "red shoe", 3, 5, "buy", None, {"1", "2"}, {"2"}, True)
    assert plain == Ask(deny=frozenset()) and rank == Ask("u", "q", 2, candidates=("7", "3"))
    assert 0.5 < within <= 0.7 and 1.5 < usual <= 2.0


def test_ranking_keeps_the_order_of_the_candidates(service):
    items = service.post("/v1/rank", {"candidates": ["7", "3"]}).json()["items"]
    assert [one["item"] for one in items] == ["7", "3"]


def test_similar_items(service):
    answer = service.post("/v1/similar", {"item": "2", "k": 2}).json()
    assert [one["item"] for one in answer["items"]] == ["1", "3"] and answer["model"]


def test_events_are_stored_shown_and_removed(service):
    other = {"user": "u", "query": "shoe", "action": "view", "time": 1_600_000_000, "request": "r1"}
    told = service.post("/v1/events", {"events": [EVENT, other]}).json()
    assert [one["status"] for one in told["outcomes"]] == ["stored", "stored"] and told["outcomes"][0]["id"] == "e1"
    again = service.post("/v1/events", {"events": [EVENT, EVENT | {"item": "6"}]}).json()
    assert [one["status"] for one in again["outcomes"]] == ["known", "conflict"]
    shown = service.call("GET", "/v1/users/u").json()
    assert [one["item"] for one in shown["events"]] == ["", "5"] and shown["version"] == 2
    assert shown["events"][0] == {key: other.get(key, "") for key in ("item", "action", "time", "query", "request")} | {
        "id": told["outcomes"][1]["id"]
    }
    assert [one["id"] for one in service.call("GET", "/v1/users/u?last=1").json()["events"]] == ["e1"]
    assert service.post("/v1/recommend", {"user": "u"}).json()["version"] == 2
    assert service.call("DELETE", "/v1/users/u").json()["deleted"] == 2
    assert service.call("DELETE", "/v1/users/u").json()["deleted"] == 0
    assert service.call("GET", "/v1/users/u").json()["events"] == []


@pytest.mark.parametrize(
    "user",
    ["a/b", "/", "a//b/", "?x=1#y", "\u00fc \u4eba", "%2F", "\n", "a\nb\r\n", "\u2028\x85\t", "..x", "+", "x" * 1024],
)
def test_a_user_may_have_any_id(service, user):
    service.post("/v1/events", {"events": [EVENT | {"user": user}]})
    for path in (f"/v1/users/{quote(user, safe='')}", f"/v1/users/{quote(user)}", f"/v1/%75sers/{quote(user)}"):
        shown = service.call("GET", path).json()
        assert shown["user"] == user and len(shown["events"]) == 1
    assert service.call("DELETE", f"/v1/users/{quote(user, safe='')}").json()["deleted"] == 1


@pytest.mark.parametrize("path, body", ASKS)
def test_what_is_not_in_the_catalogue_is_named(service, path, body):
    field = {"/v1/rank": {"candidates": ["3", "nope"]}, "/v1/similar": {"item": "nope"}}.get(path, {"deny": ["nope"]})
    assert refused(service.post(path, body | field), 422, "unknown-item", "'nope'")["value"] == "nope"


def test_an_unknown_order_and_action_are_named(service):
    refused(service.post("/v1/recommend", {"order": "like"}), 422, "unknown-order", "'like'", "buy")
    refused(service.post("/v1/events", {"events": [EVENT | {"action": "eat"}]}), 422, "unknown-action", "'eat'")


@pytest.mark.parametrize(
    "error, status, kind, wait",
    [
        (Overloaded("too many wait", 2.3), 429, "overloaded", "3"),
        (TooLate("the deadline has passed"), 504, "too-late", None),
        (Unavailable("the disk is full"), 503, "unavailable", "5"),
        (Unknown("user", "u", "there is no user 'u'"), 404, "unknown-user", None),
        (UserError("that makes no sense"), 422, "invalid-request", None),
    ],
)
@pytest.mark.parametrize("path, body", [*ASKS, ("/v1/events", {"events": [EVENT]})])
def test_errors_of_the_engine_are_problems(service, path, body, error, status, kind, wait):
    service.engine.raises = error
    answer = service.post(path, body)
    if status == 504 and path == "/v1/events":
        status, kind, wait = 503, "unavailable", "5"  # it may have been stored
    else:
        assert str(error) in refused(answer, status, kind)["detail"]
    assert answer.status_code == status and answer.headers.get("retry-after") == wait


@pytest.mark.parametrize("method, path", [("GET", "/v1/users/u"), ("DELETE", "/v1/users/u")])
def test_a_store_that_cannot_now(service, method, path):
    service.engine.raises = Unavailable("the server is gone")
    assert refused(service.call(method, path), 503, "unavailable", "the server is gone")


@pytest.mark.parametrize("path, body", [*ASKS, ("/v1/events", {"events": [EVENT]})])
def test_what_nobody_foresaw_tells_nothing_of_the_inside(service, path, body, caplog):
    service.engine.raises = RuntimeError("secret of the inside")
    answer = service.post(path, body)
    told = refused(answer, 500, "internal")
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields["request_id"] == told["request_id"] and "secret" in str(record.exc_info[1])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("path, body", ASKS)
def test_an_answer_never_holds_what_is_no_number(service, path, body, number):
    found = service.engine._found
    service.engine._found = lambda items: [one._replace(score=number) for one in found(items)]
    refused(service.post(path, body), 500, "internal")


def test_health(service):
    for method in ("GET", "HEAD"):
        assert service.call(method, "/healthz").status_code == service.call(method, "/readyz").status_code == 200
    service.engine.ready = False
    assert service.call("GET", "/healthz").status_code == 200
    refused(service.call("GET", "/readyz"), 503, "not-ready")
    for path, body in ASKS:
        assert refused(service.post(path, body), 503, "not-ready")
    assert service.post("/v1/events", {"events": [EVENT]}).status_code == 200, "events need no model"
    service.engine.ready, service.service.stopping = True, True
    refused(service.call("GET", "/readyz"), 503, "stopping")
    assert service.post("/v1/recommend", {}).status_code == 200, "who has not heard of it yet is answered"


def test_a_deadline(service):
    service.engine.slow = 5
    begin = time.monotonic()
    refused(service.post("/v1/recommend", {"timeout_ms": 100}), 504, "too-late")
    assert time.monotonic() - begin < 2


def test_a_deadline_that_the_engine_forgets():
    with SmallService(limits={"writing": 0.1}) as service:
        service.engine.ask = lambda ask, within, request: time.sleep(3)
        begin = time.monotonic()
        refused(service.post("/v1/recommend", {"timeout_ms": 100}), 504, "too-late")
        service.engine.slow = 3
        refused(service.post("/v1/events", {"events": [EVENT]}), 503, "unavailable", "same ids")
        refused(service.post("/v1/similar", {"item": "1", "timeout_ms": 100}), 504, "too-late")
        assert time.monotonic() - begin < 2.5


def test_the_description(service):
    told = service.call("GET", "/openapi.json").json()
    assert "securitySchemes" not in told["components"]
    for path, body in (*ASKS, ("/v1/events", {})):
        post = told["paths"][path]["post"]
        name = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        (example,) = told["components"]["schemas"][name]["examples"]
        assert set(body) <= set(example)
        assert {"200", "400", "413", "422", "429", "503"} <= set(post["responses"])
        problem = post["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"]
        assert problem.rpartition("/")[2] in told["components"]["schemas"]
    assert set(told["paths"]["/v1/users/{id}"]) == {"get", "delete"}
    fields = told["components"]["schemas"]["Search"]["properties"]
    assert (fields["k"]["minimum"], fields["k"]["maximum"]) == (1, 1_000)
    assert fields["allow"]["anyOf"][0]["maxItems"] == 10_000
    assert list(told["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    json.dumps(told, allow_nan=False)


def test_an_engine_that_could_not_start_is_told(service):
    service.engine.ready, service.engine.failed = False, True
    for answer in (service.get("/readyz"), service.post("/v1/recommend", {"user": "u"})):
        assert refused(answer, 503, "failed")
    assert service.get("/healthz").status_code == 200
