"""Rated or plain interactions of users with items, on their way from a file to an event log."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from data_pipelines.files import parts

MAX_TAGS = 512  # distinct values above which a column is text, not a set of tags


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Who met which item when, in the order of the file. Ids are the original ones, as text."""

    users: list[str]
    items: list[str]
    times: np.ndarray  # (rows,) Unix seconds; fractions tell the order, and are then cut
    ratings: np.ndarray | None  # (rows,) int64
    titles: dict[str, str]  # item -> title; an item without one goes by its id
    tags: dict[str, dict[str, tuple[str, ...]]]  # name of a matrix -> item -> its tags
    scale: tuple[int, ...] = ()  # the ratings that there can be; empty: those that there are
    part: np.ndarray | None = None  # (rows,) int8: `parts`, of a split that the data give; in order within each user
    texts: dict[str, str] = dataclasses.field(default_factory=dict)  # item -> text to search; else title and tags


def ordered(ids: typing.Iterable[str]) -> list[str]:
    """Distinct ids: by number where all are whole numbers, else as text."""
    ids = set(ids)
    return sorted(ids, key=lambda i: (int(i), i)) if all(i.isdecimal() for i in ids) else sorted(ids)


def multi_hot(rows: typing.Sequence[typing.Sequence[str]]) -> tuple[np.ndarray, list[str]]:
    """One row of unit length an item, one column a tag; an item without tags has a row of zeros.

    >>> matrix, columns = multi_hot([(), ("a",), ("b", "a")])
    >>> matrix.round(2).tolist(), columns
    ([[0.0, 0.0], [1.0, 0.0], [0.71, 0.71]], ['a', 'b'])
    """
    columns = sorted({tag for row in rows for tag in row})
    number = {tag: i for i, tag in enumerate(columns)}
    matrix = np.zeros((len(rows), len(columns)), np.float16)
    for i, row in enumerate(rows):
        if tags := set(row):
            matrix[i, [number[tag] for tag in tags]] = 1 / np.sqrt(len(tags))
    return matrix, columns


def log_parts(data: Interactions) -> dict[str, typing.Any]:
    """What `event_log.write` takes, name and source aside.

    Without words of any item there are no "item_texts". Every interaction is a request of its own. Ratings become actions `rating-N`; the label "like" holds from 0.8
    of the highest rating up: 4 and 5 of 5. Without ratings there is one action, `interact`.
    """
    users, items = ordered(data.users), ["", *ordered(data.items)]
    actions, labels, action = _actions(data)
    matrices, columns = {}, {}
    for name, tags in data.tags.items():
        matrix, names = multi_hot([tags.get(item, ()) for item in items])
        if names:
            matrices[name], columns[name] = matrix, names
    tags = {item: [tag for of in data.tags.values() for tag in of.get(item, ())] for item in items}
    words = [" ".join(filter(None, [data.titles.get(item), *tags[item]])) for item in items]  # ids are no texts
    texts = [data.texts.get(item) or of for item, of in zip(items, words)]
    return {
        "users": _records(data, users, items, action),
        "item_ids": items,
        "item_titles": [data.titles.get(item) or item for item in items],
        **({"item_texts": texts} if any(texts) else {}),
        "queries": [""],
        "actions": actions,
        "labels": labels,
        "item_matrices": matrices,
        "item_columns": columns,
    }


def _actions(data: Interactions) -> tuple[list[str], dict[str, tuple[int, ...]], np.ndarray]:
    if data.ratings is None:
        return ["", "interact"], {"engage": (1,)}, np.ones(len(data.times), np.int32)
    scale = np.array(data.scale or np.unique(data.ratings))
    every = tuple(range(1, len(scale) + 1))
    like = tuple(i for i in every if scale[i - 1] >= 0.8 * scale[-1])
    names = ["", *(f"rating-{rating}" for rating in scale)]
    return names, {"engage": every, "like": like}, (np.searchsorted(scale, data.ratings) + 1).astype(np.int32)


def _records(data: Interactions, users: list[str], items: list[str], action: np.ndarray) -> list[dict]:
    user_number = {user: i for i, user in enumerate(users)}
    item_number = {item: i for i, item in enumerate(items)}
    user = np.fromiter((user_number[u] for u in data.users), np.int32, len(data.users))
    item = np.fromiter((item_number[i] for i in data.items), np.int32, len(data.items))
    part = np.zeros(len(user), np.int8) if data.part is None else data.part
    order = np.lexsort((part, data.times, user))  # stable: of one user and moment, by part, then as in the file
    part = part[order]
    user, item, action, time = user[order], item[order], action[order], data.times[order].astype(np.int64)
    ends = np.searchsorted(user, np.arange(len(users) + 1))
    none = np.zeros(0, np.int32)
    return [
        {
            "user_id": name,
            "item": item[start:end],
            "action": action[start:end],
            "query": np.zeros(end - start, np.int32),
            "request": np.arange(1, end - start + 1, dtype=np.int32),
            "time": time[start:end],
            "shown_request": none,
            "shown_item": none,
            "shown_action": none,
            **({} if data.part is None else {"given_split": parts.stops(part[start:end])}),
        }
        for name, start, end in zip(users, ends[:-1], ends[1:])
    ]
