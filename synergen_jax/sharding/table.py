"""Item and query tables that are split by row over all devices of a mesh, and used where their rows lie.

A table of V rows is stored as an array (A, 768, ...): row i lies at [i // 768, i % 768], and axis 1 is split over all
devices, `data` and `model` together. So neighbouring ids, which are often equally popular, lie on different devices, and
what is stored fits every mesh whose number of devices divides 768 = 2^8 x 3. Learned tables, their optimiser state, frozen
semantic matrices and training counts are all stored in this way.

A step works with the distinct rows that it needs and never with a table:

- `ask`: each device finds the distinct ones among its share of the batch's ids;
- `fetch`: it sends them to the devices that own the rows (all-to-all), which send the rows back;
- `spread`: rows, or what was made of them, are copied to every place where the id stands in the batch;
- `deliver`: gradients of the distinct rows are sent to the owners, who add up what comes for the same row;
- `change`: owners update the rows that something came for.

What is sent has a fixed shape: a share of `SLACK` x ids / devices for each pair of devices, so that the bytes a device
sends do not depend on how many there are. What does not fit goes in further rounds, until nothing is left: however the ids
are distributed, the result is exact. On one device nothing is sent. (The all-to-all exchange is that of TorchRec and
HugeCTR; Naumov et al. 2019.)
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray, Catalogue
from synergen_jax.errors import UserError

COLUMNS = 768  # rows of one line of a stored table, which are split over the devices
AXES = ("data", "model")
SPLIT = PartitionSpec(None, AXES)  # of a stored table
_MINE = PartitionSpec(AXES)  # of what each device has for itself, along axis 0
SLACK = 1.25

Stored = typing.Any
"""An array (A, 768, ...), or a tree of them of the same A."""


def lines(count: int) -> int:
    """A of a table of `count` rows."""
    return max(-(-count // COLUMNS), 1)


def take(stored: Array, ids: Int[AnyArray, "..."]) -> Array:
    """Rows (..., width) of a stored table, on one device. An id beyond the table gives some row of it."""
    return stored.at[ids // COLUMNS, ids % COLUMNS].get(mode="clip")


def place_among_own(ids: Int[Array, "..."], columns: int) -> Int[Array, "..."]:
    """Where rows lie in this device's part of a stored table, (A x columns, ...), flat; -1 for those of other devices.

    Inside `shard_map`; so is `id_of_own`. `columns` are those of a device, 768 / devices.
    """
    column = ids % COLUMNS - jax.lax.axis_index(AXES) * columns
    return jnp.where((column >= 0) & (column < columns), ids // COLUMNS * columns + column, -1)


def id_of_own(place: Int[Array, "..."], columns: int) -> Int[Array, "..."]:
    """The ids of rows at some places of this device's part: the inverse of `place_among_own`."""
    return place // columns * COLUMNS + jax.lax.axis_index(AXES) * columns + place % columns


def check(devices: int) -> None:
    """Refuses a number of devices over which tables cannot be split."""
    if COLUMNS % devices:
        fit = [n for n in range(1, COLUMNS + 1) if COLUMNS % n == 0]
        below, above = max(n for n in fit if n < devices), min((n for n in fit if n > devices), default=COLUMNS)
        raise UserError(
            f"a mesh of {devices} devices: tables are split over all of them, whose number must divide {COLUMNS}; "
            f"the nearest that do: {below} and {above}: change mesh.data or mesh.model"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredCatalogue:
    """A `batch.Catalogue` on a mesh."""

    item: dict[str, Array]  # semantic matrices, (A, 768, width) each
    item_counts: Array  # (A, 768) int32
    query: dict[str, Array]
    query_counts: Array
    events: Array  # () float32: sum of the items' counts
    met: Array  # () float32: items with a count

    @property
    def mesh(self) -> Mesh:
        """The mesh that it lies on; outside of `jit`."""
        sharding = self.item_counts.sharding
        assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh), (
            "`place_catalogue` puts it on one"
        )
        return sharding.mesh


def everywhere(
    how: NamedSharding | PartitionSpec,
) -> typing.Any:  # no type says "a part of a tree, or one for all of it"
    """How all arrays of a part of a tree lie, in the place of that part."""
    return how


def catalogue_shardings(mesh: Mesh) -> StoredCatalogue:
    """How a stored catalogue lies on a mesh."""
    split, whole = everywhere(NamedSharding(mesh, SPLIT)), everywhere(NamedSharding(mesh, PartitionSpec()))
    return StoredCatalogue(split, split, split, split, whole, whole)


