"""Grain feeds of training and evaluation batches; what the batches hold is made in `examples.py`.

The training feed is a pure function of (seed, step): a Grain `MapDataset` whose n-th element is the n-th batch, cut at
the step where it shall begin. So its position is one number, whatever the number of workers, and resuming needs
no iterator state. Random draws are seeded by the place of an example, or of a batch, in the endless stream.
"""

from __future__ import annotations

import collections.abc
import functools
import typing

import grain
import numpy as np

from data_pipelines.feed import examples, feed_workers
from data_pipelines.feed.splits import Split
from synergen_jax.batch import AnyArray, EvalBatch, Feed, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import UserError

EPOCHS = 2**24  # more than any run sees: the length of Grain's own endless stream is no integer in batches of one


def train_feed(
    log, split: Split, config: Config, counts: AnyArray | None = None, process: int = 0, processes: int = 1
) -> Feed:
    """`feed(step)` yields the batches of steps `step, step + 1, ...`, endlessly; batches run across epochs.

    An epoch visits every window once, in an order of its own. Negatives and sampled candidates are items that training
    meets. The global batch of a step is the same whatever the number of processes.

    With `data.pack` an example is a row of several windows (`packing.py`); an epoch has the same number of rows as any
    other, and puts other windows together.

    Args:
      counts: training events of each item, as in `examples.catalogue(log, split)`, which is asked where they are not
        given.
      process, processes: give the `process`-th of `processes` equal blocks of each global batch, and read no more than
        that; shared negatives are the same in every block.

    Raises:
      UserError: no window has a target, the batch does not divide over the processes, or the seed is no uint32.
    """
    data = config.data
    if data.batch % processes:
        raise UserError(f"data.batch {data.batch} is not divisible by {processes} processes")
    found = examples.training(log, split, config, None if counts is None else np.asarray(counts))
    stream = grain.MapDataset.source(_Rows(found.rows)).shuffle(seed=data.seed).repeat(EPOCHS)
    blocks = stream.map_with_index(found.make).batch(data.batch // processes, batch_fn=examples.collate)
    with_negatives = functools.partial(examples.with_negatives, found.items, data.negatives, data.seed)
    batches = blocks[process::processes].map_with_index(with_negatives)

    def feed(step: int) -> collections.abc.Generator[TrainBatch, None, None]:
        iterator = iter(_iterable(batches[step:], data.workers))
        try:
            yield from iterator
        finally:
            iterator.close()  # ends threads and worker processes

    return feed


class EvaluationFeed(examples.Targets):
    """`examples.Targets` that are read ahead."""

    def __iter__(self) -> collections.abc.Iterator[EvalBatch]:
        dataset = grain.MapDataset.range(len(self)).map(self.batch)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def evaluation_feed(log, split: Split, part: str, config: Config) -> EvaluationFeed:
    """The targets of "validation" or "test": events with an item, by one of `data.target_actions`.

    Raises:
      UserError: there is none.
    """
    return EvaluationFeed.of(log, split, part, config)


class _Rows:
    """An array's rows as a Grain source."""

    def __init__(self, rows: np.ndarray):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: typing.SupportsIndex) -> np.ndarray:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"_Rows({len(self)})"


def _iterable(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """Reads ahead in threads of this process, or in `workers` processes."""
    if not workers:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, which only absl's own `app.run` parses
    options = grain.MultiprocessingOptions(num_workers=workers)
    rows = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return rows.mp_prefetch(options, worker_init_fn=feed_workers.end_with_the_program)
