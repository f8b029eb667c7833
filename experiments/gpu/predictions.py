"""What was expected before any visit, from reading alone, and whether it came so. Nothing here was measured by us.

Each prediction is a number that a visit measures, with the range in which it was expected and the reason. README.md tells
what was read. A range is not mended after a visit: what was wrong stays, and the report says so.
"""

from __future__ import annotations

import statistics
import typing

Results = typing.Mapping[tuple[str, str], dict[str, typing.Any]]
"""(stage, unit) -> what was found, of one device."""


class Prediction(typing.NamedTuple):
    """One expectation."""

    text: str
    low: float
    high: float
    why: str
    value: typing.Callable[[Results], float]  # raises KeyError where it is not measured


def _seconds(tokens: str, backend: str, unit: str = "attention") -> typing.Callable[[Results], float]:
    return lambda found: statistics.median(found["mfu", unit]["seconds"][f"{tokens}, {backend}"])


def _over(one: typing.Callable[[Results], float], other: typing.Callable[[Results], float]):
    return lambda found: one(found) / other(found)


def _of(stage: str, unit: str, *path: str) -> typing.Callable[[Results], float]:
    def value(found: Results) -> float:
        part = found[stage, unit]
        for name in path:
            part = part[name]
        if part is None:
            raise KeyError(path)
        return float(part)

    return value


def _median(stage: str, unit: str, *path: str) -> typing.Callable[[Results], float]:
    def value(found: Results) -> float:
        part: typing.Any = found[stage, unit]
        for name in path:
            part = part[name]
        return statistics.median(part)

    return value


def _rate(unit: str) -> typing.Callable[[Results], float]:
    """Events a second of a step: batches may differ in size."""
    return _of("mfu", unit, "events_per_second")


# At width 1,024 heads of 64 and of 128 features are asked for the same FLOPs: what a head's width costs is a ratio of times.
_PER_FLOP = lambda tokens, backend, narrow: _over(
    _seconds(tokens, backend, narrow), _seconds(tokens, backend, "attention")
)

