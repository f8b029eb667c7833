"""What training takes of a log, real or made up; and of one that is not there yet, its shapes alone."""

from __future__ import annotations

import dataclasses
import typing

import jax
import numpy as np

from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, EvalBatch, Feed, Floats, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.planning.synthetic import SyntheticLog


def of_log(config: Config, log) -> tuple[Catalogue, Feed]:
    """What training takes of a log. Of a synthetic one every item counts as met, so that all of its table is used."""
    split = splits.split(log, config.data)
    known = examples.catalogue(log, split)
    if isinstance(log, SyntheticLog):
        known = log.all_met(known)
    return known, feed.train_feed(log, split, config, known.counts)


class Sizes(typing.NamedTuple):
    """What is known of a log before it is there."""

    items: int
    queries: int
    text: int  # width of a semantic matrix of items, and of queries if there are any; 0: none

    def log(self, length: int) -> SyntheticLog:
        """A log of these sizes whose every user has `length` events."""
        matrices = (("text", self.text),) if self.text else ()
        return SyntheticLog(self.items, 8, length, self.queries, matrices)


def abstract(config: Config, sizes: Sizes) -> tuple[LogSpec, TrainBatch, EvalBatch, Catalogue]:
    """The sizes of the log, and shapes and dtypes of batches and of the catalogue: what the real feed gives, made small.

    Users have as many events as a window.
    """
    few = Sizes(min(sizes.items, 1000), min(sizes.queries, 100), sizes.text)
    log, spec = few.log(config.data.max_history + 2), sizes.log(1).spec
    one = configs.override(config, ["--data.batch=2", "--optimiser.accumulate=1", "--data.split=leave-one-out"])
    split = splits.split(log, one.data)
    catalogue = examples.catalogue(log, split)
    sample = next(feed.train_feed(log, split, one, catalogue.counts)(0))
    shape = lambda x, rows: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    batch = jax.tree.map(lambda x: shape(x, config.data.batch), dataclasses.replace(sample, negatives=np.zeros((1, 0))))
    batch = dataclasses.replace(batch, negatives=shape(sample.negatives, config.data.negatives))
    # Users may have had all of the few items: none is left out, and room is made for what would be.
    every = configs.override(one, ["--data.filter_seen=false"])
    targets = next(iter(feed.evaluation_feed(log, split, "validation", every)))
    room = examples.seen_width(config, spec.items, config.data.max_history)
    targets = dataclasses.replace(targets, seen=np.zeros((1, room), np.int32))
    # Of any size, and without memory.
    wide = lambda x, rows: np.broadcast_to(np.zeros(1, x.dtype), (rows, *x.shape[1:]))

    def rows(matrices: dict[str, Floats], count: int) -> dict[str, Floats]:
        return {name: wide(matrix, count) for name, matrix in matrices.items()}

    whole = Catalogue(
        rows(catalogue.item_matrices, spec.items),
        rows(catalogue.query_matrices, spec.queries),
        wide(catalogue.counts, spec.items),
        wide(catalogue.query_counts, spec.queries),
    )
    whole = jax.tree.map(lambda x: shape(x, len(x)), whole)
    return spec, batch, jax.tree.map(lambda x: shape(x, config.evaluate.batch), targets), whole
