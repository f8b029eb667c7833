"""A table whose rows name users, items or queries by their original ids: who is asked for, and what."""

from __future__ import annotations

import pathlib
import typing

from data_pipelines.importing import event_files, event_rows
from synergen_jax.errors import UserError

ROLES = ("user", "item", "query")


class Rows(typing.NamedTuple):
    """A table's rows in their order."""

    columns: dict[str, list[str]]  # of ROLES, those that the table has; "" where a value is missing
    where: str  # the table, for messages
    places: typing.Callable[[int], str]  # where row i stands: "line 7"


def read(path: str | pathlib.Path, required: typing.Sequence[str], optional: typing.Sequence[str] = ()) -> Rows:
    """Reads the columns called `user`, `item` or `query` of a table in any form that `synergen data import` takes.

    Raises:
      UserError: a required column is not there or lacks a value, a line is broken, or there are no rows.
    """
    files = event_files.EventFiles(path)
    wanted = [role for role in ROLES if role in (*required, *optional)]
    roles = event_files.roles(files, {}, wanted, required, "")
    columns: dict[str, list[str]] = {role: [] for role in roles}
    numbers: list[int] = []
    for piece in files.pieces(list(roles.values()), [role for role in wanted if role not in roles]):
        for reason, rows in piece.broken.items():
            raise UserError(f"{path}, {files.place(int(rows[0]))}: {reason}: mend it, or take it out")
        numbers += piece.rows.tolist()
        for role, name in roles.items():
            text, _ = event_rows.trimmed(piece.columns[name], f"{path}: column {name!r}", role == "query")
            columns[role] += text.fill_null("").to_list()
    if not numbers:
        raise UserError(f"{path}: there are no rows after the header")
    found = Rows(columns, str(path), lambda i: files.place(numbers[i]))
    for role in required:
        if "" in columns[role]:
            raise UserError(
                f"{path}, {found.places(columns[role].index(''))}: there is no {role}: name one, or take it out"
            )
    return found


def numbered(rows: Rows, role: str, numbers: typing.Mapping[str, int], log: str, none: int = 0) -> list[int]:
    """The number of each row's value of a role; `none` where a value is missing.

    Raises:
      UserError: one is not in the log; how many, and where the first stands, is told.
    """
    values = rows.columns[role]
    wrong = [i for i, value in enumerate(values) if value and value not in numbers]
    if wrong:
        more = f"; so are {len(wrong) - 1:,} more rows" if len(wrong) > 1 else ""
        raise UserError(
            f"{rows.where}, {rows.places(wrong[0])}: {role} {values[wrong[0]]!r} is not in {log}{more}: take them out, or import "
            "the log anew with them"
        )
    return [numbers[value] if value else none for value in values]
