"""Exceptions that mean "the input is wrong" or "the run has stopped", not "the program is wrong"; parts of messages."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import typing


class UserError(ValueError):
    """Wrong input: the message says what, where and how to mend it, in one line.

    The command line prints the message alone and exits with status 2; a caller of the library sees an ordinary
    `ValueError`.
    """


class Stopped(Exception):
    """A run has stopped before its end, on all of its processes alike; the message says why, and how to go on."""

    status = 1  # of the command


class NotWritten(UserError):
    """What a command found could not be written to its folder; `--json` prints it all the same."""

    def __init__(self, message: str, found: dict[str, typing.Any]):
        super().__init__(message)
        self.found = found


def nearest(word: str, choices: typing.Iterable[str]) -> str:
    """The ending of a message about an unknown word."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


@contextlib.contextmanager
def naming(what: str) -> collections.abc.Iterator[None]:
    """Errors of wrong input that come up within begin with what they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


@contextlib.contextmanager
def writing(path: object) -> collections.abc.Iterator[None]:
    """Errors of a disk, such as a full one, say which file could not be written, and that nothing before it is lost."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or first_line(error)}; once that is mended, the same command goes "
            "on from what is there"
        ) from error


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
