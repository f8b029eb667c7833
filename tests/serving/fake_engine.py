"""An engine without a model: what the service needs of one, answered at once from memory."""

import dataclasses
import threading
import time

from synergen_jax.errors import UserError
from synergen_jax.serving.asking import Answer, Found, TooLate, Unknown
from synergen_jax.serving.history.store import Event, History, Outcome, fault, outcome

ITEMS = tuple(map(str, range(1, 101)))
ACTIONS = ("view", "buy")


class FakeEngine:
    """Finds the items in the order of their numbers.

    `raises` is raised by every call, if it is there; `slow` is how many seconds each takes; `gate`, if there is one, is
    waited for.
    """

    name = "shop@1, step 10"
    labels = ("buy",)

    def __init__(self):
        self.ready, self.failed, self.raises, self.slow, self.gate = True, False, None, 0.0, None
        self.asked, self.closed, self.versions = [], False, 0
        self._users, self._lock = {}, threading.Lock()

    def ask(self, ask, within, request=""):
        """An answer, as an engine gives it."""
        self.asked.append((ask, within))
        if self.slow > within:
            time.sleep(within)
            raise TooLate("The deadline has passed.")
        self._act()
        if ask.order and ask.order not in self.labels:
            raise Unknown("order", ask.order, f"cannot order by {ask.order!r}; ranked labels: {', '.join(self.labels)}")
        for item in (*(ask.candidates or ()), *(ask.allow or ()), *ask.deny):
            self._known(item)
        there = ask.candidates or [item for item in ITEMS if ask.allow is None or item in ask.allow]
        there = [item for item in there if item not in ask.deny][: ask.k]
        history = self.history(ask.user, 100) if ask.user else History(0, [])
        words = ask.query.split()
        unknown = [word for word in words if word != "shoe"]
        at = int(time.time()) if ask.time is None else ask.time
        known = len(unknown) < len(words) or not words
        return Answer(self._found(there), self.name, history.version, len(history.events), at, known, unknown)

    def similar(self, item, k):
        """Items near an item."""
        self._act()
        self._known(item)
        return self._found([other for other in ITEMS if other != item][:k])

    def add(self, events):
        """Keeps events in memory."""
        self._act()
        for place, event in enumerate(events):
            self._known_action(place, event.action)
            if event.item:
                self._known(event.item)
            if wrong := fault(event):
                raise UserError(f"event {place}: {wrong}")
        with self._lock:
            return [self._add(event) for event in events]

    def history(self, user, last):
        """The newest events of a user."""
        self._act()
        version, events = self._users.get(user, (0, {}))
        ordered = sorted(events.values(), key=lambda event: event.time)
        return History(version, ordered[max(0, len(ordered) - last) :])

    def delete(self, user):
        """Forgets a user."""
        self._act()
        return len(self._users.pop(user, (0, {}))[1])

    def gauges(self):
        """Figures, at once."""
        if self.raises is not None:
            raise self.raises
        return {"device_slots_used": 3.0, "host bytes": 12.0}

    def close(self):
        """Says that it was closed."""
        self.closed = True

    def _act(self):
        if self.raises is not None:
            raise self.raises
        if self.gate is not None:
            self.gate.wait(30)
        time.sleep(self.slow)

    def _known(self, item):
        if item not in ITEMS:
            raise Unknown("item", item, f"item {item!r} is not in shop")

    def _known_action(self, place, action):
        if action not in ACTIONS:
            raise Unknown("action", action, f"event {place}: there is no action {action!r}")

    def _found(self, items):
        return [Found(item, 1 / (1 + ITEMS.index(item)) if item in ITEMS else 0.0, {"buy": 0.5}) for item in items]

    def _add(self, event: Event) -> Outcome:
        events = self._users.get(event.user, (0, {}))[1]
        event = event if event.id else dataclasses.replace(event, id=f"made-{self.versions}")
        told = outcome(event, events.get(event.id))
        if told.status == "stored":
            self.versions += 1
            self._users[event.user] = (self.versions, events | {event.id: event})
        return Outcome(event.id, told.status)
