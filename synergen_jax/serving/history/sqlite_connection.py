"""SQLite itself: that it is there and new enough, its statements and transactions, its errors in our words."""

from __future__ import annotations

import collections.abc
import contextlib
import pathlib
import typing

from synergen_jax.errors import UserError, first_line
from synergen_jax.serving.history.store import Unavailable

if typing.TYPE_CHECKING:
    import apsw

OLDEST = (3, 51, 3)  # before it, two connections that write or checkpoint at once can corrupt a write-ahead log


def load() -> None:
    """Sees that SQLite can be used.

    Raises:
      UserError: apsw is not installed, or its SQLite is too old.
    """
    try:
        import apsw
    except ImportError as error:
        raise UserError(
            f"histories in a file need apsw ({first_line(error)}): pip install 'synergen-jax[serve]'"
        ) from None
    version = apsw.sqlite_lib_version()
    if tuple(map(int, version.split("."))) < OLDEST:
        raise UserError(
            f"apsw brings SQLite {version}, which can corrupt a file that several connections write; "
            f"{'.'.join(map(str, OLDEST))} or newer is needed: pip install -U apsw"
        )


@contextlib.contextmanager
def telling(path: pathlib.Path) -> collections.abc.Iterator[None]:
    """Turns errors of SQLite into what they mean for a store."""
    import apsw

    try:
        yield
    except apsw.NotADBError:
        raise UserError(f"{path} is no SQLite database: give another file") from None
    except apsw.FullError as error:
        raise Unavailable(f"{path}: the disk is full: make room, then ask again") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise Unavailable(f"{path}: another program has locked the file: end it, or ask again") from error
    except apsw.CantOpenError as error:
        raise Unavailable(f"{path} cannot be opened, or is not there") from error
    except (apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise Unavailable(f"{path} cannot be written") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except apsw.Error as error:
        raise Unavailable(f"{path}: SQLite says: {first_line(error)}") from error


def rows(connection: apsw.Connection, statement: str, *values: object) -> list[typing.Any]:  # Any: of what columns hold
    """All rows that a statement gives: it is over when this returns, and holds no lock."""
    return connection.execute(statement, values).fetchall()


@contextlib.contextmanager
def transaction(connection: apsw.Connection, kind: str) -> collections.abc.Iterator[None]:
    import apsw

    connection.execute(f"begin {kind}")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            with contextlib.suppress(apsw.Error):  # the first error is the one to tell
                connection.execute("rollback")
        raise
