"""A small training run on users whose next item follows from the last one. As a script: a run that kills itself.

python small_run.py WORKDIR          20 steps, killed by SIGKILL at step 15 once the checkpoint of step 10 is there
python small_run.py WORKDIR none     the same on all events, killed when batch 15 is asked for
"""

import os
import pathlib
import signal
import sys
import time

import numpy as np
from small_log import SmallLog, user

from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.evaluation import protocol
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import loop, train_step

ITEMS = 12
TREE = {
    "data": {"batch": 8, "max_history": 8, "rank_events": 2, "rank_candidates": 4},
    "model": {"width": 16, "heads": 2, "depth": 1, "dropout": 0.1},
    "loss": {"full_softmax": True, "temperature": 0.1},
    "optimiser": {"warmup": 2, "learning_rate": 1e-2},
    "run": {"steps": 20, "log_every": 1, "eval_every": 5, "patience": 0, "checkpoint_every": 5, "keep": 2},
    "evaluate": {"batch": 16, "rank_candidates": 4, "bootstrap": 0, "scann": False},
    "mesh": {"data": 1},
}


def cycle_log(users=32):
    """Users who walk through the items one after the other, each from a place of their own."""
    walk = lambda u: 1 + (u * 5 + np.arange(4 + u % 6)) % (ITEMS - 1)
    return SmallLog([user(walk(u), name=f"u{u}") for u in range(users)], ITEMS)


class Run:
    """Everything that `loop.train` takes."""

    def __init__(self, config=None, **changes):
        tree = {s: values | changes.get(s, {}) for s, values in TREE.items()}
        self.config = config or configs.from_dict(tree)
        self.log = cycle_log()
        self.split = splits.split(self.log, self.config.data)
        self.catalogue = examples.catalogue(self.log, self.split)
        self.feed = feed.train_feed(self.log, self.split, self.config)
        self.model = train_step.make_model(self.config, self.log.spec)
        self.said = []

    def targets(self, part):
        return feed.evaluation_feed(self.log, self.split, part, self.config)

    def train(self, workdir, validate=None, fingerprint="", feed=None):
        workdir.mkdir(parents=True, exist_ok=True)
        catalogue = place_catalogue(self.catalogue, device_mesh.make_mesh(self.config.mesh))
        if self.config.data.measured:
            validate = validate or protocol.validator(self.model, catalogue, self.targets("validation"))
        return loop.train(
            self.config,
            self.log.spec,
            catalogue,
            feed or self.feed,
            workdir,
            validate,
            self.said.append,
            fingerprint,
        )


def fixed(*values):
    """A validation that gives these NDCG@10, one after the other; the last again and again."""
    left = list(values)
    return lambda params: {"ndcg@10": left.pop(0) if len(left) > 1 else left[0]}


def killed(workdir):
    """Trains until validation at step 15, by when the checkpoint of step 10 is on disk, and dies."""
    calls = []

    def validate(params):
        calls.append(1)
        if len(calls) == 3:
            die_after(workdir, 10)
        return {"ndcg@10": 0.5}

    Run().train(workdir, validate)


def killed_on_all_events(workdir):
    """Trains on all events until batch 15 is asked for, by when the checkpoint of step 10 is on disk, and dies."""
    run = Run(data={"split": "none"})

    def feed(step):
        for number, batch in enumerate(run.feed(step), start=step + 1):
            if number == 15:
                die_after(workdir, 10)
            yield batch

    run.train(workdir, feed=feed)


def die_after(workdir, step):
    """SIGKILL once the checkpoint of a step is on disk."""
    deadline = time.monotonic() + 60
    while not (workdir / "checkpoints" / str(step)).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    (killed_on_all_events if sys.argv[2:] == ["none"] else killed)(pathlib.Path(sys.argv[1]))
