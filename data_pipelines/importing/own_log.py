"""From a table of events of your own, and perhaps one of items, to an event log, in bounded memory.

One pass reads the table piece by piece, counts what is wrong with it and keeps integer codes on disk; what the times count
is told from the whole column; then events are sorted bucket by bucket and written user by user. In memory are only the
distinct ids and queries, which an event log holds anyway.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np

from data_pipelines.event_log import event_log, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import text
from data_pipelines.files import disk
from data_pipelines.importing import event_files, event_rows, item_table, row_shapes
from data_pipelines.importing.event_rows import ROLES, Found
from data_pipelines.importing.gathered import Gathered
from data_pipelines.importing.options import Options, check_name, checked
from data_pipelines.sources.interactions import ordered
from data_pipelines.sources.prepare import logs_folder
from synergen_jax.errors import UserError, nearest

COLUMNS = ("user", "query", "rank", "item", "title", "score")  # of tables of answers, beside those of the labels


def import_log(
    events: str | pathlib.Path,
    *,
    name: str,
    items: str | pathlib.Path | None = None,
    options: Options | None = None,
    data_dir: str | pathlib.Path | None = None,
    now: float | None = None,
    force: bool = False,
) -> EventLog:
    """Imports a table, or a folder or pattern of them (`event_files`); a log of that name is replaced, all versions of it.

    What was read, dropped and found is in the log's `source`.

    Args:
      now: Unix seconds; times more than a day later lie in the future. Default: the clock.
      force: replaces a log that runs were trained on, too.

    Raises:
      UserError: options or files are wrong, there are bad rows that are not to be dropped, or runs need the log of that
        name. Nothing is written then.
    """
    check_name(name)
    options = checked(items, options or Options())
    logs = logs_folder(data_dir)
    files = event_files.EventFiles(events)
    roles, table = opened(files, items, options)
    file_parts = files.by_part() if options.part_files else None
    make(logs)
    disk.remove_leftovers(logs)
    event_log.check_place(logs / name)  # now rather than at the end
    versions.refuse_needed(logs / name, f"importing {name} again", force)
    with disk.room(logs), disk.scratch(logs, name, "import") as folder:
        gathered = Gathered(files, roles, options, folder, now, file_parts)
        gathered.read()
        actions = sorted(gathered.vocabularies["action"].texts())
        make_labels(actions, options.labels)  # refuses now rather than at the end
        gathered.sort()
        log = _write(logs / name, name, gathered, table, items)
    versions.remove_others(log.path)
    return log


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


def _write(path: pathlib.Path, name: str, gathered: Gathered, table: item_table.Items | None, items) -> EventLog:
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
