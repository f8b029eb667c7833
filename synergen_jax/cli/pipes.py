"""What a command prints once its reader has left, as in `synergen data show shop | head -3`.

A command that only prints has nothing left to do then, and ends with the status of one that SIGPIPE ended. One that also
leaves something behind, a log, a run or a report, does its work to the end without a word: its reader saw enough, which
says nothing of the work. Neither tells an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import typing

STATUS = 141  # 128 + SIGPIPE, as a shell tells it


class Stream:
    """A stream that is written to as the one it stands for, until that one's reader has left.

    Args:
      stop: whether the command ends then: `SystemExit` with STATUS. Otherwise what is printed goes nowhere.
    """

    def __init__(self, stream: typing.TextIO, stop: bool):
        self._stream, self.stop = stream, stop

    def write(self, text: str) -> int:
        """As a text file's."""
        with self._reader_may_leave():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: typing.Iterable[str]) -> None:
        """As a text file's."""
        self.write("".join(lines))

    def flush(self) -> None:
        """As a text file's."""
        with self._reader_may_leave():
            self._stream.flush()

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _reader_may_leave(self) -> typing.Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if not isinstance(error, BrokenPipeError):
                raise OSError(f"what was printed could not be written: {error.strerror or error}") from None
            if self.stop:
                raise SystemExit(STATUS) from None

    def _discard(self) -> None:
        """Sends what is still held back, and all that follows, nowhere: Python flushes once more when it ends."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def readers_may_leave() -> typing.Iterator[typing.Callable[[bool], None]]:
    """Puts a `Stream` in the place of stdout, which stops, and of stderr, which does not. Yields what says whether to stop."""
    before = sys.stdout, sys.stderr
    out, error = (stream and Stream(stream, stop) for stream, stop in zip(before, (True, False)))  # None: it is closed

    def stops(stop: bool) -> None:
        if out:
            out.stop = stop

    sys.stdout, sys.stderr = out, error
    try:
        yield stops
    finally:
        try:
            if out:
                out.flush()
        except OSError as error:
            print(f"synergen: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        finally:
            sys.stdout, sys.stderr = before
