"""`synergen recommend`, `search`, `rank`, `similar` and `vectors`: questions to a trained model, one or millions."""

from __future__ import annotations

import argparse
import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say

OUT = "the answers: FILE.parquet or FILE.jsonl; a killed command goes on where it stopped"


def declare(commands: shared.Commands) -> None:
    """Adds the commands."""
    recommend = shared.command(
        commands,
        "recommend",
        "Recommend items to a user of the log, to a history from a file, to nobody in particular, or to many users.",
        "synergen recommend runs/ml-100k --user 196 -k 10\n  synergen recommend runs/ml-100k --history history.csv\n"
        "  synergen recommend runs/ml-100k --users all --out answers.parquet",
        run,
    )
    _question(recommend)
    recommend.set_defaults(query=None)
    search = shared.command(
        commands,
        "search",
        "Search the catalogue for a user of the log, for a history from a file, for nobody in particular, or for many users.",
        'synergen search runs/ml-100k-search --query "90s comedy" --user 196 -k 10\n'
        "  synergen search runs/ml-100k-search --users requests.csv --out answers.jsonl",
        run,
    )
    search.add_argument("--query", help="what is searched for, in words")
    _question(search)
    _declare_others(commands)


def _question(command: argparse.ArgumentParser) -> None:
    """Arguments that say for whom items are wanted, which ones, and how many."""
    _opened(command)
    command.add_argument("--user", help="id of a user in the log")
    command.add_argument(
        "--history",
        type=pathlib.Path,
        help="a table, in any form that an import takes, with a column `item` or `query`, and if you like `time`, `action`, "
        "`request`; beside --user it joins what the log has",
    )
    command.add_argument(
        "--users",
        metavar="FILE|all",
        help="many users: a table with a column `user`, and if you like `query`; needs --out",
    )
    command.add_argument("--out", type=pathlib.Path, metavar="FILE", help=f"with --users, {OUT}")
    command.add_argument("--order", default="", help="order retrieved items by this ranked label's probability")
    _which(command)
    command.add_argument("--keep-seen", action="store_true", help="what a user had may come back")


def _opened(command: argparse.ArgumentParser) -> None:
    """Arguments that say which run is asked, on which version of its log."""
    command.add_argument("workdir", type=pathlib.Path)
    shared.log_version(command, "the newest version")


def _which(command: argparse.ArgumentParser) -> None:
    """Arguments that say which items may come back, how many and when."""
    command.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    command.add_argument("--at", type=int, help="time of the request, Unix seconds (default: that of the last event)")
    command.add_argument(
        "--new-items", type=pathlib.Path, help="CSV or parquet of items (item, title, text) that came after training"
    )
    command.add_argument(
        "--items", type=pathlib.Path, metavar="FILE", help="a table with a column `item`: no others come back"
    )
    command.add_argument("--exclude", type=pathlib.Path, metavar="FILE", help="a table of items that do not come back")


def _declare_others(commands: shared.Commands) -> None:
    rank = shared.command(
        commands,
        "rank",
        "Score pairs of a user and an item: retrieval's score, and the probability of each ranked label.",
        "synergen rank runs/ml-100k --pairs pairs.csv --out scores.parquet",
        rank_pairs,
        leaves=True,
    )
    _to_file(rank)
    rank.add_argument(
        "--pairs", type=pathlib.Path, required=True, help="a table with columns `user`, `item`, and if you like `query`"
    )
    similar = shared.command(
        commands,
        "similar",
        "The items whose vectors are most like an item's.",
        "synergen similar runs/ml-100k --item 50 -k 10",
        similar_items,
    )
    _opened(similar)
    similar.add_argument("--item", required=True, help="original id")
    similar.add_argument("-k", type=int, default=10, help="how many items (default: 10)")
    vectors = shared.command(
        commands,
        "vectors",
        "Write the vectors of items, users or queries; the inner product of an item's and another's is its retrieval score.",
        "synergen vectors runs/ml-100k --of items --out items.parquet",
        write_vectors,
        leaves=True,
    )
    _to_file(vectors)
    vectors.add_argument("--of", default="items", help="items, users or queries (default: items)")


