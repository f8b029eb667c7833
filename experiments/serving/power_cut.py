"""A disk for SQLite that forgets at a power cut whatever was not synced, as real ones may.

What SQLite writes is held in memory, where it reads it back, and reaches the real file at that file's xSync. A name
that was made or removed is on disk once its folder is synced. At a cut a random part of what is held gets through all the
same, of a write perhaps only the first sectors; from then on every call fails.
"""

from __future__ import annotations

import itertools
import pathlib
import random
import threading

import apsw

SECTOR = 512
_numbers = itertools.count()


class Held:
    """A file as programs see it, and what of that is not synced yet."""

    def __init__(self, content: bytes, named: bool):
        self.content = bytearray(content)
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, data), or (size, None) where it was cut
        self.named = named  # whether its folder was synced since it was made

    def write(self, offset: int, data: bytes | None) -> None:
        """Puts data at an offset, or cuts the file there."""
        _apply(self.content, offset, data)
        self.pending.append((offset, data))


class Disk(apsw.VFS):
    """A SQLite file system whose power fails after some writes and syncs.

    Args:
      steps: how many of them still happen.
      survive: the probability that a write which was not synced gets through at the cut.
    """

    def __init__(self, rng: random.Random, steps: int, survive: float):
        self.name = f"power-cut-{next(_numbers)}"
        super().__init__(self.name, "")
        self._rng, self._left, self._survive = rng, steps, survive
        self._lock = threading.RLock()
        self._files: dict[str, Held] = {}
        self._removed: dict[str, bytes] = {}  # names whose removal is not on disk yet, and what they lead to
        self.dead = False

    def step(self) -> None:
        """Counts a write or a sync; the one after the last is the cut."""
        with self._lock:
            self._left -= 1
            if self._left < 0:
                self.cut()
            self.alive()

    def alive(self) -> None:
        """Raises an error of the disk once there was a cut."""
        if self.dead:
            raise apsw.IOError("the power is gone")

    def held(self, name: str) -> Held:
        """The file of a name, which is there by now; what was there before the disk was switched on is synced."""
        with self._lock:
            return self._files[name]

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        self.alive()
        if name is None:  # a temporary file, of which nobody expects anything
            return super().xOpen(name, flags)
        path = pathlib.Path(name if isinstance(name, str) else name.filename())
        with self._lock:
            there = path.exists()
            file = HeldFile(self, name, flags)
            if str(path) not in self._files:
                self._files[str(path)] = Held(path.read_bytes() if there else b"", named=there)
                self._removed.pop(str(path), None)
            return file

    def xDelete(self, name: str, sync_folder: bool) -> None:
        self.step()
        with self._lock:
            path = pathlib.Path(name)
            held = self._files.pop(name, None)
            if held and held.named and not sync_folder:
                self._removed[name] = path.read_bytes()
            super().xDelete(name, sync_folder)

    def sync_folder(self, folder: pathlib.Path) -> None:
        """What `fsync` of a folder does: its names are as they are."""
        self.step()
        with self._lock:
            for held in self._files.values():
                held.named = True
            self._removed.clear()

    def cut(self) -> None:
        """Leaves in the real files what a power cut leaves."""
        with self._lock:
            if self.dead:
                return
            self.dead = True
            for name, held in self._files.items():
                path = pathlib.Path(name)
                if not held.named and self._rng.random() >= self._survive:
                    path.unlink(missing_ok=True)
                    continue
                content = bytearray(path.read_bytes())
                for offset, data in held.pending:
                    if self._rng.random() < self._survive:
                        _apply(content, offset, self._torn(data))
                path.write_bytes(content)
            for name, content in self._removed.items():
                if self._rng.random() >= self._survive:
                    pathlib.Path(name).write_bytes(content)

    def _torn(self, data: bytes | None) -> bytes | None:
        if data is None or self._rng.random() < 0.5:
            return data
        return data[: self._rng.randrange(len(data) // SECTOR + 1) * SECTOR]


class HeldFile(apsw.VFSFile):
    """An open file of such a disk; its locks and shared memory are the real ones."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename, flags: list[int]):
        super().__init__("", name, flags)
        self._disk, self._name = disk, name if isinstance(name, str) else name.filename()

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.alive()
        return bytes(self._disk.held(self._name).content[offset : offset + amount])

    def xFileSize(self) -> int:
        self._disk.alive()
        return len(self._disk.held(self._name).content)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.step()
        self._disk.held(self._name).write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self._disk.step()
        self._disk.held(self._name).write(size, None)

    def xSync(self, flags: int) -> None:
        self._disk.step()
        held = self._disk.held(self._name)
        for offset, data in held.pending:
            if data is None:
                super().xTruncate(offset)
            else:
                super().xWrite(data, offset)
        held.pending.clear()
        if self._name.endswith(
            ("-wal", "-journal")
        ):  # of these SQLite syncs the folder, too, of a new database it does not
            held.named = True


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    """Puts data at an offset of a file's content, or cuts it there."""
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(offset - len(content), 0)))
    content[offset : offset + len(data)] = data
