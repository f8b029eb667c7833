"""Reviews of products at Amazon, as McAuley's group publishes them, from files that the user has.

A folder holds the reviews of one category and the metadata of its products, each a line an object, gzipped or plain:

    2014    reviews_X_5.json.gz or reviews_X.json.gz    reviewerID, asin, unixReviewTime (seconds)
            meta_X.json.gz                              asin, title, brand, categories (a list of paths)
    2018    X_5.json.gz or X.json.gz                    as 2014
            meta_X.json.gz                              asin, title, brand, category (one path)
    2023    X.jsonl.gz                                  user_id, parent_asin, timestamp (milliseconds)
            meta_X.jsonl.gz                             parent_asin, title, store (the brand), categories (one path)

Metadata of 2014 are written as Python has it, not as JSON; both are read everywhere. A review counts as a purchase,
whatever its stars. Of several reviews of a product by one user the first stays. Then users and items of fewer than
`CORE` reviews go, until none is left to go. Items without metadata stay: they go by their ids, without a search.
"""

from __future__ import annotations

import array
import ast
import dataclasses
import hashlib
import json
import pathlib
import re
import typing

import numpy as np
from tqdm import tqdm

from data_pipelines.files import packed
from data_pipelines.files.rows import LATEST
from data_pipelines.sources import amazon
from synergen_jax.errors import UserError, first_line

NAME = "amazon-reviews"
TEXT = "tfidf"
CORE = 5  # reviews that each user and each item has at least
SETTINGS: dict[str, typing.Any] = {"core": CORE}
FORMS = "reviews_X_5.json.gz, X_5.json.gz or X.jsonl.gz with meta_X.json.gz or meta_X.jsonl.gz"
_NAME = re.compile(r"(?P<kind>meta_|reviews_)?(?P<of>\w[\w.-]*?)(?P<core>_\d+)?\.jsonl?(\.gz)?")


@dataclasses.dataclass(frozen=True)
class Files:
    """The two files, which are read where they lie: they may be larger than memory."""

    reviews: pathlib.Path
    products: pathlib.Path
    origin: str

    def sha256(self) -> str:
        """Tells whether two sources hold the same bytes."""
        found = hashlib.sha256()
        for path in (self.reviews, self.products):
            try:
                with path.open("rb") as stream:
                    found.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return found.hexdigest()


def find(source: str | pathlib.Path | None) -> tuple[str, Files]:
    """The reviews of a folder, or the file of reviews itself, with the metadata beside; and the name of their log."""
    if source is None:
        raise UserError(f"{NAME} is not fetched: give --source FOLDER, which holds {FORMS}")
    path = pathlib.Path(source).expanduser().resolve()
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    folder = path if path.is_dir() else path.parent
    told = {file: match for file in sorted(folder.iterdir()) if (match := _NAME.fullmatch(file.name))}
    reviews = [file for file, match in told.items() if match["kind"] != "meta_" and path in (folder, file)]
    if len(reviews) != 1:
        names = f" ({', '.join(file.name for file in reviews)})" if reviews else ""
        raise UserError(f"{path}: {len(reviews)} files of reviews{names}, where one is wanted: {FORMS}")
    of = told[reviews[0]]["of"]
    products = [file for file, match in told.items() if match["kind"] == "meta_" and match["of"] == of]
    if len(products) != 1:
        wanted = f"meta_{of}.json.gz or meta_{of}.jsonl.gz"
        raise UserError(f"{folder}: {len(products)} files of metadata for {reviews[0].name}; one is wanted: {wanted}")
    return f"{NAME}-{of}", Files(reviews[0], products[0], str(path))


