"""What every request passes: ids, keys, how many run at once, figures, logs. And threads, and settings."""

import asyncio
import io
import json
import logging
import re
import threading

import pytest
from small_service import SmallService, refused

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import TooLate
from synergen_jax.serving.http import keys, logs
from synergen_jax.serving.http.settings import Limits, Settings
from synergen_jax.serving.http.threads import Threads

KEY, OTHER = "k" * 16, "0123456789abcdef-other"


@pytest.fixture
def service():
    with SmallService() as made:
        yield made


@pytest.fixture
def lines():
    """What is logged, as objects."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    logs.begin(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, (handlers, propagate, level) in zip(loggers, before):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


# --- ids of requests


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_c:d-9", "x" * 128])
def test_a_sane_request_id_is_kept(service, given):
    answer = service.call("GET", "/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b'"', b"<script>", b"\xff", b"a\tb", b"{}"])
def test_another_request_id_is_replaced(service, given):
    answer = service.call("GET", "/nope", headers={"x-request-id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_no_answer_is_kept_by_caches(service):
    assert service.post("/v1/recommend", {}).headers["cache-control"] == "no-store"


# --- keys


@pytest.fixture
def guarded():
    with SmallService(keys=(KEY, OTHER)) as made:
        yield made


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer   {OTHER} "},
        {"x-api-key": KEY},
        {"x-api-key": "wrong", "authorization": f"Bearer {KEY}"},
    ],
)
def test_a_key_lets_in(guarded, headers):
    assert guarded.post("/v1/recommend", {}, **headers).status_code == 200
    assert guarded.call("GET", "/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY} {OTHER}"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": ""},
        {"x-api-key": f"{KEY},{OTHER}"},
        {"x-api-key": KEY.upper()},
    ],
)
def test_without_a_key_nothing_is_told(guarded, headers):
    for method, path in (
        ("POST", "/v1/recommend"),
        ("GET", "/v1/users/u"),
        ("DELETE", "/v1/users/u"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nope"),
    ):
        answer = guarded.call(method, path, headers=headers)
        refused(answer, 401, "unauthorized", "Bearer")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.call("GET", "/healthz", headers=headers).status_code == 200
    assert guarded.call("GET", "/readyz", headers=headers).status_code == 200
    assert not guarded.engine.asked


def test_a_body_is_not_read_without_a_key(guarded):
    async def never():
        pytest.fail("it was read")
        yield b""

    refused(guarded.call("POST", "/v1/events", content=never()), 401, "unauthorized")


def test_keys_are_in_the_description(guarded):
    told = guarded.call("GET", "/openapi.json", headers={"x-api-key": KEY}).json()
    assert set(told["components"]["securitySchemes"]) == {"bearer", "header"} and told["security"]


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n  {OTHER}\r\n")
    assert keys.read(path) == (KEY, OTHER)
    for text, said in (
        ("", "no API key"),
        ("\n \n", "no API key"),
        (f"{KEY}\nshort\n", "line 2: an API key has at least 16 characters, not 5"),
        ("k" * 16 + " two", "line 1"),
        ("\u00fc" * 20, "ASCII"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said) as caught:
            keys.read(path)
        assert "short" not in str(caught.value), "a message may be read by others"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        keys.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        keys.read(tmp_path / "none")


def test_a_host_that_others_reach_needs_keys():
    for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1"):
        keys.check_exposure(host, keys=False, open_to_all=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "192.168.0.1", "8.8.8.8"):
        with pytest.raises(UserError, match="--api-keys"):
            keys.check_exposure(host, keys=False, open_to_all=False)
        keys.check_exposure(host, keys=True, open_to_all=False)
        keys.check_exposure(host, keys=False, open_to_all=True)
    with pytest.raises(UserError, match="contradict"):
        keys.check_exposure("127.0.0.1", keys=True, open_to_all=True)
    with pytest.raises(UserError, match="no such address"):
        keys.check_exposure("no such host", keys=False, open_to_all=False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.1.2.3:80", "[::1]:8000", "[::1]"])
def test_a_service_without_keys_is_called_by_a_name_of_this_machine(host):
    with SmallService(local=True) as service:
        assert service.post("/v1/recommend", {}, host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["", "shop.example", "localhost.shop.example", "10.0.0.1:8000", "[::1", "0.0.0.0", "x:y:z"]
)
def test_another_name_is_refused(service, host):
    """So a web page whose name leads here cannot ask for a user, nor remove one."""
    with SmallService(local=True) as guarded:
        refused(guarded.call("DELETE", "/v1/users/u", headers={"host": host}), 421, "wrong-host")
    assert service.post("/v1/recommend", {}, host=host).status_code == 200, "with keys names do not matter"


# --- how many run at once


def test_so_many_requests_run_at_once():
    with SmallService(requests=3) as service:
        service.engine.slow = 0.3
        body = {"content": b"{}", "headers": {"content-type": "application/json"}}
        told = service.together(*[("POST", "/v1/recommend", body)] * 8, *[("GET", "/healthz", {})] * 4)
        assert sorted(one.status_code for one in told[:8]) == [200] * 3 + [429] * 5
        assert [one.status_code for one in told[8:]] == [200] * 4
        late = next(one for one in told if one.status_code == 429)
        refused(late, 429, "overloaded")
        assert late.headers["retry-after"] == "1"
        assert service.post("/v1/recommend", {}).status_code == 200
        assert "synergen_queue_refusals_total 5.0" in service.call("GET", "/metrics").text


def test_asking_does_not_keep_events_waiting():
    event = {"user": "u", "item": "5", "action": "view", "time": 1_700_000_000}
    with SmallService(threads=1) as service:
        service.engine.gate, service.engine.add = threading.Event(), lambda events: []
        headers = {"content-type": "application/json"}
        ask = "POST", "/v1/similar", {"content": b'{"item": "1", "timeout_ms": 500}', "headers": headers}
        add = "POST", "/v1/events", {"content": json.dumps({"events": [event]}), "headers": headers}
        told = service.together(ask, ask, add)
        service.engine.gate.set()
    assert [one.status_code for one in told] == [504, 504, 200]
    assert told[2].elapsed.total_seconds() < 0.4


# --- threads


def test_a_call_that_has_not_begun_in_time_is_never_made():
    threads, gate, made = Threads(1, "test"), threading.Event(), []

    async def run():
        first = asyncio.create_task(threads.call(5, "late", lambda: gate.wait(5)))
        await asyncio.sleep(0.05)
        assert threads.busy == 1
        with pytest.raises(TooLate, match="late"):
            await threads.call(0.05, "late", lambda: made.append(1))
        gate.set()
        assert await first
        with pytest.raises(TimeoutError, match="its own"):
            await threads.call(5, "late", failing)
        return await threads.call(5, "late", threading.current_thread)

    def failing():
        raise TimeoutError("its own")

    worker = asyncio.run(run())
    assert not made and threads.busy == 0 and worker.daemon and worker.name == "test-0"
    threads.close()
    worker.join(5)
    assert not worker.is_alive()


# --- figures


def test_figures(service):
    service.post("/v1/recommend", {})
    service.post("/v1/recommend", {"k": 0})
    service.call("GET", "/v1/users/somebody/else")
    service.call("GET", "/who/knows")
    service.call("BREW", "/v1/search")
    text = service.call("GET", "/metrics").text
    for line in (
        'synergen_requests_total{method="POST",path="/v1/recommend",status="200"} 1.0',
        'synergen_requests_total{method="POST",path="/v1/recommend",status="422"} 1.0',
        'synergen_requests_total{method="GET",path="/v1/users/{id}",status="200"} 1.0',
        'synergen_requests_total{method="GET",path="other",status="404"} 1.0',
        'synergen_requests_total{method="other",path="/v1/search",status="405"} 1.0',
        'synergen_request_seconds_count{path="/v1/recommend"} 2.0',
        "synergen_requests_in_flight 0.0",
        "synergen_queue_refusals_total 0.0",
        "synergen_ready 1.0",
        "synergen_device_slots_used 3.0",
        "synergen_host_bytes 12.0",
    ):
        assert line in text.splitlines()
    assert "somebody" not in text and "knows" not in text


def test_figures_without_an_engine_that_answers(service, lines):
    service.engine.raises = OSError("gone")
    answer = service.call("GET", "/metrics")
    assert answer.status_code == 200 and "synergen_requests_in_flight" in answer.text
    assert "device_slots" not in answer.text and any("gone" in line.get("traceback", "") for line in lines())


# --- logs


def test_a_line_a_request(service, lines):
    answer = service.post("/v1/recommend", {"user": "somebody"})
    service.call("GET", "/v1/users/somebody")
    service.call("GET", "/somebody")
    first, second, third = lines()
    assert first.pop("ms") > 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", first.pop("time"))
    assert first == {
        "level": "info",
        "event": "request",
        "request_id": answer.headers["x-request-id"],
        "method": "POST",
        "path": "/v1/recommend",
        "status": 200,
        "model": "shop@1, step 10",
    }
    assert (second["path"], third["path"], third["status"]) == ("/v1/users/{id}", "other", 404)
    assert "somebody" not in json.dumps(lines())


def test_users_are_logged_where_that_is_asked_for(lines):
    event = {"user": "b", "item": "5", "action": "view", "time": 1_700_000_000}
    with SmallService(log_users=True) as service:
        service.post("/v1/recommend", {"user": "a"})
        service.post("/v1/events", {"events": [event, event | {"user": "c"}]})
        service.call("GET", "/v1/users/d%2Fe")
        service.call("GET", "/nope")
    assert [line["user"] for line in lines()] == ["a", ["b", "c"], "d/e", None]
    assert lines()[2]["full_path"] == "/v1/users/d/e"


def test_an_error_is_logged_in_one_line(service, lines):
    service.engine.raises = RuntimeError("of the\ninside")
    answer = service.post("/v1/recommend", {})
    error, request = lines()
    assert error["level"] == "error" and "RuntimeError" in error["traceback"]
    assert error["request_id"] == request["request_id"] == answer.json()["request_id"] and request["status"] == 500


# --- settings


def test_settings_that_make_no_sense():
    for make in (
        lambda: Limits(k=0),
        lambda: Limits(body=-1),
        lambda: Limits(timeout=float("nan")),
        lambda: Limits(timeout=11.0),
        lambda: Settings(requests=0),
        lambda: Settings(threads=-1),
        lambda: Settings(drain=-1),
        lambda: Settings(grace=0),
    ):
        with pytest.raises(UserError):
            make()
