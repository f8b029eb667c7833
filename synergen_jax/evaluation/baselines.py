"""Systems that learn nothing or little, to be ranked beside a model. Scores are numpy, higher is better.

`Scorer`s score the whole catalogue, (B, V); `Predictor`s give candidates a logit a ranked label, (B, K, A); `LISTS` score
candidate lists, (B, K), from an `EvalBatch` and the training counts of the items, (V,). What counts queries is in
`query_counts.py`, what goes by similar users or items in `neighbours.py`, what goes by candidate features alone in
`feature_regression.py`.
"""

from __future__ import annotations

import collections.abc
import logging

import numpy as np
import numpy.typing as npt

from synergen_jax.batch import EvalBatch
from synergen_jax.errors import UserError

Scorer = collections.abc.Callable[[EvalBatch], np.ndarray | None]
"""Scores (B, V) of a batch; a row of NaN, or None for a whole batch, where it has nothing to say."""


Predictor = collections.abc.Callable[[EvalBatch], np.ndarray]
"""Logits (B, K, A) of a batch's candidates; NaN for a label of which it says nothing."""


ListScorer = collections.abc.Callable[[EvalBatch, npt.ArrayLike], np.ndarray]
"""Scores (B, K) of a batch's candidates, given the training counts of the items."""


def fixed(scores: npt.ArrayLike) -> Scorer:
    """The same scores (V,) for everyone: popularity of one kind or another."""
    given = np.asarray(scores, np.float32)
    return lambda batch: np.broadcast_to(given, (len(batch.user), len(given)))


def dense_ranks(counts: npt.ArrayLike) -> np.ndarray:
    """Of each item, (V,) int64, how many different counts are smaller than its own: 0 for the least popular."""
    return np.unique(np.asarray(counts), return_inverse=True)[1].reshape(-1)


