"""What serving uses: encode a history once, then retrieve, rank, append.

Whatever would be answered wrongly is refused: another shape than that of one user, an id or a time out of range,
padding in the midst of a history, a request before its last event. The shapes that reach the compiled functions are
padded to powers of two, so that few are ever compiled.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from synergen_jax.batch import Catalogue, Events, Floats, Ints, Readers
from synergen_jax.errors import UserError
from synergen_jax.model import synergen
from synergen_jax.model.synergen import Cache, SynerGen
from synergen_jax.retrieval.index import ExactIndex, Index

# Seconds from the last event to a request: nobody asks so late, and Unix seconds lie beyond it.
LATEST = 30 * 365 * 86_400


class Recommendation(typing.NamedTuple):
    """One item of an answer."""

    item: int
    score: float  # of retrieval
    probability: dict[str, float]  # of each ranked label


class Recommender:
    """A trained model over a catalogue. One user a call.

    Args:
      index: where retrieval looks; the exact one by default.
    """

    def __init__(
        self, model: synergen.SynerGen, params: synergen.Params, catalogue: Catalogue, index: Index | None = None
    ):
        self.model, self.params = model, params
        self.catalogue = jax.device_put(catalogue)  # once, not with every call
        index = index or ExactIndex.build(np.asarray(synergen.item_keys(model, params, self.catalogue)))
        self.index = index
        self._findable = np.zeros(len(self.catalogue.counts), bool)  # so that no request sorts the catalogue
        self._findable[index.ids] = True

    def encode(self, events: Events) -> Cache:
        """The cache of one user's history.

        Args:
          events: whole numbers, (1, L) each, of one user, padding last. Times are seconds on any clock of the caller's, such as
            since the first event; they do not go down. An event has an item or a query, and an action.

        Raises:
          UserError: they are not so, or an id is out of range.
        """
        item, action, query, time = (
            _whole(f"events.{name}", getattr(events, name)) for name in ("item", "action", "query", "time")
        )
        for name, values in (("item", item), ("action", action), ("query", query), ("time", time)):
            if values.ndim != 2 or len(values) != 1 or values.shape != item.shape:
                raise UserError(
                    f"events.{name} of shape {values.shape}: a call is about one user, whose events are (1, {item.shape[-1]}) "
                    "each: encode users one by one"
                )
        if not item.size:
            raise UserError("a history needs room for an event: of somebody new it is (1, L) of zeros")
        if events.first is not None:
            raise UserError("events of packed rows cannot be encoded for serving: give one history, without `first`")
        self._check("item", item[0], 0, len(self.catalogue.counts))
        self._check("action", action[0], 0, self.model.spec.actions)
        self._check("query", query[0], 0, len(self.catalogue.query_counts))
        real, told = action[0] > 0, (item[0] > 0) | (query[0] > 0)
        if (odd := real != told).any():
            at = int(odd.argmax())
            what = "an item or a query and no action" if told[at] else "an action and neither item nor query"
            raise UserError(f"event {at} has {what}: an event has both, and padding neither")
        if (odd := real[1:] > real[:-1]).any():
            raise UserError(f"event {int(odd.argmax()) + 1} follows padding: events come first, and padding last")
        times = time[0][real]
        if (odd := (times < 0) | (times >= 2**31)).any():
            raise UserError(f"time {times[odd][0]} of an event is out of range: times are seconds from 0 to 2^31 - 1")
        if (odd := times[1:] < times[:-1]).any():
            at = int(odd.argmax()) + 1
            raise UserError(
                f"event {at} at {times[at]} lies before the event before it, at {times[at - 1]}: sort by time"
            )
        time = np.where(real[None], time, 0)
        events = Events(*(values.astype(np.int32) for values in (item, action, query, time)))
        return _encode(self.model, self.params, self.catalogue, events)

    def append(self, cache: Cache, item: int, action: int, time: int, query: int = 0) -> Cache:
        """The cache with one more event.

        Args:
          time: of the event, on the clock of the history, not before its last event.

        Raises:
          UserError: the cache is full: encode the history anew; it is of several users; an id or the time is out of range; or
            the event has neither item nor query.
        """
        item, action, query = _one("item", item), _one("action", action), _one("query", query)
        self._check("item", [item], 0, len(self.catalogue.counts))
        self._check("action", [action], 1, self.model.spec.actions)
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        if not item and not query:
            raise UserError("an event has an item or a query")
        time, length = _moment(cache, time, "event")
        if length >= cache.capacity:
            raise UserError(
                f"the cache is full with {cache.capacity} events: encode the newest part of the history anew"
            )
        one = Events(*(np.full((1, 1), x, np.int32) for x in (item, action, query, time)))
        return _append(self.model, self.params, self.catalogue, cache, one)

    def available(self, exclude: typing.Collection[int] = ()) -> int:
        """How many items can be retrieved beside the excluded ones: the largest k."""
        return self.index.size - len(self._found(exclude))

    def retrieve(
        self, cache: Cache, time: int, k: int, query: int = 0, exclude: typing.Collection[int] = ()
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
        k, query = _one("k", k), _one("query", query)
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        exclude = self._found(exclude)
        time, length = _moment(cache, time, "request")
        most = self.index.size - len(exclude)
        if not 1 <= k <= most:
            largest = f"k lies within 1 .. {most}" if most else "nothing is left"
            raise UserError(
                f"k = {k} items cannot be recommended: the catalogue has {self.index.size}, "
                f"{len(exclude)} of which the user already had: {largest}"
            )
        readers = self._readers([0], time, query, length)
        vector = _retrieve(self.model, self.params, self.catalogue, cache, readers)
        scores, ids = self.index.search(np.asarray(vector), k + len(exclude))
        keep = ~np.isin(ids[0], exclude)
        return ids[0][keep][:k], scores[0][keep][:k]

    def rank(self, cache: Cache, items: typing.Sequence[int] | np.ndarray, time: int, query: int = 0) -> np.ndarray:
        """Probability of each ranked label for each item, (K, A), in one read of the cache.

        Args:
          time: as in `retrieve`.

        Raises:
          UserError: there is no such item or query, the time is out of range, or the cache is of several users.
        """
        ids, query = _whole("items", items), _one("query", query)
        if ids.ndim != 1:
            raise UserError(f"items of shape {ids.shape}: a list of candidates is (K,)")
        self._check("item", ids, 1, len(self.catalogue.counts))
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        time, length = _moment(cache, time, "request")
        padded = np.zeros(1 << max(len(ids) - 1, 0).bit_length(), np.int32)
        padded[: len(ids)] = ids
        readers = self._readers(padded, time, query, length)
        return np.asarray(_rank(self.model, self.params, self.catalogue, cache, readers))[0, : len(ids)]

    def recommend(
        self,
        cache: Cache,
        time: int,
        k: int,
        query: int = 0,
        exclude: typing.Collection[int] = (),
        order: str = "",
        candidates: int = 100,
    ) -> list[Recommendation]:
        """Retrieves, then ranks: the k best items.

        Args:
          order: "" keeps the order of retrieval; the name of a ranked label orders `candidates` retrieved items by its
            probability and keeps the first k.
        """
        labels = self.model.spec.labels
        if order and order not in labels:
            raise UserError(f"cannot order by {order!r}; ranked labels: {', '.join(labels)}")
        k, exclude = _one("k", k), self._found(exclude)
        wide = max(k, min(candidates, self.index.size - len(exclude))) if order and k > 0 else k
        ids, scores = self.retrieve(cache, time, wide, query, exclude)
        probabilities = self.rank(cache, ids, time, query)
        found = [
            Recommendation(int(item), float(score), dict(zip(labels, map(float, p))))
            for item, score, p in zip(ids, scores, probabilities)
        ]
        if order:
            found.sort(key=lambda r: -r.probability[order])
        return found[:k]

    def _found(self, items: typing.Collection[int]) -> np.ndarray:
        """Those of the excluded items that retrieval could find, each once."""
        ids = _whole("excluded items", list(items))
        if ids.ndim != 1:
            raise UserError(f"excluded items of shape {ids.shape}: they are one list")
        self._check("excluded item", ids, 0, len(self._findable))
        ids = np.unique(ids)
        return ids[self._findable[ids]]

    @staticmethod
    def _check(what: str, ids: typing.Sequence[int] | np.ndarray, least: int, size: int) -> None:
        """Refuses ids outside of least .. size - 1: what is looked up would be that of another."""
        if wrong := [one for one in ids if not least <= one < size]:
            raise UserError(f"{what} {wrong[0]} is out of range: ids are {least} .. {size - 1}")

    @staticmethod
    def _readers(items, time: int, query: int, length: int) -> Readers:
        full = lambda x: np.full((1, len(items)), x, np.int32)
        return Readers(np.asarray(items, np.int32)[None], full(query), full(time), full(length))


def _whole(what: str, values: typing.Any) -> np.ndarray:
    """The values as an array of whole numbers, int64.

    Raises:
      UserError: they are no whole numbers.
    """
    array = np.asarray(values)
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.max() >= 2**63):
        raise UserError(f"{what} must be whole numbers, not {array.dtype} such as {array.ravel()[0]!r}")
    return array.astype(np.int64)


def _one(what: str, value: typing.Any) -> int:
    """The value, if it is one whole number."""
    array = _whole(what, value)
    if array.shape:
        raise UserError(f"{what} must be one whole number, not {len(array)} of them")
    return int(array)


def _moment(cache: Cache, time: typing.Any, what: str) -> tuple[int, int]:
    """A checked time on the clock of a cache, and how many events the cache holds.

    Raises:
      UserError: the cache is of several users; the time is no whole number, lies before the last event or so far behind it that
        it must be of another clock.
    """
    time = _one(f"the time of the {what}", time)
    lengths, times = jax.device_get((cache.length, cache.time))
    if lengths.shape != (1,):
        raise UserError(f"a cache of {lengths.size} users: a call is about one user: encode users one by one")
    length = int(lengths[0])
    last = int(times[0, length - 1]) if length else 0
    if time < last:
        of = f"the last event of the history, at {last}" if length else "the clock's second 0"
        raise UserError(f"the time {time} of the {what} lies before {of}")
    if not time - last <= LATEST or time >= 2**31:
        raise UserError(
            f"the time {time} of the {what} lies more than 30 years after the last event, at {last}: give seconds on the clock "
            "of the history, not Unix time"
        )
    return time, length


def extended(
    catalogue: Catalogue,
    items: collections.abc.Mapping[str, np.ndarray] = types.MappingProxyType({}),
    queries: collections.abc.Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Catalogue:
    """A catalogue with new items or queries at its end, whose ids go on where the old ones end. No retraining.

    Args:
      items, queries: name of a semantic matrix -> new rows (n, width). A matrix that is not named has zero rows.

    Raises:
      UserError: there is no such matrix, or the rows do not fit it.
    """

    def grow(
        matrices: dict[str, Floats], counts: Ints, rows: collections.abc.Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Floats], Ints]:
        if not rows:
            return matrices, counts
        new = len(next(iter(rows.values())))
        for name, values in rows.items():
            if name not in matrices or values.shape != (new, matrices[name].shape[1]):
                raise UserError(f"new rows {name!r} of shape {values.shape} fit no semantic matrix of the catalogue")
        zero = lambda matrix: np.zeros((new, matrix.shape[1]), matrix.dtype)
        grown: dict[str, Floats] = {
            name: np.concatenate([matrix, np.asarray(rows.get(name, zero(matrix)), matrix.dtype)])
            for name, matrix in matrices.items()
        }
        return grown, np.concatenate([counts, np.zeros(new, np.int32)])

    item_matrices, counts = grow(catalogue.item_matrices, catalogue.counts, items)
    query_matrices, query_counts = grow(catalogue.query_matrices, catalogue.query_counts, queries)
    return Catalogue(item_matrices, query_matrices, counts, query_counts)


@functools.partial(jax.jit, static_argnames="model")
def _encode(model, params, catalogue, events: Events) -> Cache:
    encode = synergen.pure(model, params["model"], SynerGen.encode)
    return encode(events, *synergen.token_vectors(model, params, catalogue, events))


@functools.partial(jax.jit, static_argnames="model")
def _append(model, params, catalogue, cache: Cache, event: Events) -> Cache:
    append = synergen.pure(model, params["model"], SynerGen.append)
    return append(cache, event, *synergen.token_vectors(model, params, catalogue, event))


@functools.partial(jax.jit, static_argnames="model")
def _read(model, params, catalogue, cache: Cache, readers: Readers) -> Array:
    read = synergen.pure(model, params["model"], SynerGen.read)
    return read(cache, readers, *synergen.token_vectors(model, params, catalogue, readers))


@functools.partial(jax.jit, static_argnames="model")
def _retrieve(model, params, catalogue, cache: Cache, readers: Readers) -> Array:
    hidden = _read(model, params, catalogue, cache, readers)
    queries = synergen.query_vectors(model, params, catalogue, readers.query)
    return synergen.pure(model, params["model"], SynerGen.retrieve)(hidden, queries)[:, 0]


@functools.partial(jax.jit, static_argnames="model")
def _rank(model, params, catalogue, cache: Cache, readers: Readers) -> Array:
    pure = functools.partial(synergen.pure, model, params["model"])
    request = jax.tree.map(lambda x: x[:, :1], readers)
    request = dataclasses.replace(request, item=jnp.zeros_like(request.item))
    queries = synergen.query_vectors(model, params, catalogue, request.query)
    wanted = pure(SynerGen.retrieve)(_read(model, params, catalogue, cache, request), queries)
    keys = pure(SynerGen.keys)(synergen.item_vectors(model, params, catalogue, readers.item))
    score = jnp.sum(wanted * keys, axis=-1)
    return jax.nn.sigmoid(pure(SynerGen.rank)(_read(model, params, catalogue, cache, readers), score))
