"""The seam where what a driver raises becomes an error of ours."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpsearch.errors import HpsearchError, InvalidInput, StoreError, StoreFull, StoreUnreachable
from hpsearch_storage.urls import fault_of_folder, file_of, shown

_FULL_BELOW = 1_000_000
"""With fewer bytes free than this, an input/output error of SQLite means a full disk."""


class Transient(StoreError):
    """The transaction was rolled back because of another one: the same again may succeed."""


class Disconnected(StoreUnreachable):
    """A connection that stood broke: another one may fare better."""


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Raise errors of SQLAlchemy and the drivers as errors of ours."""
    try:
        yield
    except HpsearchError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _translate(error, url) from error
    except OverflowError as error:
        raise InvalidInput("a number needs more than 64 bits: no database keeps it") from error


def _translate(error: Exception, url: URL) -> HpsearchError:
    if isinstance(error, PoolTimeout):
        return StoreError(f"the store {shown(url)} is overloaded: no connection became free in time; try again")
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    if isinstance(cause, HpsearchError):  # raised by a column type
        return cause
    if isinstance(cause, OverflowError | UnicodeError):
        return InvalidInput("a value holds a number or a text that no database keeps")
    if isinstance(cause, sqlite3.Error):
        return _from_sqlite(cause, url)
    return _from_postgres(cause, url, disconnected=isinstance(error, DBAPIError) and error.connection_invalidated)


def _from_sqlite(error: sqlite3.Error, url: URL) -> HpsearchError:
    name = getattr(error, "sqlite_errorname", None) or ""
    where, path = shown(url), file_of(url) or Path()
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and _is_full(path)):
        return StoreFull(where)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreError(f"the store {where} is kept locked by another process; nothing was written, try again")
    if name.startswith("SQLITE_READONLY"):
        return StoreUnreachable(where, f"{path} or its folder is read-only; make both writable")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return StoreUnreachable(where, _why_not_open(path))
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        damage = "is not a SQLite database" if name == "SQLITE_NOTADB" else "is damaged"
        return StoreUnreachable(where, f"{path} {damage}; restore a copy of it, or give another file")
    if name.startswith("SQLITE_IOERR"):
        return StoreUnreachable(where, f"the disk of {path} reports an error ({name})")
    if name.startswith(("SQLITE_TOOBIG", "SQLITE_MISMATCH")):
        return InvalidInput(f"a value is too large for the store: {error}")
    return StoreError(f"the store {where} could not do it: {_first_line(error)}; nothing was written")


def _from_postgres(error: BaseException, url: URL, *, disconnected: bool) -> HpsearchError:
    state = getattr(error, "sqlstate", None) or ""
    where = shown(url)
    if state in ("40001", "40P01", "55P03"):
        return Transient(f"the store {where} is contended: {_first_line(error)}; nothing was written, try again")
    if state in ("53100", "53200"):
        return StoreFull(where)
    if state.startswith("22") or (not state and type(error).__name__ == "DataError"):
        return InvalidInput(f"the database refuses a value: {_first_line(error)}")
    unreachable = ("08", "28", "3D", "42501", "53", "57P", "25006")
    if disconnected:
        return Disconnected(where, _first_line(error))
    if state.startswith(unreachable) or (not state and type(error).__name__ == "OperationalError"):
        return StoreUnreachable(where, _first_line(error))
    return StoreError(f"the store {where} could not do it: {_first_line(error)}; nothing was written")


def _why_not_open(path: Path) -> str:
    if fault := fault_of_folder(path):
        return fault
    if path.is_dir():
        return f"{path} is a folder; name a file"
    return f"{path} cannot be opened; check the rights on it and its folder"


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.absolute().parent).free < _FULL_BELOW
    except OSError:
        return False


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" -\t") for line in str(error).strip().splitlines()]
    if lines and lines[0].startswith("Multiple connection attempts failed"):
        lines = lines[1:]  # psycopg tries IPv6 and IPv4, and says the same of both
    return lines[0].rstrip(".") if lines else type(error).__name__
