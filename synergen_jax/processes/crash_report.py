"""The last words of a process of a cluster, also of one that is ended before it can say any.

jax's C++ side aborts a process at once when process 0 is lost, and the system kills one that takes too much memory: no
line of Python runs then. So a helper process is forked before jax is loaded. It waits at a pipe, which closes however
this process ends, and says then where the run stood, unless this process has done so itself.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import signal
import struct

_NUMBERS = struct.Struct("<qqqq")  # process, processes, step, whether an end has been told; -1 for unknown
_memory: mmap.mmap | None = None  # shared with the helper: the numbers, then the folder of the checkpoints


def begin() -> None:
    """Starts the helper. Before jax and its threads; once a process."""
    global _memory
    _memory = mmap.mmap(-1, mmap.PAGESIZE)
    _memory[: _NUMBERS.size] = _NUMBERS.pack(-1, -1, -1, 0)
    if not hasattr(os, "fork"):  # Windows
        return
    here, there = os.pipe()
    if os.fork():
        os.close(here)  # the other end stays open as long as this process lives
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they reach a whole group of processes; this one goes last
    os.close(there)
    os.read(here, 1)
    process, processes, _, told = _read()
    if not told:
        say(
            f"process {process} of {processes} was ended from outside"
            if process <= 0
            else f"process {process} of {processes} was ended, by a signal or since process 0 was lost (see above),"
        )
    os._exit(0)


def joined(process: int, processes: int) -> None:
    """Which process this is."""
    _write(process=process, processes=processes)


def at(step: int, checkpoints: pathlib.Path) -> None:
    """How far the run has come, and where its checkpoints lie."""
    if _memory is None:
        return
    _write(step=step)
    name = os.fsencode(checkpoints.resolve())
    _memory[_NUMBERS.size : _NUMBERS.size + len(name) + 1] = name + b"\0"


def told() -> None:
    """This process ends in an orderly way, or has said why it ends: the helper stays silent."""
    if _memory is not None:
        _write(told=1)


def say(what: str) -> None:
    """Prints what happened and where the run stood, in one line, and keeps the helper silent."""
    os.write(2, f"synergen: {what} {place()}\n".encode())
    told()


def place() -> str:
    """Where the run stands: "at step 57; the last checkpoint is step 50: start the same command again to go on"."""
    step = _read()[2]
    if step < 0:
        return "before the first step: start the same command again"
    folder = pathlib.Path(os.fsdecode(bytes(_shared()[_NUMBERS.size :]).partition(b"\0")[0]))
    try:
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]  # Orbax renames whole ones thus
    except OSError:
        steps = []
    saved = f"the last checkpoint is step {max(steps)}" if steps else "there is no checkpoint yet"
    return f"at step {step}; {saved}: start the same command again to go on"


def _shared() -> mmap.mmap:
    if _memory is None:
        raise RuntimeError("crash_report.begin comes first")
    return _memory


def _read() -> tuple[int, int, int, int]:
    return _NUMBERS.unpack(_shared()[: _NUMBERS.size])


def _write(**values: int) -> None:
    names = ("process", "processes", "step", "told")
    old = dict(zip(names, _read()))
    _shared()[: _NUMBERS.size] = _NUMBERS.pack(*(old | values).values())
