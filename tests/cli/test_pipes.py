"""Readers who leave, by real pipes whose other end is closed: nothing is told, and no work is lost."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipelines.event_log.event_log import EventLog
from synergen_jax.cli import pipes

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = "import sys; from synergen_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
SETTINGS = {
    "model": {"width": 8, "heads": 2, "depth": 1},
    "data": {"batch": 8, "max_history": 8, "split": "leave-one-out", "rank_events": 0},
    "loss": {"full_softmax": True},
    "optimiser": {"warmup": 2},
    "run": {"steps": 4, "eval_every": 2, "checkpoint_every": 2},
    "mesh": {"data": 1},
}


def without_a_reader(*arguments, errors_too=False, unbuffered=False):
    """Status and stderr of a command whose output nobody reads; its errors too have a pipe that is closed, if asked."""
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": os.environ["SYNERGEN_TESTS_CACHE"]}
    environment |= {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    stderr = write if errors_too else subprocess.PIPE
    try:
        done = subprocess.run(command, stdout=write, stderr=stderr, env=environment, check=False, text=True)
    finally:
        os.close(write)
    return done.returncode, done.stderr


def table(folder):
    rows = [f"u{user},i{(user * 3 + n) % 7},{1_600_000_000 + 60 * n}" for user in range(12) for n in range(5)]
    (folder / "shop.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    return "data", "import", folder / "shop.csv", "--data-dir", folder / "data"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_what_only_prints_ends_as_sigpipe_would_end_it(tmp_path, unbuffered):
    for arguments in (["--help"], ["--version"], ["data", "import", "--help"]):
        assert without_a_reader(*arguments, unbuffered=unbuffered) == (141, "")
    assert without_a_reader("data", "list", "--data-dir", tmp_path, unbuffered=unbuffered) == (141, "")
    assert without_a_reader("data", "list", "--data-dir", tmp_path, errors_too=True)[0] == 141


@pytest.mark.parametrize("errors_too", [False, True])
def test_an_import_is_done_to_its_end(tmp_path, errors_too):
    status, errors = without_a_reader(*table(tmp_path), "--json", errors_too=errors_too)
    assert status == 0 and not errors
    assert int(EventLog.load(tmp_path / "data" / "logs" / "shop").lengths.sum()) == 60


def test_wrong_input_is_still_told(tmp_path):
    status, errors = without_a_reader("data", "import", tmp_path / "none.csv", "--data-dir", tmp_path)
    assert status == 2 and errors == f"synergen: error: {tmp_path / 'none.csv'}: there is no such file or folder\n"


def test_a_training_goes_on(tmp_path):
    assert without_a_reader(*table(tmp_path)) == (0, "")
    (tmp_path / "small.toml").write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
            for section, values in (SETTINGS | {"data": SETTINGS["data"] | {"log": "shop"}}).items()
        )
    )
    arguments = ("train", tmp_path / "small.toml", "--workdir", tmp_path / "run", "--data-dir", tmp_path / "data")
    status, errors = without_a_reader(*arguments)
    assert status == 0 and "roken pipe" not in errors and "Traceback" not in errors
    assert (
        max(map(int, (path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()))) == 4
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 4


def test_a_reader_who_leaves_in_the_midst(tmp_path):
    read, write = os.pipe()
    with os.fdopen(write, "w") as out:
        stream = pipes.Stream(out, stop=False)
        assert stream.write("one\n") == 4
        stream.flush()
        assert os.read(read, 10) == b"one\n" and not stream.isatty()
        os.close(read)
        for _ in range(3):
            stream.writelines(["two", "\n"])
            stream.flush()  # goes nowhere

    read, write = os.pipe()
    with os.fdopen(write, "w") as out:
        os.close(read)
        stream = pipes.Stream(out, stop=True)
        stream.write("two")
        with pytest.raises(SystemExit) as left:
            stream.flush()
        assert left.value.code == pipes.STATUS == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_no_reader_who_left(tmp_path):
    with open("/dev/full", "w") as out:
        command = [sys.executable, "-c", COMMAND, "data", "list", "--data-dir", str(tmp_path)]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, cwd=ROOT, check=False, text=True)
    message = "synergen: error: what was printed could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)
