"""The evaluation protocol: full ranking over the catalogue, ranking of candidate lists, and both after each other.

Every target is ranked among all items that its user has not had yet, equal scores in a random order, of which metrics
are the expectation (`metrics`); the model and baselines alike. Candidate lists are
scored by the ranking head, label by label; so are the items that the model retrieves first, which shows what ranking
adds to retrieval. The same batches go through baselines, and the same retrieval vectors through an approximate index,
so that one table compares like with like. Where a target was chosen from a list that was shown, the model and
baselines rank that list, too.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from synergen_jax.batch import Catalogue, EvalBatch, Readers
from synergen_jax.config import EvaluateConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, metrics, slices
from synergen_jax.model import lookup, synergen
from synergen_jax.processes import cluster
from synergen_jax.retrieval import full_ranking, index
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue, place_catalogue

CELLS = 2**26  # scores of a baseline that exist at one time


class Batches(typing.Protocol):
    """The targets of an evaluation; iterated any number of times."""

    def __iter__(self) -> collections.abc.Iterator[EvalBatch]: ...

    def shared(self, parts: int, block: int, blocks: int) -> typing.Self:
        """The same batches, of a multiple of `parts` users, of which only the `block`-th of `blocks` blocks is read."""
        ...


class Answers(typing.NamedTuple):
    """What a model says about n targets; numpy."""

    user: np.ndarray  # (n,) whose targets they are
    ranks: (
        np.ndarray
    )  # (n, 2) first and last place, from 1; -1 where a score is NaN: `metrics.retrieval_metrics` refuses
    vectors: np.ndarray  # (n, D) retrieval vectors
    labels: np.ndarray  # (n, K, A) 1, 0, or -1 for unknown
    logits: np.ndarray  # (n, K, A)
    shown: np.ndarray  # (n,) True where the candidates are the list that was shown
    reranked: np.ndarray  # (n, 2) ranks after the ranking head has ordered the items retrieved first; (n, 0): not asked
    unknown: np.ndarray  # (n,) True where nothing is known of the target: its key is zeros


def _spread(batches: Batches, mesh: Mesh):
    """Batches, and what puts one on the devices: of several its users along `data`, each process reading its own."""
    if mesh.size == 1:
        return batches, lambda batch: batch
    users = NamedSharding(mesh, PartitionSpec("data"))
    mine = batches.shared(mesh.shape["data"], *device_mesh.block(mesh))
    return mine, lambda batch: device_mesh.place(batch, users)


def _encoded(
    mesh: Mesh, model: synergen.SynerGen, params, catalogue: StoredCatalogue, batch: EvalBatch, *readers: Readers
):
    """`read(readers, items, queries)`: hidden states over the encoded context of a batch; and the vectors of some readers.

    Returns:
      The function, the item vectors (B, R, D) of each of `readers`, and their query vectors.
    """
    tokens = batch.events, *readers
    ids = {"item": [one.item for one in tokens], "query": [one.query for one in tokens]}
    made = lookup.vectors(mesh, model, params, catalogue, ids)
    items, queries = made["item"], made["query"]

    def apply(*args, method):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # along which attention kernels are split
            return model.apply(params["model"], *args, method=method)

    cache = apply(batch.events, items[0], queries[0], method="encode")
    read = functools.partial(apply, cache, method="read")
    return read, items[1:], queries[1:]


@functools.partial(jax.jit, static_argnames=("mesh", "model", "rerank"))
def answer(
    mesh: Mesh, model: synergen.SynerGen, params, catalogue: StoredCatalogue, keys: Array, batch: EvalBatch, rerank: int
):
    """What `Answers` holds of each user of one batch, and which of them are real, (B,); whole on every device.

    Args:
      keys: `full_ranking.item_keys`; rerank: as in `answers`.
    """
    apply = functools.partial(model.apply, params["model"])
    reader, listed, items = batch.reader, batch.ranking.readers(), model.spec.items
    read, (nothing, list_items), (asked, list_queries) = _encoded(mesh, model, params, catalogue, batch, reader, listed)
    query = apply(read(reader, nothing, asked), method="retrieve")[:, 0]
    ranks = full_ranking.ranks(mesh, query, keys, batch.target, batch.seen, items)
    # Exact, as serving is: an accelerator's own choice of fewer bits changes the ranks of a quarter of the targets.
    list_keys = apply(list_items, method="keys")
    score = jnp.einsum("bd,bkd->bk", query, list_keys, precision=jax.lax.Precision.HIGHEST)
    logits = apply(read(listed, list_items, list_queries), score, listed.feature, method="rank")
    label, unknown = batch.ranking.label[:, 0], full_ranking.known_bias(list_keys) < 0
    logits = logits.reshape(label.shape)
    # Sampled candidates are what retrieval could bring, which never brings what nothing is known of. Finite, as a logit is.
    behind = jnp.where(unknown & ~batch.shown[:, None], jnp.finfo(jnp.float32).min, logits[..., 0])
    logits = logits.at[..., 0].set(behind)
    unasked = jnp.zeros((len(ranks), 0), jnp.int32)
    # A list begins with its target.
    said = Answers(batch.user, ranks, query, label, logits, batch.shown, unasked, unknown[:, 0])
    if rerank:
        score, first = full_ranking.first(mesh, query, keys, batch.seen, rerank, items)
        wide = lambda x: jnp.broadcast_to(x, (*first.shape, *x.shape[2:]))
        readers = Readers(first, wide(reader.query), wide(reader.time), wide(reader.visible))
        vectors = lookup.vectors(mesh, model, params, catalogue, {"item": [first]})["item"][0]
        chosen = apply(read(readers, vectors, wide(asked)), score, method="rank")[..., 0]
        said = said._replace(reranked=_reranked(chosen, score > -jnp.inf, first == batch.target[:, None], ranks))
    return jax.lax.with_sharding_constraint((said, batch.user >= 0), device_mesh.whole(mesh))


def _reranked(chosen: Array, there: Array, target: Array, ranks: Array) -> Array:
    """First and last place of each target, (B, 2), once the items retrieved first are in another order.

    A target that is not among them comes behind them. Of items whose retrieval score is equal at the cut those are
    among them that serving takes.

    Args:
      chosen: (B, F) scores that order them, NaN: -1 as in `metrics.ranks`; there: (B, F) where there is an item;
        target: (B, F) where it is the target; ranks: (B, 2) by retrieval.
    """
    own, other = target & there, ~target & there
    mine = jnp.max(jnp.where(own, chosen, -jnp.inf), axis=1, keepdims=True)
    count = lambda ahead: jnp.sum(other & ahead, axis=1, dtype=jnp.int32)
    among = 1 + jnp.stack([count(chosen > mine), count(chosen >= mine)], axis=1)
    # A target that ties with the last of them stands behind the cut; one that its user has had already is never retrieved.
    behind = jnp.clip(1 + jnp.sum(there, axis=1), ranks[:, 0], ranks[:, 1])
    behind = jnp.stack([behind, ranks[:, 1]], axis=1)
    nans = jnp.any(jnp.isnan(chosen) & there, axis=1, keepdims=True)
    return jnp.where(nans, -1, jnp.where(own.any(axis=1, keepdims=True), among, behind))


@functools.partial(jax.jit, static_argnames=("mesh", "model"))
def _ranks(mesh: Mesh, model: synergen.SynerGen, params, catalogue: StoredCatalogue, keys: Array, batch: EvalBatch):
    read, (nothing,), (asked,) = _encoded(mesh, model, params, catalogue, batch, batch.reader)
    query = model.apply(params["model"], read(batch.reader, nothing, asked), method="retrieve")[:, 0]
    ranks = full_ranking.ranks(mesh, query, keys, batch.target, batch.seen, model.spec.items)
    return jax.lax.with_sharding_constraint(ranks, device_mesh.whole(mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _searches(mesh: Mesh, batch: EvalBatch):
    """Which users of a batch are real, and which of them search, (B,) each."""
    found = batch.user >= 0, batch.reader.query[:, 0] > 0
    return jax.lax.with_sharding_constraint(found, device_mesh.whole(mesh))


def answers(
    model: synergen.SynerGen,
    params: synergen.Params,
    catalogue: StoredCatalogue,
    keys: Float[Array, "a c d"],
    batches: Batches,
    progress: str = "",
    rerank: int = 0,
) -> Answers:
    """Runs a model over all targets; padded rows are left out.

    The users of a batch are shared out over the `data` axis of the mesh on which the catalogue lies, and its processes, all of
    which call this, and all get the answers about all targets.

    Args:
      params: on that mesh, too; keys: `full_ranking.item_keys` of them.
      rerank: how many items, retrieved first, the ranking head orders; 0: none.
    """
    found, mesh = [], catalogue.mesh
    rerank = min(rerank, model.spec.items - 1)
    mine, place = _spread(batches, mesh)
    hidden = None if progress and cluster.first() else True  # None: shown in a terminal
    for batch in tqdm.tqdm(mine, desc=progress, unit="batch", disable=hidden, leave=False):
        said, real = jax.device_get(answer(mesh, model, params, catalogue, keys, place(batch), rerank))
        found.append(Answers(*(part[real] for part in said)))
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def validator(model: synergen.SynerGen, catalogue: StoredCatalogue, batches: Batches):
    """`validate(params)`: metrics that a training run logs, the same on all processes; NDCG@10 selects its checkpoint."""

    def validate(params) -> dict[str, float]:
        keys = full_ranking.item_keys(catalogue.mesh, model, params, catalogue)
        said = answers(model, params, catalogue, keys, batches)
        values = metrics.retrieval_metrics(said.ranks, (10, 50))
        result = {name: float(np.mean(value)) for name, value in values.items()}
        for column, label in enumerate(model.spec.labels):
            labels, logits = said.labels[:, :, column], said.logits[:, :, column]
            result[f"auc/{label}"] = metrics.auc(labels, logits)
            meant = said.shown if not column else np.ones_like(said.shown)  # see `by_label`
            result[f"log_loss/{label}"] = metrics.log_loss(labels[meant], logits[meant])
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
    intervals: dict[str, dict[str, tuple[float, float]]]  # system -> metric -> 95% bootstrap over users
    slices: dict[str, dict[str, typing.Any]]  # slice -> {"targets": n, system: {metric: mean}}
    scann: dict[str, typing.Any] | None  # recall and throughput beside the exact search
    shown: dict[str, dict[str, metrics.Interval]]  # system -> metric within the lists that were shown; {}: none was
    lists: int  # how many lists `shown` is over
    leads: dict[str, dict[str, metrics.Interval]]  # metric -> system -> the model's value less that of the system
    unknown_targets: int  # of which nothing is known, neither a learned vector nor a semantic row that is used
    left_out: dict[str, str]  # system that could not be made, or says nothing -> why


def evaluate(
    model: synergen.SynerGen,
    params: synergen.Params,
    catalogue: Catalogue,
    batches: Batches,
    config: EvaluateConfig,
    say: collections.abc.Callable[[str], None] = print,
    seed: int = 0,
    others: collections.abc.Mapping[str, baselines.Scorer] = types.MappingProxyType({}),
    mesh: Mesh | None = None,
    predictors: collections.abc.Mapping[str, baselines.Predictor] = types.MappingProxyType({}),
    left_out: collections.abc.Mapping[str, str] = types.MappingProxyType({}),
) -> Report | None:
    """The whole protocol on one split.

    Systems, over all targets: "model"; "model_reranked", its first `config.rerank` items as the ranking head orders
    them; "model_scann", its first 10 as the approximate index finds them (`hr@10` and `ndcg@10` alone);
    "most_popular", which scores items by their training events; and `others`. By slice, and where there are searches
    also: "query_without_history" and "history_without_query", the model with less to go by. How far the model leads
    each system is told target by target, which a pair of intervals does not tell.

    Args:
      others: further baselines by name: scores of all items, (B, V), for a batch; or None where they have nothing to
        say of a batch. One that says nothing of some targets is reported by slice alone.
      catalogue: the host's.
      mesh: on which the parameters lie; None: the first device. The model is asked on all processes; all else is left to
        process 0.
      predictors: baselines of the ranked labels by name, on the candidates of the model.
      left_out: why the caller could not make further baselines, by name; the report has it, beside what is left out here.

    Returns:
      None on other processes than the first.

    Raises:
      ValueError: a score is NaN, or the catalogue has other items than the model.
    """
    if len(catalogue.counts) != model.spec.items:
        raise ValueError(f"a catalogue of {len(catalogue.counts)} items, and a model of {model.spec.items}")
    placed = place_catalogue(catalogue, mesh or device_mesh.one_device())
    keys = full_ranking.item_keys(placed.mesh, model, params, placed)
    said = answers(model, params, placed, keys, batches, "evaluate", config.rerank)
    less = _with_less(model, params, placed, keys, batches)
    why = _without_scann() if config.scann else ""
    flat = _on_first_host(keys, model.spec.items) if config.scann and not why else None
    if not cluster.first():
        return None
    left_out = dict(left_out)
    if flat is not None and not flat.any():
        flat, why = None, "nothing is known of any item"
    if why:
        left_out["model_scann"] = why
    others = {"most_popular": baselines.fixed(catalogue.counts), **others}
    ranks = {"model": said.ranks}
    systems = {"model": _measured(model, said, config, seed)}
    retrieval = lambda ranks: metrics.summary(metrics.retrieval_metrics(ranks), said.user, config.bootstrap, seed)
    if config.rerank:
        ranks["model_reranked"] = said.reranked
        systems["model_reranked"] = retrieval(ranks["model_reranked"])
    for name, scorer in others.items():
        ranks[name] = baseline_ranks(scorer, batches, model.spec.items)
        if (ranks[name] > 0).all():
            systems[name] = retrieval(ranks[name])
        if not ranks[name].any():
            left_out[name] = "it says nothing of any target of this split"
    for name, predict in predictors.items():
        logits = np.concatenate([predict(batch)[batch.user >= 0] for batch in batches])
        users = said.user
        if found := by_label(model.spec.labels, said.labels, logits, said.shown, users, config.bootstrap, seed):
            systems[name] = found
        else:
            left_out[name] = "it says nothing of any label of this split"
    systems["most_popular"] |= _popularity(model, said, catalogue, batches, config, seed)
    scann = None
    if flat is not None:
        scann, found = approximate(flat, batches, said.vectors)
        systems["model_scann"] = metrics.summary(found, said.user, config.bootstrap, seed)
    values = {system: {name: v["mean"] for name, v in found.items()} for system, found in systems.items()}
    intervals = {
        system: {name: (v["low"], v["high"]) for name, v in found.items() if "low" in v}
        for system, found in systems.items()
    }
    gains = {s: metrics.retrieval_metrics(found, (10,))["ndcg@10"] for s, found in ranks.items() if (found > 0).all()}
    leads = {"ndcg@10": _leads(gains, said.user, config, seed)}
    ranks |= less
    shown, lists, ahead = within_shown(said, catalogue, batches, config, seed)
    by_slice = slices.table(ranks, slices.masks(batches, catalogue))
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    unknown = int(said.unknown.sum())
    return Report(len(said.ranks), values, intervals, by_slice, scann, shown, lists, leads | ahead, unknown, left_out)


def _leads(values: dict[str, np.ndarray], users: np.ndarray, config: EvaluateConfig, seed: int):
    """Means of the model's values (n,) less each other system's, of the same targets, with paired intervals.

    Returns:
      By system what `metrics.summary` gives.
    """
    others = {system: values["model"] - value for system, value in values.items() if system != "model"}
    return metrics.summary(others, users, config.bootstrap, seed)


def baseline_ranks(scorer: baselines.Scorer, batches: Batches, items: int) -> np.ndarray:
    """`metrics.ranks` of each target by a baseline's scores of all `items`, (n, 2); 0 where it has nothing to say."""
    found, rows = [], max(CELLS // items, 1)
    cut = lambda whole, start: jax.tree.map(lambda x: x[start : start + rows], whole)
    parts = (cut(whole, start) for whole in batches for start in range(0, len(whole.user), rows))
    for batch in parts:
        real = batch.user >= 0
        scores = scorer(batch)
        if scores is None:
            found.append(np.zeros((int(real.sum()), 2), np.int32))
            continue
        # A row of NaN is one that it says nothing of.
        silent = np.isnan(scores[:, 0])
        ranks = np.asarray(metrics.ranks(np.where(silent[:, None], 0.0, scores), batch.target, batch.seen))
        found.append(np.where(silent[:, None], 0, ranks)[real])
    return np.concatenate(found)


def _without_scann() -> str:
    """Why process 0 cannot load ScaNN, "" if it can; all processes ask, and are told the same."""
    why = ""
    try:
        index.load_scann()
    except UserError as error:
        why = str(error)
    return cluster.everyone(why)[0]


def _on_first_host(keys: Float[Array, "a c d"], items: int) -> np.ndarray:
    """Keys (V, D) in the memory of process 0's host, (0, D) on the others', which all help: a piece at a time."""
    cut = jax.jit(lambda keys, start, stop: keys[start:stop], static_argnums=(1, 2))
    lines = max(full_ranking.TILE // keys.shape[1], 1)
    found = [np.zeros((0, *keys.shape[1:]), np.float32)]
    for start in range(0, keys.shape[0], lines):
        piece = device_mesh.fetch(cut(keys, start, min(start + lines, keys.shape[0])))
        found += [piece] if cluster.first() else []
    return np.concatenate(found).reshape(-1, keys.shape[2])[:items]


def _with_less(model: synergen.SynerGen, params, catalogue: StoredCatalogue, keys: Array, batches: Batches):
    """Ranks of searches, 0 for other targets, by the model without the history and without the query."""
    forms = {"query_without_history": {"visible": 0}, "history_without_query": {"query": 0}}
    found: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    mesh = catalogue.mesh
    mine, place = _spread(batches, mesh)
    for batch in mine:
        real, search = jax.device_get(_searches(mesh, place(batch)))
        for name, change in forms.items():
            ranks = np.zeros((len(real), 2), np.int32)
            if (real & search).any():
                blank = {field: np.full_like(getattr(batch.reader, field), value) for field, value in change.items()}
                less = dataclasses.replace(batch, reader=dataclasses.replace(batch.reader, **blank))
                ranks = np.asarray(_ranks(mesh, model, params, catalogue, keys, place(less))) * search[:, None]
            found[name].append(ranks[real])
    ranks = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: values for name, values in ranks.items() if values.any()}


def _popularity(model, said: Answers, catalogue: Catalogue, batches: Batches, config: EvaluateConfig, seed: int):
    """Ranking metrics of candidates by their number of training events; counts are no probabilities."""
    real = lambda batch: baselines.most_popular(batch, catalogue.counts)[batch.user >= 0]
    counts = np.concatenate([real(batch) for batch in batches])
    counts = np.broadcast_to(counts[:, :, None], said.labels.shape)
    found = by_label(model.spec.labels, said.labels, counts, said.shown, said.user, config.bootstrap, seed)
    return {name: v for name, v in found.items() if not name.startswith(("log_loss/", "calibration_error/"))}


def within_shown(said: Answers, catalogue: Catalogue, batches: Batches, config: EvaluateConfig, seed: int):
    """Ranking within the lists that were shown, by the first label: whether an item was chosen.

    Returns:
      For the model, which said `said`, and for each of `baselines.LISTS`, `metrics.list_metrics` in the form of
      `metrics.summary`; the number of lists; and by metric how far the model leads. Lists of the chosen item alone are
      left out.
    """
    labels, users = said.labels[said.shown, :, 0], said.user[said.shown]
    lists = int(np.sum((labels == 1).any(1) & (labels == 0).any(1)))
    if not lists:
        return {}, 0, {}
    scores = {"model": said.logits[said.shown, :, 0]}
    for name, score in baselines.LISTS.items():
        scores[name] = np.concatenate(
            [score(batch, catalogue.counts)[batch.shown & (batch.user >= 0)] for batch in batches]
        )
    found = {name: metrics.list_metrics(labels, score) for name, score in scores.items()}
    ahead = {"list_mrr": _leads({name: values["list_mrr"] for name, values in found.items()}, users, config, seed)}
    shown = {name: metrics.summary(values, users, config.bootstrap, seed) for name, values in found.items()}
    return shown, lists, ahead


def approximate(keys: np.ndarray, batches: Batches, vectors: np.ndarray, k: int = 10):
    """ScaNN beside the exact search over `keys` (V, D), on the retrieval vectors (n, D) of all targets.

    Returns:
      What `index.compare` measures, and hr@k and ndcg@k of each target with ScaNN in place of the exact search; seen
      items are filtered from a list that is longer by as many, up to the next power of two: so rows go together.
    """
    scann, exact = index.ScannIndex.build(keys), index.ExactIndex.build(keys)
    k = min(k, exact.size)
    measured = index.compare(exact, scann, vectors, k)
    ranks, done = [], 0
    for batch in batches:
        real = batch.user >= 0
        seen, target = batch.seen[real], batch.target[real]
        # By the items a user had, not the padded width of `seen`: ScaNN works harder the more it is asked for.
        more = np.array([1 << (had - 1).bit_length() if had else 0 for had in (seen > 0).sum(1).tolist()], int)
        found = np.full((len(target), 2), k + 1)
        for extra in np.unique(more):
            group = np.flatnonzero(more == extra)
            scores, ids = scann.search(vectors[done + group], min(exact.size, k + int(extra)))
            for row, score, items in zip(group, scores, ids):
                kept = ~np.isin(items, seen[row])
                score, items = score[kept], items[kept]
                own = score[items == target[row]]
                if len(own):
                    found[row] = 1 + np.sum(score > own), np.sum(score >= own)
        done += len(target)
        ranks.append(found)
    found = metrics.retrieval_metrics(np.concatenate(ranks), (k,))
    return measured, {name: found[name] for name in (f"hr@{k}", f"ndcg@{k}")}


def _measured(
    model: synergen.SynerGen, said: Answers, config: EvaluateConfig, seed: int
) -> dict[str, metrics.Interval]:
    """All metrics of a model's answers: "hr@10", ..., "mrr", and "auc/engage", ... for each ranked label."""
    result = metrics.summary(metrics.retrieval_metrics(said.ranks), said.user, config.bootstrap, seed)
    if not np.isfinite(said.logits).all():
        raise ValueError("a logit of the ranking head is NaN or infinite")
    return result | by_label(model.spec.labels, said.labels, said.logits, said.shown, said.user, config.bootstrap, seed)


def by_label(
    names: typing.Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    shown: np.ndarray,
    users: np.ndarray,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, metrics.Interval]:
    """`metrics.ranking_metrics` of each ranked label, keyed "auc/like" and so on.

    Left out are labels of which the logits, (n, K, A), are all NaN, since a baseline may know nothing of them, and metrics
    that are undefined: a label that is known of the target alone gives no list to rank. The first label's log loss and
    calibration are over the lists that were `shown`, (n,), alone: among sampled candidates the share of chosen items is that of the
    sample, `rank_candidates`, which training and evaluation set apart. Intervals resample `users`, (n,).
    """
    result = {}
    for column, name in enumerate(names):
        if not np.isnan(logits[:, :, column]).all():
            found = metrics.ranking_metrics(labels[:, :, column], logits[:, :, column], users, bootstrap, seed)
            if not column and not shown.all():
                ours = labels[shown, :, 0], logits[shown, :, 0], users[shown]
                real = metrics.ranking_metrics(*ours, bootstrap, seed)
                found |= {metric: real[metric] for metric in ("log_loss", "calibration_error")}
            result |= {f"{metric}/{name}": value for metric, value in found.items() if np.isfinite(value["mean"])}
    return result
