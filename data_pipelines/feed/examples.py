"""The arrays of training windows and evaluation targets, and the batches made of them: pure functions of a log and a config.

They read a log by user index alone, and draw at random by seed and place, so whatever calls them, in whatever order and
process, gets the same batches. `feed.py` composes them by Grain; nothing here needs it.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing

import jax
import numpy as np
import numpy.typing as npt

from data_pipelines.feed import kept, packing, windows
from data_pipelines.feed.splits import Split, first_of_request, request_start
from synergen_jax.batch import Candidates, Catalogue, EvalBatch, Events, Readers, TrainBatch
from synergen_jax.config import Config, DataConfig
from synergen_jax.errors import UserError

EXAMPLE, BATCH, LIST, PACK, CROP = range(5)  # streams of random numbers


def catalogue(log, split: Split) -> Catalogue:
    """What model and losses know of the log's items and queries: matrices, and counts over the training events."""
    counts = {"item": np.zeros(log.spec.items, np.int32), "query": np.zeros(log.spec.queries, np.int32)}
    for user in range(len(log)):
        record = log[user]
        for name, total in counts.items():
            np.add.at(total, record[name][: split.train_stop[user]], 1)
    for total in counts.values():
        total[0] = 0
    return Catalogue(dict(log.item_matrices), dict(log.query_matrices), counts["item"], counts["query"])


def recent_counts(log, split: Split, share: float = 0.1) -> np.ndarray:
    """Events of each item among the newest `share` of all training events: what is popular of late. (V,) int32"""
    events = [log[user]["time"][: split.train_stop[user]] for user in range(len(log))]
    times = np.concatenate(events)
    since = np.quantile(times, 1 - share, method="higher") if len(times) else 0
    counts = np.zeros(log.spec.items, np.int32)
    for user, time in enumerate(events):
        np.add.at(counts, log[user]["item"][: split.train_stop[user]][time >= since], 1)
    counts[0] = 0
    return counts


# --- training -------------------------------------------------------------------------------------------------


class Training(typing.NamedTuple):
    """One epoch's examples, in no order yet, and what makes their arrays."""

    items: np.ndarray  # (some,) int32: ids that negatives and candidates are drawn from
    rows: np.ndarray  # (examples, ...): what `make` needs to know of each
    make: typing.Callable[[int, typing.Any], dict[str, typing.Any]]  # Any: numpy has no type for a row of `rows`
    """`make(index, row)`: the arrays of a row, by the names of `TrainBatch`, at place `index` of the endless stream."""


def training(log, split: Split, config: Config, counts: np.ndarray | None = None) -> Training:
    """What an epoch is made of: windows, or with `data.pack` rows of several windows.

    Args:
      counts: training events of each item, as in `catalogue(log, split)`, which is asked where they are not given.

    Raises:
      UserError: no window has a target, or the seed is no uint32.
    """
    config = resolved(config, split)
    data = config.data
    if not 0 <= data.seed < 2**32:
        raise UserError(f"data.seed must lie within 0 .. 2^32 - 1, not {data.seed}")
    where = train_windows(split.train_stop, split.first_target, data.max_history, data.stride)
    if not len(where):
        raise UserError(f"{log.name}: no training event follows another one of its user, or has a query")
    windows.action_table(log, data.target_actions)  # refuses unknown names before the first batch is asked for
    items = np.flatnonzero(catalogue(log, split).counts if counts is None else counts).astype(np.int32)
    lent = windows.queries_of_items(log, split.train_stop) if data.lend_query else None
    log = kept.Kept(log)
    make = functools.partial(example, log, items, windows.label_table(log), split.train_stop, config, lent=lent)
    if not data.pack:
        return Training(items, where, make)
    sizes = where[:, 2] - where[:, 1], ranked_events(log, where, split.train_stop, config)
    plan = packing.make_plan(*sizes, data.max_history, data.rank_candidates + config.loss.hard_candidates)
    return Training(items, np.arange(plan.rows), functools.partial(packed, make, where, plan, config))


