"""Ranking within shown lists: the runs of a sweep against what goes by the candidate features alone.

  synergen sweep trivago --workdir runs/trivago --seeds 0,1,2 --split test --only model
  python experiments/reranking/shown_lists.py runs/trivago/model/seed-* --only position,price,seen,met,step

Regressions on some of the features, with their squares and products, and on all; LightGBM's LambdaRank on all. They are
fitted on the lists of the training part; a tenth of them says when LightGBM stops. For each the MRR within the lists
of the test part, and how far the runs are ahead: list by list, the mean of the runs, with a 95% bootstrap over users.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import typing

import boosted
import numpy as np
import script

from data_pipelines.feed import windows
from synergen_jax.errors import UserError
from synergen_jax.evaluation import metrics
from synergen_jax.evaluation.feature_regression import FeatureRegression
from synergen_jax.runs import workdir
from synergen_jax.runs.run import Run, open_run

HELD = 10  # one training list of so many says when LightGBM stops
SETTINGS = {"learning_rate": 0.04, "num_leaves": 15, "min_data_in_leaf": 60}


class Lists(typing.NamedTuple):
    """The lists of the test part that hold both what was chosen and what was not; n of K items at most."""

    user: np.ndarray  # (n,)
    feature: np.ndarray  # (n, K, F)
    label: np.ndarray  # (n, K): 1, 0, or -1 where there is no item


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = script.parser("shown_lists.py", __doc__)
    one.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of one config, evaluated on the test part")
    one.add_argument("--only", help="names of candidate features, comma-separated, for a regression on these alone")
    return one


def test_lists(run: Run) -> Lists:
    """In the order of the evaluation's targets."""
    user, feature, label = [], [], []
    for batch in run.targets("test"):
        which = np.asarray(batch.shown) & (np.asarray(batch.user) >= 0)
        user.append(np.asarray(batch.user)[which])
        feature.append(np.asarray(batch.ranking.feature)[which, 0, :, :-1])
        label.append(np.asarray(batch.ranking.label)[which, 0, :, 0])
    return Lists(*(np.concatenate(parts) for parts in (user, feature, label)))


def regression(lists: Lists, learned: tuple[np.ndarray, np.ndarray, np.ndarray], columns: list[int]) -> np.ndarray:
    """Scores (n, K) of the test lists by a regression on some columns."""
    feature, number, chosen = learned
    fitted = FeatureRegression.fit(feature[:, columns], number, chosen)
    known = np.ones((*lists.label.shape, 1), np.float32)
    return fitted.scores(np.concatenate([lists.feature[..., columns], known], axis=-1))


def by_trees(
    lists: Lists, learned: tuple[np.ndarray, np.ndarray, np.ndarray], arguments: argparse.Namespace
) -> np.ndarray:
    """Scores (n, K) of the test lists by LightGBM."""
    feature, number, chosen = learned
    held = (np.random.default_rng(arguments.seed).random(int(number[-1]) + 1) < 1 / HELD)[number]
    settings = SETTINGS | {"seed": arguments.seed, "num_threads": arguments.threads}
    return boosted.scores(boosted.fit(feature, number, chosen, held, settings), lists.feature)


def evaluated(folder: pathlib.Path, users: np.ndarray) -> np.ndarray:
    """The MRR of a run in each list, as `synergen evaluate` found it."""
    each = workdir.read_each(folder / "each_test.npz")
    if "list_mrr/model" not in each or not np.array_equal(each["list_user"], users):
        raise UserError(f"{folder}: there are no shown lists of this log: `synergen evaluate {folder} --split test`")
    return each["list_mrr/model"]


def measured(arguments: argparse.Namespace) -> dict[str, typing.Any]:
    """The MRR of each system, and how far the runs lead it."""
    run = open_run(arguments.runs[0], [], arguments.data_dir).run
    names, lists = run.log.spec.candidate_features, test_lists(run)
    only = arguments.only.split(",") if arguments.only else []
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only {unknown[0]}: the log's candidate features are {', '.join(names) or 'none'}")
    runs = np.stack([evaluated(folder, lists.user) for folder in arguments.runs])
    log, split = run.training
    learned = windows.training_lists(log, split.train_stop, run.config.data.target_actions)
    scores = {f"regression on {len(only)}": regression(lists, learned, [names.index(n) for n in only])} if only else {}
    scores[f"regression on all {len(names)}"] = regression(lists, learned, list(range(len(names))))
    scores["lightgbm"] = by_trees(lists, learned, arguments)
    told = {name: metrics.list_metrics(lists.label, score)["list_mrr"] for name, score in scores.items()}
    told = {"runs": runs.mean(axis=0), **told}
    summary = lambda values: metrics.summary(values, lists.user, 1000, arguments.seed)
    return {
        "runs": [str(folder) for folder in arguments.runs],
        "lists": int(np.isfinite(told["runs"]).sum()),
        "mrr": summary(told),
        "lead": summary({name: told["runs"] - value for name, value in told.items() if name != "runs"}),
        "seeds": {name: np.nanmean(runs - told[name], axis=1).round(4).tolist() for name in scores},
    }


def text(found: dict[str, typing.Any]) -> str:
    """A line a system."""
    lines = [f"{found['lists']:,} shown lists, MRR; the lead of the mean of {len(found['runs'])} runs, and of each run"]
    told = lambda value, sign="": f"{value['mean']:{sign}.4f} [{value['low']:{sign}.4f}, {value['high']:{sign}.4f}]"
    for name, value in found["mrr"].items():
        more = ""
        if name in found["lead"]:
            more = f"  {told(found['lead'][name], '+')}  {' '.join(f'{x:+.4f}' for x in found['seeds'][name])}"
        lines.append(f"  {name:22} {told(value)}{more}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(script.main(parser(), measured, text))
