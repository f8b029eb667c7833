"""Compiled programs are kept between commands: where, for whom, how many, and never at the cost of an error."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from synergen_jax.cli import compile_cache
from synergen_jax.cli.main import parser

ROOT = pathlib.Path(__file__).resolve().parents[2]
X86 = (
    "processor\t: 0\nmodel name\t: A\nflags\t\t: {}\nbogomips\t: {}\n\nprocessor\t: 1\nmodel name\t: A\nflags\t\t: {}\n"
)


@pytest.fixture
def plain(monkeypatch):
    """jax as a user's command finds it, without the cache of these tests."""
    names = ("cache_dir", "cache_max_size")
    settings = [*(f"jax_compilation_{name}" for name in names), "jax_persistent_cache_min_compile_time_secs"]
    before = {name: getattr(jax.config, name) for name in settings}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_folder_of_ones_own_and_a_bound(plain, tmp_path):
    folder = compile_cache.begin(tmp_path / "data" / "jax-cache")
    assert folder == tmp_path / "data" / "jax-cache" / compile_cache.name() and folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_compilation_cache_max_size == 256 << 20
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1


def test_what_was_chosen_otherwise_stays(plain, tmp_path, monkeypatch):
    """By the program, by the environment (an empty name is none at all), by jax's own switch."""
    jax.config.update("jax_compilation_cache_dir", "mine")
    assert compile_cache.begin(tmp_path) is None and jax.config.jax_compilation_cache_dir == "mine"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert compile_cache.begin(tmp_path) is None and jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert compile_cache.begin(tmp_path) is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not any(tmp_path.iterdir())
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "77")
    before = jax.config.jax_compilation_cache_max_size
    assert compile_cache.begin(tmp_path) and jax.config.jax_compilation_cache_max_size == before


@pytest.mark.parametrize("fault", ["a file", "no writing", "no locks", "no filelock", "open to others"])
def test_where_there_can_be_no_cache_there_is_none(plain, tmp_path, monkeypatch, fault):
    """No error, not a word, and jax as it was."""
    if fault == "a file":
        (tmp_path / "cache").write_text("x")
    elif fault == "no writing":

        def full(**_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(compile_cache.tempfile, "TemporaryFile", full)
    elif fault == "no locks":
        import filelock

        def refused(*_, **__):
            raise NotImplementedError("FileSystem does not appear to support flock")

        monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    elif fault == "no filelock":
        monkeypatch.setitem(sys.modules, "filelock", None)
    else:
        (tmp_path / "cache" / compile_cache.name()).mkdir(parents=True)
        (tmp_path / "cache" / compile_cache.name()).chmod(0o770)
    assert compile_cache.begin(tmp_path / "cache") is None and jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_process_left_half_written_goes(plain, tmp_path):
    folder = compile_cache.begin(tmp_path)
    for name, content in {
        "whole-cache": b"1",
        "whole-atime": b"8 bytes.",
        "half-cache": b"1",
        "odd-cache": b"1",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "odd-atime").write_bytes(b"cut")
    jax.config.update("jax_compilation_cache_dir", None)
    assert compile_cache.begin(tmp_path) == folder
    assert {path.name for path in folder.glob("*-*")} == {"whole-cache", "whole-atime"}


def test_each_kind_of_cpu_has_its_own(tmp_path):
    def named(text):
        (tmp_path / "cpuinfo").write_text(text)
        return compile_cache.name(tmp_path / "cpuinfo")

    one = named(X86.format("avx avx2", 1, "avx avx2"))
    assert named(X86.format("avx2 avx", 2, "avx2 avx")) == one, (
        "neither the order of flags nor a speed tells CPUs apart"
    )
    assert named(X86.format("avx avx2 avx512f", 1, "avx avx2 avx512f")) != one
    assert named(X86.replace("name\t: A", "name\t: B").format("avx avx2", 1, "avx avx2")) != one
    arm = "processor : 0\nFeatures : fp {}\nCPU part : 0xd0c\n"
    assert named(arm.format("sve")) != named(arm.format(""))
    nowhere = compile_cache.name(tmp_path / "none")
    assert nowhere not in (one, named(arm)) and jax.__version__ in nowhere
    assert "/" not in nowhere and " " not in nowhere


PROGRAM = """
import json, pathlib, sys
import jax
from synergen_jax.cli import compile_cache
compile_cache.MIN_SECONDS = 0
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
folder = compile_cache.begin(pathlib.Path(sys.argv[1]))
print(json.dumps([str(folder), float(jax.jit(lambda x: (x * 2).sum())(jax.numpy.arange(5.0)))]))
print(json.dumps(sum(event.endswith("cache_hits") for event in seen)))
"""


def test_processes_share_it(tmp_path):
    """Two at once write the same programs; a third one finds them."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    for count in (2, 1):
        for process in [start() for _ in range(count)]:
            said, errors = process.communicate(timeout=120)
            assert process.returncode == 0 and not errors, errors
            (folder, value), hits = map(json.loads, said.splitlines())
            assert value == 20.0
    assert hits >= 1 and any(pathlib.Path(folder).glob("*-cache"))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("recommend run --user u --data-dir DATA", True),
        ("search run --query q", True),
        ("train quickstart --workdir run", True),
        ("recommend run --user u --no-compile-cache", False),
        ("evaluate run --no-compile-cache", False),
        ("data list", False),  # compiles nothing
        ("bench step", False),  # tell how long compiling takes
        ("plan quickstart --devices 2", False),
    ],
)
def test_which_commands_keep_them(monkeypatch, tmp_path, words, kept):
    begun = []
    monkeypatch.setattr(compile_cache, "begin", begun.append)
    monkeypatch.setenv("SYNERGEN_DATA", str(tmp_path))
    arguments = parser().parse_args(words.split())
    compile_cache.keep(arguments)
    folder = pathlib.Path("DATA") if "--data-dir" in words else tmp_path
    assert begun == [folder / "jax-cache"] * kept


def test_several_processes_keep_none(monkeypatch):
    """The first alone would write, and then load what the others still compile together."""
    monkeypatch.setattr(compile_cache, "cluster", types.SimpleNamespace(count=lambda: 2))
    monkeypatch.setattr(compile_cache, "begin", pytest.fail)
    compile_cache.keep(parser().parse_args(["train", "quickstart", "--workdir", "run"]))
