"""The evaluation protocol: full ranking over the catalogue, and ranking of candidate lists.

Every target is ranked among all items that its user has not had yet, ties against the model. Candidate lists are
scored by the ranking head, label by label. The same batches go through a most-popular baseline, and the same retrieval
vectors through an approximate index, so that one table compares like with like. Where a target was chosen from a list
that was shown, the model and baselines rank that list, too.
"""

from __future__ import annotations

import collections.abc
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array

from synergen_jax import baselines, index, metrics
from synergen_jax import model as models
from synergen_jax.batch import Catalogue, EvalBatch
from synergen_jax.config import EvaluateConfig
from synergen_jax.errors import UserError

Batches = collections.abc.Iterable[EvalBatch]


class Answers(typing.NamedTuple):
    """What a model says about n targets; numpy."""

    ranks: np.ndarray  # (n,) from 1
    vectors: np.ndarray  # (n, D) retrieval vectors
    labels: np.ndarray  # (n, K, A) 1, 0, or -1 for unknown
    logits: np.ndarray  # (n, K, A)
    shown: np.ndarray  # (n,) True where the candidates are the list that was shown


@functools.partial(jax.jit, static_argnames="model")
def _answer(model: models.SynerGen, params, catalogue: Catalogue, keys: Array, batch: EvalBatch):
    """Ranks (B,), retrieval vectors (B, D) and ranking logits (B, K, A) of one batch."""
    vectors = functools.partial(models.token_vectors, model, params, catalogue)
    apply = functools.partial(model.apply, params["model"])
    cache = apply(batch.events, *vectors(batch.events), method="encode")
    hidden = apply(cache, batch.reader, *vectors(batch.reader), method="read")
    query = apply(hidden, method="retrieve")[:, 0]
    ranks = metrics.ranks(query @ keys.T, batch.target, batch.seen)
    candidates = batch.ranking.readers()
    hidden = apply(cache, candidates, *vectors(candidates), method="read")
    return ranks, query, apply(hidden, method="rank").reshape(batch.ranking.label[:, 0].shape)


def answers(
    model: models.SynerGen, params, catalogue: Catalogue, keys: Array, batches: Batches, progress: str = ""
) -> Answers:
    """Runs a model over all targets; padded rows are left out. `keys` are `models.item_keys` of the same parameters.

    Raises:
      ValueError: a score is NaN.
    """
    found = []
    for batch in tqdm.tqdm(batches, desc=progress, unit="batch", disable=None if progress else True, leave=False):
        real = batch.user >= 0
        ranks, query, logits = jax.device_get(_answer(model, params, catalogue, keys, batch))
        found.append(Answers(ranks[real], query[real], batch.ranking.label[real, 0], logits[real], batch.shown[real]))
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def validator(model: models.SynerGen, catalogue: Catalogue, batches: Batches):
    """`validate(params)`: metrics that a training run logs, and of which NDCG@10 selects its checkpoint."""

    def validate(params) -> dict[str, float]:
        said = answers(model, params, catalogue, models.item_keys(model, params, catalogue), batches)
        values = metrics.retrieval_metrics(said.ranks, (10, 50))
        result = {name: float(np.mean(value)) for name, value in values.items()}
        for column, label in enumerate(model.spec.labels):
            labels, logits = said.labels[:, :, column], said.logits[:, :, column]
            result[f"auc/{label}"] = metrics.auc(labels, logits)
            result[f"log_loss/{label}"] = metrics.log_loss(labels, logits)
        if said.shown.any():
            lists = metrics.list_metrics(said.labels[said.shown, :, 0], said.logits[said.shown, :, 0])
            result["shown_mrr"] = float(np.nanmean(lists["list_mrr"]))
        # A label that is known of the target alone gives no list to rank: those metrics are undefined.
        return {name: value for name, value in result.items() if np.isfinite(value)}

    return validate


class Report(typing.NamedTuple):
    """What `evaluate` finds."""

    targets: int
    values: dict[str, dict[str, float]]  # system -> metric -> mean
    intervals: dict[str, dict[str, tuple[float, float]]]  # system -> metric -> 95% bootstrap interval
    scann: dict[str, typing.Any] | None  # recall and throughput beside the exact search
    shown: dict[
        str, dict[str, metrics.Interval]
    ]  # system -> metric within the lists that were shown; {}: there is none
    lists: int  # how many lists `shown` is over


