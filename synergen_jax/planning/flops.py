"""Analytic FLOPs of a training step, and model FLOPs utilisation (MFU).

Counted is what the model asks for, whatever a backend does: matrix products alone, a multiply-add as 2 FLOPs; causal
attention over the pairs that may see each other, so half of the square; a reader over its `visible` keys and itself. The
backward pass costs twice the forward one, or as much where one of the two factors is frozen. Recomputation
(`model.remat`, the tiles of a loss) is not counted: MFU is the share of the peak that does useful work (Chowdhery
et al. 2022, PaLM, appendix B).
"""

from __future__ import annotations

import dataclasses
import re
import typing

import numpy as np

from synergen_jax.batch import LogSpec, TrainBatch
from synergen_jax.config import Config
from synergen_jax.model import date, embed
from synergen_jax.model.heads import feature_columns


@dataclasses.dataclass(frozen=True)
class Work:
    """How much one training step asks of the model, summed over its batch. A pair is a token and a key that it sees."""

    events: int  # context tokens
    event_pairs: int
    readers: int  # retrieval tokens
    reader_pairs: int
    requests: int  # ranked events
    candidates: int  # ranking tokens, without the hard ones
    candidate_pairs: int
    list_pairs: int  # pairs of one ranking token at each ranked event
    negatives: int  # uniform ones


def full_work(config: Config) -> Work:
    """The work of a batch of full windows whose every event is asked about, `visible = i` at event i."""
    data = config.data
    users, length = data.batch, data.max_history
    pairs = length * (length + 1) // 2  # of the context; a reader sees `visible` keys and itself: as many
    requests = users * data.rank_events
    seen = round(requests * (length + 1) / 2)
    return Work(
        events=users * length,
        event_pairs=users * pairs,
        readers=users * length,
        reader_pairs=users * pairs,
        requests=requests,
        candidates=requests * data.rank_candidates,
        candidate_pairs=seen * data.rank_candidates,
        list_pairs=seen,
        negatives=data.negatives,
    )


def batch_work(batch: TrainBatch) -> Work:
    """The work of a batch as it is: padding, readers without a target and empty candidates are no work."""
    real = np.asarray(batch.events.action) > 0
    asked = np.asarray(batch.target) > 0
    item = np.asarray(batch.ranking.item) > 0
    ranked = item.any(axis=-1)
    first = lambda part: 0 if part.first is None else np.asarray(part.first)
    # Keys that a token sees, itself among them; in a packed row from where its segment begins.
    context = np.arange(1, real.shape[1] + 1) - first(batch.events) + np.zeros(real.shape, np.int64)
    visible = lambda part: np.maximum(np.asarray(part.visible, np.int64) - first(part), 0) + 1
    lists = visible(batch.ranking)
    return Work(
        events=int(real.sum()),
        event_pairs=int(context[real].sum()),
        readers=int(asked.sum()),
        reader_pairs=int(visible(batch.retrieval)[asked].sum()),
        requests=int(ranked.sum()),
        candidates=int(item.sum()),
        candidate_pairs=int((lists * item.sum(axis=-1)).sum()),
        list_pairs=int(lists[ranked].sum()),
        negatives=int(np.asarray(batch.negatives).size),
    )


class Cost(typing.NamedTuple):
    """Forward FLOPs of a part, and how many times as much forward and backward take together."""

    forward: float
    times: int = 3

    @property
    def step(self) -> float:
        """FLOPs of forward and backward pass."""
        return self.forward * self.times


