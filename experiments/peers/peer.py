"""RecTools' SASRec and HSTU in their own code, on events that `events.py` wrote. Runs in the peers' environment.

Knows nothing of synergen-jax but the file of events: `speed.py` and `quality.py` start it, and speak to it through files
and standard input and output. Their defaults hold for whatever is no argument here.

  python peer.py speed --events events.npz --model sasrec --width 64 ...     waits for commands on stdin
  python peer.py quality --events events.npz --model hstu --out scores.npy   trains, and writes a score a user and item
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import sys
import time
import typing
import warnings

import numpy as np

LOSSES = ("softmax", "sampled_softmax", "BCE", "gBCE")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser("peer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = top.add_subparsers(dest="task", required=True)
    for task, text in (("speed", "Train a few steps whenever asked."), ("quality", "Train, choose, and score.")):
        one = tasks.add_parser(task, help=text, description=text)
        one.add_argument("--events", type=pathlib.Path, required=True, help="what events.py wrote")
        one.add_argument("--model", choices=("sasrec", "hstu"), required=True)
        one.add_argument("--width", type=int, default=64)
        one.add_argument("--depth", type=int, default=2)
        one.add_argument("--heads", type=int, default=2)
        one.add_argument("--length", type=int, default=200)
        one.add_argument("--batch", type=int, default=128)
        one.add_argument("--loss", choices=LOSSES, default="softmax")
        one.add_argument("--negatives", type=int, default=256, help="a position, unless the loss is softmax")
        one.add_argument("--dropout", type=float, default=0.2)
        one.add_argument("--learning-rate", type=float, default=1e-3)
        one.add_argument("--temperature", type=float, default=1.0, help="divides the logits")
        one.add_argument("--threads", type=int, default=2)
        one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=pathlib.Path, required=True, help="scores of the test users, (users, V) float32")
    one.add_argument("--epochs", type=int, default=100, help="at most")
    one.add_argument("--evaluate-every", type=int, default=1, help="epochs")
    one.add_argument("--patience", type=int, default=10, help="validations without a better NDCG@10")
    return top


class Part(typing.NamedTuple):
    """Events of one part of the split, in the order of users and of their events."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray  # Unix seconds

    def frame(self):
        """As RecTools' interactions."""
        import pandas as pd

        return pd.DataFrame(
            {"user_id": self.user, "item_id": self.item, "weight": 1.0, "datetime": pd.to_datetime(self.time, unit="s")}
        )


def read(path: pathlib.Path) -> tuple[dict[str, Part], int]:
    """The parts "train", "validation" and "test", and V."""
    with np.load(path) as found:
        parts = {
            name: Part(*(found[f"{name}_{field}"] for field in Part._fields))
            for name in ("train", "validation", "test")
        }
        return parts, int(found["items"])


def make_model(arguments, callbacks=(), epochs: int = 10**6):
    """An untrained model of theirs; Lightning's trainer is quiet and writes nothing."""
    import pytorch_lightning as lightning
    import torch
    from rectools.models import HSTUModel, SASRecModel

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(arguments.threads)
    lightning.seed_everything(arguments.seed, verbose=False)

    def trainer():
        return lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=list(callbacks),
        )

    return {"sasrec": SASRecModel, "hstu": HSTUModel}[arguments.model](
        n_factors=arguments.width,
        n_blocks=arguments.depth,
        n_heads=arguments.heads,
        session_max_len=arguments.length,
        batch_size=arguments.batch,
        loss=arguments.loss,
        n_negatives=arguments.negatives,
        dropout_rate=arguments.dropout,
        lr=arguments.learning_rate,
        lightning_module_kwargs={"logits_t": arguments.temperature},
        get_trainer_func=trainer,
    )


def say(**answer: typing.Any) -> None:
    """One line of JSON for whoever asked."""
    print(json.dumps(answer), flush=True)


