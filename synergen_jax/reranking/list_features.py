"""What can be told of retrieved items when they are asked for: numbers beside the model's score, on the host.

They are what a ranker of a shop's first page goes by: how popular an item is by now and of late, what it was bought
together with, how like its words are to those of the history and of the query. Counts are of training events before the
request. None of them is learned, and none names an item, so that a new one is treated as any other.
"""

from __future__ import annotations

import typing

import numpy as np

from synergen_jax.batch import Catalogue, EvalBatch, LogSpec
from synergen_jax.reranking.statistics import Statistics

DAY = 86_400
RECENT = 30 * DAY  # seconds before a request that count as recent
LATEST = 10  # events of the history that are its latest

_FIRST = (
    "score",  # of retrieval
    "place",  # by it: log(1 + place from 0)
    "head",  # logit of the model's ranking head
    "popularity",  # log(1 + events before the request)
    "recent popularity",  # likewise, of the last 30 days
    "age",  # log(1 + days since its first event)
    "idle",  # log(1 + days since its last event)
    "together, sum",  # cosines of co-occurrence with the items of the history
    "together, most",
    "together, last",  # with the item of the last event
    "query count",  # log(1 + training events of this query that led to the item)
    "met",  # log(1 + events of the history with the item itself)
    "met since",  # 1 / (1 + events of the history after the last of these); 0: none
    "search",  # of the request: whether it has a query
    "events",  # of the request: log(1 + events of its history)
    "days since",  # of the request: log(1 + days since the last event)
)


class Requests(typing.NamedTuple):
    """B requests."""

    item: np.ndarray  # (B, L) items of the history, the newest last; 0 where there is none, and after them
    query: np.ndarray  # (B,), 0: none
    moment: np.ndarray  # (B,) int64, Unix seconds of the request
    since: np.ndarray  # (B,) seconds since the last event of the history

    @classmethod
    def of(cls, batch: EvalBatch, origin: np.ndarray) -> typing.Self:
        """Those of a batch of targets.

        Args:
          origin: Unix seconds of each user's second 0, (B,).
        """
        visible, time = np.asarray(batch.reader.visible)[:, 0], np.asarray(batch.reader.time)[:, 0]
        item = np.asarray(batch.events.item)
        last = np.take_along_axis(np.asarray(batch.events.time), np.maximum(visible - 1, 0)[:, None], axis=1)[:, 0]
        seen = np.where(np.arange(item.shape[1]) < visible[:, None], item, 0)
        since = np.where(visible > 0, time - last, 0)
        return cls(seen, np.asarray(batch.reader.query)[:, 0], origin.astype(np.int64) + time, since)


class Retrieved(typing.NamedTuple):
    """The F items that retrieval found first for each of B requests, best first, (B, F) each."""

    item: np.ndarray  # 0: there are no more
    score: np.ndarray
    logit: np.ndarray  # of the ranking head


def _texts(spec: LogSpec) -> tuple[list[str], list[str]]:
    """The semantic matrices of items; and those of them that queries have in the same width, as one encoder makes them."""
    return [name for name, _ in spec.item_matrices], [
        name for name, width in spec.item_matrices if (name, width) in spec.query_matrices
    ]


def names(spec: LogSpec) -> tuple[str, ...]:
    """The columns of `ListFeatures.table` for a log; C of them."""
    items, both = _texts(spec)
    by_text = [f"{name}, {form}" for name in items for form in ("most", "latest")]  # cosines with the history's rows
    return *_FIRST, *by_text, *(f"{name}, query" for name in both)


