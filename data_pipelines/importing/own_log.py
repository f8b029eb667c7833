"""From a table of events of your own, and perhaps one of items, to an event log, in bounded memory.

One pass reads the table piece by piece, counts what is wrong with it and keeps integer codes on disk; what the times count
is told from the whole column; then events are sorted bucket by bucket and written user by user. In memory are only the
distinct ids and queries, which an event log holds anyway.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing

import numpy as np
from tqdm import tqdm

from data_pipelines.event_log import event_log
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import text
from data_pipelines.files import disk, parts
from data_pipelines.files.records import MATRIX_NAME
from data_pipelines.importing import event_files, event_rows, item_table, row_shapes, sorted_events, timestamps
from data_pipelines.importing.bad_rows import KINDS, Problems
from data_pipelines.importing.event_rows import MAX_ACTIONS, ROLES, Found
from data_pipelines.sources.fetch import SOURCES
from data_pipelines.sources.interactions import ordered
from data_pipelines.sources.prepare import SEARCH, logs_folder
from synergen_jax.errors import UserError, nearest

COLUMNS = ("user", "query", "rank", "item", "title", "score")  # of tables of answers, beside those of the labels


@dataclasses.dataclass(frozen=True)
class Options:
    """How a table is read; columns are given as role -> name, and each role's own name is the default."""

    columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of ROLES
    item_columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of item_table.ROLES
    time_unit: str = "auto"  # one of timestamps.KINDS
    drop: typing.Collection[str] = ()  # kinds of bad rows, out of problems.KINDS, or "all"
    labels: typing.Mapping[str, typing.Sequence[str]] = dataclasses.field(default_factory=dict)  # name -> actions
    tags: typing.Sequence[str] = ()  # columns of the items that become multi-hot matrices
    vectors: typing.Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # name -> .npy, a row an item
    text: str = (
        ""  # what `text.make` takes, or "none"; default: "tfidf" if items have titles or texts, or there are queries
    )
    min_item_events: int = 1  # items with fewer events are left out, with their events; then
    min_user_events: int = 1  # users with fewer
    part_files: bool = False  # the name of each file tells the part of a split that its rows are: `parts.of_file`
    k_core: int | None = None  # or both of them with fewer, again and again until nothing changes
    lists: str | None = None  # rows are not events but hold lists of them, side by side: `row_shapes.Shape`
    order: str = "time"  # "file": there are no times but the order in which events come

    @property
    def shape(self) -> row_shapes.Shape:
        """What a row of the table is."""
        return row_shapes.Shape(self.lists, self.order)


def import_log(
    events: str | pathlib.Path,
    *,
    name: str,
    items: str | pathlib.Path | None = None,
    options: Options = Options(),
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
) -> EventLog:
    """Imports a table, or a folder or pattern of them (`event_files`); a log of that name is replaced.

    What was read, dropped and found is in the log's `source`.

    Args:
      now: Unix seconds; times more than a day later lie in the future. Default: the clock.

    Raises:
      UserError: options or files are wrong, or there are bad rows that are not to be dropped. Nothing is written then.
    """
    options = checked(name, items, options)
    logs = logs_folder(data_dir)
    files = event_files.EventFiles(events)
    roles, table = opened(files, items, options)
    file_parts = files.by_part() if options.part_files else None
    make(logs)
    disk.remove_leftovers(logs)
    event_log.check_place(logs / name)  # now rather than at the end
    with disk.room(logs), disk.scratch(logs, name, "import") as folder:
        gathered = _Gathered(files, roles, options, folder, now, file_parts)
        gathered.read()
        actions = sorted(gathered.vocabularies["action"].texts())
        make_labels(actions, options.labels)  # refuses now rather than at the end
        gathered.sort()
        return _write(logs / name, name, gathered, table, items)


