"""From a training batch to the loss: looks items up once, encodes, reads, and adds the weighted losses."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from synergen_jax.batch import AnyArray, Candidates, TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.model import lookup, synergen
from synergen_jax.model.embed import IdentityDropout
from synergen_jax.model.synergen import SynerGen
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


def _task_weight(query: AnyArray, config: LossConfig) -> Array:
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
    model: SynerGen,
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
    shares = _Shared(mesh, model, catalogue, config, filter_seen, total, shared, filled)
    dropout_key = None if key is None else dropout_key
    (value, parts), (variables, outer) = _summed(shares, params["model"], made, found, batch, (dropout_key, micro))
    more, rows, whole = back(outer)
    gradients = Gradients(
        jax.tree.map(jnp.add, variables, more),
        whole,
        {name: (found[name].asked, gradient["id"]) for name, gradient in rows.items()},
    )
    return value, parts, gradients


class _Shared(typing.NamedTuple):
    """What all slices of a batch share."""

    mesh: Mesh
    model: SynerGen
    catalogue: StoredCatalogue
    config: LossConfig
    filter_seen: bool
    total: Parts  # `weights` of the whole batch; each loss is a sum divided by its weight
    negatives: Array  # `negatives` of the whole batch, ids; not used by the full softmax
    filled: Array  # () how many of its own targets are expected among them

    def log_count(self, counts: Array) -> Array | None:
        """The log of how often an item comes up in the pool of candidates; None: that holds each item once."""
        if self.config.full_softmax:
            return None
        uniform = self.negatives.size - self.config.in_batch
        return losses.log_expected_count(counts, self.catalogue.events, self.catalogue.met, self.filled, uniform)


def _summed(shared: _Shared, variables, made, found: dict[str, lookup.Found], batch: TrainBatch, how):
    """((loss, parts), gradients of variables and of `made`), summed over slices of the batch.

    Args:
      made: vectors of the distinct ids that were found.
      how: the key of dropout or None, and how many slices.
    """

    def one(variables, made, batch, place, key):
        placed = {name: f._replace(asked=dataclasses.replace(f.asked, place=place[name])) for name, f in found.items()}
        return _loss(shared, variables, _placed(shared, made, placed, batch), batch, key)

    key, micro = how
    grad = jax.value_and_grad(one, argnums=(0, 1), has_aux=True)
    place = {name: f.asked.place for name, f in found.items()}
    if micro == 1:
        return grad(variables, made, batch, place, key)
    return _accumulate(functools.partial(grad, variables, made), batch, place, key, micro)


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


class _Pool(typing.NamedTuple):
    """Items that all targets of a batch compete with: the shared negatives, or with the full softmax every item."""

    vectors: Array  # (N, D), or (A, 768, D)
    ids: Array
    counts: Array  # training events of each


class _Placed(typing.NamedTuple):
    """The vectors of a batch, each where its id stands."""

    events: Array  # items, (B, L, D)
    targets: Array
    candidates: Array  # (B, E, K, D)
    pool: _Pool
    target_counts: Array  # training events of each target, (B, L)
    candidate_counts: Array
    event_queries: Array
    reader_queries: Array
    candidate_queries: Array  # (B, E, D)


def _placed(shared: _Shared, vectors: dict[str, Array], found: dict[str, lookup.Found], batch: TrainBatch) -> _Placed:
    """Spreads the vectors of distinct ids over the places of a batch."""
    events, readers, candidates = batch.events, batch.retrieval, batch.ranking
    dtype, width = jnp.dtype(shared.model.config.dtype), shared.model.config.width
    spread = functools.partial(lookup.at_places, shared.mesh)
    ids = (events.item, batch.target, candidates.item)
    last = shared.negatives.size
    (event_items, targets, candidate_items), negative_items = spread(vectors["item"], found["item"], ids, last)
    (_, target_counts, candidate_counts), negative_counts = spread(found["item"].counts, found["item"], ids, last)
    ids = (events.query, readers.query, candidates.query)
    if "query" in found:
        queries, _ = spread(vectors["query"], found["query"], ids)
    else:
        queries = [jnp.zeros((*part.shape, width)) for part in ids]
    event_queries, reader_queries, candidate_queries = (x.astype(dtype) for x in queries)
    if shared.config.full_softmax:
        counts = shared.catalogue.item_counts
        pool = _Pool(vectors["every"], jnp.arange(counts.size).reshape(counts.shape), counts)
    else:
        pool = _Pool(negative_items, shared.negatives, negative_counts)
    counted = target_counts, candidate_counts
    return _Placed(
        event_items, targets, candidate_items, pool, *counted, event_queries, reader_queries, candidate_queries
    )


_P = typing.ParamSpec("_P")
_R = typing.TypeVar("_R")


class _Model(typing.NamedTuple):
    """The model with its variables and, in training, the key of dropout."""

    model: SynerGen
    variables: typing.Any  # a tree of arrays
    key: Array | None

    def __call__(
        self, stream: int, method: collections.abc.Callable[typing.Concatenate[SynerGen, _P], _R]
    ) -> collections.abc.Callable[_P, _R]:
        """A method of the model; context (0), retrieval (1) and ranking tokens (2) of one place drop other features each."""
        rngs = None if self.key is None else {"dropout": jax.random.fold_in(self.key, stream)}
        return synergen.pure(self.model, self.variables, method, rngs)

    def keys(self, items: Array) -> Array:
        """What items are found by."""
        return self(0, SynerGen.keys)(items.astype(self.model.config.dtype))


def _loss(shared: _Shared, variables, at: _Placed, batch: TrainBatch, key: Array | None) -> tuple[Array, Parts]:
    """The share of the objective that `batch` contributes to the whole batch, and its unweighted parts.

    Args:
      batch: the whole batch, or a slice of it.
      key: of dropout; None for none.
    """
    config, model = shared.config, _Model(shared.model, variables, key)
    dtype = jnp.dtype(shared.model.config.dtype)
    encode = model(0, SynerGen.encode)
    cache = encode(batch.events, at.events.astype(dtype), at.event_queries, key is None)
    no_items = jnp.zeros_like(at.reader_queries)
    read = model(1, SynerGen.read)
    hidden = read(cache, batch.retrieval, no_items, at.reader_queries, key is None, 1)
    wanted = model(1, SynerGen.retrieve)(hidden)  # (B, L, D)
    pool_keys = model.keys(at.pool.vectors)
    parts = {name: jnp.zeros(()) for name in shared.total}
    if config.retrieval_weight:
        parts["retrieval"] = _retrieval_loss(shared, model, at, batch, (wanted, pool_keys))
    if (config.pointwise_weight or config.pairwise_weight) and batch.ranking.item.size:
        parts |= _ranking_losses(shared, model, at, batch, (cache, wanted, pool_keys))
    parts = {name: part / shared.total[name] for name, part in parts.items()}
    weight = {
        "retrieval": config.retrieval_weight,
        "pointwise": config.pointwise_weight,
        "pairwise": config.pairwise_weight,
    }
    return sum((weight[name] * part for name, part in parts.items()), start=jnp.zeros(())), parts


def _retrieval_loss(
    shared: _Shared, model: _Model, at: _Placed, batch: TrainBatch, scored: tuple[Array, Array]
) -> Array:
    """The retrieval loss of all targets.

    Args:
      scored: what each retrieval reader wants, (B, L, D), and the keys of the pool.
    """
    (wanted, pool_keys), config = scored, shared.config
    log_q = shared.log_count if config.log_q else lambda counts: None
    weight = (batch.target > 0) * _task_weight(batch.retrieval.query, config)
    mine = wanted, model.keys(at.targets), batch.target, at.target_counts > 0, weight, log_q(at.target_counts)
    ours = pool_keys, at.pool.ids, at.pool.counts > 0, log_q(at.pool.counts)
    return _retrieval(shared.mesh, config, mine, ours)


def _ranking_losses(
    shared: _Shared, model: _Model, at: _Placed, batch: TrainBatch, encoded: tuple[synergen.Cache, Array, Array]
) -> Parts:
    """Pointwise and pairwise losses of the lists, with hard candidates if any are asked for.

    Args:
      encoded: the context, what each retrieval reader wants, and the keys of the pool.
    """
    cache, wanted, pool_keys = encoded
    candidates, vectors = batch.ranking, at.candidates
    assert candidates.event is not None, "training knows the event of each list"
    # What a ranked event is after, its retrieval reader has asked already.
    wanted = jnp.take_along_axis(wanted, candidates.event[..., None], axis=1)  # (B, E, D)
    hard = None
    if shared.config.hard_candidates:
        hard = _hard(shared, model, at, batch, (wanted, pool_keys))
        candidates, vectors = hard.candidates, hard.vectors
    keys = model.keys(vectors)
    score = jnp.einsum("bed,bekd->bek", wanted, keys)
    logits = _ranked(model, cache, candidates, (vectors, at.candidate_queries), score)
    if hard is not None:
        logits = hard.corrected(logits, score + full_ranking.known_bias(keys), shared.config.hard_candidates)
    weight = list_weight(candidates, shared.config)
    return {
        "pointwise": losses.pointwise(logits, candidates.label, weight),
        "pairwise": losses.pairwise(logits, candidates.label, weight),
    }


def _ranked(
    model: _Model, cache: synergen.Cache, candidates: Candidates, vectors: tuple[Array, Array], score: Array
) -> Array:
    """Logits of the candidates' labels, (B, E, K, A).

    Args:
      vectors: of the candidates, (B, E, K, D), and of their queries, (B, E, D).
      score: of retrieval, (B, E, K).
    """
    items, queries = vectors
    tokens = candidates.readers()
    wide = lambda x: x.reshape(*tokens.item.shape, -1).astype(model.model.config.dtype)
    queries = jnp.broadcast_to(queries[:, :, None], items.shape)
    per_event = candidates.item.shape[2] if candidates.per_event else 0
    read = model(2, SynerGen.read)
    hidden = read(cache, tokens, wide(items), wide(queries), model.key is None, per_event)
    logits = model(2, SynerGen.rank)(hidden, score.reshape(tokens.item.shape), tokens.feature)
    return logits.reshape(candidates.label.shape)


class _Hard(typing.NamedTuple):
    """Lists with hard candidates at their ends, and what corrects their logits."""

    candidates: Candidates
    vectors: Array  # of all candidates, (B, E, K, D)
    best: hard_negatives.Best
    log_pooled: Array | None  # log of how often each comes up in the pool, (B, E, K)
    sampled: Array  # () how often each item comes up among the sampled ones

    def corrected(self, logits: Array, retrieved: Array, count: int) -> Array:
        """Logits less the log of how often a candidate comes up: the chosen item mostly lies behind all hard ones."""
        drawn = hard_negatives.expected_draws(retrieved, self.best, count, self.log_pooled)
        return logits.at[..., 0].add(-hard_negatives.log_oversampled(drawn, self.sampled))


def _hard(shared: _Shared, model: _Model, at: _Placed, batch: TrainBatch, scored: tuple[Array, Array]) -> _Hard:
    """Draws hard candidates for each list from the pool.

    Args:
      scored: what each ranked event is after, (B, E, D), and the keys of the pool.
    """
    (wanted, pool_keys), config, pool, candidates = scored, shared.config, at.pool, batch.ranking
    log_pooled = shared.log_count(at.candidate_counts)
    first = hard_negatives.FIRST if model.key is not None else 0
    most = min(max(config.hard_candidates, first), pool.ids.size)
    pooled = hard_negatives.Pool(pool_keys, jnp.where(pool.counts > 0, pool.ids, 0), config.full_softmax)
    had = batch.events.item if shared.filter_seen else None
    best = hard_negatives.best(shared.mesh, wanted, pooled, candidates, had, batch.events.first, most)
    sampled = (candidates.item.shape[2] - 1) / jnp.maximum(shared.catalogue.met, 1)  # uniform draws of an item
    draw = None if model.key is None else jax.random.fold_in(model.key, 3)
    candidates, place = hard_negatives.draw(candidates, best, config.hard_candidates, draw)
    more = hard_negatives.vectors(shared.mesh, pooled, pool.vectors, place)
    more = jnp.where(candidates.item[:, :, -place.shape[2] :, None] > 0, more, 0)
    vectors = jnp.concatenate([at.candidates, more], axis=2)
    counts = shared.log_count(pool.counts)
    if log_pooled is not None and counts is not None:
        log_pooled = jnp.concatenate([log_pooled, counts[place]], axis=2)
    return _Hard(candidates, vectors, best, log_pooled, sampled)


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
