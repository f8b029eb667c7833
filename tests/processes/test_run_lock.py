"""One training a folder: a living owner is named and keeps it, a dead one does not, however it died."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import threading
import time

import pytest
from small_place import owner
from small_run import Run, fixed

from synergen_jax.errors import UserError
from synergen_jax.processes import run_lock


def free(folder):
    """Whether the folder can be had, at once."""
    begun = time.monotonic()
    with run_lock.alone(folder):
        assert json.loads((folder / run_lock.FILE).read_text())["process"] == os.getpid()
    assert (folder / run_lock.FILE).read_bytes() == b""
    return time.monotonic() - begun < 2


def eventually_free(folder):
    """Whether the folder can be had within ten seconds."""
    for _ in range(100):
        try:
            return free(folder)
        except UserError:
            time.sleep(0.1)
    return free(folder)


def test_a_second_one_is_refused_and_told_who_has_it(tmp_path):
    with owner(tmp_path) as process:
        who = rf"process {process.pid} on host {socket.gethostname()} \(since .*\) trains in it"
        with pytest.raises(UserError, match=f"{tmp_path}: {who}: wait for it or stop it, or give another") as error:
            free(tmp_path)
        assert "remove" not in str(error.value) and "\n" not in str(error.value)
        assert json.loads((tmp_path / run_lock.FILE).read_text())["process"] == process.pid, (
            "what the owner wrote stays"
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_dead_owner_has_nothing(tmp_path, number):
    with owner(tmp_path) as process:
        process.send_signal(number)
        process.wait()
        assert (number == signal.SIGINT) == (not (tmp_path / run_lock.FILE).read_bytes())  # an exception cleans up
        assert free(tmp_path)


@pytest.mark.parametrize(
    "child", ["import os; os.fork() or time.sleep(60)", "import subprocess; subprocess.Popen(['sleep', '60'])"]
)
def test_children_that_outlive_the_owner_do_not_keep_the_lock(tmp_path, child):
    with owner(tmp_path, f"{child}; print('there', flush=True); time.sleep(60)") as process:
        assert process.stdout.readline() == "there\n"
        with pytest.raises(UserError, match=f"process {process.pid} "):
            free(tmp_path)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        try:
            assert children and eventually_free(tmp_path)  # a child may not have run since it was forked
        finally:
            for child in map(int, children):
                os.kill(child, signal.SIGKILL)


def test_the_same_thread_may_enter_twice_and_another_may_not(tmp_path):
    found = []

    def other():
        try:
            free(tmp_path)
        except UserError as error:
            found.append(str(error))

    with run_lock.alone(tmp_path), run_lock.alone(tmp_path / "." / "x" / ".."):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        run_lock.check(tmp_path)
        assert len(found) == 1 and f"process {os.getpid()} " in found[0]
    assert free(tmp_path)


def elsewhere(folder, **changes):
    """What an owner on another machine has written."""
    about = {"process": 7, "host": "far", "since": "2026-01-01 00:00:00", "boot": "b", "space": "s", "token": "t"}
    (folder / run_lock.FILE).write_text(json.dumps(about | changes))


@contextlib.contextmanager
def touched(path):
    """Its owner lives."""
    over = threading.Event()
    thread = threading.Thread(target=run_lock._touch, args=(path, over))
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_on_another_machine_lives_as_long_as_it_touches_its_file(tmp_path, monkeypatch, locks):
    """Locks may be of one machine alone, or there may be none at all."""
    import fcntl

    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.5)
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    elsewhere(tmp_path)
    path = tmp_path / run_lock.FILE
    with touched(path), pytest.raises(UserError, match=f"process 7 on host far .* dead, remove {path}"):
        free(tmp_path)
    assert free(tmp_path)


def test_without_locks_a_dead_process_of_this_machine_is_looked_up(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no locks")))
    with owner(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / run_lock.FILE).read_bytes() and free(tmp_path)


def test_after_a_restart_of_the_machine_nobody_is_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    elsewhere(tmp_path, process=os.getpid(), host=socket.gethostname(), space=run_lock._space())
    assert free(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\x00", "7"])
def test_half_a_file_names_nobody(tmp_path, text):
    (tmp_path / run_lock.FILE).write_text(text)
    assert free(tmp_path)


def test_a_run_whose_lock_was_taken_away_stops_before_it_writes(tmp_path):
    """Somebody removed the file of a run that lives, and started another one."""
    run, left = Run(), []

    def validate(params):
        if not left:
            (tmp_path / run_lock.FILE).unlink()
            elsewhere(tmp_path)
            left.append(sorted(path.name for path in (tmp_path / "checkpoints").iterdir()))
        return {"ndcg@10": 0.5}

    with pytest.raises(UserError, match=r"now belongs to process 7 on host far .* it stops here"):
        run.train(tmp_path, validate)
    assert left == [sorted(path.name for path in (tmp_path / "checkpoints").iterdir())]
    assert json.loads((tmp_path / run_lock.FILE).read_text())["host"] == "far"


def test_a_direct_call_of_train_is_guarded_too(tmp_path):
    with owner(tmp_path) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on host .* trains in it"):
            Run().train(tmp_path, fixed(0.5))
        assert [path.name for path in tmp_path.iterdir()] == [run_lock.FILE]
