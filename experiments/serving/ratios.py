"""What a cached history saves: ratios in one run on one machine, of a model of made-up weights, by the compiled functions.

  python experiments/serving/ratios.py --json ratios.json

Each row is timed in turns with its baseline, which encodes the history anew and then reads: what a server without a
cache would do. Shapes are those of the recipe `ml_1m`: width 128, two layers, four heads, some 3,700 items.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from synergen_jax.batch import Catalogue, Events, LogSpec, Readers
from synergen_jax.config import ModelConfig
from synergen_jax.evaluation import report
from synergen_jax.model import synergen
from synergen_jax.serving import compiled

ITEMS = 3_707


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = argparse.ArgumentParser(
        "ratios.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument("--width", type=int, default=128)
    one.add_argument("--turns", type=int, default=30, help="of each pair, after two that do not count")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


def made_up(width: int):
    """A model, its parameters and a catalogue, of random weights."""
    config = ModelConfig(width=width, depth=2, heads=4, dropout=0.0)
    model = synergen.SynerGen(config, LogSpec(items=ITEMS, actions=6, queries=1, labels=("engage", "like")))
    params = jax.device_put(nn.unbox(synergen.init(model, jax.random.key(0))))
    catalogue = Catalogue({}, {}, np.ones(ITEMS, np.int32), np.zeros(1, np.int32))
    return model, params, jax.device_put(catalogue)


def histories(users: int, length: int) -> Events:
    """Random events, a minute apart."""
    rng = np.random.default_rng(0)
    item, action = (rng.integers(1, most, (users, length)).astype(np.int32) for most in (ITEMS, 6))
    time_ = np.broadcast_to(60 * np.arange(length, dtype=np.int32), (users, length))
    return Events(item, action, np.zeros_like(item), time_)


def readers(users: int, length: int, candidates: int) -> Readers:
    """A reader for each candidate, a minute after the last event."""
    shape = (users, candidates)
    item = np.random.default_rng(1).integers(1, ITEMS, shape).astype(np.int32)
    full = lambda value: np.full(shape, value, np.int32)
    return Readers(item, full(0), full(60 * length), full(length))


def pairs(width: int) -> dict[str, tuple]:
    """Name -> (what a cache does, its baseline); each is called without arguments, and waits."""
    model, params, catalogue = made_up(width)
    encode = functools.partial(compiled.encode, model, params, catalogue)
    rank = functools.partial(compiled.rank, model, params, catalogue)
    append = functools.partial(compiled.append, model, params, catalogue)
    found = {}
    for length, candidates in ((200, 100), (1000, 256)):
        events, asked = histories(1, length), readers(1, length, candidates)
        cache = encode(events)
        found[f"{candidates} candidates over {length:,} cached events, against encode and rank"] = (
            functools.partial(rank, cache, asked),
            lambda events=events, asked=asked: rank(encode(events), asked),
        )
    for length in (200, 1000):
        room = jax.tree.map(lambda x: jnp.asarray(x).at[:, -1].set(0), histories(1, length))
        cache, one = encode(room), jax.tree.map(lambda x: x[:, -1:], histories(1, length))
        found[f"append one event to {length - 1:,}, against encode of {length:,}"] = (
            functools.partial(append, cache, one),
            functools.partial(encode, histories(1, length)),
        )
    many, sixteen = histories(16, 200), readers(16, 200, 100)
    caches, one = encode(many), encode(histories(1, 200))
    found["16 users in one call, against 16 calls (100 candidates, 200 cached events)"] = (
        functools.partial(rank, caches, sixteen),
        lambda: [rank(one, readers(1, 200, 100)) for _ in range(16)],
    )
    return found


def measured(name: str, cached, baseline, turns: int) -> dict:
    """Median milliseconds of both, taking turns, and the ratio with its quartiles."""
    seconds = np.zeros((turns + 2, 2))
    for turn in range(turns + 2):
        for side, call in enumerate((cached, baseline)):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[turn, side] = time.perf_counter() - start
    ms = 1000 * seconds[2:]
    low, middle, high = np.percentile(ms[:, 1] / ms[:, 0], (25, 50, 75))
    mine, theirs = np.median(ms, axis=0)
    return {
        "what": name,
        "cached ms": round(mine, 3),
        "baseline ms": round(theirs, 3),
        "times faster": round(middle, 2),
        "quartiles": f"{low:.2f} to {high:.2f}",
    }


def main() -> int:
    """Measures, prints a table and a line of JSON."""
    arguments = parser().parse_args()
    rows = [measured(name, *both, arguments.turns) for name, both in pairs(arguments.width).items()]
    print(report.table(rows))
    found = {"device": jax.devices()[0].device_kind, "width": arguments.width, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
