"""docs/serving.md: its commands parse, its requests are answered, and it names what there is."""

import json
import pathlib
import re
import shlex

import pytest
from small_service import SmallService

from synergen_jax import config as configs
from synergen_jax.cli import main

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)).replace("\\\n", "")
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [words[1:] for words in COMMANDS if words[0] == "synergen"], ids=" ".join)
def test_commands_parse(command):
    arguments, settings = main.parser().parse_known_args(command)
    if arguments.command == "train":
        configs.load(arguments.config, settings)
    else:
        assert settings == []


@pytest.mark.parametrize("command", [words for words in COMMANDS if words[0] == "curl"], ids=" ".join)
def test_requests_are_answered(command):
    """Those of curl; the fake engine's items and actions have other names than a log's."""
    path = next(word for word in command if word.startswith("localhost:8000")).removeprefix("localhost:8000")
    with SmallService() as service:
        service.engine._known = service.engine._known_action = lambda *_: None
        service.engine.labels = ("like",)
        if "-d" in command:
            answer = service.post(path, json.loads(command[command.index("-d") + 1]))
        else:
            answer = service.call("DELETE" if "DELETE" in command else "GET", path)
        assert answer.status_code == 200, answer.text


def test_every_endpoint_is_told():
    with SmallService() as service:
        told = service.call("GET", "/openapi.json").json()["paths"]
    there = {f"{method.upper()} {path}" for path, methods in told.items() for method in methods}
    assert there | {"GET /openapi.json"} == set(re.findall(r"^\| `((?:GET|POST|DELETE) /[^`]*)` ", TEXT, re.MULTILINE))


def test_every_setting_is_told():
    help = main.parser().parse_known_args(["serve", "run"])[0]
    own = set(vars(help)) - set(vars(main.parser().parse_known_args(["similar", "run", "--item", "1"])[0]))
    told = {
        flag[2:].replace("-", "_")
        for flag in re.findall(r"^\| (`--.*?) \|", TEXT, re.MULTILINE)
        for flag in re.findall(r"`(--[\w-]+)`", flag)
    }
    assert own <= told


def test_every_problem_is_told():
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in (pathlib.Path(__file__).resolve().parents[2] / "synergen_jax/serving/http").glob("*.py")
    )
    kinds = set(re.findall(r'Problem\(\s*\d{3},\s*"([\w-]+)"', source))
    rows = [line for line in TEXT.splitlines() if re.match(r"\| [45]\d\d \|", line)]
    assert len(kinds) > 10 and kinds <= set(re.findall(r"`([\w-]+)`", "\n".join(rows)))