def speed(arguments) -> None:
    """Trains on; each line on stdin, a number, asks for that many steps and is answered by their seconds and targets."""
    import pytorch_lightning as lightning
    from rectools.dataset import Dataset

    class Meter(lightning.Callback):
        """Stops before a batch is fetched until steps are asked for, so that a step's batch is in its time."""

        left = targets = 0
        start = 0.0

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if self.left:
                self.left -= 1
                self.targets += int((batch["y"] > 0).sum())
                if self.left:
                    return
                say(seconds=time.perf_counter() - self.start, targets=self.targets)
            else:
                say(ready=True)  # the first step is done
            line = sys.stdin.readline()
            if not line.strip():
                trainer.should_stop = True
                return
            self.left, self.targets, self.start = int(line), 0, time.perf_counter()

    parts, _ = read(arguments.events)
    make_model(arguments, [Meter()]).fit(Dataset.construct(parts["train"].frame()))


def quality(arguments) -> None:
    """Trains to the best validation NDCG@10, then scores every item for every test user."""
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.metrics import MRR, NDCG, HitRate, calc_metrics

    parts, items = read(arguments.events)
    before = {
        "validation": parts["train"],
        "test": Part(*(np.concatenate(both) for both in zip(parts["train"], parts["validation"]))),
    }
    history = {name: Dataset.construct(part.frame()) for name, part in before.items()}
    model = make_model(arguments, epochs=1)

    def recommend(part: str, users: np.ndarray, k: int):
        """Their own top k of unseen items, asked at the time of the target."""
        which = np.isin(parts[part].user, users)
        context = Part(*(field[which] for field in parts[part])).frame()
        context = context.drop(columns="weight") if model.require_recommend_context else None
        return model.recommend(
            users, history[part], k, filter_viewed=True, on_unsupported_targets="ignore", context=context
        )

    def ndcg() -> float:
        # With one target a user the ideal is that target in the first place: what `divide_by_achievable` makes of it.
        truth = parts["validation"].frame()
        found = recommend("validation", parts["validation"].user, 10)
        return calc_metrics({"ndcg": NDCG(10, divide_by_achievable=True)}, found, truth)["ndcg"]

    best, best_epoch, waited, weights, start = -1.0, 0, 0, None, time.perf_counter()
    for epoch in range(arguments.evaluate_every, arguments.epochs + 1, arguments.evaluate_every):
        model.fit_partial(history["validation"], arguments.evaluate_every, arguments.evaluate_every)
        value = ndcg()
        waited = 0 if value > best else waited + 1
        if value > best:
            best, best_epoch = value, epoch
            weights = {name: x.clone() for name, x in model.torch_model.state_dict().items()}
        say(epoch=epoch, validation_ndcg_10=value, seconds=time.perf_counter() - start)
        if waited >= arguments.patience:
            break
    model.torch_model.load_state_dict(weights)
    users = parts["test"].user
    scores = np.full((len(users), items), -np.inf, np.float32)
    row = {int(user): n for n, user in enumerate(users)}
    tops = []
    for chunk in np.array_split(users, max(1, len(users) // 500)):
        found = recommend("test", chunk, items)
        rows = found[Columns.User].map(row).to_numpy()
        scores[rows, found[Columns.Item].to_numpy()] = found[Columns.Score].to_numpy()
        tops.append(found[found[Columns.Rank] <= 200])
    np.save(arguments.out, scores)
    import pandas as pd

    cut = {f"hr@{k}": HitRate(k) for k in (10, 50, 200)} | {
        f"ndcg@{k}": NDCG(k, divide_by_achievable=True) for k in (10, 50, 200)
    }
    theirs = calc_metrics(cut | {"mrr@200": MRR(200)}, pd.concat(tops), parts["test"].frame())
    say(best_epoch=best_epoch, validation_ndcg_10=best, rectools={name: float(x) for name, x in theirs.items()})


def main() -> None:
    """Runs a task."""
    arguments = parser().parse_args()
    if not arguments.events.is_file():
        print(f"peer.py: error: --events {arguments.events}: no such file; events.py writes one", file=sys.stderr)
        raise SystemExit(2)
    {"speed": speed, "quality": quality}[arguments.task](arguments)


if __name__ == "__main__":
    main()
