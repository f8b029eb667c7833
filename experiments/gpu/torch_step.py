"""The retrieval model and its training step in PyTorch: what a sceptic puts beside `synergen bench step` on a GPU.

From the same weights and the same batch it computes the same loss, gradients and update as `synergen_jax.training`, for
models of item ids alone that are trained on retrieval alone; `check` refuses every other config. Axis letters are those
of `synergen_jax/batch.py`.

Parameters are float32. Computation is in `model.dtype`, by casting weights where they are used, not by autocast: the
compiler sees each cast as one more operation to fuse or share, and the residual stream is as narrow as that of JAX.
Keys, values and queries are one matrix, gate and up another; all items of a step are one lookup; of the last layer's
context, keys and values alone are computed.

What differs from the JAX step:

- Scores of the loss, (B x L, N), exist as a whole, not tile by tile.
- In-batch negatives are drawn by torch's generator.
- Of AdamW, schedule, weight decay and clipping are the same, but for 1e-6 that torch adds to the norm it clips by.
  Tables are updated as a whole: those whose rows `optimiser.table` would move alone are refused.
- There is no ranking head. In JAX its parameters are there, without a gradient.
- On a GPU, float32 is multiplied in TF32 (`measure` sets it), as XLA does unasked.

Importing this module needs torch, which synergen-jax does not.
"""

from __future__ import annotations

import collections.abc
import functools
import math
import time
import typing

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, LogSpec, TrainBatch
from synergen_jax.config import Config, ModelConfig, OptimiserConfig
from synergen_jax.errors import UserError
from synergen_jax.model import rope
from synergen_jax.model.synergen import CONTEXT, RETRIEVAL
from synergen_jax.sharding import table
from synergen_jax.training.optimiser import table_kind

