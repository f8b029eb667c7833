"""How much another order of what is retrieved first can gain: the head's, the second stage's, LightGBM's, the best there is.

  synergen rerank runs/ml-1m
  python experiments/reranking/ceiling.py runs/ml-1m --json ceiling.json

The first 100 items of the model's retrieval are ordered five ways, on the test part: by retrieval; by the ranking head of
the model; by its second stage, fitted by `synergen rerank`; by LightGBM's LambdaRank; and by an oracle that puts the
target first wherever it is. LightGBM learns from the same lists of the validation part as the second stage, by the same
columns; a fifth of the users says when it stops.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
import typing

import boosted
import numpy as np
import script

from synergen_jax.errors import UserError
from synergen_jax.evaluation import metrics, model_answers
from synergen_jax.reranking import fit, list_features
from synergen_jax.runs import rerank
from synergen_jax.runs.run import open_run

HELD = 5  # one user of so many says when LightGBM stops
SETTINGS = {"learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 200}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = script.parser("ceiling.py", __doc__)
    one.add_argument("run", type=pathlib.Path, help="a workdir of `synergen train`, after `synergen rerank`")
    one.add_argument("--lists", type=int, default=50_000, help="lists of the validation part, at most")
    one.add_argument(
        "--without",
        metavar="COLUMN",
        action="append",
        default=[],
        help="also fit the second stage and LightGBM without this column, such as popularity; repeatable",
    )
    return one


def narrowed(lists: fit.Lists, columns: list[int]) -> fit.Lists:
    """The lists with some of their columns alone."""
    return lists._replace(feature=lists.feature[..., columns])


def learned_by(lists: fit.Lists, arguments: argparse.Namespace) -> boosted.lightgbm.Booster:
    """LightGBM, fitted on lists that hold their target."""
    draw = np.random.default_rng(arguments.seed).random(int(lists.user.max()) + 1)
    number, place = lists.there.nonzero()
    held = (draw[lists.user] < 1 / HELD)[number]
    settings = SETTINGS | {"seed": arguments.seed, "num_threads": arguments.threads}
    return boosted.fit(lists.feature[lists.there], number, place == lists.target[number], held, settings)


def orders(lists: fit.Lists, ranks: np.ndarray, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """NDCG@10 of each list as retrieval, each of `scores`, (n, F), and the oracle order it; (n,) each.

    Args:
      ranks: (n, 2) of the targets among all items, by retrieval.
    """
    ndcg = lambda places: metrics.retrieval_metrics(np.asarray(places), (10,))["ndcg@10"]
    target = np.arange(lists.there.shape[1]) == lists.target[:, None]
    every = scores | {"oracle": target.astype(np.float32)}
    reorder = lambda score: model_answers.reranked(score, lists.there, target, ranks)
    return {"retrieval": ndcg(ranks)} | {name: ndcg(reorder(score)) for name, score in every.items()}


def by_task(lists: fit.Lists, search: np.ndarray, found: dict[str, np.ndarray], seed: int) -> dict[str, typing.Any]:
    """Means by task, and gains over the order of retrieval with intervals over users."""
    tasks = {"all": np.ones(len(search), bool), "search": search, "recommendation": ~search}
    result = {}
    for task, mask in tasks.items():
        if mask.any():
            gains = {name: value[mask] - found["retrieval"][mask] for name, value in found.items()}
            del gains["retrieval"]
            result[task] = {
                "lists": int(mask.sum()),
                "in the first": float((lists.target[mask] >= 0).mean()),
                "ndcg@10": {name: float(value[mask].mean()) for name, value in found.items()},
                "gain": metrics.summary(gains, lists.user[mask], 1000, seed),
            }
    return result


def measured(arguments: argparse.Namespace) -> dict[str, typing.Any]:
    """All of it for one run."""
    started = time.monotonic()
    opened = open_run(arguments.run, [], arguments.data_dir)
    second = rerank.second_stage(opened)
    if second is None:
        raise UserError(f"{arguments.run} has no second stage yet: `synergen rerank {arguments.run}` fits it")
    names = list_features.names(opened.run.log.spec)
    if unknown := [name for name in arguments.without if name not in names]:
        raise UserError(f"--without: there is no column {unknown[0]!r}; there are {', '.join(names)}")
    learned, _ = rerank.collect(opened, second.features, rerank.PART, second.first, arguments.lists, arguments.seed)
    learned = fit.Lists(*(part[learned.target >= 0] for part in learned))
    lists, beside = rerank.collect(opened, second.features, "test", second.first)
    booster = learned_by(learned, arguments)
    scores = {"head": beside["logit"], "second stage": second.ranker.scores(lists.feature)}
    scores["lightgbm"] = boosted.scores(booster, lists.feature).astype(np.float32)
    if arguments.without:
        kept = [place for place, name in enumerate(names) if name not in arguments.without]
        less, told = narrowed(learned, kept), narrowed(lists, kept).feature
        ranker = fit.fit(less, [names[place] for place in kept], fit.Settings(seed=arguments.seed), {})
        scores["second stage, without"] = ranker.scores(told)
        scores["lightgbm, without"] = boosted.scores(learned_by(less, arguments), told).astype(np.float32)
    share = booster.feature_importance("gain")
    return {
        "run": str(arguments.run),
        "log": opened.run.log.name,
        "step": opened.step,
        "first": second.first,
        "seconds": round(time.monotonic() - started),
        "without": arguments.without,
        "tasks": by_task(lists, beside["search"], orders(lists, beside["ranks"], scores), arguments.seed),
        "lightgbm": {
            "rounds": booster.best_iteration,
            "gain": dict(zip(names, (share / share.sum()).round(4).tolist())),
        },
    }


def text(found: dict[str, typing.Any]) -> str:
    """A table a task."""
    lines = [f"{found['run']}: {found['log']}, step {found['step']}, first {found['first']}, {found['seconds']} s"]
    for task, values in found["tasks"].items():
        lines.append(f"{task}: {values['lists']:,} lists, the target is in {values['in the first']:.1%} of them")
        for name, value in values["ndcg@10"].items():
            gain = values["gain"].get(name)
            more = f"  {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain else ""
            lines.append(f"  {name:22} NDCG@10 {value:.4f}{more}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(script.main(parser(), measured, text))
