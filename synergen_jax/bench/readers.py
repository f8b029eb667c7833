"""Encoding once and reading, against the interleaved Transformer under its mask: whole training steps.

Each event has five readers, one retrieval token and four candidates to be ranked. Both sides compute the same losses
of the same batch with the same weights. The masked side gets all of it in one pass over (1 + 5) L tokens; the
factorised one is the step that `synergen train` takes.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synergen_jax import config as configs
from synergen_jax.batch import Candidates, Catalogue, Readers, TrainBatch
from synergen_jax.bench import timing
from synergen_jax.bench.setting import Result, Setting, Trainer, describe
from synergen_jax.bench.timing import Spread
from synergen_jax.config import Config
from synergen_jax.model import oracle, synergen
from synergen_jax.planning.synthetic import SyntheticLog
from synergen_jax.training import batch_loss, losses, objective
from synergen_jax.training.optimiser import make_optimiser

LENGTHS = {200: 8, 1000: 1}  # events: batch; the logits of 6,000 masked tokens are as many as a CPU likes to hold
CANDIDATES = 4
SMALL = {"data": {"batch": 2, "negatives": 8}, "model": {"width": 16, "depth": 1}}
# Whatever settings are asked for: what both sides compute the same.
SAME = (
    "--model.dropout=0",
    "--model.id_dropout=0",
    "--loss.in_batch=0",
    "--loss.hard_candidates=0",
    "--loss.rank_after=0",
    "--loss.full_softmax=false",
    "--optimiser.accumulate=1",
    "--optimiser.table=dense",
)


def run(setting: Setting) -> Result:
    """Seconds of both kinds of step at each length, and the ratio."""
    sizes = setting.sizes or ((8, 16) if setting.small else tuple(LENGTHS))
    rows, ratios, times = [], {}, {}
    own = {length: configs.override(setting.config(config(length), SMALL), SAME) for length in sizes}
    for length in sizes:
        sides = make_sides(setting, own[length])
        trace = setting.trace and setting.trace / str(length)
        found = timing.alternate(sides, setting.rounds, trace)
        ratios[f"masked over factorised, {length} events"] = timing.ratio(found["masked"], found["factorised"])
        rows += [
            {"step": name, "events": length, "tokens": length * (CANDIDATES + 2), "s": Spread.of(seconds).cell()}
            for name, seconds in found.items()
        ]
        times |= {f"{name}, {length} events": seconds for name, seconds in found.items()}
    title = f"factorised against masked, 5 readers an event: {describe(own[sizes[-1]])}"
    return Result("readers", title, rows, ratios, times)


def config(length: int) -> dict[str, dict[str, int]]:
    """The config of windows of `length` events."""
    return {
        "data": {
            "max_history": length,
            "batch": LENGTHS.get(length, 2),
            "negatives": 256,
            "rank_events": length,
            "rank_candidates": CANDIDATES,
        },
        "model": {"width": 64, "depth": 2, "heads": 2},
    }


def make_sides(setting: Setting, config: Config):
    """Both steps on one batch, each from the same fresh state; a call is a step and gives its metrics."""
    log = SyntheticLog(3_706, 4 * config.data.batch, config.data.max_history + 2)
    catalogue, feed = setting.open(config, log)
    batch = _every_event_ranked(next(itertools.islice(feed(0), 1)))
    factorised, masked = Trainer(config, log.spec, catalogue), Trainer(config, log.spec, catalogue)
    placed = factorised.place(batch)
    optimiser = make_optimiser(config.optimiser, config.run.steps)
    step = _masked_step(config, masked.model, optimiser)
    state = [masked.state.params, optimiser.init(masked.state.params)]
    catalogue = jax.device_put(catalogue)

    def run_masked():
        *state[:], metrics = step(*state, placed, catalogue)
        return metrics

    return {"factorised": lambda: factorised(placed), "masked": run_masked}


def _every_event_ranked(batch: TrainBatch) -> TrainBatch:
    """The batch with a list at every event that has a target, in the order of events: its target and sampled items."""
    rng = np.random.default_rng(0)
    item = rng.choice(batch.negatives, (*batch.target.shape, CANDIDATES)).astype(np.int32)
    item[..., 0] = batch.target
    item[batch.target == 0] = 0
    label = np.full((*item.shape, batch.ranking.label.shape[-1]), -1, np.int8)
    label[..., 0] = np.where(item > 0, 0, -1)
    label[..., 0, 0] = np.where(batch.target > 0, 1, -1)
    asked = batch.retrieval
    event = np.broadcast_to(np.arange(batch.target.shape[1], dtype=np.int32), batch.target.shape)
    ranking = Candidates(item, label, asked.query, asked.time, asked.visible, event=event, per_event=True)
    return dataclasses.replace(batch, ranking=ranking)


def _masked_step(config: Config, model: synergen.SynerGen, optimiser: optax.GradientTransformation):
    """A training step of the interleaved Transformer: `step(params, opt_state, batch, catalogue)`."""

    def step(params, opt_state, batch: TrainBatch, catalogue: Catalogue):
        total = objective.weights(batch, config.loss)
        value, grads = jax.value_and_grad(_masked_loss, argnums=1)(model, params, catalogue, batch, config, total)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": value, "norm/gradient": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=(0, 1))


def _masked_loss(model, params, catalogue: Catalogue, batch: TrainBatch, config: Config, total):
    """What `objective.value_and_grad` computes, from one pass over context and all readers."""
    apply = lambda *args, method: model.apply(params["model"], *args, method=method)
    lists, tokens = batch.ranking, batch.ranking.readers()
    join = lambda a, b: jnp.concatenate([a, b], axis=1)
    asked = batch.retrieval
    readers = Readers(
        *(join(getattr(asked, name), getattr(tokens, name)) for name in ("item", "query", "time", "visible"))
    )
    context = synergen.token_vectors(model, params, catalogue, batch.events)
    items, queries = synergen.token_vectors(model, params, catalogue, readers)
    _, hidden = apply(batch.events, *context, readers, items, queries, method=oracle.forward)
    count = asked.item.shape[1]
    wanted = apply(hidden[:, :count], queries[:, :count], method="retrieve")
    item = lambda ids: apply(synergen.item_vectors(model, params, catalogue, ids), method="keys")
    target = batch.target.reshape(-1)
    counts = catalogue.counts
    drawn = batch.negatives.size
    log_q = (
        losses.log_expected_count(counts, jnp.sum(counts), jnp.sum(counts > 0), 0, drawn) if config.loss.log_q else None
    )
    parts = {
        "retrieval": losses.info_nce(
            wanted.reshape(target.size, -1),
            item(target),
            target,
            item(batch.negatives),
            batch.negatives,
            jnp.asarray(target > 0, jnp.float32),
            None if log_q is None else (log_q[target], log_q[batch.negatives]),
            config.loss.temperature,
        )
    }
    score = jnp.einsum("bed,bekd->bek", wanted, item(lists.item))
    logits = apply(hidden[:, asked.item.shape[1] :], score.reshape(tokens.item.shape), method="rank")
    logits = logits.reshape(lists.label.shape)
    weight = batch_loss.list_weight(lists, config.loss)
    parts["pointwise"] = losses.pointwise(logits, lists.label, weight)
    parts["pairwise"] = losses.pairwise(logits, lists.label, weight)
    weigh = {name: getattr(config.loss, f"{name}_weight") for name in parts}
    return sum(weigh[name] * part / total[name] for name, part in parts.items())
