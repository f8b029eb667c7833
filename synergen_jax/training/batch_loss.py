"""What a slice of a batch adds to the objective: vectors to their places, encode, read, and the losses of what is asked."""

from __future__ import annotations

import collections.abc
import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from synergen_jax.batch import AnyArray, Candidates, TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.model import lookup, synergen
from synergen_jax.model.synergen import SynerGen
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import table
from synergen_jax.sharding.table import StoredCatalogue
from synergen_jax.training import hard_negatives, losses

Parts = dict[str, Array]
"""{"retrieval": ..., "pointwise": ..., "pairwise": ..., "listwise": ...}"""
USERS, WHOLE = PartitionSpec("data"), PartitionSpec()


class Shared(typing.NamedTuple):
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


def list_weight(candidates: Candidates, config: LossConfig) -> Array:
    """What each label of each list weighs in the ranking losses, (B, E, A): `config.label_weight` after the first one."""
    later = jnp.arange(candidates.label.shape[-1]) > 0
    return task_weight(candidates.query, config)[..., None] * jnp.where(later, config.label_weight, 1.0)[None, None]


def task_weight(query: AnyArray, config: LossConfig) -> Array:
    return jnp.where(query > 0, config.search_weight, config.recommendation_weight).astype(jnp.float32)


class _Pool(typing.NamedTuple):
    """Items that all targets of a batch compete with: the shared negatives, or with the full softmax every item."""

    vectors: Array  # (N, W), or (A, 768, W)
    ids: Array
    counts: Array  # training events of each


class Placed(typing.NamedTuple):
    """The vectors of a batch, each where its id stands."""

    events: Array  # items, (B, L, W)
    targets: Array
    candidates: Array  # (B, E, K, W)
    pool: _Pool
    target_counts: Array  # training events of each target, (B, L)
    candidate_counts: Array
    event_queries: Array
    reader_queries: Array
    candidate_queries: Array  # (B, E, W)


def placed(shared: Shared, vectors: dict[str, Array], found: dict[str, lookup.Found], batch: TrainBatch) -> Placed:
    """Spreads the vectors of distinct ids over the places of a batch."""
    events, readers, candidates = batch.events, batch.retrieval, batch.ranking
    dtype = jnp.dtype(shared.model.config.dtype)
    spread = functools.partial(lookup.at_places, shared.mesh)
    ids = (events.item, batch.target, candidates.item)
    last = shared.negatives.size
    (event_items, targets, candidate_items), negative_items = spread(vectors["item"], found["item"], ids, last)
    (_, target_counts, candidate_counts), negative_counts = spread(found["item"].counts, found["item"], ids, last)
    ids = (events.query, readers.query, candidates.query)
    if "query" in found:
        queries, _ = spread(vectors["query"], found["query"], ids)
    else:
        queries = [jnp.zeros((*part.shape, shared.model.key_width)) for part in ids]
    event_queries, reader_queries, candidate_queries = (x.astype(dtype) for x in queries)
    if shared.config.full_softmax:
        counts = shared.catalogue.item_counts
        pool = _Pool(vectors["every"], jnp.arange(counts.size).reshape(counts.shape), counts)
    else:
        pool = _Pool(negative_items, shared.negatives, negative_counts)
    counted = target_counts, candidate_counts
    return Placed(
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


def loss(shared: Shared, variables, at: Placed, batch: TrainBatch, key: Array | None) -> tuple[Array, Parts]:
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
    wanted = model(1, SynerGen.retrieve)(hidden, at.reader_queries)  # (B, L, W)
    pool_keys = model.keys(at.pool.vectors)
    parts = {name: jnp.zeros(()) for name in shared.total}
    if config.retrieval_weight:
        parts["retrieval"] = _retrieval_loss(shared, model, at, batch, (wanted, pool_keys))
    if config.ranks and batch.ranking.item.size:
        parts |= _ranking_losses(shared, model, at, batch, (cache, wanted, pool_keys))
    parts = {name: part / shared.total[name] for name, part in parts.items()}
    weight = {
        "retrieval": config.retrieval_weight,
        "pointwise": config.pointwise_weight,
        "pairwise": config.pairwise_weight,
        "listwise": config.listwise_weight,
    }
    return sum((weight[name] * part for name, part in parts.items()), start=jnp.zeros(())), parts


def _retrieval_loss(shared: Shared, model: _Model, at: Placed, batch: TrainBatch, scored: tuple[Array, Array]) -> Array:
    """The retrieval loss of all targets.

    Args:
      scored: what each retrieval reader wants, (B, L, W), and the keys of the pool.
    """
    (wanted, pool_keys), config = scored, shared.config
    log_q = shared.log_count if config.log_q else lambda counts: None
    weight = (batch.target > 0) * task_weight(batch.retrieval.query, config)
    mine = wanted, model.keys(at.targets), batch.target, at.target_counts > 0, weight, log_q(at.target_counts)
    ours = pool_keys, at.pool.ids, at.pool.counts > 0, log_q(at.pool.counts)
    return _retrieval(shared.mesh, config, mine, ours)


def _ranking_losses(
    shared: Shared, model: _Model, at: Placed, batch: TrainBatch, encoded: tuple[synergen.Cache, Array, Array]
) -> Parts:
    """Pointwise, pairwise and list-wise losses of the lists, with hard candidates if any are asked for.

    Args:
      encoded: the context, what each retrieval reader wants, and the keys of the pool.
    """
    cache, wanted, pool_keys = encoded
    candidates, vectors = batch.ranking, at.candidates
    assert candidates.event is not None, "training knows the event of each list"
    # What a ranked event is after, its retrieval reader has asked already.
    wanted = jnp.take_along_axis(wanted, candidates.event[..., None], axis=1)  # (B, E, W)
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
        "listwise": losses.listwise(logits, candidates.label, weight),
    }


