"""The objective: InfoNCE on retrieval readers, a pointwise and a pairwise loss on ranking readers.

Every loss returns a weighted sum and leaves the division to the caller, who knows the weight of the whole batch:
so that micro-batches add up to exactly the full batch, and a batch without any target gives 0, not NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""]


def info_nce(
    query: Float[Array, "p d"],
    positive: Float[Array, "p d"],
    positive_id: Int[Array, "p"],
    negative: Float[Array, "n d"],
    negative_id: Int[Array, "n"],
    weight: Float[Array, "p"],
    log_q: Float[Array, "v"] | None,
    temperature: float,
) -> Scalar:
    r"""InfoNCE against sampled negatives that all queries share, corrected by their sampling probability.

    Sum over p of  w_p * -log( e^{s_pp} / (e^{s_pp} + Σ_{n: id_n ≠ id_p} e^{s_pn}) ),
    with s_pv = <query_p, item_v> / temperature - log q_v.

    A negative that is the query's own positive (an accidental hit) is left out. Without the correction in-batch
    negatives, which come up as often as they are popular, push popular items down (van den Oord et al. 2018 for the
    loss; Bengio and Senecal 2008, Yi et al. 2019 for the correction).

    Args:
      query: retrieval vectors, (P, D).
      positive: vectors of their targets, (P, D); `positive_id` their ids.
      negative: vectors of the sampled items, (N, D); `negative_id` their ids, 0 marking an empty slot.
      weight: of each query, (P,); 0 leaves it out.
      log_q: log of the expected count of each item among the negatives, (V,); None for no correction.
      temperature: divides the scores.
    """
    hit = jnp.sum(query * positive, axis=-1) / temperature
    miss = query @ negative.T / temperature
    if log_q is not None:
        hit -= log_q[positive_id]
        miss -= log_q[negative_id][None]
    allowed = (negative_id[None] != positive_id[:, None]) & (negative_id > 0)[None]
    miss = jnp.where(allowed, miss, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.maximum(hit, jnp.max(miss, axis=-1, initial=-jnp.inf)))
    total = jnp.exp(hit - top) + jnp.sum(jnp.exp(miss - top[:, None]), axis=-1)
    return jnp.sum(weight * (jnp.log(total) + top - hit))


def full_softmax(
    query: Float[Array, "p d"],
    keys: Float[Array, "v d"],
    allowed: Bool[Array, "v"],
    target: Int[Array, "p"],
    weight: Float[Array, "p"],
    temperature: float,
) -> Scalar:
    """Cross-entropy over all allowed items: InfoNCE whose negatives are the whole catalogue.

    Args:
      query: (P, D); keys: vectors of all items, (V, D); allowed: False for items that take no part, id 0 among them;
        target: (P,) ids; weight: (P,).
    """
    scores = query @ keys.T / temperature
    scores = jnp.where(allowed[None], scores, -jnp.inf)
    hit = jnp.sum(query * keys[target], axis=-1) / temperature
    # A query of weight 0 may have target 0, whose loss must not be inf - inf.
    return jnp.sum(jnp.where(weight > 0, weight * (jax.nn.logsumexp(scores, axis=-1) - hit), 0.0))


def log_expected_count(counts: Int[Array, "v"], in_batch: int | float | Scalar, uniform: int) -> Float[Array, "v"]:
    """Log of how often each item is expected among `in_batch` positives and `uniform` uniform draws, (V,).

    The mixture of mixed negative sampling (Yang et al. 2020): popular draws among the batch's positives, uniform ones
    over the items that training meets. Items that it does not meet are never drawn; they count as met once.
    """
    seen = jnp.maximum(counts, 1).astype(jnp.float32)
    share = seen / jnp.maximum(jnp.sum(counts), 1)
    return jnp.log(in_batch * share + uniform / jnp.maximum(jnp.sum(counts > 0), 1))


def pointwise(logits: Float[Array, "*b k a"], label: Int[Array, "*b k a"], weight: Float[Array, "*b"]) -> Scalar:
    """Weighted sum of the binary cross-entropies of the known labels (1 or 0; -1 is unknown and left out).

    Args:
      logits, label: of lists of K candidates; weight: of each list.
    """
    loss = jax.nn.softplus(logits) - logits * (label > 0)
    return jnp.sum(jnp.where(label >= 0, loss, 0.0) * weight[..., None, None])


def pairwise(logits: Float[Array, "*b k a"], label: Int[Array, "*b k a"], weight: Float[Array, "*b"]) -> Scalar:
    """Weighted sum over the pairs (positive i, negative j) of one list and label of  -log sigmoid(s_i - s_j).

    BPR (Rendle et al. 2009) within each list of K candidates.
    """
    loss = jax.nn.softplus(logits[..., None, :, :] - logits[..., :, None, :])
    return jnp.sum(jnp.where(_pairs(label), loss, 0.0) * weight[..., None, None, None])


def known(label: Int[Array, "*b k a"], weight: Float[Array, "*b"]) -> Scalar:
    """Weighted number of labels that `pointwise` adds up."""
    return jnp.sum((label >= 0) * weight[..., None, None])


def pairs(label: Int[Array, "*b k a"], weight: Float[Array, "*b"]) -> Scalar:
    """Weighted number of pairs that `pairwise` adds up."""
    return jnp.sum(_pairs(label) * weight[..., None, None, None])


def _pairs(label):
    """(..., K, K, A): candidate i is positive and candidate j negative."""
    return (label[..., :, None, :] == 1) & (label[..., None, :, :] == 0)