Batch = dict[str, torch.Tensor]
Attend = collections.abc.Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries (B, H, L, Dh), and keys and values, (B, H, L or 2 L, Dh) each, to what is found, (B, H, L, Dh)."""
Attention = collections.abc.Callable[[torch.Tensor], tuple[Attend, Attend]]
"""From `visible` (B, L) to the attention of context tokens, and of readers over keys [context; own]."""

ATTENTION = ("flex", "sdpa")
WARM = 3  # calls before the first that is timed: one compiles, and CUDA graphs, if asked for, record in those after it
DECAYS = ("projections", "out", "gate_up", "down", "retrieval_head")  # parameters that weight decay makes smaller
SAME = {  # settings that are computed here, and the one value at which they are
    "model.block": "transformer",
    "model.dropout": 0.0,
    "model.id_dropout": 0.0,
    "model.item_ids": True,
    "model.time_bias": False,
    "model.normalise": True,
    "model.remat": False,
    "data.pack": False,
    "loss.full_softmax": False,
    "loss.retrieval_weight": 1.0,
    "loss.recommendation_weight": 1.0,
    "optimiser.average": 0.0,
}


def check(config: Config, spec: LogSpec) -> None:
    """Refuses what is not computed here.

    Raises:
      UserError: names the setting, and what to set it to.
    """
    tree = configs.to_dict(config)
    for name, value in SAME.items():
        section, key = name.split(".")
        if tree[section][key] != value:
            raise UserError(f"{name} {tree[section][key]!r}: the step in torch has {value!r} alone")
    loss, data = config.loss, config.data
    if data.rank_events and loss.ranks:
        raise UserError("the step in torch does not rank: set data.rank_events to 0, or the weights of ranking losses")
    if spec.queries > 1:
        raise UserError("the step in torch has no queries, and the log has some")
    if any(config.model.uses(name) for name, _ in spec.item_matrices):
        raise UserError("the step in torch has no semantic matrices: set model.matrices to false")
    size = table.lines(spec.items) * table.COLUMNS * config.model.width
    if table_kind(config.optimiser, size) != "dense":
        raise UserError("the step in torch updates tables as a whole: set optimiser.table to dense")


# --- weights and batches ----------------------------------------------------------------------------------------


def weights(params: typing.Any) -> dict[str, np.ndarray]:
    """Parameters of `synergen.init`, unboxed, by the names and in the shapes of `Model`'s: linear maps as (out, in).

    It is linear: what it makes of gradients are the gradients of what it makes of parameters.
    """
    model = params["model"]["params"]
    flat = lambda kernel, inner: np.asarray(kernel).reshape(inner, -1).T  # heads are joined
    width = np.shape(model["kind"])[1]
    found = {
        "table": np.asarray(params["tables"]["item"]).reshape(-1, width),
        "action": model["action"],
        "kind": model["kind"],
        "final_norm": model["final_norm"]["scale"],
        "retrieval_head": flat(model["retrieval_head"]["kernel"], width),
    }
    depth = sum(name.startswith("block_") for name in model)
    for index in range(depth):
        block = model[f"block_{index}"]
        kernel = lambda name, block=block: block[name]["kernel"]
        found |= {
            f"blocks.{index}.attention_norm": block["attention_norm"]["scale"],
            f"blocks.{index}.mlp_norm": block["mlp_norm"]["scale"],
            f"blocks.{index}.projections": np.concatenate(
                [flat(kernel(name), width) for name in ("key", "value", "query")]
            ),
            f"blocks.{index}.out": flat(kernel("out"), width),
            f"blocks.{index}.gate_up": np.concatenate([flat(kernel(name), width) for name in ("gate", "up")]),
            f"blocks.{index}.down": np.asarray(kernel("down")).T,
        }
    return {name: np.array(array, np.float32, order="C") for name, array in found.items()}


def batch_of(batch: TrainBatch, device: torch.device | str) -> Batch:
    """A host batch on a device: item, action, time, asked, visible and target, (B, L) each, and negatives, (N,); int32.

    Raises:
      UserError: it is packed, or has queries.
    """
    events, readers = batch.events, batch.retrieval
    if events.first is not None:
        raise UserError("the step in torch takes rows that are not packed: set data.pack to false")
    if np.any(events.query) or np.any(readers.query):
        raise UserError("the step in torch has no queries, and the batch has some")
    arrays = {
        "item": events.item,
        "action": events.action,
        "time": events.time,
        "asked": readers.time,
        "visible": readers.visible,
        "target": batch.target,
        "negatives": batch.negatives,
    }
    return {name: torch.from_numpy(np.array(array, np.int32)).to(device) for name, array in arrays.items()}


# --- the model --------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    """As `synergen_jax.model.blocks.Transformer`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, hidden = config.width, config.mlp_hidden
        self.count = config.heads
        self.attention_norm, self.mlp_norm = _learned(width), _learned(width)
        self.projections = _learned(3 * width, width)  # keys, values, queries
        self.out = _learned(width, width)
        self.gate_up = _learned(2 * hidden, width)
        self.down = _learned(width, hidden)

    def heads(self, h: torch.Tensor, turn: tuple[torch.Tensor, ...], parts: int = 3) -> tuple[torch.Tensor, ...]:
        """Keys, values and queries of tokens (B, L, D), (B, H, L, Dh) each, or the first `parts` of them, rotated."""
        matrix = self.projections[: parts * h.shape[-1]].to(h.dtype)
        x = F.linear(normed(h, self.attention_norm), matrix).unflatten(-1, (parts, self.count, -1))
        k, v, *q = x.permute(2, 0, 3, 1, 4).unbind()
        return rotate(k, turn), v, *(rotate(x, turn) for x in q)

    def forward(self, h: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, D) after the block, of which attention has found (B, H, L, Dh)."""
        h = h + F.linear(found.transpose(1, 2).flatten(2), self.out.to(h.dtype))
        gate, up = F.linear(normed(h, self.mlp_norm), self.gate_up.to(h.dtype)).chunk(2, dim=-1)
        return h + F.linear(F.silu(gate) * up, self.down.to(h.dtype))


class Model(torch.nn.Module):
    """The decoder with its item table and the retrieval loss. Parameters have the names of `weights`, which fills them.

    Args:
      weights: of `weights`.
    """

    def __init__(self, config: Config, spec: LogSpec, catalogue: Catalogue, weights: dict[str, np.ndarray]):
        super().__init__()
        check(config, spec)
        c = self.config = config.model
        self.loss, self.dtype = config.loss, getattr(torch, c.dtype)
        self.table = _learned(table.lines(spec.items) * table.COLUMNS, c.width)
        self.action, self.kind = _learned(spec.actions, c.width), _learned(3, c.width)
        self.blocks = torch.nn.ModuleList(Block(c) for _ in range(c.depth))
        self.final_norm, self.retrieval_head = _learned(c.width), _learned(c.width, c.width)
        counts = np.asarray(catalogue.counts)
        self.met = max(int(np.count_nonzero(counts)), 1)
        share = np.maximum(counts, 1).astype(np.float32) / np.float32(max(counts.sum(dtype=np.int64), 1))
        self.register_buffer("known", torch.from_numpy(counts > 0), persistent=False)  # (V,): training meets it
        self.register_buffer("share", torch.from_numpy(share), persistent=False)  # (V,): of all training events
        for name, wave in zip(("waves", "speeds"), _phases(c)):
            self.register_buffer(name, torch.from_numpy(wave), persistent=False)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    def forward(self, batch: Batch, attention: Attention, place: torch.Tensor | None = None) -> torch.Tensor:
        """The retrieval loss of a batch, ().

        Args:
          attention: of `make_attention`.
          place: (in_batch,): positions in the batch whose targets join the negatives; None draws them.
        """
        negative, filled = self.negatives(batch, place)
        ids = [batch["item"], batch["target"], negative]
        every = self.items(torch.cat([x.flatten() for x in ids])).split([x.numel() for x in ids])
        events, target, among = (x.view(*i.shape, -1) for x, i in zip(every, ids))
        causal, prefix = attention(batch["visible"])
        wanted = self.read(batch, self.encode(batch, events, causal), prefix)
        asked = unit(wanted).flatten(0, 1), unit(target).flatten(0, 1), batch["target"].flatten()
        log_q = None
        if self.loss.log_q:
            uniform = batch["negatives"].numel() / self.met
            log_q = tuple(torch.log(filled * self.share[ids] + uniform) for ids in (asked[2], negative))
        return info_nce(asked, (unit(among), negative), log_q, self.loss.temperature)

    def negatives(self, batch: Batch, place: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `synergen_jax.training.objective.negatives`: ids (N + in_batch,), and the latter's expected count."""
        target, count = batch["target"], self.loss.in_batch
        if place is None:
            place = torch.randint(target.numel(), (count,), device=target.device)
        filled = count * (target > 0).float().mean().clamp(min=1 / target.numel())
        return torch.cat([batch["negatives"], target.flatten()[place]]), filled

    def items(self, ids: torch.Tensor) -> torch.Tensor:
        """Vectors (n, D) of ids (n,); zeros for those that training does not meet, 0 among them."""
        rows = F.embedding(ids, self.table)
        return torch.where(self.known[ids][:, None], rows, 0.0).to(self.dtype)

    def turn(self, time: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary encoding, (B, 1, L, Dh / 2) each, from times and places (B, L)."""
        timed = 2 * math.pi / self.waves.float() * torch.remainder(time[..., None], self.waves).float()
        angle = torch.cat([timed, order[..., None].float() * self.speeds], dim=-1)[:, None]
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def encode(self, batch: Batch, items: torch.Tensor, causal: Attend) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the context at each layer, (B, H, L, Dh) each, from its items' vectors, (B, L, D)."""
        h = items + self.kind[CONTEXT].to(self.dtype)
        if self.config.context_action:
            h = h + F.embedding(batch["action"], self.action).to(self.dtype)
        turn = self.turn(batch["time"], torch.arange(h.shape[1], device=h.device).expand(h.shape[:2]))
        cache, (*blocks, last) = [], self.blocks
        for block in blocks:
            k, v, q = block.heads(h, turn)
            cache.append((k, v))
            h = block(h, causal(q, k, v))
        return [*cache, last.heads(h, turn, 2)]

    def read(self, batch: Batch, cache: list[tuple[torch.Tensor, torch.Tensor]], prefix: Attend) -> torch.Tensor:
        """What each retrieval reader is after, (B, L, D), before it is made of unit length."""
        time, visible = batch["asked"], batch["visible"]
        if not self.config.request_time:
            last = batch["time"].gather(1, (visible - 1).clamp(min=0).long())
            time = torch.where(visible > 0, last, time)
        h, turn = self.kind[RETRIEVAL].to(self.dtype).expand(*visible.shape, -1), self.turn(time, visible)
        for block, (keys, values) in zip(self.blocks, cache):
            k, v, q = block.heads(h, turn)
            h = block(h, prefix(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)))
        return F.linear(normed(h, self.final_norm), self.retrieval_head.to(self.dtype))


