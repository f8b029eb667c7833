"""What serving uses: encode a history once, then retrieve, rank, append; or answer many users at once.

Whatever would be answered wrongly is refused (`checks.py`). The shapes that reach the compiled functions are padded to
powers of two, so that few are ever compiled.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

import jax
import numpy as np

from synergen_jax.batch import Catalogue, Events, Readers
from synergen_jax.errors import UserError, naming
from synergen_jax.model import synergen
from synergen_jax.model.synergen import Cache
from synergen_jax.retrieval.index import ExactIndex, Index
from synergen_jax.serving import checks, compiled

SHORTEST = 16  # events of a history that many users are padded to at least


class Recommendation(typing.NamedTuple):
    """One item of an answer."""

    item: int
    score: float  # of retrieval
    probability: dict[str, float]  # of each ranked label


class Request(typing.NamedTuple):
    """What one user asks for, as `Recommender.answer` and its like take it."""

    events: Events  # (1, L), as `Recommender.encode` takes them
    time: int  # of the request, on their clock
    query: int = 0
    exclude: collections.abc.Collection[int] = ()  # items that must not come back


class Recommender:
    """A trained model over a catalogue: of one user's cache, or of many histories a call.

    Args:
      index: where retrieval looks; the exact one by default.
    """

    def __init__(
        self, model: synergen.SynerGen, params: synergen.Params, catalogue: Catalogue, index: Index | None = None
    ):
        self.model, self.params = model, params
        self.catalogue = jax.device_put(catalogue)  # once, not with every call
        self.sizes = checks.Sizes(len(catalogue.counts), model.spec.actions, len(catalogue.query_counts))
        index = index or ExactIndex.build(self.keys())
        self.index = index
        self._findable = np.zeros(self.sizes.items, bool)  # so that no request sorts the catalogue
        self._findable[index.ids] = True

    def keys(self) -> np.ndarray:
        """What every item is found by, (V, W) float32: the inner product with a request's vector is its retrieval score."""
        return np.asarray(synergen.item_keys(self.model, self.params, self.catalogue))

    # --- one user's cache

    def encode(self, events: Events) -> Cache:
        """The cache of one user's history.

        Args:
          events: whole numbers, (1, L) each, of one user, padding last. Times are seconds on any clock of the caller's, such as
            since the first event; they do not go down. An event has an item or a query, and an action.

        Raises:
          UserError: they are not so, or an id is out of range.
        """
        return compiled.encode(self.model, self.params, self.catalogue, checks.history(events, self.sizes))

    def append(self, cache: Cache, item: int, action: int, time: int, query: int = 0) -> Cache:
        """The cache with one more event.

        Args:
          time: of the event, on the clock of the history, not before its last event.

        Raises:
          UserError: the cache is full: encode the history anew; it is of several users; an id or the time is out of range; or
            the event has neither item nor query.
        """
        item, action, query = (
            checks.one(name, value) for name, value in (("item", item), ("action", action), ("query", query))
        )
        checks.within("item", [item], 0, self.sizes.items)
        checks.within("action", [action], 1, self.sizes.actions)
        checks.within("query", [query], 0, self.sizes.queries)
        if not item and not query:
            raise UserError("an event has an item or a query")
        time, length = checks.moment(cache, time, "event")
        if length >= cache.capacity:
            raise UserError(
                f"the cache is full with {cache.capacity} events: encode the newest part of the history anew"
            )
        one = Events(*(np.full((1, 1), x, np.int32) for x in (item, action, query, time)))
        return compiled.append(self.model, self.params, self.catalogue, cache, one)

    def available(self, exclude: collections.abc.Collection[int] = ()) -> int:
        """How many items can be retrieved beside the excluded ones: the largest k."""
        return self.index.size - len(self._found(exclude))

    def retrieve(
        self, cache: Cache, time: int, k: int, query: int = 0, exclude: collections.abc.Collection[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest retrieval score, best first: ids (k,) and scores (k,).

        An item of which nothing is known, neither an event of training nor a semantic row, is never among them.

        Args:
          time: of the request, on the clock of the history: not before its last event, and within 30 years of it.
          k: at most `available(exclude)`.
          exclude: items that must not come back.

        Raises:
          UserError: k is not within 1 .. `available(exclude)`, there is no such query or excluded item, the time is out of
            range, or the cache is of several users.
        """
        asked = self._asked(cache, time, query)
        out = self._found(exclude)
        return self._retrieved(asked, [self._count(k, out)], [out])[0]

    def rank(
        self, cache: Cache, items: collections.abc.Sequence[int] | np.ndarray, time: int, query: int = 0
    ) -> np.ndarray:
        """Probability of each ranked label for each item, (K, A), in one read of the cache.

        Args:
          time: as in `retrieve`.

        Raises:
          UserError: there is no such item or query, the time is out of range, or the cache is of several users.
        """
        ids = self._candidates(items)
        return self._ranked(self._asked(cache, time, query), [ids])[0][1]

    def recommend(
        self,
        cache: Cache,
        time: int,
        k: int,
        query: int = 0,
        exclude: collections.abc.Collection[int] = (),
        order: str = "",
        candidates: int = 100,
    ) -> list[Recommendation]:
        """Retrieves, then ranks: the k best items.

        Args:
          order: "" keeps the order of retrieval; the name of a ranked label orders `candidates` retrieved items by its
            probability and keeps the first k.
        """
        self._check_order(order)
        out = self._found(exclude)
        asked = self._asked(cache, time, query)
        return self._recommended(asked, [self._count(k, out)], [out], order, candidates)[0]

    # --- many users

    def answer(
        self, requests: collections.abc.Sequence[Request], k: int, order: str = "", candidates: int = 100
    ) -> list[list[Recommendation]]:
        """What `recommend` says to each of B requests, in one pass: the k best items, or as many as are left.

        Its figures are those of one user a call but for rounding. Histories are padded to the longest of them: users of like
        length side by side cost least.

        Args:
          order, candidates: as in `recommend`.

        Raises:
          UserError: k is below 1, or a request is of no use; its place is named.
        """
        self._check_order(order)
        if (k := checks.one("k", k)) < 1:
            raise UserError(f"k = {k}: k is at least 1")
        outs = self._each(requests, lambda request: self._found(request.exclude))
        count = [min(k, self.index.size - len(out)) for out in outs]
        return self._recommended(self._all(requests), count, outs, order, candidates)

    def rank_pairs(
        self,
        requests: collections.abc.Sequence[Request],
        items: collections.abc.Sequence[collections.abc.Sequence[int] | np.ndarray],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each request and its own K items: retrieval scores (K,) and the probability of each ranked label (K, A).

        Raises:
          UserError: a request or an item is of no use; the request's place is named.
        """
        ids = self._each(items, self._candidates)
        return self._ranked(self._all(requests), ids)

    def vectors(self, requests: collections.abc.Sequence[Request]) -> np.ndarray:
        """The retrieval vector of each request, (B, W) float32: its inner product with `keys` scores an item."""
        return self._vectors(self._all(requests))

    # --- what both go by: some users' cache and one request of each

    def _asked(self, cache: Cache, time: typing.Any, query: typing.Any) -> _Asked:
        """One user's request, checked."""
        query = checks.one("query", query)
        checks.within("query", [query], 0, self.sizes.queries)
        time, length = checks.moment(cache, time, "request")
        return _Asked(cache, *(np.array([x], np.int32) for x in (length, time, query)))

    def _all(self, requests: collections.abc.Sequence[Request]) -> _Asked:
        """Many users' requests, checked, and their histories encoded; users and events are padded to powers of two."""
        histories = self._each(requests, self._checked)
        lengths = [int(np.sum(events.mask)) for events in histories]
        longest = max((events.item.shape[1] for events in histories), default=1)
        wide = min(longest, _power(max(SHORTEST, *lengths, 1)))
        users = _power(len(requests))
        put = {name: np.zeros((users, wide), np.int32) for name in ("item", "action", "query", "time")}
        for row, (events, length) in enumerate(zip(histories, lengths)):
            for name, values in put.items():
                values[row, :length] = getattr(events, name)[0, :length]
        cache = compiled.encode(self.model, self.params, self.catalogue, Events(**put))
        pad = lambda values: np.array([*values, *[0] * (users - len(requests))], np.int32)
        return _Asked(cache, pad(lengths), pad([r.time for r in requests]), pad([r.query for r in requests]))

    def _checked(self, request: Request) -> Events:
        events = checks.history(request.events, self.sizes)
        length = int(np.sum(events.mask))
        checks.after(int(events.time[0, length - 1]) if length else None, request.time, "request")
        checks.within("query", [checks.one("query", request.query)], 0, self.sizes.queries)
        return events

    def _vectors(self, asked: _Asked) -> np.ndarray:
        readers = asked.readers(np.zeros((len(asked.time), 1), np.int32))
        return np.asarray(compiled.retrieve(self.model, self.params, self.catalogue, asked.cache, readers))

    def _retrieved(
        self, asked: _Asked, count: list[int], outs: list[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and scores of the first `count` items of each request, those of `outs` left out."""
        most = max((n + len(out) for n, out in zip(count, outs)), default=0)
        if not most:
            return [(np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in count]
        scores, ids = self.index.search(self._vectors(asked)[: len(count)], most)
        keep = [~np.isin(row, out) for row, out in zip(ids, outs)]
        return [(ids[i][keep[i]][:n], scores[i][keep[i]][:n]) for i, n in enumerate(count)]

    def _ranked(self, asked: _Asked, items: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores (K,) and probabilities (K, A) of the items of each request."""
        padded = np.zeros((len(asked.time), _power(max(map(len, items), default=1))), np.int32)
        for row, ids in zip(padded, items):
            row[: len(ids)] = ids
        found = compiled.rank(self.model, self.params, self.catalogue, asked.cache, asked.readers(padded))
        scores, probabilities = jax.device_get(found)
        return [(scores[i, : len(ids)], probabilities[i, : len(ids)]) for i, ids in enumerate(items)]

    def _recommended(
        self, asked: _Asked, count: list[int], outs: list[np.ndarray], order: str, candidates: int
    ) -> list[list[Recommendation]]:
        labels = self.model.spec.labels
        left = [self.index.size - len(out) for out in outs]
        wide = [max(n, min(candidates, most)) if order and n else n for n, most in zip(count, left)]
        retrieved = self._retrieved(asked, wide, outs)
        ranked = self._ranked(asked, [ids for ids, _ in retrieved])
        answers = []
        for n, (ids, scores), (_, probabilities) in zip(count, retrieved, ranked):
            found = [
                Recommendation(int(item), float(score), dict(zip(labels, map(float, p))))
                for item, score, p in zip(ids, scores, probabilities)
            ]
            if order:
                found.sort(key=lambda r: -r.probability[order])
            answers.append(found[:n])
        return answers

    def _check_order(self, order: str) -> None:
        labels = self.model.spec.labels
        if order and order not in labels:
            raise UserError(f"cannot order by {order!r}; ranked labels: {', '.join(labels)}")

    def _count(self, k: typing.Any, out: np.ndarray) -> int:
        k, most = checks.one("k", k), self.index.size - len(out)
        if not 1 <= k <= most:
            largest = f"k lies within 1 .. {most}" if most else "nothing is left"
            raise UserError(
                f"k = {k} items cannot be recommended: the catalogue has {self.index.size}, "
                f"{len(out)} of which the user already had: {largest}"
            )
        return k

    def _candidates(self, items: collections.abc.Sequence[int] | np.ndarray) -> np.ndarray:
        ids = checks.whole("items", items)
        if ids.ndim != 1:
            raise UserError(f"items of shape {ids.shape}: a list of candidates is (K,)")
        checks.within("item", ids, 1, self.sizes.items)
        return ids

    def _found(self, items: collections.abc.Collection[int]) -> np.ndarray:
        """Those of the excluded items that retrieval could find, each once."""
        ids = checks.whole("excluded items", list(items))
        if ids.ndim != 1:
            raise UserError(f"excluded items of shape {ids.shape}: they are one list")
        checks.within("excluded item", ids, 0, self.sizes.items)
        ids = np.unique(ids)
        return ids[self._findable[ids]]

    @staticmethod
    def _each(requests: collections.abc.Sequence[_In], check: collections.abc.Callable[[_In], _Out]) -> list[_Out]:
        """What a check makes of each request; the place of the first that it refuses is named."""
        made = []
        for place, request in enumerate(requests):
            with naming(f"request {place}"):
                made.append(check(request))
        return made


_In = typing.TypeVar("_In")
_Out = typing.TypeVar("_Out")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Users' cache and one request of each, (B,) int32."""

    cache: Cache
    length: np.ndarray
    time: np.ndarray
    query: np.ndarray

    def readers(self, items: np.ndarray) -> Readers:
        """A reader for each of a user's (B, K) items."""
        full = lambda values: np.broadcast_to(values[:, None], items.shape)
        return Readers(items.astype(np.int32), full(self.query), full(self.time), full(self.length))


def _power(count: int) -> int:
    """The power of two from `count` up."""
    return 1 << max(count - 1, 0).bit_length()