def checked(name: str, items, options: Options) -> Options:
    """The options, if they are right; all kinds to drop by their names."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"log name {name!r} may hold letters, digits and . _ - alone: give another --name")
    if name in (*SOURCES, *SEARCH):
        raise UserError(f"log name {name!r} stands for the published data set: give another --name")
    if options.time_unit not in timestamps.KINDS:
        raise UserError(f"--time-unit {options.time_unit!r} is none of {', '.join(timestamps.KINDS)}")
    if wrong := [kind for kind in options.drop if kind not in (*KINDS, "all")]:
        near = nearest(wrong[0], KINDS)
        raise UserError(f"--drop {wrong[0]!r} is none of {', '.join(KINDS)}, all{near}")
    if options.part_files and "part" in options.columns:
        raise UserError("--part-files and --columns part=... both tell the part of a row: leave one out")
    if options.order not in row_shapes.ORDERS:
        raise UserError(f"--order {options.order!r} is none of {', '.join(row_shapes.ORDERS)}")
    if options.order == "file" and ("time" in options.columns or options.time_unit != "auto"):
        raise UserError("--order file takes no times: give neither --columns time=... nor --time-unit, or leave it out")
    for flag, least in (("--min-item-events", options.min_item_events), ("--min-user-events", options.min_user_events)):
        if least < 1:
            raise UserError(f"{flag} must be 1 or more, not {least}")
        if least > 1 and options.k_core is not None:
            raise UserError(f"--k-core leaves out items and users alike: leave out {flag}, or --k-core")
    if options.k_core is not None and options.k_core < 1:
        raise UserError(f"--k-core must be 1 or more, not {options.k_core}")
    for flag, given in (
        ("--item-columns", options.item_columns),
        ("--tags", options.tags),
        ("--vectors", options.vectors),
    ):
        if given and items is None:
            raise UserError(f"{flag} needs --items, the table of items")
    names = [*options.tags, *options.vectors]
    if wrong := [name for name in names if not MATRIX_NAME.fullmatch(name) or names.count(name) > 1]:
        raise UserError(f"matrix {wrong[0]!r}: names hold letters, digits, - and _ alone, come once, and are not 'id'")
    if "text" in names:
        raise UserError("matrix 'text' is what --text makes: give --tags or --vectors another name")
    drop = frozenset(KINDS) if "all" in options.drop else frozenset(options.drop)
    return dataclasses.replace(options, drop=drop)


def opened(files: event_files.EventFiles, items, options: Options) -> tuple[dict[str, str], item_table.Items | None]:
    """The column of each role, and the table of items if one is given."""
    if options.lists == "" and files.form == "delimited text":
        raise UserError("--lists needs what sets the entries of a list apart, as in --lists '|'")
    timed = ("time",) * (options.order == "time")
    if options.lists is not None and options.columns.get("shown", "shown") in files.names:
        raise UserError("--lists takes no shown lists, which would be lists of lists: leave out or rename the column")
    roles = event_files.roles(files, options.columns, ROLES, required=("user", *timed), flag="--columns")
    for role in set(event_rows.NAMED).difference(options.columns):
        roles.pop(role, None)
    if not timed:
        roles["time"] = row_shapes.TIMES
    if not {"item", "query"} & set(roles):
        event_files.roles(files, options.columns, ROLES, required=("item",), flag="--columns")
    if items is None:
        return roles, None
    return roles, item_table.read(
        pathlib.Path(items), options.item_columns, options.tags, options.vectors, options.drop
    )


def make(folder: pathlib.Path) -> None:
    """Makes the folder of all logs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


