"""Purchases at Amazon, of whatever form of file, on their way to an event log: both a recommendation and a search.

No public log of Amazon has queries. The line of work from HEM (Ai et al. 2017) to TEM, ZAM, UniSAR and GenSAR makes one
for each item, the words of its category path, and takes every purchase for a search that led to it. Here a purchase is
one request of two events at one time and of one item: first without a query, the recommendation, then with the item's
query, the search. Events of a request do not see each other, so that neither tells the other its item.

Text of items is title and brand. Category paths are left out of it, since queries are made of them.
"""

from __future__ import annotations

import html
import re
import typing

import numpy as np

from data_pipelines.features.text import words
from data_pipelines.sources.interactions import ordered

NOTE = (
    "queries are semi-synthetic: nobody typed them, each is made of the words of its item's category path, and every "
    "purchase counts as a recommendation and as a search"
)
STOP_WORDS = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"))
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Product(typing.NamedTuple):
    """What is known of an item; "" is what is not."""

    title: str
    brand: str
    query: str


def clean(text: typing.Any) -> str:
    """Text without HTML's entities and tags, and with single spaces; "" for what is no text.

    >>> clean("L&#39;Or <b>Soap</b> &amp;  Salt"), clean(None)
    ("L'Or Soap & Salt", '')
    """
    return " ".join(_TAG.sub(" ", html.unescape(text)).split()) if isinstance(text, str) else ""


def singular(word: str) -> str:
    """An English plural without its ending, by rules alone.

    >>> [singular(word) for word in ("accessories", "brushes", "glosses", "shoes", "gloss", "women")]
    ['accessory', 'brush', 'gloss', 'shoe', 'gloss', 'women']
    """
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def category_query(path: typing.Iterable[str]) -> str:
    """The query of a category path, from the top: its words without stop words and plurals, each at its last place.

    >>> category_query(("Beauty", "Bath & Body", "Cleansers", "Body Washes"))
    'beauty bath cleanser body wash'
    """
    found: dict[str, None] = {}
    for level in path:
        for word in words(level):
            if word not in STOP_WORDS and (word := singular(word)):
                found.pop(word, None)
                found[word] = None
    return " ".join(found)


def core(user: np.ndarray, item: np.ndarray, least: int) -> np.ndarray:
    """The rows that stay when users and items of fewer than `least` rows go, until none is left to go. bool (rows,)

    Args:
      user, item: numbers from 0, (rows,).
    """
    keep = np.ones(len(user), bool)
    while True:
        rare = np.zeros(len(user), bool)
        for of in (user, item):
            rare |= np.bincount(of[keep], minlength=1 + of.max(initial=0))[of] < least
        if not (rare & keep).any():
            return keep
        keep &= ~rare


def log_parts(
    users: list[str],
    items: list[str],
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray,
    products: typing.Mapping[str, Product],
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """What `event_log.write` takes, name and source aside; and what the log's `source` says: note and counts.

    Items without a query are recommended alone. The catalogue holds all products, purchased or not.

    Args:
      users, items: ids. user, item: of each purchase the places in them, (purchases,).
      time: Unix seconds, (purchases,). Purchases of one user and time stay in their order.
    """
    user_ids, user = _numbered(users, user)
    item_ids, item = _numbered(items, item, products)
    item_ids, item = ["", *item_ids], item + 1
    about = [products.get(item_id, Product("", "", "")) for item_id in item_ids]
    asked = sorted({about[i].query for i in np.unique(item).tolist()} - {""})
    number = {query: i for i, query in enumerate(["", *asked])}
    query = np.array([number.get(product.query, 0) for product in about], np.int32)
    order = np.lexsort((time, user))
    counts = {
        "purchases": len(user),
        "items without a title": sum(not product.title for product in about[1:]),
        "items without a query": sum(not product.query for product in about[1:]),
    }
    parts = {
        "users": _records(user_ids, user[order], item[order], time[order], query),
        "item_ids": item_ids,
        "item_titles": [product.title or item_id for product, item_id in zip(about, item_ids)],
        "item_texts": [" ".join(filter(None, (product.title, product.brand))) for product in about],
        "queries": list(number),
        "actions": ["", "purchase"],
        "labels": {"engage": (1,)},
    }
    return parts, {"note": NOTE if asked else "", "counts": counts}


def _numbered(ids: list[str], place: np.ndarray, more: typing.Iterable[str] = ()) -> tuple[list[str], np.ndarray]:
    """The ids at these places, and more, in order; and the number of each place there, int32."""
    met: set[str] = {ids[i] for i in np.unique(place).tolist()}
    there = ordered(met.union(more))
    number = {name: i for i, name in enumerate(there)}
    return there, np.array([number.get(name, -1) for name in ids], np.int32)[place]


def _records(
    user_ids: list[str], user: np.ndarray, item: np.ndarray, time: np.ndarray, query: np.ndarray
) -> typing.Iterator[dict[str, typing.Any]]:
    """A record a user, of purchases sorted by user and time; `query` is that of each item."""
    ends = np.searchsorted(user, np.arange(len(user_ids) + 1))
    none = np.zeros(0, np.int32)
    for name, start, end in zip(user_ids, ends[:-1], ends[1:]):
        items = np.repeat(item[start:end], 2)
        queries = query[items]
        queries[::2] = 0  # the recommendation
        there = queries > 0
        there[::2] = True
        yield {
            "user_id": name,
            "item": items[there],
            "action": np.ones(there.sum(), np.int32),
            "query": queries[there],
            "request": np.repeat(np.arange(1, end - start + 1, dtype=np.int32), 2)[there],
            "time": np.repeat(time[start:end], 2)[there],
            "shown_request": none,
            "shown_item": none,
            "shown_action": none,
        }
