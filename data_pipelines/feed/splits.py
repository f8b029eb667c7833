"""Which events of each user train, validate and test."""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import typing

import numpy as np

from data_pipelines.feed.windows import received
from data_pipelines.files.records import EVENT_FIELDS
from synergen_jax.batch import LogSpec
from synergen_jax.config import DataConfig
from synergen_jax.errors import UserError

FIRST_MOMENT = 631_152_000  # 1990-01-01 in Unix seconds: what is below was meant as something else, such as a share
COLD, HELD = 3, 4  # the streams of random numbers that draw cold items and held-out users
DAY = 86_400  # seconds


class Log(typing.Protocol):
    """What a split asks of a log: anything that gives records by user index, as `EventLog` does."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> LogSpec: ...
    @property
    def actions(self) -> collections.abc.Sequence[str]: ...
    @property
    def labels(self) -> collections.abc.Mapping[str, collections.abc.Sequence[int]]: ...
    @property
    def item_matrices(self) -> collections.abc.Mapping[str, np.ndarray]: ...
    @property
    def query_matrices(self) -> collections.abc.Mapping[str, np.ndarray]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, user: int, /) -> collections.abc.Mapping[str, typing.Any]: ...  # Any: a name, and arrays


@dataclasses.dataclass(frozen=True)
class Split:
    """Ranges of event indices, one row a user; each array is int32.

    Events `0 .. train_stop - 1` train; of a user who is held out wholly that is none. Targets are the events with an
    item within a range `[start, stop)`, or where `chosen` names some, these alone, which lie within it.
    """

    train_stop: np.ndarray  # (users,)
    first_target: np.ndarray  # (users,): the first training event that one can learn to predict; train_stop: none
    validation: np.ndarray  # (users, 2)
    test: np.ndarray  # (users, 2)
    # Part -> (users, 2): a recommendation and a search, -1 for none.
    chosen: collections.abc.Mapping[str, np.ndarray] | None = None

    def targets(self, part: str) -> np.ndarray:
        """The ranges of "validation" or "test", (users, 2)."""
        return {"validation": self.validation, "test": self.test}[part]

    def events(self, part: str, user: int) -> np.ndarray:
        """The events of a user that may be targets of "validation" or "test", in order."""
        if self.chosen is None:
            return np.arange(*self.targets(part)[user])
        mine = np.sort(self.chosen[part][user])
        return mine[mine >= 0]


def split(log: Log, config: DataConfig) -> Split:
    """The split that `config.split` names, in one pass over the log.

    "leave-one-out": a user's last event with an item is the test target, the one before it the validation target, in
    the order of the log, which is stable on equal timestamps; what lies before trains. A user with fewer than three events
    with an item only trains. "leave-one-out-by-task": the same of the searches and of the recommendations, each; training ends
    before the first request of these four, so that no target of one task is trained on for the sake of the other. A task
    of which a user has fewer than three events has no target there. "time": two moments cut the log, given as Unix seconds,
    from 1990 on, or as shares of all its events, above 0 and below 1. "last-days": likewise, and the moments are
    counted back from the last event, at T: from T - test_days on events test, from T - test_days - validation_days on
    they validate, and what is earlier trains. "by-user": a share of the users validates, and as large a one tests,
    drawn by the seed. Training has none of their events; their last event with an item is the target, and what lies
    before its request is what a reader sees. Who has no item before that request, and all other users, train on all
    their events. "given": the parts that the log's data say. "none": all events train, and there is no target.

    Raises:
      UserError: nothing is left to train on, to validate or to test ("none": to train on).
    """
    ways = {
        "leave-one-out": lambda: _leave_one_out(log),
        "leave-one-out-by-task": lambda: _leave_one_out_by_task(log),
        "time": lambda: _by_time(log, config),
        "last-days": lambda: _by_time(log, config),
        "by-user": lambda: _by_user(log, config.held_users, config.seed),
        "given": lambda: _given(log),
        "none": lambda: _all_events(log),
    }
    made = ways[config.split]()
    parts = [("training", made.train_stop)]
    if config.measured:
        # Both moments of "time" may be one, where nothing is left to choose.
        chosen = config.split != "time" or config.validation_from != config.test_from
        parts += [(part, np.diff(made.targets(part))) for part in ("validation",) * chosen + ("test",)]
    for name, size in parts:
        if not np.any(size > 0):
            raise UserError(f"the {config.split} split leaves no {name} events: change data.split or its settings")
    return made


def cold_items(log: Log, share: float, seed: int) -> np.ndarray:
    """The items that training shall never meet: a share of all, drawn by seed; sorted ids."""
    items = log.spec.items - 1
    drawn = np.random.default_rng((seed, COLD)).permutation(items)[: round(share * items)]
    return np.sort(drawn + 1).astype(np.int32)


class TrainingPart:
    """A log's training events alone, without those of some items: what a model that never met them is trained on."""

    def __init__(self, log: Log, split: Split, without: np.ndarray):
        self.log, self.train_stop = log, split.train_stop
        self.name, self.spec, self.labels, self.actions = log.name, log.spec, log.labels, log.actions
        self.item_matrices, self.query_matrices = log.item_matrices, log.query_matrices
        self._without = np.zeros(log.spec.items, bool)
        self._without[without] = True

    def __len__(self) -> int:
        return len(self.log)

    def __getitem__(self, user: int) -> dict[str, typing.Any]:
        record = self.log[user]
        keep = ~self._without[record["item"]]
        keep[self.train_stop[user] :] = False
        shown = ~self._without[record["shown_item"]]
        events = {name: record[name][keep] for name in EVENT_FIELDS}
        lists = {name: values[shown] for name, values in record.items() if name.startswith("shown_")}
        # The rest of a request tells nothing.
        lists["shown_action"] = received(record, int(self.train_stop[user]))[shown]
        return {"user_id": record["user_id"]} | events | lists


