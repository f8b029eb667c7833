"""The whole training step of a config, and the feed's own rate beside it."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from synergen_jax.bench import feed as feeding
from synergen_jax.bench import timing
from synergen_jax.bench.setting import ML_1M, TINY, Result, Setting, Trainer, describe
from synergen_jax.bench.timing import Spread
from synergen_jax.planning import flops

BATCHES = 4  # different ones that the step is timed on


def run(setting: Setting) -> Result:
    """Seconds and events a second of the step, its FLOPs and MFU, and how many steps' batches the feed makes meanwhile."""
    config = setting.config(ML_1M, TINY)
    log = setting.movielens()
    catalogue, feed = setting.open(config, log)
    host = list(itertools.islice(feed(0), BATCHES))
    trainer = Trainer(config, log.spec, catalogue)
    compile_seconds = trainer.compile(batch := trainer.place(host[0]))
    batches = itertools.cycle([batch, *map(trainer.place, host[1:])])
    times = timing.alternate({"step": lambda: trainer(next(batches))}, setting.rounds, setting.trace)
    fed = feeding.alone(feed, 4 * BATCHES)
    step = Spread.of(times["step"])
    work = [flops.batch_work(batch) for batch in host]
    count = float(np.mean([flops.train_step(config, log.spec, one) for one in work]))
    events = float(np.mean([one.events for one in work]))
    device = jax.devices()[0].device_kind
    found = flops.mfu(count, step.median, device, config.model.dtype, trainer.mesh.size)
    row = {
        "step s": step.cell(),
        "events/s": events / step.median,
        "padding": 1 - events / host[0].events.action.size,
        "GFLOP/step": count / 1e9,
        "GFLOP/s": count / 1e9 / step.median,
        "MFU": found,
        "compile s": compile_seconds,
        "feed batches/s": 1 / fed,
        "feed/step": step.median / fed,
    }
    note = "" if found is not None else f"MFU: the peak of {device!r} is not known."
    return Result(
        "step",
        f"training step: {describe(config)}, {log.name}",
        [row],
        {"feed over step, batches a second": Spread.of(np.divide(times["step"], fed))},
        times,
        note,
    )
