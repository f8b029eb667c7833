"""Configs: defaults, files, command-line words, and what is refused."""

import dataclasses
import json

import pytest

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.errors import UserError


def test_every_shipped_config_loads():
    shipped = configs.shipped()
    assert {"quickstart", "ml_100k", "ml_1m"} <= set(shipped)
    for name, path in shipped.items():
        assert configs.load(name) == configs.load(path) == configs.load(f"{name}.toml")
        assert configs.load(name) != Config(), f"{name} sets nothing"


def test_a_file_comes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.toml").write_text("[run]\nsteps = 7\n")
    assert configs.load("quickstart.toml").run.steps == 7
    assert configs.load("quickstart").run.steps != 7


def test_what_a_file_does_not_name_keeps_its_default(tmp_path):
    (tmp_path / "x.toml").write_text("[model]\nwidth = 32\n[loss]\ntemperature = 1\n")
    found = configs.load(tmp_path / "x.toml")
    expected = {"model.width": (64, 32), "loss.temperature": (0.05, 1.0)}
    assert configs.differences(Config(), found) == expected
    assert type(found.loss.temperature) is float, "a whole number serves as a number"
    (tmp_path / "empty.toml").write_text("")
    assert configs.load(tmp_path / "empty.toml") == Config()


def test_command_line_words():
    words = ["--model.width", "32", "--run.steps=5", "--model.normalise", "FALSE", "--mesh.data", "-1"]
    words += ["--loss.temperature", "1e-1", "--data.log", "a=b", "--data.split=time", "--model.width", "48"]
    found = configs.override(Config(), words)
    assert (found.model.width, found.run.steps, found.model.normalise, found.mesh.data) == (48, 5, False, -1)
    assert (found.loss.temperature, found.data.log, found.data.split) == (0.1, "a=b", "time")
    assert configs.override(Config(), []) == Config()
    assert configs.load("quickstart", words).model.width == 48
    assert Config() == Config(*(field.default for field in dataclasses.fields(Config))), "nothing was changed in place"


def test_words_of_one_command_may_need_each_other():
    """Only the whole is checked: width 36 does not fit the default heads, and 36 with 3 heads does."""
    assert configs.override(Config(), ["--model.width", "36", "--model.heads", "3"]).model.width == 36
    with pytest.raises(UserError, match=r"model\.width"):
        configs.override(Config(), ["--model.width", "36", "--model.heads", "5"])


def test_json_round_trip(tmp_path):
    config = configs.load("ml_100k", ["--model.dropout", "0.25", "--data.log", "été", "--model.remat", "true"])
    tree = configs.to_dict(config)
    assert list(tree) == ["data", "model", "loss", "optimiser", "mesh", "run", "evaluate"]
    assert configs.from_dict(json.loads(json.dumps(tree))) == config
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert configs.load(tmp_path / "config.json") == config
    assert hash(config) == hash(configs.from_dict(tree)), "configs are static arguments of compiled functions"


def test_cut_offs_are_a_list_in_files_and_set_apart_by_commas_in_words(tmp_path):
    (tmp_path / "x.toml").write_text("[evaluate]\nk = [1, 5, 20]\n")
    words = configs.override(Config(), ["--evaluate.k", "1,5,20"])
    assert configs.load(tmp_path / "x.toml") == words and words.evaluate.k == (1, 5, 20)
    assert configs.to_dict(words)["evaluate"]["k"] == [1, 5, 20], "as JSON gives it back"
    assert configs.override(words, ["--evaluate.k="]) == Config()


@pytest.mark.parametrize("text", ["5,1", "1,1", "0,5", "-1", "a", "1.5", "1,,5"])
def test_cut_offs_that_are_none(text):
    with pytest.raises(UserError, match=r"evaluate\.k must be .*, not '?" + text):
        configs.override(Config(), ["--evaluate.k", text])


@pytest.mark.parametrize("value", [5, "1,5", [1, "a"], [True], [5, 1]])
def test_cut_offs_of_a_file_that_are_none(value):
    with pytest.raises(UserError, match=r"evaluate\.k must be"):
        configs.from_dict({"evaluate": {"k": value}})


