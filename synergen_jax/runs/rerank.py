"""Fits the second stage of a trained run, and opens it again: what `synergen rerank` does.

RUN/ranker/   ranker.json, ranker.msgpack (`reranking.ranker`), statistics.npz (`reranking.statistics`)
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import time
import typing

import numpy as np
import tqdm

from data_pipelines.feed import windows
from synergen_jax.batch import EvalBatch
from synergen_jax.errors import UserError, writing
from synergen_jax.evaluation import model_answers, neighbours, query_counts
from synergen_jax.processes import cluster
from synergen_jax.reranking import fit, list_features
from synergen_jax.reranking.list_features import ListFeatures, Requests, Retrieved
from synergen_jax.reranking.ranker import Ranker
from synergen_jax.reranking.statistics import Statistics
from synergen_jax.runs.run import Opened, Run, open_run
from synergen_jax.sharding.table import place_catalogue

FOLDER = "ranker"
PART = "validation"  # requests that training did not meet, and that no table of results is about


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """A ranker with all that it needs to order what a run retrieves."""

    ranker: Ranker
    features: ListFeatures
    log: typing.Any

    @property
    def first(self) -> int:
        """Items of a list."""
        return self.ranker.about["first"]

    def __call__(self, batch: EvalBatch, item: np.ndarray, score: np.ndarray, logit: np.ndarray) -> np.ndarray:
        """As `protocol.Second`."""
        found = Retrieved(item, score, logit)
        return self.ranker.scores(self.features.table(requests(self.log, batch), found))


def requests(log, batch: EvalBatch) -> Requests:
    """The requests of a batch of targets, on the clock of the log."""
    users = np.maximum(np.asarray(batch.user), 0).tolist()
    return Requests.of(batch, np.array([int(log[user]["time"][0]) for user in users]))


def statistics(run: Run) -> Statistics:
    """What the training part of a run tells of items."""
    log, split = run.training
    user, item, moment = windows.trained(log, split.train_stop, "time")
    _, _, query = windows.trained(log, split.train_stop, "query")
    spec = run.log.spec
    matrix = neighbours.user_items(user, item, (len(run.log), spec.items))
    near = neighbours.nearest(matrix.T.tocsr(), matrix, neighbours.ITEMS, np.arange(spec.items))
    return Statistics.of(item, moment, near, query_counts.pair_counts(query, item, (spec.queries, spec.items)))


def collect(
    opened: Opened, features: ListFeatures, part: str, first: int, most: int | None = None, seed: int = 0
) -> tuple[fit.Lists, dict[str, np.ndarray]]:
    """The lists of a part of a split; and of each the place of its target among all items, its task, its logits.

    Args:
      most: lists at most, drawn by `seed`; None: all.

    Returns:
      Lists whose `target` is -1 where it was not retrieved; "ranks" (n, 2), "search" (n,) and "logit" (n, F).
    """
    run = opened.run
    asked = model_answers.PlacedModel.of(run.model, opened.params, place_catalogue(run.catalogue, opened.mesh))
    targets = run.targets(part)
    if most is not None and most < targets.targets:
        which = np.sort(np.random.default_rng((seed, most)).permutation(targets.targets)[:most])
        targets = dataclasses.replace(targets, places=targets.places[which], told=targets.told[which])
    found = []
    for batch in tqdm.tqdm(targets, desc=part, unit="batch", disable=None, leave=False):
        said, real = model_answers.answer(asked, batch, 0)
        mine = Retrieved(*model_answers.retrieved(asked, batch, first))
        place = mine.item == np.asarray(batch.target)[:, None]
        target = np.where(place.any(axis=1), place.argmax(axis=1), -1)
        search = np.asarray(batch.reader.query)[:, 0] > 0
        table = features.table(requests(run.log, batch), mine)
        parts = np.asarray(batch.user), table, mine.item > 0, target, np.asarray(said.ranks), search, mine.logit
        found.append([one[np.asarray(real)] for one in parts])
    user, table, there, target, ranks, search, logit = (np.concatenate(one) for one in zip(*found, strict=True))
    return fit.Lists(user, table, there, target), {"ranks": ranks, "search": search, "logit": logit}


def rerank(
    folder: str | pathlib.Path,
    settings: typing.Sequence[str] = (),
    data_dir: str | pathlib.Path | None = None,
    lists: int = 50_000,
    seed: int = 0,
) -> dict[str, typing.Any]:
    """Fits the second stage of a run on what it retrieves for the validation part, as `synergen rerank` does.

    Args:
      settings: command-line words; `--evaluate.rerank N` says how many items a list has.
      lists: how many, at most.

    Raises:
      UserError: the run cannot be opened, there are too few lists, or nothing can be written there.
    """
    folder, started = pathlib.Path(folder), time.monotonic()
    if cluster.count() > 1:
        raise UserError("a second stage is fitted by one process: run `synergen rerank` on one machine")
    opened = open_run(folder, settings, data_dir)
    run = opened.run
    run.refuse_unmeasured(str(folder))
    first = min(run.config.evaluate.rerank, run.log.spec.items - 1)
    if first < 2:
        raise UserError(f"evaluate.rerank is {run.config.evaluate.rerank}: there is no list to order; give 100 or so")
    known = statistics(run)
    features = ListFeatures(known, run.catalogue, run.log.spec)
    these, _ = collect(opened, features, PART, first, lists, seed)
    told = these.target >= 0
    cluster.say(f"{len(told):,} lists of the {PART} part, the target is in {told.mean():.1%} of them")
    about = {"log": run.log.fingerprint, "step": opened.step, "first": first, "part": PART}
    chosen = fit.Lists(*(part[told] for part in these))
    columns = list_features.names(run.log.spec)
    ranker = fit.fit(chosen, columns, fit.Settings(seed=seed), about)
    _write(folder, ranker, known)
    cluster.say(
        f"second stage: of {ranker.about['lists']:,} lists; mean loss of {ranker.about['held_lists']:,} lists of other users "
        f"{ranker.about['held_loss_before']:.4f} -> {ranker.about['held_loss']:.4f} at step {ranker.about['steps']}; "
        f"{time.monotonic() - started:.0f} s; `synergen evaluate {folder}` measures it"
    )
    return {"workdir": str(folder)} | ranker.about


def _write(folder: pathlib.Path, ranker: Ranker, known: Statistics) -> None:
    """Puts a second stage in the place of what was there, whole or not at all."""
    fresh, place = folder / f"{FOLDER}.tmp", folder / FOLDER
    with writing(place):
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            ranker.save(fresh)
            known.save(fresh / "statistics.npz")
            shutil.rmtree(place, ignore_errors=True)
            fresh.rename(place)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def second_stage(opened: Opened) -> SecondStage | None:
    """The second stage of a run; None where none was fitted.

    Raises:
      UserError: it is damaged, or was fitted to another checkpoint or log than those that are opened.
    """
    place = opened.folder / FOLDER
    if not place.is_dir():
        return None
    ranker, run = Ranker.load(place), opened.run
    again = f"fit it again: `synergen rerank {opened.folder}`"
    trained = run.trained_on.fingerprint if run.trained_on else run.log.fingerprint
    if ranker.about.get("log") != trained or ranker.about.get("step") != opened.step:
        raise UserError(
            f"{place} was fitted to step {ranker.about.get('step')} of this run, whose best checkpoint is now that of step "
            f"{opened.step}: {again}"
        )
    if ranker.columns != list_features.names(run.log.spec):
        raise UserError(f"{place} goes by other features than this version has: {again}")
    # Of a later version of the log than it was fitted to, what its training part tells now.
    known = statistics(run) if run.trained_on else Statistics.load(place / "statistics.npz")
    features = ListFeatures(known, run.catalogue, run.log.spec)
    return SecondStage(ranker, features, run.log)
