"""From a table of events of your own, and perhaps one of items, to an event log, in bounded memory.

One pass reads the table piece by piece, counts what is wrong with it and keeps integer codes on disk; what the times count
is told from the whole column; then events are sorted bucket by bucket and written user by user. In memory are only the
distinct ids and queries, which an event log holds anyway.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tempfile
import typing

import numpy as np
from tqdm import tqdm

from data_pipelines import event_files, event_log, item_file, sorted_events, text, timestamps
from data_pipelines.event_log import EventLog
from data_pipelines.interactions import ordered
from data_pipelines.prepare import default_data_dir
from data_pipelines.problems import KINDS, MISSING, Problems
from data_pipelines.records import MATRIX_NAME
from data_pipelines.sources import SOURCES
from synergen_jax.errors import UserError

if typing.TYPE_CHECKING:
    import polars as pl

ROLES = ("user", "item", "time", "action", "query", "request", "shown")
MAX_ACTIONS = 1000  # distinct values above which a column names no actions


@dataclasses.dataclass(frozen=True)
class Options:
    """How a table is read; columns are given as role -> name, and each role's own name is the default."""

    columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of ROLES
    item_columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of item_file.ROLES
    time_unit: str = "auto"  # one of timestamps.KINDS
    drop: typing.Collection[str] = ()  # kinds of bad rows, out of problems.KINDS, or "all"
    labels: typing.Mapping[str, typing.Sequence[str]] = dataclasses.field(default_factory=dict)  # name -> actions
    tags: typing.Sequence[str] = ()  # columns of the items that become multi-hot matrices
    vectors: typing.Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # name -> .npy, a row an item
    text: str = ""  # what `text.make` takes, or "none"; default: "tfidf" if items have titles or texts
    min_item_events: int = 1  # items with fewer events are left out, with their events; then
    min_user_events: int = 1  # users with fewer


def import_log(
    events: str | pathlib.Path,
    *,
    name: str,
    items: str | pathlib.Path | None = None,
    options: Options = Options(),
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
) -> EventLog:
    """Imports a CSV, TSV or parquet table, or a folder or pattern of them; a log of that name is replaced.

    What was read, dropped and found is in the log's `source`.

    Args:
      now: Unix seconds; times more than a day later lie in the future. Default: the clock.

    Raises:
      UserError: options or files are wrong, or there are bad rows that are not to be dropped. Nothing is written then.
    """
    options = _checked(name, items, options)
    logs = (pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()) / "logs"
    files = event_files.EventFiles(events)
    roles = event_files.roles(files, options.columns, ROLES, required=("user", "time"), flag="--columns")
    if not {"item", "query"} & set(roles):
        event_files.roles(files, options.columns, ROLES, required=("item",), flag="--columns")
    table = None
    if items is not None:
        table = item_file.read(pathlib.Path(items), options.item_columns, options.tags, options.vectors, options.drop)
    _make(logs)
    with tempfile.TemporaryDirectory(prefix=f".{name}.import.", dir=logs) as folder:
        gathered = _Gathered(files, roles, options, pathlib.Path(folder), now)
        gathered.read()
        _labels(sorted(gathered.vocabularies["action"].texts()), options.labels)  # refuses now rather than at the end
        gathered.sort()
        return _write(logs / name, name, gathered, table, items)


def _checked(name: str, items, options: Options) -> Options:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"log name {name!r} may hold letters, digits and . _ - alone: give another --name")
    if name in SOURCES:
        raise UserError(f"log name {name!r} stands for the published data set: give another --name")
    if options.time_unit not in timestamps.KINDS:
        raise UserError(f"--time-unit {options.time_unit!r} is none of {', '.join(timestamps.KINDS)}")
    if wrong := [kind for kind in options.drop if kind not in (*KINDS, "all")]:
        near = event_files.nearest(wrong[0], KINDS)
        raise UserError(f"--drop {wrong[0]!r} is none of {', '.join(KINDS)}, all{near}")
    for flag, given in (
        ("--item-columns", options.item_columns),
        ("--tags", options.tags),
        ("--vectors", options.vectors),
    ):
        if given and items is None:
            raise UserError(f"{flag} needs --items, the table of items")
    names = [*options.tags, *options.vectors]
    if wrong := [name for name in names if not MATRIX_NAME.fullmatch(name) or names.count(name) > 1]:
        raise UserError(f"matrix {wrong[0]!r}: names hold letters, digits, - and _ alone, and come once")
    drop = frozenset(KINDS) if "all" in options.drop else frozenset(options.drop)
    return dataclasses.replace(options, drop=drop)


