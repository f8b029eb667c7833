"""Open load on a serving engine: requests come at their times whatever became of those before; how long do answers take?

  python experiments/serving/load.py runs/ml-1m --rates 20,50,100 --seconds 20 --json load.json

The load comes from threads of the process that serves, on the same machine: both share its cores. Users are drawn from
the log, each with the history that the log has. Kinds: "recommend" (k 10, ordered by the first label among 100 that are
ranked), "search" (a query of the log), "event" (stored, then a recommendation that must know it: event to answer).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

from synergen_jax.errors import UserError
from synergen_jax.evaluation import report
from synergen_jax.runs import serve
from synergen_jax.runs.run import open_run
from synergen_jax.serving.asking import Ask
from synergen_jax.serving.engine import Engine, Settings
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.store import Event


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = argparse.ArgumentParser("load.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("workdir", type=pathlib.Path)
    one.add_argument("--data-dir", type=pathlib.Path)
    one.add_argument("--rates", default="20,50,100", help="requests a second, one run after another")
    one.add_argument("--kinds", default="recommend,event", help="of recommend, search, event")
    one.add_argument("--seconds", type=float, default=20)
    one.add_argument("--slots", type=int, default=1024)
    one.add_argument("--users", type=int, default=1000, help="out of whom each request's is drawn")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


class Client:
    """Sends requests of one kind."""

    def __init__(self, engine: Engine, log, users: int):
        rng = np.random.default_rng(0)
        self.engine, self.log = engine, log
        self.users = [log.user_ids[i] for i in rng.permutation(len(log))[:users]]
        self.latest = max(int(time.time()), log.last_time)

    def send(self, kind: str, number: int) -> None:
        """One request; it raises what the engine does."""
        rng = np.random.default_rng(number)
        user = self.users[int(rng.integers(len(self.users)))]
        if kind == "search":
            query = self.log.queries[int(rng.integers(1, len(self.log.queries)))]
            self.engine.ask(Ask(user, query, k=10), 10)
        elif kind == "event":
            item = self.log.item_ids[int(rng.integers(1, len(self.log.item_ids)))]
            self.engine.add([Event(user, item, self.log.actions[1], self.latest)])
            answer = self.engine.ask(Ask(user, k=10), 10)
            assert answer.version > 0, "the answer does not know the event"
        else:
            self.engine.ask(Ask(user, k=10, order=self.engine.labels[0]), 10)


def offered(client: Client, kind: str, rate: float, seconds: float) -> dict:
    """What became of requests that came at a rate, a second, evenly."""
    start = time.perf_counter() + 0.1
    count = int(rate * seconds)

    def one(number: int) -> float | None:
        due = start + number / rate
        time.sleep(max(due - time.perf_counter(), 0))
        try:
            client.send(kind, number)
        except UserError:
            return None
        return time.perf_counter() - due

    with concurrent.futures.ThreadPoolExecutor(max_workers=min(count, 256)) as pool:
        took = list(pool.map(one, range(count)))
    spent = time.perf_counter() - start
    good = 1000 * np.array([value for value in took if value is not None])
    low, high, most = np.percentile(good, (50, 95, 99)) if len(good) else [np.nan] * 3
    return {
        "kind": kind,
        "offered /s": round(rate, 1),
        "answered /s": round(len(good) / spent, 1),
        "refused": count - len(good),
        "p50 ms": round(low, 1),
        "p95 ms": round(high, 1),
        "p99 ms": round(most, 1),
    }


def main() -> int:
    """Serves a run, loads it, prints a table and a line of JSON."""
    arguments = parser().parse_args()
    opened = open_run(arguments.workdir, [], arguments.data_dir, newest=True)
    rows = []
    name = opened.run.log.name
    with tempfile.TemporaryDirectory() as folder, open_store(pathlib.Path(folder) / "own.sqlite", name) as store:
        start = time.monotonic()
        engine = Engine(serve.deployed(opened), store, Settings(slots=arguments.slots))
        while not engine.ready:
            time.sleep(0.05)
        warm = time.monotonic() - start
        client = Client(engine, opened.run.log, arguments.users)
        for kind in arguments.kinds.split(","):
            for rate in map(float, arguments.rates.split(",")):
                rows.append(offered(client, kind, rate, arguments.seconds))
        gauges = engine.gauges()
        engine.close()
    print(f"compiled and warm after {warm:.0f} s")
    print(report.table(rows))
    found = {"model": engine.name, "warm_seconds": warm, "rows": rows, "gauges": gauges}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
