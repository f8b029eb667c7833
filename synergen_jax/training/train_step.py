"""The training step: state and batch to the next state and metrics, compiled for a mesh."""

from __future__ import annotations

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from synergen_jax.batch import LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.errors import UserError, nearest
from synergen_jax.model import attention, rope, synergen
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue, catalogue_shardings
from synergen_jax.training import apply_gradients, objective
from synergen_jax.training.optimiser import schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step maps to its successor. Everything else (feed, random keys) is a function of `step` and the seed."""

    step: Array  # () int32: steps done
    params: synergen.Params
    opt_state: typing.Any

    @property
    def served(self) -> synergen.Params:
        """The parameters that are validated, evaluated and served."""
        return apply_gradients.served(self.params, self.opt_state)


def make_model(config: Config, spec: LogSpec, phase: rope.Phase | None = None) -> synergen.SynerGen:
    """The model of a run; `phase` replaces the rotary encoding that `config.model.rope` names.

    Raises:
      UserError: its attention backend cannot run here, it names what the log does not have, or `phase` does not give an
        angle a rotary plane.
    """
    attention.check(config)
    if phase is not None:
        rope.describe(config.model, phase)
    _, auc, label = config.run.select.partition("auc/")
    if auc and label not in spec.labels:
        raise UserError(
            f"run.select {config.run.select}: the log has no label {label!r}{nearest(label, spec.labels)}; "
            f"it has {', '.join(spec.labels)}"
        )
    names = {name for name, _ in spec.item_matrices + spec.query_matrices}
    if unknown := [name for name in config.model.left_out if name not in names]:
        raise UserError(f"model.leave_out: the log has no matrix {unknown[0]!r}{nearest(unknown[0], names)}")
    if not config.model.item_ids and not any(config.model.uses(name) for name, _ in spec.item_matrices):
        raise UserError("model.item_ids is false, and no matrix of the log is used: items have no vectors")
    if config.loss.hard_candidates and spec.candidate_features:
        raise UserError(
            "loss.hard_candidates: items of no shown list lack the log's features of candidates "
            f"({', '.join(spec.candidate_features)}), by which the head would tell them from the others: set it to 0"
        )
    return synergen.SynerGen(config.model, spec, phase)


def _create(config: Config, model: synergen.SynerGen, key: Array) -> TrainState:
    """A fresh state, boxed with logical axes."""
    params = synergen.init(model, key)
    return TrainState(jnp.zeros((), jnp.int32), params, apply_gradients.init(config, params))


def init_state(config: Config, model: synergen.SynerGen, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """A fresh state, born sharded on the mesh, and its shardings."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, model, mesh))
    create = jax.jit(lambda key: nn.unbox(_create(config, model, key)), out_shardings=shardings)
    return create(jax.random.key(config.run.seed)), shardings


def begun_with(state: TrainState, params: synergen.Params) -> TrainState:
    """A fresh state with the parameters of another run in place of its own."""
    rest = state.opt_state
    if "average" in rest:
        tables = {name: params["tables"][name] for name in rest["average"]["tables"]}
        rest = rest | {"average": jax.tree.map(jnp.copy, {"model": params["model"], "tables": tables})}
    return dataclasses.replace(state, params=params, opt_state=rest)


def abstract_state(config: Config, model: synergen.SynerGen, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state on a mesh, at no cost."""
    boxed = jax.eval_shape(lambda key: _create(config, model, key), jax.random.key(0))
    shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(shape, nn.unbox(boxed), device_mesh.tree_shardings(boxed, mesh))


def make_step(config: Config, model: synergen.SynerGen, mesh: Mesh, shardings: TrainState):
    """The compiled training step: `step(state, batch, catalogue) -> (state, metrics)`. The old state is donated.

    A step is a pure function of state and batch: the random key is the seed's, folded with the step number. With
    `optimiser.accumulate` n > 1 the batch is cut into n micro-batches whose gradients add up to the whole batch's.
    """
    rate = schedule(config.optimiser, config.run.steps)

    def step(state: TrainState, batch: TrainBatch, catalogue: StoredCatalogue):
        micro = device_mesh.micro_batches(config, mesh, batch.ranking.item.shape[1])
        key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # along which attention kernels are split
            loss, filter_seen = config.loss, config.data.filter_seen
            value, parts, gradients = objective.value_and_grad(
                mesh, model, state.params, catalogue, batch, loss, key, state.step, micro, filter_seen
            )
        params, opt_state, norms = apply_gradients.apply(
            config, mesh, state.params, state.opt_state, state.step, gradients
        )
        metrics = {
            "loss": value,
            **{f"loss/{name}": part for name, part in parts.items()},
            **{f"norm/{name}": norm for name, norm in norms.items()},
            "learning_rate": rate(state.step),
            "padding": 1 - jnp.mean(batch.events.mask),  # share of the slots for events that hold none
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    whole = device_mesh.whole(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, device_mesh.batch_shardings(mesh), catalogue_shardings(mesh)),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
