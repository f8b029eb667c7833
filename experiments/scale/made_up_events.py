"""Made-up events of any number, batch by batch: a function of sizes and seed alone, in memory that does not grow."""

from __future__ import annotations

import collections.abc
import itertools
import typing

import numpy as np
import polars as pl

USERS = 20_000  # of a batch
YEAR = 365 * 86_400
START = 1_600_000_000  # no event is earlier, Unix seconds
COLOURS = ("red", "blue", "green", "black", "white", "grey", "pink", "yellow", "purple", "orange")
NOUNS = (
    "dress",
    "shirt",
    "skirt",
    "coat",
    "jacket",
    "scarf",
    "hat",
    "shoe",
    "boot",
    "belt",
    "bag",
    "lamp",
    "chair",
    "cup",
)
ACTIONS = ("search", "view", "cart", "purchase")


class Sizes(typing.NamedTuple):
    """How much there is."""

    items: int
    mean: float  # events a user; each has two at least
    users: int | None = None  # None: without end


def batches(sizes: Sizes, seed: int) -> collections.abc.Iterator[pl.DataFrame]:
    """The events of `USERS` users after `USERS` users, each batch by time."""
    for number in itertools.count():
        first = number * USERS
        users = USERS if sizes.users is None else min(USERS, sizes.users - first)
        if users <= 0:
            return
        yield batch(first, users, sizes, np.random.default_rng([seed, number]))


def batch(first: int, users: int, sizes: Sizes, rng: np.random.Generator) -> pl.DataFrame:
    """The events of users `first` .. `first + users - 1`: user, item, time (Unix seconds), action, query.

    Users like neighbouring items; a tenth of the events are searches for the next item, which name it in words.
    """
    user = np.repeat(np.arange(users), 2 + rng.poisson(sizes.mean - 2, users))
    n = len(user)
    home = rng.random(users)[user] + 0.02 * rng.standard_normal(n)
    item = (home % 1 * sizes.items).astype(np.int64)
    action = rng.choice(len(ACTIONS), n, p=(0.1, 0.7, 0.12, 0.08))
    gap = 1 + rng.exponential(3 * 86_400, n).astype(np.int64)  # so no two events of a user are of one moment
    before = np.cumsum(gap)
    time = START + rng.integers(0, YEAR, users)[user] + before - before[np.searchsorted(user, user)]
    word = lambda words, code: pl.Series(words).gather(code % len(words))
    frame = pl.DataFrame({"user": first + user, "item": item, "time": time, "search": action == 0})
    frame = frame.with_columns(
        word(ACTIONS, action).alias("action"),
        word(COLOURS, item).alias("colour"),
        word(NOUNS, item // len(COLOURS)).alias("noun"),
    )
    return frame.sort("time", maintain_order=True).select(
        pl.format("user-{}", "user").alias("user"),
        pl.when(~pl.col("search")).then(pl.format("sku-{}", "item")).alias("item"),
        "time",
        "action",
        pl.when("search").then(pl.format("{} {}", "colour", "noun")).alias("query"),
    )
