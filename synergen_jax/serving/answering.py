"""Answers to requests that came together, by one deployed model: original ids to ids, caches, scores, and back."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from synergen_jax.batch import Readers
from synergen_jax.errors import UserError, nearest
from synergen_jax.model import synergen
from synergen_jax.serving import checks, compiled
from synergen_jax.serving.asking import Answer, Ask, Found, Unknown
from synergen_jax.serving.deployed import Deployed, Past
from synergen_jax.serving.history.store import Store
from synergen_jax.serving.states import BATCHES, State, States, batches
from synergen_jax.serving.timeline import timeline
from synergen_jax.serving.words import Words

OUT = 256  # items of a row that one call leaves out
WIDTHS = (16, 128, 1024)  # items of a row that one call finds or ranks
CANDIDATES = 100  # retrieved items that an order chooses from


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A request in ids."""

    ask: Ask
    query: str  # cleaned
    candidates: np.ndarray | None  # (C,) int32
    deny: np.ndarray
    allow: np.ndarray | None

    @property
    def wide(self) -> int:
        """Items to be found, or ranked."""
        return max(self.ask.k, CANDIDATES) if self.ask.order else self.ask.k


class Answering:
    """A deployed model with its caches. One thread at a time may use it.

    Raises:
      UserError: settings that do not go together, or a model that cannot be served.
    """

    def __init__(self, deployed: Deployed, slots: int, host_bytes: int, query_slots: int, most: int):
        if deployed.model.spec.candidate_features:
            raise UserError(f"{deployed.name}: a model of shown lists with features of candidates is not served")
        least = BATCHES[-1] * (deployed.max_history + 1)
        self.deployed, self.most = deployed, min(most, WIDTHS[-1])
        self._widths = [wide for i, wide in enumerate(WIDTHS) if not i or WIDTHS[i - 1] < max(most, CANDIDATES)]
        self.model, self.params = deployed.model, jax.device_put(deployed.params, jax.devices()[0])
        self._words = Words(deployed, max(query_slots, least))
        self.items = {item: i for i, item in enumerate(deployed.items) if i}
        self.actions = {action: i for i, action in enumerate(deployed.actions) if i}
        self.states = States(self, slots, host_bytes, deployed.max_history)
        keys = synergen.item_keys(self.model, self.params, self.catalogue)
        self._keys = jnp.asarray(keys)
        self._findable = np.array(jnp.any(self._keys != 0, axis=1))
        self._findable[0] = False
        self._all = jnp.asarray(self._findable[None])

    @property
    def catalogue(self):
        """On the device, with the typed queries that are held."""
        return self._words.catalogue

    def warm_up(self) -> None:
        """Compiles every shape that a request can take."""
        self.states.warm_up()
        state = State(0, Past.of([]), np.zeros(0, np.int32), 0, self.states.nobody)
        for size in BATCHES:
            rows = [(state, 0, 0)] * size
            for allowed in (self._all, jnp.asarray(np.repeat(self._findable[None], size, axis=0))):
                scores = self._scores(rows, size, allowed)
            scores = compiled.without(scores, jnp.zeros((size, OUT), jnp.int32))
            for wide in self._widths:
                compiled.best(scores, self._few(wide))
                self._ranked(rows, [np.zeros(0, np.int32)] * size, size, wide)

    # --- what is asked

    def resolved(self, ask: Ask) -> Resolved:
        """A request in ids.

        Raises:
          Unknown: there is no such item or label. UserError: k or the candidates are out of range.
        """
        labels = self.model.spec.labels
        if ask.order and ask.order not in labels:
            message = f"order {ask.order!r} is none of the ranked labels, {', '.join(labels)}"
            raise Unknown("order", ask.order, message + nearest(ask.order, labels))
        if not 1 <= ask.k <= self.most:
            raise UserError(f"k = {ask.k}: k lies within 1 .. {self.most}")
        candidates = None
        if ask.candidates is not None:
            if not 1 <= len(ask.candidates) <= self.most:
                raise UserError(f"{len(ask.candidates)} candidates: 1 to {self.most} can be ranked")
            candidates = self._ids(ask.candidates, "candidate")
        allow = None if ask.allow is None else self._ids(ask.allow, "allowed item")
        query = " ".join(ask.query.split())
        return Resolved(ask, query, candidates, self._ids(ask.deny, "denied item"), allow)

    def _ids(self, items: collections.abc.Collection[str], what: str) -> np.ndarray:
        found = [self.items.get(item, 0) for item in items]
        for item, number in zip(items, found):
            if not number:
                raise Unknown("item", item, f"{what} {item!r} is not in {self.deployed.name}")
        return np.array(found, np.int32)

    # --- answers

    def answer(self, requests: collections.abc.Sequence[Resolved], store: Store) -> list[Answer | UserError]:
        """An answer to each request, or why there is none.

        Raises:
          Unavailable: the store cannot be read.
        """
        if not requests:
            return []
        words = self._words.find(one.query for one in requests)
        users = list(dict.fromkeys(one.ask.user for one in requests if one.ask.user is not None))
        versions = {user: found.version for user, found in zip(users, store.histories(users, 0))} if users else {}
        load = lambda user: functools.partial(self._past, user, store)
        states = self.states.ensure({user: (versions[user], load(user)) for user in users})
        nobody = State(0, Past.of([]), np.zeros(0, np.int32), 0, self.states.nobody)
        rows: list[tuple[State, int, int]] = []
        moments: list[int] = []
        faults: list[UserError | None] = []
        for one in requests:
            state = nobody if one.ask.user is None else states[one.ask.user]
            moment, fault = _moment(one.ask.time, state)
            # Of somebody without events the clock begins with the request.
            rows.append((state, moment - state.start if len(state.past) else 0, words[one.query].id))
            moments.append(moment)
            faults.append(fault)
        found = self._found(requests, rows)
        answers: list[Answer | UserError] = []
        for one, (state, _, _), moment, fault, items in zip(requests, rows, moments, faults, found, strict=True):
            query = words[one.query]
            told = self.deployed.name, state.version, len(state.past), moment, bool(query.id) or not one.query
            answers.append(fault or Answer(items, *told, query.unknown))
        return answers

    def similar(self, item: str, k: int) -> list[Found]:
        """As `Engine.similar`."""
        number = int(self._ids([item], "item")[0])
        if not self._findable[number]:
            raise UserError(f"nothing is known of item {item!r}: nothing is like it")
        if not 1 <= k <= self.most:
            raise UserError(f"k = {k}: k lies within 1 .. {self.most}")
        scores = jnp.where(self._all, jnp.matmul(self._keys[number][None], self._keys.T, precision="highest"), -jnp.inf)
        values, ids = self._top(scores.at[0, number].set(-jnp.inf), k)
        return [
            Found(self.deployed.items[int(i)], float(score), {})
            for i, score in zip(ids[0, :k].tolist(), values[0, :k].tolist())
            if score > -np.inf
        ]

    def _past(self, user: str, store: Store) -> tuple[int, Past]:
        """The version of a user's history, and all that is known of them."""
        version, events = store.history(user)
        texts = {" ".join(event.query.split()) for event in events} - {""}
        # More than are held at one time tell little of a user: the newest ones count.
        newest = list(dict.fromkeys(" ".join(event.query.split()) for event in reversed(events)))
        held = self._words.find(newest[: self.deployed.max_history]) if texts else {}
        cleaned = {event.query: held[text].id for event in events if (text := " ".join(event.query.split())) in held}
        return version, timeline(self.deployed.past(user), events, self.items, self.actions, cleaned)

    def _found(
        self, requests: collections.abc.Sequence[Resolved], rows: list[tuple[State, int, int]]
    ) -> list[list[Found]]:
        """What is found for each request, in the order that it asks for."""
        places = [i for i, one in enumerate(requests) if one.candidates is None]
        wanted: dict[int, np.ndarray] = {
            i: typing.cast(np.ndarray, one.candidates) for i, one in enumerate(requests) if one.candidates is not None
        }
        for part, size in batches(places):
            wanted |= self._retrieved([requests[i] for i in part], [rows[i] for i in part], part, size)
        made: list[list[Found]] = []
        for part, size in batches(list(range(len(requests)))):
            ids = [wanted[i] for i in part]
            wide = next(w for w in self._widths if w >= max(map(len, ids)))
            scores, chances = self._ranked([rows[i] for i in part], ids, size, wide)
            for row, i in enumerate(part):
                found = self._named(wanted[i], scores[row], chances[row])
                if order := requests[i].ask.order:
                    found.sort(key=lambda one: -one.probability.get(order, -1.0))
                made.append(found if requests[i].candidates is not None else found[: requests[i].ask.k])
        return made

    def _retrieved(
        self, requests: list[Resolved], rows: list[tuple[State, int, int]], places: list[int], size: int
    ) -> dict[int, np.ndarray]:
        """The items of highest score for each request, best first."""
        scores = self._scores(rows, size, self._allowed(requests, size))
        outs = [self._out(one, row[0]) for one, row in zip(requests, rows)]
        for start in range(0, max(map(len, outs)), OUT):
            items = np.zeros((size, OUT), np.int32)
            for row, out in enumerate(outs):
                part = out[start : start + OUT]
                items[row, : len(part)] = part
            scores = compiled.without(scores, items)
        values, ids = self._top(scores, max(one.wide for one in requests))
        return {
            place: ids[row, : one.wide][values[row, : one.wide] > -np.inf]
            for row, (place, one) in enumerate(zip(places, requests))
        }

    def _allowed(self, requests: list[Resolved], size: int) -> jax.Array:
        if all(one.allow is None for one in requests):
            return self._all
        mask = np.repeat(self._findable[None], size, axis=0)
        for row, one in enumerate(requests):
            if one.allow is not None:
                only = np.zeros_like(self._findable)
                only[one.allow] = True
                mask[row] &= only
        return jnp.asarray(mask)

    def _out(self, one: Resolved, state: State) -> np.ndarray:
        """Items that must not come back."""
        keep = not self.deployed.filter_seen if one.ask.keep_seen is None else one.ask.keep_seen
        return one.deny if keep else np.concatenate([one.deny, state.seen])

    def _few(self, wide: int) -> int:
        return min(wide, len(self.deployed.items))

    def _top(self, scores, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids (B, K) of the best, K at least `most` where there are as many items."""
        wide = next(w for w in self._widths if w >= most)
        return jax.device_get(compiled.best(scores, self._few(wide)))

    def _readers(self, rows: list[tuple[State, int, int]], size: int, items: np.ndarray) -> tuple[np.ndarray, Readers]:
        """Places of caches (size,), and readers (size, R) of `items`."""
        place = np.full(size, self.states.padding, np.int32)
        told = np.zeros((3, size), np.int32)
        for row, (state, moment, query) in enumerate(rows):
            place[row] = state.slot
            told[:, row] = query, moment, len(state.past)
        query, moment, visible = (np.broadcast_to(values[:, None], items.shape) for values in told)
        return place, Readers(items, query, moment, visible)

    def _scores(self, rows: list[tuple[State, int, int]], size: int, allowed: jax.Array) -> jax.Array:
        place, readers = self._readers(rows, size, np.zeros((size, 1), np.int32))
        return compiled.score_from(
            self.model, self.params, self.catalogue, self.states.caches, place, readers, self._keys, allowed
        )

    def _ranked(
        self, rows: list[tuple[State, int, int]], ids: list[np.ndarray], size: int, wide: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B, K) and probabilities (B, K, A) of items."""
        items = np.zeros((size, wide), np.int32)
        for row, own in enumerate(ids):
            items[row, : len(own)] = own
        place, readers = self._readers(rows, size, items)
        return jax.device_get(
            compiled.rank_from(self.model, self.params, self.catalogue, self.states.caches, place, readers)
        )

    def _named(self, ids: np.ndarray, scores: np.ndarray, chances: np.ndarray) -> list[Found]:
        labels, names = self.model.spec.labels, self.deployed.items
        return [
            Found(names[int(item)], float(score), dict(zip(labels, map(float, chance))))
            if self._findable[item]
            else Found(names[int(item)], None, {})
            for item, score, chance in zip(ids.tolist(), scores, chances)
        ]


def _moment(asked: int | None, state: State) -> tuple[int, UserError | None]:
    """When a request is made, Unix seconds, and why not.

    Without a time it is now, or the time of the last event where that is later: clocks differ.
    """
    last = state.last
    now = int(time.time()) if asked is None else asked
    if last is None:
        return now, None if 0 <= now < 2**32 else UserError(f"time {now} is out of range: Unix seconds are wanted")
    if asked is None:
        return min(max(now, last), last + checks.LATEST), None
    if not last <= asked <= last + checks.LATEST:
        when = "before" if asked < last else "more than 30 years after"
        return last, UserError(f"time {asked} lies {when} the last event of the user, at {last}")
    return asked, None
