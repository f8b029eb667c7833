"""Answers for many users: memory over time, users a second, a kill in the middle, and what batches are worth.

  python answer_many.py --users 1_000_000 --killed-users 100_000 --folder many --json many.json

Makes a log of so many users with about five events each, trains a tiny model for some steps, and then measures

  whole    `synergen recommend --users all` in a process of its own: its resident memory each second
  killed   the same for the first `--killed-users`, whole, and killed in the middle and gone on: are the tables equal?
  warm     one Python process that answers users one by one, and in batches of 64

FOLDER keeps what was made and measured: the same command goes on. Ends with status 1 if the tables differ.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import command
import json_lines
import made_up_events
import measured
from tqdm import tqdm

from synergen_jax.errors import UserError

MEAN = 5  # events a user
FIELDS = ("setting", "part")
Found = dict[str, typing.Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = command.parser("answer_many.py", __doc__)
    one.add_argument("--users", type=int, default=100_000)
    one.add_argument("--items", type=int, default=50_000)
    one.add_argument("-k", type=int, default=10)
    one.add_argument("--killed-users", type=int, help="of the run that is killed (default: all)")
    one.add_argument("--warm-users", type=int, default=300, help="that are asked one by one in a repeat")
    one.add_argument("--repeats", type=int, default=3, help="of the warm process's rounds")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--folder", type=pathlib.Path, required=True, help="for log, model, answers and results")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


class Bench:
    """A folder with a log and a model, and the measurements of them."""

    def __init__(self, arguments: argparse.Namespace):
        self.asked, self.folder = arguments, arguments.folder
        self.data, self.workdir = self.folder / "data", self.folder / "run"

    # --- what is asked

    def imported(self) -> Found:
        """Makes the events, and imports them."""
        import pyarrow.parquet

        path, writer = self.folder / "events.parquet", None
        sizes = made_up_events.Sizes(self.asked.items, MEAN, self.asked.users)
        with path.open("wb") as file:
            for frame in tqdm(made_up_events.batches(sizes, self.asked.seed), desc="events", disable=None):
                table = frame.to_arrow()
                writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
                writer.write_table(table)
            writer.close()
        return self._taken("data", "import", path, "--name", "many", "--text", "none")

    def trained(self) -> Found:
        """Trains a model for some steps; goes on from what is there."""
        return self._taken("train", HERE / "tiny.toml", "--workdir", self.workdir)

    def _taken(self, *arguments: object) -> Found:
        told = measured.run(measured.synergen(*arguments, "--data-dir", self.data), every=1.0)
        return {"wall": told.wall, "cpu": told.cpu, "peak": told.peak}

    # --- what is measured

    def whole(self) -> Found:
        """All users in one go."""
        return self._answered("all", self.folder / "answers.parquet", every=1.0)

    def killed(self) -> Found:
        """The first users in one go, and once more, killed in the middle and gone on with."""
        import polars as pl

        from synergen_jax.runs.answers_file import PART

        count = min(self.asked.killed_users or self.asked.users, self.asked.users)
        first = pl.read_parquet(self.folder / "events.parquet", columns=["user"])["user"].unique(maintain_order=True)
        users = self.folder / "users.parquet"
        first.head(count).to_frame().write_parquet(users)
        at_once, broken = self.folder / "at_once.parquet", self.folder / "broken.parquet"
        self._answered(users, at_once)
        parts, half = self.folder / f".{broken.name}.parts", max(-(-count // PART) // 2, 1)
        killed = self._run(users, broken, 0.05, lambda: len(list(parts.glob("part-*.parquet"))) >= half)
        if not killed.status:
            raise UserError(
                f"{count:,} users were answered before the command could be killed: give more --killed-users"
            )
        found = self._answered(users, broken)
        equal = pl.read_parquet(at_once).equals(pl.read_parquet(broken))
        return {"users": count, "were_there": found["were_there"], "equal": equal}

    def warm(self) -> Found:
        """One process that stays."""
        options = {"--users": self.asked.warm_users, "--batches": max(self.asked.warm_users // 10, 1)}
        options |= {"--repeats": self.asked.repeats, "-k": self.asked.k, "--data-dir": self.data}
        texts = [str(text) for pair in options.items() for text in pair]
        told = measured.run([sys.executable, str(HERE / "warm.py"), str(self.workdir), *texts])
        return json.loads(told.text.splitlines()[-1]) | {"peak": told.peak}

    def _run(self, users: object, out: pathlib.Path, every: float, kill=None) -> measured.Measured:
        asked = ("recommend", self.workdir, "--users", users, "-k", self.asked.k, "--out", out, "--json")
        return measured.run(measured.synergen(*asked, "--data-dir", self.data), every, kill)

    def _answered(self, users: object, out: pathlib.Path, every: float = 0.2) -> Found:
        told = self._run(users, out, every)
        said = json.loads(told.text.splitlines()[-1])
        start = told.wall - said["seconds"]  # about: what it does at its end is little
        after = [one for one in told.memory if one[0] > start]
        return {
            "wall": told.wall,
            "start": start,
            "a_second": said["a_second"],
            "were_there": said["were_there"],
            "peak": told.peak,
            "ready": after[0][1] if after else 0,
            "halves": halves(after),
            "memory": told.memory,
        }


def halves(memory: list[tuple[float, int]]) -> list[dict[str, float]]:
    """Of each half of the time: the mean of resident bytes, and by how many a second they grow (least squares)."""
    middle = len(memory) // 2
    found = []
    for part in (memory[:middle], memory[middle:]):
        seconds, bytes_ = [one[0] for one in part], [one[1] for one in part]
        slope = statistics.linear_regression(seconds, bytes_).slope if len(part) > 1 else 0.0
        found.append({"mean": statistics.fmean(bytes_) if part else 0.0, "slope": slope})
    return found


def report(parts: typing.Mapping[str, Found]) -> str:
    """The tables."""
    mib = lambda value: f"{value / 2**20:,.0f} MiB"
    whole, killed, warm = parts["whole"], parts["killed"], parts["warm"]
    lines = ["| | wall, s | peak memory |", "|---|---|---|"]
    lines += [f"| {name} | {parts[name]['wall']:,.0f} | {mib(parts[name]['peak'])} |" for name in ("import", "train")]
    lines += [f"| recommend to all | {whole['wall']:,.0f} | {mib(whole['peak'])} |", ""]
    lines += ["| memory while answering | mean | grows by, a minute |", "|---|---|---|"]
    for name, half in zip(("first half", "second half"), whole["halves"]):
        lines.append(f"| {name} | {mib(half['mean'])} | {60 * half['slope'] / 2**20:,.2f} MiB |")
    lines += ["", f"Start-up {whole['start']:.1f} s, then {whole['a_second']:,.0f} users a second."]
    same = "equals" if killed["equal"] else "differs from"
    lines.append(
        f"Killed in the middle of {killed['users']:,} users ({killed['were_there']:,} were there), gone on: the table "
    )
    lines[-1] += f"{same} that of an unbroken run."
    rates = {name: [one[name] for one in warm["users_a_second"]] for name in ("one", "batch")}
    ratios = [batch / one for one, batch in zip(rates["one"], rates["batch"])]
    first = warm["first_call"]
    lines += ["", "| warm process | one by one | batches of 64 | ratio |", "|---|---|---|---|"]
    lines.append(f"| first call, compiled | {first['one']:.2f} s | {first['batch']:.2f} s | |")
    cells = " | ".join(
        _median(values, form) for values, form in ((rates["one"], ",.0f"), (rates["batch"], ",.0f"), (ratios, ".1f"))
    )
    lines += [f"| users a second | {cells} |", "", f"It is ready after {warm['ready']:.1f} s."]
    return "\n".join(lines)


def _median(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def run(arguments: argparse.Namespace) -> int:
    """Measures what is not measured yet; 1 if the tables differ."""
    if min(arguments.users, arguments.items, arguments.repeats) < 1:
        raise UserError("--users, --items and --repeats are 1 at least")
    setting = {name: getattr(arguments, name) for name in ("users", "items", "k", "killed_users", "warm_users", "seed")}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "measured.jsonl"
    entries = json_lines.read(results, FIELDS, "measurement")
    if entries and entries[0]["setting"] != setting:
        raise UserError(f"{results} is of {entries[0]['setting']}, not of {setting}: give another --folder")
    parts = {entry["part"]: entry for entry in entries}
    bench = Bench(arguments)
    measures = {"import": bench.imported, "train": bench.trained, "whole": bench.whole}
    measures |= {"killed": bench.killed, "warm": bench.warm}
    for part in tqdm([part for part in measures if part not in parts], desc="parts", disable=None):
        parts[part] = {"setting": setting, "part": part, **measures[part]()}
        json_lines.append(results, parts[part])
    print(report(parts))
    if arguments.json:
        arguments.json.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    return 0 if parts["killed"]["equal"] else 1


if __name__ == "__main__":
    sys.exit(command.outcome("answer_many.py", lambda: run(parser().parse_args())))
