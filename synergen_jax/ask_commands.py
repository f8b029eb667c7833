"""What `synergen recommend` and `synergen search` do: one question to a trained model, answered for a person."""

from __future__ import annotations

import difflib
import pathlib
import typing

import jax
import numpy as np

from data_pipelines import examples, history, item_file
from synergen_jax import recommender, report
from synergen_jax.errors import UserError


def ask(run, params, arguments, query: str = "") -> dict[str, typing.Any]:
    """Answers a user of the log, a history from a file, or in a search nobody in particular."""
    if arguments.user is not None:
        record, name = run.log[run.log.find_user(arguments.user)], f"user {arguments.user}"
    elif arguments.history is not None:
        record, name = history.read(arguments.history, run.log), str(arguments.history)
    else:
        record, name = None, "without a history"
    return answer(run, params, record, name, arguments.k, arguments.at, arguments.order, query, arguments.new_items)


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
) -> dict[str, typing.Any]:
    """Prints a history and the best k items, and returns what `--json` prints."""
    log, catalogue = run.log, run.catalogue
    ids, titles = log.item_ids, log.item_titles
    if new_items is not None:
        new, catalogue = _with_new_items(log, catalogue, new_items)
        ids, titles = [*ids, *new.ids], [*titles, *(title or item for title, item in zip(new.titles, new.ids))]
    query_id, catalogue = _query(log, catalogue, " ".join(query.split())) if query else (0, catalogue)
    served = recommender.Recommender(run.model, params, catalogue)

    events, offset, last = examples.no_history(run.config), log.last_time, log.last_time
    past: list[dict[str, typing.Any]] = []
    if record is not None:
        (events, offset), last = examples.user_history(record, run.config), int(record["time"][-1])
        past = _past(log, record)
        print(f"{name}: {len(record['item'])} events, the last {len(past)} of them:\n{report.table(past)}\n")
    at = last if at is None else at
    if at < last:
        raise UserError(f"--at {at} lies before the last event of {name}, at {last}")
    if at - offset >= 2**31:
        raise UserError(f"--at {at} is more than 68 years after the first event of {name}")
    cache = served.encode(jax.tree.map(np.asarray, events))
    seen = set(record["item"].tolist()) if record is not None and run.config.data.filter_seen else set()
    found = served.recommend(cache, at - offset, k, query_id, exclude=seen, order=order)
    rows = [
        {"rank": i + 1, "item": ids[r.item], "title": titles[r.item], "score": r.score} | r.probability
        for i, r in enumerate(found)
    ]
    what = f"found for {query!r}, {name}" if query else "recommended"
    print(f"{what}{f', ordered by {order}' if order else ''}\n{report.table(rows)}", flush=True)
    events_had = 0 if record is None else len(record["item"])
    return {"history": past, "events": events_had, "query": query, "recommendations": rows}


def _past(log, record: dict[str, typing.Any]) -> list[dict[str, str]]:
    """The last ten events of a record, as rows of a table; without a column of queries where there is none."""
    rows = history.last_events(log, record)
    searched = any(row["query"] for row in rows)
    return [{name: value for name, value in row.items() if searched or name != "query"} for row in rows]


def _query(log, catalogue, text: str) -> tuple[int, typing.Any]:
    """The id of a query, and the catalogue, to which one that the log does not have is added by its text."""
    if not text:
        raise UserError("--query is empty: `synergen recommend` answers without a query")
    if text in log.queries:
        return log.queries.index(text), catalogue
    encoder = log.text_encoder()
    if encoder is None or "text" not in log.query_matrices:
        near = difflib.get_close_matches(text, log.queries[1:], n=3, cutoff=0.3)
        known = f"; near it: {', '.join(map(repr, near))}" if near else ""
        raise UserError(f"log {log.name} knows queries by their ids alone, and not {text!r}{known}")
    new = len(catalogue.query_counts)
    return new, recommender.extended(catalogue, queries={"text": encoder.encode([text])})


def _with_new_items(log, catalogue, path: pathlib.Path):
    """The rows of a table of items, and the catalogue with them at its end."""
    new = item_file.read(path, {}, (), {}, ())
    known = set(log.item_ids)
    if again := [item for item in new.ids if item in known]:
        raise UserError(f"{path}: item {again[0]!r} is in {log.name} already: name new items alone")
    encoder = log.text_encoder()
    if encoder is None or "text" not in log.item_matrices:
        raise UserError(f"log {log.name} has no text matrix, by which new items could be found: prepare it with --text")
    return new, recommender.extended(catalogue, items={"text": encoder.encode(new.words)})
