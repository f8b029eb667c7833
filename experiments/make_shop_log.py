"""Writes a made-up shop log of any size, by seed and in little memory: events and items, to try an import on.

    python experiments/make_shop_log.py --rows 10_000_000 --out shop

Users have favourite categories and a favourite colour; items differ in popularity; a visit wants one item. It begins with
a search, whose words come from the title of the wanted item and which is answered by a list of ten items, or with
browsing. Some views lead to the wanted item, and it may be put into the cart and bought.
"""

from __future__ import annotations

import argparse
import pathlib
import typing

import numpy as np
import polars as pl
import pyarrow.parquet
from tqdm import tqdm

WORDS = (
    "red blue green black white grey pink yellow purple orange brown navy beige turquoise golden silver",
    "cotton linen wool silk leather denim velvet bamboo steel wooden glass ceramic canvas cork nylon felt",
    "summer winter classic modern vintage slim wide soft light striped plain warm small large folding sporty",
    "dress shirt skirt coat jacket jumper trousers scarf hat glove shoe boot sandal sock belt bag purse wallet lamp chair "
    "table shelf sofa pillow blanket curtain rug mirror vase bowl plate cup knife pan pot kettle towel clock frame",
)
COLOURS, MATERIALS, STYLES, NOUNS = (words.split() for words in WORDS)
END = 1_700_000_000  # no visit starts later, Unix seconds
LIST = 10  # items that a search shows
USERS = 10_000  # of one batch


