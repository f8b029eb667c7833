"""The serving engine: requests that wait together are answered together, each with all that is known by then.

One thread owns the device. It takes what waits, at most 16 requests, asks the store which version each user's history
has, brings their caches to that version (`states.py`), and answers them in calls of a few compiled shapes. So an answer
knows every event that was acknowledged before it was asked for, whichever process acknowledged it.
"""

from __future__ import annotations

import collections.abc
import concurrent.futures
import dataclasses
import queue
import threading
import time
import typing

from synergen_jax.errors import UserError, nearest
from synergen_jax.serving.answering import Answering, Resolved
from synergen_jax.serving.asking import Answer, Ask, Found, Overloaded, TooLate, Unknown
from synergen_jax.serving.deployed import Deployed
from synergen_jax.serving.history.store import Event, History, Outcome, Store
from synergen_jax.serving.shown import ShownLog
from synergen_jax.serving.states import BATCHES


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much an engine holds."""

    slots: int = 1024  # caches on the device
    host_bytes: int = 256 * 2**20  # of caches in host memory
    waiting: int = 256  # requests that may wait
    query_slots: int = 4096  # typed queries, that the log does not have, at one time
    most: int = 1000  # items of an answer, or candidates of a request
    event_bytes: int = 1024  # of a query in an event or a request


@dataclasses.dataclass
class _Job:
    ask: Ask
    until: float  # of time.monotonic()
    answer: concurrent.futures.Future[Answer]


class Engine:
    """A deployed model over a store of histories, which it closes. Its methods may be called from any thread.

    Args:
      shown: where answers are logged; None: nowhere.

    Raises:
      UserError: settings that do not go together.
    """

    def __init__(
        self, deployed: Deployed, store: Store, settings: Settings | None = None, shown: ShownLog | None = None
    ):
        settings = settings or Settings()
        self._settings, self._store, self._shown = settings, store, shown
        self._answering = Answering(deployed, settings.slots, settings.host_bytes, settings.query_slots, settings.most)
        self._jobs: queue.Queue[_Job | typing.Callable[[], None] | None] = queue.Queue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._per_job = 0.01  # seconds, a running mean
        self._closed, self._fault = False, "the engine is closed"
        self.failed = False  # it could not start, and never will be ready
        self.ready = False
        self._counts = {"refused_total": 0, "late_total": 0, "answered_total": 0, "batches_total": 0}
        self._thread = threading.Thread(target=self._run, name="serving-engine", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Which model answers: log, version, step."""
        return self._answering.deployed.name

    @property
    def labels(self) -> tuple[str, ...]:
        """What can be ranked by."""
        return self._answering.deployed.model.spec.labels

    def ask(self, ask: Ask, within: float = 60.0, request: str = "") -> Answer:
        """Answers one request.

        Args:
          within: seconds after which nobody wants the answer any more.
          request: id by which later events refer to the answer, which is logged then; "": it is not.

        Raises:
          Overloaded: too many requests wait. TooLate: `within` has passed. Unknown: there is no such item, action or
          label. Unavailable: the store cannot be read. UserError: the request is of no use, or the engine is closed.
        """
        job = _Job(ask, time.monotonic() + within, concurrent.futures.Future())
        with self._lock:
            if self._closed:
                raise UserError(self._fault)
            if self._waiting >= self._settings.waiting:
                self._counts["refused_total"] += 1
                wait = max(self._waiting * self._per_job, 0.05)
                raise Overloaded(f"{self._waiting} requests wait already", wait)
            self._waiting += 1
        self._jobs.put(job)
        try:
            answer = job.answer.result(within + 1.0)
        except concurrent.futures.TimeoutError:
            raise TooLate(f"not answered within {within:g} seconds") from None
        if request and self._shown is not None:
            self._shown.write(request, ask, answer)
        return answer

    def similar(self, item: str, k: int = 10) -> list[Found]:
        """The items whose keys are most like an item's, best first.

        Raises:
          Unknown: there is no such item. UserError: k is out of range, or nothing is known of the item.
        """
        return self._on_thread(lambda: self._answering.similar(item, k))

    def add(self, events: collections.abc.Sequence[Event]) -> list[Outcome]:
        """Stores events. Once it returns, every answer that is asked for knows them.

        Raises:
          Unknown: an item or an action that the model does not know. Unavailable: nothing was stored that is not told.
          UserError: an event is none.
        """
        if self._closed:
            raise UserError(self._fault)
        for place, event in enumerate(events):
            self._check(place, event)
        return self._store.append(events)

    def history(self, user: str, last: int = 100) -> History:
        """The newest events that the store has of a user."""
        return self._store.history(user, last)

    def delete(self, user: str) -> int:
        """Removes a user from the store and from all tiers; how many events that were.

        What the log has of them stays until it is taken out there, too (`synergen data delete-user`).
        """
        removed = self._store.delete(user)
        self._on_thread(lambda: self._answering.states.drop(user))
        return removed

    def swap(self, deployed: Deployed) -> None:
        """Another model answers from now on; all caches are encoded anew by it. Compiles before it returns."""
        s = self._settings
        fresh = Answering(deployed, s.slots, s.host_bytes, s.query_slots, s.most)
        fresh.warm_up()

        def change() -> None:
            self._answering = fresh

        self._on_thread(change)

    def gauges(self) -> dict[str, float]:
        """What the engine holds and has done."""
        held = self._answering.states.gauges()
        if self._shown is not None:
            held["shown_lost_total"] = self._shown.lost
        return {**held, "waiting": self._waiting, "waiting_limit": self._settings.waiting, **self._counts}

    def close(self) -> None:
        """Answers what waits, takes nothing more, and closes the store and the log of answers; again it does nothing."""
        with self._lock:
            done, self._closed = self._closed, True
        if not done:
            self._jobs.put(None)
        self._thread.join()
        self._store.close()
        if self._shown is not None:
            self._shown.close()

    # --- the engine's thread

    def _on_thread(self, work: typing.Callable[[], typing.Any]) -> typing.Any:
        """What `work` gives, done by the thread that owns the device."""
        done: concurrent.futures.Future[typing.Any] = concurrent.futures.Future()
        with self._lock:
            if self._closed:
                raise UserError(self._fault)

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._jobs.put(run)
        return done.result()

    def _run(self) -> None:
        try:
            self._answering.warm_up()
        except BaseException as error:  # memory is lacking, say: whoever asks is told
            self._broken(error)
            raise
        self.ready = True
        while True:
            jobs, work = self._next()
            if jobs:
                self._answer(jobs)
            if work is None:  # `close`
                break
            if work is not _NOTHING:
                typing.cast(typing.Callable[[], None], work)()

    def _broken(self, error: BaseException) -> None:
        """Fails all that waits, and takes nothing more."""
        with self._lock:
            self._closed, self.failed = True, True
            self._fault = f"the engine could not start: {error}"
        while not self._jobs.empty():
            one = self._jobs.get()
            if isinstance(one, _Job):
                one.answer.set_exception(UserError(self._fault))
            elif one is not None:
                one()

    def _next(self) -> tuple[list[_Job], typing.Any]:
        """The requests that wait, at most those of one batch, and the work that comes after them."""
        jobs: list[_Job] = []
        wait = True
        while len(jobs) < BATCHES[-1]:
            try:
                one = self._jobs.get(wait)
            except queue.Empty:
                break
            wait = False
            if not isinstance(one, _Job):
                return jobs, one
            jobs.append(one)
        return jobs, _NOTHING

    def _answer(self, jobs: list[_Job]) -> None:
        start = time.monotonic()
        with self._lock:
            self._waiting -= len(jobs)
        resolved: list[tuple[_Job, Resolved]] = []
        for job in jobs:
            if start > job.until:
                self._counts["late_total"] += 1
                job.answer.set_exception(TooLate("the deadline passed while the request waited"))
                continue
            try:
                resolved.append((job, self._answering.resolved(job.ask)))
            except Exception as error:
                job.answer.set_exception(error)
        try:
            answers = self._answering.answer([one for _, one in resolved], self._store)
        except Exception as error:
            for job, _ in resolved:
                job.answer.set_exception(error)
            return
        for (job, _), answer in zip(resolved, answers, strict=True):
            job.answer.set_exception(answer) if isinstance(answer, Exception) else job.answer.set_result(answer)
        self._counts["answered_total"] += len(resolved)
        self._counts["batches_total"] += 1
        self._per_job += 0.1 * ((time.monotonic() - start) / max(len(jobs), 1) - self._per_job)

    def _check(self, place: int, event: Event) -> None:
        """Refuses an event that the model could not read."""
        known = self._answering
        if event.item and event.item not in known.items:
            raise Unknown("item", event.item, f"event {place}: item {event.item!r} is not in {self.name}")
        if event.action not in known.actions:
            names = list(known.actions)
            raise Unknown(
                "action",
                event.action,
                f"event {place}: action {event.action!r} is none of {', '.join(names)}{nearest(event.action, names)}",
            )
        if len(event.query.encode(errors="replace")) > self._settings.event_bytes:
            raise UserError(f"event {place}: a query of more than {self._settings.event_bytes:,} bytes")


_NOTHING = object()
