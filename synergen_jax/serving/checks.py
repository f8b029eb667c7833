"""What serving refuses, since it would be answered wrongly: ids and times out of range, histories that are none."""

from __future__ import annotations

import collections.abc
import typing

import jax
import numpy as np

from synergen_jax.batch import Events
from synergen_jax.errors import UserError
from synergen_jax.model.synergen import Cache

# Seconds from the last event to a request: nobody asks so late, and Unix seconds lie beyond it.
LATEST = 30 * 365 * 86_400


class Sizes(typing.NamedTuple):
    """How many ids there are of each kind, 0 included."""

    items: int
    actions: int
    queries: int


def whole(what: str, values: typing.Any) -> np.ndarray:
    """The values as an array of whole numbers, int64.

    Raises:
      UserError: they are no whole numbers.
    """
    array = np.asarray(values)
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or (array.dtype.kind == "u" and array.max() >= 2**63):
        raise UserError(f"{what} must be whole numbers, not {array.dtype} such as {array.ravel()[0]!r}")
    return array.astype(np.int64)


def one(what: str, value: typing.Any) -> int:
    """The value, if it is one whole number."""
    array = whole(what, value)
    if array.shape:
        raise UserError(f"{what} must be one whole number, not {len(array)} of them")
    return int(array)


def within(what: str, ids: collections.abc.Sequence[int] | np.ndarray, least: int, size: int) -> None:
    """Refuses ids outside of least .. size - 1: what is looked up would be that of another."""
    ids = np.asarray(ids)
    if (odd := (ids < least) | (ids >= size)).any():
        raise UserError(f"{what} {ids[odd][0]} is out of range: ids are {least} .. {size - 1}")


def history(events: Events, sizes: Sizes) -> Events:
    """One user's events, (1, L) int32 each, if they are what `Recommender.encode` says; times of padding are 0.

    Raises:
      UserError: they are not so, or an id is out of range.
    """
    item, action, query, time = (
        whole(f"events.{name}", getattr(events, name)) for name in ("item", "action", "query", "time")
    )
    for name, values in (("item", item), ("action", action), ("query", query), ("time", time)):
        if values.ndim != 2 or len(values) != 1 or values.shape != item.shape:
            raise UserError(
                f"events.{name} of shape {values.shape}: a history is one user's, whose events are (1, {item.shape[-1]}) "
                "each: give users one by one, or to `answer`"
            )
    if not item.size:
        raise UserError("a history needs room for an event: of somebody new it is (1, L) of zeros")
    if events.first is not None:
        raise UserError("events of packed rows cannot be encoded for serving: give one history, without `first`")
    within("item", item[0], 0, sizes.items)
    within("action", action[0], 0, sizes.actions)
    within("query", query[0], 0, sizes.queries)
    real, told = action[0] > 0, (item[0] > 0) | (query[0] > 0)
    if (odd := real != told).any():
        at = int(odd.argmax())
        what = "an item or a query and no action" if told[at] else "an action and neither item nor query"
        raise UserError(f"event {at} has {what}: an event has both, and padding neither")
    if (odd := real[1:] > real[:-1]).any():
        raise UserError(f"event {int(odd.argmax()) + 1} follows padding: events come first, and padding last")
    times = time[0][real]
    if (odd := (times < 0) | (times >= 2**31)).any():
        raise UserError(f"time {times[odd][0]} of an event is out of range: times are seconds from 0 to 2^31 - 1")
    if (odd := times[1:] < times[:-1]).any():
        at = int(odd.argmax()) + 1
        raise UserError(f"event {at} at {times[at]} lies before the event before it, at {times[at - 1]}: sort by time")
    time = np.where(real[None], time, 0)
    return Events(*(values.astype(np.int32) for values in (item, action, query, time)))


def moment(cache: Cache, time: typing.Any, what: str) -> tuple[int, int]:
    """A checked time on the clock of a cache, and how many events the cache holds.

    Raises:
      UserError: the cache is of several users, or as `after` says.
    """
    lengths, times = jax.device_get((cache.length, cache.time))
    if lengths.shape != (1,):
        raise UserError(f"a cache of {lengths.size} users: a call is about one user: encode users one by one")
    length = int(lengths[0])
    return after(int(times[0, length - 1]) if length else None, time, what), length


def after(last: int | None, time: typing.Any, what: str) -> int:
    """A time on the clock of a history.

    Args:
      last: the time of its last event; None: it has none.

    Raises:
      UserError: the time is no whole number, lies before the last event or so far behind it that it must be of another clock.
    """
    time = one(f"the time of the {what}", time)
    if time < (last or 0):
        of = "the clock's second 0" if last is None else f"the last event of the history, at {last}"
        raise UserError(f"the time {time} of the {what} lies before {of}")
    if not time - (last or 0) <= LATEST or time >= 2**31:
        raise UserError(
            f"the time {time} of the {what} lies more than 30 years after the last event, at {last or 0}: give seconds on the "
            "clock of the history, not Unix time"
        )
    return time
