"""What commands work on: a data folder with a prepared log, a config and a run; a process that trains in a folder."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np

CONFIG = """
[data]
log = "tiny"
max_history = 8
batch = 8
rank_events = 2
rank_candidates = 4
[model]
width = 8
depth = 1
heads = 2
[mesh]
data = 1
[run]
steps = 4
log_every = 1
eval_every = 2
checkpoint_every = 2
keep = 2
[evaluate]
batch = 32
rank_candidates = 5
bootstrap = 20
scann = false
"""
HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def atomic_files(folder, name="tiny", users=24, items=20):
    """A folder of atomic files: `users` users of 6 to 10 events each."""
    rng = np.random.default_rng(0)
    lines = [HEAD]
    for user in range(users):
        for n, item in enumerate(rng.permutation(items)[: rng.integers(6, 11)]):
            lines.append(f"u{user}\ti{item}\t{rng.integers(1, 6)}\t{10**9 + 1000 * user + 60 * n}\n")
    folder.mkdir()
    (folder / f"{name}.inter").write_text("".join(lines))
    return folder


class Place:
    """A data folder with a prepared log, a config and a trained run."""

    def __init__(self, root):
        self.data, self.files = root / "data", atomic_files(root / "files")
        self.config, self.workdir = root / "tiny.toml", root / "run"
        self.config.write_text(CONFIG)

    def train(self, workdir, *more):
        return ["train", self.config, "--workdir", workdir, "--data-dir", self.data, *more]

    def copy(self, to):
        """A copy of the run, to be damaged."""
        return pathlib.Path(shutil.copytree(self.workdir, to))


HERE = pathlib.Path(__file__).parent
HOLD = (
    "import pathlib, sys, time; from synergen_jax.processes import run_lock as lock\n"
    "with lock.alone(pathlib.Path(sys.argv[1])):\n"
    "    print('mine', flush=True); {then}"
)


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])}


@contextlib.contextmanager
def owner(folder, then="time.sleep(60)"):
    """A process that owns the folder until it is killed."""
    program = [sys.executable, "-c", HOLD.format(then=then), folder]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.wait()
