"""`synergen quickstart`: MovieLens-100K from download to recommendations."""

from __future__ import annotations

import pathlib
import time
import typing

from synergen_jax.cli import ask as asking
from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    quick = shared.command(
        commands,
        "quickstart",
        "MovieLens-100K from download to recommendations: prepare, train, evaluate, recommend.",
        "synergen quickstart",
        run,
        settings=True,
        leaves=True,
    )
    quick.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("synergen-quickstart"))
    quick.add_argument(
        "--source", type=pathlib.Path, help="a copy of MovieLens-100K that you have: folder, zip or wheel"
    )


def run(arguments, settings) -> dict[str, typing.Any]:
    """Prepares, trains, evaluates and recommends."""
    from synergen_jax import config as configs
    from synergen_jax.runs import ask
    from synergen_jax.runs.evaluate import evaluate_open
    from synergen_jax.runs.run import Run, open_run
    from synergen_jax.runs.served import Question
    from synergen_jax.runs.train import train

    start, workdir = time.perf_counter(), arguments.workdir
    config = configs.load("quickstart", settings)
    if config.data.log != "ml-100k":
        raise UserError(
            f"quickstart is on ml-100k: `synergen train quickstart --data.log {config.data.log}` trains on that"
        )
    if not config.data.measured:
        raise UserError(
            "quickstart evaluates what it trains, and data.split 'none' holds nothing back: `synergen train quickstart "
            "--data.split none` trains on all events"
        )
    say("[1/4] prepare MovieLens-100K")
    log = prepared(arguments.source, arguments.data_dir)
    summary = log.summary()
    say(f"{summary['events']:,} events, {summary['users']:,} users, {summary['items']:,} items in {log.path}")
    say("\n[2/4] train (some two minutes on two cores; interrupt it and run again: it goes on)")
    trained = train(Run(config, log), workdir)
    say("\n[3/4] evaluate on the test split")
    opened = open_run(workdir, [], arguments.data_dir)
    evaluated = evaluate_open(opened, "test", workdir)
    user = _of_middling_activity(log)
    say(f"\n[4/4] recommend to user {user}, one of middling activity")
    answer = ask.answer(opened.run, opened.params, log[log.find_user(user)], f"user {user}", Question())
    asking.show(answer)
    seconds = time.perf_counter() - start
    ratio = evaluated["model"]["hr@10"] / max(evaluated["most_popular"]["hr@10"], 1e-9)
    say(
        f"\ndone in {seconds:.0f} s: test HR@10 {evaluated['model']['hr@10']:.4f}, {ratio:.1f} times most popular's\n"
        f"  event log   {log.path}\n"
        f"  run         {workdir} (config.json, checkpoints, metrics.jsonl, tensorboard)\n"
        f"  report      {workdir / 'report_test.html'}\n"
        f"  next        synergen recommend {workdir} --user {user} -k 20"
    )
    return {"train": trained, "evaluate": evaluated, "recommend": answer.as_json(), "seconds": seconds}


def prepared(source: pathlib.Path | None, data_dir: pathlib.Path | None):
    """MovieLens-100K: a log that is there, whatever it was prepared with, unless a source is given; or made now."""
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate, prepare

    if not source:
        try:
            return EventLog.load(locate("ml-100k", data_dir))
        except UserError:
            pass  # none, or a damaged one
    return prepare("ml-100k", source=source, data_dir=data_dir)


def _of_middling_activity(log) -> str:
    import numpy as np

    return log.user_ids[int(np.argmin(np.abs(log.lengths - np.median(log.lengths))))]