def evaluate(
    model: models.SynerGen,
    params: models.Params,
    catalogue: Catalogue,
    batches: Batches,
    config: EvaluateConfig,
    say: collections.abc.Callable[[str], None] = print,
    seed: int = 0,
) -> Report:
    """The whole protocol on one split.

    Systems: "model"; "most_popular", which scores items by their events in the training part; and "model_scann", the
    model's first 10 as the approximate index finds them (`hr@10` and `ndcg@10` alone).
    """
    keys = models.item_keys(model, params, catalogue)
    said = answers(model, params, catalogue, keys, batches, "evaluate")
    popular = most_popular(catalogue, batches)
    systems = {"model": _measured(model, said, config, seed), "most_popular": _measured(model, popular, config, seed)}
    for name in list(systems["most_popular"]):
        if name.startswith(("log_loss/", "calibration_error/")):
            del systems["most_popular"][name]  # counts are no probabilities
    scann = None
    if config.scann:
        scann, found = approximate(np.asarray(keys), batches, said.vectors, say)
        if found is not None:
            systems["model_scann"] = metrics.summary(found, config.bootstrap, seed)
    values = {system: {name: v["mean"] for name, v in found.items()} for system, found in systems.items()}
    intervals = {
        system: {name: (v["low"], v["high"]) for name, v in found.items() if "low" in v}
        for system, found in systems.items()
    }
    shown, lists = within_shown(said, catalogue, batches, config, seed)
    return Report(len(said.ranks), values, intervals, scann, shown, lists)


def most_popular(catalogue: Catalogue, batches: Batches) -> Answers:
    """The answers of a system that scores every item by its number of training events."""
    counts = jnp.asarray(catalogue.counts, jnp.float32)
    found = []
    for batch in batches:
        real = batch.user >= 0
        scores = jnp.broadcast_to(counts[None], (len(batch.user), counts.size))
        ranks = np.asarray(metrics.ranks(scores, batch.target, batch.seen))
        label = batch.ranking.label[:, 0]
        logits = np.broadcast_to(baselines.most_popular(batch, catalogue.counts)[:, :, None], label.shape)
        found.append(Answers(ranks[real], np.zeros((real.sum(), 0)), label[real], logits[real], batch.shown[real]))
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def within_shown(said: Answers, catalogue: Catalogue, batches: Batches, config: EvaluateConfig, seed: int):
    """Ranking within the lists that were shown, by the first label: whether an item was chosen.

    Returns:
      For the model, which said `said`, and for each of `baselines.LISTS`, `metrics.list_metrics` in the form of
      `metrics.summary`; and the number of lists. Lists of the chosen item alone are left out.
    """
    labels = said.labels[said.shown, :, 0]
    lists = int(np.sum((labels == 1).any(1) & (labels == 0).any(1)))
    if not lists:
        return {}, 0
    scores = {"model": said.logits[said.shown, :, 0]}
    for name, score in baselines.LISTS.items():
        scores[name] = np.concatenate(
            [score(batch, catalogue.counts)[batch.shown & (batch.user >= 0)] for batch in batches]
        )
    measure = lambda found: metrics.summary(metrics.list_metrics(labels, found), config.bootstrap, seed)
    return {name: measure(found) for name, found in scores.items()}, lists


def approximate(keys: np.ndarray, batches: Batches, vectors: np.ndarray, say, k: int = 10):
    """ScaNN beside the exact search over `keys` (V, D), on the retrieval vectors (n, D) of all targets.

    Returns:
      What `index.compare` measures, and hr@k and ndcg@k of each target with ScaNN in place of the exact search; seen
      items are filtered from a list that is longer by as many. (None, None) where ScaNN is not installed.
    """
    exact = index.ExactIndex.build(keys)
    try:
        scann = index.ScannIndex.build(keys)
    except UserError as error:
        say(f"approximate search is left out: {error}")
        return None, None
    k = min(k, exact.size)
    measured = index.compare(exact, scann, vectors, k)
    ranks, done = [], 0
    for batch in batches:
        real = batch.user >= 0
        seen, target = batch.seen[real], batch.target[real]
        wide = min(exact.size, k + seen.shape[1])
        _, ids = scann.search(vectors[done : done + len(target)], wide)
        done += len(target)
        for row, had, wanted in zip(ids, seen, target):
            kept = row[~np.isin(row, had)][:k]
            place = np.flatnonzero(kept == wanted)
            ranks.append(place[0] + 1 if len(place) else k + 1)
    found = metrics.retrieval_metrics(np.array(ranks), (k,))
    return measured, {name: found[name] for name in (f"hr@{k}", f"ndcg@{k}")}


def _measured(model: models.SynerGen, said: Answers, config: EvaluateConfig, seed: int) -> dict[str, metrics.Interval]:
    """All metrics of a system's answers: "hr@10", ..., "mrr", and "auc/engage", ... for each ranked label."""
    result = metrics.summary(metrics.retrieval_metrics(said.ranks), config.bootstrap, seed)
    for column, label in enumerate(model.spec.labels):
        labels, logits = said.labels[:, :, column], said.logits[:, :, column]
        found = metrics.ranking_metrics(labels, logits, config.bootstrap, seed)
        # A label that is known of the target alone gives no list to rank: those metrics are undefined.
        result |= {f"{name}/{label}": value for name, value in found.items() if np.isfinite(value["mean"])}
    return result