def resolved(config: Config, split: Split) -> Config:
    """The config with a `data.pack` that is true or false: "auto" packs windows that fill less than half of their rows.

    Then packing at least halves the rows, and what it costs, masks by segments and rows in another order, is little beside
    that. What cannot read packed rows (`model.attention` "cudnn") is not given any.
    """
    if config.data.pack != "auto":
        return config
    pack = row_fill(config.data, split) < 0.5 and config.model.attention != "cudnn"
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pack=pack))


def row_fill(data: DataConfig, split: Split) -> float:
    """The share of a row's slots that a training window takes, on average; 0 without any window."""
    where = train_windows(split.train_stop, split.first_target, data.max_history, data.stride)
    return float(np.mean(where[:, 2] - where[:, 1])) / data.max_history if len(where) else 0.0


def train_windows(train_stop: np.ndarray, first_target: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Windows as rows (user, start, stop), int32 (W, 3).

    A user's last window ends with the last training event. With a stride, further windows end `stride` events
    earlier each, until the first event is in one. No window ends before its user's first target.
    """
    found = []
    for user, (stop, first) in enumerate(zip(train_stop.tolist(), first_target.tolist())):
        while stop > first:
            start = max(0, stop - length)
            found.append((user, start, stop))
            if not stride or not start:
                break
            stop -= stride
    return np.array(found, np.int32).reshape(-1, 3)


def ranked_events(log, where: np.ndarray, train_stop: np.ndarray, config: Config) -> np.ndarray:
    """At how many events of each window candidates are ranked, at most: what a packed row needs room for. (W,) int32"""
    found = np.zeros(len(where), np.int32)
    if not config.data.rank_events:
        return found
    asked = windows.action_table(log, config.data.target_actions)
    for window, (user, start, stop) in enumerate(where.tolist()):
        record = log[user]
        item, action, query = (record[name][start:stop] for name in ("item", "action", "query"))
        known = (first_of_request(record["request"][start:stop]) > 0) | (query > 0) | (config.data.lend_query > 0)
        moves = _moves(config.data, stop, int(train_stop[user]))  # it may be where more is ranked
        count = len(item) if moves else np.count_nonzero((item > 0) & asked[action] & known)
        found[window] = min(count, config.data.rank_events)
    return found


def packed(make, where: np.ndarray, plan: packing.Plan, config: Config, index: int, row: int) -> dict[str, typing.Any]:
    """The arrays of one packed row; `index` is its place in the endless stream, which tells the epoch."""
    data = config.data
    mine = where[plan.windows((data.seed, PACK, index // plan.rows), row)]
    parts = [make((index, number), place, packed=True) for number, place in enumerate(mine)]
    return packing.join(parts, data.max_history, plan.ranked)


def example(
    log,
    items: np.ndarray,
    table: np.ndarray,
    train_stop: np.ndarray,
    config: Config,
    index: int | tuple[int, ...],
    place: np.ndarray,
    packed: bool = False,
    lent: windows.QueriesOfItems | None = None,
) -> dict[str, typing.Any]:
    """The arrays of one window, by the names of `TrainBatch`; `index` is its place in the endless stream.

    Padded to `data.max_history` events and `data.rank_events` ranked ones; `packed` leaves the padding to the row. `lent` are
    the queries that `data.lend_query` draws from.
    """
    data = config.data
    user, start, stop = place.tolist()
    told = int(train_stop[user])
    if _moves(data, stop, told):
        draw = np.random.default_rng((data.seed, CROP, *np.atleast_1d(index).tolist()))
        by = draw.integers(-(data.stride // 2), (data.stride + 1) // 2)  # as many places as the stride has events
        by = max(int(by), -start)
        start, stop = start + by, stop + by
    record, length = log[user], stop - start if packed else data.max_history
    events = windows.window(record, start, stop, length)
    visible, moment = np.zeros((2, length), np.int32)
    visible[: stop - start] = seen = first_of_request(record["request"][start:stop])
    moment[: stop - start] = windows.asked_at(record, start, stop, seen)
    rng = np.random.default_rng((data.seed, EXAMPLE, *np.atleast_1d(index).tolist()))
    query = events.query * (rng.random(length) >= data.drop_query) if data.drop_query else events.query
    if lent is not None:
        lends = (events.query == 0) & (rng.random(length) < data.lend_query)
        query = np.where(lends, lent.draw(rng, np.asarray(events.item)), query)
    # Nothing is known to a reader that sees no event and has no query.
    target = events.item * ((visible > 0) | (query > 0))

    asked = windows.action_table(log, data.target_actions)[events.action]
    ranked = np.sort(rng.permutation((target * asked).nonzero()[0])[: data.rank_events])
    had = _had(data, record, told)
    item, label, row = windows.candidates(rng, record, start + ranked, had, data.rank_candidates, table, items, told)
    slots = len(ranked) if packed else data.rank_events
    per_event = slots == length and not packed
    lists = ranked if per_event else np.arange(len(ranked))

    def put(values: npt.ArrayLike, nothing: int = 0) -> np.ndarray:
        x = np.asarray(values)
        whole = np.full((slots, *x.shape[1:]), nothing, x.dtype)
        whole[lists] = x
        return whole

    feature = windows.features(record, put(row, -1)) if log.spec.candidate_features else None
    asks, time, sees = (put(x[ranked]) for x in (query, moment, visible))
    event = put(ranked.astype(np.int32))
    ranking = Candidates(put(item), put(label, -1), asks, time, sees, feature, event=event, per_event=per_event)
    return {
        "events": events,
        "retrieval": Readers(np.zeros(length, np.int32), query, moment, visible),
        "target": target,
        "ranking": ranking,
    }


def _had(data: DataConfig, record, events: int) -> np.ndarray:
    """Items a user has after so many events, which are not drawn as candidates, sorted; none where people come back."""
    return kept.had(record, events) if data.filter_seen else np.zeros(0, np.int32)


def _moves(data: DataConfig, stop: int, train_stop: int) -> bool:
    """Whether `data.crop` moves a window. A user's last window, which is most like serving, stays."""
    return data.crop and stop < train_stop


def collate(examples: collections.abc.Sequence[dict[str, typing.Any]]) -> dict[str, typing.Any]:
    return jax.tree.map(lambda *rows: np.stack(rows), *examples)


def with_negatives(items: np.ndarray, count: int, seed: int, index: int, batch: dict[str, typing.Any]) -> TrainBatch:
    """The `index`-th batch with its shared negatives, uniform over `items`."""
    rng = np.random.default_rng((seed, BATCH, index))
    return TrainBatch(**batch, negatives=items[rng.integers(0, len(items), count)])


# --- evaluation -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets of one part of a split, in the order of users; iterated any number of times."""

    log: typing.Any
    config: Config
    places: np.ndarray  # (targets, 2): user, event
    repeated: int  # events that are no targets, since the user already had the item
    told: np.ndarray  # (targets,): how many leading events may tell how a shown list was received: none of a later part
    size: int  # users of a batch, all blocks together
    block: int = 0  # which of `blocks` equal blocks of each batch is given
    blocks: int = 1

    @classmethod
    def of(cls, log, split: Split, part: str, config: Config) -> typing.Self:
        """The targets of "validation" or "test": events with an item, by one of `data.target_actions`.

        Raises:
          UserError: there is none.
        """
        places, told, repeated = [], [], 0
        wanted, bounds = windows.action_table(log, config.data.target_actions), split.targets(part)
        for user, (start, stop) in enumerate(bounds.tolist()):
            if start == stop:
                continue
            record = log[user]
            item = record["item"]
            events = split.events(part, user)
            events = events[(item[events] > 0) & wanted[record["action"][events]]]
            if config.data.filter_seen:
                _, first, number = np.unique(item[:stop], return_index=True, return_inverse=True)
                known = first[number.reshape(-1)[events]] < first_of_request(record["request"])[events]
                events, repeated = events[~known], repeated + int(known.sum())
            places.append(np.stack([np.full(len(events), user), events], axis=1).astype(np.int32))
            # Parts that are ranges come one after the other; targets that were chosen stand among those of the other part.
            told.append(np.full(len(events), stop) if split.chosen is None else events + 1)
        places = np.concatenate([np.zeros((0, 2), np.int32), *places])
        if not len(places):
            raise UserError(f"{log.name}: no {part} target is left ({repeated} were had before; see data.filter_seen)")
        return cls(kept.Kept(log), config, places, repeated, np.concatenate(told), config.evaluate.batch)

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.places)

    def shared(self, parts: int, block: int, blocks: int) -> typing.Self:
        """The same batches, of a multiple of `parts` users, of which only the `block`-th of `blocks` blocks is read."""
        return dataclasses.replace(self, size=-(-self.size // parts) * parts, block=block, blocks=blocks)

    def __len__(self) -> int:
        return -(-len(self.places) // self.size)

    def __iter__(self) -> collections.abc.Iterator[EvalBatch]:
        return map(self.batch, range(len(self)))

    def batch(self, index: int) -> EvalBatch:
        """The `index`-th batch."""
        size = self.size // self.blocks
        first = index * self.size + self.block * size
        which = slice(first, first + size)
        places, told = self.places[which], self.told[which]
        # The last batch may have no target for a block, which then is all padding, of the shape of any other row.
        some = zip(places, told) if len(places) else zip(self.places[:1], self.told[:1])
        rows = [target(self.log, self.config, int(user), int(event), int(told)) for (user, event), told in some]
        # One shape for all batches, so that an evaluation is compiled once.
        width = seen_width(self.config, self.log.spec.items, int(self.places[:, 1].max()))
        for row in rows:
            row["seen"] = np.pad(row["seen"], (0, width - len(row["seen"])))
        real = len(places)
        fill = lambda x: np.pad(x[:real], [(0, size - real)] + [(0, 0)] * (x.ndim - 1))
        batch = jax.tree.map(fill, collate(rows))
        batch["user"][real:] = -1
        batch["ranking"].label[real:] = -1
        return EvalBatch(**batch)


def seen_width(config: Config, items: int, events: int) -> int:
    """M: room for what users have had, of whom none has more than `events` events before a target; a power of two."""
    most = min(events, items) if config.data.filter_seen else 0
    return 1 << (max(16, most) - 1).bit_length()


@functools.lru_cache(maxsize=1)
def _all_items(items: int) -> np.ndarray:
    """The ids 1 .. V - 1, made once and not for every target: of a hundred million items they are 400 MB."""
    return np.arange(1, items, dtype=np.int32)


def target(log, config: Config, user: int, event: int, told: int) -> dict[str, typing.Any]:
    """The arrays of one target; `told` as in `Targets`."""
    data = config.data
    record = log[user]
    item = record["item"]
    stop = request_start(record["request"], event)  # no reader sees its own request
    start = max(0, stop - data.max_history)
    time = windows.asked_at(record, start, event + 1, np.full(event + 1 - start, stop - start))[-1]
    had = _had(data, record, stop)
    rng = np.random.default_rng((data.seed, LIST, user, event))
    size = config.evaluate.rank_candidates
    candidates, label, row = windows.candidates(
        rng,
        record,
        np.array([event]),
        _had(data, record, event + 1),
        size,
        windows.label_table(log),
        _all_items(log.spec.items),
        told,
    )
    feature = windows.features(record, row) if log.spec.candidate_features else None
    one = lambda x: np.array([x], np.int32)
    query, time, visible = one(record["query"][event]), one(time), one(stop - start)
    return {
        "user": np.int32(user),
        "events": windows.window(record, start, stop, data.max_history),
        "reader": Readers(one(0), query, time, visible),
        "target": np.int32(item[event]),
        "seen": had[(had > 0) & (had != item[event])].astype(np.int32),
        "ranking": Candidates(candidates, label, query, time, visible, feature),
        "position": windows.positions(record, row)[0],
    }


def user_history(record, config: Config, room: int = 0) -> tuple[Events, int]:
    """The last L events of a record, (1, L), and the Unix time of their second 0.

    Args:
      room: how many events will be appended to the cache of these: as many places stay free at their end.

    Raises:
      UserError: no event fits beside them.
    """
    length = config.data.max_history
    if not 0 <= room < length:
        raise UserError(f"room for {room} more events cannot be kept in a history of data.max_history = {length}")
    stop = len(record["item"])
    events = windows.window(record, max(0, stop - (length - room)), stop, length)
    return jax.tree.map(lambda x: x[None], events), int(record["time"][0])


def no_history(config: Config) -> Events:
    """The window of somebody of whom nothing is known, (1, L)."""
    return Events(*(np.zeros((1, config.data.max_history), np.int32) for _ in range(4)))
