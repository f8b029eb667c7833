"""Many questions to a trained model, to a file: recommendations of many users, pairs, and vectors."""

from __future__ import annotations

import collections.abc
import hashlib
import json
import pathlib
import time
import typing

import numpy as np

from data_pipelines.importing import named_rows
from synergen_jax import config as configs
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say
from synergen_jax.runs.answers_file import Columns, Table
from synergen_jax.runs.known_queries import cleaned
from synergen_jax.runs.run import Opened, Run
from synergen_jax.runs.served import Asks, Question, Served
from synergen_jax.serving.recommender import Request

KINDS = ("items", "users", "queries")
MOST_CANDIDATES = 1024  # of one request that are ranked at once


def asks(run: Run, users: str | pathlib.Path, query: str = "") -> Asks:
    """All users of the log, "all", or those that a table names, with a query each if it has such a column.

    Raises:
      UserError: the table cannot be read, names a user whom the log does not have, or has queries beside `query`.
    """
    query = cleaned(query)
    if str(users) == "all":
        return Asks(np.arange(len(run.log)), [query] * len(run.log) if query else None)
    rows = named_rows.read(users, ["user"], ["query"])
    if query and "query" in rows.columns:
        raise UserError(f"--query, and a column `query` in {users}: give one of them")
    numbers = {user: i for i, user in enumerate(run.log.user_ids)}
    found = np.array(named_rows.numbered(rows, "user", numbers, run.log.name), np.int64)
    return Asks(found, rows.columns.get("query", [query] * len(found) if query else None))


def recommend(
    opened: Opened, users: str | pathlib.Path, question: Question, out: pathlib.Path, searches: bool = False
) -> dict[str, typing.Any]:
    """Answers many users, a row an item: user, query, rank, item, score, and the probability of each ranked label.

    Args:
      users: as `asks` takes them.
      searches: refuses users without a query at all, which would be recommended to in silence.

    Raises:
      UserError: as `asks`, `Served` and `answers_file.Table` say.
    """
    import polars as pl

    start = time.perf_counter()
    run, asked = opened.run, asks(opened.run, users, question.query)
    if searches and asked.queries is None:
        raise UserError(
            f"{users}: there is no column 'query', and no --query: `synergen recommend` answers without one"
        )
    labels = run.log.spec.labels
    schema = {"user": pl.String, "query": pl.String, "rank": pl.Int32, "item": pl.String, "score": pl.Float32}
    table = Table(out, _about(opened, asked, question), len(asked), schema | dict.fromkeys(labels, pl.Float32))
    served = Served(run, opened.params, question, asked.queries or [])
    _say_unknown(served)

    def rows(first: int, stop: int) -> Columns:
        columns: Columns = {name: [] for name in [*schema, *labels]}
        answers = served.in_batches(
            asked,
            range(first, stop),
            lambda _, requests: served.recommender.answer(requests, question.k, question.order),
        )
        for i, found in zip(range(first, stop), answers):
            columns["user"] += [_user(run, asked, i)] * len(found)
            columns["query"] += [asked.query(i) or None] * len(found)
            columns["rank"] += range(1, len(found) + 1)
            columns["item"] += [served.ids[r.item] for r in found]
            columns["score"] += [r.score for r in found]
            for label in labels:
                columns[label] += [r.probability[label] for r in found]
        return columns

    return _written(table, rows, len(asked), start, "users")


