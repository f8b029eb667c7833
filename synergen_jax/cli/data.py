"""`synergen data ...`: prepare, import, list and show event logs; data_growth.py has the commands that change one."""

from __future__ import annotations

import argparse
import collections
import pathlib
import time
import typing

from synergen_jax.cli import data_growth
from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say

if typing.TYPE_CHECKING:
    from data_pipelines.event_log.event_log import EventLog


def declare(commands: shared.Commands) -> None:
    """Adds the command and its actions."""
    data = commands.add_parser("data", help="Prepare, import, change, list and show event logs.", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    _declare_prepare(actions)
    _declare_import(actions)
    data_growth.declare(actions)
    shared.command(
        actions, "list", "List the event logs that there are, and their versions.", "synergen data list", list_
    )
    described = "Describe an event log, and show a few of its users."
    made = shared.command(actions, "show", described, "synergen data show shop", show)
    made.add_argument("name", help="name of a log, or its folder")
    made.add_argument("--user", action="append", help="id of a user to show; repeatable")


def _declare_prepare(actions: shared.Commands) -> None:
    made = shared.command(
        actions,
        "prepare",
        "Fetch, check and convert a data set into an event log.",
        "synergen data prepare ml-1m-search --query-share 0.3 --seed 0 --text tfidf\n"
        "  synergen data prepare path/to/atomic-files --text st:path/to/model --matrix image=image.npy",
        prepare,
        leaves=True,
    )
    made.add_argument(
        "name",
        help="ml-100k, ml-1m, ml-100k-search or ml-1m-search (with generated queries); with --films ml-1m-tmdb "
        "(queries of TMDB's keywords and actors); with --source trivago, amazon-beauty-search, amazon-reviews or lastfm "
        "(docs/public-data.md); or a folder of RecBole atomic files",
    )
    made.add_argument(
        "--source", type=pathlib.Path, help="a copy that you have: folder, zip, wheel, parquet or .json.gz"
    )
    made.add_argument("--force", action="store_true", help="convert again even if the log is there")
    made.add_argument(
        "--text",
        metavar="ENCODER",
        help="tfidf, tfidf:WIDTH, st:NAME or st:DIRECTORY of a sentence-transformers model, or none "
        "(default: none for trivago, plain MovieLens, and atomic files without titles or tags, else tfidf)",
    )
    made.add_argument("--query-share", type=float, help="share of events that become searches (default: 0.3)")
    made.add_argument("--seed", type=int, help="seed of generated queries, or of the order of lastfm (default: 0)")
    made.add_argument(
        "--films",
        type=pathlib.Path,
        metavar="FILE.csv",
        help="films by their numbers in MovieLens-1M, with TMDB's keywords and actors, for ml-1m-tmdb",
    )
    made.add_argument(
        "--matrix",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a further matrix of items: a row an item after a row of zeros, or rows named by FILE.ids.txt; repeatable",
    )


def _declare_import(actions: shared.Commands) -> None:
    own = shared.command(
        actions,
        "import",
        "Import events of your own, a table in CSV, TSV, JSON lines or parquet, into an event log (docs/your-data.md).",
        "synergen data import events.csv --name shop --items items.csv --tags category --label bought=purchase\n"
        "  synergen data import 'logs/*.parquet' --name shop --columns user=visitor,item=sku --drop bad-times,duplicates",
        import_,
        leaves=True,
    )
    data_growth.events(own)
    own.add_argument("--name", help="name of the log (default: that of the file); a log of that name is replaced")
    data_growth.table(own)
    own.add_argument(
        "--part-files",
        action="store_true",
        help='train, valid and test in the names of files tell the split that data.split "given" takes',
    )
    own.add_argument(
        "--order", default="time", help="time, or file: there are no times, and events come in the order of the file"
    )
    own.add_argument(
        "--force", action="store_true", help="replace a log that runs were trained on, which then are of no more use"
    )
    _what_a_log_has(own)
    _beam(own)


def _what_a_log_has(own: argparse.ArgumentParser) -> None:
    """Arguments that say what is made of the rows."""
    own.add_argument(
        "--label", metavar="NAME=ACTION+ACTION", help="a label to rank by; repeatable", action="append", default=[]
    )
    own.add_argument(
        "--tags",
        metavar="COLUMN,...",
        help="columns of the items whose values, set apart by |, are tags",
        action="append",
        default=[],
    )
    own.add_argument(
        "--text",
        default="",
        metavar="ENCODER",
        help="tfidf, tfidf:WIDTH, st:NAME, st:DIRECTORY, or none (default: tfidf if items or queries have words)",
    )
    own.add_argument("--min-item-events", type=int, default=1, metavar="N", help="leave out items with fewer events")
    own.add_argument("--min-user-events", type=int, default=1, metavar="N", help="then, users with fewer events")
    own.add_argument(
        "--k-core", type=int, metavar="N", help="leave out items and users with fewer events until none is left"
    )


def _beam(own: argparse.ArgumentParser) -> None:
    """Arguments of an import on many machines."""
    own.add_argument(
        "--beam", metavar="RUNNER", help="import on many machines by this runner of Apache Beam (docs/beam.md)"
    )
    own.add_argument(
        "--beam-options", metavar="'--OPTION=VALUE ...'", help="the runner's options: --beam-options='--project=p ...'"
    )
    own.add_argument(
        "--beam-folder", metavar="FOLDER", help="for intermediate files; all workers must reach it (default: the log's)"
    )


def _summary(log: EventLog, start: float) -> dict[str, typing.Any]:
    unknown, first = log.unknown_items
    summary = {"log": log.name, **log.summary(), "unknown_items": unknown, "path": str(log.path), "source": log.source}
    counts = ", ".join(f"{summary[name]:,} {name}" for name in ("events", "users", "items", "queries"))
    say(f"{log.name}: {counts}, {summary['from']} to {summary['to']} ({time.perf_counter() - start:.1f} s)")
    if (encoder := log.text_encoder()) is not None:
        kinds = {"items": log.item_matrices, "queries": log.query_matrices}
        of = " and ".join(kind for kind, matrices in kinds.items() if "text" in matrices)
        say(f"matrix text: of {of}, {encoder.width} wide, by {log.source['settings']['text']}")
    if unknown:
        names = ", ".join(first) + f" and {unknown - len(first):,} more" * (unknown > len(first))
        say(
            f"{unknown:,} items have no event, and no text, tag or vector to go by: {names}: they are never recommended"
        )
    return summary


def prepare(arguments, _) -> dict[str, typing.Any]:
    """`synergen data prepare`."""
    from data_pipelines.sources.prepare import logs_folder
    from data_pipelines.sources.prepare import prepare as prepare_log

    start = time.perf_counter()
    before = {path: path.stat().st_mtime_ns for path in logs_folder(arguments.data_dir).glob("[!.]*/log.json")}
    log = prepare_log(
        arguments.name,
        source=arguments.source,
        data_dir=arguments.data_dir,
        force=arguments.force,
        encoder=arguments.text,
        query_share=arguments.query_share,
        seed=arguments.seed,
        matrix=arguments.matrix,
        films=arguments.films,
    )
    summary = _summary(log, start)
    if log.query_note:
        say(log.query_note)
    if log.given_split is not None:
        say(f"parts: {_parts(log)}, for data.split given")
    for what in ("ignored_files", "unused_columns"):
        if passed_over := log.source.get(what):
            say(f"not read: {_few(passed_over)}")
    for name, about in log.source.get("matrices", {}).items():
        without = about["items_without"]
        say(f"matrix {name}: {about['width']} wide, {without:,} of {summary['items']:,} items without a row (zeros)")
    about = log.path / "log.json"
    replaced = before.get(about, 0) not in (0, about.stat().st_mtime_ns)
    say(f"event log: {log.path}{', in place of the one that was there' if replaced else ''}")
    return summary


def import_(arguments, _) -> dict[str, typing.Any]:
    """`synergen data import`."""
    from data_pipelines.importing import beam_log, own_log
    from data_pipelines.sources.prepare import logs_folder

    start = time.perf_counter()
    name = arguments.name or pathlib.Path(arguments.events.rstrip("/")).name.partition(".")[0]
    options = own_log.Options(
        columns=data_growth.pairs("--columns", arguments.columns),
        item_columns=data_growth.pairs("--item-columns", arguments.item_columns),
        time_unit=arguments.time_unit,
        drop=data_growth.words(arguments.drop),
        labels={
            label: data_growth.words([actions], "+")
            for label, actions in data_growth.pairs("--label", arguments.label, "").items()
        },
        tags=data_growth.words(arguments.tags),
        vectors={
            matrix: pathlib.Path(path) for matrix, path in data_growth.pairs("--vectors", arguments.vectors).items()
        },
        text=arguments.text,
        min_item_events=arguments.min_item_events,
        min_user_events=arguments.min_user_events,
        k_core=arguments.k_core,
        part_files=arguments.part_files,
        lists=arguments.lists,
        order=arguments.order,
    )
    was_there = (logs_folder(arguments.data_dir) / name / "log.json").is_file()
    settings = {"name": name, "items": arguments.items, "options": options, "data_dir": arguments.data_dir}
    settings["force"] = arguments.force
    if arguments.beam:
        beam = {"runner": arguments.beam, "beam_options": arguments.beam_options or "", "folder": arguments.beam_folder}
        log = beam_log.import_log(arguments.events, **settings, **beam)
    elif arguments.beam_options or arguments.beam_folder:
        raise UserError("--beam-options and --beam-folder need --beam RUNNER")
    else:
        log = own_log.import_log(arguments.events, **settings)
    summary = _summary(log, start)
    for line in _notes(log):
        say(f"  {line}")
    say(f"event log: {log.path}{', in place of the one that was there' if was_there else ''}")
    return summary


def _few(names: typing.Sequence[str]) -> str:
    """The first five of some names, and how many more there are."""
    return ", ".join(names[:5]) + f" and {len(names) - 5:,} more" * (len(names) > 5)


def _parts(log: EventLog) -> str:
    """How many events each part of a log's given split has."""
    import numpy as np

    from data_pipelines.files.parts import NAMES

    assert log.given_split is not None
    sizes = np.diff(log.given_split, axis=1, prepend=0, append=log.lengths[:, None]).sum(axis=0, dtype=np.int64)
    return ", ".join(f"{size:,} {name}" for name, size in zip(NAMES, sizes.tolist()))


def _notes(log: EventLog) -> typing.Iterator[str]:
    """What an import did to the rows, line by line."""
    from data_pipelines.importing.bad_rows import KINDS

    source = log.source
    used = {role: name for role, name in source["columns"].items() if role != "time" or not source["note"]}
    columns = ", ".join(role if role == name else f"{role}={name}" for role, name in used.items())
    yield f"columns: {columns}" + (
        f"; not used: {', '.join(source['unused_columns'])}" * bool(source["unused_columns"])
    )
    if ignored := source["ignored_files"]:
        yield f"in {source['origin']}, not read: {_few(ignored)}"
    kind = "ISO 8601" if source["time_unit"] == "iso" else source["time_unit"]
    zoneless = f"; {source['zoneless_times']:,} of {source['rows']:,} name no zone and are taken for UTC"
    told = "as was given" if source["time_unit_was_given"] else "told from the whole column"
    yield source["note"] or f"times: {kind}, {told}" + zoneless * bool(source["zoneless_times"])
    dropped = ", ".join(f"{count:,} with {KINDS[kind]}" for kind, count in source["dropped"].items())
    yield f"rows: {source['rows']:,} read, {source['out_of_order']:,} out of order were sorted" + (
        f"; dropped: {dropped}" if dropped else "; none dropped"
    )
    if left_out := source["left_out"]:
        stay = "; items of the table stay in the catalogue, without these events" * bool(source["items"])
        counts = ", ".join(f"{left_out[what]:,} {what}" for what in ("items", "users", "events"))
        core = left_out.get("k_core")
        why, rounds = (f"by a {core}-core", f", in {left_out['rounds']:,} rounds") if core else ("as rare", "")
        yield f"left out {why}: {counts}{rounds}{stay}"
    if log.given_split is not None:
        yield f"parts: {_parts(log)}, for data.split given"
    if source["missing_words"]:
        yield f"{source['missing_words']:,} values written NULL, NaN, None or \\N count as missing"
    if source["inherited_queries"]:
        yield f"{source['inherited_queries']:,} events without a query have that of their request"
    if source["split_requests"]:
        yield f"{source['split_requests']:,} requests that other events interrupt go on as requests of their own"
    for what, ids in (("users", log.user_ids), ("items", log.item_ids)):
        there = set(ids)
        if floats := [one for one in ids if one.endswith(".0") and one[:-2] in there]:
            yield f"{len(floats):,} {what} like {floats[0]!r} stand beside {floats[0][:-2]!r}, and are taken for others"
    if source["items"]:
        yield (
            f"items: {source['items_without_row']:,} that {source['items']} lacks go by their ids, "
            f"{source['items_without_events']:,} have no event yet"
        )
        if not source["items_with_events_and_row"]:
            yield f"no item of the events is in {source['items']}: are the ids of both written alike?"
    labels = {name: [log.actions[i] for i in ids] for name, ids in log.labels.items()}
    yield "labels: " + ", ".join(f"{name} = {'+'.join(actions)}" for name, actions in labels.items())
    if len(log.actions) > 2 and len(labels) == 1:
        yield f"to rank for some actions alone, import again with a label: --label NAME={'+'.join(log.actions[1:3])}"


def list_(arguments, _) -> dict[str, typing.Any]:
    """`synergen data list`: all versions, and how many runs were trained on each."""
    from data_pipelines.event_log import versions
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import logs_folder
    from synergen_jax.evaluation import report

    logs = logs_folder(arguments.data_dir)
    found = []
    for path in sorted(logs.glob("[!.]*/log.json")):
        try:
            log = EventLog.load(path.parent)
            needed = [str(run) for run in versions.needing(path.parent)]
            found.append({"log": path.parent.name, "version": log.version, **log.summary(), "runs": needed})
        except UserError as error:
            found.append({"log": path.parent.name, "error": str(error)})
    columns = ("log", "events", "users", "items", "queries", "from", "to")
    whole = [{name: row[name] for name in columns} | {"runs": len(row["runs"])} for row in found if "error" not in row]
    say(report.table(whole) if whole else f"no event log in {logs}")
    for row in found:
        if "error" in row:
            say(row["error"])
    return {"logs": found}


def show(arguments, _) -> dict[str, typing.Any]:
    """`synergen data show`: lengths of users, counts of actions, and the last events of a few users."""
    import numpy as np

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.importing import history
    from data_pipelines.sources.prepare import locate
    from synergen_jax.evaluation import report

    log = EventLog.load(locate(arguments.name, arguments.data_dir))
    summary = _summary(log, time.perf_counter())
    shares = (1, 10, 50, 90, 99, 100)
    lengths = dict(zip(map(str, shares), np.percentile(log.lengths, shares).astype(int).tolist()))
    say("events a user, by percentile: " + ", ".join(f"{share}%: {value:,}" for share, value in lengths.items()))
    sample = np.unique(np.linspace(0, len(log) - 1, min(len(log), 1000)).astype(int)).tolist()
    count = collections.Counter()
    searches = shown = 0
    for user in sample:
        record = log[user]
        count.update(record["action"].tolist())
        searches += int((record["query"] > 0).sum())
        shown += len(record["shown_item"])
    total = sum(count.values())
    say(
        f"of {total:,} events of {len(sample):,} users: "
        + ", ".join(f"{log.actions[i]} {n:,}" for i, n in count.most_common())
    )
    say(f"with a query: {searches:,}; shown items: {shown:,}")
    for user in arguments.user or [log.user_ids[i] for i in sample[:: max(1, len(sample) // 3)][:3]]:
        record = log[log.find_user(user)]
        rows = history.last_events(log, record)
        say(f"\nuser {user}: {len(record['item']):,} events, the last {len(rows)}:\n{report.table(rows)}")
    actions = {log.actions[i]: n for i, n in count.most_common()}
    return {**summary, "labels": log.labels, "lengths": lengths, "sample": {"users": len(sample), "actions": actions}}