class ListFeatures:
    """Makes the features of retrieved items: `table`, by `names`."""

    def __init__(self, statistics: Statistics, catalogue: Catalogue, spec: LogSpec):
        """Takes what is known of items; the catalogue is the host's."""
        self._known, self._items, self._both = statistics, *_texts(spec)
        self._item_rows = {name: _unit(catalogue.item_matrices[name]) for name in self._items}
        self._query_rows = {name: _unit(catalogue.query_matrices[name]) for name in self._both}

    def table(self, asked: Requests, found: Retrieved) -> np.ndarray:
        """The features of retrieved items, (B, F, C) float32; zeros where there is none."""
        item, there = found.item, found.item > 0
        wide = lambda x: np.broadcast_to(x[:, None], item.shape)
        place = np.broadcast_to(np.arange(item.shape[1]), item.shape)
        columns = [np.where(there, found.score, 0), np.log1p(place), np.where(there, found.logit, 0)]
        columns += self._by_time(item, wide(asked.moment))
        together, by_text = self._by_history(asked.item, item)
        columns += together
        columns.append(np.log1p(np.stack([_picked(self._known.pairs, *one) for one in zip(asked.query, item)])))
        columns += _met(asked.item, item)
        events = np.log1p(np.sum(asked.item > 0, axis=1))
        columns += [wide(asked.query > 0), wide(events), wide(np.log1p(np.maximum(asked.since, 0) / DAY))]
        columns += by_text
        for name in self._both:
            columns.append(np.einsum("bd,bfd->bf", self._query_rows[name][asked.query], self._item_rows[name][item]))
        return np.stack(columns, axis=-1).astype(np.float32) * there[..., None]

    def _by_time(self, item: np.ndarray, moment: np.ndarray) -> list[np.ndarray]:
        """Counts of events before the request, and how long ago they were."""
        known = self._known
        count = known.before(item, moment)
        recent = count - known.before(item, moment - RECENT)
        last = len(known.time) - 1
        ago = lambda place: np.where(count > 0, moment - known.time[np.clip(place, 0, last)], 30 * 365 * DAY) / DAY
        start = known.begin[item]
        return [np.log1p(count), np.log1p(recent), np.log1p(ago(start)), np.log1p(ago(start + count - 1))]

    def _by_history(self, history: np.ndarray, item: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """How like the items are to those of the history: by what goes together, and by each matrix."""
        together = np.zeros((3, *item.shape), np.float32)
        by_text = np.zeros((2 * len(self._items), *item.shape), np.float32)
        place = np.full(len(self._known.begin) - 1, -1, np.int32)  # of each item in the list at hand
        for row, (had, mine) in enumerate(zip(history, item)):
            had = had[had > 0]
            if not len(had):
                continue
            place[mine] = np.arange(len(mine))
            together[:2, row] = _gathered(self._known.near, np.unique(had), place, len(mine))
            together[2, row] = _gathered(self._known.near, had[-1:], place, len(mine))[0]
            place[mine] = -1
            for number, name in enumerate(self._items):
                rows = self._item_rows[name]
                like = rows[had] @ rows[mine].T
                by_text[2 * number : 2 * number + 2, row] = like.max(0), like[-LATEST:].mean(0)
        apart = lambda whole: [whole[number] for number in range(len(whole))]
        return apart(together), apart(by_text)


def _met(history: np.ndarray, item: np.ndarray) -> list[np.ndarray]:
    """How often the history has the items themselves, and how long ago."""
    same = (history[:, None] == item[..., None]) & (item > 0)[..., None]  # (B, F, L)
    after = np.cumsum((history > 0)[:, ::-1], axis=1)[:, ::-1] - (history > 0)  # events after each
    since = np.where(same, 1 / (1.0 + after[:, None]), 0).max(axis=-1, initial=0.0)
    return [np.log1p(same.sum(axis=-1)), since]


def _gathered(matrix, rows: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
    """Sum and maximum, (2, size), of the entries of some sparse rows, by the places of their columns; -1: of none.

    Entries are above 0.
    """
    start = matrix.indptr[rows].astype(np.int64)
    count = matrix.indptr[rows + 1] - start
    entry = np.repeat(start - (np.cumsum(count) - count), count) + np.arange(count.sum())
    at = place[matrix.indices[entry]]
    at, value = at[at >= 0], matrix.data[entry][at >= 0]
    found = np.zeros((2, size), np.float32)
    np.add.at(found[0], at, value)
    np.maximum.at(found[1], at, value)
    return found


def _picked(matrix, row: int, columns: np.ndarray) -> np.ndarray:
    """The entries of one sparse row, whose columns go up, in some columns."""
    start, stop = matrix.indptr[row], matrix.indptr[row + 1]
    if start == stop:
        return np.zeros(len(columns), np.float32)
    there, values = matrix.indices[start:stop], matrix.data[start:stop]
    place = np.minimum(np.searchsorted(there, columns), len(there) - 1)
    return np.where(there[place] == columns, values[place], 0).astype(np.float32)


def _unit(matrix: typing.Any) -> np.ndarray:
    whole = np.asarray(matrix, np.float32)
    return whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9)
