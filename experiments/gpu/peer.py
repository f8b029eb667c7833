"""The same model and training step in PyTorch, beside ours: same weights, same batch, one after the other."""

from __future__ import annotations

import itertools
import typing

import jax
import mfu
import numpy as np
from made_up import open_log
from setting import Setting, Skip

from synergen_jax import config as configs
from synergen_jax.batch import TrainBatch
from synergen_jax.bench import timing
from synergen_jax.bench.setting import Trainer

USERS = 4  # rows of a batch: both sides must find room, one after the other


def step(setting: Setting, attention: str) -> dict[str, typing.Any]:
    """Seconds of both, and theirs over ours; retrieval alone, tables updated as a whole, on both sides.

    Args:
      attention: "flex" or "sdpa", see torch_step.py.
    """
    import torch_step  # says that torch is not installed, before anything is measured

    tree = setting.by_size(mfu.BIG, mfu.SMALL)
    data = tree["data"] | {"batch": setting.by_size(USERS, 2), "rank_events": 0}
    config = configs.from_dict(tree | {"data": data, "optimiser": {"table": "dense"}})
    log = mfu.log_of(setting)
    catalogue, feed = open_log(config, log)
    batch = next(itertools.islice(feed(0), 1))
    params, ours, loss = _ours(
        setting, Trainer(config, log.spec, catalogue), batch
    )  # whose memory is torch's from here on
    compiled = not setting.small
    try:
        theirs = torch_step.measure(config, log.spec, catalogue, batch, params, attention, setting.rounds, compiled)
    except NotImplementedError as why:  # as flex attention's backward pass is on CPUs
        raise Skip(f"torch: {why}") from None
    ratio = timing.ratio(theirs["seconds"], ours)._asdict()
    return theirs | {"ours_seconds": ours, "ours_loss": loss, "theirs_over_ours": ratio}


def _ours(setting: Setting, trainer: Trainer, batch: TrainBatch) -> tuple[typing.Any, list[float], float]:
    """Parameters before the first step, on the host; seconds of our steps; the loss of the first."""
    params = jax.tree.map(np.asarray, jax.device_get(trainer.state.params))
    placed = trainer.place(batch)
    loss = float(trainer(placed)["loss"])
    return params, timing.alternate({"step": lambda: trainer(placed)}, setting.rounds)["step"], loss
