"""From a training batch to the loss: looks items up once, encodes, reads, and adds the weighted losses."""

from __future__ import annotations

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from synergen_jax.batch import Candidates, TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.model import lookup, synergen
from synergen_jax.model.embed import IdentityDropout
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import table
from synergen_jax.sharding.table import StoredCatalogue
from synergen_jax.training import hard_negatives, losses
from synergen_jax.training.apply_gradients import Gradients

Parts = dict[str, Array]
"""{"retrieval": ..., "pointwise": ..., "pairwise": ...}"""
USERS, WHOLE = PartitionSpec("data"), PartitionSpec()


def weights(batch: TrainBatch, config: LossConfig, step: Array | int = 0) -> Parts:
    """What each loss of this batch is a mean over: targets, known labels, and pairs; scalars, at least 1.

    Searches and recommendations count by their weights. What a ranking loss is a mean over is infinite, and so the loss
    zero, before step `config.rank_after`: a head that learns before the retrieval scores tell anything learns what is
    popular, and keeps it when they tell it, too.
    """
    label = batch.ranking.label
    lists = list_weight(batch.ranking, config)
    counts = {
        "retrieval": jnp.sum((batch.target > 0) * _task_weight(batch.retrieval.query, config)),
        "pointwise": losses.known(label, lists),
        "pairwise": losses.pairs(label, lists),
    }
    if config.hard_candidates:
        ranked = (batch.ranking.item[:, :, 0] > 0) * lists[..., 0]
        chosen = jnp.sum(label[..., 0] == 1, axis=-1)
        counts["pointwise"] += config.hard_candidates * jnp.sum(ranked)
        counts["pairwise"] += config.hard_candidates * jnp.sum(ranked * chosen)
    early = jnp.where(jnp.asarray(step) < config.rank_after, jnp.inf, 1.0)
    least = {"retrieval": 1.0, "pointwise": early, "pairwise": early}
    return {name: jnp.maximum(count, least[name]) for name, count in counts.items()}


def list_weight(candidates: Candidates, config: LossConfig) -> Array:
    """What each label of each list weighs in the ranking losses, (B, E, A): `config.label_weight` after the first one."""
    later = jnp.arange(candidates.label.shape[-1]) > 0
    return _task_weight(candidates.query, config)[..., None] * jnp.where(later, config.label_weight, 1.0)[None, None]


def _task_weight(query: Array, config: LossConfig) -> Array:
    return jnp.where(query > 0, config.search_weight, config.recommendation_weight).astype(jnp.float32)


def negatives(mesh: Mesh, batch: TrainBatch, config: LossConfig, key: Array) -> tuple[Array, Array]:
    """The ids that serve the whole batch as negatives, and how many of its own targets are expected among them.

    The batch's shared uniform negatives are joined by `config.in_batch` of its own targets, drawn with replacement
    from all its positions; a drawn position without a target leaves an empty slot, id 0.

    Returns:
      ids (N + in_batch,), and the number.
    """
    if config.full_softmax:
        return jnp.zeros((0,), jnp.int32), jnp.zeros(())
    position = jax.random.randint(key, (config.in_batch,), 0, batch.target.size)

    def draw(target, position):
        """Each device adds those of its own users, so that the batch's targets are not gathered."""
        place = position - jax.lax.axis_index("data") * target.size
        own = (place >= 0) & (place < target.size)
        return jax.lax.psum(jnp.where(own, target.reshape(-1).at[place].get(mode="clip"), 0), "data")

    drawn = jax.shard_map(draw, mesh=mesh, in_specs=(USERS, WHOLE), out_specs=WHOLE)(batch.target, position)
    filled = config.in_batch * jnp.mean(batch.target > 0).clip(1 / batch.target.size)  # log 0 would make 0 x inf
    return jnp.concatenate([batch.negatives, drawn]), filled


