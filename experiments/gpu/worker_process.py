"""The process that measures, as the visit sees it: what it tells, how it ended, what it printed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import typing

HERE = pathlib.Path(__file__).resolve().parent
KEPT = 100_000  # bytes that are kept of what a process printed, of its beginning and of its end
GONE = 10.0  # seconds after which a process that was killed is no longer waited for: a driver may hold it for ever


class LostDevice(Exception):
    """There is no device, or it answers no more."""


class Worker:
    """A process that runs units of one stage. A context manager: leaving it ends the process and all that it started.

    Args:
      told: what worker.py is told.
      log: gets the beginning and the end of what the process printed, once it has ended.
      printed: the file that it prints to meanwhile.
    """

    def __init__(self, told: dict[str, typing.Any], log: typing.IO[bytes], printed: pathlib.Path):
        self._log, self._printed = log, printed
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(told)]
        with printed.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
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

    def status(self) -> int | None:
        """The exit status of a process that has closed its output; None: it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE)
        return self._end()

    def _end(self) -> int | None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also what it has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE)
        return self._process.returncode

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._end()
        with contextlib.suppress(OSError), self._printed.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            self._log.write(file.read(KEPT))
            if size > KEPT:
                file.seek(max(size - KEPT, KEPT))
                self._log.write(b"\n[...]\n" * (size > 2 * KEPT) + file.read())
            self._log.flush()
            self._printed.unlink()


def died(status: int | None) -> str:
    """What an exit status tells."""
    if status is None:
        return "the process does not end"
    if status >= 0:
        return f"the process ended with status {status}"
    name = signal.Signals(-status).name
    return f"the process was killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
