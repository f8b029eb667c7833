"""What serving uses: encode a history once, then retrieve, rank, append.

The shapes that reach the compiled functions are padded to powers of two, so that few are ever compiled.
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

from synergen_jax import model as models
from synergen_jax.batch import Catalogue, Events, Readers
from synergen_jax.errors import UserError
from synergen_jax.index import ExactIndex, Index
from synergen_jax.model import Cache


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

    def __init__(self, model: models.SynerGen, params: models.Params, catalogue: Catalogue, index: Index | None = None):
        self.model, self.params = model, params
        self.catalogue = jax.device_put(catalogue)  # once, not with every call
        self.index = index or ExactIndex.build(np.asarray(models.item_keys(model, params, self.catalogue)))

    def encode(self, events: Events) -> Cache:
        """The cache of one user's history, (1, L) events, padding last.

        Raises:
          UserError: an id is out of range.
        """
        self._check("item", np.ravel(events.item), 0, len(self.catalogue.counts))
        self._check("action", np.ravel(events.action), 0, self.model.spec.actions)
        self._check("query", np.ravel(events.query), 0, len(self.catalogue.query_counts))
        return _encode(self.model, self.params, self.catalogue, events)

    def append(self, cache: Cache, item: int, action: int, time: int, query: int = 0) -> Cache:
        """The cache with one more event.

        Raises:
          UserError: the cache is full: encode the history anew; or an id is out of range.
        """
        self._check("item", [item], 0, len(self.catalogue.counts))
        self._check("action", [action], 1, self.model.spec.actions)
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        if int(cache.length[0]) >= cache.capacity:
            raise UserError(
                f"the cache is full with {cache.capacity} events: encode the newest part of the history anew"
            )
        one = Events(*(np.full((1, 1), x, np.int32) for x in (item, action, query, time)))
        return _append(self.model, self.params, self.catalogue, cache, one)

    def retrieve(
        self, cache: Cache, time: int, k: int, query: int = 0, exclude: typing.Collection[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items of highest retrieval score, best first: ids (k,) and scores (k,).

        An item of which nothing is known, neither an event of training nor a semantic row, is never among them.

        Args:
          time: of the request, on the clock of the history.
          exclude: items that must not come back.

        Raises:
          UserError: k is larger than the index without the excluded items, or there is no such query or excluded item.
        """
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        self._check("excluded item", exclude, 0, len(self.catalogue.counts))
        exclude = self._found(exclude)
        if not 1 <= k <= self.index.size - len(exclude):
            raise UserError(
                f"k = {k} items cannot be recommended: the catalogue has {self.index.size}, "
                f"{len(exclude)} of which the user already had"
            )
        vector = _retrieve(self.model, self.params, self.catalogue, cache, self._readers(cache, [0], time, query))
        scores, ids = self.index.search(np.asarray(vector), k + len(exclude))
        keep = ~np.isin(ids[0], exclude)
        return ids[0][keep][:k], scores[0][keep][:k]

    def rank(self, cache: Cache, items: typing.Sequence[int], time: int, query: int = 0) -> np.ndarray:
        """Probability of each ranked label for each item, (K, A), in one read of the cache.

        Raises:
          UserError: there is no such item or query.
        """
        self._check("item", items, 1, len(self.catalogue.counts))
        self._check("query", [query], 0, len(self.catalogue.query_counts))
        padded = np.zeros(1 << max(len(items) - 1, 0).bit_length(), np.int32)
        padded[: len(items)] = items
        readers = self._readers(cache, padded, time, query)
        return np.asarray(_rank(self.model, self.params, self.catalogue, cache, readers))[0, : len(items)]

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
        room = self.index.size - len(self._found(exclude))
        wide = max(k, min(candidates, room)) if order and k > 0 else k
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
        """Those of the items that retrieval could find, each once."""
        return np.intersect1d(np.fromiter(items, int, len(items)), self.index.ids)

    @staticmethod
    def _check(what: str, ids: typing.Sequence[int], least: int, size: int) -> None:
        """Refuses ids outside of least .. size - 1: what is looked up would be that of another."""
        if wrong := [one for one in ids if not least <= one < size]:
            raise UserError(f"{what} {wrong[0]} is out of range: ids are {least} .. {size - 1}")

    @staticmethod
    def _readers(cache: Cache, items, time: int, query: int) -> Readers:
        full = lambda x: np.full((1, len(items)), x, np.int32)
        return Readers(np.asarray(items, np.int32)[None], full(query), full(time), full(int(cache.length[0])))


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

    def grow(matrices: dict[str, typing.Any], counts, rows: collections.abc.Mapping[str, np.ndarray]):
        if not rows:
            return matrices, counts
        new = len(next(iter(rows.values())))
        for name, values in rows.items():
            if name not in matrices or values.shape != (new, matrices[name].shape[1]):
                raise UserError(f"new rows {name!r} of shape {values.shape} fit no semantic matrix of the catalogue")
        zero = lambda matrix: np.zeros((new, matrix.shape[1]), matrix.dtype)
        grown = {
            name: np.concatenate([matrix, np.asarray(rows.get(name, zero(matrix)), matrix.dtype)])
            for name, matrix in matrices.items()
        }
        return grown, np.concatenate([counts, np.zeros(new, np.int32)])

    item_matrices, counts = grow(catalogue.item_matrices, catalogue.counts, items)
    query_matrices, query_counts = grow(catalogue.query_matrices, catalogue.query_counts, queries)
    return Catalogue(item_matrices, query_matrices, counts, query_counts)


@functools.partial(jax.jit, static_argnames="model")
def _encode(model, params, catalogue, events: Events) -> Cache:
    return model.apply(
        params["model"], events, *models.token_vectors(model, params, catalogue, events), method="encode"
    )


@functools.partial(jax.jit, static_argnames="model")
def _append(model, params, catalogue, cache: Cache, event: Events) -> Cache:
    return model.apply(
        params["model"], cache, event, *models.token_vectors(model, params, catalogue, event), method="append"
    )


@functools.partial(jax.jit, static_argnames="model")
def _read(model, params, catalogue, cache: Cache, readers: Readers):
    return model.apply(
        params["model"], cache, readers, *models.token_vectors(model, params, catalogue, readers), method="read"
    )


@functools.partial(jax.jit, static_argnames="model")
def _retrieve(model, params, catalogue, cache: Cache, readers: Readers):
    return model.apply(params["model"], _read(model, params, catalogue, cache, readers), method="retrieve")[:, 0]


@functools.partial(jax.jit, static_argnames="model")
def _rank(model, params, catalogue, cache: Cache, readers: Readers):
    apply = functools.partial(model.apply, params["model"])
    request = jax.tree.map(lambda x: x[:, :1], readers)
    request = dataclasses.replace(request, item=jnp.zeros_like(request.item))
    wanted = apply(_read(model, params, catalogue, cache, request), method="retrieve")
    keys = apply(models.item_vectors(model, params, catalogue, readers.item), method="keys")
    score = jnp.sum(wanted * keys, axis=-1)
    return jax.nn.sigmoid(apply(_read(model, params, catalogue, cache, readers), score, method="rank"))