def value_and_grad(
    mesh: Mesh,
    model: synergen.SynerGen,
    params: synergen.Params,
    catalogue: StoredCatalogue,
    batch: TrainBatch,
    config: LossConfig,
    key: Array | None,
    step: Array | int = 0,
    micro: int = 1,
    filter_seen: bool = True,
) -> tuple[Array, Parts, Gradients]:
    """The objective of a batch, its unweighted parts, and the gradients of everything that is learned.

    Rows are looked up once for the whole batch, and joined to vectors once; the loss takes the vectors. With `micro` > 1
    it is added up over that many slices of the batch, one after the other.

    Args:
      key: of sampling and dropout; None for no dropout.
      step: steps done before.
      filter_seen: as `data.filter_seen`: hard candidates are no items of the user's window.
    """
    sample_key, dropout_key, id_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
    total = weights(batch, config, step)
    shared, filled = negatives(mesh, batch, config, sample_key)
    ids = {
        "item": (batch.events.item, batch.target, batch.ranking.item),
        "query": (batch.events.query, batch.retrieval.query, batch.ranking.query),
    }
    found = lookup.look_up(mesh, model, params["tables"], catalogue, ids, shared)
    dropout = None
    if key is not None and model.config.id_dropout:
        dropout = IdentityDropout(model.config.id_dropout, jax.random.bits(id_key))
    join = functools.partial(lookup.join, model, dropout=dropout)

    def vectors(variables, learned, whole):
        """Vectors of the distinct ids, (S, U, D), and for the full softmax of all items, (A, 768, D)."""
        made = {
            name: join(variables, f.rows | learned.get(name, {}), f.counts, jnp.maximum(f.asked.ids, 0))
            for name, f in found.items()
        }
        if config.full_softmax:
            counts = catalogue.item_counts
            every = jnp.arange(counts.size).reshape(counts.shape)
            made["every"] = join(variables, lookup.sources(model, whole, catalogue, "item"), counts, every)
        return made

    learned = {name: {"id": f.rows["id"]} for name, f in found.items() if "id" in f.rows}
    whole = {name: x for name, x in params["tables"].items() if name == "item" and config.full_softmax}
    made, back = jax.vjp(vectors, params["model"], learned, whole)

    def one(variables, made, batch, place, key):
        placed = {name: f._replace(asked=dataclasses.replace(f.asked, place=place[name])) for name, f in found.items()}
        rest = config, total, (shared, filled), key, filter_seen
        return _loss(mesh, model, variables, made, placed, catalogue, batch, *rest)

    grad = jax.value_and_grad(one, argnums=(0, 1), has_aux=True)
    place = {name: f.asked.place for name, f in found.items()}
    dropout_key = None if key is None else dropout_key
    if micro == 1:
        (value, parts), (variables, outer) = grad(params["model"], made, batch, place, dropout_key)
    else:
        grad = functools.partial(grad, params["model"], made)
        (value, parts), (variables, outer) = _accumulate(grad, batch, place, dropout_key, micro)
    more, rows, whole = back(outer)
    gradients = Gradients(
        jax.tree.map(jnp.add, variables, more),
        whole,
        {name: (found[name].asked, gradient["id"]) for name, gradient in rows.items()},
    )
    return value, parts, gradients


def _accumulate(grad, batch: TrainBatch, place: dict[str, Array], key: Array | None, micro: int):
    """Adds loss, parts and gradients over `micro` slices of the batch, one after the other."""
    # Every micro-batch takes users from all over the batch, so that it stays split along `data`.
    cut = lambda x: x.reshape(x.shape[0] // micro, micro, *x.shape[1:]).swapaxes(0, 1)
    batch = dataclasses.replace(batch, negatives=jnp.zeros((batch.target.shape[0], 0), jnp.int32))
    slices = jax.tree.map(cut, (batch, place))
    fold = lambda index: None if key is None else jax.random.fold_in(key, index)

    def add(total, xs):
        (part, places), index = xs
        return jax.tree.map(jnp.add, total, grad(part, places, fold(index))), None

    first = jax.tree.map(lambda x: x[0], slices)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, *first, key))
    return jax.lax.scan(add, zeros, (slices, jnp.arange(micro)))[0]


