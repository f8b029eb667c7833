"""`synergen bench`."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say

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


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    bench = shared.command(
        commands,
        "bench",
        "Measure on made-up data, alternating what is compared: a table, and ratios. Settings as --section.key VALUE.",
        "synergen bench readers --json\n  synergen bench catalogue --sizes 10000,1000000\n"
        "  synergen bench step --config ml_1m --model.dtype bfloat16 --profile traces",
        run,
        settings=True,
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
        type=shared.numbers,
        default=(),
        help="comma-separated: items of catalogue, events of readers, times the negatives of loss",
    )
    bench.add_argument("--small", action="store_true", help="tiny sizes, to see that all runs")
    bench.add_argument("--profile", type=pathlib.Path, metavar="DIR", help="write a profiler's trace of one more round")


def run(arguments, settings) -> dict[str, typing.Any]:
    """Runs one benchmark, or all."""
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate
    from synergen_jax import config as configs
    from synergen_jax.bench import suite
    from synergen_jax.bench.setting import Setting
    from synergen_jax.runs.inputs import of_log

    names = list(suite.BENCHES) if arguments.name == "all" else [arguments.name]
    if arguments.sizes and arguments.name not in suite.SIZED:
        raise UserError(f"--sizes is for {', '.join(suite.SIZED)}, not for {arguments.name!r}")
    for option in ("config", "log"):
        if getattr(arguments, option) is not None and arguments.name not in suite.OPEN:
            raise UserError(f"--{option} is for {', '.join(suite.OPEN)}, not for {arguments.name!r}, which has its own")
    if arguments.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {arguments.rounds}")
    setting = Setting(
        of_log,
        words=tuple(settings),
        base=None if arguments.config is None else configs.load(arguments.config),
        log=None if arguments.log is None else EventLog.load(locate(arguments.log, arguments.data_dir)),
        small=arguments.small,
        rounds=arguments.rounds,
        sizes=arguments.sizes,
        say=say,
    )
    found = []
    for name in names:
        trace = arguments.profile and pathlib.Path(arguments.profile) / name
        result = suite.BENCHES[name](dataclasses.replace(setting, trace=trace))
        say(suite.text(result))
        found.append(result.as_json())
    return found[0] if arguments.name != "all" else {"bench": "all", "results": found}
