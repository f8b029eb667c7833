"""Settings of the service, and what it needs of an engine."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Answer, Ask, Found
from synergen_jax.serving.history.store import Event, History, Outcome


class Engine(typing.Protocol):
    """What answers. Its methods block, and may be called from any thread."""

    ready: bool  # compiled and warmed up
    failed: bool  # it could not start, and never will be ready

    @property
    def name(self) -> str:
        """Which model answers: log, version, step."""
        ...

    def ask(self, ask: Ask, within: float, request: str) -> Answer:
        """Answers within so many seconds, and logs what was shown under the request's id.

        Raises `Overloaded`, `TooLate`, `Unknown` or `UserError`.
        """
        ...

    def similar(self, item: str, k: int) -> list[Found]:
        """The k items most like an item; raises `Unknown` or `UserError`."""
        ...

    def add(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        """Keeps events, for good once it returns; raises `Unknown`, `UserError` or `Unavailable`."""
        ...

    def history(self, user: str, last: int) -> History:
        """A user's newest events."""
        ...

    def delete(self, user: str) -> int:
        """Removes all of a user; returns the number of events removed."""
        ...

    def gauges(self) -> dict[str, float]:
        """Figures of the moment by name, such as "device_slots_used"."""
        ...

    def close(self) -> None:
        """Finishes what was begun."""
        ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    body: int = 1 << 20  # bytes
    body_time: float = 10.0  # seconds within which a body arrives
    k: int = 1_000  # items
    candidates: int = 1_000
    listed: int = 10_000  # items allowed or denied
    events: int = 1_000  # of one call, added or shown
    query: int = 1_000  # characters
    timeout: float = 2.0  # seconds within which a request is answered that says nothing else
    longest: float = 10.0  # seconds that a request may say
    writing: float = 30.0  # seconds within which events are stored or removed

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 < (value := getattr(self, field.name)) < float("inf"):
                raise UserError(f"the limit {field.name} = {value}: it is a number above 0")
        if self.timeout > self.longest:
            raise UserError(f"timeout = {self.timeout} s is above the longest one, {self.longest} s")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the service behaves."""

    limits: Limits = Limits()
    keys: tuple[str, ...] | None = None  # of which a caller has one; None: anybody may call
    local: bool = False  # only who calls it by a name of this machine alone is let in
    requests: int = 512  # at once; further ones are refused
    threads: int = 64  # calls of the engine at once that ask; others wait for one of them
    store_threads: int = 16  # the same of those that add, show or remove events
    log_users: bool = False  # logs tell ids of users and paths as they came
    drain: float = 1.0  # seconds for which a service that ends still takes requests, while /readyz is 503
    grace: int = 30  # seconds, after those, within which running requests finish

    def __post_init__(self):
        for name in ("requests", "threads", "store_threads", "grace"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} = {value}: at least 1")
        if not 0 <= self.drain < float("inf"):
            raise UserError(f"drain = {self.drain}: a number of seconds, from 0 up")
