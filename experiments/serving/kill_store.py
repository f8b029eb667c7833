"""Kills a store of histories again and again while clients write to it, and counts what it had acknowledged and lost.

    python experiments/serving/kill_store.py power --kills 1000                     # SQLite, the power is cut
    python experiments/serving/kill_store.py power --kills 1000 --synchronous OFF   # without syncs, which must lose
    python experiments/serving/kill_store.py process --kills 30                     # SQLite, the process gets SIGKILL
    python experiments/serving/kill_store.py postgres --kills 30                    # the server gets SIGKILL

After every kill the store is opened anew and read, and clients go on with the call that was not acknowledged. It ends
with status 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest.mock

import apsw
import own_postgres
from clients import Call, Client, Found
from power_cut import Disk
from tqdm import tqdm

from synergen_jax.errors import UserError
from synergen_jax.serving.history import files
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.sqlite import SqliteStore
from synergen_jax.serving.history.store import Store

LOG = "kills"
CLIENTS = 4
LIVES = 20  # kills of one store, before a new one begins
STEPS = 500  # writes and syncs before a cut, at most
CHECKPOINT = 20  # pages of the log after which SQLite moves them, so that cuts fall into that, too


@dataclasses.dataclass
class Result(Found):
    """What all kills came to."""

    kills: int = 0
    unreadable: int = 0  # stores that could not be opened afterwards, or hold broken pages


def write(clients: list[Client], stores: list[Store], seed: int, going: collections.abc.Callable[[], bool]) -> None:
    """Lets all clients write at once, over the stores in turn, until each meets an error or is told to end."""

    def run(number: int) -> None:
        with contextlib.suppress(ValueError):  # of the store, or, in a file that was damaged before, of what it holds
            clients[number].run(stores[number % len(stores)], random.Random(f"{seed} {number}"), going)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- SQLite, power cuts


def cut_power(kills: int, seed: int, synchronous: str, folder: pathlib.Path, bar: tqdm) -> Result:
    """Power cuts at random writes and syncs: in opening, in commits, in checkpoints, in deletions or in closing."""
    result = Result()
    clients: list[Client] = []
    for life in range(kills):
        if life % LIVES == 0 or not clients:
            clients = [Client(number) for number in range(CLIENTS)]
            left = folder / "new"
            left.mkdir()
        now = folder / str(life)
        left.rename(now)
        _live(clients, now / "histories.db", f"{seed} {life}", synchronous)
        result.kills += 1
        left, look = folder / "left", folder / "look"
        for copy in (left, look):
            shutil.copytree(now, copy, ignore=shutil.ignore_patterns("*-shm", "*-lock"))
        shutil.rmtree(now)
        if not _checked(clients, look / "histories.db", result):
            clients = []
        shutil.rmtree(look)
        if not clients or (life + 1) % LIVES == 0:
            shutil.rmtree(left)
        bar.update()
    return result


def _live(clients: list[Client], path: pathlib.Path, seed: str, synchronous: str) -> None:
    """Writes to a store until the power is cut."""
    rng = random.Random(seed)
    disk = Disk(rng, rng.randrange(STEPS), survive=rng.choice((0.0, 0.0, 0.5, 0.9)))
    long_enough = rng.randrange(STEPS)  # sometimes it is closed before the cut
    calls = iter(range(long_enough))
    soon = [lambda connection: connection.wal_autocheckpoint(CHECKPOINT)]
    with (
        unittest.mock.patch.object(files, "sync_folder", disk.sync_folder),
        unittest.mock.patch.object(apsw, "connection_hooks", soon),
        contextlib.suppress(UserError),
    ):
        store = SqliteStore(path, LOG, vfs=disk.name, synchronous=synchronous)
        try:
            write(clients, [store], rng.randrange(2**32), lambda: next(calls, None) is not None)
        finally:
            store.close()
    disk.cut()


def _checked(clients: list[Client], path: pathlib.Path, result: Result) -> bool:
    """Adds what a file holds after a kill; whether it could be read."""
    try:
        with open_store(path, LOG) as store:
            for client in clients:
                result.add(client.check(store))
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            sound = connection.pragma("integrity_check") == "ok"
    except (ValueError, apsw.Error):  # of a store, or of text that is none
        sound = False
        for client in clients:
            result.add(client.check(None))
    result.unreadable += not sound
    return sound


# --- SQLite, a process that is killed


def kill_process(kills: int, seed: int, synchronous: str, folder: pathlib.Path, bar: tqdm) -> Result:
    """SIGKILL of a process that writes, which leaves alone what the kernel was given."""
    result = Result()
    clients = [Client(number) for number in range(CLIENTS)]
    path, rng = folder / "histories.db", random.Random(seed)
    for life in range(kills):
        command = [
            sys.executable,
            __file__,
            "write",
            "--path",
            str(path),
            "--seed",
            str(life),
            "--synchronous",
            synchronous,
        ]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin and child.stdout
        with child.stdin as stream:
            stream.write(pickle.dumps(clients))
        timer = threading.Timer(rng.uniform(0.3, 1.0), child.send_signal, (signal.SIGKILL,))
        timer.start()
        for line in child.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed while it wrote the line
            number, user, *items = json.loads(line)
            if user:
                clients[number].began(Call(user, tuple(items)))
            else:
                clients[number].acknowledged()
        child.wait()
        timer.join()
        result.kills += 1
        _checked(clients, path, result)
        bar.update()
    return result


def write_and_tell(path: pathlib.Path, seed: int, synchronous: str) -> None:
    """The process that is killed: says each call before it makes it, and when it was acknowledged."""
    clients = pickle.load(sys.stdin.buffer)
    turn = threading.Lock()

    def tell(*words: object) -> None:
        with turn:
            print(json.dumps(words), flush=True)

    class Telling(Client):
        def __init__(self, number: int, client: Client):
            self.__dict__ = client.__dict__
            self._number = number

        def began(self, call: Call) -> None:
            super().began(call)
            tell(self._number, call.user, *call.items)

        def acknowledged(self) -> None:
            super().acknowledged()
            tell(self._number, "")

    store = SqliteStore(path, LOG, synchronous=synchronous)
    write([Telling(number, client) for number, client in enumerate(clients)], [store], seed, lambda: True)


# --- PostgreSQL


def kill_postgres(kills: int, seed: int, server: own_postgres.Server, bar: tqdm) -> Result:
    """SIGKILL of a PostgreSQL server to which two stores write, as two servers would."""
    result = Result()
    clients = [Client(number) for number in range(CLIENTS)]
    rng = random.Random(seed)
    for life in range(kills):
        timer = threading.Timer(rng.uniform(0.2, 1.0), server.kill)
        with open_store(server.url, LOG) as one, open_store(server.url, LOG) as other:
            timer.start()
            write(clients, [one, other], seed + life, lambda: True)
        timer.join()
        server.start()
        result.kills += 1
        with open_store(server.url, LOG) as store:
            for client in clients:
                result.add(client.check(store))
        bar.update()
    return result


def run(mode: str, kills: int, seed: int = 0, synchronous: str = "FULL") -> Result:
    """Kills a store, and returns what was found.

    Args:
      mode: power, process or postgres.
    """
    with tempfile.TemporaryDirectory() as name, tqdm(total=kills, unit=" kills", desc=mode, disable=None) as bar:
        if mode == "power":
            return cut_power(kills, seed, synchronous, pathlib.Path(name), bar)
        if mode == "process":
            return kill_process(kills, seed, synchronous, pathlib.Path(name), bar)
        with own_postgres.Server() as server:
            return kill_postgres(kills, seed, server, bar)


def main(arguments: collections.abc.Sequence[str] | None = None) -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "mode", choices=("power", "process", "postgres", "write"), help="what is killed; write is what is"
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--synchronous", choices=("FULL", "OFF"), default="FULL", help="of SQLite (default: FULL)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write what was found there, too")
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.mode == "write":
        write_and_tell(asked.path, asked.seed, asked.synchronous)
        return 0
    start = time.monotonic()
    result = run(asked.mode, asked.kills, asked.seed, asked.synchronous)
    found = {"mode": asked.mode, "synchronous": asked.synchronous, "seed": asked.seed, **dataclasses.asdict(result)}
    found["seconds"] = round(time.monotonic() - start, 1)
    print("  ".join(f"{name} {value}" for name, value in found.items()))
    if asked.json:
        asked.json.write_text(json.dumps(found) + "\n")
    return 1 if result.lost or result.duplicated or result.undeleted or result.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
