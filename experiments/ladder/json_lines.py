"""Results as JSON, one a line: whatever a kill has cut off costs a line and no more."""

from __future__ import annotations

import json
import os
import pathlib
import typing

from synergen_jax.errors import UserError

Entry = dict[str, typing.Any]


def read(path: pathlib.Path, fields: typing.Collection[str], what: str) -> list[Entry]:
    """The entries of a file, none where there is no file. A last line that a kill has cut off is none.

    Args:
      fields: what every entry has.
      what: what an entry is, for people.

    Raises:
      UserError: another line is damaged.
    """
    try:
        whole = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break was cut off
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not entry.keys() >= set(fields):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}:{number}: no {what}: take the line out, and it is run again") from None
        found.append(entry)
    return found


def append(path: pathlib.Path, entry: Entry) -> None:
    """Adds an entry, after taking away what a kill has left of another one. It is on disk when this returns."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