def _learned(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape))


def _phases(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths of the planes of time in seconds, int32, and angles a place of those of order; see `rope`."""
    planes = 0 if config.rope == "none" else config.width // config.heads // 2
    timed = {"time": planes, "split": planes // 2}.get(config.rope, 0)
    ordered = planes - timed
    speeds = 10_000.0 ** (-np.arange(ordered, dtype=np.float32) / max(ordered, 1))
    return rope.wavelengths(timed, config.min_wavelength, config.max_wavelength), speeds.astype(np.float32)


def normed(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) over their root mean square, times a scale, in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], scale, 1e-6).to(x.dtype)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Vectors (..., D) of unit length, float32; zeros stay zeros."""
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def rotate(x: torch.Tensor, turn: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Turns plane j of x (B, H, L, Dh), spanned by its coordinates j and j + Dh / 2; no planes turn nothing."""
    cos, sin = turn
    if not cos.shape[-1]:
        return x
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


# --- attention --------------------------------------------------------------------------------------------------


def make_attention(name: str, length: int, device: torch.device | str) -> Attention:
    """Attention of batches of L events. A reader sees the first `visible` keys of the context, and its own:

        visible  context  own
           0      0 0 0   1 0 0
           1      1 0 0   0 1 0
           2      1 1 0   0 0 1

    Args:
      name: "flex": its block mask of the context is made once, that of readers anew for each batch, whose
        `visible` is another one. "sdpa": readers have a boolean mask, (B, 1, L, 2 L).
    """
    if name not in ATTENTION:
        raise UserError(f"attention {name!r}: there are {' and '.join(ATTENTION)}")
    if name == "sdpa":
        return _sdpa
    context = create_block_mask(lambda b, h, q, kv: kv <= q, None, None, length, length, device=device)

    def flex(visible: torch.Tensor) -> tuple[Attend, Attend]:
        seen = lambda b, h, q, kv: (kv < visible[b, q]) | (kv - length == q)
        readers = create_block_mask(seen, visible.shape[0], None, length, 2 * length, device=visible.device)
        return functools.partial(_flex, context), functools.partial(_flex, readers)

    return flex


def _flex(mask: BlockMask, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    # torch 2.14's compiled flex attention for CPUs takes a view into a larger array to begin where that
    # array does, and so computes something else.
    q, k, v = (x if x.is_cuda else x.contiguous() for x in (q, k, v))
    return flex_attention(q, k, v, block_mask=mask)


def _sdpa(visible: torch.Tensor) -> tuple[Attend, Attend]:
    users, length = visible.shape
    place = torch.arange(length, device=visible.device)
    own = torch.eye(length, dtype=torch.bool, device=visible.device).expand(users, -1, -1)
    mask = torch.cat([place < visible[..., None], own], dim=-1)[:, None]
    return (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    )


# --- loss and step ----------------------------------------------------------------------------------------------


def info_nce(
    asked: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    pool: tuple[torch.Tensor, torch.Tensor],
    log_q: tuple[torch.Tensor, ...] | None,
    temperature: float,
) -> torch.Tensor:
    """As `synergen_jax.training.losses.info_nce`, a mean over the queries that have a target.

    Args:
      asked: retrieval vectors and vectors of their targets, (P, D), and the targets' ids, (P,), 0 for none.
      pool: vectors of the negatives, (N, D), and their ids, 0 for an empty slot.
      log_q: logs of how often the targets (P,) and the negatives (N,) are expected among the negatives; None for no
        correction.
    """
    (query, positive, target), (negative, ids) = asked, pool
    hit, score = (query * positive).sum(-1) / temperature, (query / temperature) @ negative.T
    if log_q is not None:
        hit, score = hit - log_q[0], score - log_q[1]
    # Finite, so that a query to which no negative is left has gradients.
    score = score.masked_fill((ids == target[:, None]) | (ids == 0), torch.finfo(score.dtype).min)
    loss = torch.logaddexp(hit, score.logsumexp(-1)) - hit
    weight = (target > 0).float()
    return (weight * loss).sum() / weight.sum().clamp(min=1.0)


def rate(config: OptimiserConfig, steps: int, step: int) -> float:
    """As `synergen_jax.training.optimiser.schedule`: the learning rate of a step, from 0."""
    peak, steps = config.learning_rate, max(steps, config.warmup + 1)
    if step < config.warmup:
        return peak * step / config.warmup
    share = min((step - config.warmup) / (steps - config.warmup), 1.0)
    return peak * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * share)))


def make_step(
    model: Model, config: Config, compile: bool | str, attention: str
) -> collections.abc.Callable[[Batch], torch.Tensor]:
    """`step(batch)`: forward, backward and update of a model on its device; gives the loss of before the update, ().

    Args:
      compile: forward and backward pass as a whole, by `torch.compile`; a text is its mode, such as "reduce-overhead",
        which records CUDA graphs. The update is torch's fused AdamW where there is CUDA.
      attention: "flex", which has gradients on a GPU alone, or "sdpa".
    """
    over = make_attention(attention, config.data.max_history, model.table.device)
    o, named = config.optimiser, dict(model.named_parameters())
    decays = {name for name in named if name.rpartition(".")[2] in DECAYS}
    groups = [
        {"params": [named[name] for name in named if (name in decays) == fade], "weight_decay": o.weight_decay * fade}
        for fade in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(o.b1, o.b2), eps=1e-8, fused=model.table.is_cuda or None)
    loss_of: typing.Callable = model
    if compile:
        loss_of = torch.compile(
            model, fullgraph=True, dynamic=False, mode=compile if isinstance(compile, str) else None
        )
    done = 0

    def step(batch: Batch) -> torch.Tensor:
        nonlocal done
        for group in optimiser.param_groups:
            group["lr"] = rate(o, config.run.steps, done)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(batch, over)
        loss.backward()
        if o.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip)
        optimiser.step()
        done += 1
        return loss.detach().clone()  # a recorded graph writes the next loss into the same memory

    return step


def measure(
    config: Config,
    spec: LogSpec,
    catalogue: Catalogue,
    batch: TrainBatch,
    params: typing.Any,
    attention: str,
    rounds: int,
    compile: bool | str,
) -> dict[str, typing.Any]:
    """Times training steps on one batch, on the GPU if torch sees one.

    Args:
      params: of `synergen.init`, unboxed.
      attention, compile: as `make_step`.

    Returns:
      {"seconds": of each round, "compile_seconds": of the `WARM` steps before them, "loss": of the first step, "torch":
      version, "attention", "compiled", "device": its name, "peak_memory_bytes": in the rounds, None without CUDA}. The
      loss is that of the JAX step but for rounding, and for in-batch negatives, which each draws for itself.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        torch.set_float32_matmul_precision("high")
    model = Model(config, spec, catalogue, weights(jax.device_get(params))).to(device)
    step, placed = make_step(model, config, compile, attention), batch_of(batch, device)

    def timed(count: int) -> tuple[float, torch.Tensor]:
        start = time.perf_counter()
        losses = [step(placed) for _ in range(count)]
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start, losses[0]

    compile_seconds, loss = timed(WARM)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    return {
        "seconds": [timed(1)[0] for _ in range(rounds)],
        "compile_seconds": compile_seconds,
        "loss": float(loss),
        "torch": torch.__version__,
        "attention": attention,
        "compiled": bool(compile),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }
