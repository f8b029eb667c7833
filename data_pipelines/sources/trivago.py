"""Hotel search sessions of trivago (RecSys Challenge 2019), from a parquet file that the user has.

Each row is one step of a session. Rows are sorted by user, time, session and step, and become events:

- a clickout is an event with an item and with the list that was shown, in its order. What is known of the items of a list
  is told by `trivago_lists.FEATURES`;
- other steps with an item (image, info, rating, deals, a search for the item) are events with an item, the context of
  what follows. Of consecutive steps of one session with the same action and item the first is kept: they are mostly
  pictures that are leafed through, and how many there will be is not known when the first one comes;
- searches for a destination or a point of interest, filters and changes of sort order are events with a query alone.

The query of an event is what its session is searching for at that step: "city | point of interest | filters". The city
is the row's own; the point of interest holds until the next search or city; filters are those of the last row
that says them (searches, filter selections, clickouts). Every event is a request of its own: a step is answered by
what came before it, and a list belongs to its clickout alone.

There is no text of items: titles are their ids. Most hotels that are clicked were never met before, so that a learned
vector says nothing of them; what can be told is whether two hotels are the same one. The matrix "code" of items, frozen
random vectors of unit length, says just that: with it and `model.item_ids = false` a new hotel is treated as any other.
The matrix "query_code" of queries is likewise: a random vector for each city, point of interest and filter, added up. It
has a name of its own: under one name the model would compare the codes of queries with those of items, which are unrelated.
"""

from __future__ import annotations

import collections
import io
import pathlib
import typing

import numpy as np

from data_pipelines.files.rows import LATEST
from data_pipelines.sources.fetch import Raw
from data_pipelines.sources.interactions import ordered
from data_pipelines.sources.trivago_lists import FEATURES, History
from synergen_jax.errors import UserError, first_line

NAME = "trivago"
TEXT = "none"
CLICKOUT = "clickout item"
ITEM_ACTIONS = (
    "interaction item deals",
    "interaction item image",
    "interaction item info",
    "interaction item rating",
    "search for item",
    CLICKOUT,  # last, so that it is what a history without actions is taken for
)
DESTINATION, POI = "search for destination", "search for poi"
QUERY_ACTIONS = ("change of sort order", "filter selection", DESTINATION, POI)
SAYS_FILTERS = ("filter selection", DESTINATION, POI, CLICKOUT)
ACTIONS = ("", *ITEM_ACTIONS, *QUERY_ACTIONS)
SETTINGS: dict[str, typing.Any] = {"features": list(FEATURES)}  # a log with other ones is prepared again
CODE = 64  # width of the random codes
TEXTS = ("user_id", "session_id", "action_type", "reference", "city", "current_filters", "impressions", "prices")
NUMBERS = ("timestamp", "step")
# Rows, or their lists, that are left out, and why; the log's `source` counts them.
LEFT_OUT = (
    "repeats",
    "references without an item",
    "searches without a text",
    "lists missing",
    "lists malformed",
    "lists without the clicked item",
)


class Event(typing.NamedTuple):
    """One step that is kept."""

    item: str  # "": none
    action: int
    query: str  # "": none
    time: int
    shown: tuple[list[str], np.ndarray] | None  # items (n,) in the order shown, features (n, F)


def find(source: str | pathlib.Path | None) -> tuple[str, Raw]:
    """The only parquet file of a folder, or the file itself, and the name of its log: that of the folder or file."""
    if source is None:
        raise UserError(
            f"{NAME} is not fetched: give --source PATH, a parquet file of the sessions of the RecSys Challenge 2019 "
            f"(columns {', '.join(NUMBERS + TEXTS)}) or the folder that holds it"
        )
    path = pathlib.Path(source).expanduser().resolve()
    name, file = path.name, path
    if path.is_dir():
        found = sorted(path.glob("*.parquet*"))
        if len(found) != 1:
            raise UserError(f"{path}: {len(found)} .parquet files, where one is wanted")
        file = found[0]
    else:
        name = path.name.partition(".")[0]
    try:
        return name, Raw((file.name, file.read_bytes(), str(file)), None, str(path))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def log_parts(
    raw: Raw, settings: typing.Mapping[str, typing.Any]
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """What `event_log.write` takes, name and source aside; and what the log's `source` says: counts of rows, by reason.

    Raises:
      UserError: the file is no parquet file, has not the columns, or a row's user, session, action or time is wrong.
    """
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(LEFT_OUT, 0))
    users = _events(_table(raw, counts), counts)
    events = [event for mine in users.values() for event in mine]
    shown = (item for event in events if event.shown for item in event.shown[0])
    items = ["", *ordered({event.item for event in events if event.item}.union(shown))]
    queries = ["", *sorted({event.query for event in events if event.query})]
    return {
        "users": _records(users, items, queries),
        "item_ids": items,
        "item_titles": items,
        "queries": queries,
        "actions": ACTIONS,
        "labels": {"engage": tuple(range(1, 1 + len(ITEM_ACTIONS)))},
        "item_matrices": {"code": codes([(item,) for item in items])},
        "query_matrices": {"query_code": codes([query.replace(" | ", ", ").split(", ") for query in queries])},
        "candidate_features": FEATURES,
    }, {"counts": dict(counts)}


