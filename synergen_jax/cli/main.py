"""`synergen ...`: reads the command line, and turns wrong input into one clear line and exit status 2."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import signal
import sys
import typing

from synergen_jax import __version__
from synergen_jax.cli import pipes
from synergen_jax.errors import NotWritten, Stopped, UserError
from synergen_jax.processes import cluster as processes

FORMAT = argparse.RawDescriptionHelpFormatter

BENCHES = {
    "step": "a training step, its FLOPs and MFU, beside the feed's rate",
    "feed": "the feed beside the step",
    "catalogue": "the step by number of items",
    "readers": "reading an encoded context against the masked Transformer",
    "loss": "memory of the loss by number of negatives",
    "attention": "the attention backends that can run here",
    "packing": "several short histories in a row against padding",
    "all": "all of them",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one line, as for any wrong input."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser("synergen", description=__doc__, formatter_class=FORMAT)
    top.description = "SynerGen: search and recommendation, retrieval and ranking, in one Transformer."
    top.add_argument("--version", action="version", version=f"synergen-jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, example: str, to=commands) -> argparse.ArgumentParser:
        made = to.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=FORMAT,
            allow_abbrev=False,
        )
        made.add_argument(
            "--data-dir", type=pathlib.Path, help="where logs lie (default: $SYNERGEN_DATA or ~/.cache/synergen)"
        )
        made.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
        made.add_argument(
            "--no-compile-cache", action="store_true", help="keep no compiled programs in the data folder, nor use any"
        )
        return made

    quick = command(
        "quickstart",
        "MovieLens-100K from download to recommendations: prepare, train, evaluate, recommend.",
        "synergen quickstart",
    )
    quick.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("synergen-quickstart"))
    quick.add_argument(
        "--source", type=pathlib.Path, help="a copy of MovieLens-100K that you have: folder, zip or wheel"
    )

    data = commands.add_parser("data", help="Prepare, import, list and show event logs.", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    prepare = command(
        "prepare",
        "Fetch, check and convert a data set into an event log.",
        "synergen data prepare ml-1m-search --query-share 0.3 --seed 0 --text tfidf\n"
        "  synergen data prepare path/to/atomic-files --text st:path/to/model --matrix image=image.npy",
        actions,
    )
    prepare.add_argument(
        "name",
        help="ml-100k, ml-1m, ml-100k-search or ml-1m-search (with generated queries), trivago (with --source), or a "
        "folder of RecBole atomic files",
    )
    prepare.add_argument("--source", type=pathlib.Path, help="a copy that you have: folder, zip, wheel or parquet")
    prepare.add_argument("--force", action="store_true", help="convert again even if the log is there")
    prepare.add_argument(
        "--text",
        metavar="ENCODER",
        help="tfidf, tfidf:WIDTH, st:NAME or st:DIRECTORY of a sentence-transformers model, or none "
        "(default: tfidf for generated queries and for atomic files with titles or tags, else none)",
    )
    prepare.add_argument("--query-share", type=float, help="share of events that become searches (default: 0.3)")
    prepare.add_argument("--seed", type=int, help="seed of the generated queries (default: 0)")
    prepare.add_argument(
        "--matrix",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a further matrix of items: a row an item after a row of zeros, or rows named by FILE.ids.txt; repeatable",
    )

    own = command(
        "import",
        "Import events of your own, a CSV, TSV or parquet table with a row an event, into an event log (docs/your-data.md).",
        "synergen data import events.csv --name shop --items items.csv --tags category --label bought=purchase\n"
        "  synergen data import 'logs/*.parquet' --name shop --columns user=visitor,item=sku --drop bad-times,duplicates",
        actions,
    )
    own.add_argument("events", help="a .csv, .tsv or .parquet file, a folder of them, or a pattern in quotes")
    own.add_argument("--name", help="name of the log (default: that of the file); a log of that name is replaced")
    own.add_argument("--items", type=pathlib.Path, help="table of items with columns item, and if you like title, text")
    pairs = {"metavar": "ROLE=COLUMN,...", "action": "append", "default": []}
    own.add_argument("--columns", help="roles: user, item, time, action, query, request, shown", **pairs)
    own.add_argument("--item-columns", help="roles: item, title, text", **pairs)
    own.add_argument(
        "--time-unit",
        default="auto",
        metavar="UNIT",
        help="seconds, milliseconds, microseconds, nanoseconds or iso (default: told from the whole column, or asked)",
    )
    own.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="KIND,...",
        help="leave out and count these bad rows: bad-lines, missing, bad-times, duplicates, or all (default: refuse them)",
    )
    several = {"action": "append", "default": []}
    own.add_argument("--label", metavar="NAME=ACTION+ACTION", help="a label to rank by; repeatable", **several)
    own.add_argument(
        "--tags", metavar="COLUMN,...", help="columns of the items whose values, set apart by |, are tags", **several
    )
    own.add_argument(
        "--vectors", metavar="NAME=FILE.npy", help="a vector an item, in the order of its table", **several
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
        "--beam", metavar="RUNNER", help="import on many machines by this runner of Apache Beam (docs/beam.md)"
    )
    own.add_argument(
        "--beam-options", metavar="'--OPTION=VALUE ...'", help="the runner's options: --beam-options='--project=p ...'"
    )
    own.add_argument(
        "--beam-folder", metavar="FOLDER", help="for intermediate files; all workers must reach it (default: the log's)"
    )

    command("list", "List the event logs that there are.", "synergen data list", actions)
    show = command("show", "Describe an event log, and show a few of its users.", "synergen data show shop", actions)
    show.add_argument("name", help="name of a log, or its folder")
    show.add_argument("--user", action="append", help="id of a user to show; repeatable")

    train = command(
        "train",
        "Train a model, or go on where the workdir left off. Any setting can be given as --section.key VALUE.",
        "synergen train ml_100k --workdir runs/ml-100k --model.width 128 --run.steps 2000",
    )
    train.add_argument("config", help="a TOML file, or the name of a shipped config")
    train.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="folder of the run: checkpoints, metrics, config"
    )
    _cluster(train)

    evaluate = command(
        "evaluate",
        "Evaluate the best checkpoint of a run: full ranking, candidate ranking, exact and approximate search.",
        "synergen evaluate runs/ml-100k --split test --json",
    )
    evaluate.add_argument("workdir", type=pathlib.Path)
    _cluster(evaluate)
    evaluate.add_argument("--split", choices=("validation", "test"), default="test")
    evaluate.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where the report and its JSON go (default: the run's folder)",
    )

    sweep = command(
        "sweep",
        "Train and evaluate a family of configs with several seeds, and put all into one table.",
        "synergen sweep search_100k --workdir runs/ablations --seeds 0,1,2",
    )
    sweep.add_argument("family", type=pathlib.Path, help="a TOML file, or the name of a shipped family")
    sweep.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs and of the table")
    sweep.add_argument("--seeds", type=_numbers, default=(0, 1), help="comma-separated (default: 0,1)")
    sweep.add_argument("--only", type=lambda text: text.split(","), default=[], help="these variants, comma-separated")
    sweep.add_argument("--split", choices=("validation", "test"), default="validation")

    bench = command(
        "bench",
        "Measure on made-up data, alternating what is compared: a table, and ratios. Settings as --section.key VALUE.",
        "synergen bench readers --json\n  synergen bench catalogue --sizes 10000,1000000\n"
        "  synergen bench step --config ml_1m --model.dtype bfloat16 --profile traces",
    )
    bench.add_argument("name", choices=BENCHES, help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))
    bench.add_argument(
        "--config",
        help="a TOML file, or the name of a shipped config, in place of the bench's own (step, feed, packing)",
    )
    bench.add_argument("--log", help="a prepared log, in place of a synthetic one (step, feed, packing)")
    bench.add_argument("--rounds", type=int, default=5, help="timed rounds of each side (default: 5)")
    bench.add_argument(
        "--sizes",
        type=_numbers,
        default=(),
        help="comma-separated: items of catalogue, events of readers, times the negatives of loss",
    )
    bench.add_argument("--small", action="store_true", help="tiny sizes, to see that all runs")
    bench.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="write a profiler's trace of one more round")

    plan = command(
        "plan",
        "Compile training and validation for many virtual devices, and tell what each would need; no log, nothing is run.",
        "synergen plan plan_100m --devices 256 --items 100000000\n"
        "  synergen plan ml_1m --devices 2,4,8,16 --weak --mesh.model 2",
    )
    plan.add_argument("config", help="a TOML file, or the name of a shipped config")
    plan.add_argument("--devices", type=_numbers, required=True, help="how many, or several numbers, comma-separated")
    plan.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue (default: 1,000,000)")
    plan.add_argument("--queries", type=int, default=0, help="distinct queries of the log (default: 0)")
    plan.add_argument("--text-width", type=int, default=0, help="width of a semantic matrix of them (default: 0, none)")
    plan.add_argument("--memory", type=float, default=80.0, help="GiB of each device (default: 80)")
    plan.add_argument(
        "--weak",
        action="store_true",
        help="weak scaling: data.batch is that of the first number of devices, and grows with them",
    )

    recommend = command(
        "recommend",
        "Recommend items to a user of the log, to a history from a file, or to nobody in particular.",
        "synergen recommend runs/ml-100k --user 196 -k 10\n  synergen recommend runs/ml-100k --history history.csv",
    )
    _question(recommend)
    search = command(
        "search",
        "Search the catalogue for a user of the log, for a history from a file, or for nobody in particular.",
        'synergen search runs/ml-100k-search --query "90s comedy" --user 196 -k 10',
    )
    search.add_argument("--query", required=True, help="what is searched for, in words")
    _question(search)
    return top


TAKE_SETTINGS = ("train", "evaluate", "quickstart", "sweep", "bench", "plan")
LEAVE = ("train", "evaluate", "quickstart", "sweep", "prepare", "import")  # more than what they print


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def _cluster(command: argparse.ArgumentParser) -> None:
    """Arguments that say which of several processes this is (docs/launch.md)."""
    command.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="where process 0 of several listens (SLURM, Open MPI, Kubernetes with jax[k8s] and TPU tell it themselves)",
    )
    command.add_argument("--processes", type=int, metavar="N", help="how many; 1: a run of its own in any cluster")
    command.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


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


def main(argv: typing.Sequence[str] | None = None) -> int:
    """Runs a command; the process's exit status is what it returns.

    0; 1 for a failed run; 2 for wrong input; 130 where a person interrupted it, 143 where SIGTERM did; 141 where the
    reader of a command that only prints has left.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with pipes.readers_may_leave() as stops:
        try:
            status = _run(argv, stops)
        except Exception as error:
            if processes.count() == 1:
                raise
            processes.failed(error)
        processes.leave(status)
    return status


