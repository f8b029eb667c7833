"""From a training batch to the loss: looks items up once, encodes, reads, and adds the weighted losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from synergen_jax import losses
from synergen_jax import model as models
from synergen_jax.batch import Catalogue, TrainBatch
from synergen_jax.config import LossConfig

Parts = dict[str, Array]
"""{"retrieval": ..., "pointwise": ..., "pairwise": ...}"""


def weights(batch: TrainBatch) -> Parts:
    """What each loss of this batch is a mean over: targets, known labels, and pairs; scalars, at least 1."""
    counts = {
        "retrieval": jnp.sum(batch.target > 0).astype(jnp.float32),
        "pointwise": losses.known(batch.ranking.label),
        "pairwise": losses.pairs(batch.ranking.label),
    }
    return {name: jnp.maximum(count, 1.0) for name, count in counts.items()}


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
    # At least one: the log of no count at all would make the gradient of a batch without targets NaN.
    filled = config.in_batch * jnp.maximum(jnp.sum(batch.target > 0), 1) / batch.target.size
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
    apply = lambda *args, **kw: model.apply(
        params["model"], *args, **kw, rngs=None if key is None else {"dropout": key}
    )
    events, readers, candidates = batch.events, batch.retrieval, batch.ranking.readers()
    ids = [events.item, batch.target, candidates.item, negative[0]]
    # One lookup for all: one gather forward, one scatter-add backward.
    flat = models.item_vectors(model, params, catalogue, jnp.concatenate([i.reshape(-1) for i in ids]))
    ends = [sum(i.size for i in ids[: n + 1]) for n in range(len(ids) - 1)]
    event_items, targets, candidate_items, negatives_ = (
        part.reshape(*i.shape, -1) for part, i in zip(jnp.split(flat, ends), ids)
    )
    query = lambda ids: models.query_vectors(model, params, catalogue, ids)
    deterministic = key is None
    cache = apply(events, event_items, query(events.query), deterministic, method="encode")

    parts = {name: jnp.zeros(()) for name in total}
    if config.retrieval_weight:
        nothing = jnp.zeros((*readers.item.shape, targets.shape[-1]), targets.dtype)
        hidden = apply(cache, readers, nothing, query(readers.query), deterministic, method="read")
        vectors = apply(hidden, method="retrieve").reshape(batch.target.size, -1)
        keys = lambda x: apply(x, method="keys")
        target = batch.target.reshape(-1)
        weight = (target > 0).astype(jnp.float32)
        if config.full_softmax:
            every = models.item_vectors(model, params, catalogue, jnp.arange(model.spec.items))
            parts["retrieval"] = losses.full_softmax(vectors, keys(every), target, weight, config.temperature)
        else:
            positive = keys(targets).reshape(vectors.shape)
            ids, log_q = negative
            parts["retrieval"] = losses.info_nce(
                vectors, positive, target, keys(negatives_), ids, weight, log_q, config.temperature
            )
    if (config.pointwise_weight or config.pairwise_weight) and candidates.item.size:
        hidden = apply(cache, candidates, candidate_items, query(candidates.query), deterministic, method="read")
        logits = apply(hidden, method="rank").reshape(batch.ranking.label.shape)
        parts["pointwise"] = losses.pointwise(logits, batch.ranking.label)
        parts["pairwise"] = losses.pairwise(logits, batch.ranking.label)
    parts = {name: part / total[name] for name, part in parts.items()}
    weight = {
        "retrieval": config.retrieval_weight,
        "pointwise": config.pointwise_weight,
        "pairwise": config.pairwise_weight,
    }
    return sum(weight[name] * part for name, part in parts.items()), parts
