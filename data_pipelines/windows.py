"""From a record to fixed-size arrays: windows of history, and lists of candidates."""

from __future__ import annotations

import typing

import numpy as np

from synergen_jax.batch import Events
from synergen_jax.errors import UserError

Record = typing.Mapping[str, typing.Any]


def times(record: Record) -> np.ndarray:
    """Seconds since the user's first event, int32 (n,)."""
    time = np.asarray(record["time"], np.int64)
    relative = time - time[:1]
    if len(relative) and relative[-1] >= 2**31:
        raise UserError(f"user {record['user_id']!r}: events lie more than 68 years apart")
    return relative.astype(np.int32)


def window(record: Record, start: int, stop: int, length: int) -> Events:
    """Events `start .. stop - 1` of a record, left-aligned and padded to `length`; each int32 (length,)."""
    arrays = np.zeros((4, length), np.int32)
    for row, values in zip(arrays, (record["item"], record["action"], record["query"], times(record))):
        row[: stop - start] = values[start:stop]
    return Events(*arrays)


def sample_unseen(rng: np.random.Generator, items: int, had: np.ndarray, count: int) -> np.ndarray:
    """`count` distinct items out of 1 .. items - 1 that are not in `had`; fewer if there are not so many. (<= count,)

    Args:
      had: sorted item ids.
    """
    found: dict[int, None] = {}
    for _ in range(4):
        drawn = rng.integers(1, max(items, 2), 2 * count + 8)
        if len(had):
            drawn = drawn[had[np.minimum(np.searchsorted(had, drawn), len(had) - 1)] != drawn]
        found |= dict.fromkeys(drawn.tolist())
        if len(found) >= count and items > 1:
            return np.array(list(found)[:count], np.int32)
    return rng.permutation(np.setdiff1d(np.arange(1, items, dtype=np.int32), had))[:count]  # nearly everything was had


def candidates(
    rng: np.random.Generator, record: Record, event: int, unseen: np.ndarray, size: int, labels
) -> tuple[np.ndarray, np.ndarray]:
    """The list to be ranked at an event, the event's own item first: items (K,) int32 and labels (K, A) int8.

    Where the event's request has a list that was shown, the others are drawn from it, and each is labelled by the action
    that it got. Elsewhere they are `unseen` items: 0 for the first label, which asks whether an item is chosen at all,
    and unknown (-1) for the others. Missing candidates are item 0, label -1.

    Args:
      unseen: at least K - 1 items that the user does not have, or as many as there are.
      labels: the positive actions of each label, in order.
    """
    item, label = np.zeros(size, np.int32), np.full((size, len(labels)), -1, np.int8)
    own, action = record["item"][event], record["action"][event]
    item[0], label[0] = own, [action in positive for positive in labels]
    request = record["request"][event]
    shown = np.flatnonzero(record["shown_request"] == request) if request and len(record["shown_request"]) else ()
    if len(shown):
        others = shown[record["shown_item"][shown] != own]
        others = rng.permutation(others)[: size - 1]
        item[1 : 1 + len(others)] = record["shown_item"][others]
        for place, got in enumerate(record["shown_action"][others], 1):
            label[place] = [got in positive for positive in labels]
    else:
        drawn = unseen[: size - 1]
        item[1 : 1 + len(drawn)] = drawn
        label[1 : 1 + len(drawn), 0] = 0
    return item, label
