"""From a training batch to the loss: looks items up once, encodes, reads, and adds the weighted losses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from synergen_jax import losses
from synergen_jax import model as models
from synergen_jax.batch import Candidates, Catalogue, TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.embed import IdentityDropout

Parts = dict[str, Array]
"""{"retrieval": ..., "pointwise": ..., "pairwise": ...}"""


def weights(batch: TrainBatch, config: LossConfig, step: Array | int = 0) -> Parts:
    """What each loss of this batch is a mean over: targets, known labels, and pairs; scalars, at least 1.

    Searches and recommendations count by their weights. What a ranking loss is a mean over is infinite, and so the loss
    zero, before step `config.rank_after`: a head that learns before the retrieval scores tell anything learns what is
    popular, and keeps it when they tell it, too.
    """
    label = batch.ranking.label
    lists = _task_weight(batch.ranking.query, config)
    counts = {
        "retrieval": jnp.sum((batch.target > 0) * _task_weight(batch.retrieval.query, config)),
        "pointwise": losses.known(label, lists),
        "pairwise": losses.pairs(label, lists),
    }
    if config.hard_candidates:
        ranked = (batch.ranking.item[:, :, 0] > 0) * lists
        chosen = jnp.sum(label[..., 0] == 1, axis=-1)
        counts["pointwise"] += config.hard_candidates * jnp.sum(ranked)
        counts["pairwise"] += config.hard_candidates * jnp.sum(ranked * chosen)
    early = jnp.where(jnp.asarray(step) < config.rank_after, jnp.inf, 1.0)
    least = {"retrieval": 1.0, "pointwise": early, "pairwise": early}
    return {name: jnp.maximum(count, least[name]) for name, count in counts.items()}


def _task_weight(query: Array, config: LossConfig) -> Array:
    return jnp.where(query > 0, config.search_weight, config.recommendation_weight).astype(jnp.float32)


def negatives(batch: TrainBatch, catalogue: Catalogue, config: LossConfig, key: Array) -> tuple[Array, Array | None]:
    """The ids that serve the whole batch as negatives, and the log of each item's expected count among them.

    The batch's shared uniform negatives are joined by `config.in_batch` of its own targets, drawn with replacement
    from all its positions; a drawn position without a target leaves an empty slot, id 0.

    Returns:
      ids (N + in_batch,), and log counts (V,) or None where `config.log_q` is off.
    """
    position = jax.random.randint(key, (config.in_batch,), 0, batch.target.size)
    ids = jnp.concatenate([batch.negatives, batch.target.reshape(-1)[position]])
    if not config.log_q:
        return ids, None
    filled = config.in_batch * jnp.mean(batch.target > 0).clip(1 / batch.target.size)  # log 0 would make 0 x inf
    return ids, losses.log_expected_count(catalogue.counts, filled, batch.negatives.shape[0])


def loss(
    model: models.SynerGen,
    params: models.Params,
    catalogue: Catalogue,
    batch: TrainBatch,
    config: LossConfig,
    total: Parts,
    negative: tuple[Array, Array | None],
    key: Array | None,
) -> tuple[Array, Parts]:
    """The share of the objective that `batch` contributes to a batch of weights `total`.

    Args:
      batch: the batch that `total` and `negative` were made from, or a micro-batch of it.
      total: `weights` of the whole batch; each loss is a sum divided by its weight.
      negative: `negatives` of the whole batch; not used by the full softmax.
      key: of dropout; None for none.

    Returns:
      The weighted objective, and its unweighted parts.
    """
    rngs = None if key is None else {"dropout": key}
    apply = lambda *args, **kw: model.apply(params["model"], *args, **kw, rngs=rngs)
    dropout = None
    if key is not None and model.config.id_dropout:
        dropout = IdentityDropout(model.config.id_dropout, jax.random.bits(jax.random.fold_in(key, 1)))
    events, readers, candidates = batch.events, batch.retrieval, batch.ranking
    ids = [events.item, batch.target, candidates.item, negative[0]]
    # One lookup for all: one gather forward, one scatter-add backward.
    item = lambda ids: models.item_vectors(model, params, catalogue, ids, dropout)
    flat = item(jnp.concatenate([i.reshape(-1) for i in ids]))
    ends = [sum(i.size for i in ids[: n + 1]) for n in range(len(ids) - 1)]
    event_items, targets, candidate_items, negative_items = (
        part.reshape(*i.shape, flat.shape[-1]) for part, i in zip(jnp.split(flat, ends), ids)
    )
    query = lambda ids: models.query_vectors(model, params, catalogue, ids, dropout)
    deterministic = key is None
    cache = apply(events, event_items, query(events.query), deterministic, method="encode")

    nothing = jnp.zeros((*readers.item.shape, flat.shape[-1]), flat.dtype)
    hidden = apply(cache, readers, nothing, query(readers.query), deterministic, 1, method="read")
    wanted = apply(hidden, method="retrieve")  # (B, L, D)
    every = jnp.arange(catalogue.counts.shape[0])
    allowed = catalogue.counts > 0  # items that training never meets are no negatives either
    keys = lambda x: apply(x, method="keys")
    pool_ids, pool = (every, keys(item(every))) if config.full_softmax else (negative[0], keys(negative_items))
    parts = {name: jnp.zeros(()) for name in total}
    if config.retrieval_weight:
        vectors = wanted.reshape(batch.target.size, -1)
        target = batch.target.reshape(-1)
        positive = keys(targets).reshape(vectors.shape)
        weight = (target > 0) * _task_weight(readers.query.reshape(-1), config)
        if config.full_softmax:
            parts["retrieval"] = losses.full_softmax(vectors, positive, pool, allowed, weight, config.temperature)
        else:
            log_q = None if negative[1] is None else (negative[1][target], negative[1][pool_ids])
            parts["retrieval"] = losses.info_nce(
                vectors, positive, target, pool, pool_ids, weight, log_q, config.temperature
            )
    if (config.pointwise_weight or config.pairwise_weight) and candidates.item.size:
        # What a ranked event is after, its retrieval reader has asked already.
        wanted = jnp.take_along_axis(wanted, candidates.event[..., None], axis=1)  # (B, E, D)
        if config.hard_candidates:
            scores = jnp.where(allowed[pool_ids], wanted @ pool.T, -jnp.inf)
            draw = None if key is None else jax.random.fold_in(key, 2)
            sampled = (candidates.item.shape[2] - 1) / jnp.maximum(jnp.sum(allowed), 1)  # uniform draws of an item
            candidates, least = _with_hard(
                candidates, scores, pool_ids, events.item, config.hard_candidates, draw, events.first
            )
            hard = item(candidates.item[:, :, candidate_items.shape[2] :])
            candidate_items = jnp.concatenate([candidate_items, hard], axis=2)
        score = jnp.einsum("bed,bekd->bek", wanted, keys(candidate_items))
        tokens = candidates.readers()
        candidate_items = candidate_items.reshape(*tokens.item.shape, -1)
        in_order = candidates.first is None and candidates.query.shape == batch.target.shape  # list e is of event e
        per_event = candidates.item.shape[2] if in_order else 0
        hidden = apply(cache, tokens, candidate_items, query(tokens.query), deterministic, per_event, method="read")
        logits = apply(hidden, score.reshape(tokens.item.shape), tokens.feature, method="rank")
        logits = logits.reshape(candidates.label.shape)
        if config.hard_candidates:
            pooled = 1.0 if config.full_softmax or negative[1] is None else jnp.exp(negative[1][candidates.item])
            least -= 1e-5 * (1 + jnp.abs(least))  # a score that is computed another way is off by rounding
            drawn = jnp.where(score >= least, config.hard_candidates / FIRST * pooled, 0.0)
            logits = logits.at[..., 0].add(-_log_oversampled(drawn, sampled))
        weight = _task_weight(candidates.query, config)
        parts["pointwise"] = losses.pointwise(logits, candidates.label, weight)
        parts["pairwise"] = losses.pairwise(logits, candidates.label, weight)
    parts = {name: part / total[name] for name, part in parts.items()}
    weight = {
        "retrieval": config.retrieval_weight,
        "pointwise": config.pointwise_weight,
        "pairwise": config.pairwise_weight,
    }
    return sum(weight[name] * part for name, part in parts.items()), parts


def _log_oversampled(drawn: Array, sampled: Array) -> Array:
    """What is taken from the logits of candidates, since the first ones of retrieval come up more often than others.

    The head learns log (p / q) of p, how likely an item is chosen, and q, how often it comes up as a candidate. Among
    uniformly sampled candidates that is the order of p. Hard ones alone make a high retrieval score a bad sign: the
    chosen item often lies behind all of them. With log q taken off before the loss, the logit is that of p over
    uniform sampling for every item, as the log-Q correction makes it for retrieval.

    Args:
      drawn: expected hard draws of each candidate in its list, 0 behind the first ones; sampled: of uniform ones.
    """
    return jnp.log1p(drawn / jnp.maximum(sampled, 1e-9))


FIRST = 100  # items, retrieved first, among which hard candidates are drawn: what ranking is given in serving


def _with_hard(
    candidates: Candidates,
    scores: Array,
    pool: Array,
    had: Array,
    count: int,
    key: Array | None,
    first: Array | None = None,
) -> tuple[Candidates, Array]:
    """Lists that are longer by `count` of the `FIRST` items that the model itself retrieves first at that moment.

    They are mined in the step itself, from the pool of the retrieval loss, so that they are never stale (Xiong et al.
    2021 refresh theirs from time to time), and drawn at random from as many as ranking will see. Left out are items of
    the user's window and those of the list. Their label is that of a sampled candidate: 0 for the first label, unknown for the others.

    Args:
      scores: of the pool at each ranked event, (B, E, P); -inf for items that must not come.
      pool: ids, (P,); had: the window's items, (B, L); first: where the segment of each begins, (B, L), in packed rows.
      key: of the draw; None takes the very first ones.

    Returns:
      The lists, and the least score of the items that were drawn from, (B, E, 1).
    """
    known = _known(candidates, had, first)
    taken = jax.vmap(jax.vmap(lambda mine: jnp.isin(pool, mine)))(known)  # (B, 1 or E, P)
    scores = jnp.where(taken, -jnp.inf, jax.lax.stop_gradient(scores))
    count = min(count, scores.shape[-1])
    best, place = jax.lax.top_k(scores, count if key is None else min(max(count, FIRST), scores.shape[-1]))
    least = best[..., -1:]
    if key is not None:
        luck = jnp.where(best > -jnp.inf, jax.random.uniform(key, best.shape), -1.0)
        _, drawn = jax.lax.top_k(luck, count)
        best, place = (jnp.take_along_axis(x, drawn, axis=-1) for x in (best, place))
    found = (best > -jnp.inf) & (candidates.item[:, :, :1] > 0)
    item = jnp.where(found, pool[place], 0)
    label = jnp.full((*item.shape, candidates.label.shape[-1]), -1, candidates.label.dtype)
    label = label.at[..., 0].set(jnp.where(found, 0, -1).astype(label.dtype))
    feature = candidates.feature
    if feature is not None:
        feature = jnp.concatenate([feature, jnp.zeros((*item.shape, feature.shape[-1]), feature.dtype)], axis=2)
    item = jnp.concatenate([candidates.item, item], axis=2)
    label = jnp.concatenate([candidates.label, label], axis=2)
    return dataclasses.replace(candidates, item=item, label=label, feature=feature), least


def _known(candidates: Candidates, had: Array, first: Array | None) -> Array:
    """Items of each ranked event's own window and of the lists in it, 0 where there is none.

    Returns:
      (B, 1, L + E * K): one answer for all events of a row; (B, E, L + E * K) of packed rows.
    """
    users, _, size = candidates.item.shape
    known = jnp.concatenate([had, candidates.item.reshape(users, -1)], axis=1)[:, None]
    if first is None:
        return known
    first = jnp.concatenate([first, jnp.repeat(candidates.first, size, axis=1)], axis=1)
    return jnp.where(first[:, None] == candidates.first[:, :, None], known, 0)
