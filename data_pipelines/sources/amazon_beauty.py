"""Amazon Beauty, 5-core of 2014, from two CSV files that the user has: purchases, and items with made queries.

interactions.csv[.gz]   user_id, item_id, time (Unix seconds); purchases of one user and day keep the file's order
items.csv[.gz]          item_id, title, brand, query; other columns, such as the category path, are not read
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.sources import amazon, csv_pair, fetch

NAME = "amazon-beauty-search"
TEXT = "tfidf"
SETTINGS: dict[str, typing.Any] = {}
FILES = ("interactions.csv", "items.csv")


def find(source: str | pathlib.Path | None) -> tuple[str, fetch.Raw]:
    """The two files of a folder, and the name of their log."""
    return csv_pair.find(NAME, FILES, source)


def log_parts(
    raw: fetch.Raw, settings: typing.Mapping[str, typing.Any]
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """As `amazon.log_parts`.

    Raises:
      UserError: a file is damaged, lacks a column, or has a wrong row, which is named.
    """
    events, items = csv_pair.tables(raw, ("user_id", "item_id", "time"), ("item_id", "title", "brand", "query"))
    ids = items.unique("item_id")
    about = (map(amazon.clean, items.columns[name]) for name in ("title", "brand", "query"))
    products = dict(zip(ids, map(amazon.Product, *about)))
    bought, users = events.tokens("item_id"), events.tokens("user_id")
    if unknown := set(bought) - products.keys():
        row = next(row for row, item in enumerate(bought) if item in unknown)
        raise events.error(row, f"item_id {bought[row]!r} is not in {items.where}: take both files of one version")
    who, user = np.unique(users, return_inverse=True)
    what, item = np.unique(bought, return_inverse=True)
    time = events.times("time").astype(np.int64)
    return amazon.log_parts(who.tolist(), what.tolist(), user, item, time, products)