def place_catalogue(catalogue: Catalogue, mesh: Mesh) -> StoredCatalogue:
    """A host catalogue, its rows split over all devices of the mesh. Each process reads the rows of its own devices."""

    def one(flat) -> Array:
        flat = np.asarray(flat)
        shape, full = (lines(flat.shape[0]), COLUMNS, *flat.shape[1:]), flat.shape[0] // COLUMNS

        def part(index) -> np.ndarray:
            columns = index[1]
            mine = np.zeros((shape[0], len(range(COLUMNS)[columns]), *shape[2:]), flat.dtype)
            mine[:full] = flat[: full * COLUMNS].reshape(full, *shape[1:])[:, columns]
            last = flat[full * COLUMNS :][columns]
            mine[full:, : len(last)] = last
            return mine

        return jax.make_array_from_callback(shape, NamedSharding(mesh, SPLIT), part)

    whole = lambda x: jax.device_put(np.float32(x), NamedSharding(mesh, PartitionSpec()))
    counts = np.asarray(catalogue.counts)
    return StoredCatalogue(
        jax.tree.map(one, dict(catalogue.item_matrices)),
        one(catalogue.counts),
        jax.tree.map(one, dict(catalogue.query_matrices)),
        one(catalogue.query_counts),
        whole(counts.sum(dtype=np.int64)),
        whole(np.count_nonzero(counts)),
    )


def abstract_catalogue(catalogue: Catalogue, mesh: Mesh) -> StoredCatalogue:
    """Shapes, dtypes and shardings of what `place_catalogue` gives, of a catalogue of which only the shapes matter."""
    split, whole = NamedSharding(mesh, SPLIT), NamedSharding(mesh, PartitionSpec())
    one = lambda x: jax.ShapeDtypeStruct((lines(x.shape[0]), COLUMNS, *x.shape[1:]), x.dtype, sharding=split)
    # In the place of an array, where a shape is all that is asked for.
    number = typing.cast(Array, jax.ShapeDtypeStruct((), np.float32, sharding=whole))
    arrays = catalogue.item_matrices, catalogue.counts, catalogue.query_matrices, catalogue.query_counts
    items, counts, queries, query_counts = jax.tree.map(one, arrays)
    return StoredCatalogue(items, counts, queries, query_counts, number, number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Asked:
    """The distinct rows of one table that a batch needs. S devices, each with at most U of them."""

    ids: Int[Array, "s u"]  # in the order of their owners; -1 where there are fewer
    place: Int[Array, "b x"]  # where among its device's ids each id of the batch is
    shared: Int[Array, "n"]  # likewise of the ids that all devices share


def ask(mesh: Mesh, stored: Array, ids: Int[Array, "b x"], shared: Int[Array, "n"] | None = None) -> Asked:
    """Which rows of a table a batch needs.

    Args:
      stored: a table, of which only the shape matters.
      ids: X of each user, split over `data`; the peers along `model` share the work.
      shared: ids that the whole batch uses, the same on every device; all devices share the work.
    """
    shared = jnp.zeros((0,), jnp.int32) if shared is None else shared
    ids = _padded(ids, 1, mesh.shape["model"])
    shared = _padded(shared, 0, mesh.size)
    count = stored.shape[0]

    def local(ids, shared):
        every = jnp.concatenate([ids.reshape(-1), shared])
        size = min(every.size, count * COLUMNS)
        address, place = _distinct(_address(every, count, mesh.size), size, count * COLUMNS)
        wanted = jnp.where(address < count * COLUMNS, _id(address, count, mesh.size), -1)
        return wanted[None], place[: ids.size].reshape(ids.shape), place[ids.size :]

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(*AXES), _MINE), out_specs=(_MINE, PartitionSpec(*AXES), _MINE)
    )
    return Asked(*split(ids, shared))


