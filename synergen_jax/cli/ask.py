"""`synergen recommend` and `synergen search`: one question to a trained model, answered for a person."""

from __future__ import annotations

import argparse
import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared


def declare(commands: shared.Commands) -> None:
    """Adds the commands."""
    recommend = shared.command(
        commands,
        "recommend",
        "Recommend items to a user of the log, to a history from a file, or to nobody in particular.",
        "synergen recommend runs/ml-100k --user 196 -k 10\n  synergen recommend runs/ml-100k --history history.csv",
        run,
    )
    _question(recommend)
    recommend.set_defaults(query=None)
    search = shared.command(
        commands,
        "search",
        "Search the catalogue for a user of the log, for a history from a file, or for nobody in particular.",
        'synergen search runs/ml-100k-search --query "90s comedy" --user 196 -k 10',
        run,
    )
    search.add_argument("--query", required=True, help="what is searched for, in words")
    _question(search)


def _question(command: argparse.ArgumentParser) -> None:
    """Arguments that say for whom items are wanted, which ones, and how many."""
    command.add_argument("workdir", type=pathlib.Path)
    who = command.add_mutually_exclusive_group()
    who.add_argument("--user", help="id of a user in the log")
    who.add_argument(
        "--history",
        type=pathlib.Path,
        help="CSV with a column `item` (original ids), and if you like `action`, `time`, `query`",
    )
    command.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    command.add_argument("--at", type=int, help="time of the request, Unix seconds (default: that of the last event)")
    command.add_argument("--order", default="", help="order retrieved items by this ranked label's probability")
    command.add_argument(
        "--new-items", type=pathlib.Path, help="CSV or parquet of items (item, title, text) that came after training"
    )


def run(arguments, _) -> dict[str, typing.Any]:
    """Answers a user of the log, a history from a file, or nobody in particular."""
    from data_pipelines.importing import history
    from synergen_jax.runs import ask
    from synergen_jax.runs.run import load

    query = arguments.query or ""
    question = ask.Question(arguments.k, arguments.at, arguments.order, query, arguments.new_items)
    run, params = load(arguments.workdir, arguments.data_dir)
    record, name, assumed = None, "without a history", {}
    if arguments.user is not None:
        record, name = run.log[run.log.find_user(arguments.user)], f"user {arguments.user}"
    elif arguments.history is not None:
        (record, assumed), name = history.read(arguments.history, run.log), str(arguments.history)
    kinds = {"item": "items", "query": "queries alone"}
    notes = [
        f"rows of {kinds[kind]} without an action are read as {action!r}, the commonest"
        for kind, action in assumed.items()
    ]
    found = ask.answer(run, params, record, name, question, notes)
    show(found)
    return found.as_json() | ({"assumed_actions": assumed} if assumed else {})


def show(answer) -> None:
    """Prints an answer: the history's last events, the items, and what there is to know of them."""
    from synergen_jax.evaluation import report

    question, name = answer.question, answer.name
    if answer.events:
        print(f"{name}: {answer.events} events, the last {len(answer.past)} of them:\n{report.table(answer.past)}\n")
    if answer.known:
        what = f"found for {question.query!r}, {name}"
    else:
        what = "recommended" if answer.events else f"recommended, {name}"
    if answer.rows:
        order = f", ordered by {question.order}" if question.order else ""
        print(f"{what}{order}\n{report.table(answer.rows)}", flush=True)
    for note in answer.notes:
        print(note, flush=True)
