"""What `synergen plan` does: a fresh process for each number of devices compiles, and a table tells the rest.

The number of virtual devices is settled when jax starts, hence the processes. As a script this module is one of them: it
reads what is planned as JSON from stdin, and prints what it found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import typing

import jax
import numpy as np

from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, EvalBatch, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.evaluation import report
from synergen_jax.planning import plan as planning
from synergen_jax.planning.plan import MIB, Plan
from synergen_jax.planning.synthetic import SyntheticLog

GIB = 2**30
# The step is never run: code that is slow but quickly made is as good.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MARK = "plan: "


class Sizes(typing.NamedTuple):
    """What is known of a log before it is there."""

    items: int
    queries: int
    text: int  # width of a semantic matrix of items, and of queries if there are any; 0: none

    def log(self, length: int) -> SyntheticLog:
        """A log of these sizes whose every user has `length` events."""
        matrices = (("text", self.text),) if self.text else ()
        return SyntheticLog(self.items, 8, length, self.queries, matrices)


def plan(arguments, settings, say) -> dict[str, typing.Any]:
    """`synergen plan`."""
    config = configs.load(arguments.config, settings)
    # Planned is for accelerators: what suits this CPU does not matter, and their kernels it cannot compile.
    config = configs.override(
        config, [f"--optimiser.accumulate={config.optimiser.accumulate or 1}", "--model.attention=xla"]
    )
    for name, least in (("items", 1), ("queries", 0), ("text_width", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(arguments, name)}")
    if min(arguments.devices) < 1:
        raise UserError(f"--devices must be at least 1, not {min(arguments.devices)}")
    sizes = Sizes(arguments.items, arguments.queries, arguments.text_width)
    tasks = [(_scaled(config, arguments.devices[0], n) if arguments.weak else config, n) for n in arguments.devices]
    plans = []
    for mine, devices in tasks:
        plans.append(_elsewhere(mine, sizes, devices))
        say(f"{devices} devices: compiled in {plans[-1].seconds:.0f} s")
    say(text(plans, config, sizes, arguments.memory))
    return {
        "items": sizes.items,
        "memory_bytes": arguments.memory * GIB,
        "plans": [
            dataclasses.asdict(one) | {"total": one.total, "fits": one.total <= arguments.memory * GIB} for one in plans
        ],
    }


def _scaled(config: Config, first: int, devices: int) -> Config:
    """The config with as many windows a device on `devices` as it has on the first number of them."""
    batch, rest = divmod(config.data.batch * devices, first)
    if rest:
        raise UserError(f"--weak: data.batch {config.data.batch} on {first} devices is no whole number on {devices}")
    return configs.override(config, [f"--data.batch={batch}"])


def text(plans: list[Plan], config: Config, sizes: Sizes, memory: float) -> str:
    """All plans as one table, a column a plan."""
    rows = []

    def row(what: str, of: typing.Callable[[Plan], typing.Any]):
        rows.append({"each device": what} | {f"{one.devices} devices": of(one) for one in plans})

    row("mesh, data x model", lambda one: " x ".join(map(str, one.mesh.values())))
    row("windows a step, all devices", lambda one: f"{one.batch:,}")
    for name, of in (
        ("parameters", lambda one: one.parameters),
        ("optimiser", lambda one: one.optimiser),
        ("batch", lambda one: one.data),
        ("catalogue", lambda one: one.catalogue),
        ("activations, temporaries", lambda one: one.temporaries + one.outputs),
        ("or else, in validation", lambda one: one.validation),
        ("total", lambda one: one.total),
    ):
        row(f"{name}, MiB", lambda one, of=of: f"{of(one) / MIB:,.1f}")
    row(f"fits in {memory:g} GiB", lambda one: one.total <= memory * GIB)
    for kind in sorted({kind for one in plans for kind in one.collectives}):
        row(f"{kind}, MiB a step", lambda one, kind=kind: f"{one.collectives.get(kind, 0) / MIB:,.2f}")
    row("all collectives, MiB a step", lambda one: f"{sum(one.collectives.values()) / MIB:,.2f}")
    row("GFLOP a step", lambda one: f"{one.flops / one.devices / 1e9:,.1f}")
    head = (
        f"{sizes.items:,} items, {sizes.queries:,} queries, D {config.model.width}, {config.model.depth} layers, "
        f"L {config.data.max_history}, {config.model.dtype}"
    )
    return f"\n{head}\n{report.table(rows)}"


def _elsewhere(config: Config, sizes: Sizes, devices: int) -> Plan:
    """The plan for so many virtual devices, made by a process of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": FLAGS,
    }
    task = json.dumps({"config": configs.to_dict(config), "sizes": sizes._asdict()})
    run = subprocess.run(
        [sys.executable, "-m", __name__], input=task, env=environment, text=True, stdout=subprocess.PIPE
    )
    found = next((line for line in run.stdout.splitlines() if line.startswith(MARK)), None)
    if found is None:
        raise RuntimeError(f"planning for {devices} devices failed with status {run.returncode}; its words are above")
    answer = json.loads(found.removeprefix(MARK))
    if "error" in answer:
        raise UserError(f"{devices} devices: {answer['error']}")
    return Plan(**answer)


def abstract_inputs(config: Config, sizes: Sizes) -> tuple[LogSpec, TrainBatch, EvalBatch, Catalogue]:
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
    rows = lambda matrices, count: {name: shape(matrix, count) for name, matrix in matrices.items()}
    whole = Catalogue(
        rows(catalogue.item_matrices, spec.items),
        rows(catalogue.query_matrices, spec.queries),
        shape(catalogue.counts, spec.items),
        shape(catalogue.query_counts, spec.queries),
    )
    return spec, batch, jax.tree.map(lambda x: shape(x, config.evaluate.batch), targets), whole


def _main() -> None:
    task = json.load(sys.stdin)
    config, sizes = configs.from_dict(task["config"]), Sizes(**task["sizes"])
    try:
        answer = dataclasses.asdict(planning.plan(config, *abstract_inputs(config, sizes)))
    except UserError as error:
        answer = {"error": str(error)}
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
