"""A visit rehearsed at tiny sizes, with a kill in every stage: of the visit itself and of the process that measures, by turns.

  python rehearse.py --out rehearsal

The first half of the stages goes to OUT/first, the second to OUT/second, which goes on after it, as on another machine.
Fails where a record is lost, or a measurement is missing in the end. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import stages
import visit

from synergen_jax.errors import UserError

BEGIN = re.compile(r"\[(\w+)\] ([^:]+)$")  # what a visit says as it begins a measurement
AFTER = 0.5  # seconds into a measurement at which it is killed
MOST = 30  # visits


class Rehearsal:
    """Visits, one after the other, and who was killed in them."""

    def __init__(self, out: pathlib.Path):
        self.folders = [out / "first", out / "second"]
        self.names = [stage.name for stage in stages.rehearsed()]
        self.to_kill = list(self.names)
        self.killed: dict[str, str] = {}  # stage -> who was
        self.visits = 0

    def visit(self, folder: pathlib.Path, names: list[str], after: list[pathlib.Path]) -> int:
        """One visit, killed in the first stage that has not been killed in yet; its exit status."""
        self.visits += 1
        words = [sys.executable, "-u", str(HERE / "visit.py"), "--small", "--out", str(folder), "--budget", "3000"]
        words += ["--stages", ",".join(names), *(["--after", *map(str, after)] if after else [])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                if (begun := BEGIN.search(line.rstrip())) and begun[1] in self.to_kill:
                    self._kill(begun[1], process)
        return process.returncode

    def _kill(self, stage: str, process: subprocess.Popen) -> None:
        self.to_kill.remove(stage)
        time.sleep(AFTER)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        who = "the process that measures" if len(self.killed) % 2 and children else "the visit"
        os.kill(int(children[0]) if who != "the visit" else process.pid, signal.SIGKILL)
        self.killed[stage] = who
        print(f"          --- {who} is killed in stage {stage}", flush=True)

    def run(self) -> None:
        """All stages, until nothing is left.

        Raises:
          UserError: a record was lost, or a measurement is missing.
        """
        half = len(self.names) // 2
        for folder, names, after in (
            (self.folders[0], self.names[:half], []),
            (self.folders[1], self.names, self.folders[:1]),
        ):
            before: list[visit.Record] = []
            while self.visits < MOST:
                status = self.visit(folder, names, after)
                records = visit.read(folder)
                if records[: len(before)] != before:
                    raise UserError(f"{folder}: a record was lost, or changed")
                before = records
                if status == 0 and not (set(names) & set(self.to_kill)) and not self.left(names, [*after, folder]):
                    break
                if status not in (0, -signal.SIGKILL):
                    raise UserError(f"the visit ended with status {status}")
        if left := self.left(self.names, self.folders):
            raise UserError(f"not measured: {', '.join(left)}")

    def left(self, names: list[str], folders: list[pathlib.Path]) -> list[str]:
        """What is neither measured nor skipped."""
        had = {
            (one["stage"], one["unit"])
            for folder in folders
            for one in visit.read(folder)
            if one["state"] in ("done", "skipped")
        }
        both = [(stage.name, unit.name) for stage in stages.rehearsed() for unit in stage.units if stage.name in names]
        return [f"{stage}: {unit}" for stage, unit in both if (stage, unit) not in had]

    def table(self) -> str:
        """What each stage took, for people."""
        from synergen_jax.evaluation import report

        records = [one for folder in self.folders for one in visit.read(folder)]
        count = lambda stage, state: sum(one["stage"] == stage and one["state"] == state for one in records)
        rows = [
            {
                "stage": name,
                "measured": count(name, "done"),
                "skipped": len({one["unit"] for one in records if one["stage"] == name and one["state"] == "skipped"}),
                "cut off": count(name, "failed") + count(name, "cut"),
                "seconds": sum(one["seconds"] for one in records if one["stage"] == name),
                "killed": self.killed.get(name, ""),
            }
            for name in self.names
        ]
        return report.table(rows)


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 1 where the rehearsal failed."""
    parser = argparse.ArgumentParser("rehearse.py", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder that is not there yet")
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        print(f"rehearse.py: error: {arguments.out} is there already: give another --out", file=sys.stderr)
        return 2
    start = time.monotonic()
    rehearsal = Rehearsal(arguments.out)
    try:
        rehearsal.run()
    except UserError as error:
        print(f"rehearse.py: error: {error}", file=sys.stderr)
        return 1
    told = subprocess.run(
        [sys.executable, str(HERE / "report.py"), *map(str, rehearsal.folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    (arguments.out / "report.md").write_text(told.stdout, encoding="utf-8")
    versions = json.dumps(visit.read(rehearsal.folders[1])[-1]["versions"])
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file()) / 1e6
    print(
        f"\n{rehearsal.table()}\n\n{rehearsal.visits} visits in {time.monotonic() - start:.0f} s; {versions}; {size:.2f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
