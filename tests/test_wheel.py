"""What a wheel holds: every module of both packages, and the files of experiments/ inside the library."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def test_a_wheel_holds_what_the_tree_holds(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("synergen_jax", "data_pipelines", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    built = subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT)
        for package in ("synergen_jax", "data_pipelines")
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {
        path.relative_to(ROOT)
        for name in ("*.toml", "*.py", "families/*.toml")
        for path in (ROOT / "experiments").glob(name)
    }
    assert len(there) > 100 and len(configs) > 10
    assert held == {str(path) for path in there} | {str("synergen_jax" / path) for path in configs}
