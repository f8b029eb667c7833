"""One visit to a machine with a GPU, by the hour or the minute: measures what is most valuable first, and writes as it goes.

  python visit.py --out first --budget 540 --data ml-1m.npz                    # again, and it goes on
  python visit.py --out second --budget 540 --data ml-1m.npz --after first     # on another machine
  python visit.py --out rehearsal --small                                      # tiny sizes, on whatever device is there
  python report.py first second                                                # the tables

OUT/records.jsonl has a line a measurement, OUT/visit.log what was printed, OUT/ladder the runs of the recipe and its
variants. Needed are jax, flax, optax, orbax, numpy, jaxtyping and tqdm.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import signal
import sys
import tempfile
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import command
import json_lines
import ladder
import stages
from stages import Stage, Unit
from worker_process import LostDevice, Worker, died

from synergen_jax.errors import UserError, writing

RECORDS, LOG, WORKER_LOG = "records.jsonl", "visit.log", "worker.log"
FIELDS = ("stage", "unit", "state", "seconds", "device", "small", "visit", "at")
TRIES = 2  # a unit that failed so often is given up
MARGIN = 5.0  # seconds before the end of the budget by which the last process is ended
START = 240.0  # seconds within which a process must have found the device
FIND = 15.0  # seconds that it takes: none is started where that and a unit do not fit
TIMES, LEAST = 2.5, 120.0  # what a unit may take: so many times what it needs, and so many seconds at least
LOST = 3  # the exit status where there is no device, or no longer

Record = dict[str, typing.Any]


# --- what is there, and what is left ----------------------------------------------------------------------------


def read(folder: pathlib.Path) -> list[Record]:
    """What a visit has written.

    Raises:
      UserError: a line of it is damaged.
    """
    return json_lines.read(folder / RECORDS, FIELDS, "record of a visit")


def left(
    asked: typing.Iterable[Stage], records: list[Record], device: str, small: bool, now: int
) -> list[tuple[Stage, Unit]]:
    """What is to be measured on a kind of device: first what was never begun, then what failed, but not for good.

    Args:
      now: the number of this visit. What was skipped in an earlier one, for want of a package perhaps, is asked for again.
    """
    failures: dict[tuple[str, str], int] = {}
    done = set()
    for record in records:
        if (record["device"], record["small"]) != (device, small):
            continue
        key = record["stage"], record["unit"]
        if record["state"] == "failed":
            failures[key] = failures.get(key, 0) + 1
        elif record["state"] == "done" or (record["state"] == "skipped" and record["visit"] == now):
            done.add(key)
    both = [(stage, unit) for stage in asked for unit in stage.units]
    todo = [(stage, unit) for stage, unit in both if (stage.name, unit.name) not in done]
    tried = lambda one: failures.get((one[0].name, one[1].name), 0)
    return sorted((one for one in todo if tried(one) < TRIES), key=lambda one: tried(one) > 0)


# --- a visit ----------------------------------------------------------------------------------------------------


class Visit:
    """One command: measures what is left until its time is over. Moments are those of `time.monotonic`.

    Args:
      arguments: of the command line.
      earlier: what visits before it have brought back, by folder.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        earlier: dict[pathlib.Path, list[Record]],
        scratch: pathlib.Path,
        log: typing.IO[bytes],
    ):
        self._arguments, self._earlier, self._scratch, self._log = arguments, earlier, scratch, log
        self._start, self._begun = time.monotonic(), round(time.time())
        self._end = self._start + arguments.budget - MARGIN
        self._records = [record for records in earlier.values() for record in records] + read(arguments.out)
        self._commit = arguments.commit or ladder.commit()
        self._now: Unit | None = None  # what is being measured, and since when
        self._since = self._start
        self.about: dict[str, typing.Any] = {}

    def say(self, text: str) -> None:
        """Tells how far the visit has come, and writes it down."""
        line = f"{time.monotonic() - self._start:7.1f} s  {text}"
        with contextlib.suppress(BrokenPipeError):  # whoever listened has gone; the visit goes on
            print(line, flush=True)
        self._log.write(f"{line}\n".encode())
        self._log.flush()

    def run(self, asked: list[Stage]) -> list[tuple[Stage, Unit]]:
        """Measures; returns what is left.

        Raises:
          LostDevice: there is none, or it answers no more.
          UserError: the folder holds what was measured on another kind of device, or at another size.
        """
        self.about = self._find_device()
        self._refuse_others()
        todo = self._left(asked)
        self.say(
            f"{len(todo)} measurements are to be made on {self.about['device']}, jax {self.about['versions']['jax']}"
        )
        spent = dict.fromkeys((stage.name for stage in asked), 0.0)
        while todo and self._end - time.monotonic() > (0 if self._arguments.small else FIND + todo[0][1].needs):
            stage, units = _together(todo)
            start = time.monotonic()
            over = self._measure(stage, units, min(self._end, start + stage.limit - spent[stage.name]))
            spent[stage.name] += time.monotonic() - start
            todo = [(one, unit) for one, unit in todo if one is not stage or unit.name not in over]
            if spent[stage.name] >= stage.limit:
                self.say(f"[{stage.name}] its {stage.limit:.0f} s are over")
                todo = [one for one in todo if one[0] is not stage]
        return self._left(asked)

    def _left(self, asked: list[Stage]) -> list[tuple[Stage, Unit]]:
        return left(asked, self._records, self.about["device"], self._arguments.small, self._begun)

    def _find_device(self) -> dict[str, typing.Any]:
        """What the first process says of the device."""
        with self._worker({}, [], self._end) as worker:
            about = self._ready(worker)
        if about["platform"] == "cpu" and not self._arguments.small:
            raise LostDevice("jax finds no GPU or TPU here, only a CPU; --small rehearses on it")
        return about

    def _refuse_others(self) -> None:
        mine = self.about["device"], self._arguments.small
        for record in read(self._arguments.out):
            if (found := (record["device"], record["small"])) != mine:
                told = lambda one: one[0] + " (a rehearsal)" * one[1]
                raise UserError(
                    f"{self._arguments.out} has what was measured on {told(found)}, and this is {told(mine)}: give another --out"
                )

    def _ready(self, worker: Worker) -> dict[str, typing.Any]:
        """What a process says of the device once it has found it."""
        most = min(START, self._end - time.monotonic())
        try:
            event = worker.next(most)
        except TimeoutError:
            raise LostDevice(f"no device was found within {most:.0f} s (see {LOG})") from None
        if event is None:
            raise LostDevice(f"no device can be used: {died(worker.status())} (see {LOG})")
        if self.about and event["about"]["device"] != self.about["device"]:
            raise LostDevice(f"the device is {event['about']['device']} now, and was {self.about['device']}")
        return event["about"]

    def _worker(self, environment: typing.Mapping[str, str], units: list[Unit], limit: float) -> Worker:
        """A process for some units."""
        asked = self._arguments
        same = lambda record: (record["device"], record["small"]) == (self.about.get("device"), asked.small)
        setting = {
            "small": asked.small,
            "out": str(asked.out.absolute()),
            "scratch": str(self._scratch.absolute()),
            "data": asked.data and str(asked.data.absolute()),
            "after": [str(folder.absolute()) for folder, records in self._earlier.items() if any(map(same, records))],
            "deadline": limit,
        }
        plain = lambda unit: unit._asdict() | {"arguments": dict(unit.arguments), "environment": dict(unit.environment)}
        needs = {"needs": 0.0} if asked.small else {}
        told = {"environment": dict(environment), "units": [plain(unit) | needs for unit in units], "setting": setting}
        return Worker(told, self._log, asked.out / WORKER_LOG)

    def _measure(self, stage: Stage, units: list[Unit], limit: float) -> set[str]:
        """Runs units of a stage in one process until the limit.

        Returns:
          names of those that are over for this visit, measured or not.
        """
        over: set[str] = set()
        self._now = None
        with self._worker(units[0].environment, units, limit) as worker:
            try:
                self._ready(worker)
            except LostDevice as why:
                if not units[0].environment or time.monotonic() >= self._end:
                    raise
                # Its variables may be to blame, such as a flag of XLA's.
                return self._not_started(stage, units, str(why))
            while True:
                try:
                    event = worker.next(self._until(limit) - time.monotonic())
                except TimeoutError:
                    return over | self._timed_out(stage, units)
                if event is None:
                    return over | self._died(stage, died(worker.status()), over)
                self._heard(stage, next(one for one in units if one.name == event["unit"]), event)
                if event["event"] != "begin":
                    over.add(event["unit"])

    def _heard(self, stage: Stage, unit: Unit, event: dict[str, typing.Any]) -> None:
        """What a process tells of a unit."""
        match event["event"]:
            case "begin":
                self._now, self._since = unit, time.monotonic()
                self.say(f"[{stage.name}] {unit.name}")
            case "end":
                self._write(
                    stage, unit, {name: value for name, value in event.items() if name not in ("event", "unit")}
                )
                self._now = None
            case _:
                self.say(f"[{stage.name}] {unit.name}: no time is left for its {unit.needs:.0f} s")

    def _until(self, limit: float) -> float:
        """When whoever measures must have told the next."""
        return limit if self._now is None else min(limit, self._since + patience(self._now))

    def _timed_out(self, stage: Stage, units: list[Unit]) -> set[str]:
        """Nothing was told for too long; what is over now."""
        if self._now is not None and time.monotonic() >= self._since + patience(self._now):
            self._write(
                stage, self._now, {"state": "failed", "why": f"it did not end within {patience(self._now):.0f} s"}
            )
            return {self._now.name}
        if self._now is not None:  # the time of the stage or the visit is over, which is no fault of the unit's
            self._write(stage, self._now, {"state": "cut", "why": "no time was left"})
        return {unit.name for unit in units}

    def _died(self, stage: Stage, how: str, over: set[str]) -> set[str]:
        """The process has ended; what is over now."""
        if self._now is not None:
            self._write(stage, self._now, {"state": "failed", "why": how})
            return {self._now.name}
        if not over:
            raise LostDevice(f"the process that measures does not live: {how} (see {LOG})")
        return set()

    def _not_started(self, stage: Stage, units: list[Unit], why: str) -> set[str]:
        self._since = time.monotonic()
        for unit in units:
            self._write(stage, unit, {"state": "failed", "why": f"its process did not start: {why}"})
        return {unit.name for unit in units}

    def _write(self, stage: Stage, unit: Unit, found: Record) -> None:
        """Writes a record down, and says it."""
        seconds = round(time.monotonic() - self._since, 3)
        record = {"stage": stage.name, "unit": unit.name, "seconds": seconds} | found
        record |= {"arguments": dict(unit.arguments), "environment": dict(unit.environment)}
        record |= {"small": self._arguments.small, "commit": self._commit, "visit": self._begun}
        record |= self.about | {"at": round(time.time(), 1)}
        with writing(self._arguments.out / RECORDS):
            json_lines.append(self._arguments.out / RECORDS, record)
        self._records.append(record)
        what = found["state"] if found["state"] == "done" else f"{found['state']}: {brief(found['why'])}"
        self.say(f"[{stage.name}] {unit.name}: {what}, {seconds:.1f} s")