def _to_file(command: argparse.ArgumentParser) -> None:
    """Arguments of commands that always answer to a file."""
    _opened(command)
    command.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help=OUT)
    command.add_argument("--at", type=int, help="time of the requests, Unix seconds (default: that of the last event)")


def _asked(arguments):
    """The question that arguments ask."""
    from data_pipelines.importing import named_rows
    from synergen_jax.runs.served import Question

    ids = lambda path: named_rows.read(path, ["item"]).columns["item"]
    return Question(
        arguments.k,
        arguments.at,
        arguments.order,
        arguments.query or "",
        arguments.new_items,
        None if arguments.items is None else tuple(ids(arguments.items)),
        () if arguments.exclude is None else tuple(ids(arguments.exclude)),
        arguments.keep_seen,
    )


def _open(arguments):
    from synergen_jax.runs.run import open_run

    opened = open_run(arguments.workdir, [], arguments.data_dir, log=arguments.log, newest=True)
    if (was := opened.run.trained_on) is not None:
        say(f"{opened.run.log.name}, version {opened.run.log.version}; the run was trained on version {was.version}")
    return opened


def run(arguments, _) -> dict[str, typing.Any]:
    """Answers a user of the log, a history from a file, nobody in particular, or many users."""
    _check(arguments)
    question = _asked(arguments)
    opened = _open(arguments)
    if arguments.users is None:
        return _one(arguments, opened, question)
    from synergen_jax.runs import ask_many

    return ask_many.recommend(opened, arguments.users, question, arguments.out, searches=arguments.command == "search")


def _check(arguments) -> None:
    """Refuses arguments that do not go together."""
    one = arguments.user is not None or arguments.history is not None
    if arguments.users is not None and (one or arguments.out is None):
        raise UserError("--users needs --out FILE, and neither --user nor --history beside it")
    if arguments.users is None and arguments.out is not None:
        raise UserError("--out needs --users FILE|all: one user's answer is printed (--json for programs)")
    if arguments.command == "search" and arguments.query is None and arguments.users in (None, "all"):
        raise UserError("search needs --query, or --users FILE with a column `query`")
    if arguments.query == "":
        raise UserError("--query is empty: `synergen recommend` answers without a query")


def _one(arguments, opened, question) -> dict[str, typing.Any]:
    """Answers one user, and shows it."""
    from data_pipelines.importing import history
    from synergen_jax.runs import ask

    log = opened.run.log
    record, name, assumed, notes = None, "without a history", {}, []
    if arguments.user is not None:
        record, name = log[log.find_user(arguments.user)], f"user {arguments.user}"
    if arguments.history is not None:
        name = f"{name} with {arguments.history}" if record is not None else str(arguments.history)
        record, assumed, notes = history.read(arguments.history, log, record)
    found = ask.answer(opened.run, opened.params, record, name, question, notes)
    show(found)
    return found.as_json() | ({"assumed_actions": assumed} if assumed else {})


def rank_pairs(arguments, _) -> dict[str, typing.Any]:
    """`synergen rank`."""
    from synergen_jax.runs import ask_many
    from synergen_jax.runs.served import Question

    return ask_many.rank(_open(arguments), arguments.pairs, Question(at=arguments.at), arguments.out)


def similar_items(arguments, _) -> dict[str, typing.Any]:
    """`synergen similar`."""
    from synergen_jax.evaluation import report
    from synergen_jax.runs import ask_many
    from synergen_jax.runs.served import Question

    found = ask_many.similar(_open(arguments), arguments.item, Question(arguments.k))
    say(f"like {arguments.item}, {found['title']}\n{report.table(found['similar'])}")
    return found


def write_vectors(arguments, _) -> dict[str, typing.Any]:
    """`synergen vectors`."""
    from synergen_jax.runs import ask_many
    from synergen_jax.runs.served import Question

    return ask_many.vectors(_open(arguments), arguments.of, Question(at=arguments.at), arguments.out)


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
