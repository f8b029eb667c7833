"""The learning rate's schedule, what decays, and clipping."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_model

from synergen_jax.config import ModelConfig, OptimiserConfig
from synergen_jax.training import optimiser

CONFIG = OptimiserConfig(learning_rate=0.5, warmup=10, final=0.2)


def test_the_schedule():
    rate = optimiser.schedule(CONFIG, 110)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(0.25)
    assert float(rate(10)) == pytest.approx(0.5), "the peak, where warm-up ends"
    assert float(rate(60)) == pytest.approx(0.5 * (0.2 + 0.8 * 0.5)), "half-way down the cosine"
    assert float(rate(35)) == pytest.approx(0.5 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert float(rate(110)) == pytest.approx(0.1)
    assert float(rate(1000)) == pytest.approx(0.1), "stays down"
    values = [float(rate(step)) for step in range(111)]
    assert np.all(np.diff(values[:11]) > 0) and np.all(np.diff(values[10:]) < 0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 50), (10, 10), (10, 3), (10, 11)])
def test_schedules_at_the_edge(warmup, steps):
    """No warm-up starts at the peak; a run no longer than its warm-up just warms up."""
    rate = optimiser.schedule(dataclasses.replace(CONFIG, warmup=warmup), steps)
    values = [float(rate(step)) for step in range(steps + 2)]
    assert np.isfinite(values).all() and max(values) <= 0.5 + 1e-7
    assert values[0] == (0.0 if warmup else 0.5)
    assert values[warmup : warmup + 1] in ([], [0.5])


@pytest.fixture(scope="module")
def params():
    return small_model.make(ModelConfig(width=8, heads=2, depth=1, dropout=0.0))[1]


def named(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def update(config, params, gradient):
    """The first update at the peak of the learning rate."""
    made = optimiser.make_optimiser(config, 100)
    step = jax.jit(lambda g, p: made.update(g, made.init(p), p)[0])
    return named(step(gradient, params))


def test_only_kernels_decay(params):
    """Without a gradient AdamW moves a parameter by decay alone."""
    config = OptimiserConfig(learning_rate=0.5, warmup=0, weight_decay=0.1)
    found = update(config, params, jax.tree.map(jnp.zeros_like, params))
    moved = {name for name, value in found.items() if np.any(value)}
    assert moved == {name for name in found if "kernel" in name}
    for part in ("query", "out", "gate", "down", "retrieval_head", "ranking_hidden"):
        assert any(part in name for name in moved), part
    for part in ("tables", "norm", "bias", "'action'", "'kind'"):
        still = [name for name in found if part in name]
        assert still and not moved & set(still), part
    for name in moved:
        np.testing.assert_allclose(found[name], -0.5 * 0.1 * named(params)[name], rtol=1e-5, atol=1e-9)
    none = update(dataclasses.replace(config, weight_decay=0.0), params, jax.tree.map(jnp.zeros_like, params))
    assert not any(np.any(value) for value in none.values())


def test_clipping():
    for clip, norm in ((1.0, 1.0), (8.0, 8.0), (100.0, 40.0), (0.0, 40.0)):
        assert float(40 * optimiser.clipped(OptimiserConfig(clip=clip), jnp.float32(40))) == pytest.approx(norm)
    assert float(optimiser.clipped(CONFIG, jnp.zeros(()))) == 1


def test_lazy_adam_of_a_row_in_every_step_is_adam():
    config = OptimiserConfig(learning_rate=0.1, warmup=0)
    lazy, adam = optimiser.row_optimiser(config, "adam", 9), optimiser.make_optimiser(config, 9)
    rng = np.random.default_rng(0)
    row, state = jnp.ones((2, 3)), {name: jnp.zeros((2, 3)) for name in lazy.state}
    params = {"table": row}
    other = adam.init(params)
    for step in range(4):
        gradient = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
        updates, state = lazy.update(gradient, state, jnp.int32(step))
        row += updates
        updates, other = adam.update({"table": gradient}, other, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(row, params["table"], atol=1e-6)


def test_row_wise_adagrad_by_hand():
    config = OptimiserConfig(learning_rate=0.1, warmup=0, final=1.0)
    found = optimiser.row_optimiser(config, "adagrad", 9)
    assert found.state == {"sum": 0}, "one number a row"
    gradient = jnp.array([[3.0, 1.0], [0.0, 0.0]])
    updates, state = found.update(gradient, {"sum": jnp.array([11.0, 0.0])}, jnp.int32(3))
    np.testing.assert_allclose(state["sum"], [16.0, 0.0])  # 11 + (9 + 1) / 2
    np.testing.assert_allclose(updates, [[-0.1 * 3 / 4, -0.1 * 1 / 4], [0, 0]], rtol=1e-6)


def test_which_tables_are_updated_as_a_whole():
    auto = OptimiserConfig()
    assert optimiser.table_kind(auto, 3706 * 64) == "dense" != optimiser.table_kind(auto, 10**6 * 64)
    assert optimiser.table_kind(auto, 10**6 * 64, whole=True) == "dense"
    assert optimiser.table_kind(OptimiserConfig(table="adagrad"), 10) == "adagrad"


def test_a_step_worked_by_hand():
    """Adam's first step has the size of the learning rate against the gradient's sign; decay is added to it."""
    params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
    config = OptimiserConfig(learning_rate=0.01, warmup=0, weight_decay=0.5, clip=0.0)
    found = update(config, params, {"kernel": jnp.array([[3.0]]), "bias": jnp.array([-3.0])})
    np.testing.assert_allclose(found["['kernel']"], -0.01 * (1 + 0.5 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(found["['bias']"], 0.01, rtol=1e-5)