def rank(opened: Opened, pairs: str | pathlib.Path, question: Question, out: pathlib.Path) -> dict[str, typing.Any]:
    """Scores pairs of a user and an item, perhaps for a query, in their order: retrieval's score, each label's probability.

    Args:
      pairs: a table with columns user, item, and if you like query. A pair without a user is of nobody in particular.

    Raises:
      UserError: as `asks`, `Served` and `answers_file.Table` say.
    """
    import polars as pl

    start = time.perf_counter()
    run = opened.run
    named = named_rows.read(pairs, ["item"], ["user", "query"])
    users = np.full(len(named.columns["item"]), -1, np.int64)
    if "user" in named.columns:
        numbers = {user: i for i, user in enumerate(run.log.user_ids)}
        users = np.array(named_rows.numbered(named, "user", numbers, run.log.name, none=-1), np.int64)
    queries = named.columns.get("query")
    served = Served(run, opened.params, question, queries or [])
    _say_unknown(served)
    items = {item: i for i, item in enumerate(served.ids) if i}
    asked = Asks(users, queries, np.array(named_rows.numbered(named, "item", items, run.log.name), np.int32))
    labels = run.log.spec.labels
    schema = {"user": pl.String, "item": pl.String, "query": pl.String, "score": pl.Float32}
    table = Table(out, _about(opened, asked, question), len(asked), schema | dict.fromkeys(labels, pl.Float32))

    findable = _findable(served)
    if unknown := int((~findable[asked.items]).sum()):
        say(f"{unknown:,} pairs have no score: nothing is known of their items, which are never recommended")

    def rows(first: int, stop: int) -> Columns:
        scores, probabilities = np.zeros(stop - first), np.zeros((stop - first, len(labels)))
        here = range(first, stop)
        groups = _of_one_request(asked, first, stop)

        def ranked(places: list[int], requests: list[Request]) -> list[None]:
            mine = [groups[place] for place in places]
            found = served.recommender.rank_pairs(requests, [asked.items[group] for group in mine])
            for group, (score, probability) in zip(mine, found):
                scores[group - first], probabilities[group - first] = score, probability
            return [None] * len(places)

        served.in_batches(asked, [int(group[0]) for group in groups], ranked)
        scores[~findable[asked.items[first:stop]]] = np.nan
        columns: Columns = {
            "user": [_user(run, asked, i) for i in here],
            "item": [served.ids[item] for item in asked.items[first:stop]],
            "query": [asked.query(i) or None for i in here],
            "score": pl.Series(scores).fill_nan(None),
        }
        return columns | {label: probabilities[:, i] for i, label in enumerate(labels)}

    return _written(table, rows, len(asked), start, "pairs")


def vectors(opened: Opened, of: str, question: Question, out: pathlib.Path) -> dict[str, typing.Any]:
    """Writes the vectors of items, of users when they last were seen, or of queries of nobody in particular.

    The inner product of an item's vector with a user's or a query's is its retrieval score.

    Raises:
      UserError: no such kind; as `Served` and `answers_file.Table` say.
    """
    import polars as pl

    start = time.perf_counter()
    if of not in KINDS:
        raise UserError(f"--of {of!r} is none of {', '.join(KINDS)}")
    run, log = opened.run, opened.run.log
    texts = log.queries[1:] if of == "queries" else []
    if of == "queries" and not texts:
        raise UserError(f"log {log.name} has no queries")
    served = Served(run, opened.params, question, texts)
    _say_unknown(served)
    keys = served.recommender.keys()
    if of == "items" and (unknown := int((~_findable(served)[1:]).sum())):
        say(f"{unknown:,} items have zeros: nothing is known of them, and they are never recommended")
    ids = {"items": served.ids[1:], "users": log.user_ids, "queries": texts}[of]
    numbers = np.arange(len(ids)) if of == "users" else np.full(len(ids), -1)
    asked = Asks(numbers, texts or None)
    one = of.removesuffix("s") if of != "queries" else "query"
    schema = {one: pl.String, "vector": pl.Array(pl.Float32, keys.shape[1])}
    table = Table(out, _about(opened, asked, question) | {"of": of}, len(ids), schema)

    def rows(first: int, stop: int) -> Columns:
        if of == "items":
            found = keys[1 + first : 1 + stop]
        else:
            each = served.in_batches(
                asked,
                range(first, stop),
                lambda _, requests: list(served.recommender.vectors(requests)[: len(requests)]),
            )
            found = np.stack(each)
        return {one: ids[first:stop], "vector": found.astype(np.float32)}

    return _written(table, rows, len(ids), start, of) | {"width": keys.shape[1]}


