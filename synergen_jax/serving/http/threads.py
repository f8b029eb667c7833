"""Calls that block, made by a fixed number of threads for an event loop."""

from __future__ import annotations

import asyncio
import collections.abc
import concurrent.futures
import queue
import threading
import typing

from synergen_jax.serving.asking import TooLate

_Made = typing.TypeVar("_Made")
_Job = tuple[concurrent.futures.Future, collections.abc.Callable[[], typing.Any]]


class Threads:
    """So many threads, daemons: a call that never returns does not keep the process from ending."""

    def __init__(self, count: int, name: str):
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock, self._busy, self._threads = threading.Lock(), 0, count
        for place in range(count):
            threading.Thread(target=self._work, name=f"{name}-{place}", daemon=True).start()

    @property
    def busy(self) -> int:
        """Calls that are running."""
        return self._busy

    async def call(self, within: float, late: str, function: collections.abc.Callable[[], _Made]) -> _Made:
        """What a function returns or raises, once a thread has called it.

        Args:
          within: seconds from now. A call that has not begun by then is never made; one that has begun goes on.
          late: what to say then.

        Raises:
          TooLate: they have passed.
        """
        future: concurrent.futures.Future[_Made] = concurrent.futures.Future()
        self._jobs.put((future, function))
        bound = asyncio.timeout(within)
        try:
            async with bound:
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if not bound.expired():
                raise  # the function's own
            raise TooLate(late) from None

    def close(self) -> None:
        """Lets the threads end once they are done."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            if not future.set_running_or_notify_cancel():
                continue
            self._count(1)
            try:
                result = function()
            except BaseException as error:
                self._count(-1)
                future.set_exception(error)
            else:
                self._count(-1)
                future.set_result(result)

    def _count(self, change: int) -> None:
        with self._lock:
            self._busy += change
