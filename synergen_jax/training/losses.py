"""The objective: InfoNCE on retrieval readers; pointwise, pairwise and list-wise losses on ranking readers.

Every loss returns a weighted sum and leaves the division to the caller, who knows the weight of the whole batch:
so that micro-batches add up to exactly the full batch, and a batch without any target gives 0, not NaN.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from synergen_jax.batch import AnyArray

Scalar = Float[Array, ""]


TILE = (2048, 512)  # queries, and items, whose scores exist at one time


def info_nce(
    query: Float[Array, "p d"],
    positive: Float[Array, "p d"],
    positive_id: Int[AnyArray, "p"],
    negative: Float[Array, "n d"],
    negative_id: Int[AnyArray, "n"],
    weight: Float[Array, "p"],
    log_q: tuple[Float[Array, "p"], Float[Array, "n"]] | None,
    temperature: float,
) -> Scalar:
    r"""InfoNCE against sampled negatives that all queries share, corrected by their sampling probability.

    Sum over p of  w_p * -log( e^{s_pp} / (e^{s_pp} + Σ_{n: id_n ≠ id_p} e^{s_pn}) ),
    with s_pv = <query_p, item_v> / temperature - log q_v.

    A negative that is the query's own positive (an accidental hit) is left out. Without the correction in-batch
    negatives, which come up as often as they are popular, push popular items down (van den Oord et al. 2018 for the
    loss; Bengio and Senecal 2008, Yi et al. 2019 for the correction). Memory does not grow with P x N.

    Args:
      query: retrieval vectors, (P, D).
      positive: vectors of their targets, (P, D); `positive_id` their ids.
      negative: vectors of the sampled items, (N, D); `negative_id` their ids, 0 marking an empty slot.
      weight: of each query, (P,); 0 leaves it out.
      log_q: logs of the expected count, among the negatives, of the positives (P,) and of the negatives (N,); None for
        no correction.
      temperature: divides the scores.
    """
    hit = jnp.sum(query * positive, axis=-1) / temperature
    bias = negative_id * 0.0
    if log_q is not None:
        hit, bias = hit - log_q[0], -log_q[1]
    miss = log_sum_exp(query / temperature, negative, bias, positive_id, negative_id)
    return jnp.sum(weight * (jnp.logaddexp(hit, miss) - hit))


def full_softmax(
    query: Float[Array, "p d"],
    positive: Float[Array, "p d"],
    among: Bool[Array, "p"],
    keys: Float[Array, "v d"],
    allowed: Bool[Array, "v"],
    weight: Float[Array, "p"],
    temperature: float,
    split: bool = False,
) -> Scalar:
    """Cross-entropy over all allowed items: InfoNCE whose negatives are the whole catalogue. Memory: as `info_nce`.

    Args:
      query: (P, D); positive: vectors of their targets, (P, D); among: whether each target is one of the allowed items, (P,):
        one that is not joins the sum for its own query; keys: vectors of all items, (V, D); allowed: False for items that
        take no part, id 0 among them; weight: (P,), 0 leaves a query out.
      split: inside a `shard_map` whose devices have different items each, and different queries along `data`. All
        queries visit all devices, so that items stay where they are (as in Megatron-LM's parallel cross-entropy).
    """
    every, nobody = query, jnp.zeros(query.shape[:1], jnp.int32)
    if split:
        every = jax.lax.pcast(jax.lax.all_gather(query, "data", tiled=True), "model", to="varying")
        nobody = jax.lax.pcast(jnp.zeros(every.shape[:1], jnp.int32), ("data", "model"), to="varying")
    ids = allowed.astype(jnp.int32)
    total = log_sum_exp(every / temperature, keys, ids * 0.0, nobody, ids)
    if split:
        top = jax.lax.pmax(jax.lax.stop_gradient(total), ("data", "model"))
        top = jnp.where(top > -jnp.inf, top, 0.0)  # nothing is allowed
        total = jnp.log(jax.lax.psum(jnp.exp(total - top), ("data", "model"))) + top
        size = query.shape[0]
        total = jax.lax.dynamic_slice_in_dim(total, jax.lax.axis_index("data") * size, size)
    hit = jnp.sum(query * positive, axis=-1) / temperature
    total = jnp.where(among, total, jnp.logaddexp(total, hit))
    return jnp.sum(jnp.where(weight > 0, weight * (total - hit), 0.0))


@jax.custom_vjp
def log_sum_exp(
    query: Float[Array, "p d"],
    key: Float[Array, "n d"],
    bias: Float[Array, "n"],
    query_id: Int[AnyArray, "p"],
    key_id: Int[AnyArray, "n"],
) -> Float[Array, "p"]:
    """log Σ_n exp(<query_p, key_n> + bias_n) over keys whose id is neither 0 nor the query's own; -inf if there is none.

    Scores exist for a `TILE` of pairs at a time, in the backward pass, too, which computes them again from what the
    forward pass keeps, one number a query (as Wijmans et al. 2024, "Cut your losses", do). What fits one tile takes one.
    `bias` has no gradient. Inside a `shard_map` all arguments must vary over the same axes.
    """
    return _forward(query, key, bias, query_id, key_id)[0]


def _forward(query, key, bias, query_id, key_id):
    queries, keys = tiles(TILE[0], query, query_id), tiles(TILE[1], key, bias, key_id)

    def one(top, total, q, k):
        score = _scores(q, k)
        new = jnp.maximum(top, jnp.max(score, axis=-1))
        finite = jnp.where(new > -jnp.inf, new, 0.0)
        total = total * jnp.exp(top - finite) + jnp.sum(jnp.exp(score - finite[:, None]), axis=-1)
        return new, total

    def over_keys(carry, k):
        return jax.lax.map(lambda x: one(x[0], x[1], x[2], k), (*carry, queries)), None

    none = queries[1] * 0.0  # zeros that vary over a mesh as the queries do
    (top, total), _ = jax.lax.scan(over_keys, (none - jnp.inf, none), keys)
    found = (jnp.log(total) + jnp.where(top > -jnp.inf, top, 0.0)).reshape(-1)[: query.shape[0]]
    return found, (query, key, bias, query_id, key_id, found)


def _backward(kept, gradient):
    query, key, bias, query_id, key_id, found = kept
    # A query without any key has found -inf: nothing is allowed below, so that 0 serves.
    queries = tiles(TILE[0], query, query_id, jnp.where(found > -jnp.inf, found, 0.0), gradient)
    keys = tiles(TILE[1], key, bias, key_id)

    def one(d_key, x, k):
        q, ids, total, outer = x
        share = jnp.exp(_scores((q, ids), k) - total[:, None]) * outer[:, None]
        return d_key + share.T @ q, share @ k[0]

    def over_keys(d_query, k):
        d_key, part = jax.lax.scan(lambda d_key, x: one(d_key, x, k), k[0] * 0.0, queries)
        return d_query + part, d_key

    d_query, d_key = jax.lax.scan(over_keys, queries[0] * 0.0, keys)
    whole = lambda x, like: x.reshape(-1, x.shape[-1])[: like.shape[0]]
    return whole(d_query, query), whole(d_key, key), None, None, None


log_sum_exp.defvjp(_forward, _backward)


def _scores(query, key):
    """(p, n) of a tile, -inf where a pair takes no part."""
    (q, query_id), (k, bias, key_id) = query, key
    allowed = (key_id[None] != query_id[:, None]) & (key_id > 0)[None]
    return jnp.where(allowed, q @ k.T + bias[None], -jnp.inf)


def tiles(most: int, *arrays: typing.Any) -> tuple:
    """Trees of arrays (n, ...) as (tiles, at most `most`, ...), padded with zeros; an id of 0 takes no part.

    No row is one of zeros, too: a tile without any has no maximum.
    """
    size = arrays[0].shape[0]
    count = max(-(-size // most), 1)
    wide = max(-(-size // count), 1)
    pad = lambda x: jnp.pad(x, [(0, count * wide - size)] + [(0, 0)] * (x.ndim - 1)) if count * wide > size else x
    return jax.tree.map(lambda x: pad(x).reshape(count, wide, *x.shape[1:]), arrays)


def log_expected_count(
    counts: Int[AnyArray, "*i"],
    events: int | Int[Array, ""] | Float[Array, ""],
    items: int | Int[Array, ""] | Float[Array, ""],
    in_batch: int | float | Scalar,
    uniform: int,
) -> Float[Array, "*i"]:
    """Log of how often each item is expected among `in_batch` positives and `uniform` uniform draws.

    The mixture of mixed negative sampling (Yang et al. 2020): popular draws among the batch's positives, uniform ones
    over the items that training meets. Items that it does not meet are never drawn; they count as met once.

    Args:
      counts: training events of each item.
      events: sum of the counts of the whole catalogue; items: how many of it have any.
    """
    share = jnp.maximum(counts, 1).astype(jnp.float32) / jnp.maximum(events, 1)
    return jnp.log(in_batch * share + uniform / jnp.maximum(items, 1))


def pointwise(logits: Float[Array, "*b k a"], label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted sum of the binary cross-entropies of the known labels (1 or 0; -1 is unknown and left out).

    Args:
      logits, label: of lists of K candidates; weight: of each list and label.
    """
    loss = jax.nn.softplus(logits) - logits * (label > 0)
    return jnp.sum(jnp.where(label >= 0, loss, 0.0) * weight[..., None, :])


def pairwise(logits: Float[Array, "*b k a"], label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted sum over the pairs (positive i, negative j) of one list and label of  -log sigmoid(s_i - s_j).

    BPR (Rendle et al. 2009) within each list of K candidates.
    """
    loss = jax.nn.softplus(logits[..., None, :, :] - logits[..., :, None, :])
    return jnp.sum(jnp.where(_pairs(label), loss, 0.0) * weight[..., None, None, :])


def listwise(logits: Float[Array, "*b k a"], label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted sum over the positives i of one list and label of  -log( e^{s_i} / (e^{s_i} + Σ_j e^{s_j}) ), j its negatives.

    The softmax of ListNet (Cao et al. 2007), for which a list's positives do not compete with each other. A list without a
    negative adds nothing.
    """
    negative = label == 0
    lowest = jnp.finfo(logits.dtype).min
    others = jax.nn.logsumexp(jnp.where(negative, logits, lowest), axis=-2, keepdims=True)
    loss = jax.nn.softplus(others - logits)
    chosen = (label == 1) & negative.any(axis=-2, keepdims=True)
    return jnp.sum(jnp.where(chosen, loss, 0.0) * weight[..., None, :])


def chosen(label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted number of positives that `listwise` adds up."""
    counted = (label == 1) & (label == 0).any(axis=-2, keepdims=True)
    return jnp.sum(counted * weight[..., None, :])


def known(label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted number of labels that `pointwise` adds up."""
    return jnp.sum((label >= 0) * weight[..., None, :])


def pairs(label: Int[AnyArray, "*b k a"], weight: Float[Array, "*b a"]) -> Scalar:
    """Weighted number of pairs that `pairwise` adds up."""
    return jnp.sum(_pairs(label) * weight[..., None, None, :])


def _pairs(label):
    """(..., K, K, A): candidate i is positive and candidate j negative."""
    return (label[..., :, None, :] == 1) & (label[..., None, :, :] == 0)
