"""A trained run that is asked by original ids: one question, or millions of them, by one code."""

from __future__ import annotations

import collections.abc
import dataclasses
import hashlib
import json
import pathlib
import typing

import jax
import numpy as np

from data_pipelines.feed import examples
from data_pipelines.importing import item_table
from synergen_jax.batch import Catalogue
from synergen_jax.errors import UserError, nearest
from synergen_jax.model import synergen
from synergen_jax.retrieval.index import ExactIndex
from synergen_jax.runs import known_queries
from synergen_jax.runs.run import Run
from synergen_jax.serving import checks
from synergen_jax.serving.recommender import Recommender, Request

BATCH = 64  # users whose histories are encoded at once
_Made = typing.TypeVar("_Made")
Record = collections.abc.Mapping[str, typing.Any]  # of an event log


@dataclasses.dataclass(frozen=True)
class Question:
    """How many items are wanted, when, in which order, by which words, and out of which items."""

    k: int = 10
    at: int | None = None  # Unix seconds; None: the time of the last event
    order: str = ""  # a ranked label, by whose probability what was retrieved is ordered; "": by retrieval
    query: str = ""
    new_items: pathlib.Path | None = None  # a table of items that came after training
    items: collections.abc.Collection[str] | None = None  # original ids: the only ones that may come back
    exclude: collections.abc.Collection[str] = ()  # original ids that must not come back
    keep_seen: bool = False  # what a user had may come back, whatever the run's data.filter_seen says

    def __post_init__(self):
        if self.k < 1:
            raise UserError(f"k = {self.k}: k lies within 1 .. the number of items that are left")
        if self.query and not known_queries.cleaned(self.query):
            raise UserError("--query is empty: `synergen recommend` answers without a query")