def hold_out(log: Log, split: Split, share: float, seed: int) -> tuple[Log, Split]:
    """The log and split to train on when a share of the items is held out; the given ones for a share of 0."""
    if not share:
        return log, split
    part = TrainingPart(log, split, cold_items(log, share, seed))
    records = (part[user] for user in range(len(part)))
    sizes = np.array([(len(record["item"]), _first_target(record)) for record in records], np.int32)
    none = np.zeros((len(part), 2), np.int32)
    return part, Split(sizes[:, 0], sizes[:, 1], none, none)


def first_of_request(request: np.ndarray) -> np.ndarray:
    """Index of the first event of each event's request, (n,); request 0 is none, and each such event stands alone."""
    index = np.arange(len(request))
    if not len(request):
        return index
    new = np.ones(len(request), bool)
    new[1:] = (request[1:] != request[:-1]) | (request[1:] == 0)
    return np.maximum.accumulate(np.where(new, index, 0))


def request_start(request: np.ndarray, event: int) -> int:
    """`first_of_request(request)[event]` of requests that go up, without looking at them all."""
    return int(np.searchsorted(request, request[event])) if request[event] else event


def _first_target(record: collections.abc.Mapping[str, np.ndarray]) -> int:
    """Index of a user's first event with an item that comes after another request or with a query; if none, its length.

    Before it nothing is known from which the item could be told.
    """
    known = (first_of_request(record["request"]) > 0) | (record["query"] > 0)
    return int(np.append(np.flatnonzero(known & (record["item"] > 0)), len(known))[0])


def _leave_one_out(log: Log) -> Split:
    rows = np.zeros((len(log), 6), np.int32)
    for user in range(len(log)):
        record = log[user]
        item = record["item"]
        places = np.flatnonzero(item)
        if len(places) < 3:
            rows[user] = [len(item), 0, 0, 0, 0, 0]
        else:
            before, last = places[-2:]
            rows[user] = [before, before, before + 1, last, last + 1, 0]
        rows[user, 5] = min(_first_target(record), rows[user, 0])
    return Split(rows[:, 0], rows[:, 5], rows[:, 1:3], rows[:, 3:5])


def _leave_one_out_by_task(log: Log) -> Split:
    stops = np.zeros((len(log), 2), np.int32)  # train_stop, first_target
    ranges = {part: np.zeros((len(log), 2), np.int32) for part in ("validation", "test")}
    chosen = {part: np.full((len(log), 2), -1, np.int32) for part in ranges}
    for user in range(len(log)):
        record = log[user]
        item, search = record["item"] > 0, record["query"] > 0
        for task, mine in enumerate((item & ~search, item & search)):
            if len(places := np.flatnonzero(mine)) >= 3:
                chosen["validation"][user, task], chosen["test"][user, task] = places[-2:]
        held = np.array([chosen[part][user] for part in ranges])
        stop = len(item)
        if (held >= 0).any():
            stop = min(request_start(record["request"], event) for event in held[held >= 0].tolist())
            for part, row in zip(ranges, held):
                ranges[part][user] = row[row >= 0].min(), row.max() + 1
        stops[user] = stop, min(_first_target(record), stop)
    return Split(stops[:, 0], stops[:, 1], ranges["validation"], ranges["test"], chosen)


