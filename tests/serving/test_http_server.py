"""The service as a process of its own on loopback: starting, answering, ending, and what is refused before that."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from client import Client

from synergen_jax.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
JSON = "Host: localhost\r\nContent-Type: application/json\r\n"
HERE = pathlib.Path(__file__).resolve().parent
# `synergen serve`, whose runs are fake ones; what the engine is told to do comes from the environment.
PROGRAM = """
import os, sys, types
from fake_engine import FakeEngine

def open_engine(*place, **settings):
    engine = FakeEngine()
    engine.slow = float(os.environ.get("SLOW", 0))
    engine.close = lambda: print("closed", flush=True)
    return engine

sys.modules["synergen_jax.runs.serve"] = types.SimpleNamespace(open_engine=open_engine)
import synergen_jax.runs
synergen_jax.runs.serve = sys.modules["synergen_jax.runs.serve"]
from synergen_jax.cli.main import main
sys.exit(main(["serve", "run", "--no-compile-cache", "--port", "0", *sys.argv[1:]]))
"""


class Process:
    """A service that runs; `port` is where, and `lines` what it has logged."""

    def __init__(self, *arguments, **environment):
        path = os.pathsep.join([str(ROOT), str(HERE)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=os.environ | {"PYTHONPATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        first = json.loads(self.process.stderr.readline())
        assert first["event"] == "serving", first
        self.port = first["port"]
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def ask(self, method, path, body=None, **headers):
        """The status of an answer, and its JSON or text, over a connection of its own."""
        deadline = time.monotonic() + 10
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            with contextlib.closing(connection):
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                    continue
                given = {"Content-Type": "application/json"} if body is not None else {}
                connection.request(method, path, None if body is None else json.dumps(body), given | headers)
                answer = connection.getresponse()
                text = answer.read()
                plain = answer.getheader("content-type").startswith("text/plain")
                return answer.status, text.decode() if plain else json.loads(text)

    def wait_for_running(self, count):
        """Returns once so many requests run."""
        deadline = time.monotonic() + 10
        while f"synergen_requests_in_flight {count}.0" not in self.ask("GET", "/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self, *signals):
        """Sends signals, and waits: the exit status and what was printed."""
        for number in signals:
            self.process.send_signal(number)
        out, _ = (
            self.process.communicate(timeout=30) if not self._reader.is_alive() else (self.process.stdout.read(), "")
        )
        status = self.process.wait(30)
        self._reader.join(10)
        return status, out


@contextlib.contextmanager
def running(*arguments, **environment):
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
        process.process.stdout.close()


def later(function):
    """Runs a function beside; the list will hold what it returns."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    return thread, found


def test_sigterm_while_a_slow_request_runs():
    with running("--drain", "1", "--timeout", "9", SLOW="2.5") as service:
        assert service.ask("GET", "/readyz")[0] == 200
        thread, found = later(lambda: service.ask("POST", "/v1/recommend", {"k": 1}))
        service.wait_for_running(1)
        service.process.send_signal(signal.SIGTERM)
        while (answer := service.ask("GET", "/readyz"))[0] == 200:
            time.sleep(0.02)
        assert answer[0] == 503 and answer[1]["type"] == "urn:problem:synergen:stopping"
        assert service.ask("GET", "/healthz")[0] == 200
        status, out = service.end()
        thread.join(10)
        assert status == 0 and out == "closed\n"
        assert found[0][0] == 200 and len(found[0][1]["items"]) == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
    lines = [json.loads(line) for line in service.lines]
    assert lines[-1]["event"] == "ended" and not any("traceback" in line for line in lines)


def test_a_person_ends_it_and_does_not_want_to_wait():
    with running("--drain", "20") as service:
        assert service.ask("GET", "/healthz")[0] == 200
        service.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        begin = time.monotonic()
        assert service.end(signal.SIGINT) == (0, "closed\n") and time.monotonic() - begin < 5


def test_a_request_that_does_not_end_is_cut_off():
    with running("--drain", "0", "--grace", "1", "--timeout", "10", SLOW="8") as service:
        thread, found = later(lambda: service.ask("POST", "/v1/similar", {"item": "1"}))
        service.wait_for_running(1)
        begin = time.monotonic()
        status, out = service.end(signal.SIGTERM)
        assert (status, out) == (0, "closed\n") and time.monotonic() - begin < 5
        thread.join(10)
        assert found[0][0] == 503 and found[0][1]["type"] == "urn:problem:synergen:stopping"
    lines = [json.loads(line) for line in service.lines]
    assert not any("traceback" in line for line in lines) and {
        line["status"] for line in lines if "status" in line
    } == {200, 503}


