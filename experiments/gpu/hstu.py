"""Our HSTU block at the size of NVIDIA's recsys-examples, its FLOPs counted by that project's formula.

Theirs: 8 layers, D 1024, 4 heads of 256, bfloat16, 32 sequences, of each item a token for what it is and one for what was
done with it, three contextual tokens; lengths in items by Zipf's law with exponent 1.2, at most 4,096. Reported on 16 H100s:
31.4% MFU on average, 34.2% at best, 34.5% where all sequences have 4,099 tokens; the step there has tables, a small head and
an optimiser beside the blocks, which take nine tenths of it. Ours here are the blocks alone, on one device.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
import numpy as np
from made_up import parameters
from setting import Setting

from data_pipelines.feed import packing
from synergen_jax import config as configs
from synergen_jax.batch import Events, LogSpec
from synergen_jax.bench import timing
from synergen_jax.model import synergen
from synergen_jax.model.synergen import SynerGen
from synergen_jax.planning import flops
from synergen_jax.training import train_step

WIDTH, HEADS, DEPTH = 1024, 4, 8
CONTEXTUAL, MOST, EXPONENT = 3, 4096, 1.2


def block_flops(lengths: np.ndarray, width: int, depth: int, contextual: int = 0) -> float:
    """FLOPs of forward and backward pass over sequences of so many tokens, by recsys-examples' formula.

    Attention counts 3.5 times its forward pass, half of the square but for contextual tokens, which see and are seen by all;
    products count 3 times, the gate 2 times. Neither look-ups, norms, head, loss and optimiser are counted, nor padding.
    Source: `examples/commons/utils/perf.py` there.
    """
    s = np.asarray(lengths, float)
    attention = 4 * width * s * s - 2 * width * (s - contextual) ** 2
    products = 2 * s * width * 4 * width + 2 * s * width * width
    gate = s * width
    return float(depth * np.sum(3.5 * attention + 3 * products + 2 * gate + s * width))


def zipf_lengths(sequences: int, most: int = MOST, seed: int = 0) -> np.ndarray:
    """Tokens of sequences, (sequences,): two an item and the contextual ones."""
    return 2 * np.minimum(np.random.default_rng(seed).zipf(EXPONENT, sequences), most) + CONTEXTUAL


def packed(lengths: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences into rows, as training packs windows: where each place's segment begins, and which hold a token.

    Returns:
      first (rows, row) int32, real (rows, row) bool.
    """
    plan = packing.make_plan(lengths, np.zeros_like(lengths), row, 0)  # nothing is ranked
    first, real = np.zeros((plan.rows, row), np.int32), np.zeros((plan.rows, row), bool)
    for number in range(plan.rows):
        start = 0
        for length in lengths[plan.windows((0,), number)].tolist():
            first[number, start : start + length], real[number, start : start + length] = start, True
            start += length
    return first, real


def jagged(setting: Setting, rows: str) -> dict[str, typing.Any]:
    """Seconds and MFU of the blocks, forward and backward.

    Args:
      rows: "full", sequences of 4,096 tokens; "packed" and "padded", Zipf's lengths, several in a row or one a row.
    """
    width, depth, most, count = setting.by_size((WIDTH, DEPTH, MOST, 32), (32, 1, 30, 4))
    if rows == "full":
        lengths = np.full(setting.by_size(8, 2), most)
        first, real = None, np.ones((len(lengths), most), bool)
    else:
        lengths = zipf_lengths(count, most)
        size = 2 * most + CONTEXTUAL + 5 + most % 2  # 8,200, a multiple of 8
        whole = packed(lengths, size)
        one = np.arange(size) < lengths[:, None]
        first, real = whole if rows == "packed" else (None, one)
    seconds = _seconds(setting, width, depth, first, real)
    spread = timing.Spread.of(seconds).median
    kind = jax.devices()[0].device_kind
    work = block_flops(lengths, width, depth)
    slots = block_flops(np.full(len(real), real.shape[1]), width, depth)
    rate = lambda count: flops.mfu(count, spread, kind, "bfloat16")
    return {
        "rows": rows,
        "batch": list(real.shape),
        "sequences": len(lengths),
        "mean_length": float(np.mean(lengths)),
        "padding": float(1 - np.mean(real)),
        "seconds": seconds,
        "tflop": work / 1e12,
        "tflops": work / 1e12 / spread,
        "mfu": rate(work),
        "mfu_with_padding": rate(slots),
    }


def _seconds(setting: Setting, width: int, depth: int, first: np.ndarray | None, real: np.ndarray) -> list[float]:
    tree = {"width": width, "depth": depth, "heads": HEADS, "block": "hstu", "dropout": 0.0, "dtype": "bfloat16"}
    config = configs.from_dict({"model": tree | {"attention": "xla", "remat": True}})
    model = train_step.make_model(config, LogSpec(2, 2, 1, ("engage",)))
    params = parameters(model)["model"]
    number = real.astype(np.int32)
    time = np.cumsum(number, axis=1).astype(np.int32)
    events = Events(number, number, 0 * number, time, first)
    context = jax.random.normal(jax.random.key(0), (*real.shape, width), jnp.bfloat16)
    none = jnp.zeros_like(context)

    @jax.jit
    @jax.grad
    def gradient(params, context):
        cache = synergen.pure(model, params, _last)(events, context, none)
        return jnp.mean(cache.astype(jnp.float32) ** 2)

    return timing.alternate({"blocks": lambda: gradient(params, context)}, setting.rounds)["blocks"]


def _last(model: SynerGen, events: Events, items, queries):
    """Hidden states (B, L, D) of the context after the last block."""
    order = jnp.broadcast_to(jnp.arange(events.time.shape[1]), events.time.shape)
    order = synergen.within(order, events.first)
    overs = [synergen.Causal(events.first, events.time)] * model.config.depth
    return model.run(model.context_tokens(events, items, queries), model.angles(events.time, order), overs, True)[0]