def test_differences():
    old, new = Config(), configs.override(Config(), ["--run.steps", "5", "--data.log", "x"])
    assert configs.differences(old, new) == {"data.log": ("ml-100k", "x"), "run.steps": (1000, 5)}
    assert configs.differences(new, new) == {}


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"modle": {}}, r"x: unknown section \[modle\]; did you mean 'model'\?"),
        ({"zzz": {}}, r"x: unknown section \[zzz\]$"),
        ({"model": 3}, r"x: \[model\] must be a table of keys, not 3"),
        ({"model": {"widht": 3}}, r"x: unknown key model\.widht; did you mean 'width'\?"),
        ({"model": {"zzz": 3}}, r"x: unknown key model\.zzz$"),
        ({"model": {"width": "32"}}, r"x: model\.width must be a whole number, not '32'"),
        ({"model": {"width": True}}, r"model\.width must be a whole number, not True"),
        ({"model": {"width": 32.0}}, r"model\.width must be a whole number, not 32\.0"),
        ({"model": {"width": None}}, r"model\.width must be a whole number, not None"),
        ({"model": {"normalise": 1}}, r"model\.normalise must be true or false, not 1"),
        ({"data": {"pack": "true"}}, r"data\.pack must be true, false or auto, not 'true'"),
        ({"data": {"pack": 1}}, r"data\.pack must be true, false or auto, not 1"),
        ({"loss": {"temperature": False}}, r"loss\.temperature must be a number, not False"),
        ({"loss": {"temperature": float("nan")}}, r"loss\.temperature must be a number, not nan"),
        ({"optimiser": {"learning_rate": float("inf")}}, r"optimiser\.learning_rate must be a number, not inf"),
        ({"optimiser": {"learning_rate": 10**400}}, r"optimiser\.learning_rate must be a number, not 1000"),
        ({"data": {"log": 5}}, r"data\.log must be text, not 5"),
        ([], "x: a config is a table of sections, not list"),
        (None, "x: a config is a table of sections, not NoneType"),
    ],
)
def test_unknown_and_ill_typed_settings(tree, reason):
    with pytest.raises(UserError, match=reason):
        configs.from_dict(tree, where="x")


# Values at the bound and just beyond it, each tried alone.
BOUNDS = {
    "data.max_history": ("2", "1"),
    "data.stride": ("0", "-1"),
    "data.batch": ("1", "0"),
    "data.negatives": ("0", "-1"),
    "data.rank_events": ("0", "-1"),
    "data.rank_candidates": ("1", "0"),
    "data.workers": ("0", "-1"),
    "data.validation_days": ("0.5", "0"),
    "data.test_days": ("1e-3", "-1"),
    "data.held_users": ("0.49", "0.5"),
    "data.seed": (str(2**32 - 1), str(2**32)),
    "run.seed": ("0", "-1"),
    "model.depth": ("1", "0"),
    "model.mlp_ratio": ("1", "0"),
    "model.dropout": ("0.999", "1"),
    "model.min_wavelength": ("2", "1"),
    "model.max_wavelength": (str(2**31 - 1), str(2**31)),
    "loss.in_batch": ("1", "0"),  # with neither, InfoNCE has no negatives
    "loss.temperature": ("1e-9", "0"),
    "loss.retrieval_weight": ("0", "-0.1"),
    "optimiser.learning_rate": ("0", "-1e-9"),
    "optimiser.warmup": ("0", "-1"),
    "optimiser.final": ("0", "-0.1"),
    "optimiser.b1": ("0", "1"),
    "optimiser.b2": ("0.9999", "1"),
    "optimiser.clip": ("0", "-1"),
    "optimiser.accumulate": ("64", "65"),  # of a batch of 64
    "run.steps": ("1", "0"),
    "run.eval_every": ("0", "-1"),
    "run.keep": ("1", "0"),
    "evaluate.rank_candidates": ("2", "1"),
    "evaluate.bootstrap": ("0", "-1"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    good, bad = BOUNDS[name]
    section, key = name.split(".")
    found = getattr(getattr(configs.override(Config(), [f"--{name}", good]), section), key)
    assert found == type(found)(good)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        configs.override(Config(), [f"--{name}={bad}"])


def test_every_number_has_a_bound_or_a_reason():
    """A new setting does not slip past the checks."""
    checked = {*configs._AT_LEAST, *configs._BELOW, *configs._ABOVE}
    free = {"data.validation_from", "data.test_from", "mesh.data", "mesh.model"}  # the split and the mesh check these
    numbers = {
        f"{section}.{key}"
        for section, values in configs.to_dict(Config()).items()
        for key, value in values.items()
        if type(value) in (int, float)
    }
    assert numbers == checked | free
    texts = {
        f"{s}.{k}" for s, values in configs.to_dict(Config()).items() for k, v in values.items() if isinstance(v, str)
    }
    assert texts == {
        *configs._CHOICES,
        "data.log",
        "data.target_actions",
        "model.leave_out",
        "run.select",
    }  # names that the log knows


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model.width", "33"], "model.width 33 must be an even multiple of model.heads 2"),
        (["--model.width", "36"], "model.rope 'split' needs model.width / model.heads divisible by 4, not 18"),
        (["--model.min_wavelength", "100", "--model.max_wavelength", "99"], "model.min_wavelength <= "),
        (["--data.split", "time", "--data.test_from", "0.8"], "data.validation_from must lie before data.test_from"),
        (["--data.held_users", "0"], "data.held_users must be above 0, not 0.0"),
        (
            ["--data.split", "none", "--data.cold_items", "0.1"],
            "data.split 'none' measures nothing: set data.cold_items to 0",
        ),
        (["--data.split", "non"], "data.split must be one of leave-one-out, "),
        (["--optimiser.accumulate", "3"], "data.batch 64 must be a multiple of optimiser.accumulate 3"),
        (
            ["--model.rope", "times"],
            "model.rope must be one of time, order, split, none, not 'times'; did you mean 'time'",
        ),
        (["--model.dtype", "float16"], "model.dtype must be one of float32, bfloat16, not 'float16'; did you mean"),
        (["model.width", "3"], "unknown argument 'model.width': settings are given as --section.key VALUE"),
        (["--width", "3"], "unknown argument '--width'"),
        (["--model.width"], "--model.width needs a value"),
        (["--model.", "3"], "--model.: unknown key model."),
        (["--model.width.x", "3"], "unknown key model.width.x"),
        (["--.width", "3"], "unknown section ''"),
        (["--model.normalise", "1"], "model.normalise must be true or false, not '1'"),
        (["--data.pack", "often"], "data.pack must be true, false or auto, not 'often'"),
        (["--model.width", "1e3"], "model.width must be a whole number, not '1e3'"),
        (["--model.width="], "model.width must be a whole number, not ''"),
        (["--loss.temperature", "1e999"], "loss.temperature must be a number, not inf"),
    ],
)
def test_wrong_words(words, reason):
    with pytest.raises(UserError) as error:
        configs.override(Config(), words)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_settings_that_excuse_each_other():
    for word in ("--loss.full_softmax=true", "--data.negatives=1", "--loss.retrieval_weight=0"):
        configs.override(Config(), ["--loss.in_batch", "0", word])
    configs.override(Config(), ["--model.width", "36", "--model.rope", "time"])
    configs.override(Config(), ["--data.validation_from", "0.9", "--data.test_from", "0.1"])  # not split by time