@dataclasses.dataclass(frozen=True)
class Asks:
    """Who asks, in order: users of the log by their records' numbers, each with words or with none."""

    users: np.ndarray  # (n,) int64; -1: nobody in particular
    queries: list[str] | None  # n of them; None: nobody searches
    items: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # (n,), of pairs

    def __len__(self) -> int:
        return len(self.users)

    def query(self, i: int) -> str:
        """The words of question i; "" for none."""
        return self.queries[i] if self.queries else ""

    def digest(self) -> str:
        """Tells these questions from others."""
        parts = [self.users.tobytes(), self.items.tobytes()]
        parts.append(json.dumps(self.queries).encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


class Served:
    """A run, its catalogue as a question wants it, and what is known of queries.

    Args:
      queries: the texts of all queries that will be asked.

    Raises:
      UserError: an item or a query is not known, or no item is left that could be found.
    """

    def __init__(
        self,
        run: Run,
        params: synergen.Params,
        question: Question,
        queries: collections.abc.Iterable[str] = (),
    ):
        self.run, self.question = run, question
        log, catalogue = run.log, run.catalogue
        self.ids, self.titles = log.item_ids, log.item_titles
        if question.new_items is not None:
            new, catalogue = _with_new_items(log, catalogue, question.new_items)
            self.ids = [*self.ids, *new.ids]
            self.titles = [*self.titles, *(title or item for title, item in zip(new.titles, new.ids))]
        self._numbers: dict[str, int] | None = None
        self.queries, catalogue = known_queries.known(run, catalogue, map(known_queries.cleaned, queries))
        self.catalogue = catalogue
        self.recommender = Recommender(run.model, params, catalogue, self._index(params, catalogue))

    def numbers(self, items: collections.abc.Iterable[str], where: str) -> np.ndarray:
        """The ids (n,) int32 of items by their original ids.

        Args:
          where: what names them, for messages.

        Raises:
          UserError: one of them is not in the catalogue.
        """
        if self._numbers is None:
            self._numbers = {item: i for i, item in enumerate(self.ids) if i}
        found = [(self._numbers.get(str(item), 0), item) for item in items]
        if wrong := [item for number, item in found if not number]:
            more = f" and {len(wrong) - 1:,} more items" if len(wrong) > 1 else ""
            near = nearest(str(wrong[0]), self.ids[1:]) if len(self.ids) < 100_000 else ""
            raise UserError(f"{where}: item {wrong[0]!r}{more} not in {self.run.log.name}{near}")
        return np.array([number for number, _ in found], np.int32)

    def request(self, record: Record | None, whose: str, query: str = "") -> Request:
        """What is asked for a history.

        Args:
          record: the history, as an event log's; None: nobody in particular asks.
          whose: it is, for messages.
          query: one of the texts that were given.

        Raises:
          UserError: the time of the request is of no use.
        """
        log, config, question = self.run.log, self.run.config, self.question
        events, offset, last = examples.no_history(config), log.last_time, log.last_time
        seen: list[int] = []
        if record is not None:
            (events, offset), last = examples.user_history(record, config), int(record["time"][-1])
            if config.data.filter_seen and not question.keep_seen:
                seen = record["item"].tolist()
        at = last if question.at is None else question.at
        _check_time(at, offset, last, whose)
        asked = self.queries[known_queries.cleaned(query)].id if query else 0
        return Request(jax.tree.map(np.asarray, events), at - offset, asked, seen)

    def recommend(
        self, users: collections.abc.Sequence[str | None], queries: collections.abc.Sequence[str] | None = None
    ) -> list[list[dict[str, typing.Any]]]:
        """The best items of each user, best first: {"item", "score"} and the probability of each ranked label.

        Args:
          users: original ids; None: nobody in particular.
          queries: the words of each, out of the texts that were given, "" for none; None: nobody searches.

        Raises:
          UserError: there is no such user, or a request is of no use.
        """
        log, question = self.run.log, self.question
        numbers = np.array([-1 if user is None else log.find_user(user) for user in users], np.int64)
        asked = Asks(numbers, None if queries is None else list(queries))
        answers = self.in_batches(
            asked,
            range(len(asked)),
            lambda _, requests: self.recommender.answer(requests, question.k, question.order),
        )
        return [[{"item": self.ids[r.item], "score": r.score} | r.probability for r in found] for found in answers]

    def in_batches(
        self,
        asked: Asks,
        places: collections.abc.Sequence[int],
        ask: collections.abc.Callable[[list[int], list[Request]], list[_Made]],
    ) -> list[_Made]:
        """What `ask` makes of the questions at some places, in their order; users of like length go side by side.

        Args:
          ask: takes numbers into `places`, and the request of each.
        """
        log = self.run.log
        events = np.array([log.lengths[asked.users[i]] if asked.users[i] >= 0 else 0 for i in places], np.int64)
        order = np.argsort(np.minimum(events, self.run.config.data.max_history), kind="stable").tolist()
        made: dict[int, _Made] = {}
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            requests = []
            for place in part:
                user = int(asked.users[places[place]])
                record, whose = (log[user], f"user {log.user_ids[user]}") if user >= 0 else (None, "the log")
                requests.append(self.request(record, whose, asked.query(places[place])))
            made.update(zip(part, ask(part, requests), strict=True))
        return [made[place] for place in range(len(order))]

    def unknown_of(self, first: int) -> list[int]:
        """The items from id `first` on of which nothing is known: zeros in every matrix that is used."""
        uses = self.run.config.model.uses
        matrices = [matrix[first:] for name, matrix in self.catalogue.item_matrices.items() if uses(name)]
        rows = len(self.catalogue.counts) - first
        known = np.any([np.any(matrix, axis=1) for matrix in matrices], axis=0) if matrices else np.zeros(rows, bool)
        return (first + np.flatnonzero(~known)).tolist()

    def _index(self, params: synergen.Params, catalogue: Catalogue) -> ExactIndex | None:
        """Where only the items that may come back are found; None: all of them may."""
        question = self.question
        if question.items is None and not question.exclude:
            return None
        every = np.arange(1, len(self.ids))
        ids = every if question.items is None else np.unique(self.numbers(question.items, "--items"))
        ids = np.setdiff1d(ids, self.numbers(question.exclude, "--exclude"))
        keys = np.asarray(synergen.item_keys(self.run.model, params, jax.device_put(catalogue)))[ids]
        if not keys.any():
            raise UserError(
                f"--items and --exclude leave {len(ids):,} items, and of none of them anything is known: none can be found"
            )
        return ExactIndex.build(keys, ids)


def _check_time(at: int, offset: int, last: int, whose: str) -> None:
    """Refuses a time of a request, Unix seconds, before the last event or so far behind it that it counts something else."""
    if at < last:
        raise UserError(f"--at {at} lies before the last event of {whose}, at {last}")
    if at - last > checks.LATEST or at - offset >= 2**31:
        years = checks.LATEST // (365 * 86_400)
        raise UserError(
            f"--at {at} is more than {years} years after the last event of {whose}, at {last}: give Unix seconds"
        )


def _with_new_items(log, catalogue: Catalogue, path: pathlib.Path) -> tuple[item_table.Items, Catalogue]:
    """The rows of a table of items, and the catalogue with them at its end."""
    from synergen_jax.serving import catalogue as catalogues

    new = item_table.read(path, {}, (), {}, (), options=False)
    if not new.ids:
        raise UserError(f"{path}: no items: give a row for each new one, under a header line")
    known = set(log.item_ids)
    if again := [item for item in new.ids if item in known]:
        raise UserError(f"{path}: item {again[0]!r} is in {log.name} already: name new items alone")
    encoder = log.text_encoder()
    if encoder is None or "text" not in log.item_matrices:
        raise UserError(
            f"the items of log {log.name} have no text matrix, by which new ones could be found: import it with --items of titles or "
            "texts, or prepare it with --text"
        )
    return new, catalogues.extended(catalogue, items={"text": encoder.encode(new.words)})
