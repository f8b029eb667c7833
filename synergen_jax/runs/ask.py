"""One question to a trained model: what `synergen recommend` and `synergen search` answer."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import typing

import jax
import numpy as np

from data_pipelines.feed import examples
from data_pipelines.importing import history, item_table
from synergen_jax.errors import UserError
from synergen_jax.model import synergen
from synergen_jax.runs.run import Run
from synergen_jax.serving import recommender


@dataclasses.dataclass(frozen=True)
class Question:
    """How many items are wanted, when, in which order, by which words, and out of which items."""

    k: int = 10
    at: int | None = None  # Unix seconds; None: the time of the last event
    order: str = ""  # a ranked label, by whose probability what was retrieved is ordered; "": by retrieval
    query: str = ""
    new_items: pathlib.Path | None = None  # a table of items that came after training

    def __post_init__(self):
        if self.k < 1:
            raise UserError(f"k = {self.k}: k lies within 1 .. the number of items that are left")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found, and for whom."""

    name: str  # who asks, for people
    question: Question
    events: int  # of the history
    past: list[dict[str, str]]  # its last ten, as rows of a table
    rows: list[dict[str, typing.Any]]  # the items, best first
    notes: list[str]
    known: bool  # whether anything is known of the query; if not, the answer is that to no query
    unknown_words: list[str]

    def as_json(self) -> dict[str, typing.Any]:
        """What `--json` prints."""
        question = self.question
        about = {"history": self.past, "events": self.events, "query": question.query, "asked": question.k}
        about |= {"given": len(self.rows), "notes": self.notes}
        told = {"query_known": self.known, "unknown_words": self.unknown_words} if question.query else {}
        return about | told | {"recommendations": self.rows}


def answer(
    run: Run,
    params: synergen.Params,
    record: dict[str, typing.Any] | None,
    name: str,
    question: Question,
    notes: typing.Sequence[str] = (),
) -> Answer:
    """The best k items for a history, or as many as are left.

    Args:
      record: the history, as an event log's; None: nobody in particular asks.
      name: who asks, for people.
      notes: what people should know of the history.

    Raises:
      UserError: the query, the new items, the time or the label of the order is of no use.
    """
    log, catalogue = run.log, run.catalogue
    ids, titles = log.item_ids, log.item_titles
    if question.new_items is not None:
        new, catalogue = _with_new_items(log, catalogue, question.new_items)
        ids, titles = [*ids, *new.ids], [*titles, *(title or item for title, item in zip(new.titles, new.ids))]
    asked = _query(run, catalogue, " ".join(question.query.split())) if question.query else None
    query_id, catalogue = (asked.id, asked.catalogue) if asked else (0, catalogue)
    served = recommender.Recommender(run.model, params, catalogue)

    events, offset, last = examples.no_history(run.config), log.last_time, log.last_time
    past: list[dict[str, str]] = []
    if record is not None:
        (events, offset), last = examples.user_history(record, run.config), int(record["time"][-1])
        past = _past(log, record)
    at = last if question.at is None else question.at
    _check_time(at, offset, last, "the log" if record is None else name)
    cache = served.encode(jax.tree.map(np.asarray, events))
    seen = set(record["item"].tolist()) if record is not None and run.config.data.filter_seen else set()
    left = served.available(seen)
    order, k = question.order, min(question.k, left)
    found = served.recommend(cache, at - offset, k, query_id, exclude=seen, order=order) if left else []
    rows = [
        {"rank": i + 1, "item": ids[r.item], "title": titles[r.item], "score": r.score} | r.probability
        for i, r in enumerate(found)
    ]
    notes = [*notes, *(asked.notes if asked else [])]
    if nothing := [ids[item] for item in _unknown_of(run, catalogue, len(log.item_ids))]:
        named = ", ".join(nothing[:5]) + (f" and {len(nothing) - 5} more" if len(nothing) > 5 else "")
        notes.append(f"no word of {len(nothing)} of the new items is known: they are never recommended: {named}")
    if len(rows) < question.k:
        and_new = f" and that {name} has not had" if seen else ""
        notes.append(f"{len(rows)} items in place of {question.k}: there are no more that can be recommended{and_new}")
    events_had = 0 if record is None else len(record["item"])
    unknown = asked.unknown if asked else []
    return Answer(name, question, events_had, past, rows, notes, bool(query_id), unknown)