def _table(raw: Raw, counts: collections.Counter):
    """The checked rows, sorted."""
    import polars as pl

    _, data, where = raw.interactions
    try:
        table = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{where}: not a whole parquet file ({first_line(error)})") from None
    for name in NUMBERS + TEXTS:
        if name not in table.columns:
            raise UserError(f"{where}: there is no column {name}; it has {', '.join(table.columns)}")
        kind = table.schema[name]
        if not (kind.is_integer() if name in NUMBERS else kind in (pl.String, pl.Null)):
            wanted = "whole numbers" if name in NUMBERS else "text"
            raise UserError(f"{where}: column {name} must hold {wanted}, not {kind}")
    if not len(table):
        raise UserError(f"{where}: there are no rows")

    def refuse(name: str, wrong, reason: str) -> None:
        found = wrong.fill_null(True).arg_true()
        if len(found):
            raise UserError(f"{where}, row {found[0] + 1}: {name} {table[name][found[0]]!r} {reason}")

    for name in ("user_id", "session_id"):
        refuse(name, table[name].cast(pl.String).str.strip_chars() == "", "names nobody")
    refuse("action_type", ~table["action_type"].is_in(ACTIONS[1:]), f"is none of {', '.join(ACTIONS[1:])}")
    late = "must be Unix seconds, above 0 and before 2100"
    refuse("timestamp", (table["timestamp"] <= 0) | (table["timestamp"] >= LATEST), late)
    refuse("step", table["step"] < 0, "must be a whole number from 0 up")
    counts["rows"] = len(table)
    table = table.select("user_id", "timestamp", "session_id", "step", *TEXTS[2:])
    return table.sort("user_id", "timestamp", "session_id", "step", maintain_order=True)


class _Search:
    """What a session is searching for."""

    def __init__(self):
        self._city = self._poi = self._filters = ""

    def step(self, action: str, reference: str, city: str, filters: str) -> str:
        """Takes one more row in; the query from there on."""
        if action in (DESTINATION, POI) or city != self._city:
            self._poi = ""
        self._city = city
        if action == POI:
            self._poi = reference
        if action in SAYS_FILTERS:
            self._filters = ", ".join(sorted(filter(None, filters.split("|"))))
        return " | ".join(part for part in (city, self._poi, self._filters) if part)


def _events(table, counts: collections.Counter) -> dict[str, list[Event]]:
    """The events of each user that has one, users in the order of their ids."""
    users: dict[str, list[Event]] = {}
    histories: dict[str, History] = collections.defaultdict(History)
    searches: dict[tuple[str, str], _Search] = collections.defaultdict(_Search)
    before = None
    for row in table.iter_rows():
        user, time, session, _, action, *texts = row
        reference, city, filters, impressions, prices = ((text or "").strip() for text in texts)
        query = searches[user, session].step(action, reference, city, filters)
        item, shown, history = "", None, histories[user]
        if action in ITEM_ACTIONS:
            if not _is_item(reference):
                counts["references without an item"] += 1
                continue
            item = reference
            if action == CLICKOUT:
                shown = _shown(item, impressions, prices, history, counts)
            elif before == (user, session, action, item):
                counts["repeats"] += 1
                history.add(time, item)
                continue
        elif not query or (action in (DESTINATION, POI) and not reference):
            counts["searches without a text"] += 1
            continue
        before = (user, session, action, item)
        history.add(time, item, action == CLICKOUT, shown[0] if shown else ())
        users.setdefault(user, []).append(Event(item, ACTIONS.index(action), query, time, shown))
    return users


def _shown(clicked: str, impressions: str, prices: str, history: History, counts: collections.Counter):
    """A clickout's list with its features; None, and counted, where it is not to be had."""
    if not impressions:
        counts["lists missing"] += 1
        return None
    items = impressions.split("|")
    try:
        price = np.array(prices.split("|"), np.float64)
    except ValueError:
        price = np.zeros(0)
    whole = len(price) == len(items) == len(set(items)) and all(map(_is_item, items))
    if not (whole and np.isfinite(price).all() and (price > 0).all()):
        counts["lists malformed"] += 1
        return None
    if clicked not in items:
        counts["lists without the clicked item"] += 1
        return None
    return items, history.features(items, price)


def codes(rows: typing.Sequence[typing.Sequence[str]]) -> np.ndarray:
    """For each row of texts the sum of a random vector a text, at unit length, float16 (rows, CODE); row 0 is zero."""
    number = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
    vectors = np.random.default_rng(0).normal(size=(len(number), CODE)).astype(np.float32)  # the same ones always
    code = np.stack([vectors[[number[text] for text in row]].sum(axis=0) for row in rows])
    code /= np.linalg.norm(code, axis=1, keepdims=True)
    code[0] = 0
    return code.astype(np.float16)


def _is_item(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _records(
    users: dict[str, list[Event]], items: list[str], queries: list[str]
) -> typing.Iterator[dict[str, typing.Any]]:
    item_number = {item: i for i, item in enumerate(items)}
    query_number = {query: i for i, query in enumerate(queries)}
    for user, events in users.items():
        lists = [(request, *event.shown, event) for request, event in enumerate(events, 1) if event.shown]
        flat = [(request, i, event.action if i == event.item else 0) for request, ids, _, event in lists for i in ids]
        array = lambda values: np.array(list(values), np.int32)
        yield {
            "user_id": user,
            "item": array(item_number[event.item] for event in events),
            "action": array(event.action for event in events),
            "query": array(query_number[event.query] for event in events),
            "request": np.arange(1, len(events) + 1, dtype=np.int32),
            "time": np.array([event.time for event in events], np.int64),
            "shown_request": array(request for request, _, _ in flat),
            "shown_item": array(item_number[i] for _, i, _ in flat),
            "shown_action": array(action for _, _, action in flat),
            "shown_feature": np.concatenate([np.zeros((0, len(FEATURES)), np.float32), *(f for _, _, f, _ in lists)]),
        }
