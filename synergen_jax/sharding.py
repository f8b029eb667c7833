"""The mesh, and one table that says along which of its axes every logical axis of an array is split."""

from __future__ import annotations

import math
import typing

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from synergen_jax import table
from synergen_jax.batch import TrainBatch
from synergen_jax.config import MeshConfig
from synergen_jax.errors import UserError

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


def make_mesh(config: MeshConfig, devices: typing.Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes `data` and `model`.

    Raises:
      UserError: the axes do not multiply to the number of devices, or tables cannot be split over so many.
    """
    devices = jax.devices() if devices is None else list(devices)
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
    table.check(wanted)
    return Mesh(np.array(devices[:wanted]).reshape(shape), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


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
    users, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return TrainBatch(events=users, retrieval=users, target=users, ranking=users, negatives=whole)


def place(batch: typing.Any, shardings: typing.Any) -> typing.Any:
    """This process's part of a host batch as global arrays on the mesh; `shardings` may be a prefix of its tree."""
    one = jax.make_array_from_process_local_data
    return jax.tree.map(lambda s, part: jax.tree.map(lambda x: one(s, x), part), shardings, batch)


def whole(mesh: Mesh) -> NamedSharding:
    """Kept whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch: int, micro: int, mesh: Mesh) -> None:
    """Refuses a global batch that does not divide over the mesh's `data` axis and the micro-batches."""
    parts = mesh.shape["data"] * micro
    if batch % parts:
        raise UserError(
            f"data.batch {batch} is not divisible by {parts} (mesh.data {mesh.shape['data']} x optimiser.accumulate "
            f"{micro}); the next that is: {-(-batch // parts) * parts}"
        )