def similar(opened: Opened, item: str, question: Question) -> dict[str, typing.Any]:
    """The k items whose vectors have the largest cosine with an item's.

    Raises:
      UserError: there is no such item, or nothing is known of it.
    """
    served = Served(opened.run, opened.params, question)
    number = int(served.numbers([item], "--item")[0])
    keys = served.recommender.keys()
    length = np.linalg.norm(keys, axis=1)
    if not length[number]:
        raise UserError(
            f"--item {item}: nothing is known of it, neither an event of training nor a word, tag or vector"
        )
    cosines = keys @ keys[number] / np.maximum(length, 1e-30) / length[number]
    ids = served.recommender.index.ids
    ids = ids[ids != number]
    best = ids[np.argsort(-cosines[ids], kind="stable")[: question.k]]
    found = [
        {"rank": i + 1, "item": served.ids[j], "title": served.titles[j], "cosine": float(cosines[j])}
        for i, j in enumerate(best.tolist())
    ]
    return {"item": item, "title": served.titles[number], "asked": question.k, "given": len(found), "similar": found}


# --- parts ----------------------------------------------------------------------------------------------------


def _about(opened: Opened, asked: Asks, question: Question) -> dict[str, typing.Any]:
    """What decides the answers."""
    plain = {name: _plain(value) for name, value in vars(question).items()}
    config = hashlib.sha256(json.dumps(configs.to_dict(opened.run.config)).encode()).hexdigest()[:16]
    about = {
        "run": str(opened.folder.resolve()),
        "step": opened.step,
        "log": opened.run.log.fingerprint,
        "config": config,
    }
    return about | {"questions": asked.digest(), **plain}


def _plain(value: typing.Any) -> typing.Any:
    """A field of a question as JSON; of many ids, and of a file's content, a hash."""
    if isinstance(value, pathlib.Path):
        return [str(value), hashlib.sha256(value.read_bytes()).hexdigest()[:16]]
    if isinstance(value, collections.abc.Collection) and not isinstance(value, str):
        return hashlib.sha256(json.dumps(sorted(value)).encode()).hexdigest()[:16]
    return value


def _user(run: Run, asked: Asks, i: int) -> str | None:
    return None if asked.users[i] < 0 else run.log.user_ids[asked.users[i]]


def _of_one_request(asked: Asks, first: int, stop: int) -> list[np.ndarray]:
    """The places of pairs that are of one user and query, at most `MOST_CANDIDATES` a group."""
    groups: dict[tuple[int, str], list[int]] = {}
    for i in range(first, stop):
        groups.setdefault((int(asked.users[i]), asked.query(i)), []).append(i)
    pieces = (
        group[at : at + MOST_CANDIDATES] for group in groups.values() for at in range(0, len(group), MOST_CANDIDATES)
    )
    return [np.array(piece) for piece in pieces]


def _findable(served: Served) -> np.ndarray:
    """Which items can be recommended, bool (V,)."""
    findable = np.zeros(len(served.ids), bool)
    findable[served.recommender.index.ids] = True
    return findable


def _say_unknown(served: Served) -> None:
    """Tells of queries of which nothing is known."""
    if unknown := [text for text, known in served.queries.items() if text and not known.id]:
        say(
            f"of {len(unknown):,} queries no word is known, such as {unknown[0]!r}: they are answered as if there were no query"
        )


def _written(
    table: Table, rows: collections.abc.Callable[[int, int], Columns], count: int, start: float, what: str
) -> dict[str, typing.Any]:
    ready = time.perf_counter()
    done = table.write(rows)
    seconds = time.perf_counter() - ready
    rate = (count - done) / seconds if count > done else 0.0
    there = f" ({done:,} of them were there already)" if done else ""
    say(
        f"{count:,} {what}{there} in {seconds:.1f} s, {rate:,.0f} a second, after {ready - start:.1f} s to get ready: {table.out}"
    )
    return {
        "out": str(table.out),
        what: count,
        "were_there": done,
        "seconds": seconds,
        "ready_seconds": ready - start,
        "a_second": rate,
    }
