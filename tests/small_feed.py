"""Batches of a small log."""

import contextlib
import itertools

import jax
import numpy as np

from data_pipelines.feed import feed, splits
from synergen_jax.config import Config, DataConfig, EvaluateConfig


def configure(evaluate=None, **data):
    small = {"max_history": 6, "batch": 4, "rank_events": 2, "rank_candidates": 4}
    return Config(data=DataConfig(**(small | data)), evaluate=EvaluateConfig(**(evaluate or {})))


def take(log, config, count, step=0, **more):
    """The batches of steps `step .. step + count - 1`."""
    split = splits.split(log, config.data)
    with contextlib.closing(feed.train_feed(log, split, config, **more)(step)) as batches:
        return list(itertools.islice(batches, count))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
