"""Rows that cannot be imported: counted by kind, with the numbers of the first ones, and refused or dropped."""

from __future__ import annotations

import typing

import numpy as np

from synergen_jax.errors import UserError

KINDS = {
    "bad-lines": "broken lines",
    "missing": "missing values",
    "bad-times": "bad times",
    "bad-parts": "bad parts",
    "duplicates": "duplicates",
}
MISSING = ("", "NULL", "null", "NaN", "nan", "None", "\\N")  # what programs write for a value that is not there
SHOWN = 5  # row numbers a message names of each kind


def is_missing(text: str) -> bool:
    """Whether a field holds no value."""
    return text in MISSING


class Problems:
    """Bad rows of a file.

    Args:
      drop: kinds, out of KINDS, whose rows are left out and counted; others are refused.
    """

    def __init__(self, drop: typing.Collection[str] = ()):
        self.drop = frozenset(drop)
        self._found: dict[tuple[str, str], tuple[int, list[int], str]] = {}

    def add(self, kind: str, reason: str, rows: typing.Sequence[int] | np.ndarray, example: str = "") -> None:
        """Counts rows of a kind. Pieces of a file may come in any order."""
        if len(rows):
            count, first, was = self._found.get((kind, reason), (0, [], example))
            first = sorted([*first, *np.sort(np.asarray(rows))[:SHOWN].tolist()])[:SHOWN]
            self._found[kind, reason] = count + len(rows), first, was

    def merge(self, other: Problems) -> None:
        """Adds what was found in other rows."""
        for key, (count, first, example) in other._found.items():
            own, places, was = self._found.get(key, (0, [], example))
            self._found[key] = own + count, sorted([*places, *first])[:SHOWN], was

    def counts(self) -> dict[str, int]:
        """Bad rows of each kind that there are."""
        found = dict.fromkeys((kind for kind in KINDS if any(key[0] == kind for key in self._found)), 0)
        for (kind, _), (count, _, _) in self._found.items():
            found[kind] += count
        return found

    def check(self, where: str, rows: int, place: typing.Callable[[int], str], flag: str = "--drop") -> None:
        """Refuses the file if there are bad rows that are not to be dropped.

        Args:
          rows: how many rows there are in all, bad ones included.
          place: names a row.
          flag: the option that drops bad rows; "": whoever asks has none.

        Raises:
          UserError: one line for all kinds.
        """
        refused = {key: value for key, value in self._found.items() if key[0] not in self.drop}
        if not refused:
            return
        parts = []
        for (_, reason), (count, first, example) in refused.items():
            places = ", ".join(map(place, first)) + (", ..." if count > len(first) else "")
            parts.append(f"{count:,} {reason}{f' like {example!r}' if example else ''} ({places})")
        kinds = [kind for kind in KINDS if kind in self.drop or any(key[0] == kind for key in refused)]
        total = sum(count for count, _, _ in refused.values())
        raise UserError(
            f"{where}: {total:,} of {rows:,} rows cannot be {'imported' if flag else 'read'}: {'; '.join(parts)}; "
            f"mend them{f', or leave them out with {flag} ' + ','.join(kinds) if flag else ''}"
        )
