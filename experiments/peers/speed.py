"""Training speed: RecTools' SASRec and HSTU in their own code, and ours, side by side on one machine.

  python speed.py --log ml-1m --peer-python PEERS/bin/python --json speed.json

All train on the last `--length` events of every training user, at one width, depth, number of heads and batch, by their
usual training loop: Lightning with its data loader, and our step from our feed. They take turns, `--steps` steps a
round each, after warming up, on `--threads` cores; what counts is targets learned from a second, padding left out.

  softmax   (default) every item is a negative of every position, for all of them
  sampled   RecTools draws `--negatives` for each position, we as many for the whole batch: theirs costs as it does

"ranking too" is our whole task: four ranked events a user with eight candidates each, which the others do not have.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import typing


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = argparse.ArgumentParser("speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("--log", default="ml-1m", help="a prepared log, or its folder")
    one.add_argument("--peer-python", default=sys.executable, help="the Python of an environment with RecTools")
    one.add_argument("--models", default="sasrec,hstu", help="comma-separated")
    one.add_argument("--loss", choices=("softmax", "sampled"), default="softmax")
    one.add_argument("--negatives", type=int, default=256)
    one.add_argument("--width", type=int, default=64)
    one.add_argument("--depth", type=int, default=2)
    one.add_argument("--heads", type=int, default=2)
    one.add_argument("--length", type=int, default=200)
    one.add_argument("--batch", type=int, default=128)
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--steps", type=int, default=8, help="a round and side")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


def our_config(arguments, ranking: bool):
    """Our config of the same task: one window a user, its retrieval loss alone unless `ranking`."""
    from synergen_jax import config as configs

    sampled = arguments.loss == "sampled"
    return configs.from_dict(
        {
            "data": {
                "max_history": arguments.length,
                "batch": arguments.batch,
                "negatives": arguments.negatives if sampled else 0,
                "rank_events": 4 if ranking else 0,
                "rank_candidates": 8,
            },
            "model": {"width": arguments.width, "depth": arguments.depth, "heads": arguments.heads, "matrices": False},
            "loss": {"full_softmax": not sampled, "in_batch": 0},
            "mesh": {"data": 1},
        }
    )


class Ours:
    """Our training step from our feed."""

    def __init__(self, log, config):
        import numpy as np

        from synergen_jax.bench.setting import Trainer
        from synergen_jax.runs.inputs import of_log

        catalogue, feed = of_log(config, log)
        self._trainer, self._batches, self._count = Trainer(config, log.spec, catalogue), feed(0), np.count_nonzero
        self.steps(1)

    def steps(self, count: int) -> dict[str, typing.Any]:
        """Seconds and targets of so many training steps."""
        import time

        import jax

        start, targets = time.perf_counter(), 0
        for _ in range(count):
            batch = next(self._batches)
            targets += int(self._count(batch.target))
            metrics = self._trainer(self._trainer.place(batch))
        jax.block_until_ready(metrics)
        return {"seconds": time.perf_counter() - start, "targets": targets}

    def close(self) -> None:
        """Ends the feed."""
        self._batches.close()


def measure(arguments, log, folder: pathlib.Path) -> dict[str, list[float]]:
    """Targets a second of each side, a number a round."""
    import events

    from data_pipelines.feed import splits

    config = our_config(arguments, False)
    events.write(log, splits.split(log, config.data), folder / "events.npz")
    names = ("width", "depth", "heads", "length", "batch", "threads", "negatives")
    settings = {name: getattr(arguments, name) for name in names}
    settings["loss"] = "sampled_softmax" if arguments.loss == "sampled" else "softmax"
    sides: dict[str, typing.Any] = {}
    try:
        sides["synergen-jax"] = Ours(log, config)
        sides["synergen-jax, ranking too"] = Ours(log, our_config(arguments, True))
        for model in arguments.models.split(","):
            sides[f"RecTools {model}"] = peer = events.Peer(
                arguments.peer_python, "speed", folder / "events.npz", model=model, **settings
            )
            peer.answer()  # its first step is done
        for side in sides.values():
            side.steps(2)
        found = {name: [] for name in sides}
        for number in range(arguments.rounds):
            for name, side in sides.items():
                did = side.steps(arguments.steps)
                found[name].append(did["targets"] / did["seconds"])
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        return found
    finally:
        for side in sides.values():
            side.close()


def main() -> int:
    """Measures, prints a table and a line of JSON."""
    arguments = parser().parse_args()
    import events

    if unknown := set(arguments.models.split(",")) - {"sasrec", "hstu"}:
        events.refuse(f"--models {', '.join(sorted(unknown))}: sasrec and hstu are known")
    events.check(arguments.peer_python)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):  # not on macOS, where jax takes all cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])  # before jax counts them

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate
    from synergen_jax.bench.timing import Spread, ratio
    from synergen_jax.evaluation import report

    log = EventLog.load(locate(arguments.log, None))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, log, pathlib.Path(folder))
    peers = [name for name in found if name.startswith("RecTools")]
    rows, ratios = [], {}
    for name, rates in found.items():
        row = {"training": name, "targets/s": Spread.of(rates).cell()}
        for peer in peers:
            ratios[f"{name} over {peer}"] = ratio(rates, found[peer])
            row[f"over {peer}"] = ratio(rates, found[peer]).cell()
        rows.append(row)
    about = {name: value for name, value in vars(arguments).items() if name not in ("json", "peer_python")}
    print(f"{log.name}, {about}\n{report.table(rows)}")
    result = {
        "settings": about,
        "targets_per_second": found,
        "ratios": {name: spread._asdict() for name, spread in ratios.items() if not name.startswith("RecTools")},
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
