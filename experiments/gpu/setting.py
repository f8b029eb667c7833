"""What every measurement is told, and how it says that it cannot be made here."""

from __future__ import annotations

import dataclasses
import pathlib
import typing


class Skip(Exception):
    """This measurement cannot be made on this machine; the message says why."""


class Short(Exception):
    """Too little time is left for this measurement, which is no fault of its own."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a unit is run."""

    small: bool  # tiny sizes on whatever device: the rehearsal
    out: pathlib.Path  # what comes back
    scratch: pathlib.Path  # what does not
    data: pathlib.Path | None  # a log in one file, see `ladder.py prepare`
    after: tuple[pathlib.Path, ...]  # what earlier visits to such a device brought back
    deadline: float  # of `time.monotonic`, which all processes of a machine share
    say: typing.Callable[[str], None]

    @property
    def rounds(self) -> int:
        """Timed rounds of each side."""
        return 2 if self.small else 7

    def by_size(self, full: typing.Any, small: typing.Any) -> typing.Any:
        """The one of both that is asked for."""
        return small if self.small else full