def _make(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


class _Vocabulary:
    """Distinct texts, numbered from 1 in the order in which they come."""

    def __init__(self):
        import polars as pl

        self._known = pl.DataFrame(schema={"value": pl.String, "code": pl.Int32})

    def codes(self, values: pl.Series) -> np.ndarray:
        """The number of each text, int32 (n,); null is 0."""
        import polars as pl

        values = values.alias("value").to_frame()
        fresh = values.drop_nulls().unique(maintain_order=True).join(self._known, on="value", how="anti")
        numbers = pl.int_range(len(self) + 1, len(self) + 1 + pl.len(), dtype=pl.Int32).alias("code")
        self._known = pl.concat([self._known, fresh.with_columns(numbers)], rechunk=True)
        found = values.join(self._known, on="value", how="left", maintain_order="left")
        return found["code"].fill_null(0).to_numpy()

    def __len__(self) -> int:
        return len(self._known)

    def texts(self) -> list[str]:
        """All texts; the one with number n stands at n - 1."""
        return self._known["value"].to_list()


class _Gathered:
    """What is known of the events while they are read and sorted."""

    def __init__(self, files, roles: dict[str, str], options: Options, folder: pathlib.Path, now: float | None):
        self.files, self.roles, self.options, self.folder = files, roles, options, folder
        self.vocabularies = {role: _Vocabulary() for role in ("user", "item", "query", "action")}
        self.problems, self.census = Problems(options.drop), timestamps.Census(now)
        self.rows = self.words = self.late = self.split = self.inherited = 0
        self.left_out: dict[str, int] = {}
        self.example = ""  # the first time that cannot be read

    # --- reading: text to codes

    def read(self) -> None:
        """All pieces of the files, to one store in the order of rows."""
        self.store = sorted_events.Store(self.folder, "all")
        names = list(dict.fromkeys(self.roles.values()))
        with tqdm(total=self.files.bytes, desc="read", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            for piece in self.files.pieces(names):
                for reason, rows in piece.broken.items():
                    self.problems.add("bad-lines", f"with {reason}", rows)
                    self.rows += len(rows)
                self.rows += len(piece.rows)
                self._encode(piece)
                bar.update(piece.size)
        if not self.rows:
            raise UserError(f"{self.files.where}: there are no rows after the header")

    def _encode(self, piece: event_files.Piece) -> None:
        import polars as pl

        columns = {role: piece.columns[name] for role, name in self.roles.items()}
        time = columns.pop("time")
        if not (isinstance(time.dtype, pl.Date | pl.Datetime) or time.dtype.is_integer() or time.dtype.is_float()):
            time = self._text(time, "time")
        number, form = timestamps.parse(time)
        shown = columns.pop("shown", None)
        columns = {role: self._text(column, role) for role, column in columns.items()}
        absent = {role: column.is_null().to_numpy() for role, column in columns.items()}
        everywhere = np.ones(len(piece.rows), bool)
        faults = {
            "without a user": absent["user"],
            "with neither an item nor a query": absent.get("item", everywhere) & absent.get("query", everywhere),
            "without an action": absent.get("action", ~everywhere),
            "without a time": form == timestamps.MISSING,
        }
        keep = everywhere
        for reason, wrong in faults.items():
            self.problems.add("missing", reason, piece.rows[wrong & keep])
            keep = keep & ~wrong
        self.census.add(number[keep], form[keep], piece.rows[keep])
        if (odd := keep & (form == timestamps.UNREADABLE)).any():
            self.example = self.example or str(time[int(odd.argmax())])

        events = np.zeros(int(keep.sum()), sorted_events.EVENT)
        events["row"], events["time"], events["form"] = piece.rows[keep], number[keep], form[keep]
        columns = {role: column.filter(keep) for role, column in columns.items()}
        for role, vocabulary in self.vocabularies.items():
            if role in columns:
                events[role] = vocabulary.codes(columns[role])
        if "action" not in columns:
            events["action"] = self.vocabularies["action"].codes(pl.Series(["interact"]))[0]
        elif len(self.vocabularies["action"]) > MAX_ACTIONS:
            raise UserError(
                f"{self.files.where}: column {self.roles['action']!r} holds more than {MAX_ACTIONS:,} different actions: "
                "name the right one with --columns action=..."
            )
        if "request" in columns:
            pairs = pl.DataFrame({"user": events["user"], "request": columns["request"]})
            hashes = pairs.hash_rows().to_numpy()
            events["request"] = np.where(columns["request"].is_null().to_numpy(), 0, np.maximum(hashes, 1))
        lists = np.zeros(0, np.int32)
        if shown is not None:
            events["shown"], lists = self._lists(shown.filter(keep))
        self.store.append(events, lists)

    def _text(self, column: pl.Series, role: str) -> pl.Series:
        """Text with single spaces, null where it is missing."""
        column = event_files.text(column, f"{self.files.where}: column {self.roles[role]!r}")
        column = column.str.strip_chars()
        if role == "query":
            column = column.str.replace_all(r"\s+", " ")
        missing = column.is_in(MISSING).fill_null(False)
        self.words += int((missing & (column != "")).sum())
        return column.set(missing, None)

    def _lists(self, shown: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the shown lists, (n,), and the codes of their items one list after the other."""
        import polars as pl

        joined = event_files.text(shown, f"{self.files.where}: column {self.roles['shown']!r}", lists="|")
        each = pl.DataFrame({"item": joined.str.split("|")}).with_row_index("event").explode("item")
        each = each.with_columns(pl.col("item").str.strip_chars())
        each = each.filter(pl.col("item").is_not_null() & ~pl.col("item").is_in(MISSING))
        return np.bincount(each["event"].to_numpy(), minlength=len(shown)), self.vocabularies["item"].codes(
            each["item"]
        )

    # --- sorting

    def sort(self) -> None:
        """Deals the events out to sorted buckets without bad rows, or refuses the files."""
        where = f"{self.files.where}: column {self.roles['time']!r}"
        self.kind = self.census.decide(self.options.time_unit, where, self.files.place)
        texts = self.vocabularies["user"].texts()
        self.users = ordered(texts)
        place = {user: i for i, user in enumerate(self.users)}
        rank = np.zeros(len(texts) + 1, np.int32)
        rank[1:] = [place[user] for user in texts]
        self.buckets = sorted_events.deal(self.store, rank, self.folder, self._convert)
        for bucket in tqdm(self.buckets, desc="sort", disable=None, leave=False):
            events, shown = bucket.load()
            self.late += sorted_events.late(events)
            events, shown = sorted_events.sort(events, shown)
            again = sorted_events.repeats(events)
            self.problems.add("duplicates", "that repeat an earlier row", events["row"][again])
            events, shown = sorted_events.take(events, shown, np.delete(np.arange(len(events)), again))
            self.split += sorted_events.split_requests(events)
            self.inherited += sorted_events.inherit_queries(events)
            bucket.replace(events, shown)
        self.problems.check(self.files.where, self.rows, self.files.place)
        self._leave_out_rare()

    def _convert(self, events: np.ndarray) -> np.ndarray:
        events["time"], wrong = timestamps.seconds(events["time"], events["form"], self.kind, self.census.latest)
        for number, reason in enumerate(timestamps.REASONS[1:], 1):
            example = self.example if number == 1 else ""
            self.problems.add("bad-times", f"with {reason}", events["row"][wrong == number], example)
        return wrong == 0

    def _leave_out_rare(self) -> None:
        """Leaves out rare items with their events, then users with few events."""
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
            shown = np.where(rare[shown], 0, shown).astype(np.int32)
            events, shown = sorted_events.take(events, shown, ~rare[events["item"]])
            few = np.bincount(events["user"], minlength=len(self.users)) < least_user
            events, shown = sorted_events.take(events, shown, ~few[events["user"]])
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


def _write(path: pathlib.Path, name: str, gathered: _Gathered, table: item_file.Items | None, items) -> EventLog:
    options = gathered.options
    used = {role: gathered.count(role) for role in ("item", "query", "action")}
    if not used["action"].any():
        raise UserError(f"{gathered.files.where}: no event is left of {gathered.rows:,} rows")
    with_events = used["item"].copy()
    used["item"] += gathered.shown()
    tables, codes = {}, {}
    for role, count in used.items():
        texts = gathered.vocabularies[role].texts()
        there = [text for text, events in zip(texts, count[1:].tolist()) if events]
        tables[role] = ["", *ordered([*there, *table.ids] if role == "item" and table else there)]
        number = {text: i for i, text in enumerate(tables[role])}
        codes[role] = np.array([0, *(number.get(text, 0) for text in texts)], np.int32)
    item_ids, queries, actions = tables["item"], tables["query"], tables["action"]
    if len(item_ids) < 2:
        raise UserError(f"{gathered.files.where}: no event has an item; a log needs items")
    described = item_file.describe(item_ids, table)
    item_matrices, query_matrices = dict(described.matrices), {}
    texts = {"item_texts": described.texts, "text_encoder": None}
    encoder = options.text or ("tfidf" if table and any((*table.titles, *table.texts)) else "none")
    if encoder != "none":
        words = described.texts if table else [""]  # an item without a row goes by its id, which is no text
        texts["text_encoder"], found = text.matrices(encoder, words, queries, path.parent.parent / "text-cache")
        for kind, matrix in found.items():
            (item_matrices if kind == "item" else query_matrices)["text"] = matrix
    source = {
        "origin": gathered.files.where,
        "items": str(items) if items is not None else None,
        "columns": gathered.roles,
        "unused_columns": [column for column in gathered.files.names if column not in gathered.roles.values()],
        "rows": gathered.rows,
        "settings": {"text": text.identity(encoder)} if encoder != "none" else {},
        "time_unit": gathered.kind,
        "time_unit_was_given": options.time_unit != "auto",
        "zoneless_times": gathered.census.zoneless if gathered.kind == "iso" else 0,
        "dropped": gathered.problems.counts(),
        "left_out": gathered.left_out,
        "out_of_order": gathered.late,
        "split_requests": gathered.split,
        "inherited_queries": gathered.inherited,
        "missing_words": gathered.words,
        "items_without_row": described.without_row if table else 0,
        "items_without_events": len(item_ids) - 1 - int((with_events[1:] > 0).sum()),
    }
    return event_log.write(
        path,
        name=name,
        users=gathered.records(codes, len(item_ids)),
        item_ids=item_ids,
        item_titles=described.titles,
        queries=queries,
        actions=actions,
        labels=_labels(actions[1:], options.labels),
        item_matrices=item_matrices,
        query_matrices=query_matrices,
        item_columns=described.columns,
        source=source,
        **texts,
    )


def _labels(actions: list[str], given: typing.Mapping[str, typing.Sequence[str]]) -> dict[str, list[int]]:
    """Action ids of each label. The first, "engage", tells whether an item is chosen at all: by any action."""
    number = {action: i for i, action in enumerate(actions, 1)}
    labels = {"engage": list(number.values())}
    for name, names in given.items():
        if wrong := [action for action in names if action not in number]:
            near = event_files.nearest(wrong[0], actions)
            raise UserError(f"--label {name}: there is no action {wrong[0]!r}{near}; there are {', '.join(actions)}")
        labels[name] = sorted({number[action] for action in names})
    return labels