def patience(unit: Unit) -> float:
    """Seconds after which a unit is taken to hang."""
    return max(TIMES * unit.needs, LEAST)


def brief(why: str, most: int = 200) -> str:
    """The first line of a reason."""
    return (why.splitlines() or [""])[0][:most]


def _together(todo: list[tuple[Stage, Unit]]) -> tuple[Stage, list[Unit]]:
    """The first units that one process can run: of one stage, in the same environment."""
    stage, first = todo[0]
    same = lambda one: one[0] is stage and one[1].environment == first.environment
    return stage, [unit for _, unit in itertools.takewhile(same, todo)]


# --- the command ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ", ".join(stage.name for stage in stages.STAGES)
    top = command.parser("visit.py", __doc__)
    top.add_argument(
        "--out", type=pathlib.Path, required=True, help="folder of what is found; the same one again goes on"
    )
    top.add_argument("--budget", type=float, default=540.0, metavar="SECONDS", help="end within these (default: 540)")
    top.add_argument(
        "--data", type=pathlib.Path, help="ML-1M in one file, see `ladder.py prepare`; stages recipe, variants"
    )
    top.add_argument(
        "--after", type=pathlib.Path, nargs="+", default=[], metavar="DIR", help="folders of earlier visits"
    )
    top.add_argument("--stages", type=lambda text: text.split(","), help=f"comma-separated (default: {names})")
    top.add_argument("--small", action="store_true", help="tiny sizes on whatever device is there: the rehearsal")
    scratch = pathlib.Path(tempfile.gettempdir()) / f"visit-{os.getuid()}"
    top.add_argument(
        "--scratch",
        type=pathlib.Path,
        default=scratch,
        help=f"what need not come back, such as compiled programs ({scratch})",
    )
    top.add_argument("--commit", help="what is noted as the code's commit (default: that of the checkout)")
    return top


