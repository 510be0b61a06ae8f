"""Connections and transactions. Nothing else in this package begins or commits."""

from __future__ import annotations

import contextlib
import math
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from hpsearch.at_once import is_at_once
from hpsearch.errors import StoreError, StoreFull, WouldWait
from hpsearch_storage.faults import Disconnected, Transient, translated
from hpsearch_storage.urls import file_of, shown

T = TypeVar("T")

PATIENCE = timedelta(seconds=30)
"""How long a transaction waits for the locks of others, or for a free connection, before it gives up."""
_RETRIES = 10
_WAL_SECONDS = 10.0
_CHECKPOINT_PAGES = 4000
"""The write-ahead log is written back at so many pages (16 MB): the same pages change in every transaction."""


class Database:
    """Transactions on one database.

    SQLite: one connection writes, begins ``IMMEDIATE``, and takes what all threads wait to write in one transaction
    (:class:`GroupCommit`); others read snapshots of the write-ahead log, so that readers never wait for the writer
    nor it for them.
    PostgreSQL: transactions at READ COMMITTED; one that deadlocks or fails to serialise is tried again. It groups
    commits by itself. What only reads is not bracketed by BEGIN and COMMIT, which would take twice as long and, at this
    level, show nothing else.

    Attributes:
        observe: called after every transaction with ``read`` or ``write`` and the seconds that it took.
    """

    def __init__(self, url: URL, *, patience: timedelta = PATIENCE) -> None:
        self.url = url
        self.observe: Callable[[str, float], None] = _unobserved
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writer = _sqlite_engine(url, begin="BEGIN IMMEDIATE", connections=1, patience=patience)
            self._reader = _sqlite_engine(url, begin="BEGIN", connections=64, patience=patience)
            self._group = GroupCommit(self._writer, url, patience=2 * patience)
        else:
            self._writer = _postgres_engine(url, patience, "READ COMMITTED")
            self._by_statement = self._writer.execution_options(isolation_level="AUTOCOMMIT")
            self._reader = _postgres_engine(url, patience, "AUTOCOMMIT")

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one durable transaction; it is run again if another transaction got in its way.

        Raises:
            WouldWait: the caller must not wait, and others write, the disk is slow, or the database is another process.
        """
        if is_at_once():
            return self._write_at_once(work)
        started = time.perf_counter()
        try:
            return self._write(work)
        finally:
            self.observe("write", time.perf_counter() - started)

    def _write_at_once(self, work: Callable[[Connection], T]) -> T:
        if not self.is_sqlite:
            raise WouldWait
        started = time.perf_counter()
        answer = self._group.write_at_once(work)
        self.observe("write", time.perf_counter() - started)
        return answer

    def _write(self, work: Callable[[Connection], T]) -> T:
        if self.is_sqlite:
            return self._group.write(work)
        for turn in range(_RETRIES):
            has_worked = False
            try:
                with translated(self.url), self._writer.begin() as connection:
                    answer = work(connection)
                    has_worked = True
                return answer
            except Transient:
                if turn == _RETRIES - 1:
                    raise
            except Disconnected:  # once, for a connection that broke while it lay idle; never where a commit was sent
                if turn > 0 or has_worked:
                    raise
            time.sleep(random.uniform(0, 0.005 * 2**turn))
        raise AssertionError("unreachable")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work``, which only reads: on SQLite one snapshot, on PostgreSQL what is there at each statement."""
        started = time.perf_counter()
        try:
            with contextlib.suppress(Disconnected):  # as in write
                return self._read(work)
            return self._read(work)
        finally:
            self.observe("read", time.perf_counter() - started)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with translated(self.url), self._reader.connect() as connection:
            if self.is_sqlite:  # by the driver, in a fifth of the time; the pool ends it
                connection.connection.driver_connection.execute("BEGIN")  # type: ignore[union-attr]
            return work(connection)

    def write_alone(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on PostgreSQL, each of its statements a transaction of its own. It is not run again."""
        started = time.perf_counter()
        try:
            with translated(self.url), self._by_statement.connect() as connection:
                return work(connection)
        finally:
            self.observe("write", time.perf_counter() - started)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that reads, however long, what was there when it began. On SQLite that is any transaction."""
        engine = self._reader if self.is_sqlite else self._writer.execution_options(isolation_level="REPEATABLE READ")
        with translated(self.url), engine.begin() as connection:
            yield connection

    def can_be_written(self) -> bool:
        """Whether the rights on the file allow writing, if there is one; else a transaction that writes says why."""
        path = file_of(self.url)
        return path is None or all(os.access(each, os.W_OK) for each in (path, path.absolute().parent))

    def close(self) -> None:
        """Close every connection."""
        if self.is_sqlite:
            self._group.close()
        self._reader.dispose()
        self._writer.dispose()


def _unobserved(kind: str, seconds: float) -> None:
    """Nobody asks how long transactions take."""


class _Waiting(Generic[T]):
    """Work that a thread waits for, and what came of it."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.work = work
        self.is_done = False
        self.answer: T | None = None
        self.error: Exception | None = None

    def outcome(self) -> T:
        """The answer, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.answer  # type: ignore[return-value]  # done without an error


class GroupCommit:
    """One connection that many threads write through: what waits together is made durable together.

    Whoever has the turn runs all that waits in one transaction, each in a savepoint of its own, and commits once; the
    others find theirs done when the turn comes to them. So a commit's wait for the disk is paid once for all, and
    work that fails undoes itself alone. Nobody is answered before the commit.
    """

    MOST = 64
    """Works in one transaction: so many wait for the last of them."""
    SLOW_SECONDS = 0.05
    """A commit that takes longer waits for a slow disk."""
    WARY_SECONDS = 1.0
    """So long after one, nothing is written by a thread that must not wait."""

    def __init__(self, engine: Engine, url: URL, *, patience: timedelta) -> None:
        self._engine = engine
        self._url = url
        self._patience = patience.total_seconds()
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting[Any]] = deque()
        self._connection: Connection | None = None
        self._has_begun = False
        self._wary_until = -math.inf

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run work in a transaction, and return once that is durable."""
        mine = _Waiting(work)
        self._waiting.append(mine)
        if not self._turn.acquire(timeout=self._patience):
            try:
                self._waiting.remove(mine)
            except ValueError:  # somebody has begun it: then its outcome is waited for
                self._turn.acquire()
            else:
                raise StoreError(f"the store {shown(self._url)} is overloaded: nothing was written; try again")
        try:
            if not mine.is_done:  # then it waits still: whoever takes works finishes them in the same turn
                self._waiting.remove(mine)
                others = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.MOST - 1))]
                self._run([mine, *others])
        finally:
            self._turn.release()
        return mine.outcome()

    def write_at_once(self, work: Callable[[Connection], T]) -> T:
        """Like :meth:`write`, for a thread that must not wait. Raises WouldWait."""
        if time.monotonic() < self._wary_until or not self._turn.acquire(blocking=False):
            raise WouldWait
        mine = _Waiting(work)
        try:
            self._run([mine], wait=False)
        finally:
            self._turn.release()
        return mine.outcome()

    def close(self) -> None:
        """Let the connection go."""
        with self._turn:
            self._drop()

    def _run(self, group: Sequence[_Waiting[Any]], *, wait: bool = True) -> None:
        """Run works together; if that fails, each by itself, so that none fails for another's sake."""
        try:
            self._commit(group, wait=wait)
        except Exception as error:
            if len(group) == 1 or not self._has_begun:  # alone none would fare better
                for each in group:
                    each.error = each.error or error
            else:
                for each in group:
                    self._run([each])
        except BaseException:  # this thread is told to stop, and nothing is durable
            for each in group:
                each.error = StoreError(f"the store {shown(self._url)} was interrupted; nothing was written, try again")
            raise
        finally:
            for each in group:
                each.is_done = True

    def _commit(self, group: Sequence[_Waiting[Any]], *, wait: bool) -> None:
        self._has_begun = False
        try:
            with translated(self._url):
                connection = self._connection = self._connection or self._engine.connect()
                with _immediate(connection, wait=wait):
                    self._has_begun = True
                    for each in group:
                        self._try(connection, each, alone=len(group) == 1)
                    worked = time.monotonic()
            committed = time.monotonic()
            if committed - worked > self.SLOW_SECONDS:
                self._wary_until = committed + self.WARY_SECONDS
        except StoreError as error:
            if not isinstance(error, StoreFull):
                self._drop()
            raise

    def _try(self, connection: Connection, each: _Waiting[Any], *, alone: bool) -> None:
        """Run one work. An error of the work undoes it alone; one of the database may void the transaction."""
        each.error = None
        if alone:
            each.answer = each.work(connection)
            return
        connection.exec_driver_sql("SAVEPOINT work")
        try:
            with translated(self._url):
                each.answer = each.work(connection)
        except StoreError:
            raise
        except Exception as error:
            each.error = error
            connection.exec_driver_sql("ROLLBACK TO work")
        connection.exec_driver_sql("RELEASE work")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, sqlite3.Error):
                connection.close()


