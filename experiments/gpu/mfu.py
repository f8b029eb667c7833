"""Model FLOPs utilisation of a training step at a size that fills a card, by attention backend; and where its time goes.

The step is the whole one: look-up, encoding, a retrieval reader an event, the loss, gradients, and the optimiser of both
the blocks and the tables. FLOPs are those of `planning.flops`, which counts what is asked and no padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import typing

import jax
import jax.numpy as jnp
import kernels
import numpy as np
from batches import AHEAD, CHUNK, Batches
from made_up import open_log, parameters
from setting import Setting, Skip

from synergen_jax import config as configs
from synergen_jax.batch import TrainBatch
from synergen_jax.bench import attention as attention_bench
from synergen_jax.bench import setting as bench_setting
from synergen_jax.bench import timing
from synergen_jax.bench.setting import Trainer
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.model import attention, synergen
from synergen_jax.model.synergen import SynerGen
from synergen_jax.planning import flops
from synergen_jax.planning.synthetic import SyntheticLog


def _tree(data: dict[str, int], model: dict[str, int]) -> dict[str, dict[str, typing.Any]]:
    """A config of a step: one micro-batch on one device, retrieval from drawn negatives."""
    model = model | {"dropout": 0.0, "dtype": "bfloat16"}
    return {"data": data | {"workers": 0}, "model": model, "loss": {"in_batch": 0}, "mesh": {"data": 1}}


BIG = _tree(
    {"max_history": 4096, "negatives": 4096, "rank_events": 16, "rank_candidates": 16},
    {"width": 1024, "depth": 8, "heads": 8},
)
SMALL = _tree(
    {"max_history": 32, "negatives": 32, "rank_events": 2, "rank_candidates": 3},
    {"width": 32, "depth": 1, "heads": 2},
)
MOST = 64  # rows of a batch
ROOM = 0.85  # of the memory that a step may take
STATE, LAYER_ROW = 4 * 2**30, 0.7 * 2**30  # bytes of parameters, optimiser and gradients; of each row a layer
FULL = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "OUT_OF_MEMORY")
Found = dict[str, typing.Any]


class ZipfLog(SyntheticLog):
    """Histories whose lengths follow Zipf's law, as those of recsys-examples: P(n) ~ n^-1.2, cut off at `most`."""

    def __init__(self, items: int, users: int, most: int, seed: int = 0):
        super().__init__(items, users, 1, seed=seed)
        drawn = np.random.default_rng(seed).zipf(1.2, users)
        self.lengths = (np.minimum(drawn, most) + 2).astype(np.int32)  # two are kept for validation and test


class Case(typing.NamedTuple):
    """What is measured."""

    backend: str  # `model.attention`
    jagged: str = ""  # "padded" or "packed" rows of histories whose lengths follow Zipf's law; full windows otherwise
    time_bias: bool = False


def config_of(setting: Setting, case: Case, users: int = 2) -> Config:
    """The config of a step.

    Raises:
      Skip: the backend cannot run here.
    """
    tree = setting.by_size(BIG, SMALL)
    data = tree["data"] | {"batch": users, "pack": case.jagged == "packed"}
    model = tree["model"] | {"attention": case.backend, "time_bias": case.time_bias}
    config = configs.from_dict(tree | {"data": data, "model": model})
    try:
        attention.check(config)
    except UserError as why:
        raise Skip(str(why)) from None
    return config


def log_of(setting: Setting, jagged: str = "") -> SyntheticLog:
    """Full windows, or jagged ones."""
    items, length = setting.by_size((100_000, 4096), (500, 32))
    return ZipfLog(items, 4 * MOST * 16, length) if jagged else SyntheticLog(items, 4 * MOST, length + 2)


def fitting(setting: Setting, case: Case, use: typing.Callable[[int], Found]) -> Found:
    """What `use` finds with as many rows a batch as fit, 2^n of them: an estimate, halved for as long as the memory is full.

    What was found to fit holds for the whole visit: most cases differ little, and to ask the compiler would cost minutes.
    """
    path = setting.scratch / "rows.json"
    known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    key = json.dumps(
        [jax.devices()[0].device_kind, *case._replace(backend=attention.choose(config_of(setting, case).model))]
    )
    rows = known.get(key) or _estimate(setting)
    while True:
        try:
            found = use(rows)
        except Exception as error:
            if rows == 1 or not any(word in str(error) for word in FULL):
                raise
            setting.say(f"{rows} rows do not fit: {type(error).__name__}")
        else:
            break
        rows //= 2
        path.write_text(json.dumps(known | {key: rows}))
    path.write_text(json.dumps(known | {key: rows}))
    return found