def fetch(mesh: Mesh, asked: Asked, stored: Stored) -> typing.Any:
    """The rows that were asked for, (S, U, ...), of one or several tables of the same A. Not differentiable."""
    count = jax.tree.leaves(stored)[0].shape[0]
    rows, devices = count * COLUMNS // mesh.size, mesh.size

    def local(ids, stored):
        address = _address(ids[0], count, devices)
        flat = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), stored)
        get = lambda place: jax.tree.map(lambda x: x.at[place].get(mode="clip"), flat)
        if devices == 1:
            return jax.tree.map(lambda x: x[None], get(address))
        room = _room(address.size, devices)
        starts = jnp.searchsorted(address, rows * jnp.arange(devices + 1))
        owner = jnp.minimum(address // rows, devices - 1)
        turn = jnp.arange(address.size) - starts[owner]  # each row's place among those of its owner

        def one(done, found):
            """One round: rows number `done` to `done + room` of every owner."""
            wanted = address.at[starts[:-1, None] + done + jnp.arange(room)[None]].get(mode="clip")
            sent = get(_exchange(wanted) - rows * jax.lax.axis_index(AXES))
            back = jax.tree.map(lambda x: _exchange(x).reshape(devices * room, *x.shape[2:]), sent)
            now = (turn >= done) & (turn < done + room)
            pick = lambda x: x.at[owner * room + turn - done].get(mode="clip")
            choose = lambda x, old: jnp.where(now.reshape(-1, *(1,) * (old.ndim - 1)), pick(x), old)
            return jax.tree.map(choose, back, found)

        found = jax.tree.map(lambda x: jnp.zeros((address.size, *x.shape[1:]), x.dtype), flat)
        if room >= address.size:
            found = one(0, found)
        else:
            most = jax.lax.pmax(jnp.max(jnp.diff(starts)), AXES)
            step = lambda carry: (carry[0] + room, one(*carry))
            _, found = jax.lax.while_loop(lambda carry: carry[0] < most, step, (0, found))
        return jax.tree.map(lambda x: x[None], found)

    split = jax.shard_map(local, mesh=mesh, in_specs=(_MINE, SPLIT), out_specs=_MINE, check_vma=False)
    return split(asked.ids, stored)


def spread(mesh: Mesh, asked: Asked, values: typing.Any, wide: int, shared: int = 0) -> tuple[typing.Any, typing.Any]:
    """Values of the distinct ids at every place where an id stands. Differentiable.

    Args:
      asked: its `place` may be that of a part of the batch.
      values: arrays (S, U, ...).
      wide: X, ids of each user; shared: N, ids that the whole batch shares.

    Returns:
      Arrays (B, X, ...), split over `data`, and (N, ...), whole on every device.
    """

    def local(place, shared, values):
        get = lambda at: jax.tree.map(lambda x: x[0].at[at].get(mode="promise_in_bounds"), values)
        return get(place), get(shared)

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(*AXES), _MINE, _MINE), out_specs=(PartitionSpec(*AXES), _MINE)
    )
    mine, ours = split(asked.place, asked.shared, values)
    lay = lambda x, *axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))
    return jax.tree.map(lambda x: lay(x, "data")[:, :wide], mine), jax.tree.map(lambda x: lay(x)[:shared], ours)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delivered:
    """Gradients at the devices that own the rows. Each device has M of them, in the first round."""

    rows: Int[Array, "s m"]  # local rows, ascending; the number of local rows where there are fewer
    gradient: Float[Array, "s m d"]
    square: Float[Array, ""]  # sum of squares over all rows
    sent: Int[Array, "s devices"]  # how far each sender is after the first round
    asked: Int[Array, "s u"]  # `Asked.ids`, and their gradients, for further rounds
    source: Float[Array, "s u d"]


def deliver(mesh: Mesh, asked: Asked, stored: Array, gradient: Float[Array, "s u d"]) -> Delivered:
    """Sends the gradients of the distinct rows (S, U, D) to the owners, and adds up what comes for one row.

    Args:
      stored: the table, of which only the shape matters.
    """
    count = stored.shape[0]

    def local(ids, gradient):
        rounds = _Rounds(count, mesh.size, ids[0], gradient[0])
        rows, total, sent = rounds.one(rounds.starts[:-1])
        add = lambda carry, rows, total: carry + jnp.sum(total * total)
        square = rounds.rest(sent, jnp.sum(total * total), add)
        square = jax.lax.psum(square, AXES) if mesh.size > 1 else square
        return rows[None], total[None], square, sent[None]

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_MINE, _MINE),
        out_specs=(_MINE, _MINE, PartitionSpec(), _MINE),
        check_vma=False,
    )
    rows, total, square, sent = split(asked.ids, gradient)
    return Delivered(rows, total, square, sent, asked.ids, gradient)


Change = collections.abc.Callable[..., tuple[typing.Any, Array]]
"""`change(old, gradient, *extra) -> (new, measure)`: of rows (M, ...) and their gradients (M, D)."""


def change(mesh: Mesh, delivered: Delivered, stored: Stored, rule: Change, *extra: Array) -> tuple[Stored, Array]:
    """Stored arrays in which the rows that a gradient came for are changed by a rule, in place where they are donated.

    Args:
      stored: arrays of the same A.
      rule: must leave a row as it is where its gradient is that of padding, zero, and the row zeros.
      extra: scalars for the rule.

    Returns:
      The arrays, and the sum of the rule's measures over all rows.
    """
    count = jax.tree.leaves(stored)[0].shape[0]
    size = count * COLUMNS // mesh.size
    known = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}

    def local(delivered, stored, extra):
        def one(carry, rows, gradient):
            flat, total = carry
            old = jax.tree.map(lambda x: x.at[rows].get(mode="fill", fill_value=0), flat)
            new, measure = rule(old, gradient, *extra)
            return jax.tree.map(lambda x, y: x.at[rows].set(y, **known), flat, new), total + measure

        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), stored)
        carry = one((flat, jnp.zeros(())), delivered.rows[0], delivered.gradient[0])
        rounds = _Rounds(count, mesh.size, delivered.asked[0], delivered.source[0])
        flat, total = rounds.rest(delivered.sent[0], carry, one)
        total = jax.lax.psum(total, AXES) if mesh.size > 1 else total
        return jax.tree.map(lambda x, like: x.reshape(like.shape), flat, stored), total

    own = everywhere(_MINE)
    mine = Delivered(own, own, everywhere(PartitionSpec()), own, own, own)
    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(mine, SPLIT, PartitionSpec()),
        out_specs=(SPLIT, PartitionSpec()),
        check_vma=False,
    )
    return split(delivered, stored, extra)


