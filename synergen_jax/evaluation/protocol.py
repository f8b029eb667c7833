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
import types
import typing

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from synergen_jax.batch import Catalogue, EvalBatch, LogSpec
from synergen_jax.config import EvaluateConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, knowledge, metrics, model_answers, slices
from synergen_jax.model import synergen
from synergen_jax.processes import cluster
from synergen_jax.retrieval import full_ranking, index
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue, place_catalogue

if typing.TYPE_CHECKING:  # a validation needs no scipy
    import scipy.sparse

CELLS = 2**26  # scores of a baseline that exist at one time
LEADS = ("all", "search", "recommendation", slices.NEW_PAIRS)  # slices in which the model's leads are told, too


def validator(model: synergen.SynerGen, catalogue: StoredCatalogue, batches: model_answers.Batches):
    """`validate(params)`: metrics that a training run logs, the same on all processes; NDCG@10 selects its checkpoint.

    Where some targets are searches and others are not, "ndcg@10/search" and "ndcg@10/recommendation" are those of each task,
    and "ndcg@10/both" is their geometric mean: one checkpoint for both tasks, whichever of them is the easier one.
    """

    def validate(params) -> dict[str, float]:
        said = model_answers.answers(model_answers.PlacedModel.of(model, params, catalogue), batches)
        values = metrics.retrieval_metrics(said.ranks, (10, 50))
        result = {name: float(np.mean(value)) for name, value in values.items()}
        if said.search.any() and not said.search.all():
            tasks = [float(np.mean(values["ndcg@10"][mask])) for mask in (said.search, ~said.search)]
            names = ("ndcg@10/search", "ndcg@10/recommendation", "ndcg@10/both")
            result |= dict(zip(names, [*tasks, float(np.sqrt(np.prod(tasks)))]))
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


class Second(typing.Protocol):
    """A second stage: what orders the items that retrieval found first."""

    @property
    def first(self) -> int:
        """How many items it orders."""
        ...

    def __call__(self, batch: EvalBatch, item: np.ndarray, score: np.ndarray, logit: np.ndarray) -> np.ndarray:
        """Scores (B, F) of the items retrieved for a batch, by their ids, 0 for none, scores and ranking logits."""
        ...


System = dict[str, metrics.Interval]
"""Metrics of one system, by name."""


class Report(typing.NamedTuple):
    """What `evaluate` finds."""

    targets: int
    values: dict[str, dict[str, float]]  # system -> metric -> mean
    intervals: dict[str, dict[str, tuple[float, float]]]  # system -> metric -> 95% bootstrap over users
    slices: dict[str, dict[str, typing.Any]]  # slice -> {"targets": n, system: {metric: mean}}
    scann: dict[str, typing.Any] | None  # recall and throughput beside the exact search
    shown: dict[str, System]  # system -> metric within the lists that were shown; {}: none was
    lists: int  # how many lists `shown` is over
    leads: dict[str, dict[str, metrics.Interval]]  # metric -> system -> the model's value less that of the system
    unknown_targets: int  # of which nothing is known, neither a learned vector nor a semantic row that is used
    left_out: dict[str, str]  # system that could not be made, or says nothing -> why
    slice_leads: dict[str, dict[str, metrics.Interval]]  # slice -> system -> lead in NDCG@10, for `LEADS`
    asked_leads: dict[str, dict[str, System]]  # "ndcg@k" of a cut-off that was asked for -> the same
    knows: dict[str, str]  # system -> what it goes by, in words: `knowledge`
    # Target by target, for comparisons with other runs: "user", (n,); "slice/NAME", bool (n,); "ndcg@10/SYSTEM", (n,), NaN
    # where it says nothing; of m lists that were shown "list_user" and "list_mrr/SYSTEM", (m,).
    each: dict[str, np.ndarray]
    # What each target's own results are made of: `slices.about`; its slices, bool (n,); places by system, (n, 2), 0
    # where it says nothing.
    about: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]