def parts(config: Config, spec: LogSpec, work: Work) -> dict[str, Cost]:
    """Cost of each part of a training step that does `work`."""
    m, loss = config.model, config.loss
    ranking = loss.ranks and work.candidates > 0
    requests, candidates, candidate_pairs = (
        (work.requests, work.candidates, work.candidate_pairs) if ranking else (0, 0, 0)
    )
    if loss.hard_candidates:
        candidates += requests * loss.hard_candidates
        candidate_pairs += work.list_pairs * loss.hard_candidates * ranking
    # Nothing reads the last layer's context tokens: of them the step needs keys and values alone.
    tokens = work.events * (m.depth - 1) + (work.readers + candidates) * m.depth
    pairs = work.event_pairs * (m.depth - 1) + (work.reader_pairs + candidate_pairs) * m.depth
    width = m.width
    sampled = work.negatives + loss.in_batch
    pool = spec.items if loss.full_softmax else sampled
    # Ids whose vectors are made of rows; those of the pool too, where it is the whole catalogue.
    items = work.events + work.readers + candidates + sampled + (spec.items if loss.full_softmax else 0)
    queries = work.events + work.readers + candidates
    item_width, query_width = (
        sum(wide for name, wide in matrices if m.uses(name)) for matrices in (spec.item_matrices, spec.query_matrices)
    )
    features = (len(spec.candidate_features) + 1) if spec.candidate_features else 0
    columns = feature_columns(len(spec.candidate_features)) if features else 0
    labels, asked = len(spec.labels), work.readers + candidates
    vector = embed.vector_width(m, spec)  # of keys, too
    gated = m.block == "hstu"  # a gate beside query, key, value and output, and no feed-forward layer
    return {
        "attention projections": Cost(2 * width * width * ((4 + gated) * tokens + 2 * work.events)),
        "attention": Cost(2 * 2 * width * pairs),
        "feed-forward": Cost(0 if gated else 2 * 3 * width * m.mlp_hidden * tokens),
        # The rows of a semantic matrix are frozen: the backward pass has the projection's gradient alone.
        "semantic projections": Cost(2 * vector * (item_width * items + query_width * queries), times=2),
        "heads": Cost(2 * (width * width * work.readers + (width * width + width * labels) * candidates)),
        "dates": Cost(2 * width * (2 * len(date.PERIODS) + width) * asked * m.request_date),
        "candidate features": Cost(2 * (features * width + columns * (width + labels)) * candidates, times=2),
        "candidate feature vectors": Cost(2 * width * (width + labels) * candidates if features else 0),
        "retrieval loss": Cost(2 * vector * work.readers * (pool + 1) if loss.retrieval_weight else 0),
        "candidate scores": Cost(2 * vector * candidates),
        "hard candidates": Cost(2 * vector * requests * pool if loss.hard_candidates else 0, times=1),
    }


def train_step(config: Config, spec: LogSpec, work: Work | None = None) -> float:
    """FLOPs of a training step, forward and backward; by default of one with full windows."""
    return sum(cost.step for cost in parts(config, spec, work or full_work(config)).values())


# Peak dense TFLOP/s of one device by what its `device_kind` holds, from the makers' data sheets: (bfloat16, float32).
# A product of float32 matrices runs as TF32 on NVIDIA from Ampere on, and in bfloat16 passes on TPU, jax's default precision.
PEAKS: tuple[tuple[str, float | None, float], ...] = (
    (r"H100 PCIe", 756.0, 378.0),
    (r"H100 NVL", 835.0, 417.5),
    (r"H100|H200|GH200", 989.4, 494.7),
    (r"A100", 312.0, 156.0),
    (r"L40S", 362.0, 183.0),
    (r"L4\b", 121.0, 60.0),
    (r"V100", None, 15.7),  # no bfloat16
    (r"TPU v6 ?(lite|e)", 918.0, 918.0),
    (r"TPU v5 ?(lite|e)", 197.0, 197.0),
    (r"TPU v5", 459.0, 459.0),
    (r"TPU v4", 275.0, 275.0),
)


def peak(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device for a dtype of computation ("bfloat16" or "float32"); None where it is not known."""
    for pattern, half, single in PEAKS:
        if re.search(pattern, device_kind):
            found = {"bfloat16": half, "float32": single}[dtype]
            return None if found is None else found * 1e12
    return None


def mfu(flops: float, seconds: float, device_kind: str, dtype: str, devices: int = 1) -> float | None:
    """Share of the devices' peak that `flops` in `seconds` make use of; None where the peak is not known, as on a CPU."""
    most = peak(device_kind, dtype)
    return None if most is None else flops / seconds / (most * devices)