def make_items(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers of the words of each item's title; items of one noun, its category, stand together."""
    noun = np.sort(rng.integers(0, len(NOUNS), count))
    colour, material, style = (rng.integers(0, len(words), count) for words in (COLOURS, MATERIALS, STYLES))
    return {"colour": colour, "material": material, "style": style, "noun": noun}


def item_table(items: dict[str, np.ndarray], rng: np.random.Generator) -> pl.DataFrame:
    """The file of items: item, title, text, category, brand."""
    words = pl.DataFrame(
        {
            name: pl.Series(choices).gather(items[name])
            for name, choices in (("colour", COLOURS), ("material", MATERIALS), ("style", STYLES), ("noun", NOUNS))
        }
    ).with_row_index("number")
    brand = pl.Series([f"brand-{i}" for i in range(100)]).gather(rng.integers(0, 100, len(words)))
    return words.select(
        pl.format("sku-{}", "number").alias("item"),
        pl.format("{} {} {} {}", "colour", "material", "style", "noun").alias("title"),
        pl.format("A {} {} of {}, {}.", "style", "noun", "material", "colour").alias("text"),
        pl.concat_str("noun", "style", separator="|").alias("category"),
        brand.alias("brand"),
    )


def popular(rng: np.random.Generator, start: np.ndarray, size: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Items of categories (visits,), the first ones of each far more often than the last: int64 `shape`."""
    wide = (slice(None), *[None] * (len(shape) - 1))
    return start[wide] + (size[wide] * rng.random(shape) ** 3).astype(np.int64)


def make_events(first: int, users: int, items: dict[str, np.ndarray], rng: np.random.Generator) -> pl.DataFrame:
    """All events of users `first .. first + users - 1`, by time."""
    visits = make_visits(users, items, rng)
    n = len(visits.user)
    search = rng.random(n) < 0.4
    views = np.minimum(rng.geometric(0.55, n), 6)
    cart = rng.random(n) < 0.25
    bought = cart & (rng.random(n) < 0.4)
    events = search + views + cart + bought
    visit = np.repeat(np.arange(n), events)
    place = np.arange(len(visit)) - np.repeat(np.cumsum(events) - events, events)
    place = place - search[visit]  # -1: the search
    action = np.where(place < 0, 0, 1 + np.clip(place - views[visit] + 1, 0, 2))
    item = np.where(place >= views[visit] - 1, visits.wanted[visit], visits.shown[visit, np.abs(place) % LIST])
    when = visits.start[visit] + 17 * (place + 1) + rng.integers(0, 17, len(visit))
    frame = pl.DataFrame(
        {
            "user": first + visits.user[visit],
            "item": item,
            "time": when,
            "action": pl.Series(["search", "view", "cart", "purchase"]).gather(action),
            "query": make_queries(items, visits.wanted, rng).gather(visit),
            "request": visits.start[visit],
            "shown": shown_texts(visits.shown).gather(visit),
            "searched": search[visit],
            "first": place < 0,
        }
    ).sort("time", maintain_order=True)
    return frame.select(
        pl.format("user-{}", "user").alias("user"),
        pl.when(~pl.col("first")).then(pl.format("sku-{}", "item")).alias("item"),
        "time",
        "action",
        pl.when("searched").then("query").alias("query"),
        pl.when("searched").then(pl.format("{}-{}", "user", "request")).alias("request"),
        pl.when("first").then("shown").alias("shown"),
    )


class Visits(typing.NamedTuple):
    """The visits of some users, one user after the other, each user's by time."""

    user: np.ndarray  # (n,) from 0
    start: np.ndarray  # (n,) Unix seconds
    wanted: np.ndarray  # (n,) the item that it is for
    shown: np.ndarray  # (n, LIST) what a search shows; the wanted item is among them


def make_visits(users: int, items: dict[str, np.ndarray], rng: np.random.Generator) -> Visits:
    """Visits by the users' tastes: a category each, and of eight of its items one of the user's colour, if there is one."""
    bounds = np.searchsorted(items["noun"], np.arange(len(NOUNS) + 1))
    taste, colour = rng.integers(0, len(NOUNS), (users, 3)), rng.integers(0, len(COLOURS), users)
    visits = np.minimum(1 + rng.lognormal(2.3, 1, users).astype(np.int64), 500)
    user = np.repeat(np.arange(users), visits)
    n = len(user)
    gap = 3600 + rng.exponential(3 * 86_400, n).astype(np.int64)  # from a visit to the next one of its user
    later = np.cumsum(gap[::-1])[::-1]
    last = np.cumsum(visits) - 1
    start = END - (later - np.repeat(later[last] - gap[last], visits))

    noun = np.where(rng.random(n) < 0.85, taste[user, rng.integers(0, 3, n)], rng.integers(0, len(NOUNS), n))
    begin, size = bounds[noun], np.maximum(np.diff(bounds)[noun], 1)
    choices = popular(rng, begin, size, (n, 8))
    liked = (items["colour"][choices] == colour[user, None]) + 0.5 * rng.random((n, 8))
    wanted = choices[np.arange(n), liked.argmax(axis=1)]
    shown = popular(rng, begin, size, (n, LIST))
    shown[np.arange(n), rng.integers(0, LIST, n)] = wanted
    return Visits(user, start, wanted, shown)


def make_queries(items: dict[str, np.ndarray], wanted: np.ndarray, rng: np.random.Generator) -> pl.Series:
    """What would be searched for at each visit, (n,): the wanted item's noun, and some of the other words of its title."""
    ask = rng.integers(0, 4, len(wanted))
    word = lambda name, choices: pl.Series(choices).gather(items[name][wanted])
    some = lambda words, asked: words.zip_with(pl.Series(asked), pl.Series([None]))
    words = {
        "colour": some(word("colour", COLOURS), ask % 2 == 1),
        "material": some(word("material", MATERIALS), ask > 1),
        "noun": word("noun", NOUNS),
    }
    return pl.DataFrame(words).select(pl.concat_str(*words, separator=" ", ignore_nulls=True)).to_series()


def shown_texts(shown: np.ndarray) -> pl.Series:
    """Lists of items (n, LIST) as a file of events has them, (n,)."""
    lists = pl.DataFrame({f"{i}": shown[:, i] for i in range(LIST)})
    return lists.select(pl.concat_str([pl.format("sku-{}", f"{i}") for i in range(LIST)], separator="|")).to_series()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="events; 10_000_000 is written so")
    parser.add_argument("--items", type=int, help="default: one for 100 rows")
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="folder for events.parquet or .csv, and items.csv"
    )
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    items = make_items(arguments.items or max(arguments.rows // 100, 1000), rng)
    item_table(items, rng).write_csv(arguments.out / "items.csv")
    path, writer = arguments.out / f"events.{arguments.format}", None
    left, users = arguments.rows, 0
    with path.open("wb") as file, tqdm(total=left, unit=" rows", unit_scale=True, disable=None) as bar:
        while left:
            number = min(USERS, left // 40 + 100)
            batch = make_events(users, number, items, rng).head(left)
            if arguments.format == "csv":
                batch.write_csv(file, include_header=not users)
            else:
                table = batch.to_arrow()
                writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
                writer.write_table(table)
            users += number
            left -= len(batch)
            bar.update(len(batch))
        if writer:
            writer.close()
    print(f"{arguments.rows:,} rows in {path}, {len(items['noun']):,} items in {arguments.out / 'items.csv'}")


if __name__ == "__main__":
    main()
