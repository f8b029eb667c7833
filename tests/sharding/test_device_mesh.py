"""One step on different meshes is the same step, and the state really lies in parts."""

import contextlib
import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_log import random_log

from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.config import MeshConfig
from synergen_jax.errors import UserError
from synergen_jax.planning import hlo
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import train_step

WORDS = {
    "model": {"width": 16, "heads": 4, "depth": 1, "dropout": 0.2},
    "data": {"batch": 8, "max_history": 8, "negatives": 8, "rank_events": 2, "rank_candidates": 3},
    "loss": {"in_batch": 8},
    "optimiser": {"warmup": 1, "learning_rate": 1e-3},
    "run": {"steps": 20},
}


def start(mesh=(1, 1), **changes):
    """(compiled step, its first arguments, further batches) of a small run on a mesh of that shape."""
    tree = {section: values | changes.get(section, {}) for section, values in WORDS.items()}
    config = configs.from_dict(tree | {k: v for k, v in changes.items() if k not in tree})
    log = random_log(users=30)
    split = splits.split(log, config.data)
    devices = device_mesh.make_mesh(MeshConfig(*mesh), jax.devices()[: mesh[0] * mesh[1]])
    model = train_step.make_model(config, log.spec)
    state, shardings = train_step.init_state(config, model, devices)
    step = train_step.make_step(config, model, devices, shardings)
    catalogue = table.place_catalogue(examples.catalogue(log, split), devices)
    layout = device_mesh.batch_shardings(devices)
    with contextlib.closing(feed.train_feed(log, split, config)(0)) as stream:
        batches = [device_mesh.place(batch, layout) for batch in itertools.islice(stream, 3)]
    return step.lower(state, batches[0], catalogue).compile(), (state, catalogue, batches)


def run(mesh=(1, 1), steps=3, **changes):
    """(state, metrics) after some steps of a small run on a mesh of that shape."""
    step, (state, catalogue, batches) = start(mesh, **changes)
    return go(step, state, catalogue, batches[:steps])


def go(step, state, catalogue, batches):
    for batch in batches:
        state, metrics = step(state, batch, catalogue)
    return state, jax.device_get(metrics)


@functools.cache
def one(kind):
    """On one device, with tables that are updated by `kind`."""
    return run(optimiser={"table": kind})


def assert_same(found, wanted, atol=1e-5):
    (state, metrics), (reference, expected) = found, wanted
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    close = lambda path, a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path))
    jax.tree_util.tree_map_with_path(close, jax.device_get(state.params), jax.device_get(reference.params))


SLOW = pytest.mark.slow  # a program for several devices each


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("dense", (4, 2)),
        ("adam", (2, 1)),
        pytest.param("dense", (8, 1), marks=SLOW),
        *(pytest.param("adam", mesh, marks=SLOW) for mesh in [(8, 1), (4, 2)]),
        *(pytest.param("adagrad", mesh, marks=SLOW) for mesh in [(2, 1), (8, 1), (4, 2)]),
    ],
)
def test_a_step_does_not_depend_on_the_mesh(kind, mesh):
    found = run(mesh, optimiser={"table": kind})
    assert_same(found, one(kind), atol=1e-6)
    if (kind, mesh) == ("dense", (4, 2)):
        parameters_are_sharded(found[0])


def parameters_are_sharded(state):
    """Heads and feed-forward features lie in halves, rows of tables in eighths, and so do Adam's moments of them."""
    items = state.params["tables"]["item"]
    eighth = (1, table.COLUMNS // 8, 16)
    assert {shard.data.shape for shard in items.addressable_shards} == {eighth}
    block = state.params["model"]["params"]["block_0"]
    assert {shard.data.shape[1] for shard in block["query"]["kernel"].addressable_shards} == {2}  # of four heads
    gate = block["gate"]["kernel"]
    assert {shard.data.shape[1] for shard in gate.addressable_shards} == {gate.shape[1] // 2}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == items.shape]
    assert len(moments) == 4  # mu and nu, of items and of queries
    assert all(leaf.addressable_shards[0].data.shape == eighth for leaf in moments)
    norm = block["attention_norm"]["scale"]
    assert all(shard.data.shape == norm.shape for shard in norm.addressable_shards)


def test_micro_batches_add_up_to_the_batch():
    # Dropout draws other bits for other shapes, so it is off.
    off = {"dropout": 0.0}
    assert_same(run(steps=2, model=off, optimiser={"accumulate": 4}), run(steps=2, model=off))


@pytest.mark.slow  # two more programs for eight devices
def test_micro_batches_on_a_mesh():
    off = {"dropout": 0.0}
    changed = {"model": off, "optimiser": {"accumulate": 2}, "data": {"negatives": 0}}
    assert_same(run((4, 2), steps=2, **changed), run(steps=2, model=off, data={"negatives": 0}))


FULL = {"loss": {"full_softmax": True, "hard_candidates": 3}, "data": {"negatives": 0}}


def test_full_softmax_and_hard_candidates_on_a_mesh():
    step, (state, catalogue, batches) = start((4, 2), **FULL)
    rows = np.prod(state.params["tables"]["item"].shape)
    found = go(step, state, catalogue, batches[:2])
    assert_same(found, run(steps=2, **FULL))
    assert max(np.prod(part.shape) for part in hlo.collectives(step.as_text())) < rows / 2, "the table is gathered"


@pytest.mark.slow  # three more programs
@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
def test_full_softmax_and_hard_candidates_on_other_meshes(mesh):
    assert_same(run(mesh, steps=2, **FULL), run(steps=2, **FULL))


def test_the_old_state_is_donated():
    config = configs.from_dict(WORDS)
    log = random_log(users=30)
    split = splits.split(log, config.data)
    mesh = device_mesh.one_device()
    model = train_step.make_model(config, log.spec)
    state, shardings = train_step.init_state(config, model, mesh)
    step = train_step.make_step(config, model, mesh, shardings)
    batch = device_mesh.place(next(feed.train_feed(log, split, config)(0)), device_mesh.batch_shardings(mesh))
    step(state, batch, table.place_catalogue(examples.catalogue(log, split), mesh))
    assert state.params["tables"]["item"].is_deleted()


def test_two_axes_on_one_mesh_axis_are_refused():
    mesh = device_mesh.make_mesh(MeshConfig(4, 2))
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((4, 4)), ("heads", "mlp"))}
    with pytest.raises(UserError, match=r"\['w'\] \(4, 4\): .* on one mesh axis"):
        device_mesh.tree_shardings(boxed, mesh)


