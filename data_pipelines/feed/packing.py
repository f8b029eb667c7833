"""Several short windows in one row, so that a batch is not mostly padding.

Which windows share a row is decided in two steps, so that batch n stays a cheap pure function of (seed, n):

- once a run, `make_plan` packs *kinds*: how many windows of which kind (events, ranked events) each row holds. Every
  epoch has these rows;
- once an epoch, the windows of each kind are dealt out at random to the places of that kind. So other users meet in
  every epoch, and nothing has to be packed anew.

Kinds are packed by best fit, longest first, over their histogram (Krell et al. 2021, "Efficient Sequence Packing
without Cross-contamination"), in two dimensions: a row has room for `max_history` events, and for a number of ranked
events that is the same for all rows of a run. Room for few leaves rows of short windows half empty, since those have more
to rank an event; room for many is mostly padding itself. So it is the one, of some, with the fewest tokens an epoch.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import functools
import typing

import numpy as np

from synergen_jax.batch import Candidates, Events, Readers

# Room for ranked events, over what a full row of average windows needs: below one where they cost more than events do.
ROOMS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of an epoch."""

    rows: int  # rows an epoch
    ranked: int  # E: ranked events that a row has room for
    kind: np.ndarray  # (W,): kind of each window; places stand in the order of kinds
    places: np.ndarray  # (W,): the places of all rows, one row after the other
    start: np.ndarray  # (rows + 1,): where each row begins in `places`

    def windows(self, key: tuple[int, ...], row: int) -> np.ndarray:
        """Indices of the windows that share a row in the epoch whose random draw is seeded by `key`."""
        return _dealt(self, key)[self.places[self.start[row] : self.start[row + 1]]]


@functools.lru_cache(maxsize=2)  # threads that read ahead are in two epochs at a time
def _dealt(plan: Plan, key: tuple[int, ...]) -> np.ndarray:
    """The window at each place: by kind, within a kind at random. (W,)"""
    luck = np.random.default_rng(key).permutation(len(plan.kind))
    return luck[np.argsort(plan.kind[luck], kind="stable")]


def make_plan(events: np.ndarray, ranked: np.ndarray, length: int, candidates: int) -> Plan:
    """Packs windows of these numbers of events and ranked events, (W,) each, into rows of `length` events.

    Args:
      candidates: K of each ranked event; with the two tokens of an event they tell what a row costs.
    """
    average = length * ranked.sum() / events.sum()
    rooms = {min(length, max(int(ranked.max()), int(np.ceil(spare * average)))) for spare in ROOMS}
    plans = (_plan(events, ranked, length, room) for room in sorted(rooms))
    return min(plans, key=lambda plan: plan.rows * (2 * length + plan.ranked * candidates))


def _plan(events: np.ndarray, ranked: np.ndarray, length: int, room: int) -> Plan:
    kinds, kind, counts = np.unique(np.stack([-events, -ranked], 1), axis=0, return_inverse=True, return_counts=True)
    row_of_place = np.concatenate(list(_best_fit((-kinds).tolist(), counts.tolist(), length, room)))
    rows = int(row_of_place.max()) + 1
    start = np.append(0, np.cumsum(np.bincount(row_of_place, minlength=rows)))
    return Plan(rows, room, kind.reshape(-1), np.argsort(row_of_place, kind="stable"), start)


def _best_fit(
    kinds: list[list[int]], counts: list[int], length: int, room: int
) -> collections.abc.Iterator[np.ndarray]:
    """Rows of the windows, kind by kind: each goes to the row with least room left for events that can take it."""
    piles: dict[tuple[int, int], list[int]] = collections.defaultdict(list)  # rows by what they have room for
    open_rows = np.zeros((length + 1, room + 1), np.int64)  # sizes of the piles
    by_events = np.zeros(length + 1, np.int64)
    rows = 0

    def move(names: list[int], cell: tuple[int, int], sign: int):
        open_rows[cell] += sign * len(names)
        by_events[cell[0]] += sign * len(names)

    for (size, ranked), left in zip(kinds, counts):
        while left:
            for free in (size + by_events[size:].nonzero()[0]).tolist():
                fits = open_rows[free, ranked:].nonzero()[0]
                if len(fits):
                    cell = (free, ranked + int(fits[0]))
                    break
            else:
                cell = (length, room)
                each = min(length // size, room // ranked if ranked else left)
                new = list(range(rows, rows + max(1, left // each)))
                rows += len(new)
                piles[cell] += new
                move(new, cell, 1)
            each = min(cell[0] // size, cell[1] // ranked if ranked else left, left)
            names = piles[cell][-(left // each) :]
            del piles[cell][-len(names) :]
            move(names, cell, -1)
            rest = (cell[0] - each * size, cell[1] - each * ranked)
            piles[rest] += names
            move(names, rest, 1)
            left -= each * len(names)
            yield np.repeat(names, each)


def join(parts: collections.abc.Sequence[dict[str, typing.Any]], length: int, ranked: int) -> dict[str, typing.Any]:
    """One row of several windows, by the names of `TrainBatch`, padded to `length` events and `ranked` ranked events.

    Args:
      parts: the arrays of each window, without padding. What they rank fits in `ranked`: the plan's promise.
    """
    sizes = [len(part["target"]) for part in parts]
    lists = [len(part["ranking"].query) for part in parts]
    start = np.cumsum([0, *sizes], dtype=np.int32)
    first, list_first = (np.repeat(start[:-1], counts) for counts in (sizes, lists))

    def row(arrays, width: int, fill: int = 0) -> np.ndarray:
        whole = np.concatenate(arrays)
        return np.pad(whole, [(0, width - len(whole))] + [(0, 0)] * (whole.ndim - 1), constant_values=fill)

    def field(part: str, name: str, width: int, fill: int = 0) -> np.ndarray:
        return row([getattr(mine[part], name) for mine in parts], width, fill)

    shifted = lambda part, name: [getattr(mine[part], name) + begin for mine, begin in zip(parts, start)]
    features = parts[0]["ranking"].feature is not None
    return {
        # Padding is a segment of its own.
        "events": Events(
            *(field("events", name, length) for name in ("item", "action", "query", "time")),
            first=row([first], length, start[-1]),
        ),
        "retrieval": Readers(
            *(field("retrieval", name, length) for name in ("item", "query", "time")),
            visible=row(shifted("retrieval", "visible"), length),
            first=row([first], length),
        ),
        "target": row([part["target"] for part in parts], length),
        "ranking": Candidates(
            field("ranking", "item", ranked),
            field("ranking", "label", ranked, -1),
            *(field("ranking", name, ranked) for name in ("query", "time")),
            visible=row(shifted("ranking", "visible"), ranked),
            feature=field("ranking", "feature", ranked) if features else None,
            first=row([list_first], ranked),
            event=row(shifted("ranking", "event"), ranked),
        ),
    }
