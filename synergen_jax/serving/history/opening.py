"""Which database a place names."""

from __future__ import annotations

import os
import pathlib

from synergen_jax.errors import UserError
from synergen_jax.serving.history.store import Store


def open_store(where: str | os.PathLike[str], log: str, write: bool = True) -> Store:
    """Opens the histories that belong to an event log, and makes them where there are none yet.

    Args:
      where: a file of SQLite, which one process at a time may write, or `postgresql://...`, which several may.
      log: name of the log whose ids the events have; a store belongs to one log for good.
      write: without, it only reads, beside the process that writes; there must be a store already.

    Raises:
      UserError: there is no such place or it is no store, it belongs to another log or has another form, another
        process writes it, or the library of the database is not installed.
    """
    if not log:
        raise UserError("a store of histories needs the name of the log that its ids belong to")
    place = os.fspath(where)
    if place.startswith(("postgresql://", "postgres://")):
        from synergen_jax.serving.history.postgres import PostgresStore

        return PostgresStore(place, log, write)
    if "://" in place:
        raise UserError(f"{place.partition('://')[0]}://: histories are kept in a file, or at postgresql://...")
    from synergen_jax.serving.history.sqlite import SqliteStore

    return SqliteStore(pathlib.Path(place), log, write)
