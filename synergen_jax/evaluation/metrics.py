"""Metrics of retrieval and of ranking: pure functions; what ties decides is given by its expectation.

Items of equal score stand in a random order, each order as likely as any other, and a metric is its mean over these
(McSherry and Najork 2008). So a constant score gets what chance gets, neither more nor less.

Retrieval: `ranks` (on the device, inside jit if wished) -> `retrieval_metrics` -> `summary`.
Ranking: `ranking_metrics`, or one of `auc`, `log_loss`, `calibration_error`, `list_metrics`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

CUTOFFS = (1, 5, 10, 20, 50, 200)
CALIBRATION_BINS = 15
_CELLS = 2**22  # numbers that one chunk of a bootstrap may hold: some 32 MiB
_AUC_RESAMPLES = 200  # each costs a pass over all candidates

Labels = Int[np.ndarray, " ..."]
Interval = dict[str, float]


def cutoffs(asked: Sequence[int], usual: Sequence[int] = CUTOFFS) -> tuple[int, ...]:
    """Cut-offs that are computed: the usual ones, by which checkpoints and sweeps go, and those that were asked for."""
    return tuple(sorted({*usual, *asked}))


def ranks(
    scores: Float[Array, "b v"] | Float[np.ndarray, "b v"],
    target: Int[Array, " b"] | Int[np.ndarray, " b"],
    seen: Int[Array, "b m"] | Int[np.ndarray, "b m"],
    items: int | None = None,
) -> Int[Array, "b 2"]:
    """First and last place, from 1, that each user's target may have among the items that may be recommended.

    first_b = 1 + #{ v in 1 .. items - 1 : v ≠ target_b, v not in seen_b, s_bv > s_b,target_b }
    last_b  = the same with >=

    In a random order of equal scores every place from the first to the last is as likely (Krichene and Rendle 2020
    on full ranking; McSherry and Najork 2008 on ties). The target counts even if it is among the seen. Works in
    `jit`, so that (B, V) scores need not leave the device.

    Args:
      scores: (B, V), higher is better; -inf is a score like any other. Computed in float32.
      target: (B,) item ids; 0 marks a padded row.
      seen: (B, M) item ids that are left out, padded with 0, repetitions allowed.
      items: V of the vocabulary, id 0 included; columns from there on are padding. None: all columns are items.

    Returns:
      (B, 2) int32. 0, 0 where there is no target; -1, -1, in `jit` only, where a score is NaN or the target is no
      item, which `retrieval_metrics` refuses.

    Raises:
      ValueError: outside `jit`: a score is NaN, or a target is no item.
    """
    scores, target, seen = jnp.asarray(scores), jnp.asarray(target), jnp.asarray(seen)
    items = scores.shape[1] if items is None else items
    if not 1 <= items <= scores.shape[1]:
        raise ValueError(f"items {items} must lie between 1 and the {scores.shape[1]} columns of the scores")
    rank = _ranks(scores, target, seen, items)
    if not isinstance(rank, Tracer):
        _refuse_marked(np.asarray(rank))
    return rank


def retrieval_metrics(
    ranks: Int[Array, "n 2"] | Int[np.ndarray, "n 2"], ks: Sequence[int] = CUTOFFS
) -> dict[str, Float[np.ndarray, " n"]]:
    """Hit rate, NDCG and reciprocal rank of each target, (n,) each, keyed "hr@k", "ndcg@k" and "mrr".

    hr@k = E [p <= k];  ndcg@k = E [p <= k] / log2(1 + p);  mrr = E 1 / p, for a place p that is uniform between the
    first and the last one (McSherry and Najork 2008): first 1, last 2 has hr@1 = 1 / 2 and mrr = 3 / 4.

    A k beyond the last place that there is counts every target: hr@k is 1, and ndcg@k goes by the place alone.
    With one target a user the hit rate is the recall, and the ideal DCG is 1 (Järvelin and Kekäläinen 2002).

    Args:
      ranks: of `ranks`: first and last place, the same where nothing ties with the target.

    Raises:
      ValueError: a rank is below 1: NaN scores, or a padded row that was not left out; or the last place is before
        the first.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 2 or ranks.shape[1] != 2:
        raise ValueError(f"ranks are (n, 2), the first and the last place of each target, not {ranks.shape}")
    _refuse_marked(ranks)
    if np.any(ranks < 1):
        raise ValueError(f"{int(np.sum(ranks[:, 0] < 1))} ranks are below 1: leave out the padded rows first")
    if np.any(ranks[:, 0] > ranks[:, 1]):
        raise ValueError(f"{int(np.sum(ranks[:, 0] > ranks[:, 1]))} ranks have their last place before the first")
    places = lambda k: np.arange(1, min(k, ranks.max(initial=1)) + 1)
    return {
        **{f"hr@{k}": _expected(np.ones(len(places(k))), ranks) for k in ks},
        **{f"ndcg@{k}": _expected(1 / np.log2(1.0 + places(k)), ranks) for k in ks},
        "mrr": _expected(1.0 / np.arange(1, ranks.max(initial=1) + 1), ranks),
    }