def _check_time(at: int, offset: int, last: int, whose: str) -> None:
    """Refuses a time of a request, Unix seconds, before the last event or so far behind it that it counts something else."""
    if at < last:
        raise UserError(f"--at {at} lies before the last event of {whose}, at {last}")
    if at - last > recommender.LATEST or at - offset >= 2**31:
        years = recommender.LATEST // (365 * 86_400)
        raise UserError(
            f"--at {at} is more than {years} years after the last event of {whose}, at {last}: give Unix seconds"
        )


def _past(log, record: dict[str, typing.Any]) -> list[dict[str, str]]:
    """The last ten events of a record, as rows of a table; without a column of queries where there is none."""
    rows = history.last_events(log, record)
    searched = any(row["query"] for row in rows)
    return [{name: value for name, value in row.items() if searched or name != "query"} for row in rows]


class _Query(typing.NamedTuple):
    """What is known of a query."""

    id: int  # 0: nothing is known of it, and the answer is that to no query
    catalogue: typing.Any
    unknown: list[str]  # words that are not known, of a query that the log does not have
    notes: list[str]


def _query(run, catalogue, text: str) -> _Query:
    """The id of a query, and the catalogue, to which one that the log does not have is added by its text."""
    log = run.log
    if not text:
        raise UserError("--query is empty: `synergen recommend` answers without a query")
    unknown: list[str] = []
    other_case = [i for i, known in enumerate(log.queries) if i and known.casefold() == text.casefold()]
    if text in log.queries:
        query = log.queries.index(text)
    elif len(other_case) == 1:
        query = other_case[0]
    else:
        encoder = log.text_encoder()
        if encoder is None or "text" not in log.query_matrices:
            near = difflib.get_close_matches(text, log.queries[1:], n=3, cutoff=0.3)
            known = f"; near it: {', '.join(map(repr, near))}" if near else ""
            raise UserError(f"log {log.name} knows queries by their ids alone, and not {text!r}{known}")
        query = len(catalogue.query_counts)
        vector, *of_words = encoder.encode([text, *text.split()])
        unknown = [word for word, row in zip(text.split(), of_words) if not row.any()]
        catalogue = recommender.extended(catalogue, queries={"text": vector[None]})
    learned = run.config.model.query_ids and catalogue.query_counts[query] > 0
    matrices = [matrix for name, matrix in catalogue.query_matrices.items() if run.config.model.uses(name)]
    if not learned and not any(np.any(matrix[query]) for matrix in matrices):
        note = f"no word of {text!r} is known: this is what is recommended without a query"
        return _Query(0, catalogue, unknown, [note])
    notes = [f"words that are not known: {', '.join(map(repr, unknown))}"] if unknown else []
    return _Query(query, catalogue, unknown, notes)


def _unknown_of(run, catalogue, first: int) -> list[int]:
    """The items from id `first` on of which nothing is known: zeros in every matrix that is used."""
    matrices = [matrix[first:] for name, matrix in catalogue.item_matrices.items() if run.config.model.uses(name)]
    rows = len(catalogue.counts) - first
    known = np.any([np.any(matrix, axis=1) for matrix in matrices], axis=0) if matrices else np.zeros(rows, bool)
    return (first + np.flatnonzero(~known)).tolist()


def _with_new_items(log, catalogue, path: pathlib.Path):
    """The rows of a table of items, and the catalogue with them at its end."""
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
    return new, recommender.extended(catalogue, items={"text": encoder.encode(new.words)})
