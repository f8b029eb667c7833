"""Parts of a split that the data give: their names, and where they end within a user's events."""

from __future__ import annotations

import datetime
import re
import typing

import numpy as np

from synergen_jax.errors import UserError

NAMES = ("training", "validation", "test")  # code n is NAMES[n - 1]; 0: none is given
WORDS = {
    **dict.fromkeys(("train", "training"), 1),
    **dict.fromkeys(("valid", "validation", "val", "dev"), 2),
    "test": 3,
}


def of_file(name: str) -> int:
    """The code of the part that the name of a file tells, by one of WORDS between its dots, dashes and underscores.

    >>> of_file("ml.train.inter"), of_file("valid.csv"), of_file("test-00000-of-00001.parquet")
    (1, 2, 3)

    Raises:
      UserError: it tells none, or several.
    """
    found = {WORDS[word] for word in re.split(r"[\W_]+", name.lower()) if word in WORDS}
    if len(found) != 1:
        what = "none of" if not found else "several of"
        raise UserError(f"{name}: a name with {what} {', '.join(WORDS)}, one of which must tell its part: rename it")
    return found.pop()


def stops(part: np.ndarray) -> np.ndarray:
    """Where training ends and test begins in a user's events, int32 (2,), of codes (n,) that do not go down."""
    return np.searchsorted(part, (2, 3)).astype(np.int32)


def disorder(user: np.ndarray, part: np.ndarray) -> int:
    """Of events by user and time, (n,) each, the first of an earlier part than the one before it; or -1."""
    wrong = (user[1:] == user[:-1]) & (part[1:] < part[:-1])
    return int(wrong.argmax()) + 1 if wrong.any() else -1


def refuse(where: str, user: str, events: typing.Sequence[tuple[int, float, str]]) -> typing.NoReturn:
    """Refuses parts out of order.

    Args:
      events: of two neighbours, the code of the part, Unix seconds, and the place.
    """
    day = lambda time: datetime.datetime.fromtimestamp(int(time), datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    first, then = (f"a {NAMES[part - 1]} event of {day(time)} UTC ({place})" for part, time, place in events)
    raise UserError(
        f"{where}: user {user!r}: {first} comes before {then}; in each user, training must come before validation and "
        "that before test, in time: mend the parts, or import without them and set data.split"
    )
