"""SQL that is written out, for the few statements that every report and every result needs.

Building a statement from expressions, and having each value converted by its column's type, takes SQLAlchemy several
times as long as the database takes to run it. What is here goes to the driver as it is, and takes and gives the values
as the database keeps them.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    import psycopg

Rows = Sequence[tuple[Any, ...]]
Change = tuple["Bulk", Rows]
"""A change of many rows, not run yet."""

_LIST = re.compile(r"= ANY \(%s::\w+\[\]\)")
_LOCK = re.compile(r" FOR (NO KEY UPDATE|SHARE)( OF \w+)?( SKIP LOCKED)?")
_QUOTED = str.maketrans({'"': '\\"', "\\": "\\\\"})


class Statement:
    """One statement, in the words of PostgreSQL.

    SQLite is given the same with ``?`` for ``%s``, ``IN (SELECT value FROM json_each(?))`` for ``= ANY (%s::type[])``
    and without locking clauses: there the whole database is locked.
    """

    def __init__(self, text: str) -> None:
        self._postgres = " ".join(text.split())
        sqlite = _LIST.sub("IN (SELECT value FROM json_each(%s))", _LOCK.sub("", self._postgres))
        self._sqlite = sqlite.replace("%s", "?")

    def rows(self, connection: Connection, *values: Any) -> Rows:
        """Run it and read all of its rows; a list stands for the values of ``ANY``."""
        if connection.dialect.name == "postgresql":
            return _postgres(connection, self._postgres, values).fetchall()
        return _sqlite(connection).execute(self._sqlite, _sqlite_values(values)).fetchall()

    def run(self, connection: Connection, *values: Any) -> int:
        """Run it; returns how many rows it changed."""
        if connection.dialect.name == "postgresql":
            return _postgres(connection, self._postgres, values).rowcount
        return _sqlite(connection).execute(self._sqlite, _sqlite_values(values)).rowcount


def _sqlite(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection: its errors are known to :mod:`hpsearch_storage.faults` as they are."""
    return connection.connection.driver_connection  # type: ignore[return-value]


def _sqlite_values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(json.dumps(value) if isinstance(value, list) else value for value in values)


def _postgres(connection: Connection, text: str, values: tuple[Any, ...]) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a statement by the driver; its errors are raised as SQLAlchemy raises them, broken connections let go."""
    driver: Any = connection.connection.driver_connection
    try:
        found: psycopg.Cursor[tuple[Any, ...]] = driver.execute(text, _postgres_values(values))
    except connection.dialect.loaded_dbapi.Error as error:
        is_gone = connection.dialect.is_disconnect(error, driver, None)
        if is_gone:
            connection.invalidate(error)
        raise DBAPIError(text, None, error, connection_invalidated=is_gone) from error
    return found


def _postgres_values(values: tuple[Any, ...]) -> list[Any]:
    return [_array_text(value) if isinstance(value, list) else value for value in values]


def _array_text(items: list[Any]) -> str:
    """An array of PostgreSQL as its text: the driver would look at the items one by one."""
    if items and isinstance(items[0], str):
        return "{" + ",".join(f'"{item.translate(_QUOTED)}"' for item in items) + "}"
    return "{" + ",".join("NULL" if item is None else str(item) for item in items) + "}"


class Bulk:
    """One change of many rows: on SQLite row after row by the driver, on PostgreSQL one statement over a JSON text.

    Args:
        sqlite: the statement for one row, with ``?``.
        postgres: the statement that reads ``{rows}``, a table of the columns named in ``types``.
        types: name → PostgreSQL's type, in the order of the values of a row.
    """

    def __init__(self, *, sqlite: str, postgres: str, types: dict[str, str]) -> None:
        named = ", ".join(f"{name} {kind}" for name, kind in types.items())
        self.sqlite = " ".join(sqlite.split())
        self.postgres = " ".join(postgres.split()).format(rows=f"json_to_recordset(%s::json) AS given ({named})")
        self.names = tuple(types)

    def run(self, connection: Connection, rows: Rows) -> None:
        """Change the rows; none is fine."""
        run_together(connection, (self, rows))

    def text(self, rows: Rows) -> str:
        """Rows as PostgreSQL is given them."""
        return json.dumps([dict(zip(self.names, row, strict=True)) for row in rows], ensure_ascii=False)


def run_together(connection: Connection, *changes: Change) -> None:
    """Make changes of different tables: on PostgreSQL in one statement, which waits once for an answer."""
    given = [(bulk, rows) for bulk, rows in changes if rows]
    if not given:
        return
    if connection.dialect.name == "postgresql":
        statement = _together(tuple(bulk for bulk, _ in given))
        _postgres(connection, statement, tuple(bulk.text(rows) for bulk, rows in given))
        return
    for bulk, rows in given:
        change_rows(connection, bulk.sqlite, rows)


def change_rows(connection: Connection, text: str, rows: Rows) -> int:
    """Run a statement of SQLite for each row of values; returns how many rows it changed."""
    return _sqlite(connection).executemany(text, rows).rowcount


@lru_cache(maxsize=64)
def _together(bulks: tuple[Bulk, ...]) -> str:
    *first, last = [bulk.postgres for bulk in bulks]
    named = ", ".join(f"change_{i} AS ({text})" for i, text in enumerate(first))
    return f"WITH {named} {last}" if named else last
