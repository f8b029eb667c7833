"""What training and validation will need of each device, told by compiling them for that many virtual ones.

The step is the one that `loop.train` runs, and validation that of `protocol.validator`, lowered and compiled with the
shapes and shardings of its state, batch and catalogue alone: nothing is allocated, so that a hundred million items on 256 devices can be planned on a laptop.
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
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synergen_jax.batch import Catalogue, EvalBatch, LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.evaluation import model_answers
from synergen_jax.model import synergen
from synergen_jax.planning import flops, hlo
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import device_mesh, table
from synergen_jax.sharding.table import StoredCatalogue
from synergen_jax.training import train_step

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
    validation: int  # what validation holds for a while: the items' keys, a batch, and temporaries
    collectives: dict[str, int]  # of a training step
    flops: float  # of the whole step, all devices together
    seconds: float  # that lowering and compiling took

    @property
    def total(self) -> int:
        """Bytes that a device must have, in a step or while it validates."""
        step = self.data + self.temporaries + self.outputs
        return self.parameters + self.optimiser + self.catalogue + max(step, self.validation)


def plan(config: Config, spec: LogSpec, batch: TrainBatch, targets: EvalBatch, catalogue: Catalogue) -> Plan:
    """Compiles the training step and the validation of a config on all devices of this process.

    Args:
      batch, targets, catalogue: their shapes and dtypes, of whole batches; arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: mesh, batch and model do not fit together.
    """
    mesh = device_mesh.make_mesh(config.mesh)
    device_mesh.micro_batches(config, mesh)  # refuses a batch that does not divide
    model = train_step.make_model(config, spec)
    state = train_step.abstract_state(config, model, mesh)
    step = train_step.make_step(config, model, mesh, jax.tree.map(lambda x: x.sharding, state))
    batch = placed(batch, device_mesh.batch_shardings(mesh))
    stored = table.abstract_catalogue(catalogue, mesh)
    start = time.perf_counter()
    compiled = step.lower(state, batch, stored).compile()
    held = validation(mesh, model, state.served, stored, targets)
    seconds = time.perf_counter() - start
    memory = hlo.memory(compiled)
    return Plan(
        devices=mesh.size,
        mesh=dict(mesh.shape),
        batch=config.data.batch,
        parameters=device_bytes(state.params),
        optimiser=device_bytes(state.opt_state),
        data=device_bytes(batch),
        catalogue=device_bytes(stored),
        temporaries=memory.temp_size_in_bytes,
        outputs=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        validation=held,
        collectives=hlo.payload(hlo.text(compiled)),
        flops=flops.train_step(config, spec),
        seconds=seconds,
    )


def validation(mesh: Mesh, model: synergen.SynerGen, params, catalogue: StoredCatalogue, targets: EvalBatch) -> int:
    """Bytes of `Plan.validation`: first the keys are made, then batches are answered. Arguments may be shapes."""
    data = mesh.shape["data"]
    padded = lambda x: jax.ShapeDtypeStruct((-(-x.shape[0] // data) * data, *x.shape[1:]), x.dtype)
    targets = placed(jax.tree.map(padded, targets), NamedSharding(mesh, PartitionSpec("data")))
    made = hlo.memory(full_ranking.item_keys.lower(mesh, model, params, catalogue).compile())
    shape = (*catalogue.item_counts.shape, model.key_width)
    keys = placed(jax.ShapeDtypeStruct(shape, jnp.float32), NamedSharding(mesh, table.SPLIT))
    asked = model_answers.PlacedModel(mesh, model, params, catalogue, keys)
    said = hlo.memory(model_answers.answer.lower(asked, targets, 0).compile())
    answering = device_bytes(targets) + said.temp_size_in_bytes + said.output_size_in_bytes
    return device_bytes(keys) + max(made.temp_size_in_bytes, answering)


def placed(tree: typing.Any, shardings: typing.Any) -> typing.Any:
    """Shapes and dtypes of a tree as they lie on a mesh; `shardings` may be a prefix of it."""
    one = lambda s, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(lambda s, part: jax.tree.map(lambda x: one(s, x), part), shardings, tree)


def device_bytes(tree: typing.Any) -> int:
    """Bytes that the arrays of a tree take on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
