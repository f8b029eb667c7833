"""How long a step takes by the number of items, all else equal: it should follow the work, not the catalogue."""

from __future__ import annotations

import itertools

from synergen_jax.bench import timing
from synergen_jax.bench.setting import TINY, Result, Setting, Trainer, describe
from synergen_jax.bench.timing import Spread
from synergen_jax.planning.synthetic import SyntheticLog

SIZES = (10_000, 100_000, 1_000_000)
CONFIG = {
    "data": {"max_history": 100, "batch": 32, "negatives": 512, "rank_events": 4, "rank_candidates": 8},
    "model": {"width": 64, "depth": 2, "heads": 2},
    "loss": {"in_batch": 256},
    "optimiser": {"table": "adam"},  # small tables would be updated as a whole
}


def run(setting: Setting) -> Result:
    """Seconds a step at each size, and over those at the smallest one."""
    config = setting.config(CONFIG, TINY)
    sizes = sorted(setting.sizes or ((200, 2000) if setting.small else SIZES))
    sides, spaces = {}, {}
    for items in sizes:
        log = SyntheticLog(items, 4 * config.data.batch, config.data.max_history + 2)
        catalogue, feed = setting.open(config, log)
        trainer = Trainer(config, log.spec, catalogue)
        batches = [trainer.place(batch) for batch in itertools.islice(feed(0), 4)]
        name = f"{items:,} items"
        sides[name] = _stepper(trainer, batches)
        spaces[name] = sum(x.nbytes for x in trainer.state.params["tables"].values()) / 2**20
        setting.say(f"{name}: ready")
    times = timing.alternate(sides, setting.rounds, setting.trace)
    first, *others = sides
    rows = [
        {
            "catalogue": name,
            "table MiB": spaces[name],
            "step s": Spread.of(seconds).cell(),
            f"over {first}": timing.ratio(seconds, times[first]).median,
        }
        for name, seconds in times.items()
    ]
    ratios = {f"{name} over {first}": timing.ratio(times[name], times[first]) for name in others}
    return Result("catalogue", f"step by size of the catalogue: {describe(config)}", rows, ratios, times)


def _stepper(trainer: Trainer, batches):
    turn = itertools.cycle(batches)
    return lambda: trainer(next(turn))
