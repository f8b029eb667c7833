"""Writes an event log's split to a file that other libraries' environments can read, and starts them there."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import typing

import numpy as np

from data_pipelines.feed.splits import Split

HERE = pathlib.Path(__file__).resolve().parent


def write(log, split: Split, path: pathlib.Path) -> None:
    """The events with an item of the parts "train", "validation" and "test", in the order of users and their events."""
    ranges = {
        "train": np.stack([np.zeros_like(split.train_stop), split.train_stop], axis=1),
        "validation": split.validation,
        "test": split.test,
    }
    arrays: dict[str, typing.Any] = {"items": np.int64(log.spec.items)}
    for name, bounds in ranges.items():
        rows = []
        for user, (start, stop) in enumerate(bounds.tolist()):
            if stop > start:
                record = log[user]
                item, time = record["item"][start:stop], record["time"][start:stop]
                rows.append(np.stack([np.full(len(item), user), item, time])[:, item > 0])
        user, item, time = np.concatenate([np.zeros((3, 0), np.int64), *rows], axis=1)
        arrays |= {f"{name}_user": user, f"{name}_item": item, f"{name}_time": time}
    np.savez(path, **arrays)


class Peer:
    """A process of `peer.py` in the peers' environment.

    Raises:
      RuntimeError: it ended before it answered; what it said stands on stderr.
    """

    def __init__(self, python: str, task: str, events: pathlib.Path, **settings: typing.Any):
        words = [python, str(HERE / "peer.py"), task, "--events", str(events)]
        for name, value in settings.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> dict[str, typing.Any] | None:
        """The next thing that it says; None: it has ended well."""
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        if status := self._process.wait():
            raise RuntimeError(f"the peer ended with status {status}")
        return None

    def steps(self, count: int) -> dict[str, typing.Any]:
        """Seconds and targets of so many training steps."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends it: politely, then not."""
        try:
            self._process.communicate("\n", timeout=30)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.wait()


def refuse(message: str) -> typing.NoReturn:
    """Ends a script over wrong input: one line, status 2, as `synergen` does."""
    print(f"{pathlib.Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check(python: str) -> None:
    """Refuses an environment that cannot run the peers."""
    try:
        run = subprocess.run([python, "-c", "import rectools.models, torch"], capture_output=True, text=True)
    except OSError as error:
        refuse(f"--peer-python {python}: {error.strerror}")
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["it says nothing"])[-1]
        refuse(f"--peer-python {python} has no RecTools ({last}): pip install -r {HERE / 'requirements.txt'} there")
