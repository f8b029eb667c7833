"""Planning: what is told of memory is what training takes, and a process of its own compiles for any number of devices."""

import json

import jax
import numpy as np
import pytest

from data_pipelines.feed import feed as feeds
from data_pipelines.feed import splits
from synergen_jax import config as configs
from synergen_jax.cli import main
from synergen_jax.planning import flops, plan
from synergen_jax.retrieval import full_ranking
from synergen_jax.runs import inputs
from synergen_jax.runs import plan as elsewhere_plan
from synergen_jax.runs.inputs import Sizes
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import train_step

CONFIG = configs.from_dict(
    {
        "data": {"max_history": 8, "batch": 8, "negatives": 16, "rank_events": 0},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "loss": {"in_batch": 16},
        "mesh": {"data": 4, "model": 2},
    }
)
SIZES = Sizes(300, 20, 6)


@pytest.fixture(scope="module")
def found():
    return plan.plan(CONFIG, *inputs.abstract(CONFIG, SIZES))


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype).name), tree)


def on_first(tree):
    """Bytes that the arrays of a tree take on the first device."""
    first = jax.devices()[0]
    return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first)


def test_shapes_are_those_of_the_feed():
    spec, batch, targets, catalogue = inputs.abstract(CONFIG, SIZES)
    log = SIZES.log(10)
    real, feed = inputs.of_log(CONFIG, log)
    assert spec == log.spec
    assert shapes(batch) == shapes(next(feed(0)))
    ranked = configs.override(CONFIG, ["--data.rank_events=3", "--data.rank_candidates=5"])
    assert shapes(inputs.abstract(ranked, SIZES)[1]) == shapes(next(inputs.of_log(ranked, log)[1](0)))
    assert shapes(catalogue) == shapes(real)
    few = SIZES._replace(items=2)  # which every user has had
    assert inputs.abstract(CONFIG, few)[2].seen.shape == targets.seen.shape
    evaluated = feeds.evaluation_feed(log, splits.split(log, CONFIG.data), "validation", CONFIG)
    assert shapes(targets) == shapes(next(iter(evaluated)))


def test_memory_is_what_training_takes(found):
    mesh = device_mesh.make_mesh(CONFIG.mesh)
    log = SIZES.log(10)
    feed = inputs.of_log(CONFIG, log)[1]
    state, _ = train_step.init_state(CONFIG, train_step.make_model(CONFIG, log.spec), mesh)
    assert found.parameters == on_first(state.params) < sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert found.optimiser == on_first(state.opt_state)
    assert found.data == on_first(device_mesh.place(next(feed(0)), device_mesh.batch_shardings(mesh)))
    assert found.temporaries > 0
    step = found.data + found.temporaries + found.outputs
    assert found.total == found.parameters + found.optimiser + found.catalogue + max(step, found.validation)
    assert found.flops == flops.train_step(CONFIG, log.spec)


def test_validation_splits_the_catalogue_over_the_devices(monkeypatch, found):
    """What many items take more is mostly their keys, once over all devices."""
    # Else scores of so few items outweigh their keys. Both catalogues are cut into tiles of one size.
    monkeypatch.setattr(full_ranking, "TILE", 960)
    config, mesh = configs.override(CONFIG, ["--evaluate.batch=8"]), device_mesh.make_mesh(CONFIG.mesh)

    def held(items):
        spec, _, targets, catalogue = inputs.abstract(config, SIZES._replace(items=items))
        model = train_step.make_model(config, spec)
        params = train_step.abstract_state(config, model, mesh).served
        return plan.validation(mesh, model, params, table.abstract_catalogue(catalogue, mesh), targets)

    lines = 200
    keys = lines * table.COLUMNS * CONFIG.model.width * 4 / mesh.size
    assert keys < held(2 * lines * table.COLUMNS) - held(lines * table.COLUMNS) < 1.1 * keys
    assert 0 < found.validation < found.total


def test_gradients_are_sent(found):
    """All devices along `data` add up the gradients of the parameters that they keep whole."""
    mesh = device_mesh.make_mesh(CONFIG.mesh)
    state = train_step.abstract_state(CONFIG, train_step.make_model(CONFIG, SIZES.log(1).spec), mesh)
    kept = plan.device_bytes(state.params["model"])
    assert found.collectives["all-reduce"] >= kept
    assert found.mesh == {"data": 4, "model": 2} and found.devices == 8


ARGUMENTS = [
    "--items=500",
    "--text-width=6",
    "--data.batch=4",
    "--data.max_history=8",
    "--data.stride=8",
    "--model.width=16",
    "--model.depth=1",
    "--data.rank_events=0",  # half of what there is to compile
    "--json",
]


def test_the_command_plans_for_devices_that_are_not_there(capfd):
    words = ["--devices=3", "--data.batch=6", "--memory=1e-4"]
    assert main.main(["plan", "quickstart", *ARGUMENTS, *words]) == 0
    out, _ = capfd.readouterr()
    answer = json.loads(out.splitlines()[-1])
    (one,) = answer["plans"]
    assert one["devices"] == 3 and one["mesh"] == {"data": 3, "model": 1} and one["batch"] == 6
    assert one["total"] > 1e-4 * 2**30 and not one["fits"]
    assert one["collectives"] and min(one["collectives"].values()) > 0
    assert "fits in 0.0001 GiB" in out and "no" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--devices=0"], "--devices must be at least 1, not 0"),
        (["--devices=2", "--items=0"], "--items must be at least 1, not 0"),
        (["--devices=3,4", "--weak"], "data.batch 4 on 3 devices is no whole number on 4"),
        (["--devices=3"], "3 devices: data.batch 4 is not divisible by 3"),
        (["--devices=2", "--model.withd=3"], "did you mean 'width'"),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments, words, capfd):
    assert main.main(["plan", "quickstart", *ARGUMENTS, *arguments]) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1


def test_weak_scaling_keeps_the_batch_of_a_device(monkeypatch, capsys):
    asked = []

    def elsewhere(config, sizes, devices):
        asked.append((config.data.batch, devices))
        return plan.Plan(devices, {"data": devices, "model": 1}, config.data.batch, 1, 1, 1, 1, 1, 1, 1, {}, 1.0, 0.0)

    monkeypatch.setattr(elsewhere_plan, "elsewhere", elsewhere)
    assert main.main(["plan", "quickstart", "--devices=2,4,64", "--weak", *ARGUMENTS]) == 0
    assert asked == [(4, 2), (8, 4), (128, 64)]
    assert main.main(["plan", "quickstart", "--devices=2,4", *ARGUMENTS]) == 0
    assert asked[3:] == [(4, 2), (4, 4)]
