"""The step in torch that our step is measured against: that it is the same step."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
import small_model
from batches import Source

from synergen_jax import config as configs
from synergen_jax.bench.setting import Trainer
from synergen_jax.errors import UserError
from synergen_jax.planning.synthetic import SyntheticLog
from synergen_jax.training.optimiser import schedule

torch = pytest.importorskip("torch")
torch_step = importlib.import_module("torch_step")
torch.set_num_threads(1)  # for arrays as small as these more take longer

CONFIG = configs.from_dict(
    {
        "data": {"max_history": 12, "batch": 4, "negatives": 8, "rank_events": 0},
        "model": {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0},
        "loss": {"in_batch": 6},
        "optimiser": {"table": "dense", "warmup": 1, "learning_rate": 1e-2},
        "mesh": {"data": 1},
        "run": {"steps": 4},
    }
)
LOG = SyntheticLog(90, 8, 10)  # of 90 items most have no training event, and rows are shorter than a window


@pytest.fixture(scope="module")
def source():
    return Source(LOG, CONFIG)


@pytest.fixture(scope="module")
def trainer(source):
    """Without in-batch negatives, which each side draws for itself in a step."""
    return Trainer(configs.override(CONFIG, ["--loss.in_batch=0"]), LOG.spec, source.catalogue)


@pytest.fixture(scope="module")
def ours(source, trainer):
    """(model, parameters, batch); all parameters are at random, as blocks would add nothing at first."""
    rng = np.random.default_rng(1)
    draw = lambda x: np.asarray(x) + 0.5 * rng.normal(size=x.shape).astype(np.float32)
    return trainer.model, jax.tree.map(draw, trainer.state.params), source.train(0)


def place(batch):
    """Where the in-batch negatives of a step without a key come from."""
    key, _, _ = jax.random.split(jax.random.key(0), 3)
    return torch.from_numpy(np.array(jax.random.randint(key, (CONFIG.loss.in_batch,), 0, batch.target.size)))


def loss(twin, batch, attention="sdpa"):
    over = torch_step.make_attention(attention, batch.target.shape[1], "cpu")
    return twin(torch_step.batch_of(batch, "cpu"), over, place(batch))


def make(source, params, config=CONFIG):
    return torch_step.Model(config, LOG.spec, source.catalogue, torch_step.weights(params))


def test_loss_and_gradients_are_ours(source, ours):
    model, params, batch = ours
    (_, parts), found = small_model.value_and_grad(model, params, source.catalogue, batch, CONFIG.loss)
    twin = make(source, params)
    value = loss(twin, batch)
    value.backward()
    np.testing.assert_allclose(value.item(), parts["retrieval"], rtol=1e-5)
    named = dict(twin.named_parameters())
    wanted = torch_step.weights(found)
    assert named.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert np.abs(gradient).max() > 0, name
        error = np.abs(named[name].grad.numpy() - gradient).max() / np.abs(gradient).max()
        assert error < 1e-4, (name, error)


def test_both_kinds_of_attention_find_the_same(source, ours):
    _, params, batch = ours
    twin = make(source, params)
    with torch.no_grad():
        flex, sdpa = (loss(twin, batch, name).item() for name in torch_step.ATTENTION)
        np.testing.assert_allclose(flex, sdpa, rtol=1e-5)
        # One event less, and it is another loss: what is compared depends on what readers see.
        less = dataclasses.replace(batch.retrieval, visible=np.maximum(batch.retrieval.visible - 1, 0))
        shifted = dataclasses.replace(batch, retrieval=less)
        for name in torch_step.ATTENTION:
            assert abs(loss(twin, shifted, name).item() - sdpa) > 0.01 * sdpa


def test_other_settings(source, ours):
    _, params, batch = ours
    words = ("request_time=false", "rope=time", "context_action=false")
    config = configs.override(CONFIG, [f"--model.{word}" for word in words])
    model = dataclasses.replace(ours[0], config=config.model)
    (_, parts), _ = small_model.value_and_grad(model, params, source.catalogue, batch, config.loss)
    with torch.no_grad():
        value = loss(make(source, params, config), batch).item()
        assert abs(value - loss(make(source, params), batch).item()) > 0.01 * value
    np.testing.assert_allclose(value, parts["retrieval"], rtol=1e-5)


def test_steps_are_ours(source, trainer, ours):
    """Warm-up, clipping, decay and moments: after three updates losses are still alike, and after four parameters."""
    _, params, batch = ours
    params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, trainer.state.params)
    trainer.state = dataclasses.replace(trainer.state, params=params)
    twin, here = make(source, params, trainer.config), trainer.place(batch)
    step, there = torch_step.make_step(twin, trainer.config, False, "sdpa"), torch_step.batch_of(batch, "cpu")
    theirs, mine = zip(*((step(there).item(), float(trainer(here)["loss/retrieval"])) for _ in range(4)))
    assert theirs[3] < 0.95 * theirs[0]
    np.testing.assert_allclose(theirs, mine, rtol=1e-4)
    for name, array in torch_step.weights(trainer.state.params).items():
        np.testing.assert_allclose(dict(twin.named_parameters())[name].detach(), array, atol=1e-4, err_msg=name)


def test_learning_rate_is_ours():
    o = configs.override(CONFIG, ["--optimiser.warmup=5"]).optimiser
    for step in (0, 1, 4, 5, 9, 20, 25):
        assert torch_step.rate(o, 20, step) == pytest.approx(float(schedule(o, 20)(step)), rel=1e-5, abs=1e-9)


def test_measure(source, ours):
    _, params, batch = ours
    config = configs.override(CONFIG, ["--model.dtype=bfloat16"])
    found = torch_step.measure(config, LOG.spec, source.catalogue, batch, params, "sdpa", 2, False)
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0 and found["compile_seconds"] > 0
    assert np.isfinite(found["loss"]) and found["torch"] == torch.__version__
    assert (found["attention"], found["compiled"], found["peak_memory_bytes"]) == ("sdpa", False, None)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--model.dropout=0.1", "model.dropout 0.1: the step in torch has 0.0 alone"),
        ("--optimiser.table=adam", "set optimiser.table to dense"),
        ("--data.rank_events=2", "does not rank"),
    ],
)
def test_what_is_not_computed_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        torch_step.check(configs.override(CONFIG, [words]), LOG.spec)
