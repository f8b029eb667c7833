"""What `synergen recommend` and `synergen search` do: one question to a trained model, answered for a person."""

from __future__ import annotations

import difflib
import pathlib
import typing

import jax
import numpy as np

from data_pipelines.feed import examples
from data_pipelines.importing import history, item_file
from synergen_jax.errors import UserError
from synergen_jax.evaluation import report
from synergen_jax.serving import recommender


def ask(run, params, arguments, query: str = "") -> dict[str, typing.Any]:
    """Answers a user of the log, a history from a file, or nobody in particular."""
    record, name, assumed = None, "without a history", {}
    if arguments.user is not None:
        record, name = run.log[run.log.find_user(arguments.user)], f"user {arguments.user}"
    elif arguments.history is not None:
        (record, assumed), name = history.read(arguments.history, run.log), str(arguments.history)
    kinds = {"item": "items", "query": "queries alone"}
    notes = [
        f"rows of {kinds[kind]} without an action are read as {action!r}, the commonest"
        for kind, action in assumed.items()
    ]
    question = arguments.k, arguments.at, arguments.order, query, arguments.new_items
    found = answer(run, params, record, name, *question, notes=notes)
    return found | ({"assumed_actions": assumed} if assumed else {})


def check_count(k: int) -> None:
    """Refuses a number of items that is none."""
    if k < 1:
        raise UserError(f"k = {k}: k lies within 1 .. the number of items that are left")


def answer(
    run,
    params,
    record: dict[str, typing.Any] | None,
    name: str,
    k: int,
    at: int | None = None,
    order: str = "",
    query: str = "",
    new_items: pathlib.Path | None = None,
    notes: typing.Sequence[str] = (),
) -> dict[str, typing.Any]:
    """Prints a history and the best k items, or as many as are left, and returns what `--json` prints."""
    check_count(k)
    log, catalogue = run.log, run.catalogue
    ids, titles = log.item_ids, log.item_titles
    if new_items is not None:
        new, catalogue = _with_new_items(log, catalogue, new_items)
        ids, titles = [*ids, *new.ids], [*titles, *(title or item for title, item in zip(new.titles, new.ids))]
    asked = _query(run, catalogue, " ".join(query.split())) if query else None
    query_id, catalogue = (asked.id, asked.catalogue) if asked else (0, catalogue)
    served = recommender.Recommender(run.model, params, catalogue)

    events, offset, last = examples.no_history(run.config), log.last_time, log.last_time
    past: list[dict[str, typing.Any]] = []
    if record is not None:
        (events, offset), last = examples.user_history(record, run.config), int(record["time"][-1])
        past = _past(log, record)
    at = last if at is None else at
    _check_time(at, offset, last, "the log" if record is None else name)
    cache = served.encode(jax.tree.map(np.asarray, events))
    seen = set(record["item"].tolist()) if record is not None and run.config.data.filter_seen else set()
    left = served.available(seen)
    found = served.recommend(cache, at - offset, min(k, left), query_id, exclude=seen, order=order) if left else []
    rows = [
        {"rank": i + 1, "item": ids[r.item], "title": titles[r.item], "score": r.score} | r.probability
        for i, r in enumerate(found)
    ]
    notes = [*notes, *(asked.notes if asked else [])]
    if nothing := [ids[item] for item in _unknown_of(run, catalogue, len(log.item_ids))]:
        named = ", ".join(nothing[:5]) + (f" and {len(nothing) - 5} more" if len(nothing) > 5 else "")
        notes.append(f"no word of {len(nothing)} of the new items is known: they are never recommended: {named}")
    if len(rows) < k:
        and_new = f" and that {name} has not had" if seen else ""
        notes.append(f"{len(rows)} items in place of {k}: there are no more that can be recommended{and_new}")

    if record is not None:
        print(f"{name}: {len(record['item'])} events, the last {len(past)} of them:\n{report.table(past)}\n")
    if query_id:
        what = f"found for {query!r}, {name}"
    else:
        what = "recommended" if record is not None else f"recommended, {name}"
    if rows:
        print(f"{what}{f', ordered by {order}' if order else ''}\n{report.table(rows)}", flush=True)
    for note in notes:
        print(note, flush=True)
    events_had = 0 if record is None else len(record["item"])
    about = {"history": past, "events": events_had, "query": query, "asked": k, "given": len(rows), "notes": notes}
    told = {"query_known": bool(query_id), "unknown_words": asked.unknown} if asked else {}
    return about | told | {"recommendations": rows}


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
    new = item_file.read(path, {}, (), {}, (), options=False)
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