def test_configs_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no config file 'quikstart'; did you mean 'quickstart'\?; shipped configs: "):
        configs.load("quikstart")
    with pytest.raises(UserError, match="no config file"):
        configs.load(tmp_path)
    for name, content in (("x.toml", b"[model"), ("y.toml", b"\xff"), ("x.json", b"{"), ("y.json", b"\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: cannot be read as a config: ") as error:
            configs.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_seeds_are_checked_wherever_they_come_from():
    assert configs.seeded(Config(), 3).run.seed == configs.seeded(Config(), 3).data.seed == 3
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed {seed}: data.seed must be"):
            configs.seeded(Config(), seed)


def test_no_event_is_left_between_two_windows():
    with pytest.raises(UserError, match=r"data\.stride 51 is above data\.max_history 50: events between two windows"):
        configs.load("ml_100k", ["--data.max_history", "50", "--data.stride", "51"])


def test_hard_candidates_want_a_pool_and_a_sampled_candidate():
    words = ["--loss.hard_candidates", "4", "--loss.retrieval_weight", "0", "--loss.full_softmax", "false"]
    with pytest.raises(UserError, match="InfoNCE has no negatives"):
        configs.load("ml_100k", [*words, "--loss.in_batch", "0", "--data.negatives", "0"])
    with pytest.raises(UserError, match=r"data\.rank_candidates 1 leaves no room for a sampled candidate"):
        configs.load("ml_100k", ["--loss.hard_candidates", "4", "--data.rank_candidates", "1"])


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("true", True), ("False", False)])
def test_packing_is_on_off_or_by_the_lengths(text, value):
    config = configs.override(Config(), ["--data.pack", text])
    assert config.data.pack is value or config.data.pack == value == "auto"
    assert configs.from_dict(configs.to_dict(config)) == config, "as config.json has it"
    assert configs.load("own_log").data.pack == "auto"


def test_what_was_a_switch_is_off_in_configs_of_before():
    assert configs.from_dict({"model": {"query_match": False}}).model.query_match == 0
    with pytest.raises(UserError, match=r"model\.query_match must be a whole number, not True"):
        configs.from_dict({"model": {"query_match": True}})


@pytest.mark.parametrize("name", ["drop_query", "lend_query"])
def test_shares_of_queries(name):
    assert getattr(configs.from_dict({"data": {name: 1}}).data, name) == 1
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match=rf"data\.{name} must be at (least 0|most 1)"):
            configs.from_dict({"data": {name: wrong}})
