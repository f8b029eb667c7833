"""From a record to fixed-size arrays: windows of history, and lists of candidates."""

from __future__ import annotations

import typing

import numpy as np

from synergen_jax.batch import Events
from synergen_jax.errors import UserError

Record = typing.Mapping[str, typing.Any]


def seconds(record: Record, start: int, stop: int) -> np.ndarray:
    """Times of events `start .. stop - 1` in seconds since the user's first event, int32."""
    time = record["time"]
    if stop > start and int(time[stop - 1]) - int(time[0]) >= 2**31:
        raise UserError(f"user {record['user_id']!r}: events lie more than 68 years apart")
    return (time[start:stop] - time[0]).astype(np.int32)


def asked_at(record: Record, start: int, stop: int, visible: np.ndarray) -> np.ndarray:
    """When events `start .. stop - 1` were asked for, in seconds since the user's first event, int32.

    That is an event's own time, but for one whose request was shown a list: what was chosen tells, by the time that the user took,
    which of the list it was, and who orders a list does not know that. It was asked for when the last event that is seen
    was over.

    Args:
      visible: how many events of the window each sees, (stop - start,).
    """
    time = seconds(record, start, stop)
    request, lists = record["request"][start:stop], record["shown_request"]  # both go up
    shown = np.searchsorted(lists, request, "left") < np.searchsorted(lists, request, "right")
    return np.where(shown & (visible > 0), time[np.maximum(visible - 1, 0)], time)


def window(record: Record, start: int, stop: int, length: int) -> Events:
    """Events `start .. stop - 1` of a record, left-aligned and padded to `length`; each int32 (length,)."""
    arrays = np.zeros((4, length), np.int32)
    for row, name in zip(arrays, ("item", "action", "query")):
        row[: stop - start] = record[name][start:stop]
    arrays[3, : stop - start] = seconds(record, start, stop)
    return Events(*arrays)


def action_table(log, names: str) -> np.ndarray:
    """Which actions a comma-separated list names, bool (actions,); an empty list names all.

    Raises:
      UserError: the log has no such action.
    """
    wanted = [name.strip() for name in names.split(",")] if names else log.actions[1:]
    if unknown := [name for name in wanted if name not in log.actions[1:]]:
        raise UserError(f"{log.name} has no action {unknown[0]!r}; its actions: {', '.join(log.actions[1:])}")
    return np.isin(log.actions, wanted)


def label_table(log) -> np.ndarray:
    """For each action, 1 where it is positive for a label and 0 where not, int8 (actions, A)."""
    table = np.zeros((log.spec.actions, len(log.labels)), np.int8)
    for column, positive in enumerate(log.labels.values()):
        table[list(positive), column] = 1
    return table


def labelled(log, train_stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The training events with an item: their users and items, (n,), and the labels of their actions, (n, A), 0 or 1."""
    users, items, actions = trained(log, train_stop, "action")
    return users, items, label_table(log)[actions]


def trained(log, train_stop: np.ndarray, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The training events with an item: their users, items, and one more field of theirs, such as "query", (n,) each."""
    found = []
    for user, stop in enumerate(train_stop.tolist()):
        record = log[user]
        item = record["item"][:stop]
        real = item > 0
        found.append((np.full(real.sum(), user), item[real], record[field][:stop][real]))
    users, items, values = zip(*found, strict=True)
    return np.concatenate(users), np.concatenate(items), np.concatenate(values)


class QueriesOfItems(typing.NamedTuple):
    """The queries that led to each item, once an event: those of item v are `query[start[v] : start[v + 1]]`."""

    start: np.ndarray  # (V + 1,)
    query: np.ndarray  # int32; 0 behind the last one

    def draw(self, rng: np.random.Generator, item: np.ndarray) -> np.ndarray:
        """A query of each item, as likely as it led there, int32; 0 where none did."""
        size = self.start[item + 1] - self.start[item]
        place = self.start[item] + (rng.random(item.shape) * size).astype(np.int64)
        return np.where(size > 0, self.query[place], 0)


def queries_of_items(log, train_stop: np.ndarray) -> QueriesOfItems:
    """Those of the training events that have both."""
    _, item, query = trained(log, train_stop, "query")
    item, query = item[query > 0], query[query > 0]
    start = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=log.spec.items))])
    return QueriesOfItems(start, np.append(query[np.argsort(item, kind="stable")], 0).astype(np.int32))


