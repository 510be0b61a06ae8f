"""Connections and transactions. Nothing else in this package begins or commits."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from hpsearch_storage.faults import Transient, translated

T = TypeVar("T")

PATIENCE = timedelta(seconds=30)
"""How long a transaction waits for the locks of others, or for a free connection, before it gives up."""
_RETRIES = 10
_WAL_SECONDS = 10.0


class Database:
    """Transactions on one database.

    SQLite: one connection writes, begins ``IMMEDIATE`` and is waited for by threads in turn; others read snapshots
    of the write-ahead log, so that readers never wait for the writer nor it for them.
    PostgreSQL: one pool at READ COMMITTED; a transaction that deadlocks or fails to serialise is tried again.
    """

    def __init__(self, url: URL, *, patience: timedelta = PATIENCE) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", connections=1, patience=patience)
            self._reader = _sqlite_engine(url, begin="BEGIN", connections=64, patience=patience)
        else:
            self._writer = self._reader = _postgres_engine(url, patience)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one durable transaction; it is run again if another transaction got in its way."""
        for turn in range(_RETRIES):
            try:
                with translated(self.url), self._writer.begin() as connection:
                    return work(connection)
            except Transient:
                if turn == _RETRIES - 1:
                    raise
            time.sleep(random.uniform(0, 0.005 * 2**turn))
        raise AssertionError("unreachable")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction that only reads."""
        with translated(self.url), self._reader.begin() as connection:
            return work(connection)

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()


def _sqlite_engine(url: URL, *, begin: str, connections: int, patience: timedelta) -> Engine:
    kept = min(connections, 4)
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=kept,
        max_overflow=connections - kept,
        pool_timeout=2 * patience.total_seconds(),
        connect_args={"timeout": patience.total_seconds(), "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come late and without IMMEDIATE
        cursor = connection.cursor()
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")  # an acknowledged result survives a loss of power
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        if begin == "BEGIN":
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Turn the write-ahead log on. Of two processes that do so at once, SQLite fails one without waiting."""
    give_up = time.monotonic() + _WAL_SECONDS
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.001, 0.02))


def _is_busy(error: sqlite3.Error) -> bool:
    return str(getattr(error, "sqlite_errorname", "")).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _postgres_engine(url: URL, patience: timedelta) -> Engine:
    options: dict[str, Any] = {"connect_timeout": 10, "application_name": "hpsearch", **url.query}
    return create_engine(
        url.set(query={}),
        isolation_level="READ COMMITTED",
        pool_size=5,
        max_overflow=20,
        pool_timeout=patience.total_seconds(),
        pool_pre_ping=True,
        connect_args=options,
    )
