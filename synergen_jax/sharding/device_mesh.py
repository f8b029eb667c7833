"""The mesh, and one table that says along which of its axes every logical axis of an array is split."""

from __future__ import annotations

import math
import typing

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from synergen_jax.batch import TrainBatch
from synergen_jax.config import Config, MeshConfig
from synergen_jax.errors import UserError
from synergen_jax.sharding import table

# logical axis -> mesh axis; None is kept whole on every device.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", "data"),  # users (B)
    ("rows", table.AXES),  # rows of item and query tables (V), over all devices
    ("lines", None),  # of stored tables (A)
    ("heads", "model"),  # attention heads (H)
    ("mlp", "model"),  # hidden features of the feed-forward layer
    ("embed", None),  # features of the residual stream (D)
    ("embed_out", None),
    ("head_width", None),  # features of one head (Dh)
)


def make_mesh(
    config: MeshConfig,
    devices: typing.Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]  jaxlib has no types of it
) -> Mesh:
    """A mesh with the axes `data` and `model`, over the devices of all processes by default.

    Devices of one process lie side by side, so that each process has one block of the users of a batch (`block`).

    Raises:
      UserError: the axes do not multiply to the number of devices, or leave a process without one; or tables cannot be
        split over so many.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = list(devices)
    shape = [config.data, config.model]
    if any(n != -1 and n < 1 for n in shape) or shape.count(-1) > 1:
        raise UserError(f"mesh.data {config.data} and mesh.model {config.model}: each at least 1, or one of them -1")
    if -1 in shape:
        known = max(shape)
        if len(devices) % known:
            raise UserError(
                f"{len(devices)} devices cannot be split into groups of {known}: change mesh.data or mesh.model"
            )
        shape[shape.index(-1)] = len(devices) // known
    wanted = shape[0] * shape[1]
    if wanted > len(devices):
        raise UserError(f"a mesh of {shape[0]} x {shape[1]} needs {wanted} devices and there are {len(devices)}")
    processes = {device.process_index for device in devices}
    if idle := processes - {device.process_index for device in devices[:wanted]}:
        raise UserError(
            f"a mesh of {shape[0]} x {shape[1]} leaves process {min(idle)} of {len(processes)} without a device: "
            f"mesh.data and mesh.model must multiply to all {len(devices)} devices"
        )
    table.check(wanted)
    return Mesh(np.array(devices[:wanted]).reshape(shape), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return make_mesh(MeshConfig(1, 1), jax.devices()[:1])


def block(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which of how many equal blocks of the users of a batch lies on the devices of a process: (index, blocks).

    Processes that hold the same users, since `model` runs over several of them, have the same block.

    Args:
      process: this one by default.

    Raises:
      UserError: a process has some users of another one's, and others of its own.
    """
    process = jax.process_index() if process is None else process
    rows = np.array([[device.process_index for device in row] for row in mesh.devices])
    blocks = {tuple(np.flatnonzero((rows == p).any(axis=1)).tolist()) for p in np.unique(rows)}
    mine = tuple(np.flatnonzero((rows == process).any(axis=1)).tolist())
    data = mesh.shape["data"]
    if sum(map(len, blocks)) != data or len(set(map(len, blocks))) > 1:
        raise UserError(
            f"mesh.model {mesh.shape['model']} does not fit {data * mesh.shape['model']} devices on "
            f"{len(np.unique(rows))} processes: it must divide the devices of one process, or be a multiple of them"
        )
    return mine[0] // len(mine), data // len(mine)


def tree_shardings(tree: typing.Any, mesh: Mesh, rules=RULES) -> typing.Any:
    """A `NamedSharding` for each array of a tree that is boxed with logical axes; without a box: kept whole.

    Raises:
      UserError: two axes of one array fall on the same mesh axis, a size does not divide, or an axis has no rule.
    """
    to_mesh = dict(rules)
    is_spec = lambda x: isinstance(x, PartitionSpec)

    def one(path, array, logical):
        where = f"{jax.tree_util.keystr(path)} {array.shape}"
        if missing := [name for name in logical if name is not None and name not in to_mesh]:
            raise UserError(f"{where}: no sharding rule for the logical axis {missing[0]!r}")
        spec = PartitionSpec(*(to_mesh[name] if name is not None else None for name in logical))
        several = lambda axis: () if axis is None else (axis,) if isinstance(axis, str) else axis
        used = [axis for part in spec for axis in several(part)]
        if len(set(used)) < len(used):
            raise UserError(f"{where}: the sharding rules put two of its axes, {logical}, on one mesh axis: {spec}")
        for size, axis in zip(array.shape, spec):
            if size % math.prod(mesh.shape[one] for one in several(axis)):
                over = " x ".join(f"mesh.{one} {mesh.shape[one]}" for one in several(axis))
                raise UserError(f"{where}: {size} cannot be split over {over}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(tree), nn.get_partition_spec(tree), is_leaf=is_spec)


def batch_shardings(mesh: Mesh) -> TrainBatch:
    """How a training batch lies on the mesh: users along `data`, the shared negatives whole on every device.

    One sharding stands for all arrays of a part, whichever of them a log has.
    """
    users, alike = (table.everywhere(NamedSharding(mesh, spec)) for spec in (PartitionSpec("data"), PartitionSpec()))
    return TrainBatch(events=users, retrieval=users, target=users, ranking=users, negatives=alike)


def place(batch: typing.Any, shardings: typing.Any) -> typing.Any:
    """This process's `block` of a host batch as global arrays on the mesh; `shardings` may be a prefix of its tree."""
    one = jax.make_array_from_process_local_data
    return jax.tree.map(lambda s, part: jax.tree.map(lambda x: one(s, x), part), shardings, batch)


def fetch(array: jax.Array) -> np.ndarray:
    """A global array, whole on the host of every process; all of them call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def whole(mesh: Mesh) -> NamedSharding:
    """Kept whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


CPU_TOKENS = 4_096  # context tokens and readers of one micro-batch on CPUs


def micro_batches(config: Config, mesh: Mesh, ranked: int | None = None) -> int:
    """Into how many micro-batches a step cuts its batch: `optimiser.accumulate`, or what suits the platform.

    On accelerators that is one. On CPUs a step is bound by memory, not by arithmetic: micro-batches of some `CPU_TOKENS`
    tokens stay in the cache. Their number does not depend on the mesh unless the mesh is so wide that it must.

    Args:
      ranked: ranked events that a row of the batch has room for (E); by default `data.rank_events`, which packed rows exceed.

    Raises:
      UserError: the global batch does not divide over the mesh's `data` axis and the micro-batches.
    """
    batch, data, micro = config.data.batch, mesh.shape["data"], config.optimiser.accumulate
    if not micro:
        ranked = config.data.rank_events if ranked is None else ranked
        tokens = 2 * config.data.max_history + ranked * (config.data.rank_candidates + 1)
        fits = max(CPU_TOKENS // tokens, 1) if mesh.devices.flat[0].platform == "cpu" else batch
        micro = next((n for n in range(1, batch + 1) if batch % (n * data) == 0 and batch // n <= max(fits, data)), 1)
    if batch % (data * micro):
        parts = data * micro
        raise UserError(
            f"data.batch {batch} is not divisible by {parts} (mesh.data {data} x optimiser.accumulate {micro}); the next "
            f"that is: {-(-batch // parts) * parts}"
        )
    return micro
