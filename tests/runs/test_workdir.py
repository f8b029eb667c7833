"""The folder of a run belongs to one config and one log."""

import contextlib
import json
import pathlib

import numpy as np
import pytest

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.runs import workdir

LOG = pathlib.Path("/logs/mine")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    config = configs.override(Config(), ["--run.steps", "7"])
    workdir.start(folder, config, LOG, "abc")
    assert sorted(contents(folder)) == ["config.json", "log.json"]
    assert workdir.read(folder) == (config, {"path": str(LOG), "fingerprint": "abc"})
    assert configs.load(folder / "config.json") == config
    (tmp_path / "empty").mkdir()
    workdir.start(tmp_path / "empty", config, LOG, "abc")


def test_the_same_run_again(tmp_path):
    workdir.start(tmp_path / "run", Config(), LOG, "abc")
    before = contents(tmp_path / "run")
    workdir.start(tmp_path / "run", Config(), LOG, "abc")
    assert contents(tmp_path / "run") == before


def test_a_log_may_move(tmp_path):
    workdir.start(tmp_path / "run", Config(), LOG, "abc")
    workdir.start(tmp_path / "run", Config(), pathlib.Path("/elsewhere"), "abc")
    assert workdir.read(tmp_path / "run")[1]["path"] == "/elsewhere"


FREE = {
    "mesh.data": "1",
    "mesh.model": "2",
    "evaluate.batch": "3",
    "evaluate.bootstrap": "0",
    "data.workers": "1",
    "run.log_every": "3",
    "run.checkpoint_every": "3",
    "run.keep": "3",
    "run.patience": "3",
}


@pytest.mark.parametrize("name", FREE)
def test_settings_that_may_change(tmp_path, name):
    workdir.start(tmp_path / "run", Config(), LOG, "abc")
    changed = configs.override(Config(), [f"--{name}", FREE[name]])
    workdir.start(tmp_path / "run", changed, LOG, "abc")
    assert workdir.read(tmp_path / "run")[0] == changed


FIXED = ["data.batch=32", "data.seed=1", "model.width=32", "loss.temperature=1", "optimiser.clip=0"]
FIXED += ["run.steps=5", "run.eval_every=5", "run.seed=3", "data.filter_seen=false", "data.log=other"]


@pytest.mark.parametrize("setting", FIXED)
def test_settings_that_may_not(tmp_path, setting):
    folder = tmp_path / "run"
    workdir.start(folder, Config(), LOG, "abc")
    before = contents(folder)
    with pytest.raises(UserError, match=r"run belongs to another config \(.* -> .*\): give another --workdir") as error:
        workdir.start(folder, configs.override(Config(), [f"--{setting}"]), LOG, "abc")
    assert setting.partition("=")[0] in str(error.value)
    assert contents(folder) == before


@pytest.mark.parametrize(("select", "free"), [("ndcg@10", True), ("shown_mrr", False), ("auc/like", False)])
def test_how_long_lists_are_may_change_unless_they_choose_the_checkpoint(tmp_path, select, free):
    config = configs.override(Config(), ["--run.select", select])
    workdir.start(tmp_path / "run", config, LOG, "abc")
    wanted = contextlib.nullcontext() if free else pytest.raises(UserError, match=r"evaluate\.rank_candidates .* -> 7")
    with wanted:
        workdir.start(tmp_path / "run", configs.override(config, ["--evaluate.rank_candidates", "7"]), LOG, "abc")


def test_another_log(tmp_path):
    folder = tmp_path / "run"
    workdir.start(folder, Config(), LOG, "abc")
    before = contents(folder)
    with pytest.raises(UserError, match=r"run was trained on another log \(/logs/mine\): give another --workdir"):
        workdir.start(folder, Config(), pathlib.Path("/logs/other"), "abd")
    assert contents(folder) == before


def test_a_run_that_was_killed_before_its_config_was_written_starts_anew(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("log.json", "config.tmp"):
        (tmp_path / "run" / name).write_text("{")
    workdir.start(tmp_path / "run", Config(), LOG, "abc")
    assert workdir.read(tmp_path / "run")[0] == Config()


def test_what_is_no_workdir(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    for name in ("file", "other"):
        with pytest.raises(UserError, match=f"{name} exists and is no workdir of synergen"):
            workdir.start(tmp_path / name, Config(), LOG, "abc")
    for name in ("file", "other", "none"):
        with pytest.raises(UserError, match=f"{name} is no workdir of a run: `synergen train CONFIG --workdir "):
            workdir.read(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "other", "x"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"path": "x"}', "\udcff"])
def test_a_damaged_log_file(tmp_path, text):
    workdir.start(tmp_path, Config(), LOG, "abc")
    (tmp_path / "log.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"log\.json is damaged") as error:
        workdir.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_config_of_another_version(tmp_path):
    """A config with a setting that is no longer there is refused by name, not half read."""
    workdir.start(tmp_path, Config(), LOG, "abc")
    tree = configs.to_dict(Config()) | {"extra": {"colour": 1}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"config\.json: unknown section \[extra\]"):
        workdir.read(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    workdir.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_counts_come_back_and_damaged_ones_are_as_none(tmp_path):
    assert workdir.read_counts(tmp_path) is None
    workdir.write_counts(tmp_path, np.array([0, 3, 1], np.int32), np.array([0, 2], np.int32))
    items, queries = workdir.read_counts(tmp_path)
    assert items.tolist() == [0, 3, 1] and queries.tolist() == [0, 2] and items.dtype == np.int32
    file = tmp_path / "counts.npz"
    file.write_bytes(file.read_bytes()[:50])
    assert workdir.read_counts(tmp_path) is None