def test_sizes_that_do_not_divide_are_refused():
    mesh = device_mesh.make_mesh(MeshConfig(2, 4))
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((6, 3)), ("heads", "embed"))}
    with pytest.raises(UserError, match=r"\['w'\] \(6, 3\): 6 cannot be split over mesh.model 4"):
        device_mesh.tree_shardings(boxed, mesh)


def test_an_axis_without_a_rule_is_refused():
    mesh = device_mesh.make_mesh(MeshConfig(2, 4))
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((8, 4)), ("experts", "embed"))}
    with pytest.raises(UserError, match="no sharding rule for the logical axis 'experts'"):
        device_mesh.tree_shardings(boxed, mesh)


def test_a_mesh_may_leave_devices_idle():
    assert device_mesh.make_mesh(MeshConfig(3, 1)).devices.shape == (3, 1)


def test_own_rules():
    mesh = device_mesh.make_mesh(MeshConfig(4, 2))
    boxed = {"w": nn.LogicallyPartitioned(jnp.zeros((8, 4)), ("heads", "embed"))}
    found = device_mesh.tree_shardings(boxed, mesh, rules=(("heads", "data"), ("embed", "model")))
    assert found["w"] == NamedSharding(mesh, PartitionSpec("data", "model"))


@pytest.mark.parametrize(
    "shape, message",
    [
        ((-1, 3), "cannot be split into groups of 3"),
        ((-1, -1), "one of them -1"),
        ((0, 1), "at least 1"),
        ((16, 1), "16 x 1 needs 16 devices and there are 8"),
    ],
)
def test_meshes_that_do_not_fit_the_devices(shape, message):
    with pytest.raises(UserError, match=message):
        device_mesh.make_mesh(MeshConfig(*shape))


def of_batch(batch, accumulate, **data):
    return configs.from_dict({"data": {"batch": batch, **data}, "optimiser": {"accumulate": accumulate}})


def test_batches_that_do_not_divide_name_the_next_that_does():
    mesh = device_mesh.make_mesh(MeshConfig(4, 2))
    assert device_mesh.micro_batches(of_batch(16, 2), mesh) == 2
    with pytest.raises(UserError, match=r"data\.batch 10 is not divisible by 8 .* the next that is: 16"):
        device_mesh.micro_batches(of_batch(10, 2), mesh)
    with pytest.raises(UserError, match=r"data\.batch 10 is not divisible by 4 .* the next that is: 12"):
        device_mesh.micro_batches(of_batch(10, 0), mesh)


@pytest.mark.parametrize(
    "batch, history, micro", [(64, 8, 1), (128, 200, 16), (120, 200, 15), (7, 5_000, 7), (1, 200, 1)]
)
def test_on_cpus_micro_batches_stay_in_the_cache(batch, history, micro):
    """Some 4,000 tokens each, whatever the mesh."""
    config = of_batch(batch, 0, max_history=history)
    for data in (1, 2, 4):
        if batch % data == 0 and batch // micro >= data:
            mesh = device_mesh.make_mesh(MeshConfig(data, 1), jax.devices()[:data])
            assert device_mesh.micro_batches(config, mesh) == micro


def test_micro_batches_of_packed_rows_go_by_their_room_for_ranked_events():
    """A row of 200 events and 8 lists of 8 has 472 tokens; with room for 64 lists it has 976, and half as many rows fit."""
    mesh = device_mesh.one_device()
    config = of_batch(128, 0, max_history=200, rank_events=8, rank_candidates=8)
    assert [device_mesh.micro_batches(config, mesh, ranked) for ranked in (None, 8, 64)] == [16, 16, 32]


def test_tables_fit_meshes_of_other_sizes():
    """What is stored has one shape on every mesh."""
    config = configs.from_dict(WORDS)
    for items in (3, 769):
        spec = dataclasses.replace(random_log(users=3).spec, items=items)
        for shape in ((6, 1), (1, 4)):
            mesh = device_mesh.make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
            state = train_step.abstract_state(config, train_step.make_model(config, spec), mesh)
            assert state.params["tables"]["item"].shape == (1 + (items > 768), 768, 16)
