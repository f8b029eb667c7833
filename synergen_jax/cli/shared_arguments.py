"""Arguments that several commands share, and parsers whose errors are one clear line."""

from __future__ import annotations

import argparse
import pathlib
import typing

from synergen_jax.errors import UserError

FORMAT = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one line, as for any wrong input."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


Commands = argparse._SubParsersAction  # argparse gives it no public name
Run = typing.Callable[[argparse.Namespace, list[str]], dict[str, typing.Any]]
"""`run(arguments, settings)` does what a command does, prints for people, and returns what `--json` prints."""


def command(
    to: Commands, name: str, text: str, example: str, run: Run, settings: bool = False, leaves: bool = False
) -> argparse.ArgumentParser:
    """Adds a command with the arguments that every command has.

    Args:
      to: the commands that it joins.
      text: what it does.
      run: what does it.
      settings: it takes settings, --section.key VALUE.
      leaves: it leaves more behind than what it prints: a reader of its output who goes does not end it.
    """
    made = to.add_parser(
        name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=FORMAT, allow_abbrev=False
    )
    made.set_defaults(run=run, takes_settings=settings, leaves=leaves)
    made.add_argument(
        "--data-dir", type=pathlib.Path, help="where logs lie (default: $SYNERGEN_DATA or ~/.cache/synergen)"
    )
    made.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    made.add_argument(
        "--no-compile-cache", action="store_true", help="keep no compiled programs in the data folder, nor use any"
    )
    return made


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,3`, each once."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def log_version(to: argparse.ArgumentParser, default: str) -> None:
    """The argument that says on which version of its log a run is opened."""
    to.add_argument(
        "--log",
        metavar="NAME[@VERSION]",
        help=f"the run's log, or a version of it that came after training (default: {default})",
    )


def cluster(to: argparse.ArgumentParser) -> None:
    """Arguments that say which of several processes this is (docs/launch.md)."""
    to.add_argument(
        "--coordinator",
        default="",
        metavar="HOST:PORT",
        help="where process 0 of several listens (SLURM, Open MPI, Kubernetes with jax[k8s] and TPU tell it themselves)",
    )
    to.add_argument("--processes", type=int, metavar="N", help="how many; 1: a run of its own in any cluster")
    to.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
