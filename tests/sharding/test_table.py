"""Tables in parts: what is fetched, spread, delivered and changed on a mesh is what plain indexing gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synergen_jax.batch import Catalogue
from synergen_jax.config import MeshConfig
from synergen_jax.errors import UserError
from synergen_jax.sharding import device_mesh, table

ROWS, WIDTH, USERS, WIDE, SHARED = 2000, 3, 8, 5, 7  # three lines of a stored table


def make_mesh(data, model):
    return device_mesh.make_mesh(MeshConfig(data, model), jax.devices()[: data * model])


def place(mesh, flat):
    """A flat table, stored on a mesh."""
    lines = table.lines(len(flat))
    stored = np.zeros((lines * table.COLUMNS, *flat.shape[1:]), flat.dtype)
    stored[: len(flat)] = flat
    stored = stored.reshape(lines, table.COLUMNS, *flat.shape[1:])
    return jax.device_put(stored, NamedSharding(mesh, table.SPLIT))


def draw(kind, rng):
    """Ids of a batch (B, X), and shared ones (N,)."""
    if kind == "skewed":  # one owner has all of them, on every mesh
        owned = np.arange(0, ROWS, table.COLUMNS)[:, None] + np.arange(96)
        every = owned[owned < ROWS]
        return rng.permutation(every)[: USERS * WIDE].reshape(USERS, WIDE), rng.permutation(every)[:SHARED]
    if kind == "same":
        return np.full((USERS, WIDE), 1999), np.full(SHARED, 1999)
    popular = rng.zipf(1.3, (USERS * WIDE + SHARED)) % ROWS
    return popular[SHARED:].reshape(USERS, WIDE), popular[:SHARED]


@pytest.mark.parametrize("kind", ["popular", "skewed", "same"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (8, 1), (4, 2)])
def test_a_round_trip_is_plain_indexing(shape, kind, monkeypatch):
    """Rows come to where their ids stand; gradients of all places add up in the rows."""
    monkeypatch.setattr(table, "SLACK", 0.6)  # so that several rounds are needed
    rng = np.random.default_rng(0)
    mesh = make_mesh(*shape)
    flat, text = rng.normal(size=(ROWS, WIDTH)).astype(np.float32), rng.integers(0, 99, (ROWS, 2)).astype(np.float16)
    ids, shared = (x.astype(np.int32) for x in draw(kind, rng))
    weight, shared_weight = rng.normal(size=(USERS, WIDE, WIDTH)), rng.normal(size=(SHARED, WIDTH))

    @jax.jit
    def program(stored, ids, shared):
        asked = table.ask(mesh, stored["id"], ids, shared)
        rows = table.fetch(mesh, asked, stored)

        def loss(rows):
            mine, ours = table.spread(mesh, asked, rows, WIDE, SHARED)
            return jnp.sum(mine * weight) + jnp.sum(ours * shared_weight), (mine, ours)

        gradient, found = jax.grad(loss, has_aux=True)(rows["id"])
        delivered = table.deliver(mesh, asked, stored["id"], gradient)
        rule = lambda old, gradient, rate: (old - rate * gradient, jnp.sum(gradient))
        changed, total = table.change(mesh, delivered, stored["id"], rule, jnp.float32(2))
        return rows, asked.ids, found, changed, total, delivered.square

    stored = {"id": place(mesh, flat), "text": place(mesh, text)}
    rows, asked, (mine, ours), changed, total, square = jax.device_get(program(stored, ids, shared))
    np.testing.assert_array_equal(mine, flat[ids])
    np.testing.assert_array_equal(ours, flat[shared])
    np.testing.assert_array_equal(rows["text"][asked >= 0], text[asked[asked >= 0]])
    wanted = np.zeros((ROWS, WIDTH))
    np.add.at(wanted, ids, weight)
    np.add.at(wanted, shared, shared_weight)
    found = changed.reshape(-1, WIDTH)
    np.testing.assert_allclose(found[:ROWS], flat - 2 * wanted, atol=1e-5)
    assert not found[ROWS:].any()
    np.testing.assert_allclose(total, wanted.sum(), atol=1e-4)
    np.testing.assert_allclose(square, (wanted**2).sum(), rtol=1e-5)


def test_each_row_is_asked_for_once_by_a_device():
    mesh = make_mesh(4, 2)
    ids, shared = draw("popular", np.random.default_rng(1))
    asked = table.ask(mesh, place(mesh, np.zeros((ROWS, 1))), jnp.asarray(ids), jnp.asarray(shared))
    for mine in np.asarray(asked.ids):
        mine = mine[mine >= 0]
        assert len(set(mine.tolist())) == len(mine)
    assert set(np.asarray(asked.ids).ravel().tolist()) - {-1, 0} == set([*ids.ravel().tolist(), *shared.tolist()]) - {0}


def test_rows_lie_with_their_owners():
    mesh = make_mesh(8, 1)
    stored = place(mesh, np.arange(ROWS))
    for owner, shard in enumerate(stored.addressable_shards):
        ids = np.asarray(shard.data)
        assert (ids[ids > 0] % 768 // 96 == owner).all()
    np.testing.assert_array_equal(table.take(stored, jnp.arange(ROWS)), np.arange(ROWS))
    address = table._address(jnp.arange(-1, 3 * 768), 3, 8)
    assert sorted(address.tolist()) == list(range(3 * 768 + 1)) and address[0] == 3 * 768
    np.testing.assert_array_equal(table._id(address[1:], 3, 8), np.arange(3 * 768))


@pytest.mark.parametrize("rows", [1, 768, 1000])
def test_a_catalogue_on_a_mesh(rows):
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(rows, 4)).astype(np.float16)
    counts = rng.integers(0, 3, rows).astype(np.int32)
    mesh = make_mesh(4, 2)
    found = table.place_catalogue(Catalogue({"text": flat}, {}, counts, np.zeros(2, np.int32)), mesh)
    np.testing.assert_array_equal(found.item["text"], place(mesh, flat))
    np.testing.assert_array_equal(found.item_counts, place(mesh, counts))
    assert found.item["text"].sharding.spec == PartitionSpec(None, ("data", "model")) and not found.query
    assert float(found.events) == counts.sum() and float(found.met) == (counts > 0).sum()


def test_meshes_over_which_tables_cannot_be_split():
    table.check(256)
    with pytest.raises(UserError, match=r"mesh of 5 devices: .* divide 768; the nearest that do: 4 and 6"):
        device_mesh.make_mesh(MeshConfig(5, 1))
