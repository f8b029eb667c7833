"""Commands in a process of their own, and what they take: time, processor time, resident memory."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import typing

from synergen_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Measured(typing.NamedTuple):
    """What a process took."""

    status: int  # of its exit; -9: it was killed
    wall: float  # seconds
    cpu: float  # seconds, of all its threads and the processes that it waited for
    peak: int  # bytes, with those of its children
    memory: list[tuple[float, int]]  # seconds since its start, resident bytes then
    text: str  # what it printed


def run(
    command: collections.abc.Sequence[str], every: float = 0.2, kill: collections.abc.Callable[[], bool] | None = None
) -> Measured:
    """Runs a command to its end, and looks at its memory every so many seconds.

    Args:
      kill: asked as often; the command is killed (SIGKILL) once it says so.

    Raises:
      UserError: the command failed; with what it said last.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        try:
            status, used, memory, peak = _watched(child.pid, start, every, kill)
        except BaseException:
            child.kill()
            raise
        child.returncode = status  # it was waited for here
        wall = time.perf_counter() - start
        out.seek(0), errors.seek(0)
        text, said = out.read().decode(), errors.read().decode()
    if status not in (0, -signal.SIGKILL) or (status and kill is None):
        last = (said.strip() or text.strip() or "it says nothing").splitlines()[-1]
        raise UserError(f"`{' '.join(map(str, command))}` ended with status {status}: {last}")
    return Measured(status, wall, used.ru_utime + used.ru_stime, peak, memory, text)


def synergen(*arguments: object) -> list[str]:
    """The command line of `synergen` with these arguments."""
    return [sys.executable, "-m", "synergen_jax.cli", *map(str, arguments)]


def _watched(pid: int, start: float, every: float, kill) -> tuple[int, typing.Any, list[tuple[float, int]], int]:
    memory, peak = [], 0
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used, memory, peak
        now = sum(_status(one, "VmRSS") for one in _family(pid))
        memory.append((time.perf_counter() - start, now))
        peak = max(peak, now, _status(pid, "VmHWM"))  # the latter is of any moment before
        if kill is not None and kill():
            os.kill(pid, signal.SIGKILL)
        time.sleep(every)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [one for child in task.read_text().split() for one in _family(int(child))]
    return found


def _status(pid: int, name: str) -> int:
    """A line of /proc/PID/status in bytes; 0 where the process has gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