def summary(
    values: dict[str, Float[np.ndarray, " n"]], users: Int[np.ndarray, " n"], bootstrap: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Means over targets with 95% intervals: `{"hr@10": {"mean": .., "low": .., "high": ..}, ..}`.

    The interval is the percentile bootstrap's (Efron 1979) over users, each with all its targets, which are not
    independent of each other (Field and Welsh 2007): 2.5% and 97.5% quantiles of the means over the targets of
    `bootstrap` resamples, drawn with replacement, the same for every metric. NaN values are left out; a metric without
    any value has mean NaN. `bootstrap=0`, or a single user, gives the means alone.

    Args:
      values: metric -> (n,), one value a target, the same targets for every metric.
      users: (n,) whose target it is, from 0.

    Raises:
      ValueError: there are other users than targets, or a user is below 0.
    """
    unit, units = _units(users)
    if not values:
        return {}
    table = np.stack(list(values.values()), axis=1)  # (n, metrics)
    if len(table) != len(unit):
        raise ValueError(f"{len(table)} targets and the users of {len(unit)}")
    known = ~np.isnan(table)
    table = np.where(known, table, 0.0)
    means = _ratio(table.sum(0), known.sum(0))
    result = {name: {"mean": float(mean)} for name, mean in zip(values, means)}
    if bootstrap and units > 1:
        table, known = (_by_unit(x, unit, units) for x in (table, known))
        draws = np.concatenate([_ratio(w @ table, w @ known) for w in _resamples(units, bootstrap, seed)])
        for column, name in enumerate(values):
            result[name] |= _interval(draws[:, column])
    return result


def auc(labels: Labels, scores: Float[np.ndarray, " ..."]) -> float:
    """Area under the ROC curve: P(s_i > s_j) + P(s_i = s_j) / 2 for a positive i and a negative j.

    The Mann-Whitney statistic, by ranks, in O(n log n) (Hanley and McNeil 1982).

    Args:
      labels: any shape: 1, 0, or -1 for unknown, which is left out.
      scores: of the same shape, logits or probabilities.

    Returns:
      In [0, 1]; NaN unless both classes are there.
    """
    label, score, _ = _known(labels, scores)
    return float(_auc_by_list(label, score, np.zeros(len(label), np.int64), 1)[0])


def log_loss(labels: Labels, logits: Float[np.ndarray, " ..."]) -> float:
    """Mean binary cross-entropy, log(1 + e^z) - y z, in nats, over the known labels; NaN if there is none."""
    label, logit, _ = _known(labels, logits)
    return float(np.mean(_cross_entropy(label, logit))) if len(label) else float("nan")


def calibration_error(labels: Labels, logits: Float[np.ndarray, " ..."], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error with bins of equal mass: Σ_b (n_b / n) |mean p - mean y|, p = sigmoid(logit).

    Naeini et al. 2015, with the equal-mass bins of Nguyen and O'Connor 2015. Equal predictions may fall in two
    bins; each then stands for the mean label of all that are equal to it, so that their order does not matter.

    Args:
      labels: any shape: 1, 0, or -1 for unknown; logits: of the same shape.
      bins: 15 by default; fewer if there are fewer predictions.

    Returns:
      In [0, 1]; NaN if no label is known.
    """
    label, logit, _ = _known(labels, logits)
    if not len(label):
        return float("nan")
    p, which, count = np.unique(_sigmoid(logit), return_inverse=True, return_counts=True)
    y = np.bincount(which, weights=label) / count
    parts = np.array_split(np.repeat(p - y, count), min(bins, len(label)))
    return float(sum(abs(part.sum()) for part in parts) / len(label))


def list_metrics(
    labels: Int[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"], at: int | Sequence[int] = 10
) -> dict[str, Float[np.ndarray, " n"]]:
    """Metrics within each list of candidates, (n,) each: "grouped_auc", "list_ndcg@10", "list_mrr" and "list_hr@1".

    grouped_auc: AUC within the list, ties half; its mean over lists is the GAUC of Zhu et al. 2017, unweighted.
    list_ndcg@k: Σ_{i <= k} y_i / log2(1 + i) over the best such sum that the list's labels allow.
    list_mrr: 1 / position of the first positive.
    list_hr@1: 1 where a positive comes first.
    The last three are means over all orders of what has equal scores.

    Args:
      labels: (n, K): 1, 0, or -1 for unknown or an empty slot, which is left out; scores: (n, K).
      at: cutoff k of the NDCG, or several.

    Returns:
      NaN for a list that does not hold both classes: every model ranks such a list alike.
    """
    lists, width = labels.shape
    label, score, row = _known(labels, scores)
    grouped = _auc_by_list(label, score, row, lists)
    defined = ~np.isnan(grouped)
    order = np.lexsort((-scores, labels < 0), axis=1)  # best score first, unknown labels last
    relevant, chance = _chances(np.take_along_axis(labels, order, axis=1), np.take_along_axis(scores, order, axis=1))
    positives = (labels == 1).sum(1)

    def ndcg(k: int) -> np.ndarray:
        discount = np.where(np.arange(width) < k, 1 / np.log2(np.arange(width) + 2.0), 0.0)
        ideal = np.append(0.0, np.cumsum(discount))[positives]
        return np.where(defined, _ratio(relevant @ discount, ideal), np.nan)

    return {
        "grouped_auc": grouped,
        **{f"list_ndcg@{k}": ndcg(k) for k in ([at] if isinstance(at, int) else at)},
        "list_mrr": np.where(defined, chance @ (1.0 / np.arange(1, width + 1)), np.nan),
        "list_hr@1": np.where(defined, chance[:, :1].sum(1), np.nan),
    }


def _chances(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How likely a positive, and the first one of all, stands at each position of sorted lists, (n, K) each.

    Of p positives among t of equal score, each of their positions holds one with chance p / t. After j of them
    without any the next one is a positive with chance p / (t - j).
    """
    lists, width = labels.shape
    new = np.ones((lists, width), bool)
    new[:, 1:] = (scores[:, 1:] != scores[:, :-1]) | ((labels[:, 1:] < 0) != (labels[:, :-1] < 0))
    start, tie = np.flatnonzero(new), (np.cumsum(new) - 1).reshape(lists, width)
    size, positives = np.bincount(tie.ravel()), np.bincount(tie.ravel(), weights=(labels == 1).ravel())
    passed = np.arange(lists * width).reshape(lists, width) - start[tie]
    next_one = np.minimum(positives[tie] / (size[tie] - passed), 1.0)
    none_yet = np.cumprod(1 - next_one, axis=1)
    none_yet = np.concatenate([np.ones((lists, 1)), none_yet], axis=1)[:, :width]
    return positives[tie] / size[tie], next_one * none_yet


def ranking_metrics(
    labels: Int[np.ndarray, "n k"],
    logits: Float[np.ndarray, "n k"],
    users: Int[np.ndarray, " n"],
    bootstrap: int = 1000,
    seed: int = 0,
    at: int | Sequence[int] = 10,
) -> dict[str, Interval]:
    """All ranking metrics of one kind of label, in the form of `summary`; intervals resample users, with all their lists.

    "auc", "log_loss" and "calibration_error" over all candidates, and the means of `list_metrics`. The interval of
    "auc" takes at most 200 resamples; "calibration_error" has none, for resampling biases it upwards.

    Args:
      labels: (n, K): 1, 0, or -1 for unknown; logits: (n, K); users: (n,) whose list it is, from 0.
      at: as in `list_metrics`.

    Raises:
      ValueError: there are other users than lists, or a user is below 0.
    """
    result = {name: {"mean": f(labels, logits)} for name, f in (("auc", auc), ("log_loss", log_loss))}
    result["calibration_error"] = {"mean": calibration_error(labels, logits)}
    lists = summary(list_metrics(labels, logits, at), users, bootstrap, seed)
    label, logit, row = _known(labels, logits)
    unit, units = _units(users)
    if bootstrap and units > 1 and len(label):
        owner = unit[row]
        total = np.bincount(owner, weights=_cross_entropy(label, logit), minlength=units)
        count = np.bincount(owner, minlength=units).astype(np.float64)
        draws = np.concatenate([_ratio(w @ total, w @ count) for w in _resamples(units, bootstrap, seed)])
        result["log_loss"] |= _interval(draws)
        result["auc"] |= _interval(_auc_draws(label, logit, owner, units, min(bootstrap, _AUC_RESAMPLES), seed))
    return result | lists


@functools.partial(jax.jit, static_argnums=3)
def _ranks(scores, target, seen, items: int):
    """`ranks`, with its marks."""
    column = jnp.arange(scores.shape[1])[None]
    item = (column > 0) & (column < items)
    own = jnp.take_along_axis(scores, jnp.clip(target, 0, scores.shape[1] - 1)[:, None], axis=1)
    left_out = jnp.zeros(scores.shape, bool).at[jnp.arange(scores.shape[0])[:, None], seen].set(True, mode="drop")
    other = item & ~left_out & (column != target[:, None])
    count = lambda ahead: jnp.sum(other & ahead, axis=1, dtype=jnp.int32)
    places = 1 + jnp.stack([count(scores > own), count(scores >= own)], axis=1)
    bad = jnp.any(jnp.isnan(scores) & item, axis=1) | (target < 0) | (target >= items)
    return jnp.where((target == 0)[:, None], 0, jnp.where(bad[:, None], -1, places))


def _expected(gain: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Mean of a gain over the places of each target, (n,).

    Args:
      gain: (k,) of the places 1 .. k; that of the others is 0.
    """
    first, last = ranks.T.astype(np.int64)
    total, gain = np.append(0.0, np.cumsum(gain)), np.append(gain, 0.0)
    upto = lambda place: total[np.minimum(place, len(total) - 1)]
    mean = (upto(last) - upto(first - 1)) / (last - first + 1)
    return np.where(first == last, gain[np.minimum(first, len(gain)) - 1], mean)


def _refuse_marked(ranks: np.ndarray) -> None:
    if np.any(ranks < 0):
        raise ValueError(
            f"{int(np.sum(ranks[:, 0] < 0))} of {len(ranks)} rows have a NaN score or a target that is no item"
        )


def _known(labels, scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and scores of the known labels, flat, and the index of each one's row along the first axis."""
    if labels.shape != scores.shape:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must have the same shape")
    known = labels >= 0
    score = scores[known].astype(np.float64)
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {score.size} scores are NaN")
    return (labels[known] > 0).astype(np.float64), score, np.nonzero(known)[0]


def _auc_by_list(label, score, row, lists: int) -> np.ndarray:
    """AUC within each of `lists` groups, from flat entries, (lists,): the positives' mid-ranks, summed."""
    order = np.lexsort((score, row))
    label, score, row = label[order], score[order], row[order]
    new = np.ones(len(label), bool)
    new[1:] = (row[1:] != row[:-1]) | (score[1:] != score[:-1])
    tie = np.cumsum(new) - 1
    start = np.flatnonzero(new)
    middle = start + (np.diff(np.append(start, len(label))) + 1) / 2  # of each run of equal scores, from 1
    count = np.bincount(row, minlength=lists)
    midrank = middle[tie] - (np.cumsum(count) - count)[row]
    positive = np.bincount(row, weights=label, minlength=lists)
    total = np.bincount(row, weights=label * midrank, minlength=lists)
    return _ratio(total - positive * (positive + 1) / 2, positive * (count - positive))


def _auc_draws(label, score, unit, units: int, bootstrap: int, seed: int) -> np.ndarray:
    """AUC over all entries in each resample of the units, (bootstrap,)."""
    order = np.argsort(score)
    label, score, unit = label[order] > 0, score[order], unit[order]
    below = np.searchsorted(score[~label], score[label], "left")  # negatives below each positive
    to = np.searchsorted(score[~label], score[label], "right")  # and up to it
    positive, negative = unit[label], unit[~label]
    draws = []
    for weights in _resamples(units, bootstrap, seed):
        for weight in weights:
            mass = np.append(0.0, np.cumsum(weight[negative]))
            share = weight[positive]
            draws.append(_ratio(share @ (mass[below] + mass[to]) / 2, share.sum() * mass[-1]))
    return np.array(draws)


def _units(users: np.ndarray) -> tuple[np.ndarray, int]:
    """Number of each row's user among the users of all rows, in their order, (n,), and how many users there are."""
    users = np.asarray(users)
    if np.any(users < 0):
        raise ValueError(f"{int(np.sum(users < 0))} users are below 0: leave out the padded rows first")
    found, unit = np.unique(users, return_inverse=True)
    return unit, len(found)


def _by_unit(table: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    """Sums of the rows of each unit, (units, columns)."""
    return np.stack([np.bincount(unit, weights=column, minlength=units) for column in table.T], axis=1)


def _resamples(n: int, bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n units is drawn in each resample: chunks of rows (some, n) that make up (bootstrap, n)."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS // n)
    for done in range(0, bootstrap, chunk):
        rows = min(chunk, bootstrap - done)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _interval(draws: np.ndarray) -> Interval:
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, (0.025, 0.975)) if len(draws) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}


def _ratio(top, bottom) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)


def _cross_entropy(label: np.ndarray, logit: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logit) - np.where(label > 0, logit, 0.0)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logit))
