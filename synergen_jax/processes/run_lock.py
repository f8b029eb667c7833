"""One training a folder: who trains in a workdir owns its `run.lock`, and a second one is refused.

The kernel's lock of the file (`flock`) decides. It ends with its process, however that ends, so that a killed run goes
on at once. The file says who the owner is. Some file systems have no such locks, or keep them within one machine; so the
owner also touches the file every few seconds, and where the kernel cannot tell, a file that stays untouched for
`PATIENCE` seconds has no owner any more.

The file stays: to remove it would take it from whoever opens it at that moment.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import pathlib
import socket
import sys
import threading
import time
import typing
import uuid

from synergen_jax.errors import UserError, writing
from synergen_jax.processes import cluster

FILE = "run.lock"
BEAT = 2.0  # seconds between two touches
PATIENCE = 15.0  # seconds without one after which an owner counts as dead, where the kernel cannot tell
_TAKEN = (errno.EAGAIN, errno.EACCES)  # what an owner's lock gives; other errors: there are no locks here

_held: dict[tuple[int, pathlib.Path], dict[str, typing.Any]] = {}  # (thread, folder) -> what its file says
_files: set[typing.IO] = set()  # open, and locked


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> typing.Iterator[None]:
    """A block in which this run is the only one that trains in `folder`, which is made if it is not there.

    Of several processes the first owns it, and all are refused together. Within the block it may be entered again.

    Raises:
      UserError: another process, or another thread of this one, trains in it; the message says which, and where.
    """
    with contextlib.ExitStack() as stack:
        with cluster.together():
            if cluster.first():
                stack.enter_context(_owned(folder))
        yield


def check(folder: pathlib.Path) -> None:
    """Before anything is written: somebody may have removed the lock of a run that lives, and started another.

    Raises:
      UserError: it has another owner now.
    """
    with cluster.together():
        mine = _held.get((threading.get_ident(), folder.resolve()))
        if mine and (owner := _read(folder / FILE)) and owner != mine:
            raise UserError(f"{folder} now belongs to {_name(owner)}, which was started beside this run: it stops here")


@contextlib.contextmanager
def _owned(folder: pathlib.Path) -> typing.Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    key = (threading.get_ident(), folder.resolve())
    if key in _held:
        yield
        return
    path = folder / FILE
    with path.open("ab", buffering=0) as file:
        granted = _flock(file)
        owner = _read(path)
        if granted is False or (owner and _lives(path, owner, bool(granted))):
            raise UserError(_refusal(folder, owner))
        me = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        me |= {"boot": _boot(), "space": _space(), "token": uuid.uuid4().hex}
        with writing(path):
            file.truncate(0)
            file.write(json.dumps(me).encode())
        _held[key] = me
        _files.add(file)
        over = threading.Event()
        beat = threading.Thread(target=_touch, args=(path, over), name="lock", daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            _files.discard(file)
            del _held[key]
            with contextlib.suppress(OSError):
                if _read(path) in (me, None):
                    file.truncate(0)


def _forget() -> None:
    """In a forked child: it is another process, and must not keep the lock when this one ends."""
    for file in _files:
        file.close()
    _files.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _flock(file: typing.IO) -> bool | None:
    """Whether the lock is ours now; None: there are no locks here."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return None
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _lives(path: pathlib.Path, owner: dict[str, typing.Any], granted: bool) -> bool:
    """Whether the owner that a file names is still there, although the kernel did not refuse the lock."""
    if owner["boot"] == _boot():
        if granted:  # by the kernel of the owner itself
            return False
        if owner["space"] == _space() != "" and not pathlib.Path("/proc", str(owner["process"])).exists():
            return False
    print(
        f"{path}: waiting up to {PATIENCE:.0f} s to see whether {_name(owner)} still trains there",
        file=sys.stderr,
        flush=True,
    )
    before, until = _touched(path), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(BEAT / 4)
        if _touched(path) != before:
            return True
    return False


def _touched(path: pathlib.Path) -> int:
    with path.open("rb"):  # network file systems look anew when a file is opened
        return path.stat().st_mtime_ns


def _touch(path: pathlib.Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _refusal(folder: pathlib.Path, owner: dict[str, typing.Any] | None) -> str:
    who = _name(owner) if owner else "another process"
    mend = "wait for it or stop it, or give another --workdir"
    if not owner or owner["boot"] != _boot():
        mend += f"; if you are sure that it is dead, remove {folder / FILE}"
    return f"{folder}: {who} trains in it: {mend}"


def _name(owner: dict[str, typing.Any]) -> str:
    return f"process {owner['process']} on host {owner['host']} (since {owner['since']})"


def _read(path: pathlib.Path) -> dict[str, typing.Any] | None:
    """Who a file says its owner is; None: nobody, or it is not written yet."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return owner if {"process", "host", "since", "boot", "space", "token"} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


@functools.cache
def _boot() -> str:
    """This machine since it was started last."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


@functools.cache
def _space() -> str:
    """Whose process numbers these are: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