def lifted(base: np.ndarray, items: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Scores (V,) float32 that order by several keys, one after the other, and tie where all of them do.

    `items` come before all others, by the first key, then the next, last by `base`; all others stand by `base` alone.
    The scores are dense ranks, whole numbers below twice the number of items: float32 holds them exactly up to 8
    million items, and no key is rounded or outweighed, as in a weighted sum it might be.

    Args:
      base: `dense_ranks` of the items, (V,).
      items: ids, (n,), none twice; keys: (n,) each, the first one decides first.
    """
    scores = base.astype(np.float32)
    if len(items):
        every = (base[items], *keys[::-1])
        order = np.lexsort(every)
        new = np.zeros(len(items), bool)
        for key in every:
            new[1:] |= key[order[1:]] != key[order[:-1]]
        scores[items[order]] = base.max() + 1 + np.cumsum(new)
    return scores


def last_seen(counts: npt.ArrayLike) -> Scorer:
    """Items that the reader sees in its context first, the latest before all others; the rest by `counts` (V,).

    What a system without learning offers where people come back to items. It takes part under the name of its like
    within shown lists, `last_seen_first`.
    """
    base = dense_ranks(counts)

    def score(batch: EvalBatch) -> np.ndarray:
        found = []
        for events, visible in zip(batch.events.item, batch.reader.visible[:, 0].tolist(), strict=True):
            latest, place = np.unique(
                events[:visible][::-1], return_index=True
            )  # place from the end: 0 is the last event
            found.append(lifted(base, latest[latest > 0], -place[latest > 0]))
        return np.stack(found)

    return score


def random(items: int, seed: int = 0) -> Scorer:
    """Other random scores for each target: what finds new items by luck alone."""

    def score(batch: EvalBatch) -> np.ndarray:
        users = batch.user.tolist()
        return np.stack([np.random.default_rng((seed, user + 1)).random(items, np.float32) for user in users])

    return score


def bm25(item_texts: collections.abc.Sequence[str], queries: collections.abc.Sequence[str]) -> Scorer:
    """BM25 (Robertson and Zaragoza 2009, by the package bm25s) of each search's words in the items' texts.

    Args:
      item_texts: (V,), of item 0 empty; queries: texts by query id.

    Raises:
      UserError: the items or the queries have no words, or none in common.
    """
    import bm25s
    from bm25s.tokenization import Tokenized

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every index that it builds

    def vocabulary(texts: collections.abc.Sequence[str]) -> Tokenized:
        found = bm25s.tokenize(list(texts), stopwords=[], show_progress=False)
        assert isinstance(found, Tokenized)  # lists of words where ids are not asked for
        return found

    items, asked_for = vocabulary(item_texts), vocabulary(queries)
    if not items.vocab:
        raise UserError("the items have no texts")
    if not asked_for.vocab:
        raise UserError("no query has a word")
    if not items.vocab.keys() & asked_for.vocab.keys():
        raise UserError("no word of a query stands in the text of an item")
    index = bm25s.BM25()
    index.index(items, show_progress=False)

    def score(batch: EvalBatch) -> np.ndarray | None:
        asked = batch.reader.query[:, 0]
        if not asked.any():
            return None
        scores = np.full((len(asked), len(item_texts)), np.nan, np.float32)
        for query in map(int, np.unique(asked[asked > 0])):
            words = bm25s.tokenize(queries[query], stopwords=[], show_progress=False, return_ids=False)
            assert not isinstance(words, Tokenized)  # as above
            known = [word for word in words[0] if word in index.vocab_dict]
            scores[asked == query] = index.get_scores(known) if known else 0.0
        return scores

    return score


def user_item_mean(
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    sizes: tuple[int, int],
    shrink: tuple[float, float] = (10, 25),
) -> Predictor:
    """How much a user likes, plus how much an item is liked: p = mean + b_user + b_item, clipped to [0.01, 0.99].

    b_item = Σ (y - mean) / (25 + n), then b_user = Σ (y - mean - b_item) / (10 + n): the baseline predictors of Koren
    2010 ("Factor in the neighbors"), with his shrinkage. Of the first label, whether an item is chosen at all, the
    events of training tell nothing, since all of them were.

    Args:
      user, item: of n training events, (n,); label: what is known of each, (n, A), 0 or 1; sizes: users, and V.
      shrink: pseudo-counts of users and of items.
    """
    users, items = sizes
    mean = label.mean(axis=0, keepdims=True) if len(label) else np.full((1, label.shape[1]), 0.5)

    def biases(which, rest, size, by):
        total = np.stack([np.bincount(which, weights=column, minlength=size) for column in rest.T], axis=1)
        return total / (by + np.bincount(which, minlength=size))[:, None]

    rest = label - mean
    of_item = biases(item, rest, items, shrink[1])
    of_user = biases(user, rest - of_item[item], users, shrink[0])

    def predict(batch: EvalBatch) -> np.ndarray:
        p = (mean + of_user[batch.user])[:, None] + of_item[batch.ranking.item[:, 0]]
        p = np.clip(p, 0.01, 0.99)
        logits = np.log(p / (1 - p))
        logits[..., 0] = np.nan
        return logits

    return predict


def most_popular(batch: EvalBatch, counts: npt.ArrayLike) -> np.ndarray:
    """The number of training events of each candidate."""
    return np.asarray(counts, np.float64)[batch.ranking.item[:, 0]]


def shown_order(batch: EvalBatch, counts: npt.ArrayLike) -> np.ndarray:
    """The order in which the list was shown, candidates that were not shown last."""
    del counts
    return np.where(batch.position > 0, -batch.position, -np.inf)


def last_seen_first(batch: EvalBatch, counts: npt.ArrayLike) -> np.ndarray:
    """Candidates of the user's context first, the latest before all others; the rest in the order shown."""
    del counts
    item, events = batch.ranking.item[:, 0], batch.events.item
    same = (item[:, :, None] == events[:, None, :]) & (item > 0)[:, :, None]
    latest = np.max(same * np.arange(1, events.shape[1] + 1), axis=2)  # place in the context from 1; 0: not in it
    after = batch.position.max() + 1  # the place of those that were not shown
    return latest * (after + 1.0) - np.where(batch.position > 0, batch.position, after)


LISTS: dict[str, ListScorer] = {
    "shown_order": shown_order,
    "last_seen_first": last_seen_first,
    "most_popular": most_popular,
}