class _Gathered:
    """What is known of the events while they are read and sorted."""

    def __init__(
        self, files, roles: dict[str, str], options: Options, folder: pathlib.Path, now: float | None, file_parts
    ):
        self.files, self.roles, self.options, self.folder = files, roles, options, folder
        self.file_parts = file_parts  # code of each file's part, int8 (files,), or None
        self.disorder: tuple[str, list] | None = None  # the first user whose parts are out of order, and two events
        self.vocabularies = {role: event_rows.Vocabulary() for role in event_rows.CODED}
        self.found = Found(Problems(options.drop), timestamps.Census(now))
        self.left_out: dict[str, int] = {}

    # --- reading: text to codes

    def read(self) -> None:
        """All pieces of the files, to one store in the order of rows."""
        self.store = sorted_events.Store(self.folder, "all")
        names = [name for name in dict.fromkeys(self.roles.values()) if name != row_shapes.TIMES]
        watched = [role for role in ROLES if role not in (*self.roles, *event_rows.NAMED)]
        before, shape = 0, self.options.shape
        with tqdm(total=self.files.bytes, desc="read", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            for piece in self.files.pieces(names, watched):
                piece = shape.events(piece, self.roles, before)
                before += len(piece.rows)
                rows = event_rows.clean(piece, self.roles, self.files.where, self.found)
                events, shown = event_rows.encode(rows, self.vocabularies)
                if self.file_parts is not None:
                    events["part"] = self.file_parts[events["row"] // event_files.FILE]
                self.store.append(events, shown)
                check_actions(self.files.where, self.roles, len(self.vocabularies["action"]))
                bar.update(piece.size)
        if not self.found.rows:
            raise UserError(f"{self.files.where}: there are no rows after the header")

    # --- sorting

    def sort(self) -> None:
        """Deals the events out to sorted buckets without bad rows, or refuses the files."""
        where = f"{self.files.where}: column {self.roles['time']!r}"
        self.kind = self.found.census.decide(self.options.time_unit, where, self.files.place)
        self.mixed = self.found.census.mixed(self.kind)
        texts = self.vocabularies["user"].texts()
        self.users = ordered(texts)
        place = {user: i for i, user in enumerate(self.users)}
        rank = np.zeros(len(texts) + 1, np.int32)
        rank[1:] = [place[user] for user in texts]
        self.buckets = sorted_events.deal(self.store, rank, self.folder, self._convert)
        for bucket in tqdm(self.buckets, desc="sort", disable=None, leave=False):
            events, shown = bucket.load()
            events, shown = event_rows.in_order(events, shown, self.found)
            bucket.replace(events, shown)
            self._check_parts(events)
        self.found.problems.check(self.files.where, self.found.rows, self.files.place)
        if self.disorder:
            parts.refuse(self.files.where, *self.disorder)
        self._leave_out_rare()

    def _check_parts(self, events: np.ndarray) -> None:
        at = parts.disorder(events["user"], events["part"])
        if at > 0 and self.disorder is None:
            both = [
                (int(e["part"]), int(e["time"]) / 1e9, self.files.place(int(e["row"]))) for e in events[at - 1 : at + 1]
            ]
            self.disorder = self.users[events["user"][at]], both

    def _convert(self, events: np.ndarray) -> np.ndarray:
        times = timestamps.Times(*(events[name] for name in ("time", "fraction", "form")))
        events["time"], good = event_rows.moments(times, events["row"], self.kind, self.mixed, self.found)
        return good

    def _leave_out_rare(self) -> None:
        """Leaves out rare items with their events, then users with few events; or what a k-core leaves out."""
        if (least := self.options.k_core) is not None:
            events = int(self.count("action").sum())
            left, out = sorted_events.k_core(self.buckets, len(self.vocabularies["item"]) + 1, least)
            if events and not left[1:].any():
                raise UserError(
                    f"{self.files.where}: of {events:,} events none with an item is left by a {least}-core: "
                    "give a lower --k-core"
                )
            self.left_out = {"k_core": least, **out}
            return
        least_item, least_user = self.options.min_item_events, self.options.min_user_events
        count = self.count("item")
        rare = (count > 0) & (count < least_item)
        rare[0] = False
        before = {"items": int(rare.sum()), "users": int((self.count("user", -1) > 0).sum()), "events": 0}
        if least_item <= 1 and least_user <= 1:
            return
        for bucket in self.buckets:
            events, shown = bucket.load()
            size = len(events)
            events, shown = sorted_events.thin(events, shown, rare, least_user)
            before["events"] += size - len(events)
            bucket.replace(events, shown)
        left = int((self.count("user", -1) > 0).sum())
        self.left_out = {**before, "users": before["users"] - left}

    def count(self, role: str, extra: int = 0) -> np.ndarray:
        """Events of each code of a role."""
        size = len(self.vocabularies[role]) + 1 + extra
        total = np.zeros(size, np.int64)
        for bucket in self.buckets:
            for events, _ in bucket.slices():
                total += np.bincount(events[role], minlength=size)
        return total

    def shown(self) -> np.ndarray:
        """How often each item code was shown."""
        total = np.zeros(len(self.vocabularies["item"]) + 1, np.int64)
        for bucket in self.buckets:
            for _, shown in bucket.slices():
                total += np.bincount(shown, minlength=len(total))
        return total

    def records(self, codes: dict[str, np.ndarray], items: int) -> typing.Iterator[dict[str, typing.Any]]:
        """The users of all buckets in their order, with the log's own ids for `codes`."""
        for bucket in self.buckets:
            events, shown = bucket.load()
            for role, ids in codes.items():
                events[role] = ids[events[role]]
            yield from sorted_events.records(events, codes["item"][shown], self.users, items)
            bucket.delete()


def _write(path: pathlib.Path, name: str, gathered: _Gathered, table: item_table.Items | None, items) -> EventLog:
    used = {role: gathered.count(role) for role in ("item", "query", "action")}
    met = [text for text, events in zip(gathered.vocabularies["item"].texts(), used["item"][1:].tolist()) if events]
    used["item"] += gathered.shown()
    there, codes = {}, {}
    for role, count in used.items():
        texts = gathered.vocabularies[role].texts()
        there[role] = [text for text, events in zip(texts, count[1:].tolist()) if events]
    tables = log_tables(gathered.files.where, gathered.found.rows, there, table)
    for role, ids in tables.items():
        number = {text: i for i, text in enumerate(ids)}
        codes[role] = np.array([0, *(number.get(text, 0) for text in gathered.vocabularies[role].texts())], np.int32)
    users = gathered.records(codes, len(tables["item"]))
    about = {"left_out": gathered.left_out, **items_met(met, tables["item"], table)}
    about = source(gathered.files, gathered.roles, gathered.options, items, gathered.found, gathered.kind) | about
    return write(path, name, users, tables, table, gathered.options, about)


def log_tables(
    where: str, rows: int, there: typing.Mapping[str, list[str]], table: item_table.Items | None
) -> dict[str, list[str]]:
    """The items, queries and actions of a log in the order of their ids, the empty one first.

    Args:
      rows: how many there were, bad ones included.
      there: the texts of each role that events have, items that were shown among them.
      table: its items are there too.
    """
    if not there["action"]:
        raise UserError(f"{where}: no event is left of {rows:,} rows")
    items = [*there["item"], *table.ids] if table else there["item"]
    if not items:
        raise UserError(f"{where}: no event has an item; a log needs items")
    return {role: ["", *ordered(items if role == "item" else there[role])] for role in ("item", "query", "action")}


def items_met(met: typing.Sequence[str], items: list[str], table: item_table.Items | None) -> dict[str, int]:
    """What a log's `source` says of the items that have events, `met`, beside all its `items` and the table's."""
    described = set(table.ids) if table else set()
    return {
        "items_without_events": len(items) - 1 - len(met),
        "items_with_events_and_row": len(described.intersection(met)),
    }


def source(
    files: event_files.EventFiles, roles: dict[str, str], options: Options, items, found: Found, kind: str
) -> dict[str, typing.Any]:
    """What a log says of the files that it was made of."""
    return {
        "origin": files.where,
        "items": str(items) if items is not None else None,
        "columns": roles,
        "unused_columns": [column for column in files.names if column not in roles.values()],
        "ignored_files": files.ignored,
        "rows": found.rows,
        "settings": {},
        "note": "times are made up, and tell the order of the file alone" if options.order == "file" else "",
        "lists": options.lists is not None,
        "time_unit": kind,
        "time_unit_was_given": options.time_unit != "auto",
        "zoneless_times": found.census.zoneless if kind == "iso" else 0,
        "dropped": found.problems.counts(),
        "left_out": {},
        "out_of_order": found.late,
        "split_requests": found.split,
        "inherited_queries": found.inherited,
        "missing_words": found.words,
    }


def write(
    path: pathlib.Path,
    name: str,
    users: typing.Iterable[dict[str, typing.Any]],
    tables: dict[str, list[str]],
    table: item_table.Items | None,
    options: Options,
    about: dict[str, typing.Any],
    shards: typing.Sequence[pathlib.Path] = (),
) -> EventLog:
    """Writes records with what describes their items and queries.

    Args:
      users, shards: as `event_log.write` takes them.
      tables: what `log_tables` made.
      about: the log's `source`, to which is added what is found here.
    """
    item_ids, queries, actions = tables["item"], tables["query"], tables["action"]
    labels = make_labels(
        actions[1:], options.labels, "no event is left of action"
    )  # refuses now rather than at the end
    described = item_table.describe(item_ids, table)
    item_matrices, query_matrices = dict(described.matrices), {}
    texts = {"item_texts": described.texts, "text_encoder": None}
    words = described.texts if table and any(table.words) else [""]  # ids are no texts
    encoder = options.text or ("tfidf" if text.has_words(words) or text.has_words(queries) else "none")
    if encoder != "none":
        text.check_words(encoder, words, queries)
        texts["text_encoder"], found = text.matrices(encoder, words, queries, path.parent.parent / "text-cache")
        for kind, matrix in found.items():
            (item_matrices if kind == "item" else query_matrices)["text"] = matrix
        about = {**about, "settings": {"text": text.identity(encoder)}}
    return event_log.write(
        path,
        name=name,
        users=users,
        shards=shards,
        item_ids=item_ids,
        item_titles=described.titles,
        queries=queries,
        actions=actions,
        labels=labels,
        item_matrices=item_matrices,
        query_matrices=query_matrices,
        item_columns=described.columns,
        source={**about, "items_without_row": described.without_row if table else 0},
        **texts,
    )


def check_actions(where: str, roles: typing.Mapping[str, str], count: int) -> None:
    """Refuses a column that names no actions."""
    if count > MAX_ACTIONS:
        raise UserError(
            f"{where}: column {roles['action']!r} holds more than {MAX_ACTIONS:,} different actions: "
            "name the right one with --columns action=..."
        )


def make_labels(
    actions: list[str], given: typing.Mapping[str, typing.Sequence[str]], lacking: str = "there is no action"
) -> dict[str, list[int]]:
    """Action ids of each label. The first, "engage", tells whether an item is chosen at all: by any action.

    Args:
      lacking: how the message about an unknown action begins.
    """
    number = {action: i for i, action in enumerate(actions, 1)}
    labels = {"engage": list(number.values())}
    if "engage" in given:
        raise UserError("--label engage: that label is always there, and means every action: give yours another name")
    for name, names in given.items():
        if name in COLUMNS:
            raise UserError(f"--label {name}: answers have a column of that name: give the label another one")
        if wrong := [action for action in names if action not in number]:
            near = nearest(wrong[0], actions)
            raise UserError(f"--label {name}: {lacking} {wrong[0]!r}{near}; there are {', '.join(actions)}")
        labels[name] = sorted({number[action] for action in names})
    return labels
