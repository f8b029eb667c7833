"""The ladder: a recipe with several seeds, and what each of its levers does, on one accelerator.

  python ladder.py prepare ml-1m --out ml-1m.npz                        # with the whole installation
  python ladder.py run ml-1m.npz --family ladder_1m --out ladder        # with jax, flax, optax, orbax, jaxtyping, tqdm
  python ladder.py report ladder --out experiments/results/ladder_1m    # with matplotlib

`run` writes a line of JSON a finished run, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time
import typing

import command

from synergen_jax.errors import UserError, naming


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = command.parser("ladder.py", __doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="Put a prepared log into one file.", allow_abbrev=False)
    prepare.add_argument("log", help="name of a prepared log, or its folder")
    prepare.add_argument("--out", type=pathlib.Path, required=True, help="the file, a .npz")
    prepare.add_argument("--data-dir", type=pathlib.Path, help="where logs lie (default: that of `synergen`)")

    run = commands.add_parser(
        "run", help="Train and evaluate; settings as --section.key VALUE hold for all variants.", allow_abbrev=False
    )
    run.add_argument("file", type=pathlib.Path, help="what `prepare` wrote")
    run.add_argument("--family", type=pathlib.Path, required=True, help="a TOML file, or the name of a shipped family")
    run.add_argument("--seeds", type=_numbers, default=(0, 1, 2), help="comma-separated (default: 0,1,2)")
    run.add_argument("--variants", type=lambda text: text.split(","), help="comma-separated (default: all, in order)")
    run.add_argument("--out", type=pathlib.Path, required=True, help="folder of the ladder")
    run.add_argument(
        "--after",
        type=pathlib.Path,
        nargs="+",
        default=(),
        metavar="DIR",
        help="earlier ladders: what such a device has run is not run again",
    )
    run.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="end within these")
    cores = min(max((os.cpu_count() or 2) - 2, 1), 16)
    run.add_argument("--workers", type=int, default=cores, help=f"processes of the feed; 0: none (default: {cores})")
    run.add_argument("--cache-gib", type=float, default=32.0, help="memory for batches to use again (default: 32)")
    run.add_argument("--commit", help="what is noted as the code's commit (default: that of the checkout)")

    report = commands.add_parser("report", help="Tables and plots of one or more ladders.", allow_abbrev=False)
    report.add_argument("folders", type=pathlib.Path, nargs="+", help="what `run` wrote")
    report.add_argument("--out", type=pathlib.Path, required=True, help="OUT.md and OUT_*.png are written")
    return top


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(int, text.split(","))))


def prepare(arguments, _) -> None:
    """`ladder.py prepare`."""
    import array_log

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate

    array_log.write(EventLog.load(locate(arguments.log, arguments.data_dir)), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


def run(arguments, settings) -> None:
    """`ladder.py run`."""
    start = time.monotonic()
    say = lambda text: print(f"{time.monotonic() - start:7.1f} s  {text}", flush=True)
    # Before jax is loaded: what one run has compiled, the next one and a repeated command need not.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((arguments.out / "compiled").absolute()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    import results
    import runs
    from array_log import ArrayLog
    from batches import Batches

    from synergen_jax import config as configs
    from synergen_jax.evaluation import report
    from synergen_jax.runs import family as families
    from synergen_jax.training import train_step

    family = families.load(arguments.family, settings)
    base = configs.load(family.base, settings)
    asked_for = {"family": arguments.family.stem, "variants": list(family.variants), "settings": settings}
    if unknown := [name for name in arguments.variants or () if name not in family.variants]:
        raise UserError(f"--variants {unknown[0]}: the family's variants are {', '.join(family.variants)}")
    if arguments.variants:
        family = family._replace(variants={name: family.variants[name] for name in arguments.variants})
    if arguments.workers < 0:
        raise UserError(f"--workers must be at least 0, not {arguments.workers}")
    if not 0 <= arguments.cache_gib < 2**20:
        raise UserError(f"--cache-gib must be a number of GiB, not {arguments.cache_gib}")
    log = ArrayLog(arguments.file)
    for name, config in family.variants.items():
        if pathlib.Path(config.data.log).name != log.name:
            raise UserError(
                f"{arguments.file} holds the log {log.name}, but {name} is for {config.data.log}: give that log's "
                f"file, or --data.log {log.name}"
            )
        with naming(f"{family.base}, variant {name}"):  # before hours of training
            train_step.make_model(config, log.spec)
    import jax

    device = jax.devices()[0]
    about = {
        "log": log.name,
        "device": device.device_kind,
        "platform": device.platform,
        "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        "commit": arguments.commit or commit(),
    }
    say(f"{len(family.variants)} variants, {len(arguments.seeds)} seeds, {log.name}, on {device.device_kind}")
    with Batches(log, arguments.workers, int(arguments.cache_gib * 2**30)) as feeds:
        asked = runs.Asked(family.variants, base, arguments.seeds, asked_for, arguments.after)
        told = runs.climb(asked, arguments.out, feeds, about, runs.Session(start + arguments.budget, say))
    if told.finished:
        print("\n" + report.table(results.rows(results.Ladder.of(told.finished, asked_for["variants"]))))
    if told.left:
        print(f"\n{len(told.left)} runs are left: the same command goes on with them")


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it, or that which a bundle's file COMMIT tells; else None."""
    root = pathlib.Path(__file__).resolve().parents[2]
    git = lambda *words: subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout
    try:
        if (root / "COMMIT").is_file():
            return (root / "COMMIT").read_text(encoding="utf-8").strip()
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def report(arguments, _) -> None:
    """`ladder.py report`."""
    import write_up

    for path in write_up.write(arguments.folders, arguments.out):
        print(path)


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 2 for wrong input, which is told in one line; 130 where a person interrupted it."""

    def run_it() -> int:
        arguments, settings = parser().parse_known_args(argv)
        if settings and arguments.command != "run":
            raise UserError(f"unknown argument {settings[0]!r}")
        try:
            {"prepare": prepare, "run": run, "report": report}[arguments.command](arguments, settings)
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: install {error.name} (experiments/ladder/README.md)") from None
        return 0

    return command.outcome("ladder.py", run_it)


if __name__ == "__main__":
    sys.exit(main())
