"""Quality: RecTools' SASRec or HSTU, trained in their own code on our split of our log, scored by our metrics.

  python quality.py --log ml-1m --model sasrec --peer-python PEERS/bin/python --json sasrec.json

Leave-one-out as in `synergen train`: the last event of a user is the test target, the one before it the validation target.
Training stops once validation NDCG@10 has not got better for `--patience` validations; the best epoch is scored. Every
item is ranked, those that the user had are left out, metrics are expected over a random order of equal scores. RecTools'
own metrics of the same lists stand beside ours: they must agree where nothing ties.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import typing

# RecTools' HSTU scores by cosines. At RecTools' own default, 1, no item's share of a softmax can rise far above the others',
# and it hardly learns; its authors (Zhai et al. 2024) divide by 0.05.
TEMPERATURE = {"sasrec": 1.0, "hstu": 0.05}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = argparse.ArgumentParser(
        "quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument("--log", default="ml-1m", help="a prepared log, or its folder")
    one.add_argument("--peer-python", default=sys.executable, help="the Python of an environment with RecTools")
    one.add_argument("--model", choices=("sasrec", "hstu"), required=True)
    one.add_argument("--loss", choices=("softmax", "sampled_softmax", "BCE", "gBCE"), default="softmax")
    one.add_argument("--negatives", type=int, default=256, help="a position, unless the loss is softmax")
    one.add_argument("--width", type=int, default=64)
    one.add_argument("--depth", type=int, default=2)
    one.add_argument("--heads", type=int, default=2)
    one.add_argument("--length", type=int, default=200)
    one.add_argument("--batch", type=int, default=128)
    one.add_argument("--dropout", type=float, default=0.2)
    one.add_argument("--learning-rate", type=float, default=1e-3)
    one.add_argument("--temperature", type=float, help="divides the logits (default: 1 for sasrec, 0.05 for hstu)")
    one.add_argument("--epochs", type=int, default=100, help="at most")
    one.add_argument("--evaluate-every", type=int, default=1, help="epochs")
    one.add_argument("--patience", type=int, default=10, help="validations")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--keep", type=pathlib.Path, help="a file: where training stands; if it is there, it goes on from it"
    )
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


def check(arguments) -> None:
    """Refuses what would fail after hours of training."""
    import events

    events.check(arguments.peer_python)
    for flag, path in (("--keep", arguments.keep), ("--json", arguments.json)):
        if path and not path.parent.is_dir():
            events.refuse(f"{flag} {path}: there is no folder {path.parent}; make it first")


def train(arguments, settings: dict[str, typing.Any], folder: pathlib.Path) -> dict[str, typing.Any]:
    """Has the peer train on FOLDER/events.npz and write FOLDER/scores.npy, and tells of its epochs.

    Returns:
      Its last answer: `best_epoch`, `validation_ndcg_10`, and its own metrics, `rectools`.
    """
    import events

    kept = {"keep": arguments.keep.resolve()} if arguments.keep else {}
    peer = events.Peer(
        arguments.peer_python, "quality", folder / "events.npz", out=folder / "scores.npy", **settings, **kept
    )
    last = {}
    try:
        while (answer := peer.answer()) is not None:
            last = answer
            if "resumed" in answer:
                print(f"{arguments.keep}: goes on after epoch {answer['resumed']}", flush=True)
            if "epoch" in answer:
                print(
                    f"epoch {answer['epoch']}: validation NDCG@10 {answer['validation_ndcg_10']:.4f}, "
                    f"{answer['seconds']:.0f} s",
                    flush=True,
                )
    except RuntimeError as error:
        events.refuse(str(error))
    return last


def our_metrics(folder: pathlib.Path):
    """Metrics of FOLDER/scores.npy, (targets, V), in the form of `metrics.summary`; and the number of targets."""
    import numpy as np

    from synergen_jax.evaluation import metrics

    scores = np.load(folder / "scores.npy")
    with np.load(folder / "events.npz") as found:
        target = found["test_item"].astype(np.int32)
    ranks = []
    for start in range(0, len(target), 1024):
        part = slice(start, start + 1024)
        # What a user had has no score: it is left out already, as is what their model never met.
        seen = np.zeros((len(scores[part]), 1), np.int32)
        ranks.append(np.asarray(metrics.ranks(scores[part], target[part], seen)))
    values = metrics.retrieval_metrics(np.concatenate(ranks))
    return metrics.summary(values, np.arange(len(target))), len(target)  # one target a user


def main() -> int:
    """Trains, scores, prints a table and a line of JSON."""
    arguments = parser().parse_args()
    if arguments.temperature is None:
        arguments.temperature = TEMPERATURE[arguments.model]
    check(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import events

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.feed import splits
    from data_pipelines.sources.prepare import locate
    from synergen_jax.config import DataConfig
    from synergen_jax.evaluation import report

    log = EventLog.load(locate(arguments.log, None))
    own = ("log", "peer_python", "keep", "json")
    settings = {name: value for name, value in vars(arguments).items() if name not in own}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        events.write(log, splits.split(log, DataConfig()), folder / "events.npz")
        last = train(arguments, settings, folder)
        ours, targets = our_metrics(folder)
    names = [f"{metric}@{k}" for metric in ("hr", "ndcg") for k in (10, 50, 200)]
    rows = [
        {"metrics": "ours"} | {name: ours[name] for name in names},
        {"metrics": "RecTools'"} | {name: last["rectools"][name] for name in names},
    ]
    print(f"RecTools {arguments.model} on {log.name}, {targets:,} targets, epoch {last['best_epoch']}")
    print(report.table(rows))
    result = {"settings": settings, "log": log.name, "targets": targets, "metrics": ours} | last
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
