"""Runs of each split, by the commands: what is measured, what is refused, and what is served."""

import json

import pytest
from small_place import Place

import synergen_jax as sg
from synergen_jax.cli.main import main
from synergen_jax.runs.run import open_run
from synergen_jax.runs.train import ALL_EVENTS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on all events: six steps, which a patience of one validation, each second step, would have cut off."""
    made = Place(tmp_path_factory.mktemp("splits"))
    assert main(["data", "prepare", str(made.files), "--data-dir", str(made.data)]) == 0
    assert main(list(map(str, made.train(made.workdir, "--run.steps", "6", *ON_ALL)))) == 0
    return made


ON_ALL = ("--data.split", "none", "--run.patience", "1")


def run(capsys, *arguments):
    """(status, lines of stdout, lines of stderr)."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def test_a_run_on_all_events_says_that_nothing_is_validated(place, capsys):
    """Again: there is nothing to do, and the words are the same."""
    status, lines, errors = run(capsys, *place.train(place.workdir, "--run.steps", "6", *ON_ALL, "--json"))
    assert (status, errors) == (0, [])
    assert any(line.endswith(ALL_EVENTS) and "step 6 (all steps done)" in line for line in lines)
    found = json.loads(lines[-1])
    assert (found["step"], found["served_step"], found["stopped"], found["note"]) == (6, 6, "steps", ALL_EVENTS)
    assert "best_step" not in found and not any(name.startswith("validation") for name in found)
    assert "validation/" not in (place.workdir / "metrics.jsonl").read_text()


def test_a_run_on_all_events_serves_its_last_step(place, capsys):
    assert open_run(place.workdir, [], place.data).step == 6
    opened, _ = sg.load(place.workdir, place.data)
    assert opened.catalogue.counts.sum() == sum(len(opened.log[user]["item"]) for user in range(len(opened.log)))
    status, lines, errors = run(capsys, "recommend", place.workdir, "--user", "u3", "-k", "2", "--data-dir", place.data)
    assert (status, errors) == (0, []) and lines


@pytest.mark.parametrize(
    "command", [["evaluate", "--split", "test"], ["evaluate", "--split", "validation"], ["rerank"]]
)
def test_a_run_on_all_events_is_not_measured(place, capsys, tmp_path, command):
    name, *more = command
    before = sorted(place.workdir.rglob("*"))
    status, _, errors = run(capsys, name, place.workdir, *more, "--data-dir", place.data)
    assert status == 2 and len(errors) == 1
    for words in (
        str(place.workdir),
        "trained on all events",
        "nothing is held back",
        "another data.split",
        "to serve",
    ):
        assert words in errors[0]
    assert sorted(place.workdir.rglob("*")) == before


def test_a_sweep_on_all_events_is_refused_before_training(place, capsys, tmp_path):
    (tmp_path / "f.toml").write_text(f'base = "{place.config}"\n[variants.a]\n[variants.b]\ndata.split = "none"\n')
    arguments = ("--workdir", tmp_path / "sweep", "--data-dir", place.data)
    status, _, errors = run(capsys, "sweep", tmp_path / "f.toml", *arguments)
    assert status == 2 and len(errors) == 1 and not (tmp_path / "sweep").exists()
    assert "variant b: data.split 'none' trains on all events, and variants are compared by what is held" in errors[0]


def test_quickstart_is_not_trained_on_all_events(capsys, tmp_path):
    status, _, errors = run(capsys, "quickstart", "--data.split", "none", "--workdir", tmp_path / "run")
    assert status == 2 and "holds nothing back" in errors[0] and not (tmp_path / "run").exists()


def test_users_whom_training_does_not_meet_are_measured_beside_the_baselines(place, capsys, tmp_path):
    """Of 24 users six validate and six test."""
    settings = ("--data.split", "by-user", "--data.held_users", "0.25")
    assert run(capsys, *place.train(tmp_path / "run", *settings))[0] == 0
    status, lines, errors = run(capsys, "evaluate", tmp_path / "run", "--data-dir", place.data, "--json")
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    assert "test split (by-user), 6 targets" in found["protocol"]
    assert {"model", "most_popular", "user_knn", "item_knn"} <= found.keys()


def test_the_last_days_are_measured(place, capsys, tmp_path):
    """The log goes over a quarter of a day."""
    settings = ("--data.split", "last-days", "--data.validation_days", "0.04", "--data.test_days", "0.04")
    assert run(capsys, *place.train(tmp_path / "run", *settings))[0] == 0
    status, lines, errors = run(capsys, "evaluate", tmp_path / "run", "--data-dir", place.data, "--json")
    assert (status, errors) == (0, [])
    assert "test split (last-days)" in json.loads(lines[-1])["protocol"]
    status, _, errors = run(capsys, *place.train(tmp_path / "new", "--data.split", "last-days"))
    assert status == 2 and len(errors) == 1 and not (tmp_path / "new").exists()
    assert "reach back 14 days" in errors[0] and "go over 0.2697 days" in errors[0]
