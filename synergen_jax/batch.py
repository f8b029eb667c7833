"""The pytrees that travel between the feed, the model and the evaluation. Every shape is written here once.

Axis letters, the same everywhere:

| letter | what |
|---|---|
| B | users (windows of users) |
| L | events of a window |
| R | readers a user |
| E | ranked events a user; of a packed row: of all its users |
| K | candidates a ranked event |
| F | candidate features of a log; with them F + 1 columns are stored, the last 1 where the features are known |
| N | negatives |
| M | items that a user has already had |
| V | items, the padding id 0 included |
| A | ranked labels |
| D, H, Dh | model width, heads, width of a head |

Id 0 is "none" or padding for items, actions and queries alike. Windows are left-aligned: padding follows the
events. Times are int32 seconds since the user's first event. All arrays are numpy on the host, jax on the device.

A packed row holds several windows, one after the other: its *segments*. One integer a token keeps them apart, `first`:
where in the row the token's own segment begins. `visible` stays a place in the row. What is not packed has no `first`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

import jax
import numpy as np
from jaxtyping import Array, Float, Int

AnyArray = Array | np.ndarray
Ints = Int[Array, "..."] | Int[np.ndarray, "..."]
Floats = Float[Array, "..."] | Float[np.ndarray, "..."]


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def _pytree(cls):
    """A frozen dataclass that jax can map over; fields of metadata {"static": True} are no arrays."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]
    arrays = [field.name for field in dataclasses.fields(cls) if field.name not in static]
    return jax.tree_util.register_dataclass(cls, arrays, static)


@_pytree
class Events:
    """What happened: the context tokens. Each int32 (B, L)."""

    item: Ints  # 0: an event without an item, or padding
    action: Ints  # 0: padding; every real event has an action
    query: Ints  # 0: no query
    time: Ints  # seconds since the user's first event
    first: Ints | None = None  # (B, L): the event sees events first .. its own place; None: one segment, from 0 on

    @property
    def mask(self):
        """True for events, False for padding, (B, L)."""
        return self.action > 0


@_pytree
class Readers:
    """What is asked: retrieval tokens (item 0) and ranking tokens (item is the candidate). Each id int32 (B, R).

    `visible` is the number of leading context events that the reader may see. That one integer stands for the
    reader's row of the mask: reader r of user b attends to events `0 .. visible[b, r] - 1` and to itself. In a packed
    row they begin at `first[b, r]`; where `visible` is not above it, the reader sees itself alone.
    """

    item: Ints
    query: Ints
    time: Ints  # when it is asked, on the clock of the events
    visible: Ints
    feature: Floats | None = None  # (B, R, F + 1), see `Candidates`; None: nothing is known of any
    first: Ints | None = None  # (B, R); None: 0


@_pytree
class Candidates:
    """Lists to be ranked: E requests a user, K candidates each."""

    item: Ints  # (B, E, K), 0: no candidate
    label: Ints  # (B, E, K, A) int8: 1 positive, 0 negative, -1 unknown (no loss, no metric)
    query: Ints  # (B, E)
    time: Ints  # (B, E)
    visible: Ints  # (B, E)
    # (B, E, K, F + 1) float32: a candidate's features and a 1, or zeros throughout where they are not known, so that an
    # unknown feature differs from one that is 0. None: the log has no candidate features.
    feature: Floats | None = None
    first: Ints | None = None  # (B, E), as that of `Readers`
    event: Ints | None = None  # (B, E): place in the row of the event that each list was chosen at; in training alone
    # Promises that E = L, that nothing is packed, and that list e is that of event e: half the work of attention.
    per_event: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        """Holds `per_event` against the places, while they are on the host.

        Raises:
          ValueError: the promise is not kept.
        """
        item, event, visible = self.item, self.event, self.visible
        if not self.per_event:
            return
        if not (isinstance(item, np.ndarray) and isinstance(event, np.ndarray) and isinstance(visible, np.ndarray)):
            return
        place = np.arange(event.shape[-1])
        odd = (item[..., 0] > 0) & ((event != place) | (visible > place))
        if self.first is not None or odd.any():
            raise ValueError("Candidates: per_event promises rows that are not packed, whose list e is that of event e")

    def readers(self) -> Readers:
        """One reader a candidate, (B, E * K), the candidates of one request side by side."""
        xp = np if isinstance(self.item, np.ndarray) else jax.numpy
        users, events, size = self.item.shape
        flat = lambda x: x.reshape(users, events * size)
        wide = lambda x: flat(xp.broadcast_to(x[..., None], self.item.shape))
        feature = None if self.feature is None else self.feature.reshape(users, events * size, self.feature.shape[-1])
        first = None if self.first is None else wide(self.first)
        return Readers(flat(self.item), wide(self.query), wide(self.time), wide(self.visible), feature, first)


