"""All that is known of a user in order: what the log has, and what the store of histories has since."""

from __future__ import annotations

import collections.abc

import numpy as np

from synergen_jax.serving.deployed import Past
from synergen_jax.serving.history.store import Event

NOTHING = Past.of([])


def timeline(
    past: Past | None,
    events: collections.abc.Sequence[Event],
    items: collections.abc.Mapping[str, int],
    actions: collections.abc.Mapping[str, int],
    queries: collections.abc.Mapping[str, int],
) -> Past:
    """Events by time; at equal times those of the log first, and each once: the log may have been given the store's.

    An event of the store whose item or action the model does not know is left out, and so is one without an item whose
    query says nothing.

    Args:
      events: of the store, in its order.
      items, actions, queries: original id or text -> id.
    """
    past = past or NOTHING
    rows, fresh = past.rows(), []
    had = set(rows)
    for event in events:
        item, query = items.get(event.item, 0), queries.get(event.query, 0)
        row = (event.time, item, actions.get(event.action, 0), query)
        if row[2] and (item or (query and not event.item)) and row not in had:
            fresh.append(row)
    if not fresh:
        return past
    both = Past.of(rows + fresh)
    order = np.argsort(both.time, kind="stable")
    return Past(both.time[order], both.item[order], both.action[order], both.query[order])


def window(size: int, length: int, room: int) -> int:
    """Where the part of a history begins that the model sees: at most `length` events, and at least `length - room` + 1.

    It depends on the number of events alone. So a cache that was kept and grew holds the events that one that is encoded
    anew does, and no event ever slides out of a cache, whose deeper keys would still contain it.

    >>> [window(size, 10, 4) for size in (0, 10, 11, 14, 15)]
    [0, 0, 4, 4, 8]
    """
    return 0 if size <= length else -(-(size - length) // room) * room