@contextmanager
def _immediate(connection: Connection, *, wait: bool) -> Iterator[None]:
    """A transaction of SQLite by its driver, in a fifth of the time that SQLAlchemy takes to begin and to commit.

    Raises:
        WouldWait: ``wait`` is False, and another process writes.
    """
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    if wait:
        driver.execute("BEGIN IMMEDIATE")
    else:
        _begin_at_once(driver)
    try:
        yield
        if connection.in_transaction():  # something was run by SQLAlchemy, which takes part in what has begun
            connection.commit()
        else:
            driver.commit()
    except BaseException:
        connection.rollback()  # also where its own commit failed, after which it counts as in no transaction
        driver.rollback()
        raise


def _begin_at_once(driver: sqlite3.Connection) -> None:
    (milliseconds,) = driver.execute("PRAGMA busy_timeout").fetchone()
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if _is_busy(error):
            raise WouldWait from error
        raise
    finally:
        driver.execute(f"PRAGMA busy_timeout = {milliseconds}")


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
        cursor.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        cursor.execute("PRAGMA synchronous = FULL")  # an acknowledged result survives a loss of power
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        if begin == "BEGIN":
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
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


def _postgres_engine(url: URL, patience: timedelta, isolation: str) -> Engine:
    options: dict[str, Any] = {"connect_timeout": 10, "application_name": "hpsearch", **url.query}
    engine = create_engine(
        url.set(query={}),
        isolation_level=isolation,
        pool_size=5,
        max_overflow=10,
        pool_timeout=patience.total_seconds(),
        connect_args=options,
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        # Every question of ours has an index. With old statistics, such as of a table that was empty a minute ago,
        # PostgreSQL would still read all trials for a handful of tokens.
        with connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off")
            cursor.execute("SET enable_bitmapscan = off")  # of a whole study, sorted anew for every page
            # An acknowledged result survives a loss of power; what waits for replicas, too, is left as it is.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
            cursor.execute("SET jit = off")
            if isolation != "AUTOCOMMIT":  # statements of workers' calls: planning them takes longer than running them
                cursor.execute("SET plan_cache_mode = force_generic_plan")
        connection.commit()

    return engine
