"""Events a second of training on short histories, several in one row and one a row, padded."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from synergen_jax import config as configs
from synergen_jax.batch import TrainBatch
from synergen_jax.bench import timing
from synergen_jax.bench.setting import TINY, Result, Setting, Trainer, describe
from synergen_jax.bench.timing import Spread
from synergen_jax.planning.synthetic import SyntheticLog

# As experiments/trivago.toml: short sessions, long lists, items that go by their random codes.
CONFIG = {
    "data": {
        "split": "time",
        "max_history": 32,
        "batch": 64,
        "negatives": 512,
        "rank_events": 8,
        "rank_candidates": 25,
    },
    "model": {"width": 64, "depth": 2, "heads": 2, "dropout": 0.3, "item_ids": False},
    "loss": {"in_batch": 512},
}
BATCHES = 4


def run(setting: Setting) -> Result:
    """Events a second of both, and the ratio."""
    config = setting.config(CONFIG, TINY)
    size = (200, 400) if setting.small else (107_589, 6_593)  # items and users
    log = setting.log or SyntheticLog(*size, "sessions", matrices=(("code", 64),))
    sides, events, rows = {}, {}, []
    for name, pack in (("padded", "false"), ("packed", "true")):
        mine = configs.override(config, [f"--data.pack={pack}"])
        catalogue, feed = setting.open(mine, log)
        host = list(itertools.islice(feed(0), BATCHES))
        events[name] = sum(int(np.count_nonzero(batch.events.action)) for batch in host)
        trainer = Trainer(mine, log.spec, catalogue)
        sides[name] = _pass(trainer, [trainer.place(batch) for batch in host])
        slots = BATCHES * host[0].events.action.size
        rows.append(
            {
                "rows": name,
                "events a row": events[name] / (BATCHES * mine.data.batch),
                "padding": 1 - events[name] / slots,
                "ranked events' room": host[0].ranking.query.shape[1],
            }
        )
    times = timing.alternate(sides, setting.rounds, setting.trace)
    rates = {name: [events[name] / s for s in seconds] for name, seconds in times.items()}
    for row in rows:
        row["step s"] = Spread.of(times[row["rows"]]).cell(1 / BATCHES)
        row["events/s"] = Spread.of(rates[row["rows"]]).cell()
    ratios = {"packed over padded, events a second": timing.ratio(rates["packed"], rates["padded"])}
    return Result("packing", f"packed and padded rows: {describe(config)}, {log.name}", rows, ratios, times)


def _pass(trainer: Trainer, batches: list[TrainBatch]):
    return lambda: jax.block_until_ready([trainer(batch) for batch in batches])