Own = collections.abc.Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Further slices, name -> bool (n,), of targets of which `slices.about` tells."""


def evaluate(
    model: synergen.SynerGen,
    params: synergen.Params,
    catalogue: Catalogue,
    batches: model_answers.Batches,
    config: EvaluateConfig,
    say: collections.abc.Callable[[str], None] = print,
    seed: int = 0,
    others: collections.abc.Mapping[str, baselines.Scorer] = types.MappingProxyType({}),
    mesh: Mesh | None = None,
    predictors: collections.abc.Mapping[str, baselines.Predictor] = types.MappingProxyType({}),
    left_out: collections.abc.Mapping[str, str] = types.MappingProxyType({}),
    lists: collections.abc.Mapping[str, baselines.ListScorer] = types.MappingProxyType({}),
    pairs: scipy.sparse.csr_array | None = None,
    second: Second | None = None,
    own: Own = lambda about: {},
) -> Report | None:
    """The whole protocol on one split.

    Systems, over all targets: "model"; "model_reranked", its first `config.rerank` items as the ranking head orders
    them; "model_second_stage", as `second` does; "model_scann", its first 10 as the approximate index finds them
    (`hr@10` and `ndcg@10` alone); "most_popular", which scores items by their training events; and `others`. By slice, and where there are searches
    also: "query_without_history" and "history_without_query", the model with less to go by. How far the model leads
    each system is told target by target, which a pair of intervals does not tell; in the slices `LEADS` also of systems
    that say something of every target there, if not of all.

    Args:
      others: further baselines by name: scores of all items, (B, V), for a batch; or None where they have nothing to
        say of a batch. One that says nothing of some targets is reported by slice alone.
      catalogue: the host's.
      mesh: on which the parameters lie; None: the first device. The model is asked on all processes; all else is left to
        process 0.
      predictors: baselines of the ranked labels by name, on the candidates of the model.
      left_out: why the caller could not make further baselines, by name; the report has it, beside what is left out here.
      lists: baselines within shown lists by name, beside `baselines.LISTS`.
      pairs: training counts of (query, item), for slices: see `slices.masks`.
      second: the second stage, of an evaluation by one process.
      own: slices of the caller's, beside those of `slices.masks`.

    Returns:
      None on other processes than the first.

    Raises:
      ValueError: a score is NaN, or the catalogue has other items than the model.
    """
    if len(catalogue.counts) != model.spec.items:
        raise ValueError(f"a catalogue of {len(catalogue.counts)} items, and a model of {model.spec.items}")
    asked = model_answers.PlacedModel.of(model, params, place_catalogue(catalogue, mesh or device_mesh.one_device()))
    said = model_answers.answers(asked, batches, "evaluate", config.rerank)
    less = model_answers.with_less(asked, batches)
    keys, why = _keys_for_scann(asked) if config.scann else (None, "")
    if not cluster.first():
        return None
    targets = _Targets(model.spec, catalogue, batches, said, config, seed)
    found = _model(targets)
    found.left_out.update(left_out)
    if second is not None:
        _add_second_stage(found, targets, asked, second)
    if why:
        found.left_out["model_scann"] = why
    _add_retrieval(found, targets, {"most_popular": baselines.fixed(catalogue.counts), **others})
    _add_ranking(found, targets, predictors)
    found.metrics["most_popular"] |= _popularity(targets)
    scann = None
    if keys is not None:
        scann, values = approximate(keys, batches, said.vectors, asked=config.k)
        found.metrics["model_scann"] = targets.summary(values)
    known = knowledge.of_model(model.config, model.spec, model.phase is not None)
    report = _report(found, targets, less, scann, baselines.LISTS | dict(lists), pairs, known, own)
    for reason in dict.fromkeys(report.left_out.values()):
        names = [name for name, why in report.left_out.items() if why == reason]
        say(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out: {reason}")
    return report


class _Targets(typing.NamedTuple):
    """The targets of an evaluation, what the model says of each, and how systems are measured on them."""

    spec: LogSpec
    catalogue: Catalogue
    batches: model_answers.Batches
    said: model_answers.Answers
    config: EvaluateConfig
    seed: int

    def summary(self, values: dict[str, np.ndarray]) -> System:
        """Means and intervals of a value a target, (n,), by metric."""
        return metrics.summary(values, self.said.user, self.config.bootstrap, self.seed)

    def retrieval(self, ranks: np.ndarray) -> System:
        """ "hr@10", ..., "mrr" of places (n, 2)."""
        return self.summary(metrics.retrieval_metrics(ranks, metrics.cutoffs(self.config.k)))

    def ranking(self, logits: np.ndarray) -> System:
        """ "auc/engage", ... of each ranked label, by logits (n, K, A)."""
        at = metrics.cutoffs(self.config.k, (10,))
        return by_label(self.spec.labels, self.said, logits, self.config.bootstrap, self.seed, at)


class _Systems(typing.NamedTuple):
    """What is found of systems, each by its name."""

    ranks: dict[str, np.ndarray]  # (n, 2) each; 0 where a system says nothing
    metrics: dict[str, System]
    left_out: dict[str, str]  # why


def _model(targets: _Targets) -> _Systems:
    """The model, and, where it is asked for, with the items retrieved first as the ranking head orders them."""
    said = targets.said
    found = _Systems({"model": said.ranks}, {"model": targets.retrieval(said.ranks)}, {})
    if not np.isfinite(said.logits).all():
        raise ValueError("a logit of the ranking head is NaN or infinite")
    found.metrics["model"] |= targets.ranking(said.logits)
    if targets.config.rerank:
        found.ranks["model_reranked"] = said.reranked
        found.metrics["model_reranked"] = targets.retrieval(said.reranked)
    return found


def _add_second_stage(found: _Systems, targets: _Targets, asked: model_answers.PlacedModel, second: Second) -> None:
    """Adds the model with the items retrieved first as its second stage orders them."""
    ranks, done = [], 0
    for batch in targets.batches:
        real = np.asarray(batch.user) >= 0
        item, score, logit = model_answers.retrieved(asked, batch, second.first)
        chosen = second(batch, item, score, logit)
        mine = targets.said.ranks[done : done + int(real.sum())]
        same = item == np.asarray(batch.target)[:, None]
        ranks.append(np.asarray(model_answers.reranked(chosen[real], item[real] > 0, same[real], mine)))
        done += len(mine)
    name = "model_second_stage"
    found.ranks[name] = np.concatenate(ranks)
    found.metrics[name] = targets.retrieval(found.ranks[name])


def _add_retrieval(found: _Systems, targets: _Targets, scorers: collections.abc.Mapping[str, baselines.Scorer]) -> None:
    """Adds baselines of the whole catalogue; metrics of those that say something of every target."""
    for name, scorer in scorers.items():
        ranks = found.ranks[name] = baseline_ranks(scorer, targets.batches, targets.spec.items)
        if (ranks > 0).all():
            found.metrics[name] = targets.retrieval(ranks)
        if not ranks.any():
            found.left_out[name] = "it says nothing of any target of this split"


def _add_ranking(
    found: _Systems, targets: _Targets, predictors: collections.abc.Mapping[str, baselines.Predictor]
) -> None:
    """Adds baselines of the ranked labels."""
    for name, predict in predictors.items():
        logits = np.concatenate([predict(batch)[batch.user >= 0] for batch in targets.batches])
        if values := targets.ranking(logits):
            found.metrics[name] = values
        else:
            found.left_out[name] = "it says nothing of any label of this split"


def _report(
    found: _Systems,
    targets: _Targets,
    less: dict[str, np.ndarray],
    scann: dict[str, typing.Any] | None,
    list_scorers: collections.abc.Mapping[str, baselines.ListScorer],
    pairs: scipy.sparse.csr_array | None,
    known: tuple[str, ...],
    own: Own,
) -> Report:
    """Puts together what was found; the model, which knows `known`, with less to go by, `less`, is reported by slice alone."""
    _, catalogue, batches, said, config, seed = targets
    masks, every = slices.masks(batches, catalogue, pairs), found.ranks | less
    about = slices.about(batches)
    cut = masks | own(about)

    def leads(mask: np.ndarray, k: int = 10) -> System:
        gains = {
            system: metrics.retrieval_metrics(ranks[mask], (k,))[f"ndcg@{k}"]
            for system, ranks in every.items()
            if (ranks[mask] > 0).all()
        }
        return _leads(gains, said.user[mask], config, seed)

    ahead = {name: leads(masks[name]) for name in LEADS if name in masks}
    asked = {f"ndcg@{k}": {name: leads(masks[name], k) for name in ahead} for k in config.k}
    in_lists = list_values(said, catalogue, batches, list_scorers, metrics.cutoffs(config.k, (10,)))
    shown, lists, ahead_in_lists = within_shown(said, in_lists, config, seed)
    return Report(
        targets=len(said.ranks),
        values={system: {name: v["mean"] for name, v in values.items()} for system, values in found.metrics.items()},
        intervals={
            system: {name: (v["low"], v["high"]) for name, v in values.items() if "low" in v}
            for system, values in found.metrics.items()
        },
        slices=slices.table(every, cut, config.k),
        scann=scann,
        shown=shown,
        lists=lists,
        leads={"ndcg@10": ahead["all"]} | ahead_in_lists,
        unknown_targets=int(said.unknown.sum()),
        left_out=found.left_out,
        slice_leads=ahead,
        asked_leads=asked,
        knows=knowledge.of_systems([*found.metrics, *every, *in_lists], known),
        each=_each(found.ranks, masks, said, in_lists),
        about=about,
        masks=cut,
        ranks=every,
    )


def _each(
    ranks: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    said: model_answers.Answers,
    in_lists: dict[str, dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """As `Report.each`."""
    ndcg = lambda places: metrics.retrieval_metrics(np.maximum(places, 1), (10,))["ndcg@10"]
    told = {f"ndcg@10/{name}": np.where(places[:, 0] > 0, ndcg(places), np.nan) for name, places in ranks.items()}
    found = {"user": said.user} | {f"slice/{name}": mask for name, mask in masks.items()} | told
    if in_lists:
        found["list_user"] = said.user[said.shown]
        found |= {f"list_mrr/{name}": values["list_mrr"] for name, values in in_lists.items()}
    return found


def _leads(values: dict[str, np.ndarray], users: np.ndarray, config: EvaluateConfig, seed: int):
    """Means of the model's values (n,) less each other system's, of the same targets, with paired intervals.

    Returns:
      By system what `metrics.summary` gives.
    """
    others = {system: values["model"] - value for system, value in values.items() if system != "model"}
    return metrics.summary(others, users, config.bootstrap, seed)


def baseline_ranks(scorer: baselines.Scorer, batches: model_answers.Batches, items: int) -> np.ndarray:
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


def _keys_for_scann(asked: model_answers.PlacedModel) -> tuple[np.ndarray | None, str]:
    """Keys (V, D) of all items on process 0, and ""; or None, and why ScaNN cannot search them. All processes call this."""
    if why := _without_scann():
        return None, why
    keys = _on_first_host(asked.keys, asked.model.spec.items)
    return (keys, "") if keys.any() else (None, "nothing is known of any item")


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


def _popularity(targets: _Targets) -> System:
    """Ranking metrics of candidates by their number of training events; counts are no probabilities."""
    real = lambda batch: baselines.most_popular(batch, targets.catalogue.counts)[batch.user >= 0]
    counts = np.concatenate([real(batch) for batch in targets.batches])
    found = targets.ranking(np.broadcast_to(counts[:, :, None], targets.said.labels.shape))
    return {name: v for name, v in found.items() if not name.startswith(("log_loss/", "calibration_error/"))}


def list_values(
    said: model_answers.Answers,
    catalogue: Catalogue,
    batches: model_answers.Batches,
    scorers: collections.abc.Mapping[str, baselines.ListScorer] = types.MappingProxyType(baselines.LISTS),
    at: int | collections.abc.Sequence[int] = 10,
) -> dict[str, dict[str, np.ndarray]]:
    """`metrics.list_metrics` of the lists that were shown, by the first label, whether an item was chosen.

    Args:
      at: as there.

    Returns:
      By system, the model, which said `said`, and each of `scorers`; {} where there is no list with both. Lists of the
      chosen item alone have NaN.
    """
    labels = said.labels[said.shown, :, 0]
    if not np.any((labels == 1).any(1) & (labels == 0).any(1)):
        return {}
    scores = {"model": said.logits[said.shown, :, 0]}
    for name, score in scorers.items():
        scores[name] = np.concatenate(
            [score(batch, catalogue.counts)[batch.shown & (batch.user >= 0)] for batch in batches]
        )
    return {name: metrics.list_metrics(labels, score, at) for name, score in scores.items()}


def within_shown(
    said: model_answers.Answers, found: dict[str, dict[str, np.ndarray]], config: EvaluateConfig, seed: int
):
    """Ranking within the lists that were shown.

    Args:
      found: of `list_values`.

    Returns:
      By system `metrics.list_metrics` in the form of `metrics.summary`; the number of lists; and by metric how far the model
      leads.
    """
    if not found:
        return {}, 0, {}
    labels, users = said.labels[said.shown, :, 0], said.user[said.shown]
    lists = int(np.sum((labels == 1).any(1) & (labels == 0).any(1)))
    ahead = {"list_mrr": _leads({name: values["list_mrr"] for name, values in found.items()}, users, config, seed)}
    shown = {name: metrics.summary(values, users, config.bootstrap, seed) for name, values in found.items()}
    return shown, lists, ahead


def approximate(
    keys: np.ndarray,
    batches: model_answers.Batches,
    vectors: np.ndarray,
    k: int = 10,
    asked: collections.abc.Sequence[int] = (),
):
    """ScaNN beside the exact search over `keys` (V, D), on the retrieval vectors (n, D) of all targets.

    Args:
      asked: further cut-offs; both searches then go as deep as the largest of all. What is not found is no hit.

    Returns:
      What `index.compare` measures, and hr@k and ndcg@k of each target with ScaNN in place of the exact search; seen
      items are filtered from a list that is longer by as many, up to the next power of two: so rows go together.
    """
    scann, exact = index.ScannIndex.build(keys), index.ExactIndex.build(keys)
    cuts = metrics.cutoffs(asked, (k if asked else min(k, exact.size),))
    k = min(max(cuts), exact.size)
    measured = index.compare(exact, scann, vectors, k)
    ranks, done = [], 0
    for batch in batches:
        real = batch.user >= 0
        seen, target = batch.seen[real], batch.target[real]
        # By the items a user had, not the padded width of `seen`: ScaNN works harder the more it is asked for.
        more = np.array([1 << (had - 1).bit_length() if had else 0 for had in (seen > 0).sum(1).tolist()], int)
        found = np.full((len(target), 2), max(cuts) + 1)
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
    found = metrics.retrieval_metrics(np.concatenate(ranks), cuts)
    return measured, {name: value for name, value in found.items() if name != "mrr"}


def by_label(
    names: typing.Sequence[str],
    said: model_answers.Answers,
    logits: np.ndarray,
    bootstrap: int = 0,
    seed: int = 0,
    at: int | collections.abc.Sequence[int] = 10,
) -> System:
    """`metrics.ranking_metrics` of each ranked label, keyed "auc/like" and so on.

    Left out are labels of which the logits are all NaN, since a baseline may know nothing of them, and metrics
    that are undefined: a label that is known of the target alone gives no list to rank. The first label's log loss and
    calibration are over the lists that were shown alone: among sampled candidates the share of chosen items is that of the
    sample, `rank_candidates`, which training and evaluation set apart. Intervals resample users.

    Args:
      names: of the labels, A; said: whose labels, lists and users they are.
      logits: (n, K, A), of whichever system, on the same candidates.
      at: as in `metrics.list_metrics`.
    """
    result = {}
    for column, name in enumerate(names):
        if not np.isnan(logits[:, :, column]).all():
            labels, scores = said.labels[:, :, column], logits[:, :, column]
            found = metrics.ranking_metrics(labels, scores, said.user, bootstrap, seed, at)
            if not column and not said.shown.all():
                ours = labels[said.shown], scores[said.shown], said.user[said.shown]
                real = metrics.ranking_metrics(*ours, bootstrap, seed)
                found |= {metric: real[metric] for metric in ("log_loss", "calibration_error")}
            result |= {f"{metric}/{name}": value for metric, value in found.items() if np.isfinite(value["mean"])}
    return result
