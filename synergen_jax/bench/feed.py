"""The feed alone, the step alone, and both together as in training, where the feed reads ahead.

And the feed of one user with a very long history beside that of many users with as many events and windows: an example
costs what its window costs, so the ratio is about one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time

import jax

from synergen_jax.batch import Feed
from synergen_jax.bench import timing
from synergen_jax.bench.setting import ML_1M, TINY, Result, Setting, Trainer, describe
from synergen_jax.bench.timing import Spread
from synergen_jax.config import Config
from synergen_jax.planning.synthetic import SyntheticLog

LONG = 1000  # windows of the user with a very long history: 200,000 events by the default config


def run(setting: Setting) -> Result:
    """Seconds a batch of each."""
    config = setting.config(ML_1M, TINY)
    log = setting.movielens()
    catalogue, feed = setting.open(config, log)
    trainer = Trainer(config, log.spec, catalogue)
    with contextlib.closing(feed(0)) as batches:
        batch = trainer.place(next(batches))
    jax.block_until_ready(trainer(batch))  # compiles
    count = 2 if setting.small else 8
    sides = {
        "feed": lambda: alone(feed, 2 * count),
        "step": lambda: _stepping(trainer, batch, count),
        "together": lambda: together(feed, trainer, count),
    }
    for name, histories in histories_of(config).items():
        sides[f"feed, {name}"] = functools.partial(alone, setting.open(*histories)[1], 2 * count)
    times = {name: [] for name in sides}
    for _ in range(setting.rounds):
        for name, side in sides.items():
            times[name].append(side())
    with contextlib.nullcontext() if setting.trace is None else jax.profiler.trace(str(setting.trace)):
        together(feed, trainer, count)
    rows = [
        {"what": name, "s a batch": Spread.of(seconds).cell(), "batches/s": 1 / Spread.of(seconds).median}
        for name, seconds in times.items()
    ]
    ratios = {
        "feed over step, batches a second": timing.ratio(times["step"], times["feed"]),
        "together over step, seconds": timing.ratio(times["together"], times["step"]),
        "feed of one long history over many short ones, seconds": timing.ratio(
            times["feed, one long history"], times["feed, many short histories"]
        ),
    }
    title = f"feed beside step: {describe(config)}, {config.data.workers} feed processes, {log.name}"
    return Result("feed", title, rows, ratios, times)


def histories_of(config: Config) -> dict[str, tuple[Config, SyntheticLog]]:
    """As many windows, all of them full, by one user and by many: what the benchmark opens for each."""
    length = config.data.max_history
    data = dataclasses.replace(config.data, split="leave-one-out", stride=length, crop=False, pack=False)
    config = dataclasses.replace(config, data=data)
    items, kept = 100_000, 2  # events of each user kept for validation and test
    return {
        "one long history": (config, SyntheticLog(items, 1, LONG * length + kept)),
        "many short histories": (config, SyntheticLog(items, LONG, length + kept)),
    }


def alone(feed: Feed, count: int) -> float:
    """Seconds a batch of a feed that nobody else keeps from working; its start does not count."""
    with contextlib.closing(feed(0)) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - start) / count


def _stepping(trainer: Trainer, batch, count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready([trainer(batch) for _ in range(count)])
    return (time.perf_counter() - start) / count


def together(feed: Feed, trainer: Trainer, count: int) -> float:
    """Seconds a step of training from the feed, as `loop.train` does it; the first step does not count."""
    with contextlib.closing(feed(0)) as batches:
        jax.block_until_ready(trainer(trainer.place(next(batches))))
        start = time.perf_counter()
        jax.block_until_ready([trainer(trainer.place(next(batches))) for _ in range(count)])
        return (time.perf_counter() - start) / count
