"""A log cut by time into a base and increments: is it enough to go on from the model of yesterday, or must one train anew?

  python experiments/growth/increments.py --log ml-1m --folder runs/growth

The base is imported, each increment appended: a version a day, so to speak. On each version two models learn all events:
one from fresh parameters, and one that goes on from that of the version before, by fewer steps. Both are measured on the
events that the next version adds, by `synergen evaluate RUN --log LOG@N`. The same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import pathlib
import resource
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
NAME = "grows"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = argparse.ArgumentParser(
        "increments.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument("--log", default="ml-1m", help="a prepared log, or its folder")
    one.add_argument("--config", type=pathlib.Path, default=HERE / "growth.toml")
    one.add_argument("--folder", type=pathlib.Path, required=True, help="for the tables, the versions and the runs")
    one.add_argument("--base", type=float, default=0.92, help="share of the events that the first version has")
    one.add_argument("--increments", type=int, default=4)
    one.add_argument("--epochs", type=float, default=3, help="of training anew")
    one.add_argument("--more", type=float, default=0.5, help="epochs of going on")
    one.add_argument("--seed", type=int, default=0)
    return one


def cut(log, bounds: list[int], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the events between moments to a table each: user, item, time, action."""
    paths = [folder / f"part-{number}.csv" for number in range(len(bounds) - 1)]
    if all(path.exists() for path in paths):
        return paths
    import numpy as np

    made = [path.with_suffix(".tmp") for path in paths]
    files = [path.open("w", newline="", encoding="utf-8") for path in made]
    writers = [csv.writer(file) for file in files]
    for writer in writers:
        writer.writerow(["user", "item", "time", "action"])
    for record in (log[i] for i in range(len(log))):
        part = np.searchsorted(bounds, record["time"], "right") - 1
        for number, item, moment, action in zip(part, record["item"], record["time"], record["action"], strict=True):
            writers[number].writerow([record["user_id"], log.item_ids[item], moment, log.actions[action]])
    for file in files:
        file.close()
    for temporary, path in zip(made, paths, strict=True):
        temporary.replace(path)
    return paths


class Days:
    """The versions and the runs under a folder."""

    def __init__(self, arguments):
        self.arguments, self.folder = arguments, arguments.folder
        self.done_file = self.folder / "done.json"
        self.done = json.loads(self.done_file.read_text()) if self.done_file.exists() else {}

    def call(self, key: str, *words) -> dict:
        """What a command of synergen prints as JSON, and the seconds that it took; kept, so that it is not done again."""
        if key not in self.done:
            command = [sys.executable, "-m", "synergen_jax.cli", *map(str, words), "--json"]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            found = subprocess.run(
                [*command, "--data-dir", str(self.folder / "data")], stdout=subprocess.PIPE, text=True, check=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            told = json.loads(found.stdout.splitlines()[-1])
            self.done[key] = told | {"seconds": time.monotonic() - start, "cpu_seconds": cpu}
            temporary = self.done_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.done))
            temporary.replace(self.done_file)
        return self.done[key]

    def train(self, version: int, kind: str, events: int) -> pathlib.Path:
        """Trains on all events of a version: "anew", or "on" from the run of the version before."""
        arguments = self.arguments
        epochs = arguments.epochs if kind == "anew" or version == 1 else arguments.more
        name = "anew" if version == 1 else kind
        steps = math.ceil(epochs * events / (16 * 200))
        words = ["train", arguments.config, "--workdir", self.folder / f"{name}-{version}", "--run.steps", steps]
        words += ["--data.log", f"{NAME}@{version}", "--data.seed", arguments.seed, "--run.seed", arguments.seed]
        if name == "on":
            words += ["--init-from", self.folder / f"{'anew' if version == 2 else 'on'}-{version - 1}"]
        self.call(f"train {name} {version}", *words)
        return self.folder / f"{name}-{version}"


def rows(days: Days, events: list[pathlib.Path]) -> list[dict]:
    """Imports, trains, appends and measures, version after version; a row a model."""
    made = days.call("import", "data", "import", events[0], "--name", NAME, "--time-unit", "seconds")
    found = []
    for version, more in enumerate(events[1:], 1):
        runs = {kind: days.train(version, kind, made["events"]) for kind in ("anew", "on")}
        made = days.call(f"append {version + 1}", "data", "append", NAME, more)
        for kind, run in runs.items():
            key = f"evaluate {run.name}"
            words = ["evaluate", run, "--log", f"{NAME}@{version + 1}", "--out", run / "next"]
            measured = days.call(key, *words, "--evaluate.baselines", "false", "--evaluate.scann", "false")
            trained = days.done[f"train {run.name.replace('-', ' ')}"]
            found.append(
                {
                    "version": version,
                    "model": kind,
                    "targets": measured["targets"],
                    "HR@10": round(measured["model"]["hr@10"], 4),
                    "NDCG@10": round(measured["model"]["ndcg@10"], 4),
                    "steps": trained["step"],
                    "CPU s": round(trained["cpu_seconds"]),
                    "append s": round(made["seconds"], 1),
                }
            )
    return found


def main() -> int:
    """Cuts, goes through all versions, prints a table and a line of JSON."""
    arguments = parser().parse_args()
    import numpy as np

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate
    from synergen_jax.evaluation import report

    log = EventLog.load(locate(arguments.log, None))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    every = np.sort(np.concatenate([log[i]["time"] for i in range(len(log))]))
    shares = np.linspace(arguments.base, 1, arguments.increments + 1)[:-1]
    bounds = [0, *(int(every[int(share * len(every))]) for share in shares), int(every[-1]) + 1]
    found = rows(Days(arguments), cut(log, bounds, arguments.folder))
    print(report.table(found))
    print(
        json.dumps(
            {"log": log.name, "settings": vars(arguments) | {"config": str(arguments.config)}, "rows": found},
            default=str,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