@contextlib.contextmanager
def _cleaning_up() -> typing.Iterator[None]:
    """SIGTERM ends the process as an exception does, so that nothing half-written is left behind."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: typing.Sequence[str] | None, stops: typing.Callable[[bool], None]) -> int:
    try:
        arguments, rest = parser().parse_known_args(argv)
        stops(arguments.command not in LEAVE and getattr(arguments, "action", "") not in LEAVE)
        if rest and arguments.command not in TAKE_SETTINGS:
            raise UserError(f"unknown argument {rest[0]!r}; see `synergen {arguments.command} --help`")
        if arguments.command in ("train", "evaluate"):
            cluster = arguments.coordinator, arguments.processes, arguments.process
            processes.join(*cluster, preemptible=arguments.command == "train")
        from synergen_jax.cli import commands  # after the parser: --help needs no jax

        commands.keep_compiled(arguments)
        with _cleaning_up() if arguments.command == "data" else contextlib.nullcontext():
            result = commands.RUN[arguments.command](arguments, rest)
        if arguments.json and processes.first():
            print(json.dumps(result))
        if sys.stdout:
            sys.stdout.flush()
    except Stopped as error:
        print(f"synergen: the run has stopped: {error}", file=sys.stderr)
        return error.status
    except (UserError, OSError) as error:
        if isinstance(error, NotWritten) and arguments.json:
            print(json.dumps(error.found))
        print(f"synergen: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synergen: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
