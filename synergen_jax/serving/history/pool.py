"""Connections that threads take turns with."""

from __future__ import annotations

import collections.abc
import contextlib
import threading
import typing

from synergen_jax.errors import UserError

MOST = 8  # connections of one store that read, or, to a server, do anything


class Closable(typing.Protocol):
    """What a pool holds."""

    def close(self) -> object: ...


Connection = typing.TypeVar("Connection", bound=Closable)


class Pool(typing.Generic[Connection]):
    """At most MOST connections, each opened when no other is free.

    Args:
      where: the place, for messages.
      connect: opens one.
    """

    def __init__(self, where: str, connect: collections.abc.Callable[[], Connection]):
        self._where, self._connect = where, connect
        self._turns = threading.Semaphore(MOST)
        self._lock = threading.Lock()
        self._free: list[Connection] = []
        self._closed = False

    @contextlib.contextmanager
    def one(self) -> collections.abc.Iterator[Connection]:
        """A connection for the block alone; it is closed if the block fails, since who knows what it is left with.

        Raises:
          UserError: the pool is closed.
        """
        with self._turns:
            connection = self._taken()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give(connection)

    def _taken(self) -> Connection:
        with self._lock:
            if self._closed:
                raise UserError(f"{self._where} is closed")
            if self._free:
                return self._free.pop()
        return self._connect()

    def _give(self, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(connection)
                return
        connection.close()

    def forget(self) -> None:
        """Closes the connections that are free: what they lead to is gone."""
        with self._lock:
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    def close(self) -> None:
        """Closes all connections once nobody uses them any more, and opens none."""
        with self._lock:
            self._closed = True
        with contextlib.ExitStack() as stack:
            for _ in range(MOST):  # whoever still reads finishes first
                stack.enter_context(self._turns)
            self.forget()