class _Rounds:
    """The rounds in which one device's gradients go to the owners. Inside `shard_map`.

    A round covers a range of each owner's rows, as wide as no sender has more than `room` of them in it: so all that
    comes for a row comes in one round, and the owner can update it for good.
    """

    def __init__(self, count: int, devices: int, ids: Array, gradient: Array):
        self.rows, self.devices = count * COLUMNS // devices, devices
        self.address, self.gradient = _address(ids, count, devices), gradient
        self.room = _room(ids.size, devices)
        self.starts = jnp.searchsorted(self.address, self.rows * jnp.arange(devices + 1))

    def one(self, sent: Array) -> tuple[Array, Array, Array]:
        """A round after `sent` (devices,): local rows (M,), their gradients (M, D), and how far this sender is then."""
        if self.devices == 1:
            return jnp.minimum(self.address, self.rows), self.gradient, self.starts[1:]
        size, last = self.address.size, self.rows * self.devices
        following = sent + self.room
        bound = jnp.where(
            following < self.starts[1:],
            self.address.at[following].get(mode="clip"),
            self.rows * jnp.arange(1, self.devices + 1),
        )
        if self.room < size:
            bound = jax.lax.pmin(bound, AXES)
        then = jnp.searchsorted(self.address, bound)
        place = sent[:, None] + jnp.arange(self.room)[None]
        goes = place < then[:, None]
        address = _exchange(jnp.where(goes, self.address.at[place].get(mode="clip"), last))
        gradient = self.gradient.at[place].get(mode="clip")
        gradient = _exchange(jnp.where(goes[..., None], gradient, 0)).reshape(-1, gradient.shape[-1])
        row = jnp.where(address < last, address - self.rows * jax.lax.axis_index(AXES), self.rows)
        rows, place = _distinct(row.reshape(-1), min(row.size, self.rows + 1), self.rows)
        return rows, jax.ops.segment_sum(gradient, place, rows.size), then

    def rest(self, sent: Array, carry: typing.Any, use: typing.Callable[[typing.Any, Array, Array], typing.Any]):
        """`use(carry, rows, gradient)` of every further round, after `sent`."""
        if self.room >= self.address.size:
            return carry

        def left(sent):
            return jax.lax.pmax(jnp.any(sent < self.starts[1:]), AXES)

        def step(state):
            sent, _, carry = state
            rows, gradient, sent = self.one(sent)
            return sent, left(sent), use(carry, rows, gradient)

        return jax.lax.while_loop(lambda state: state[1], step, (sent, left(sent), carry))[2]


def _room(size: int, devices: int) -> int:
    """Rows that a device sends to one other device in a round."""
    return size if devices == 1 else min(size, math.ceil(SLACK * size / devices))


_exchange = functools.partial(jax.lax.all_to_all, axis_name=AXES, split_axis=0, concat_axis=0, tiled=True)


def _padded(array: Array, axis: int, multiple: int) -> Array:
    """An array with zeros at the end of an axis, so that its size is a multiple."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % multiple)
    return jnp.pad(array, widths)


def _address(ids: Array, count: int, devices: int) -> Array:
    """Ids numbered by owner, then by local row; an id of -1 lies behind all."""
    wide = COLUMNS // devices
    line, column = ids // COLUMNS, ids % COLUMNS
    return jnp.where(ids < 0, count * COLUMNS, (column // wide * count + line) * wide + column % wide)


def _id(address: Array, count: int, devices: int) -> Array:
    """The inverse of `_address`."""
    wide = COLUMNS // devices
    owner, row = address // (count * wide), address % (count * wide)
    return row // wide * COLUMNS + owner * wide + row % wide


def _distinct(values: Array, size: int, fill: int) -> tuple[Array, Array]:
    """The distinct ones of values (n,), ascending, (size,), `fill` at the end; and where each value is among them."""
    ascending, order = jax.lax.sort_key_val(values, jnp.arange(values.size))
    first = jnp.concatenate([jnp.ones((1,), bool), ascending[1:] != ascending[:-1]]) if values.size else values > 0
    place = jnp.cumsum(first) - 1
    found = jnp.full((size,), fill, values.dtype).at[place].set(ascending, mode="drop")
    return found, jnp.zeros_like(order).at[order].set(place, unique_indices=True)
