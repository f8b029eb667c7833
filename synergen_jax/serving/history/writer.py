"""One thread that writes for all: what waits while a group is written and synced is the next group.

A commit that is on disk costs a sync of the disk, milliseconds on many, whatever it holds. So as many appends as come
while one commit is under way share the next.
"""

from __future__ import annotations

import collections.abc
import concurrent.futures
import queue
import threading
import typing

from synergen_jax.errors import UserError

MOST = 500  # jobs of one group: whoever waits for a commit should not wait for thousands of others

Result = typing.TypeVar("Result")
Job = collections.abc.Callable[[], typing.Any]  # Any: each job has a result of its own


class _Asked(typing.NamedTuple):
    job: Job
    alone: bool
    answer: concurrent.futures.Future


class Writer:
    """A thread that does jobs in the order in which they come.

    Args:
      where: the place that is written, for messages.
      together: calls the jobs of a group and returns their results, once they are on disk; an error is that of all.
    """

    def __init__(
        self, where: str, together: collections.abc.Callable[[collections.abc.Sequence[Job]], list[typing.Any]]
    ):
        self._where, self._together = where, together
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="history writer", daemon=True)
        self._thread.start()

    def do(self, job: collections.abc.Callable[[], Result], alone: bool = False) -> Result:
        """Has a job done and waits for its result.

        Args:
          alone: it is called by itself, not within a group.

        Raises:
          UserError: the writer is closed; or what the job or its group raises.
        """
        asked = _Asked(job, alone, concurrent.futures.Future())
        with self._lock:
            if self._closed:
                raise UserError(f"{self._where} is closed")
            self._asked.put(asked)
        return asked.answer.result()

    def close(self) -> None:
        """Waits until all that was accepted is done, and accepts nothing more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._asked.put(None)
        self._thread.join()

    def _work(self) -> None:
        group: list[_Asked] = []
        while (asked := self._asked.get()) is not None:
            if not asked.alone:
                group.append(asked)
            if asked.alone or len(group) == MOST or self._asked.empty():
                _answer(group, self._together)
                group = []
            if asked.alone:
                _answer([asked], lambda jobs: [jobs[0]()])
        _answer(group, self._together)


def _answer(
    group: list[_Asked], work: collections.abc.Callable[[collections.abc.Sequence[Job]], list[typing.Any]]
) -> None:
    if not group:
        return
    try:
        results = work([asked.job for asked in group])
    except Exception as error:
        for asked in group:
            asked.answer.set_exception(error)
        return
    for asked, result in zip(group, results, strict=True):
        asked.answer.set_result(result)
