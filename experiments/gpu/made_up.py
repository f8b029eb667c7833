"""Logs, batches and parameters that are made up on the spot, without Grain: what is measured on needs no data."""

from __future__ import annotations

import collections.abc
import typing

import jax
import numpy as np
from batches import Source

from synergen_jax.batch import Catalogue, Feed, TrainBatch
from synergen_jax.config import Config
from synergen_jax.planning.synthetic import SyntheticLog


def open_log(config: Config, log: typing.Any) -> tuple[Catalogue, Feed]:
    """What training takes of a log, as `runs.inputs.of_log` gives it; the order of windows is the ladder's, not Grain's."""
    source = Source(log, config)

    def feed(start: int) -> collections.abc.Generator[TrainBatch, None, None]:
        step = start
        while True:
            yield source.train(step)
            step += 1

    known = source.catalogue
    return log.all_met(known) if isinstance(log, SyntheticLog) else known, feed


def perturbed(params: typing.Any, seed: int = 0, by: float = 0.02) -> typing.Any:
    """Parameters with noise: fresh blocks add nothing, so that their attention would be measured in vain."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + by * jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves)])


class CycleLog(SyntheticLog):
    """Users who walk through the items one after the other, each from a place of their own: easy to learn to the end."""

    def __getitem__(self, index: typing.SupportsIndex) -> dict[str, typing.Any]:
        """A user's record."""
        record = super().__getitem__(index)
        place = 7 * int(index) + np.arange(len(record["item"]))
        return record | {"item": (1 + place % (self.spec.items - 1)).astype(np.int32)}
