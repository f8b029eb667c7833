"""RecTools' SASRec and HSTU in their own code, on events that `events.py` wrote. Runs in the peers' environment.

Knows nothing of synergen-jax but the file of events: `speed.py` and `quality.py` start it, and speak to it through files
and standard input and output. Their defaults hold for whatever is no argument here.

  python peer.py speed --events events.npz --model sasrec --width 64 ...     waits for commands on stdin
  python peer.py quality --events events.npz --model hstu --out scores.npy   trains, and writes a score a user and item
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import pickle
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
    one.add_argument(
        "--keep", type=pathlib.Path, help="a file: where training stands; if it is there, it goes on from it"
    )
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


def trainer(callbacks=()):
    """A trainer of Lightning's that is quiet, writes nothing, and goes on for as long as it is asked to.

    RecTools' checkpoints hold the name of this function.
    """
    import pytorch_lightning as lightning

    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=10**6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )


def make_model(arguments, get_trainer=trainer):
    """An untrained model of theirs."""
    import pytorch_lightning as lightning
    import torch
    from rectools.models import HSTUModel, SASRecModel

    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if hasattr(os, "sched_setaffinity"):  # not on macOS
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    torch.set_num_threads(arguments.threads)
    lightning.seed_everything(arguments.seed, verbose=False)

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
        get_trainer_func=get_trainer,
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
    make_model(arguments, lambda: trainer([Meter()])).fit(Dataset.construct(parts["train"].frame()))


@dataclasses.dataclass
class SoFar:
    """Where training stands."""

    epoch: int = 0
    best: float = -1.0  # validation NDCG@10
    best_epoch: int = 0
    waited: int = 0  # validations since the best
    weights: typing.Any = None  # of the best epoch
    seconds: float = 0.0


def told(arguments) -> dict[str, typing.Any]:
    """The settings that a run must go on with; it may go on for longer."""
    free = ("events", "out", "keep", "threads", "epochs", "patience")
    settings = {name: value for name, value in vars(arguments).items() if name not in free}
    return settings | {"events": hashlib.sha256(arguments.events.read_bytes()).hexdigest()[:12]}


def keep(arguments, model, so_far: SoFar) -> None:
    """Writes where training stands; a file cut off half-way never takes the place of a whole one."""
    import torch

    part = arguments.keep.with_suffix(".part")
    with part.open("wb") as file:
        pickle.dump((told(arguments), pickle.dumps(model), so_far, torch.get_rng_state()), file)
    part.replace(arguments.keep)


def resume(arguments):
    """The model and where its training stood."""
    import torch

    with arguments.keep.open("rb") as file:
        settings, model, so_far, luck = pickle.load(file)
    if settings != told(arguments):
        other = [f"{name} {value}" for name, value in settings.items() if told(arguments).get(name) != value]
        print(f"peer.py: error: --keep {arguments.keep} is of a run with {', '.join(other)}", file=sys.stderr)
        raise SystemExit(2)
    model = pickle.loads(model)
    torch.set_rng_state(luck)  # after the model, which draws weights of its own before it is filled
    return model, so_far


class Lists:
    """Their own lists of unseen items, asked at the time of the targets."""

    def __init__(self, parts: dict[str, Part]):
        from rectools.dataset import Dataset

        before = {
            "validation": parts["train"],
            "test": Part(*(np.concatenate(both) for both in zip(parts["train"], parts["validation"]))),
        }
        self.parts = parts
        self.history = {name: Dataset.construct(part.frame()) for name, part in before.items()}

    def first(self, model, part: str, users: np.ndarray, k: int):
        """The top k of some users of a part."""
        which = np.isin(self.parts[part].user, users)
        context = Part(*(field[which] for field in self.parts[part])).frame()
        context = context.drop(columns="weight") if model.require_recommend_context else None
        return model.recommend(
            users, self.history[part], k, filter_viewed=True, on_unsupported_targets="ignore", context=context
        )

    def validation(self, model) -> float:
        """Validation NDCG@10."""
        from rectools.metrics import NDCG, calc_metrics

        # With one target a user the ideal is that target in the first place: what `divide_by_achievable` makes of it.
        truth = self.parts["validation"].frame()
        found = self.first(model, "validation", self.parts["validation"].user, 10)
        return calc_metrics({"ndcg": NDCG(10, divide_by_achievable=True)}, found, truth)["ndcg"]


def train(arguments, model, so_far: SoFar, lists: Lists) -> None:
    """Trains until validations get no better, and leaves the model with the weights of the best epoch."""
    start = time.perf_counter() - so_far.seconds
    while so_far.epoch < arguments.epochs and so_far.waited < arguments.patience:
        model.fit_partial(lists.history["validation"], arguments.evaluate_every, arguments.evaluate_every)
        value = lists.validation(model)
        so_far.epoch += arguments.evaluate_every
        so_far.waited += 1
        if value > so_far.best:
            so_far.best, so_far.best_epoch, so_far.waited = value, so_far.epoch, 0
            so_far.weights = {name: x.clone() for name, x in model.torch_model.state_dict().items()}
        so_far.seconds = time.perf_counter() - start
        if arguments.keep:
            keep(arguments, model, so_far)
        say(epoch=so_far.epoch, validation_ndcg_10=value, seconds=so_far.seconds)
    model.torch_model.load_state_dict(so_far.weights)


def score(model, lists: Lists, items: int):
    """Scores (users, V) of the test users, -inf for what they do not rank; and their lists of the first 200."""
    import pandas as pd
    from rectools import Columns

    users = lists.parts["test"].user
    scores = np.full((len(users), items), -np.inf, np.float32)
    row = {int(user): n for n, user in enumerate(users)}
    tops = []
    for chunk in np.array_split(users, max(1, len(users) // 500)):
        found = lists.first(model, "test", chunk, items)
        rows = found[Columns.User].map(row).to_numpy()
        scores[rows, found[Columns.Item].to_numpy()] = found[Columns.Score].to_numpy()
        tops.append(found[found[Columns.Rank] <= 200])
    return scores, pd.concat(tops)


def quality(arguments) -> None:
    """Trains to the best validation NDCG@10, then scores every item for every test user."""
    from rectools.metrics import MRR, NDCG, HitRate, calc_metrics

    parts, items = read(arguments.events)
    lists = Lists(parts)
    model, so_far = make_model(arguments), SoFar()
    if arguments.keep and arguments.keep.is_file():
        model, so_far = resume(arguments)
        say(resumed=so_far.epoch)
    train(arguments, model, so_far, lists)
    scores, tops = score(model, lists, items)
    np.save(arguments.out, scores)
    cut = {f"hr@{k}": HitRate(k) for k in (10, 50, 200)} | {
        f"ndcg@{k}": NDCG(k, divide_by_achievable=True) for k in (10, 50, 200)
    }
    theirs = calc_metrics(cut | {"mrr@200": MRR(200)}, tops, parts["test"].frame())
    say(
        best_epoch=so_far.best_epoch,
        validation_ndcg_10=so_far.best,
        rectools={name: float(x) for name, x in theirs.items()},
    )


def main() -> None:
    """Runs a task."""
    arguments = parser().parse_args()
    if not arguments.events.is_file():
        print(f"peer.py: error: --events {arguments.events}: no such file; events.py writes one", file=sys.stderr)
        raise SystemExit(2)
    {"speed": speed, "quality": quality}[arguments.task](arguments)


if __name__ == "__main__":
    main()