def _all_events(log: Log) -> Split:
    records = (log[user] for user in range(len(log)))
    sizes = np.array([(len(record["item"]), _first_target(record)) for record in records], np.int32).reshape(-1, 2)
    none = np.zeros((len(log), 2), np.int32)
    return Split(sizes[:, 0], sizes[:, 1], none, none)


def _by_user(log: Log, share: float, seed: int) -> Split:
    whole = _all_events(log)
    last = np.array([_last_target(log[user]) for user in range(len(log))], np.int32)
    can = np.flatnonzero(last >= 0)
    drawn = np.random.default_rng((seed, HELD)).permutation(can)
    count = round(share * len(can))
    held = {"validation": drawn[:count], "test": drawn[count : 2 * count]}
    stop, first = whole.train_stop.copy(), whole.first_target.copy()
    ranges = {part: np.zeros((len(log), 2), np.int32) for part in held}
    for part, users in held.items():
        stop[users] = first[users] = 0
        ranges[part][users] = last[users, None] + (0, 1)
    return Split(stop, first, ranges["validation"], ranges["test"])


def _last_target(record: collections.abc.Mapping[str, np.ndarray]) -> int:
    """Index of a user's last event with an item; -1 where no item comes before its request."""
    places = np.flatnonzero(record["item"])
    if not len(places) or places[0] >= request_start(record["request"], int(places[-1])):
        return -1
    return int(places[-1])


def _given(log: Log) -> Split:
    """The parts that the data say, of a log that has them: its `given_split`."""
    given: np.ndarray | None = getattr(log, "given_split", None)
    if given is None:
        raise UserError(
            f"data.split given: the data of {log.name} give none: import them with --columns part=..., or with "
            "--part-files, or choose another data.split"
        )
    rows = [(len(record["item"]), _first_target(record)) for record in map(log.__getitem__, range(len(log)))]
    ends, first = np.array(rows, np.int32).T
    stop, test = given.T
    return Split(stop, np.minimum(first, stop), given, np.stack([test, ends], axis=1))


def _by_time(log: Log, config: DataConfig) -> Split:
    """The splits "time" and "last-days": two moments cut the log, and each belongs to what is later."""
    times, first = [], np.zeros(len(log), np.int32)
    for user in range(len(log)):
        record = log[user]
        times.append(np.asarray(record["time"]))
        first[user] = _first_target(record)
    every = np.sort(np.concatenate([np.zeros(0, np.int64), *times]))
    if not len(every):
        raise UserError("the log is empty")
    bounds = (_days_back if config.split == "last-days" else _moments)(log.name, config, every)
    cuts = np.array([np.searchsorted(time, bounds, "left") for time in times], np.int32)
    ends = np.array([len(time) for time in times], np.int32)
    return Split(cuts[:, 0], np.minimum(first, cuts[:, 0]), cuts, np.stack([cuts[:, 1], ends], axis=1))


def _days_back(name: str, config: DataConfig, every: np.ndarray) -> list[int]:
    """The moments of "last-days" in Unix seconds, those of validation and of test; `every` are all times, sorted."""
    days = config.validation_days + config.test_days
    has = int(every[-1] - every[0]) / DAY
    if not days < has:
        raise UserError(
            f"data.validation_days {config.validation_days:g} and data.test_days {config.test_days:g} reach back "
            f"{days:g} days from the last event, and the events of {name} go over {has:.4g} days: nothing would be "
            "left to train on; give fewer"
        )
    return [math.ceil(int(every[-1]) - back * DAY) for back in (days, config.test_days)]


def _moments(log_name: str, config: DataConfig, every: np.ndarray) -> list[int]:
    """The moments of "time" in Unix seconds, those of validation and of test; `every` are all times, sorted."""

    def moment(name: str) -> int:
        value = getattr(config, name)
        if 0 < value < 1:
            return int(every[int(value * len(every))])
        if not FIRST_MOMENT <= value < math.inf:
            raise UserError(
                f"data.{name} {value} is neither a share of all events, above 0 and below 1, nor a moment in Unix seconds, "
                f"from {FIRST_MOMENT} (1990) on"
            )
        if not every[0] < value <= every[-1]:
            raise UserError(
                f"data.{name}, the moment {value:.0f}, cuts nothing: the events of {log_name} go from {every[0]} to "
                f"{every[-1]}, in Unix seconds"
            )
        return math.ceil(value)

    bounds = [moment("validation_from"), moment("test_from")]
    if bounds[0] > bounds[1]:
        raise UserError(
            f"data.validation_from {config.validation_from} is the moment {bounds[0]}, which lies after data.test_from "
            f"{config.test_from}, the moment {bounds[1]}"
        )
    return bounds
