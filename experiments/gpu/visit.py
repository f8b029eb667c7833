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
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import json_lines
import ladder
import stages
from stages import Stage, Unit

from synergen_jax.errors import UserError, writing

RECORDS, LOG = "records.jsonl", "visit.log"
FIELDS = ("stage", "unit", "state", "seconds", "device", "small", "visit", "at")
TRIES = 2  # a unit that failed so often is given up
MARGIN = 5.0  # seconds before the end of the budget by which the last process is ended
START = 240.0  # seconds within which a process must have found the device
LOST = 3  # the exit status where there is no device, or no longer

Record = dict[str, typing.Any]


class LostDevice(Exception):
    """There is no device, or it answers no more."""


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


# --- a process that measures ------------------------------------------------------------------------------------


class Worker:
    """A process that runs units of one stage. A context manager: leaving it ends the process and all that it started."""

    def __init__(self, told: dict[str, typing.Any], log: typing.IO[bytes]):
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(told)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
        self._events: queue.Queue[dict[str, typing.Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # cut off by a kill
                self._events.put(json.loads(line))
        self._events.put(None)

    def next(self, seconds: float) -> dict[str, typing.Any] | None:
        """The next event; None where the process has ended.

        Raises:
          TimeoutError: none came within so many seconds.
        """
        try:
            return self._events.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            raise TimeoutError from None

    def end(self) -> int:
        """Its exit status, after it was ended if it was still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also what it has started
        return self._process.wait()

    def status(self) -> int:
        """The exit status of a process that has closed its output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        return self.end()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self.end()


def died(status: int) -> str:
    """What an exit status tells."""
    if status >= 0:
        return f"the process ended with status {status}"
    name = signal.Signals(-status).name
    return f"the process was killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")


# --- a visit ----------------------------------------------------------------------------------------------------


class Visit:
    """One command: measures what is left until its time is over.

    Args:
      arguments: of the command line.
      earlier: what visits before it have brought back.
    """

    def __init__(
        self, arguments: argparse.Namespace, earlier: list[Record], scratch: pathlib.Path, log: typing.IO[bytes]
    ):
        self._arguments, self._scratch, self._log = arguments, scratch, log
        self._start, self._begun = time.monotonic(), time.time()
        self._end = self._begun + arguments.budget - MARGIN
        self._records = earlier + read(arguments.out)
        self._commit = arguments.commit or ladder.commit()
        self._unit_start = self._start
        self.about: dict[str, typing.Any] = {}

    def say(self, text: str) -> None:
        """Tells how far the visit has come, and writes it down."""
        line = f"{time.monotonic() - self._start:7.1f} s  {text}"
        print(line, flush=True)
        self._log.write(f"{line}\n".encode())
        self._log.flush()

    def run(self, asked: list[Stage]) -> list[tuple[Stage, Unit]]:
        """Measures; returns what is left.

        Raises:
          LostDevice: there is none, or it answers no more.
        """
        self.about = self._find_device()
        todo = self._left(asked)
        self.say(
            f"{len(todo)} measurements are to be made on {self.about['device']}, jax {self.about['versions']['jax']}"
        )
        spent = dict.fromkeys((stage.name for stage in asked), 0.0)
        while todo and time.time() < self._end:
            stage, units = _together(todo)
            start = time.monotonic()
            limit = min(self._end, time.time() + stage.limit - spent[stage.name])
            over = self._measure(stage, units, limit)
            spent[stage.name] += time.monotonic() - start
            todo = [(one, unit) for one, unit in todo if one is not stage or unit.name not in over]
            if spent[stage.name] >= stage.limit:
                self.say(f"[{stage.name}] its {stage.limit:.0f} s are over")
                todo = [one for one in todo if one[0] is not stage]
        return self._left(asked)

    def _left(self, asked: list[Stage]) -> list[tuple[Stage, Unit]]:
        return left(asked, self._records, self.about["device"], self._arguments.small, round(self._begun))

    def _find_device(self) -> dict[str, typing.Any]:
        """What the first process says of the device."""
        with Worker(self._told({}, [], self._end), self._log) as worker:
            about = self._ready(worker)
        if about["platform"] == "cpu" and not self._arguments.small:
            raise LostDevice("jax finds no GPU or TPU here, only a CPU; --small rehearses on it")
        return about

    def _ready(self, worker: Worker) -> dict[str, typing.Any]:
        try:
            event = worker.next(START)
        except TimeoutError:
            raise LostDevice(f"no device was found within {START:.0f} s (see {LOG})") from None
        if event is None:
            raise LostDevice(f"no device can be used: {died(worker.status())} (see {LOG})")
        if self.about and event["about"]["device"] != self.about["device"]:
            raise LostDevice(f"the device is {event['about']['device']} now, and was {self.about['device']}")
        return event["about"]

    def _told(self, environment: typing.Mapping[str, str], units: list[Unit], limit: float) -> dict[str, typing.Any]:
        """What a worker is told."""
        asked = self._arguments
        setting = {
            "small": asked.small,
            "out": str(asked.out.absolute()),
            "scratch": str(self._scratch),
            "data": asked.data and str(asked.data.absolute()),
            "after": [str(folder.absolute()) for folder in asked.after],
            "deadline": limit,
        }
        needs = lambda unit: 0.0 if asked.small else unit.needs
        plain = lambda unit: {
            "name": unit.name,
            "call": unit.call,
            "arguments": dict(unit.arguments),
            "needs": needs(unit),
        }
        return {"environment": dict(environment), "units": [plain(unit) for unit in units], "setting": setting}

    def _measure(self, stage: Stage, units: list[Unit], limit: float) -> set[str]:
        """Runs units of a stage in one process until the limit, a moment of `time.time`.

        Returns:
          names of those that are over for this visit, measured or not.
        """
        over: set[str] = set()
        now: Unit | None = None
        with Worker(self._told(units[0].environment, units, limit), self._log) as worker:
            self._ready(worker)
            while True:
                try:
                    event = worker.next(limit - time.time())
                except TimeoutError:
                    if now is not None:  # if the visit's own time is over, too, the unit is not to blame
                        state = "failed" if limit < self._end else "cut"
                        self._write(stage, now, {"state": state, "why": "its time was over"})
                    return {unit.name for unit in units}
                if event is None:
                    status = died(worker.status())
                    if now is not None:
                        self._write(stage, now, {"state": "failed", "why": status})
                    elif not over:
                        raise LostDevice(f"the process that measures does not live: {status} (see {LOG})")
                    return over | ({now.name} if now is not None else set())
                name, kind = event.pop("unit"), event.pop("event")
                unit = next(one for one in units if one.name == name)
                if kind == "begin":
                    now, self._unit_start = unit, time.monotonic()
                    self.say(f"[{stage.name}] {unit.name}")
                    continue
                if kind == "end":
                    self._write(stage, unit, event)
                    now = None
                else:
                    self.say(f"[{stage.name}] {unit.name}: no time is left for its {unit.needs:.0f} s")
                over.add(unit.name)

    def _write(self, stage: Stage, unit: Unit, found: Record) -> None:
        """Writes a record down, and says it."""
        seconds = round(time.monotonic() - self._unit_start, 3)
        record = {"stage": stage.name, "unit": unit.name, "seconds": seconds} | found
        record |= {
            "arguments": dict(unit.arguments),
            "environment": dict(unit.environment),
            "small": self._arguments.small,
        }
        record |= self.about | {"commit": self._commit, "visit": round(self._begun), "at": round(time.time(), 1)}
        with writing(self._arguments.out / RECORDS):
            json_lines.append(self._arguments.out / RECORDS, record)
        self._records.append(record)
        what = found["state"] if found["state"] == "done" else f"{found['state']}: {found['why'].splitlines()[0][:200]}"
        self.say(f"[{stage.name}] {unit.name}: {what}, {seconds:.1f} s")


def _together(todo: list[tuple[Stage, Unit]]) -> tuple[Stage, list[Unit]]:
    """The first units that one process can run: of one stage, in the same environment."""
    stage, first = todo[0]
    same = lambda one: one[0] is stage and one[1].environment == first.environment
    return stage, [unit for _, unit in itertools.takewhile(same, todo)]


# --- the command ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ", ".join(stage.name for stage in stages.STAGES)
    top = _Parser(
        "visit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
    top.add_argument("--commit", help="what is noted as the code's commit (default: that of the checkout)")
    return top


def checked(arguments: argparse.Namespace) -> tuple[list[Stage], list[Record]]:
    """The stages that are asked for, and what earlier visits have found.

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
    earlier: list[Record] = []
    for folder in arguments.after:
        if not (folder / RECORDS).is_file():
            raise UserError(f"--after {folder}: no visit: {RECORDS} is not there")
        if folder.resolve() == arguments.out.resolve():
            raise UserError(f"--after {folder} is --out itself, which goes on anyway")
        earlier += read(folder)
    every = stages.rehearsed() if arguments.small else stages.STAGES
    return [stage for stage in every if stage.name in (arguments.stages or names)], earlier


def visit(arguments: argparse.Namespace) -> int:
    """Runs the command; its exit status."""
    asked, earlier = checked(arguments)
    with writing(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="visit-") as scratch,
        _alone(arguments.out),
        (arguments.out / LOG).open("ab") as log,
    ):
        one = Visit(arguments, earlier, pathlib.Path(scratch), log)
        try:
            todo = one.run(asked)
        except LostDevice as why:
            one.say(f"{why}; what was measured is in {arguments.out}, and the same command goes on")
            return LOST
        again = f"{len(todo)} measurements are left; the same command goes on, or on another machine --after {arguments.out}"
        one.say(again if todo else "all is measured")
    return 0


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> typing.Iterator[None]:
    """A block in which this visit is the only one of the folder. The lock's file is its own: workers inherit the log's."""
    import fcntl

    with (folder / LOG).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another visit writes to {folder}: wait for it, or give another --out") from None
        yield


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 2 for wrong input, in one line; 3 where there is no device, or no longer; 130 where it was stopped."""

    def stop(*_) -> typing.NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        return visit(parser().parse_args(argv))
    except (UserError, OSError) as error:
        print(f"visit.py: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("visit.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