@_pytree
class TrainBatch:
    """One training step's input."""

    events: Events  # (B, L)
    retrieval: (
        Readers  # (B, L): one an event, in their order, item 0 throughout; the i-th asks by event i: visible <= i
    )
    target: Ints  # (B, L) int32: the item that each retrieval reader should find; 0: no target, no loss
    ranking: Candidates  # (B, E, K)
    negatives: Ints  # (N,) int32: uniform over the items 1 .. V-1, shared by the whole batch

    def __post_init__(self):
        """Holds the promise of `retrieval` against its numbers, while they are on the host.

        Raises:
          ValueError: a reader would see its own event, or a later one.
        """
        visible = self.retrieval.visible if isinstance(self.retrieval, Readers) else None
        if isinstance(visible, np.ndarray) and np.any(visible > np.arange(visible.shape[-1])):
            raise ValueError(
                "TrainBatch: the i-th retrieval reader asks by event i, and may see the events before it alone"
            )


@_pytree
class EvalBatch:
    """Users to be evaluated, one target each: what came next after `events`."""

    user: Ints  # (B,) int32: index of the user in the log; -1: a padded row, ignored
    events: Events  # (B, L): the last L events before the target
    reader: Readers  # (B, 1): asks at the target's time with the target's query
    target: Ints  # (B,) int32
    seen: Ints  # (B, M) int32: items before the target, padded with 0; the target itself is never among them
    ranking: Candidates  # (B, 1, K): the target first, then the others of the list shown, or sampled unseen items
    position: Ints  # (B, K) int32: place of each candidate in the list that was shown, from 1; 0: it was not in one

    @property
    def shown(self):
        """True for targets that were chosen from a list that was shown, (B,)."""
        return self.position[:, 0] > 0


@dataclasses.dataclass(frozen=True)
class LogSpec:
    """The sizes of a log that fix a model's shapes. Hashable."""

    items: int  # V, id 0 included
    actions: int  # id 0 included
    queries: int  # id 0 included
    labels: tuple[str, ...]  # A names of ranked labels
    item_matrices: tuple[tuple[str, int], ...] = ()  # (name, width) of each frozen semantic matrix of items
    query_matrices: tuple[tuple[str, int], ...] = ()
    candidate_features: tuple[str, ...] = ()  # F names of what is known of the items of a list that was shown


@_pytree
class Catalogue:
    """What the model and the losses know of the items beside learned parameters. Frozen: no gradient."""

    item_matrices: dict[str, Floats]  # name -> (V, width) semantic vectors, row 0 zero
    query_matrices: dict[str, Floats]  # name -> (queries, width)
    counts: Ints  # (V,) int32: events of each item in the training part; 0 for id 0
    query_counts: Ints  # (queries,) int32: likewise


Feed = collections.abc.Callable[[int], collections.abc.Generator[TrainBatch, None, None]]
"""`feed(step)` yields the batches of steps `step, step + 1, ...`: a pure function of (seed, step)."""
