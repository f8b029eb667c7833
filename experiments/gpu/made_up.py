"""Logs, batches and parameters that are made up on the spot, without Grain: what is measured on needs no data."""

from __future__ import annotations

import collections.abc
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from batches import Source
from jaxtyping import Array

from synergen_jax.batch import Catalogue, Feed, TrainBatch
from synergen_jax.config import Config
from synergen_jax.model import synergen
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


def parameters(model: synergen.SynerGen) -> synergen.Params:
    """Fresh parameters, with random numbers in place of zeros: blocks that add nothing would agree on anything."""

    @jax.jit
    def draw(key: Array) -> synergen.Params:
        params = nn.unbox(synergen.init(model, key))
        leaves, tree = jax.tree.flatten(params)
        noise = [jax.random.normal(k, x.shape) for k, x in zip(jax.random.split(key, len(leaves)), leaves)]
        fan_in = [max(float(np.prod(x.shape[:-1])), 1.0) for x in leaves]
        return tree.unflatten([jnp.where(jnp.any(x != 0), x, z * n**-0.5) for x, z, n in zip(leaves, noise, fan_in)])

    return draw(jax.random.key(0))


class CycleLog(SyntheticLog):
    """Users who walk through the items one after the other, each from a place of their own: easy to learn to the end."""

    def __getitem__(self, index: typing.SupportsIndex) -> dict[str, typing.Any]:
        """A user's record."""
        record = super().__getitem__(index)
        place = 7 * int(index) + np.arange(len(record["item"]))
        return record | {"item": (1 + place % (self.spec.items - 1)).astype(np.int32)}
