"""What `synergen bench` does: opens logs for the benchmarks of `synergen_jax.bench`, and prints what they found."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import typing

import numpy as np

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.feed import examples, feed, splits
from data_pipelines.sources.prepare import locate
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue, Feed
from synergen_jax.bench import attention, catalogue, loss, packing, readers, step
from synergen_jax.bench import feed as feeding
from synergen_jax.bench.setting import Result, Setting
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.evaluation import report
from synergen_jax.planning.synthetic import SyntheticLog

BENCHES: typing.Mapping[str, typing.Callable[[Setting], Result]] = types.MappingProxyType(
    {
        "step": step.run,
        "feed": feeding.run,
        "catalogue": catalogue.run,
        "readers": readers.run,
        "loss": loss.run,
        "attention": attention.run,
        "packing": packing.run,
    }
)
SIZED = ("catalogue", "readers", "loss")
OPEN = ("step", "feed", "packing")  # measure whatever config on whatever log


def bench(arguments, settings, say) -> dict[str, typing.Any]:
    """`synergen bench`."""
    names = list(BENCHES) if arguments.name == "all" else [arguments.name]
    if arguments.sizes and arguments.name not in SIZED:
        raise UserError(f"--sizes is for {', '.join(SIZED)}, not for {arguments.name!r}")
    for option in ("config", "log"):
        if getattr(arguments, option) is not None and arguments.name not in OPEN:
            raise UserError(f"--{option} is for {', '.join(OPEN)}, not for {arguments.name!r}, which has its own")
    if arguments.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {arguments.rounds}")
    setting = Setting(
        open_log,
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
        result = BENCHES[name](dataclasses.replace(setting, trace=trace))
        say(text(result))
        found.append(result.as_json())
    return found[0] if arguments.name != "all" else {"bench": "all", "results": found}


def open_log(config: Config, log) -> tuple[Catalogue, Feed]:
    """What training takes of a log. Of a synthetic one every item counts as met, so that all of its table is used."""
    split = splits.split(log, config.data)
    known = examples.catalogue(log, split)
    if isinstance(log, SyntheticLog):
        met = lambda counts: np.append(0, np.maximum(counts[1:], 1)).astype(np.int32)
        known = dataclasses.replace(known, counts=met(known.counts), query_counts=met(known.query_counts))
    return known, feed.train_feed(log, split, config, known.counts)


def text(result: Result) -> str:
    """A result as people read it."""
    lines = ["", result.title, report.table(result.rows)]
    lines += [
        f"{name}: {found.median:.2f}x" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.low < found.high else "")
        for name, found in result.ratios.items()
    ]
    return "\n".join(lines + [result.note] * bool(result.note))
