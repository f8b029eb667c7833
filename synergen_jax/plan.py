"""What a training step will need of each device, told by compiling it for that many virtual ones.

The step is the one that `train.train` runs, lowered and compiled with the shapes and shardings of its state, batch and
catalogue alone: nothing is allocated, so that a hundred million items on 256 devices can be planned on a laptop.
What XLA makes of it for a CPU is what it makes elsewhere as far as partitioning goes: the same collectives, the same
shards. Temporaries may differ: attention is the plain one, whose logits a fused kernel never keeps, and bfloat16
products may have float32 copies.
"""

from __future__ import annotations

import dataclasses
import math
import time
import typing

import jax

from synergen_jax import flops, hlo, sharding, train
from synergen_jax.batch import Catalogue, LogSpec, TrainBatch
from synergen_jax.config import Config

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes on each device, and what a step does; `collectives` is the payload of each kind, in bytes a step."""

    devices: int
    mesh: dict[str, int]
    batch: int  # windows in one global step
    parameters: int
    optimiser: int
    data: int  # of the batch
    catalogue: int
    temporaries: int  # activations, gradients and whatever else the step holds for a while
    outputs: int  # that do not take the place of an argument
    collectives: dict[str, int]
    flops: float  # of the whole step, all devices together
    seconds: float  # that lowering and compiling took

    @property
    def total(self) -> int:
        """Bytes that a device must have."""
        return self.parameters + self.optimiser + self.data + self.catalogue + self.temporaries + self.outputs


def plan(config: Config, spec: LogSpec, batch: TrainBatch, catalogue: Catalogue) -> Plan:
    """Compiles the training step of a config on all devices of this process.

    Args:
      batch, catalogue: their shapes and dtypes, of the whole batch; arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: mesh, batch and model do not fit together.
    """
    mesh = sharding.make_mesh(config.mesh)
    sharding.micro_batches(config, mesh)  # refuses a batch that does not divide
    model = train.make_model(config, spec)
    state = train.abstract_state(config, model, mesh)
    step = train.make_step(config, model, mesh, jax.tree.map(lambda x: x.sharding, state))
    batch = placed(batch, sharding.batch_shardings(mesh))
    catalogue = placed(catalogue, sharding.whole(mesh))
    start = time.perf_counter()
    compiled = step.lower(state, batch, catalogue).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return Plan(
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch=config.data.batch,
        parameters=device_bytes(state.params),
        optimiser=device_bytes(state.opt_state),
        data=device_bytes(batch),
        catalogue=device_bytes(catalogue),
        temporaries=memory.temp_size_in_bytes,
        outputs=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        collectives=hlo.payload(compiled.as_text()),
        flops=flops.train_step(config, spec),
        seconds=seconds,
    )


def placed(tree: typing.Any, shardings: typing.Any) -> typing.Any:
    """Shapes and dtypes of a tree as they lie on a mesh; `shardings` may be a prefix of it."""
    one = lambda s, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(lambda s, part: jax.tree.map(lambda x: one(s, x), part), shardings, tree)


def device_bytes(tree: typing.Any) -> int:
    """Bytes that the arrays of a tree take on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