def test_keys_and_raw_bytes_over_a_network(tmp_path):
    (tmp_path / "keys").write_text("k" * 16)
    with running("--api-keys", str(tmp_path / "keys"), "--max-body", "2000", "--json") as service:
        key = {"Authorization": "Bearer " + "k" * 16}
        assert service.ask("POST", "/v1/recommend", {})[0] == 401
        assert service.ask("POST", "/v1/recommend", {"k": 1}, **key)[0] == 200
        assert service.ask("GET", "/v1/users/a%2Fb%20%C3%BC", **key)[1]["user"] == "a/b \u00fc"
        raw = f"POST /v1/events HTTP/1.1\r\n{JSON}X-Api-Key: {'k' * 16}\r\n"
        huge = sent(service.port, f"{raw}Transfer-Encoding: chunked\r\n\r\n".encode(), chunk(b" " * 1000) * 5_000)
        assert b" 413 " in huge.partition(b"\r\n")[0] and b"body-too-large" in huge
        large = sent(service.port, f"{raw}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b" 413 " in large.partition(b"\r\n")[0], "it is refused before it is sent"
        short = sent(service.port, f"{raw}Content-Length: 10\r\n\r\n{{}}".encode(), ends=True)
        assert short == b"" or b" 400 " in short.partition(b"\r\n")[0]
        head = sent(
            service.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ", b"x" * 200_000 + b"\r\n\r\n", ends=True
        )
        assert b"alive" not in head, "no header is kept in memory whatever its size"
        for nonsense in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            sent(service.port, nonsense, ends=True)
        assert service.ask("GET", "/healthz")[0] == 200
        status, out = service.end(signal.SIGTERM)
        assert status == 0 and json.loads(out.splitlines()[-1])["requests"] >= 5
    for line in service.lines:
        assert json.loads(line)["level"] != "error"


def test_clients_that_leave():
    """Whenever they do, nothing of them is left."""
    body = b'{"k": 1}'
    head = f"POST /v1/recommend HTTP/1.1\r\n{JSON}Content-Length: {len(body)}\r\n"
    whole = head.encode() + b"\r\n" + body
    with running(SLOW="0.2") as service:
        service.ask("GET", "/healthz")
        for length in (*range(0, len(whole), 9), *[len(whole)] * 10):
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.sendall(whole[:length])
        service.wait_for_running(0)
        assert "synergen_threads_asking 0.0" in service.ask("GET", "/metrics")[1]
        assert service.end(signal.SIGTERM) == (0, "closed\n")
    assert not any("traceback" in line for line in service.lines)


def chunk(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def sent(port, head, rest=b"", ends=False):
    """What is answered to bytes; the rest is sent as far as it is taken."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        with contextlib.suppress(OSError):
            connection.sendall(rest)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65_536):
                found += part
        return found


def serve(capsys, *arguments):
    assert main.main(["serve", "run", "--no-compile-cache", *arguments]) == 2
    return capsys.readouterr().err


def test_what_is_refused_before_the_model_is_loaded(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: cannot listen there" in serve(capsys, "--port", port)
    assert "--api-keys" in serve(capsys, "--host", "0.0.0.0")
    assert "cannot be read" in serve(capsys, "--api-keys", str(tmp_path / "none"))
    assert "the limit k = 0" in serve(capsys, "--max-k", "0")
    assert "--port 70000: a port lies" in serve(capsys, "--port", "70000")
    assert "timeout = 20.0 s is above" in serve(capsys, "--timeout", "20")
    assert "--host 203.0.113.7 --port 0: cannot listen" in serve(
        capsys, "--host", "203.0.113.7", "--port", "0", "--no-api-keys"
    )


def test_without_the_extra(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("synergen_jax.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'synergen-jax[serve]'" in serve(capsys)


def test_help_needs_none_of_it():
    program = "import sys; from synergen_jax.cli import main; main.parser(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"fastapi", "pydantic", "uvicorn", "starlette", "prometheus_client"} & set(run.stdout.split())


def test_the_client_of_the_standard_library():
    """It asks again what cannot be done now, and an event that it sends again is stored once."""
    with running() as service:
        client = Client(f"http://127.0.0.1:{service.port}")
        assert client.recommend("u", k=2)["events"] == 0
        event = {"user": "u", "item": "5", "action": "view", "time": 1_700_000_000, "id": "e"}
        told = [client.add([event])["outcomes"][0]["status"] for _ in range(2)]
        assert told == ["stored", "known"] and client.recommend("u")["events"] == 1
        assert client.search("shoe", k=1)["query_known"] and client.rank(["3"])["items"][0]["item"] == "3"
        with pytest.raises(ValueError, match="unknown-item"):
            client.rank(["nope"])
        os.kill(service.process.pid, signal.SIGSTOP)
        thread, found = later(lambda: Client(client.url, timeout=0.3).recommend("u"))
        time.sleep(0.5)
        os.kill(service.process.pid, signal.SIGCONT)
        thread.join(20)
        assert found[0]["events"] == 1


def test_the_client_waits_as_long_as_it_is_told():
    with running("--requests", "1", SLOW="0.5") as service:
        client = Client(f"http://127.0.0.1:{service.port}")
        threads = [later(lambda: client.recommend("u")) for _ in range(2)]
        for thread, _ in threads:
            thread.join(20)
        assert all(found[0]["items"] for _, found in threads)
        assert "synergen_queue_refusals_total 1.0" in service.ask("GET", "/metrics")[1]
