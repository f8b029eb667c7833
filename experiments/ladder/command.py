"""What the scripts beside this one share on the command line: one line for wrong input, and how an interrupted one goes on."""

from __future__ import annotations

import argparse
import sys
import typing

from synergen_jax.errors import UserError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s: one line, as for any wrong input."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The parser of the script `name`, whose docstring is `about`."""
    form = argparse.RawDescriptionHelpFormatter
    return _Parser(name, description=about, formatter_class=form, allow_abbrev=False)


def outcome(name: str, run: typing.Callable[[], int], stopped: str = "interrupted; the same command goes on") -> int:
    """The exit status of `run`; 2 for wrong input, which is told in one line; 130, and `stopped`, for an interruption."""
    try:
        return run()
    except (UserError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
