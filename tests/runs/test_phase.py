"""A run with an encoding of time of its own: its workdir knows it, and answers by no other."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from small_place import Place
from small_run import Run, fixed

import synergen_jax as sg
from data_pipelines.event_log.event_log import EventLog
from synergen_jax import config as configs
from synergen_jax.cli.main import main
from synergen_jax.config import Config, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.model import rope
from synergen_jax.runs import workdir
from synergen_jax.training import identity, train_step

CONFIG = ModelConfig(width=16, heads=2)  # four planes


def hours(planes, speed=1.0):
    """A phase of that name, in hours."""

    def by_hour(time, order):
        halves = speed * (0.5 ** jnp.arange(planes))[None, None]
        return (time // 3600 + 0.0)[..., None] * halves + 0.1 * order[..., None]

    return by_hour


def test_a_phase_is_told_by_its_angles():
    found = rope.describe(CONFIG, hours(4))
    assert found["name"] == "by_hour" and len(found["angles"]) == len(rope._TIMES)
    by_hand = {(0, 0): [0, 0, 0, 0], (3_723, 3): [1.3, 0.8, 0.55, 0.425], (90_061, 5): [25.5, 13.0, 6.75, 3.625]}
    for point, angles in by_hand.items():
        at = list(zip(rope._TIMES, rope._ORDERS)).index(point)
        np.testing.assert_allclose(found["angles"][at], angles, rtol=1e-6)
    assert json.loads(json.dumps(found)) == found
    assert rope.describe(CONFIG)["name"] == ""
    kinds = [rope.describe(ModelConfig(width=16, heads=2, rope=kind))["angles"] for kind in ("time", "order", "split")]
    assert not any(identity._same_angles(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    assert rope.describe(ModelConfig(width=16, heads=2, rope="none"))["angles"] == [[]] * len(rope._TIMES)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (hours(3), r"by_hour turns .* of shape \(1, 14, 3\): it must be \(1, 14, 4\)"),
        (hours(1), r"of shape \(1, 14, 1\)"),  # would be broadcast
        (lambda time, order: time + 0.0, r"of shape \(1, 14\)"),
        (hours(4, np.inf), "angles that are not finite"),
    ],
)
def test_a_phase_must_give_a_finite_angle_a_plane(phase, words):
    spec = Run().log.spec
    with pytest.raises(UserError, match=words):
        train_step.make_model(Config(model=CONFIG), spec, phase)


def test_it_is_refused_before_the_first_checkpoint_too(tmp_path):
    mine = rope.describe(CONFIG, hours(4))
    workdir.start(tmp_path / "run", Config(), tmp_path, "abc", mine)
    assert json.loads((tmp_path / "run" / "phase.json").read_text()) == mine
    workdir.start(tmp_path / "run", Config(), tmp_path, "abc", mine)
    for other in (None, rope.describe(CONFIG)):
        with pytest.raises(UserError, match="was trained with a phase of its own, by_hour, which no file holds"):
            workdir.start(tmp_path / "run", Config(), tmp_path, "abc", other)
    (tmp_path / "run" / "phase.json").write_text("{")
    with pytest.raises(UserError, match=r"phase\.json is damaged"):
        workdir.start(tmp_path / "run", Config(), tmp_path, "abc", mine)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A prepared log, a run with the built-in phase and one, `own`, in hours."""
    made = Place(tmp_path_factory.mktemp("phase"))
    assert main(["data", "prepare", str(made.files), "--data-dir", str(made.data)]) == 0
    assert main(list(map(str, made.train(made.workdir)))) == 0
    log = EventLog.load(made.data / "logs" / "tiny")
    made.own = made.workdir.with_name("own")
    sg.train(sg.Run(configs.load(made.config), log, phase=hours(2)), made.own)
    return types.SimpleNamespace(**vars(made), log=log, train=made.train)


def test_it_is_served_and_evaluated_as_it_was_trained(place):
    run, params = sg.load(place.own, place.data, hours(2))
    assert run.model.phase is run.phase is not None and params
    lines = [json.loads(line) for line in (place.own / "metrics.jsonl").read_text().splitlines()]
    found = sg.evaluate(place.own, "validation", ["--evaluate.bootstrap", "0"], place.data, hours(2))
    (trained,) = [x["validation/mrr"] for x in lines if x["step"] == found["step"] and "validation/mrr" in x]
    assert found["model"]["mrr"] == pytest.approx(trained, abs=1e-6)


@pytest.mark.parametrize("phase", [None, hours(2, speed=2.0)])
def test_another_one_is_refused(place, phase):
    words = "give other angles|gives other angles" if phase else "a phase of its own, by_hour, which no file holds"
    again = sg.Run(configs.load(place.config), place.log, phase=phase)
    for ask in (
        lambda: sg.load(place.own, place.data, phase),
        lambda: sg.evaluate(place.own, data_dir=place.data, phase=phase),
        lambda: sg.train(again, place.own),
    ):
        with pytest.raises(UserError, match=words):
            ask()
    with pytest.raises(UserError, match="was trained with the built-in phase, not with by_hour"):
        sg.load(place.workdir, place.data, hours(2))


def test_its_name_may_change(place):
    def renamed(time, order):
        return hours(2)(time, order)

    sg.load(place.own, place.data, renamed)


@pytest.mark.parametrize("command", ["evaluate", "recommend", "train"])
def test_the_command_line_says_how_to_open_it(place, capsys, command):
    arguments = {"recommend": ["recommend", place.own, "--user", "u3"], "evaluate": ["evaluate", place.own]}
    arguments = arguments.get(command) or place.train(place.own)
    assert main(list(map(str, arguments))) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "a phase of its own" in error and "load, evaluate and Run of synergen_jax take phase=" in error


def test_a_direct_call_of_train_refuses_it_too(tmp_path):
    """Every checkpoint keeps it, with the config and what the log fixes: arrays of other runs may have the same shapes."""
    Run().train(tmp_path, fixed(0.5))
    run = Run(model={"rope": "time"})
    with pytest.raises(UserError, match=r"model\.rope was 'split' when they were trained and is 'time' now: put back"):
        run.train(tmp_path, fixed(0.5))
    run = Run()
    run.log.spec = type(run.log.spec)(**vars(run.log.spec) | {"labels": ("like", "engage")})
    with pytest.raises(UserError, match=r"LogSpec\.labels was \['engage', 'like'\] .* is \['like', 'engage'\] now"):
        run.train(tmp_path, fixed(0.5))
