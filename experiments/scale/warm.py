"""Users a second of one warm process: one by one, and in batches. `answer_many.py` starts it; it prints JSON.

python warm.py RUN --data-dir DATA --users 300 --batches 30 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import command

BATCH = 64


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = command.parser("warm.py", __doc__)
    one.add_argument("workdir", type=pathlib.Path)
    one.add_argument("--data-dir", type=pathlib.Path)
    one.add_argument("-k", type=int, default=10)
    one.add_argument("--users", type=int, default=300, help="that are answered one by one in a repeat")
    one.add_argument("--batches", type=int, default=30, help=f"of {BATCH} users in a repeat")
    one.add_argument("--repeats", type=int, default=3)
    return one


def run(arguments: argparse.Namespace) -> int:
    """Measures, and prints what was found."""
    start = time.perf_counter()
    import numpy as np

    import synergen_jax as sg

    run_of, params = sg.load(arguments.workdir, arguments.data_dir)
    served = sg.Served(run_of, params, sg.Question(k=arguments.k))
    ids, rng = run_of.log.user_ids, np.random.default_rng(0)
    drawn = lambda count: [ids[i] for i in rng.integers(0, len(ids), count)]
    ready = time.perf_counter() - start

    def seconds(groups: typing.Sequence[list[str]]) -> float:
        begin = time.perf_counter()
        for group in groups:
            served.recommend(group)
        return time.perf_counter() - begin

    first = {"one": seconds([drawn(1)]), "batch": seconds([drawn(BATCH)])}
    ones = lambda: [[user] for user in drawn(arguments.users)]
    many = lambda: [drawn(BATCH) for _ in range(arguments.batches)]
    seconds(ones()), seconds(many())  # whatever other shapes there are is compiled here
    rates = [
        {"one": arguments.users / seconds(ones()), "batch": arguments.batches * BATCH / seconds(many())}
        for _ in range(arguments.repeats)
    ]
    print(json.dumps({"ready": ready, "first_call": first, "users_a_second": rates}))
    return 0


if __name__ == "__main__":
    sys.exit(command.outcome("warm.py", lambda: run(parser().parse_args())))
