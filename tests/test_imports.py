"""What importing the library loads, and which way the packages depend on each other."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in (ROOT / "synergen_jax").glob("*.py") if path.stem != "__init__")
# These alone put data pipelines and library together: `commands`, parts of it, and the command line.
COMMANDS = [name for name in MODULES if name == "cli" or name.endswith("commands")]
HEAVY = ("tensorflow", "tensorflow_datasets", "scann", "matplotlib", "sklearn", "polars", "torch", "tensorboardX")

PROGRAM = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded[name] = sorted({module.partition(".")[0] for module in sys.modules})
print(json.dumps(loaded))
"""


def loaded_by(*names):
    """For each module, imported one after the other in a fresh process: the top-level packages loaded by then."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_library_loads_nothing_heavy():
    names = ["synergen_jax", *(f"synergen_jax.{name}" for name in MODULES if name not in COMMANDS)]
    for name, loaded in loaded_by(*names).items():
        assert not set(loaded) & {*HEAVY, "data_pipelines"}, name


def test_the_command_line_starts_without_jax():
    """`synergen --help` answers at once."""
    loaded = set(loaded_by("synergen_jax.cli")["synergen_jax.cli"])
    assert not loaded & {"jax", "numpy", "data_pipelines", *HEAVY}


def test_commands_load_nothing_heavy_before_they_need_it():
    assert not set(loaded_by("synergen_jax.commands")["synergen_jax.commands"]) & set(HEAVY)


def imported(path):
    """The dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_benchmarks_know_no_data_pipeline():
    """They are given what opens a log."""
    for path in sorted((ROOT / "synergen_jax" / "bench").glob("*.py")):
        odd = [n for n in imported(path) if n.partition(".")[0] == "data_pipelines" or n.endswith("commands")]
        assert not odd, f"{path}: {odd}"


@pytest.mark.parametrize("name", MODULES)
def test_the_library_knows_no_data_pipeline(name):
    names = list(imported(ROOT / "synergen_jax" / f"{name}.py"))
    pipelines = [n for n in names if n.partition(".")[0] == "data_pipelines"]
    commands = [n for n in names if n.startswith(tuple(f"synergen_jax.{command}" for command in COMMANDS))]
    if name == "commands":
        assert pipelines, "else this test looks for the wrong thing"
    if name not in COMMANDS:
        assert not pipelines and not commands


def test_pipelines_take_shapes_settings_and_errors_from_the_library_alone():
    allowed = ("synergen_jax.batch.", "synergen_jax.config.", "synergen_jax.errors.")
    for path in sorted((ROOT / "data_pipelines").rglob("*.py")):
        ours = [name for name in imported(path) if name.startswith("synergen_jax")]
        assert all(name.startswith(allowed) for name in ours), f"{path}: {ours}"
