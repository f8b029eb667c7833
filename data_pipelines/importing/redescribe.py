"""What the next version of a log knows of its items and queries: what it knew, and what a table and the log's encoder add."""

from __future__ import annotations

import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import text
from data_pipelines.importing.item_table import Items


class Redescribed(typing.NamedTuple):
    """Items and queries in the order of the next version's ids."""

    titles: list[str]
    texts: list[str]
    item_matrices: dict[str, np.ndarray]  # float16
    query_matrices: dict[str, np.ndarray]
    change: dict[str, typing.Any]  # what is said of it


def redescribe(log: EventLog, items: list[str], queries: list[str], table: Items | None) -> Redescribed:
    """What is known of items and queries, of which those of `log` come first.

    A row of the table stands in place of what was known of its item, as far as it tells something. Tags that the log's
    columns do not have are passed over, and named.
    """
    rows = {item: i for i, item in enumerate(table.ids)} if table else {}
    at = np.array([rows.get(item, -1) for item in items], np.int64)
    told = np.flatnonzero(at >= 0)  # ids that the table describes
    ids_are_texts = log.item_texts == log.item_ids
    titles = [*log.item_titles, *items[len(log.item_ids) :]]
    texts = [
        *log.item_texts,
        *(items[len(log.item_ids) :] if ids_are_texts else [""] * (len(items) - len(log.item_ids))),
    ]
    if table:
        words = table.words
        for i in told.tolist():
            titles[i] = table.titles[at[i]] or titles[i]
            texts[i] = words[at[i]] or texts[i]
    matrices = {name: _longer(matrix, len(items)) for name, matrix in log.item_matrices.items()}
    asked = {name: _longer(matrix, len(queries)) for name, matrix in log.query_matrices.items()}
    encoder = log.text_encoder()
    if encoder is not None and "text" in matrices:
        _encode(encoder, matrices["text"], texts, told)
    if encoder is not None and "text" in asked:
        _encode(encoder, asked["text"], queries, np.arange(len(log.queries), len(queries)))
    change: dict[str, typing.Any] = {"described": len(told)}
    if table:
        for name, values in table.vectors.items():
            matrices[name][told] = values[at[told]]
        unknown = [
            tag
            for name in table.tags
            for tag in _tag(matrices[name], log.item_columns[name], table.tags[name], told, at)
        ]
        if unknown:
            change["unknown_tags"] = sorted(set(unknown))
    new = at[len(log.item_ids) :]
    change["items_without_row"] = int((new < 0).sum())
    return Redescribed(titles, texts, matrices, asked, change)


def _longer(matrix: np.ndarray, rows: int) -> np.ndarray:
    """A copy with rows of zeros at its end."""
    return np.concatenate([matrix, np.zeros((rows - len(matrix), matrix.shape[1]), matrix.dtype)])


def _encode(encoder: text.Encoder, matrix: np.ndarray, texts: list[str], which: np.ndarray) -> None:
    for start in range(0, len(which), text.BATCH):
        part = which[start : start + text.BATCH]
        matrix[part] = encoder.encode([texts[i] for i in part.tolist()])


def _tag(
    matrix: np.ndarray, columns: list[str], tags: list[tuple[str, ...]], told: np.ndarray, at: np.ndarray
) -> list[str]:
    """Writes rows of tags, of unit length as `multi_hot` makes them; the tags that have no column."""
    number, unknown = {tag: i for i, tag in enumerate(columns)}, []
    for i in told.tolist():
        own = tags[at[i]]
        known = [number[tag] for tag in own if tag in number]
        unknown += [tag for tag in own if tag not in number]
        if own:
            matrix[i] = 0
        if known:
            matrix[i, known] = 1 / np.sqrt(len(known))
    return unknown