def _estimate(setting: Setting) -> int:
    """Rows by the memory of the device, from what a traced step keeps for its backward pass."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if setting.small or limit is None:
        return 2
    fit = int((ROOM * limit - STATE) / (BIG["model"]["depth"] * LAYER_ROW))
    return 1 << (min(max(fit, 1), MOST).bit_length() - 1)


# --- the step ---------------------------------------------------------------------------------------------------


def _made(setting: Setting, case: Case, users: int) -> tuple[Trainer, list[TrainBatch], SyntheticLog]:
    """A trainer and four host batches."""
    config, log = config_of(setting, case, users), log_of(setting, case.jagged)
    catalogue, feed = open_log(config, log)
    return Trainer(config, log.spec, catalogue), list(itertools.islice(feed(0), 4)), log


def step(setting: Setting, feed: bool = False, **case: typing.Any) -> Found:
    """Seconds, TFLOP/s and MFU of the whole step.

    Args:
      feed: batches come from worker processes as in training, and are not on the device before.
      case: a `Case`.
    """
    which = Case(**case)

    def timed(rows: int) -> Found:
        trainer, host, log = _made(setting, which, rows)
        placed = [trainer.place(batch) for batch in host]
        compile_seconds = trainer.compile(placed[0])
        turn = itertools.cycle(placed)
        times = timing.alternate({"step": lambda: trainer(next(turn))}, setting.rounds)["step"]
        found = _rates(trainer.config, log, host, timing.Spread.of(times))
        found |= {
            "backend": attention.choose(trainer.config.model),
            "seconds": times,
            "compile_seconds": compile_seconds,
        }
        return found | (_fed(setting, trainer, log, timing.Spread.of(times).median) if feed else {})

    return fitting(setting, which, timed)


def _rates(config: Config, log: SyntheticLog, host: list[TrainBatch], seconds: timing.Spread) -> dict[str, typing.Any]:
    """What a step of these batches comes to."""
    work = [flops.batch_work(batch) for batch in host]
    count = float(np.mean([flops.train_step(config, log.spec, one) for one in work]))
    events = float(np.mean([one.events for one in work]))
    parts = flops.parts(config, log.spec, work[0])
    whole = sum(cost.step for cost in parts.values())
    return {
        "batch": config.data.batch,
        "length": config.data.max_history,
        "padding": 1 - events / host[0].events.action.size,
        "events_per_second": events / seconds.median,
        "tflop": count / 1e12,
        "tflops": count / 1e12 / seconds.median,
        "mfu": flops.mfu(count, seconds.median, jax.devices()[0].device_kind, config.model.dtype),
        "share": {name: cost.step / whole for name, cost in parts.items()},
    }


def _fed(setting: Setting, trainer: Trainer, log: SyntheticLog, alone: float) -> dict[str, typing.Any]:
    """Seconds a step when batches come from worker processes, over those of the step alone, once what was made ahead is used."""
    workers = setting.by_size(2, 0)  # of them one makes batches faster than a card takes steps of this size
    count = setting.by_size(AHEAD * CHUNK * 2 + 8, 2)
    with Batches(log, workers, 0) as batches:
        feed = batches.train(trainer.config, keep=False)
        for _ in range(setting.by_size(2 * CHUNK, 1)):  # what the workers made before anybody waited is soon used up
            jax.block_until_ready(trainer(trainer.place(next(feed))))
        start = time.perf_counter()
        jax.block_until_ready([trainer(trainer.place(next(feed))) for _ in range(count)])
        seconds = (time.perf_counter() - start) / count
        feed.close()
    return {"fed_seconds": seconds, "fed_over_alone": seconds / alone, "workers": workers}


def profile(setting: Setting, backend: str) -> dict[str, typing.Any]:
    """The kernels that take most of a step's time."""
    case, folder = Case(backend), setting.scratch / "profile"

    def traced(rows: int) -> Found:
        trainer, host, _ = _made(setting, case, rows)
        batch = trainer.place(host[0])
        trainer.compile(batch)
        timing.alternate({"step": lambda: trainer(batch)}, 1, folder)
        return {"backend": attention.choose(trainer.config.model), "batch": rows} | kernels.top(folder)

    return fitting(setting, case, traced)


# --- parts of it ------------------------------------------------------------------------------------------------


def blocks(setting: Setting, backend: str) -> dict[str, typing.Any]:
    """The blocks alone, forward and backward, context and readers: neither tables, nor loss, nor optimiser."""
    users = setting.by_size(8, 2)
    trainer, host, log = _made(setting, Case(backend), users)
    config = trainer.config
    batch, model = host[0], trainer.model
    params = parameters(model)["model"]
    shape = (users, config.data.max_history, config.model.width)
    context, asking = (jax.random.normal(jax.random.key(n), shape, config.model.dtype) for n in range(2))
    none = jnp.zeros_like(context)

    @jax.jit
    @jax.grad
    def gradient(params, context, asking):
        pure = lambda method: synergen.pure(model, params, method)
        cache = pure(SynerGen.encode)(batch.events, context, none)
        hidden = pure(SynerGen.read)(cache, batch.retrieval, asking, none, per_event=1)
        return jnp.mean(hidden.astype(jnp.float32) ** 2)

    times = timing.alternate({"blocks": lambda: gradient(params, context, asking)}, setting.rounds)["blocks"]
    work = dataclasses.replace(flops.batch_work(batch), candidates=0, candidate_pairs=0, requests=0, list_pairs=0)
    parts = flops.parts(config, log.spec, work)
    count = sum(parts[name].step for name in ("attention projections", "attention", "feed-forward"))
    seconds = timing.Spread.of(times).median
    rate = flops.mfu(count, seconds, jax.devices()[0].device_kind, config.model.dtype)
    found = {"backend": attention.choose(config.model), "batch": users, "seconds": times}
    return found | {"tflops": count / 1e12 / seconds, "mfu": rate}


def attention_alone(setting: Setting, width: int, heads: int) -> dict[str, typing.Any]:
    """All backends that can run here side by side, on context and readers: `synergen bench attention` at L 4096."""
    size = setting.by_size(
        (f"--model.width={width}", f"--model.heads={heads}", "--data.max_history=4096", "--data.batch=4"), ()
    )
    bench = bench_setting.Setting(
        open_log, (*size, "--model.dtype=bfloat16"), small=setting.small, rounds=setting.rounds, say=setting.say
    )
    return attention_bench.run(bench).as_json()
