"""Last.fm of HetRec 2011: what users listen to, and the tags that they typed, from two CSV files that the user has.

    events.csv[.gz]   user_id, item_id (an artist), query (empty: a listen; else a tag), part (train, valid, test)
    items.csv[.gz]    item_id, name

A listen is an event without a query, a tag one whose query it is. Each part of a user holds artists of its own.

Listens have no time and tags hardly one, so times are made up and tell the part alone: one moment a part. So the
split "time" with the moments of `TIMES` cuts the parts. Within a part the artists stand in an order drawn by seed,
since the files list what was played most first. In the train part a user's listen and tags of one artist are one request: seen
from the tag, a listen of that very artist would give it away. All events of a later part are one request, so that
none of its targets is told by another.

The names of artists have not the words that people tag them with: of 28% of the tag events no word is in any name. So
names are titles alone, which BM25 searches, and the encoder of texts is fitted to the tags. Plays and dates are not
read.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.files import rows
from data_pipelines.sources import csv_pair, fetch
from data_pipelines.sources.interactions import ordered

NAME = "lastfm"
TEXT = "tfidf"
SETTINGS: dict[str, typing.Any] = {"seed": 0}  # of the order of artists
FILES = ("events.csv", "items.csv")
TIMES = {"train": 1_293_840_000, "valid": 1_293_926_400, "test": 1_294_012_800}  # 2011-01-01, -02 and -03, UTC
ACTIONS = ("", "listen", "tag")
NOTE = "queries are tags, typed by the users about artists, not searches; times are made up and tell the part alone"


def find(source: str | pathlib.Path | None) -> tuple[str, fetch.Raw]:
    """The two files of a folder, and the name of their log."""
    return csv_pair.find(NAME, FILES, source)


def log_parts(
    raw: fetch.Raw, settings: typing.Mapping[str, typing.Any]
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """What `event_log.write` takes, name and source aside; and what the log's `source` says: note and counts.

    Raises:
      UserError: a file is damaged, lacks a column, or has a wrong row, which is named.
    """
    events, table = csv_pair.tables(raw, ("user_id", "item_id", "query", "part"), ("item_id", "name"))
    names = dict(zip(table.unique("item_id"), (" ".join(name.split()) for name in table.columns["name"])))
    artists, tags = events.tokens("item_id"), [query.strip() for query in events.columns["query"]]
    items = ["", *ordered({*artists, *names})]
    queries = ["", *sorted(set(tags) - {""})]
    item_number = {item: i for i, item in enumerate(items)}
    query_number = {query: i for i, query in enumerate(queries)}
    item = np.array([item_number[artist] for artist in artists], np.int32)
    query = np.array([query_number[tag] for tag in tags], np.int32)
    listens = int((query == 0).sum())
    parts = {
        "users": list(_records(events, item, query, _parts(events), settings["seed"])),
        "item_ids": items,
        "item_titles": [names.get(item) or item for item in items],
        "queries": queries,
        "actions": ACTIONS,
        "labels": {"engage": (1, 2)},
    }
    unnamed = sum(not names.get(item) for item in items[1:])
    return parts, {
        "note": NOTE,
        "counts": {"listens": listens, "tags": len(query) - listens, "artists without a name": unnamed},
    }


def _parts(events: rows.Rows) -> np.ndarray:
    """Of each event the place of its part in `TIMES`, (rows,); an artist of a user stands in one part alone."""
    number = {part: i for i, part in enumerate(TIMES)}
    of: dict[tuple[str, str], str] = {}
    for row, key in enumerate(zip(events.tokens("user_id"), events.columns["item_id"])):
        part = events.columns["part"][row]
        if part not in number:
            raise events.error(row, f"part {part!r} is none of {', '.join(number)}")
        if of.setdefault(key, part) != part:
            raise events.error(
                row,
                f"user {key[0]!r} has artist {key[1]!r} in part {part} and in {of[key]}: a target would be known",
            )
    return np.array([number[part] for part in events.columns["part"]], np.int32)


def _records(
    events: rows.Rows, item: np.ndarray, query: np.ndarray, part: np.ndarray, seed: int
) -> typing.Iterator[dict[str, typing.Any]]:
    """A record a user, in order; whatever the order of the other users' rows, a user's own draws stay."""
    users = ordered(events.columns["user_id"])
    number = {user: i for i, user in enumerate(users)}
    user = np.array([number[name] for name in events.columns["user_id"]], np.int32)
    order = np.argsort(user, kind="stable")
    ends = np.searchsorted(user[order], np.arange(len(users) + 1))
    times, none = np.array(list(TIMES.values()), np.int64), np.zeros(0, np.int32)
    for place, name in enumerate(users):
        mine = order[ends[place] : ends[place + 1]]
        distinct, artist = np.unique(item[mine], return_inverse=True)
        drawn = np.random.default_rng((seed, place)).permutation(len(distinct))[artist]
        mine = mine[np.lexsort((query[mine] > 0, drawn, part[mine]))]  # stable: tags of an artist as in the file
        # A request ends with its part, and in the train part with each artist.
        new = (np.diff(part[mine]) > 0) | ((part[mine][1:] == 0) & (np.diff(item[mine]) != 0))
        yield {
            "user_id": name,
            "item": item[mine],
            "action": np.where(query[mine] > 0, 2, 1).astype(np.int32),
            "query": query[mine],
            "request": np.append(1, 1 + np.cumsum(new)).astype(np.int32),
            "time": times[part[mine]],
            "shown_request": none,
            "shown_item": none,
            "shown_action": none,
        }
