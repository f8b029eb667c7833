"""What was shown: a line of JSON for each answer, in a file a day, so that what people chose out of it can be learned.

    SHOWN/2026-11-28.jsonl      {"request", "time", "user", "query", "items", "model"}

The days are those of UTC. Lines are written by the operating system's own time: a power cut may cost the last ones,
and so some lists of events that stay. Events themselves are in the store.
"""

from __future__ import annotations

import collections.abc
import datetime
import json
import pathlib
import threading
import time
import typing
import zlib

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Answer, Ask


class Shown(typing.NamedTuple):
    """One answer, as its line tells."""

    request: str
    time: int  # Unix seconds
    user: str | None
    query: str
    items: list[str]  # in the order in which they stood
    model: str


class ShownLog:
    """Writes lines to a folder, which is made. Threads may share it.

    Args:
      share: of the requests that are written, in [0, 1], chosen by their ids.

    Raises:
      UserError: the folder cannot be written, or `share` is no share.
    """

    def __init__(self, folder: pathlib.Path, share: float = 1.0):
        if not 0 <= share <= 1:
            raise UserError(f"a share of {share} of the answers: it lies within 0 and 1")
        self._folder, self._share, self._lock = folder, share, threading.Lock()
        self._day, self._file = "", None
        self.lost = 0  # lines that could not be written: an answer is not withheld for that
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._opened(_day(time.time())) as file:
                file.flush()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None

    def write(self, request: str, ask: Ask, answer: Answer) -> None:
        """Writes what was shown to whom."""
        if zlib.crc32(request.encode(errors="replace")) >= self._share * 2**32:
            return
        now = time.time()
        items = [one.item for one in answer.items]
        line = json.dumps(Shown(request, int(now), ask.user, ask.query, items, answer.model)._asdict()) + "\n"
        with self._lock:
            try:
                if self._file is None or self._day != _day(now):
                    self.close()
                    self._day = _day(now)
                    self._file = self._opened(self._day)
                self._file.write(line)
                self._file.flush()
            except OSError:
                self.lost += 1
                self.close()

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _opened(self, day: str) -> typing.TextIO:
        return (self._folder / f"{day}.jsonl").open("a", encoding="utf-8")


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def read(folder: pathlib.Path, wanted: collections.abc.Container[str]) -> dict[str, Shown]:
    """The answers of some requests, by their ids. A line that a kill cut off is passed over; of two, the first counts.

    Raises:
      UserError: a file cannot be read.
    """
    found: dict[str, Shown] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    one = _parsed(line)
                    if one is not None and one.request in wanted:
                        found.setdefault(one.request, one)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found


def _parsed(line: str) -> Shown | None:
    try:
        return Shown(**json.loads(line))
    except (ValueError, TypeError):
        return None
