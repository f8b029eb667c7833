"""What all benchmarks share: their settings, a training step to be timed, and the form of a result."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import typing

import jax

from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, Feed, LogSpec, TrainBatch
from synergen_jax.bench.timing import Spread, Times
from synergen_jax.config import Config
from synergen_jax.planning.synthetic import SyntheticLog
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import train_step

ML_1M = {  # the width, depth, length, batch and negatives of the comparison with other libraries
    "data": {"max_history": 200, "batch": 128, "negatives": 256, "rank_events": 4, "rank_candidates": 8},
    "model": {"width": 64, "depth": 2, "heads": 2},
    "loss": {"in_batch": 256},
}
TINY = {
    "data": {"max_history": 12, "batch": 8, "negatives": 8, "rank_events": 2, "rank_candidates": 3},
    "model": {"width": 16, "depth": 1, "heads": 2},
    "loss": {"in_batch": 8},
}

Open = typing.Callable[[Config, typing.Any], tuple[Catalogue, Feed]]
"""From a config and a log to what training takes; the data pipelines are the caller's."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a benchmark is run."""

    open: Open
    words: tuple[str, ...] = ()  # command-line words, "--model.width", "128", on top of the benchmark's own config
    base: Config | None = None  # in place of the benchmark's own config
    log: typing.Any = None  # a prepared log in place of a synthetic one
    small: bool = False  # tiny sizes, to see that all runs
    rounds: int = 5
    sizes: tuple[int, ...] = ()  # of what a benchmark varies, in place of its own
    trace: pathlib.Path | None = None
    say: typing.Callable[[str], None] = print

    def config(self, own: typing.Mapping[str, typing.Any], tiny: typing.Mapping[str, typing.Any]) -> Config:
        """The config that is measured: `own` is that of the benchmark, `tiny` what `small` changes in it."""
        if self.base is not None:
            return configs.override(self.base, self.words)
        small = tiny if self.small else {}
        tree = {section: own.get(section, {}) | small.get(section, {}) for section in {*own, *small}}
        return configs.override(configs.from_dict(tree), self.words)

    def movielens(self) -> typing.Any:
        """The log that was asked for, or one of the size of MovieLens-1M."""
        if self.log is not None:
            return self.log
        return SyntheticLog(200, 64, 14) if self.small else SyntheticLog(3_706, 6_040)


def describe(config: Config) -> str:
    """What of a config decides how long a step takes."""
    d, m = config.data, config.model
    negatives = "full softmax" if config.loss.full_softmax else f"{d.negatives + config.loss.in_batch} negatives"
    return (
        f"B {d.batch}, L {d.max_history}, D {m.width}, {m.depth} layers, {m.heads} heads, {negatives}, "
        f"{d.rank_events} x {d.rank_candidates} ranked, {m.dtype}"
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a benchmark found: a table, the ratios that answer its question, and the seconds behind them."""

    name: str
    title: str
    rows: list[dict[str, typing.Any]]
    ratios: dict[str, Spread]
    times: Times = dataclasses.field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, typing.Any]:
        """All of it as plain values."""
        device = jax.devices()[0]
        return {
            "bench": self.name,
            "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
            "rows": self.rows,
            "ratios": {name: spread._asdict() for name, spread in self.ratios.items()},
            "seconds": self.times,
        }


class Trainer:
    """A training step, with the state that it changes."""

    def __init__(self, config: Config, spec: LogSpec, catalogue: Catalogue):
        self.config, self.mesh = config, device_mesh.make_mesh(config.mesh)
        device_mesh.micro_batches(config, self.mesh)  # refuses a batch that does not divide
        self.model = train_step.make_model(config, spec)
        self.state, shardings = train_step.init_state(config, self.model, self.mesh)
        self._traced = train_step.make_step(config, self.model, self.mesh, shardings)
        self._step: jax.stages.Wrapped | jax.stages.Compiled = self._traced
        self.catalogue = table.place_catalogue(catalogue, self.mesh)

    def place(self, batch: TrainBatch) -> TrainBatch:
        """A host batch on the mesh."""
        return device_mesh.place(batch, device_mesh.batch_shardings(self.mesh))

    def compile(self, batch: TrainBatch) -> float:
        """Compiles the step for batches of this shape; how many seconds that took."""
        start = time.perf_counter()
        self._step = self._traced.lower(self.state, batch, self.catalogue).compile()
        return time.perf_counter() - start

    def __call__(self, batch: TrainBatch) -> dict[str, jax.Array]:
        """One step on a placed batch; its metrics."""
        self.state, metrics = self._step(self.state, batch, self.catalogue)
        return metrics