def _ranked(
    model: _Model, cache: synergen.Cache, candidates: Candidates, vectors: tuple[Array, Array], score: Array
) -> Array:
    """Logits of the candidates' labels, (B, E, K, A).

    Args:
      vectors: of the candidates, (B, E, K, W), and of their queries, (B, E, W).
      score: of retrieval, (B, E, K).
    """
    items, queries = vectors
    tokens = candidates.readers()
    wide = lambda x: x.reshape(*tokens.item.shape, -1).astype(model.model.config.dtype)
    queries = jnp.broadcast_to(queries[:, :, None], items.shape)
    per_event = candidates.item.shape[2] if candidates.per_event else 0
    vectors = wide(items), wide(queries)
    hidden = model(2, SynerGen.read)(cache, tokens, *vectors, model.key is None, per_event)
    logits = model(2, SynerGen.rank)(hidden, score.reshape(tokens.item.shape), tokens.feature)
    return logits.reshape(candidates.label.shape)


class _Hard(typing.NamedTuple):
    """Lists with hard candidates at their ends, and what corrects their logits."""

    candidates: Candidates
    vectors: Array  # of all candidates, (B, E, K, W)
    best: hard_negatives.Best
    log_pooled: Array | None  # log of how often each comes up in the pool, (B, E, K)
    sampled: Array  # () how often each item comes up among the sampled ones

    def corrected(self, logits: Array, retrieved: Array, count: int) -> Array:
        """Logits less the log of how often a candidate comes up: the chosen item mostly lies behind all hard ones."""
        drawn = hard_negatives.expected_draws(retrieved, self.best, count, self.log_pooled)
        return logits.at[..., 0].add(-hard_negatives.log_oversampled(drawn, self.sampled))


def _hard(shared: Shared, model: _Model, at: Placed, batch: TrainBatch, scored: tuple[Array, Array]) -> _Hard:
    """Draws hard candidates for each list from the pool.

    Args:
      scored: what each ranked event is after, (B, E, W), and the keys of the pool.
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
      mine: retrieval vectors and their targets' keys (B, R, W), targets, whether training meets those, weights, log-Q (B, R),
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
