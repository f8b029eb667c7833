"""The ladder's feed: batches as pure functions of (seed, step), made by worker processes ahead of training, and kept.

Windows, candidates and negatives are those of `synergen train`, by the same functions (`data_pipelines/feed/examples.py`); the
order of windows in an epoch is one of numpy's, in place of Grain's. Workers are started anew (spawn), import neither
the model nor what would open an accelerator, and end with the program. What they made is kept in memory, so that variants
that differ in the model alone share it.
"""

from __future__ import annotations

import collections
import collections.abc
import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import typing

import jax
import numpy as np
from array_log import ArrayLog

from data_pipelines.feed import examples, feed_workers, splits, windows
from synergen_jax.batch import Catalogue, EvalBatch, TrainBatch
from synergen_jax.config import Config, EvaluateConfig, LossConfig

ORDER = 99  # the stream of random numbers that orders an epoch; those of `examples` and `splits` count from 0
CHUNK = 4  # batches that a worker makes at once
AHEAD = 3  # chunks that are asked of each worker before the first is needed


def relevant(config: Config) -> Config:
    """A config without the settings that do not change any batch: equal ones have equal batches."""
    hard = config.loss.hard_candidates if config.data.pack else 0  # a packed row has room for them
    lists = EvaluateConfig(batch=config.evaluate.batch, rank_candidates=config.evaluate.rank_candidates)
    return Config(data=config.data, loss=LossConfig(hard_candidates=hard), evaluate=lists)


class Source:
    """Split, catalogue and batches of one log by one config; `part` is the log and split that is trained on."""

    def __init__(self, log: ArrayLog, config: Config):
        self.log, self.config = log, config
        self.split = splits.split(log, config.data)
        self.part = splits.hold_out(log, self.split, config.data.cold_items, config.data.seed)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        return examples.catalogue(*self.part)

    @functools.cached_property
    def labelled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The training events with an item: users, items and labels."""
        return windows.labelled(self.part[0], self.part[1].train_stop)

    @functools.cached_property
    def training(self) -> examples.Training:
        return examples.training(*self.part, self.config, self.catalogue.counts)

    @functools.cached_property
    def validation(self) -> examples.Targets:
        return examples.Targets.of(self.log, self.split, "validation", self.config)

    @functools.cached_property
    def test(self) -> examples.Targets:
        return examples.Targets.of(self.log, self.split, "test", self.config)

    def train(self, step: int) -> TrainBatch:
        """The batch of a step, from 0."""
        data, found = self.config.data, self.training
        rows = []
        for index in range(step * data.batch, (step + 1) * data.batch):
            epoch, place = divmod(index, len(found.rows))
            rows.append(found.make(index, found.rows[order(data.seed, epoch, len(found.rows))[place]]))
        return examples.with_negatives(found.items, data.negatives, data.seed, step, examples.collate(rows))

    def make(self, what: str, numbers: collections.abc.Iterable[int]) -> list[TrainBatch | EvalBatch]:
        """Batches of "train" by step, or of "validation" or "test" by number."""
        one = self.train if what == "train" else getattr(self, what).batch
        return [one(number) for number in numbers]


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """In which order an epoch visits its examples, (count,)."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


# --- worker processes -----------------------------------------------------------------------------------------

_open: typing.Callable[[Config], Source] | None = None  # in a worker: the source of a config


def _start(log: ArrayLog) -> None:
    """In a worker, first of all."""
    global _open
    feed_workers.end_with_the_program()
    jax.config.update("jax_platforms", "cpu")  # nothing asks for a device; if something did, it would not be the GPU
    _open = functools.lru_cache(maxsize=8)(functools.partial(Source, log))


def _make(config: Config, what: str, numbers: range) -> list[TrainBatch | EvalBatch]:
    return _open(config).make(what, numbers)


class Batches:
    """All batches of a ladder. A context manager: leaving it ends the workers.

    Args:
      workers: processes; 0 makes every batch when it is asked for, in this one.
      limit: bytes of training batches that are kept.
    """

    def __init__(self, log: ArrayLog, workers: int, limit: int):
        self.log, self._workers, self._left = log, workers, limit
        self.source = functools.lru_cache(maxsize=16)(functools.partial(Source, log))
        self._kept: dict[Config, list[TrainBatch]] = {}  # the first batches of each
        self._targets: dict[tuple[Config, str], list[EvalBatch]] = {}
        self._pool = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (log,))

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def train(self, config: Config, keep: bool) -> collections.abc.Generator[TrainBatch, None, None]:
        """The training batches of a config, endlessly, from step 0.

        Args:
          keep: later runs will ask for the same ones.
        """
        config = relevant(config)
        kept = self._kept.setdefault(config, [])
        yield from kept
        chunks = (range(step, step + CHUNK) for step in itertools.count(len(kept), CHUNK))
        with contextlib.closing(self._ordered(config, "train", chunks)) as made:
            for step, batch in enumerate(made, start=len(kept)):
                size = sum(x.nbytes for x in jax.tree.leaves(batch))
                if keep and size <= self._left and step == len(kept):
                    self._left -= size
                    kept.append(batch)
                yield batch

    def targets(self, config: Config, part: str) -> list[EvalBatch]:
        """The batches of "validation" or "test"."""
        key = relevant(config), part
        if key not in self._targets:
            numbers = range(len(getattr(self.source(key[0]), part)))
            self._targets[key] = list(self._ordered(*key, (range(n, n + 1) for n in numbers)))
        return self._targets[key]

    def forget(self, config: Config) -> None:
        """What was kept of a config is not needed any more."""
        config = relevant(config)
        for batch in self._kept.pop(config, ()):
            self._left += sum(x.nbytes for x in jax.tree.leaves(batch))
        for part in ("validation", "test"):
            self._targets.pop((config, part), None)

    def _ordered(self, config: Config, what: str, chunks: collections.abc.Iterable[range]):
        """The batches of chunks, in order; workers are some chunks ahead."""
        chunks = iter(chunks)
        if self._pool is None:
            for numbers in chunks:
                for number in numbers:
                    yield from self.source(config).make(what, [number])
            return
        asked: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            while True:
                for numbers in chunks:
                    asked.append(self._pool.submit(_make, config, what, numbers))
                    if len(asked) >= AHEAD * self._workers:
                        break
                if not asked:
                    return
                yield from asked.popleft().result()
        finally:
            for future in asked:
                future.cancel()
