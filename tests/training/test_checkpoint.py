"""Checkpoints: what is kept, what a damaged one does, another mesh, and a donated state."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synergen_jax.config import MeshConfig
from synergen_jax.errors import UserError
from synergen_jax.sharding import device_mesh
from synergen_jax.training import checkpoint
from synergen_jax.training.checkpoint import Checkpoints


def state(value, mesh=None):
    mesh = mesh or device_mesh.one_device()
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))
    return {"table": place(jnp.full((8, 4), value, jnp.float32), "model"), "step": place(jnp.asarray(int(value)))}


def save_all(folder, bests, keep=2):
    """Saves steps 1, 2, ..., at each of which the best step so far is given."""
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step, best in enumerate(bests, start=1):
            checkpoints.save(step, state(step), {"next_batch": step}, best)
            checkpoints.wait()
        return checkpoints.steps()


def value(found):
    return float(np.unique(found[0]["table"]).item()), found[1]["next_batch"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    assert save_all(tmp_path, [1, 2, 2, 2, 2, 2]) == [2, 5, 6]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert value(checkpoints.restore(state(0))) == (6, 6)
        assert value(checkpoints.restore(state(0), best=True)) == (2, 2)


def test_no_checkpoint_is_none(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.restore(state(0)) is None


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "empty folder"])
def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path, damage):
    save_all(tmp_path, [1, 2])
    for file in sorted((tmp_path / "2").rglob("*")):
        if file.is_file() and damage == "truncated":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif file.is_file() and damage == "garbage":
            file.write_bytes(b"\xff" * file.stat().st_size)
        elif file.is_file() and (damage == "empty folder" or "state" in file.parts):
            file.unlink()
    said = []
    with Checkpoints(tmp_path, say=said.append, read_only=True) as checkpoints:
        assert value(checkpoints.restore(state(0), best=True)) == (1, 1)
    assert len(said) == 1 and "checkpoint" in said[0] and "2 cannot be read and is passed over" in said[0]
    assert (tmp_path / "2").exists()
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        assert value(checkpoints.restore(state(0))) == (1, 1)
        checkpoints.save(2, state(7), {"next_batch": 7}, 2)  # the step can be written again
    assert (tmp_path / "2.damaged").exists()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert value(checkpoints.restore(state(0))) == (7, 7)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("RESOURCE_EXHAUSTED: out"),
        ValueError("PERMISSION_DENIED: Error opening file"),
    ],
)
def test_a_lack_of_memory_files_or_permission_damages_no_checkpoint(tmp_path, monkeypatch, error):
    save_all(tmp_path, [0, 0])

    def fail(*args, **kwargs):
        raise error

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        monkeypatch.setattr(checkpoints._reader, "restore", fail)
        with pytest.raises(type(error)) as told:
            checkpoints.restore(state(0))
        assert told.value is error, "no UserError, which is a ValueError, too"
    assert not list(tmp_path.glob("*.damaged"))


def test_if_none_can_be_read_it_is_an_error(tmp_path):
    save_all(tmp_path, [1, 2])
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    wanted = pytest.raises(UserError, match="none of its checkpoints can be read; move the folder away")
    with Checkpoints(tmp_path, say=lambda _: None) as checkpoints, wanted:
        checkpoints.restore(state(0))


def test_a_half_written_checkpoint_is_none(tmp_path):
    """What a killed process leaves behind is a folder of another name, which the next writer removes."""
    save_all(tmp_path, [1])
    half = tmp_path / "2.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "data").write_bytes(b"half")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert value(checkpoints.restore(state(0))) == (1, 1)
    assert not half.exists()


def test_it_restores_on_another_mesh(tmp_path):
    wide = device_mesh.make_mesh(MeshConfig(4, 2))
    with Checkpoints(tmp_path) as checkpoints:
        saved = state(0, wide) | {
            "table": jax.device_put(jnp.arange(32.0).reshape(8, 4), state(0, wide)["table"].sharding)
        }
        checkpoints.save(1, saved, {"next_batch": 1}, 1)
    for shape in ((1, 1), (2, 4)):
        mesh = device_mesh.make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            found, _ = checkpoints.restore(state(0, mesh))
        np.testing.assert_array_equal(found["table"], np.arange(32.0).reshape(8, 4))
        assert found["table"].sharding.mesh.devices.shape == shape


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """Writing goes on in the background, from a copy."""
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    old = {"table": jnp.zeros((256, 256))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, old, {"next_batch": 1}, 1)
        for _ in range(10):
            old = add(old)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert not np.asarray(checkpoints.restore(old)[0]["table"]).any()


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is no folder of checkpoints"):
        Checkpoints(tmp_path / "file")


def test_a_save_that_is_cut_off_is_never_taken_for_whole(tmp_path):
    """A process is killed when all files of step 2 are written, and only the rename is left."""
    here = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    program = (
        "import os, pathlib, signal, sys; from test_checkpoint import save_all; rename = os.rename\n"
        "def cut(old, new, **more):\n"
        "    if pathlib.Path(new).name == '2': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(old, new, **more)\n"
        "os.rename = cut; save_all(pathlib.Path(sys.argv[1]), [1, 2])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (half,) = (path for path in tmp_path.iterdir() if path.name.startswith("2."))
    assert any(file.is_file() for file in half.rglob("*"))
    said = []
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        assert checkpoints.steps() == [1] and value(checkpoints.restore(state(0))) == (1, 1)
        checkpoints.save(2, state(2), {"next_batch": 2}, 2)
        checkpoints.wait()
        assert value(checkpoints.restore(state(0))) == (2, 2)
    assert not said and not half.exists()


def test_an_error_that_is_no_files_is_not_told_as_one():
    """A lack of memory or a bug keeps its own name; what a thread wraps is told by its cause."""
    told = checkpoint._of_a_file
    assert told(OSError(28, "No space left on device")) and told(ValueError("RESOURCE_EXHAUSTED: No space left"))
    wrapped = RuntimeError("in a thread")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert told(wrapped)
    assert (
        not told(RuntimeError("out of memory while fetching")) and not told(MemoryError()) and not told(KeyError("x"))
    )