def training_lists(log, train_stop: np.ndarray, names: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lists shown at training events of the actions `names`, of which something was chosen and something was not.

    What a list tells ends with the training part, as in `candidates`: see `received`.

    Returns:
      Of the n items of all lists, one list after the other: features (n, F) float32; the number of each item's list,
      (n,), from 0; whether it was chosen, by the first label, (n,).
    """
    asked, table = action_table(log, names), label_table(log)[:, 0]
    shown_label = np.append(table, -1)  # the action -1 is the last one
    feature, number, chosen, lists = [np.zeros((0, len(log.spec.candidate_features)), np.float32)], [], [], 0
    for user, stop in enumerate(train_stop.tolist()):
        record = log[user]
        events = asked[record["action"][:stop]] & (record["item"][:stop] > 0) & (record["request"][:stop] > 0)
        rows = np.flatnonzero(np.isin(record["shown_request"], record["request"][:stop][events]))
        label = shown_label[received(record, stop, rows)]
        rows, label = rows[label >= 0], label[label >= 0]
        _, own = np.unique(record["shown_request"][rows], return_inverse=True)
        picked, size = np.bincount(own, label), np.bincount(own)
        told = (picked > 0) & (picked < size)
        kept = told[own]
        feature.append(record["shown_feature"][rows[kept]])
        number.append(lists + (np.cumsum(told) - 1)[own[kept]])
        chosen.append(label[kept] > 0)
        lists += int(told.sum())
    whole = lambda parts, kind: np.concatenate([np.zeros(0, kind), *parts]).astype(kind)
    return np.concatenate(feature), whole(number, np.int64), whole(chosen, bool)


def sample_unseen(rng: np.random.Generator, items: np.ndarray, had: np.ndarray, count: int) -> np.ndarray:
    """`count` distinct ones of `items` that are not in `had`, which is sorted; fewer if there are not so many.

    (<= count,) int32. The time it takes grows with the logarithm of `had` and, where nearly everything was had, with `items`.
    """
    if not count or not len(items):
        return np.zeros(0, np.int32)
    found: dict[int, None] = {}
    for _ in range(4):
        drawn = items[rng.integers(0, len(items), 2 * count + 8)]
        found |= dict.fromkeys(drawn[~_among(drawn, had)].tolist())
        if len(found) >= count:
            return np.array(list(found)[:count], np.int32)
    left = np.zeros(1 + max(items.max(), had[-1] if len(had) else 0), bool)  # nearly everything was had
    left[items], left[had] = True, False
    return rng.permutation(np.flatnonzero(left)).astype(np.int32)[:count]


def _among(ids: np.ndarray, those: np.ndarray) -> np.ndarray:
    """Which of `ids` are among `those`, which are sorted; bool (ids,)."""
    if not len(those):
        return np.zeros(len(ids), bool)
    return those[np.minimum(np.searchsorted(those, ids), len(those) - 1)] == ids


def candidates(
    rng: np.random.Generator,
    record: Record,
    events: np.ndarray,
    had: np.ndarray,
    size: int,
    table: np.ndarray,
    items: np.ndarray,
    told: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lists to be ranked at some events, each event's own item first.

    Where an event's request has a list that was shown, the others are drawn from it, all of them if there is room, and
    each is labelled by the action that it got. Elsewhere they are drawn from `items`: 0 for the first label, which asks whether
    an item is chosen at all, and unknown (-1) for the others. Missing candidates are item 0, label -1.

    Args:
      events: indices of events with an item, (E,).
      had: items that are not drawn, sorted: those that the user has. Where people come back to items, none: a list then lacks
        its own item alone. Otherwise that the user had an item would tell that it is the chosen one.
      table: `label_table` of the log.
      items: ids that others are drawn from.
      told: how many leading events may tell how a shown item was received: see `received`.

    Returns:
      items (E, K) int32, labels (E, K, A) int8, and the row of the record's shown lists in which each candidate
      stands, (E, K) int32, -1 for those that were not shown.
    """
    others = size - 1
    item = np.zeros((len(events), size), np.int32)
    label = np.full((*item.shape, table.shape[1]), -1, np.int8)
    place = np.full(item.shape, -1, np.int32)
    item[:, 0], label[:, 0] = record["item"][events], table[record["action"][events]]
    wide = others + (not len(had))  # where an event's own item may be drawn, a list has one to spare
    unseen = sample_unseen(rng, items, had, len(events) * wide)
    # One draw serves all lists, unless the catalogue is too small for them to differ.
    enough = len(unseen) == len(events) * wide
    unknown = np.full((1, table.shape[1]), -1, table.dtype)
    shown_label = np.append(table, unknown, axis=0)  # the action -1 is the last row
    for row, event in enumerate(events.tolist()):
        mine = unseen[row * wide : (row + 1) * wide] if enough else rng.permutation(unseen)
        mine = mine[mine != item[row, 0]][:others]
        shown = _shown(record, event)
        if len(shown):
            own = record["shown_item"][shown] == item[row, 0]
            place[row, 0] = shown[own][0] if own.any() else -1
            shown = rng.permutation(shown[~own])[:others]
            item[row, 1 : 1 + len(shown)] = record["shown_item"][shown]
            label[row, 1 : 1 + len(shown)] = shown_label[received(record, told, shown)]
            place[row, 1 : 1 + len(shown)] = shown
        else:
            item[row, 1 : 1 + len(mine)] = mine
            label[row, 1 : 1 + len(mine), 0] = 0
    return item, label, place


def _shown(record: Record, event: int) -> np.ndarray:
    """The rows of a record's shown lists that an event's request was shown."""
    request, shown = record["request"][event], record["shown_request"]
    if not request or not len(shown):
        return np.arange(0)
    return np.arange(*(np.searchsorted(shown, request, side) for side in ("left", "right")))


def received(record: Record, told: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """How rows of a record's shown lists were received, as the first `told` events tell: an action each, (rows,).

    0 is one that was not chosen. A request that goes on behind these events is not over: it has the actions so far, and -1
    for what it has not chosen yet. Requests go up, so that this is one request, and what follows has no action yet.
    """
    request, action = record["request"], record["shown_action"][rows]
    if told >= len(request) or not len(action):
        return action
    own, going_on = record["shown_request"][rows], request[told]
    action = np.where(own < going_on, action, -1)
    if (unfinished := own == going_on).any():
        events = slice(np.searchsorted(request, going_on), told)
        last = dict(zip(record["item"][events].tolist(), record["action"][events].tolist(), strict=True))
        action[unfinished] = [last.get(item, -1) for item in record["shown_item"][rows][unfinished].tolist()]
    return action


def features(record: Record, place: np.ndarray) -> np.ndarray:
    """Features of candidates by their rows in the shown lists, float32 (E, K, F + 1): see `Candidates.feature`."""
    known = record["shown_feature"]
    found = np.zeros((*place.shape, known.shape[1] + 1), np.float32)
    there = place >= 0
    found[there, :-1], found[there, -1] = known[place[there]], 1
    return found


def positions(record: Record, place: np.ndarray) -> np.ndarray:
    """Places in the list that was shown, from 1, of candidates by their rows in the shown lists; 0: not shown."""
    request = record["shown_request"]
    found, there = np.zeros(place.shape, np.int32), place >= 0
    rows = place[there]
    found[there] = rows - np.searchsorted(request, request[rows]) + 1  # a request's list begins at its first row
    return found