def checked(arguments: argparse.Namespace) -> tuple[list[Stage], dict[pathlib.Path, list[Record]]]:
    """The stages that are asked for, and what earlier visits have found, by folder.

    Raises:
      UserError: an argument is wrong.
    """
    if not arguments.budget > MARGIN:
        raise UserError(f"--budget must be more than {MARGIN:.0f} s, not {arguments.budget}")
    names = [stage.name for stage in stages.STAGES]
    if unknown := [name for name in arguments.stages or () if name not in names]:
        raise UserError(f"--stages {unknown[0]}: stages are {', '.join(names)}")
    if arguments.data is not None and not arguments.data.is_file():
        raise UserError(f"--data {arguments.data}: no such file; make it by `ladder.py prepare ml-1m --out FILE`")
    earlier: dict[pathlib.Path, list[Record]] = {}
    for folder in arguments.after:
        if not (folder / RECORDS).is_file():
            raise UserError(f"--after {folder}: no visit: {RECORDS} is not there")
        if folder.resolve() == arguments.out.resolve():
            raise UserError(f"--after {folder} is --out itself, which goes on anyway")
        earlier[folder] = read(folder)
    every = stages.rehearsed() if arguments.small else stages.STAGES
    return [stage for stage in every if stage.name in (arguments.stages or names)], earlier


def visit(arguments: argparse.Namespace) -> int:
    """Runs the command; its exit status."""
    asked, earlier = checked(arguments)
    with writing(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    with writing(arguments.scratch):
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    with _alone(arguments.out) as log:
        one = Visit(arguments, earlier, arguments.scratch, log)
        try:
            todo = one.run(asked)
        except LostDevice as why:
            one.say(f"{why}; what was measured is in {arguments.out}, and the same command goes on")
            return LOST
        folders = " ".join(map(str, [*arguments.after, arguments.out]))
        again = f"{len(todo)} measurements are left; the same command goes on, or on another machine --after {folders}"
        one.say(again if todo else "all is measured")
    return 0


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> typing.Iterator[typing.IO[bytes]]:
    """A block in which this visit is the only one of the folder; gives the folder's log, which is locked."""
    import fcntl

    with (folder / LOG).open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another visit writes to {folder}: wait for it, or give another --out") from None
        yield log


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 2 for wrong input, in one line; 3 where there is no device, or no longer; 130 where it was stopped."""

    def stop(*_) -> typing.NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    return command.outcome("visit.py", lambda: visit(parser().parse_args(argv)), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