PREDICTIONS: tuple[Prediction, ...] = (
    Prediction(
        "attention of the context, Dh 128, L 4096: Tokamax's time over cuDNN's",
        1.4,
        2.5,
        "published rates forward and backward: cuDNN 616 and 495 TFLOP/s on an H200, Tokamax's Triton kernel 379 and 267",
        _over(_seconds("context", "tokamax"), _seconds("context", "cudnn")),
    ),
    Prediction(
        "the same: XLA's time over cuDNN's",
        6.0,
        20.0,
        "XLA writes the logits to memory in float32, some five times a layer, where a fused kernel keeps them in registers",
        _over(_seconds("context", "xla"), _seconds("context", "cudnn")),
    ),
    Prediction(
        "attention of readers, Dh 128: Tokamax's time over XLA's",
        0.3,
        0.9,
        "its forward pass skips keys by range; its backward pass makes a dense mask of them, and does the whole square",
        _over(_seconds("readers", "tokamax"), _seconds("readers", "xla")),
    ),
    Prediction(
        "attention of the context by cuDNN: time at Dh 64 over that at Dh 128, for the same FLOPs",
        1.15,
        1.6,
        "published: 408 against 609 TFLOP/s forward; half as many products an exponential",
        _PER_FLOP("context", "cudnn", "attention, Dh 64"),
    ),
    Prediction(
        "share of the bfloat16 peak of a product with D 128, as in the ML-1M recipe",
        0.02,
        0.25,
        "128 is one tile deep: the product waits for memory",
        _of("device", "peak", "products", "width 128", "of_peak"),
    ),
    Prediction(
        "share of the peak of a square product of 8,192",
        0.65,
        0.85,
        "published: 700 to 800 TFLOP/s under the card's power limit",
        _of("device", "peak", "products", "square", "of_peak"),
    ),
    Prediction(
        "TFLOP/s of the feed-forward product with 2,728 features over that with 2,816, a multiple of 128",
        0.93,
        1.02,
        "22 tiles for 21.3 tiles' work",
        _over(
            _of("device", "peak", "products", "feed-forward, 8/3 D down to a multiple of 8", "tflops"),
            _of("device", "peak", "products", "feed-forward, a multiple of 128", "tflops"),
        ),
    ),
    Prediction(
        "MFU of the whole step, cuDNN for the context and XLA for the readers",
        0.20,
        0.35,
        "two thirds of the FLOPs are large products near 65% of the peak; the readers' attention by XLA takes as long as they",
        _of("mfu", "step, cudnn", "mfu"),
    ),
    Prediction(
        "MFU of the whole step by Tokamax",
        0.25,
        0.40,
        "the readers' forward pass is fused; their backward pass does twice the work; the context's kernel is slower than cuDNN's",
        _of("mfu", "step, tokamax", "mfu"),
    ),
    Prediction(
        "MFU of HSTU blocks, full rows, by recsys-examples' formula (theirs: 0.345, with the whole step)",
        0.05,
        0.18,
        "no fused kernel for pointwise weights is used here: XLA writes the logits to memory",
        _of("mfu", "HSTU, full rows", "mfu"),
    ),
    Prediction(
        "HSTU, Zipf lengths: packed rows over padded ones, seconds",
        0.15,
        0.45,
        "an average sequence fills a fifth of a row",
        _over(_median("mfu", "HSTU, packed rows", "seconds"), _median("mfu", "HSTU, padded rows", "seconds")),
    ),
    Prediction(
        "events a second of the step with a bias by elapsed time over those without",
        0.2,
        0.7,
        "no kernel takes it: the context, too, is left to XLA",
        _over(_rate("step, bias by time"), _rate("step, cudnn")),
    ),
    Prediction(
        "events a second without Triton's products over those with them",
        0.95,
        1.05,
        "cuBLAS and Triton compete in XLA's autotuner, and the shapes are plain",
        _over(_rate("step, no Triton GEMMs"), _rate("step, cudnn")),
    ),
    Prediction(
        "events a second of the large step without command buffers over those with them",
        0.97,
        1.01,
        "its kernels take longer than their launches",
        _over(_rate("step, no command buffers"), _rate("step, cudnn")),
    ),
    Prediction(
        "events a second with the latency-hiding scheduler over those without",
        0.98,
        1.02,
        "it hides collectives, and one card has none",
        _over(_rate("step, latency hiding"), _rate("step, cudnn")),
    ),
    Prediction(
        "seconds of the recipe's step without command buffers over those with them",
        1.1,
        2.5,
        "hundreds of kernels of some microseconds each: launches are what it waits for",
        _over(
            _median("sizes", "recipe's step, no command buffers", "seconds", "step"),
            _median("sizes", "recipe's step", "seconds", "step"),
        ),
    ),
    Prediction(
        "events a second of the large step with deterministic operations over those without",
        0.75,
        0.97,
        "cuDNN's backward pass by 13%, scatters by sorting, no autotuning of products",
        _over(_rate("step, deterministic"), _rate("step, cudnn")),
    ),
    Prediction(
        "two runs without the flag for determinism are the same to the bit (0: no)",
        0,
        0,
        "gradients of rows that a batch uses several times are added by atomic operations",
        lambda found: float(found["correctness", "resume"]["repeated"]["same to the bit"]),
    ),
    Prediction(
        "a resumed run with the flag is the same to the bit (1: yes)",
        1,
        1,
        "scatters, products and attention are all deterministic under it",
        lambda found: float(found["correctness", "resume, deterministic"]["resumed"]["same to the bit"]),
    ),
    Prediction(
        "a step at 10^7 items over one at 10^4",
        0.95,
        1.25,
        "the step follows its batch; caches miss more often",
        _of("sizes", "catalogue", "ratios", "10,000,000 items over 10,000 items", "median"),
    ),
    Prediction(
        "packed over padded rows, events a second",
        1.8,
        3.0,
        "1.9 on a CPU; 76% padding against 29%",
        _of("sizes", "packing", "ratios", "packed over padded, events a second", "median"),
    ),
    Prediction(
        "ranking 256 candidates with 3,968 of 4,096 events cached, one user: all over again over cached",
        2.0,
        5.0,
        "recsys-examples: 3 at one sequence, where launches count; 4,352 tokens against 384",
        _of("ranking", "1 users, bfloat16", "ratios", "all over again over cached", "median"),
    ),
    Prediction(
        "the same, eight users",
        5.0,
        11.0,
        "recsys-examples: 8 at eight sequences; 11 times as many tokens, 8 times the FLOPs",
        _of("ranking", "8 users, bfloat16", "ratios", "all over again over cached", "median"),
    ),
    Prediction(
        "the same model in PyTorch with flex attention over ours, seconds a step",
        0.6,
        1.3,
        "flex attention fuses the readers' mask, at 85% of FlashAttention-2; XLA fuses the rest as torch.compile does",
        _of("torch", "step, flex", "theirs_over_ours", "median"),
    ),
    Prediction(
        "in PyTorch, scaled dot-product attention under a mask over ours, seconds a step",
        1.0,
        3.0,
        "a mask as a tensor leaves FlashAttention out, and nothing is skipped",
        _of("torch", "step, sdpa", "theirs_over_ours", "median"),
    ),
    Prediction(
        "test NDCG@10 of the ML-1M recipe, mean of three seeds",
        0.2214,
        0.2274,
        "0.2246 ± 0.0010 on CPUs, with other batches and TF32 products",
        lambda found: statistics.mean(
            found["recipe", f"recipe, seed {seed}"]["metrics"]["test"]["ndcg@10"] for seed in (0, 1, 2)
        ),
    ),
    Prediction(
        "seconds of a recipe's run, training alone",
        15,
        90,
        "4,128 steps of 4 to 20 ms",
        lambda found: found["recipe", "recipe, seed 1"]["seconds"]["train"],
    ),
)
