"""The README's code runs, its commands parse, and what it names is there."""

import dataclasses
import pathlib
import re
import shlex
import tomllib

import jax
import ladder
import numpy as np
import pytest
import visit

from data_pipelines.event_log import event_log
from data_pipelines.sources.interactions import Interactions, log_parts
from synergen_jax import config as configs
from synergen_jax.cli import main, quickstart
from synergen_jax.runs import family as families

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def words(line):
    """The commands of a shell line, each as words."""
    return [shlex.split(part, comments=True) for part in line.split("&&")]


COMMANDS = [command for block in blocks("sh") for line in block.splitlines() for command in words(line) if command]
for path in configs.shipped().values():  # each config's head says how it is run
    head = path.read_text(encoding="utf-8").splitlines()
    COMMANDS += [shlex.split(line.partition("synergen ")[2]) for line in head if re.match(r"#.* synergen ", line)]
SYNERGEN = [
    command[command[0] == "synergen" :] for command in COMMANDS if command[0] not in ("pip", "pytest", "python", "curl")
]
LADDER = [command[2:] for command in COMMANDS if command[:2] == ["python", "experiments/ladder/ladder.py"]]
VISIT = [command[2:] for command in COMMANDS if command[:2] == ["python", "experiments/gpu/visit.py"]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder whose ml-100k is a small random log."""
    rng = np.random.default_rng(0)
    users = np.repeat([f"{user}" for user in range(45)], 12)
    items = [f"{item}" for _ in range(45) for item in rng.permutation(30)[:12]]
    log = Interactions(
        users.tolist(),
        items,
        10**9 + rng.integers(0, 10**8, users.size),
        rng.integers(1, 6, users.size),
        {},
        {"genres": {item: ("Drama", "War")[: int(item) % 3] for item in set(items)}},
        (1, 2, 3, 4, 5),
    )
    folder = tmp_path_factory.mktemp("readme")
    event_log.write(
        folder / "logs" / "ml-100k", name="ml-100k", source={"sha256": "", "settings": {}}, **log_parts(log)
    )
    return folder


def test_the_python_blocks_run_in_order(data_dir, monkeypatch, capsys):
    monkeypatch.setenv("SYNERGEN_DATA", str(data_dir))
    monkeypatch.chdir(data_dir)
    settings = ["--run.steps", "2", "--model.width", "16", "--data.batch", "8", "--mesh.data", "1"]
    settings += ["--data.max_history", "10", "--data.stride", "10"]  # users have more events than a window holds
    assert main.main(["train", "quickstart", "--workdir", "runs/ml-1m", *settings]) == 0
    names = {}
    with jax.numpy_rank_promotion("allow"):  # jax's default, and the reader's
        first, serve, many, second = blocks("python")
        exec(compile(first, "README.md", "exec"), names)
        assert names["hidden"].shape == (*names["batch"].retrieval.item.shape, 32)
        assert np.isfinite(names["hidden"]).all()
        usual, params, names["quick"] = names["cache"], names["params"], names["run"].config
        exec(compile(serve, "README.md", "exec"), names)
        labels = names["run"].log.spec.labels
        assert names["chances"].shape == (3, len(labels)) and len(names["found"]) == 10
        assert not {one.item for one in names["found"]} & set(names["record"]["item"].tolist())
        assert int(names["cache"].length[0]) == 10 < len(names["record"]["item"])
        np.testing.assert_array_equal(names["events"].item[0, :9], names["record"]["item"][-9:])
        exec(compile(many, "README.md", "exec"), names)
        assert [len(answer) for answer in names["answers"]] == [10] * 3
        assert list(names["answers"][0][0]) == ["item", "score", *labels]
        changed = settings[:2] + settings[4:] + ["--evaluate.bootstrap", "0"]
        names["run"] = dataclasses.replace(names["run"], config=configs.override(names["quick"], changed), folder=None)
        exec(compile(second, "README.md", "exec"), names)
        assert names["run"].model.phase is names["by_day"] is names["own"].model.phase
        model = names["own"].model
        own = model.apply(params["model"], names["batch"].events, *names["vectors"], method="encode")
    difference = np.abs(own.keys[0] - usual.keys[0]).max(axis=(1, 3))
    assert np.isfinite(difference).all() and difference.max() > 0.01, "another encoding of time gives other keys"
    np.testing.assert_allclose(own.values[0], usual.values[0], atol=1e-6)  # the first values know no time
    capsys.readouterr()
    for command in (
        ["evaluate"],
        ["recommend", "--user", "42"],
        ["train", "quickstart", *settings, "--model.width", "32"],
    ):
        run = ["--workdir", "runs/by-day"] if command[0] == "train" else ["runs/by-day"]
        assert main.main([*command, *run]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert (
            "runs/by-day was trained with a phase of its own, by_day" in error
            and "evaluate and Run of synergen_jax" in error
        )


def test_quickstart_takes_the_log_that_is_there(data_dir):
    """It may have been prepared with texts: to prepare it anew would take it from the runs that were trained on it."""
    path = data_dir / "logs" / "ml-100k"
    assert quickstart.prepared(None, data_dir).path == path.resolve()


@pytest.mark.parametrize("command", SYNERGEN, ids=" ".join)
def test_the_commands_parse(command):
    arguments, rest = main.parser().parse_known_args(command)
    if arguments.command in ("train", "quickstart", "plan"):
        configs.load(getattr(arguments, "config", "quickstart"), rest)
    else:
        assert not rest


def test_the_ladder_commands_parse():
    assert [ladder.parser().parse_known_args(command)[1] for command in LADDER] == [[]] * len(LADDER)
    family = ladder.parser().parse_known_args(LADDER[-1])[0].family
    assert len(families.load(family).variants) > 20


def test_the_visit_command_parses():
    found = [visit.parser().parse_args(command) for command in VISIT]
    assert [one.budget for one in found] == [540] and found[0].data.name == pathlib.Path(LADDER[0][-1]).name


def test_every_kind_of_command_is_shown():
    assert {command[0] for command in SYNERGEN} == {
        "quickstart",
        "data",
        "train",
        "evaluate",
        "rerank",
        "recommend",
        "search",
        "rank",
        "similar",
        "vectors",
        "sweep",
        "bench",
        "plan",
        "serve",
        "serve-log",
    }


def test_settings_in_the_text_are_settings():
    found = [text for text in re.findall(r"`([^`\n]+)`", README) if re.match(r"--\w+\.\w", text)]
    assert found
    for text in found:
        configs.override(configs.Config(), shlex.split(text))


def test_extras_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert extras and extras <= set(project["optional-dependencies"])


def test_files_are_there():
    code = set(re.findall(r"`([^`\n]+)`", README))
    paths = {text for text in code if re.fullmatch(r"[\w/-]+(\.py|\.md|\.toml|/)", text)}
    assert {"synergen_jax/model/rope.py", "tests/model/test_model.py", "docs/launch.md", "experiments/"} <= paths
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert not missing
    for package in ("synergen_jax", "data_pipelines"):
        rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        listed = set(re.findall(rf"`{package}/(\w+)/`", README))
        assert listed == rooms, package


def test_shipped_configs_are_those_named():
    listed = re.search(r"name of a shipped one \(([^)]*)\)", " ".join(README.split())).group(1)
    assert set(re.findall(r"`(\w+)`", listed)) == set(configs.shipped())


def test_what_a_run_writes_is_named_as_it_is():
    """Names in the text against the code that writes them."""
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "synergen_jax").rglob("*.py"))
    for name in ("metrics.jsonl", "curves.png", "report_{part}.html"):
        assert name in source
        assert name.replace("{part}", "test") in README