def log_parts(
    raw: Files, settings: typing.Mapping[str, typing.Any]
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """As `amazon.log_parts`; the counts tell what went, too. In memory are ids, and three numbers a review.

    Raises:
      UserError: a file is damaged, a line is no object or lacks a field, or nothing is left.
    """
    users, items, user, item, time = _reviews(raw.reviews)
    read = len(time)
    order = np.lexsort((time, item, user))
    first = np.ones(read, bool)
    first[1:] = (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)
    kept = np.sort(order[first])  # in the order of the file
    user, item, time = user[kept], item[kept], time[kept]
    keep = amazon.core(user, item, settings["core"])
    if not keep.any():
        raise UserError(
            f"{raw.reviews}: nothing is left of {read:,} reviews once users and items of fewer than "
            f"{settings['core']} are gone: give a larger category"
        )
    user, item, time = user[keep], item[keep], time[keep]
    there = {items[i] for i in np.unique(item).tolist()}
    products = _products(raw.products, there)
    if not products:
        raise UserError(f"{raw.products}: none of the {len(there):,} items is in it: is it of the same category?")
    parts, said = amazon.log_parts(users, items, user, item, time, products)
    told = {"reviews": read, "repeats": read - len(kept), "of rare users or items": int((~keep).sum())}
    missing = {"items without metadata": len(there) - len(products)}
    return parts, {**said, "counts": told | said["counts"] | missing}


def _reviews(path: pathlib.Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Ids of users and items; and of each review the places in these, and its time in seconds."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, time = array.array("i"), array.array("i"), array.array("q")
    for where, row in _objects(path):
        user.append(users.setdefault(_text(row, ("reviewerID", "user_id"), where), len(users)))
        item.append(items.setdefault(_text(row, ("parent_asin", "asin"), where), len(items)))
        time.append(_time(row, where))
    if not time:
        raise UserError(f"{path}: there are no reviews")
    return list(users), list(items), np.array(user), np.array(item), np.array(time)


def _time(row: dict[str, typing.Any], where: str) -> int:
    """When a review was written, Unix seconds."""
    name, unit = ("unixReviewTime", 1) if "unixReviewTime" in row else ("timestamp", 1000)
    if name not in row:
        raise UserError(f"{where}: there is neither unixReviewTime nor timestamp; it has {', '.join(row)}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value // unit < LATEST:
        raise UserError(
            f"{where}: {name} {value!r} must be Unix {'seconds' if unit == 1 else 'milliseconds'}, before 2100"
        )
    return value // unit


def _products(path: pathlib.Path, there: typing.Collection[str]) -> dict[str, amazon.Product]:
    """What the metadata say of the items that are there; of two lines about one the first counts."""
    found: dict[str, amazon.Product] = {}
    for where, row in _objects(path):
        item = _text(row, ("parent_asin", "asin"), where)
        if item in there and item not in found:
            brand = amazon.clean(row.get("brand") or row.get("store"))
            found[item] = amazon.Product(amazon.clean(row.get("title")), brand, amazon.category_query(_path(row)))
    return found


def _path(row: dict[str, typing.Any]) -> list[str]:
    """A product's category path. Of several the first one that goes below the top, or else the first."""
    given = row.get("categories") or row.get("category") or []
    given = [given] if isinstance(given, str) else given
    paths = [path for path in given if isinstance(path, list)] or [given]
    path = next((path for path in paths if len(path) > 1), paths[0])
    return [amazon.clean(level) for level in path]


def _text(row: dict[str, typing.Any], names: tuple[str, ...], where: str) -> str:
    """The id that stands under the first of these names."""
    for name in names:
        if name in row:
            if isinstance(row[name], str) and (found := row[name].strip()):
                return found
            raise UserError(f"{where}: {name} must be text and not empty, not {row[name]!r}")
    raise UserError(f"{where}: there is neither {' nor '.join(names)}; it has {', '.join(row)}")


def _objects(path: pathlib.Path) -> typing.Iterator[tuple[str, dict[str, typing.Any]]]:
    """The objects of a file, a line each, and where each stands."""
    for number, line in tqdm(packed.lines(path), desc=f"read {path.name}", unit=" lines", disable=None):
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            try:  # as Python writes it; literals alone, nothing is executed
                row = ast.literal_eval(line.decode("utf-8"))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
                raise UserError(
                    f"{where}: neither JSON nor a Python dict ({first_line(error)}): mend or delete the line"
                ) from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: an object is wanted, not {str(row)[:40]!r}: mend or delete the line")
        yield where, row