def _loss(
    mesh: Mesh,
    model: synergen.SynerGen,
    variables: typing.Any,
    vectors: dict[str, Array],
    found: dict[str, lookup.Found],
    catalogue: StoredCatalogue,
    batch: TrainBatch,
    config: LossConfig,
    total: Parts,
    negative: tuple[Array, Array],
    key: Array | None,
    filter_seen: bool,
) -> tuple[Array, Parts]:
    """The share of the objective that `batch` contributes to a batch of weights `total`, and its unweighted parts.

    Args:
      vectors: of the distinct ids of `found`, whose places are those of `batch`.
      batch: the batch that `total` and `negative` were made from, or a micro-batch of it.
      total: `weights` of the whole batch; each loss is a sum divided by its weight.
      negative: `negatives` of the whole batch; not used by the full softmax.
      key: of dropout; None for none.
      filter_seen: as in `value_and_grad`.
    """
    # Context, retrieval and ranking tokens of one place drop other features each.
    rngs = lambda n: None if key is None else {"dropout": jax.random.fold_in(key, n)}
    apply = lambda stream, *args, **kw: model.apply(variables, *args, **kw, rngs=rngs(stream))
    dtype = jnp.dtype(model.config.dtype)
    events, readers, candidates = batch.events, batch.retrieval, batch.ranking
    ids = (events.item, batch.target, candidates.item)
    spread = functools.partial(lookup.at_places, mesh)
    (event_items, targets, candidate_items), negative_items = spread(
        vectors["item"], found["item"], ids, negative[0].size
    )
    (_, target_counts, candidate_counts), negative_counts = spread(
        found["item"].counts, found["item"], ids, negative[0].size
    )
    ids = (events.query, readers.query, candidates.query)
    if "query" in found:
        queries, _ = spread(vectors["query"], found["query"], ids)
    else:
        queries = [jnp.zeros((*part.shape, model.config.width)) for part in ids]
    event_queries, reader_queries, candidate_queries = (x.astype(dtype) for x in queries)
    deterministic = key is None
    cache = apply(0, events, event_items.astype(dtype), event_queries, deterministic, method="encode")

    hidden = apply(1, cache, readers, jnp.zeros_like(reader_queries), reader_queries, deterministic, 1, method="read")
    wanted = apply(1, hidden, method="retrieve")  # (B, L, D)
    keys = lambda x: apply(0, x.astype(dtype), method="keys")
    if config.full_softmax:
        pool, pool_counts = vectors["every"], catalogue.item_counts
        pool_ids = jnp.arange(pool_counts.size).reshape(pool_counts.shape)
        log_count = lambda counts: None
    else:
        pool, pool_counts, pool_ids = negative_items, negative_counts, negative[0]
        uniform = pool_ids.size - config.in_batch
        log_count = lambda counts: losses.log_expected_count(
            counts, catalogue.events, catalogue.met, negative[1], uniform
        )
    log_q = log_count if config.log_q else lambda counts: None
    pool_keys = keys(pool)
    parts = {name: jnp.zeros(()) for name in total}
    if config.retrieval_weight:
        weight = (batch.target > 0) * _task_weight(readers.query, config)
        mine = wanted, keys(targets), batch.target, target_counts > 0, weight, log_q(target_counts)
        ours = pool_keys, pool_ids, pool_counts > 0, log_q(pool_counts)
        parts["retrieval"] = _retrieval(mesh, config, mine, ours)
    if (config.pointwise_weight or config.pairwise_weight) and candidates.item.size:
        # What a ranked event is after, its retrieval reader has asked already.
        wanted = jnp.take_along_axis(wanted, candidates.event[..., None], axis=1)  # (B, E, D)
        if config.hard_candidates:
            log_pooled = log_count(candidate_counts)
            first = hard_negatives.FIRST if key is not None else 0
            most = min(max(config.hard_candidates, first), pool_ids.size)
            pooled = hard_negatives.Pool(pool_keys, jnp.where(pool_counts > 0, pool_ids, 0), config.full_softmax)
            had = events.item if filter_seen else None
            best = hard_negatives.best(mesh, wanted, pooled, candidates, had, events.first, most)
            sampled = (candidates.item.shape[2] - 1) / jnp.maximum(catalogue.met, 1)  # uniform draws of an item
            draw = None if key is None else jax.random.fold_in(key, 3)
            candidates, place = hard_negatives.draw(candidates, best, config.hard_candidates, draw)
            more = hard_negatives.vectors(mesh, pooled, pool, place)
            more = jnp.where(candidates.item[:, :, -place.shape[2] :, None] > 0, more, 0)
            candidate_items = jnp.concatenate([candidate_items, more], axis=2)
            if log_pooled is not None:
                log_pooled = jnp.concatenate([log_pooled, log_count(pool_counts)[place]], axis=2)
        candidate_keys = keys(candidate_items)
        score = jnp.einsum("bed,bekd->bek", wanted, candidate_keys)
        tokens = candidates.readers()
        wide = lambda x: x.reshape(*tokens.item.shape, -1).astype(dtype)
        token_queries = jnp.broadcast_to(candidate_queries[:, :, None], candidate_items.shape)
        per_event = candidates.item.shape[2] if candidates.per_event else 0
        token_vectors = wide(candidate_items), wide(token_queries)
        hidden = apply(2, cache, tokens, *token_vectors, deterministic, per_event, method="read")
        logits = apply(2, hidden, score.reshape(tokens.item.shape), tokens.feature, method="rank")
        logits = logits.reshape(candidates.label.shape)
        if config.hard_candidates:
            retrieved = score + full_ranking.known_bias(candidate_keys)
            drawn = hard_negatives.expected_draws(retrieved, best, config.hard_candidates, log_pooled)
            logits = logits.at[..., 0].add(-hard_negatives.log_oversampled(drawn, sampled))
        weight = list_weight(candidates, config)
        parts["pointwise"] = losses.pointwise(logits, candidates.label, weight)
        parts["pairwise"] = losses.pairwise(logits, candidates.label, weight)
    parts = {name: part / total[name] for name, part in parts.items()}
    weight = {
        "retrieval": config.retrieval_weight,
        "pointwise": config.pointwise_weight,
        "pairwise": config.pairwise_weight,
    }
    return sum(weight[name] * part for name, part in parts.items()), parts


def _retrieval(mesh: Mesh, config: LossConfig, mine: tuple, ours: tuple) -> Array:
    """The retrieval loss; every device has its own users, and computes in tiles of its own.

    Args:
      mine: retrieval vectors and their targets' keys (B, R, D), targets, whether training meets those, weights, log-Q (B, R),
        or None.
      ours: the pool's keys, ids, whether each takes part, log-Q or None; split over all devices with the full softmax.
    """

    def local(mine, ours):
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        query, positive, target, met, weight, log_p = jax.tree.map(flat, mine)
        if config.full_softmax:
            keys, _, allowed, _ = ours
            loss = losses.full_softmax(
                query, positive, met, flat(keys), flat(allowed), weight, config.temperature, split=True
            )
        else:
            keys, ids, allowed, log_n = jax.lax.pcast(ours, "data", to="varying")
            log_q = None if log_p is None else (log_p, log_n)
            loss = losses.info_nce(query, positive, target, keys, ids, weight, log_q, config.temperature)
        return jax.lax.psum(loss, "data")

    lay = table.SPLIT if config.full_softmax else WHOLE
    return jax.shard_map(local, mesh=mesh, in_specs=(USERS, lay), out_specs=WHOLE)(mine, ours)
