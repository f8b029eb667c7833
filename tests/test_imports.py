"""What importing the library loads, and which way the rooms of the house depend on each other (docs/design.md)."""

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import synergen_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ("tensorflow", "tensorflow_datasets", "scann", "matplotlib", "sklearn", "polars", "torch", "tensorboardX")

# Floors from the ground up. A room imports from the floors below it and from itself; rooms of one floor know nothing of
# each other. What a package offers to the other one is in SHARED.
FLOORS = {
    "synergen_jax": (
        ("errors",),
        ("config", "batch"),
        ("processes",),
        ("sharding",),
        ("model",),
        ("retrieval",),
        ("training", "evaluation", "reranking", "serving"),
        ("planning",),
        ("bench",),
        ("runs",),
        ("cli",),
    ),
    "data_pipelines": (
        ("files",),
        ("features",),
        ("event_log",),
        ("sources", "feed"),
        ("importing",),
    ),
}
CONTRACTS = ("errors", "config", "batch")  # what pipelines know of the library
MEET = ("runs", "cli")  # rooms of the library that know pipelines

WEB = ("fastapi", "starlette", "pydantic", "uvicorn")  # of the extra `serve`

PROGRAM = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded[name] = sorted({module.partition(".")[0] for module in sys.modules})
print(json.dumps(loaded))
"""


def modules(root, package):
    """{dotted name: file} of a package."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(path):
    """The dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def odd_imports(root):
    """Every import between rooms that does not go down: lines for people."""
    found = []
    for package, floors in FLOORS.items():
        height = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
        for name, path in modules(root, package).items():
            room = name.split(".")[1] if "." in name else ""
            for target in imported(path):
                other, where = (*target.split("."), "")[:2]
                if other not in FLOORS or not room:
                    continue
                if other == package:
                    fine = where == room or height.get(where, -1) < height[room]
                elif other == "synergen_jax":
                    fine = where in CONTRACTS
                else:
                    fine = room in MEET
                if not fine:
                    found.append(f"{name} imports {target}")
    return found


def loaded_by(*names):
    """For each module, imported one after the other in a fresh process: the top-level packages loaded by then."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package):
    there = {path.stem for path in (ROOT / package).iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = {room for floor in FLOORS[package] for room in floor}
    assert there - {"__pycache__", "__init__"} == rooms


def test_imports_go_down():
    assert odd_imports(ROOT) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("synergen_jax/model/rope.py", "from synergen_jax.training import losses"),
        ("synergen_jax/sharding/table.py", "from synergen_jax.model.synergen import SynerGen"),
        ("synergen_jax/serving/recommender.py", "from synergen_jax.evaluation import metrics"),
        ("synergen_jax/training/loop.py", "from data_pipelines.feed import feed"),
        ("data_pipelines/files/rows.py", "from data_pipelines.event_log import event_log"),
        ("data_pipelines/feed/feed.py", "from synergen_jax.training import loop"),
        ("data_pipelines/feed/splits.py", "from data_pipelines.sources import movielens"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(tmp_path, file, line):
    for package in FLOORS:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / file
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef planted():\n    {line}\n", encoding="utf-8")
    (found,) = odd_imports(tmp_path)
    assert found.startswith(file.removesuffix(".py").replace("/", "."))


def test_the_library_loads_nothing_heavy():
    names = [name for name in modules(ROOT, "synergen_jax") if name.split(".")[1:2] not in [[room] for room in MEET]]
    assert len(names) > 45, "else this test looks in the wrong place"
    for name, loaded in loaded_by(*names).items():
        assert not set(loaded) & {*HEAVY, "data_pipelines"}, name


def test_only_the_service_over_http_needs_a_web_framework():
    names = [name for name in modules(ROOT, "synergen_jax") if not name.startswith("synergen_jax.serving.http.")]
    assert "synergen_jax.cli.serve" in names
    assert not set(loaded_by(*names)[names[-1]]) & set(WEB)


def test_the_command_line_starts_without_jax():
    """`synergen --help` answers at once."""
    loaded = set(loaded_by("synergen_jax.cli.main")["synergen_jax.cli.main"])
    assert not loaded & {"jax", "numpy", "data_pipelines", *HEAVY, *WEB}


def test_runs_load_nothing_heavy_before_they_need_it():
    names = [name for name in modules(ROOT, "synergen_jax") if name.startswith("synergen_jax.runs.")]
    assert not set(loaded_by(*names)[names[-1]]) & set(HEAVY)


def test_the_front_door():
    """What it names is there, is what type checkers are told, and costs nothing before it is used."""
    source = (ROOT / "synergen_jax/__init__.py").read_text(encoding="utf-8")
    told = re.findall(r"    from ([\w.]+) import (\w+) as (\w+)", source)
    where = {name: module for module, names in synergen_jax._WHERE.items() for name in names}
    assert {name: module for module, _, name in told} == where and sorted(where) == sorted(synergen_jax.__all__)
    assert {name: there for _, there, name in told if there != name} == synergen_jax._THERE
    for name in synergen_jax.__all__:
        assert getattr(synergen_jax, name) is not None and name in dir(synergen_jax)
    assert not set(loaded_by("synergen_jax")["synergen_jax"]) & {"jax", "numpy", "data_pipelines", *HEAVY}
    with pytest.raises(AttributeError, match=r"no attribute 'Recomender'; it has EventLog, .*Recommender"):
        synergen_jax.__getattr__("Recomender")
