"""Transactions and connections: what they promise, and what goes wrong in the middle of them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

import hpsearch.at_once
from hpsearch.errors import Conflict, HpsearchError, InvalidInput, StoreError, StoreFull, StoreUnreachable, WouldWait
from hpsearch.spec import parse_study
from hpsearch.store import Store, TrialQuery, WorkerHello
from hpsearch.study import NewStage, StudyState
from hpsearch.testing import alone
from hpsearch.trial import Report, Result, TrialState
from hpsearch_storage import open_store
from hpsearch_storage.engine import Database, GroupCommit
from hpsearch_storage.urls import parse_url
from stores import DOCUMENT, NOW, TTL, create, sentence


def test_readers_and_the_writer_do_not_wait_for_each_other(tmp_path: Path, sqlite_url: str) -> None:
    database = Database(parse_url(sqlite_url), patience=timedelta(seconds=0.2))
    open_store(sqlite_url).close()
    count = text("SELECT count(*) FROM workers")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT INTO workers VALUES ('w', '{}', 0, 0)")
    assert database.read(lambda connection: connection.execute(count).scalar()) == 0
    with pytest.raises(StoreError) as error:
        database.write(lambda connection: connection.execute(count))
    assert "is kept locked by another process" in sentence(error)

    def read_while_other_commits(connection: Connection) -> list[Any]:
        before = connection.execute(count).scalar()
        other.execute("COMMIT")
        return [before, connection.execute(count).scalar()]

    assert database.read(read_while_other_commits) == [0, 0], "a reader keeps its snapshot"
    assert database.read(lambda connection: connection.execute(count).scalar()) == 1
    other.close()
    database.close()


def test_settings_of_a_connection(sqlite_url: str) -> None:
    open_store(sqlite_url).close()
    database = Database(parse_url(sqlite_url))

    def settings(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert database.write(settings) == ["wal", 2, 1, 30_000, 0]  # synchronous 2 is FULL
    assert database.read(settings) == ["wal", 2, 1, 30_000, 1]
    database.close()


# -- group commit -------------------------------------------------------------------------------------------------


def add_worker(name: str) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(text("INSERT INTO workers VALUES (:name, '{}', 0, 0)"), {"name": name})
        if name == "bad":
            raise Conflict("this one alone")
        if name == "twice":
            connection.execute(text("INSERT INTO workers VALUES ('twice', '{}', 0, 0)"))
        return name

    return work


def test_what_waits_together_is_committed_together(tmp_path: Path, sqlite_url: str) -> None:
    open_store(sqlite_url).close()
    database = Database(parse_url(sqlite_url))
    names = [f"w{i}" for i in range(10)] + ["bad", "twice"]
    done: dict[str, str] = {}
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Connection) -> str:
        begun.set()
        assert go_on.wait(20)
        return "held"

    def write(name: str) -> None:
        try:
            done[name] = database.write(hold if name == "hold" else add_worker(name))
        except HpsearchError as error:
            done[name] = type(error).__name__

    threads = [threading.Thread(target=write, args=(name,)) for name in ["hold", *names]]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    waiting = database._group._waiting  # nothing else tells that they wait
    while len(waiting) < len(names):
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join()
    good = {name: name for name in names if name.startswith("w")}
    assert done == good | {"hold": "held", "bad": "Conflict", "twice": "StoreError"}
    with sqlite3.connect(tmp_path / "store.db") as other:
        assert {row[0] for row in other.execute("SELECT name FROM workers")} == set(good), "each failed alone"
    other.close()
    database.close()


def test_a_group_is_one_commit(tmp_path: Path, sqlite_url: str) -> None:
    open_store(sqlite_url).close()
    database = Database(parse_url(sqlite_url))
    commits: list[str] = []

    def trace(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(lambda said: commits.append(said) if said == "COMMIT" else None)

    database.write(trace)
    barrier = threading.Barrier(32)

    def write(i: int) -> None:
        barrier.wait()
        for turn in range(5):
            database.write(add_worker(f"w{i}-{turn}"))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n = database.read(lambda connection: connection.execute(text("SELECT count(*) FROM workers")).scalar())
    assert n == 160
    assert len(commits) < 120, "many shared one"
    database.close()


def at_once(database: Database, work: Callable[[Connection], Any]) -> Any:
    with hpsearch.at_once.at_once():
        return database.write(work)


def test_what_must_not_wait_is_not_made_to(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(parse_url(sqlite_url))
    open_store(sqlite_url).close()

    def add(connection: Connection) -> str:
        name = f"w{connection.execute(text('SELECT count(*) FROM workers')).scalar()}"
        connection.execute(text("INSERT INTO workers VALUES (:name, '{}', 0, 0)"), {"name": name})
        return name

    def patience(connection: Connection) -> Any:
        return connection.exec_driver_sql("PRAGMA busy_timeout").scalar()

    monkeypatch.setattr(GroupCommit, "SLOW_SECONDS", 60.0)
    assert at_once(database, add) == "w0"
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(WouldWait):  # another process writes
        at_once(database, add)
    assert time.monotonic() - began < 5
    other.execute("ROLLBACK")
    other.close()
    assert database.write(patience) == 30_000, "who may wait does, as before"

    begun, go_on = threading.Event(), threading.Event()

    def hold(connection: Connection) -> str:
        begun.set()
        assert go_on.wait(20)
        return add(connection)

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(database.write(hold)))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(WouldWait):  # another thread writes
        at_once(database, add)
    go_on.set()
    thread.join(20)
    assert found == ["w1"]
    assert at_once(database, add) == "w2"

    monkeypatch.setattr(GroupCommit, "SLOW_SECONDS", 0.0)
    assert database.write(add) == "w3"
    with pytest.raises(WouldWait):  # the disk was slow just now
        at_once(database, add)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + GroupCommit.WARY_SECONDS)
    assert at_once(database, add) == "w4"
    database.close()


def test_a_database_elsewhere_is_always_waited_for(postgres_url: str) -> None:
    database = Database(parse_url(postgres_url))
    with pytest.raises(WouldWait):
        at_once(database, lambda connection: connection.execute(text("SELECT 1")).scalar())
    assert database.write(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    database.close()


def test_whoever_waits_too_long_for_the_writer_is_told(sqlite_url: str) -> None:
    open_store(sqlite_url).close()
    database = Database(parse_url(sqlite_url), patience=timedelta(seconds=0.1))
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        begun.set()
        assert go_on.wait(20)

    holder = threading.Thread(target=lambda: database.write(hold))
    holder.start()
    assert begun.wait(20)
    with pytest.raises(StoreError) as error:
        database.write(add_worker("late"))
    assert "is overloaded: nothing was written; try again" in sentence(error)
    go_on.set()
    holder.join()
    assert database.read(lambda c: c.execute(text("SELECT count(*) FROM workers")).scalar()) == 0
    database.close()


def test_a_pool_without_a_free_connection_is_told(postgres_url: str) -> None:
    database = Database(parse_url(postgres_url), patience=timedelta(seconds=0.1))
    go_on = threading.Event()
    begun = threading.Barrier(16)

    def hold(_: Connection) -> None:
        begun.wait(20)
        assert go_on.wait(20)

    threads = [threading.Thread(target=lambda: database.read(hold)) for _ in range(15)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    with pytest.raises(StoreError) as error:
        database.read(lambda connection: None)
    assert "is overloaded: no connection became free in time; try again" in sentence(error)
    go_on.set()
    for thread in threads:
        thread.join()
    database.close()


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


def test_no_server(postgres_server: str) -> None:
    host = postgres_server.rpartition("@")[2].partition(":")[0]
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"postgresql://u:secret@{host}:1/db?password=secret")
    assert f"the store postgresql://u:***@{host}:1/db" in sentence(error)
    assert "refused" in str(error.value)
    assert "secret" not in str(error.value)
    with pytest.raises(StoreUnreachable) as error:
        open_store("postgresql://u:secret@no.such.host.invalid/db")
    assert "secret" not in sentence(error)


def test_unknown_database_and_wrong_password(postgres_server: str) -> None:
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"{postgres_server}/nowhere")
    assert 'database "nowhere" does not exist' in sentence(error)
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guarded")
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    where = postgres_server.rpartition("@")[2]
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"postgresql://guarded:secret@{where}/postgres")
    assert 'password authentication failed for user "guarded"' in sentence(error)
    assert "secret" not in str(error.value)
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"postgresql://guarded:right@{where}/postgres")
    assert "permission denied" in sentence(error)
    assert "right@" not in str(error.value)


def test_a_lost_connection_is_replaced(postgres_url: str) -> None:
    store = open_store(postgres_url)
    create(store)
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"{end_all} pg_backend_pid()".encode())
    assert store.study("a").name == "a"
    store.close()


def test_a_connection_lost_in_a_transaction(postgres_url: str) -> None:
    database = Database(parse_url(postgres_url))

    def work(connection: Connection) -> None:
        connection.execute(text("INSERT INTO workers VALUES ('w', '{}', 0, 0)"))
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StoreUnreachable) as error:
        database.write(work)
    assert "terminating connection" in sentence(error)
    assert database.read(lambda c: c.execute(text("SELECT count(*) FROM workers")).scalar()) == 0
    database.close()


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_contended_transactions_are_tried_again(postgres_url: str, code: str) -> None:
    database = Database(parse_url(postgres_url))
    turns: list[int] = []

    def work(connection: Connection) -> str:
        turns.append(len(turns))
        connection.execute(text(f"INSERT INTO workers VALUES ('w{len(turns)}', '{{}}', 0, 0)"))
        if len(turns) < 3:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$"))
        return "done"

    assert database.write(work) == "done"
    assert turns == [0, 1, 2]
    assert database.read(lambda c: c.scalars(text("SELECT name FROM workers")).all()) == ["w3"]
    database.close()


def test_a_full_server_is_said_to_be_full(postgres_url: str) -> None:
    database = Database(parse_url(postgres_url))
    with pytest.raises(StoreFull) as error:
        database.write(lambda c: c.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$")))
    assert "free some and try again" in sentence(error)
    database.close()


# -- both ---------------------------------------------------------------------------------------------------------


def test_an_error_of_ours_undoes_the_transaction(store: Store) -> None:
    study = create(store)
    stage = NewStage(study.spec.stages[0], study.spec.space, 5)
    with pytest.raises(Conflict):
        store.open_stage(study.id, 1, stage, now=NOW)
    assert len(store.stages(study.id)) == 1
    assert store.last_event(study.id) == 2


HUGE = 2**70
BAD_TEXTS = ("nul \0", "half \ud800", "long " * 10_000)


def test_nothing_given_makes_the_driver_speak(store: Store) -> None:
    study = create(store)
    stage = store.stages(study.id)[0]
    store.add_trials(stage.id, 0, [{"x": 0.5}] * 2, now=NOW)
    hello = WorkerHello("w", "s", {})
    token = alone.lease(store, hello, 1, now=NOW, ttl=TTL, study="a")[0].token

    def with_text(bad: str) -> list[Callable[[], object]]:
        return [
            lambda: store.study(bad),
            lambda: store.trials(study.id, TrialQuery(stage=bad)),
            lambda: store.trials(study.id, TrialQuery(sort=bad)),
            lambda: store.trials(study.id, TrialQuery(sort=f"params.{bad}")),
            lambda: store.trials(study.id, TrialQuery(after=bad)),
            lambda: store.studies(limit=1, after=bad),
            lambda: alone.lease(store, WorkerHello(bad, "s", {}), 1, now=NOW, ttl=TTL),
            lambda: alone.lease(store, WorkerHello("v", bad, {bad: bad}), 1, now=NOW, ttl=TTL),
            lambda: alone.lease(store, hello, 1, now=NOW, ttl=TTL, study=bad),
            lambda: alone.lease(store, hello, 1, now=NOW, ttl=TTL, kinds=[bad]),
            lambda: store.stages_with_room(study=bad, kinds=[bad]),
            lambda: alone.report(store, bad, [Report(bad)], now=NOW, ttl=TTL),
            lambda: alone.report(store, "w", [Report(token, 1, {bad: 1.0})], now=NOW, ttl=TTL),
            lambda: alone.finish(store, "w", [Result(bad, TrialState.FAILED)], now=NOW),
            lambda: store.release("w", [bad], now=NOW),
            lambda: store.add_trials(stage.id, 2, [{"x": bad}], now=NOW),
            lambda: store.add_finished(stage.id, [({bad: 1}, TrialState.FAILED, None)], now=NOW),
            lambda: store.set_state(study.id, StudyState.PAUSED, reason=bad, now=NOW),
            lambda: create(store, name="b", notes="").name + bad,
        ]

    def with_number(big: int) -> list[Callable[[], object]]:
        return [
            lambda: store.trial(big, 0),
            lambda: store.trial(study.id, big),
            lambda: store.stages(big),
            lambda: store.metrics(study.id, [big]),
            lambda: store.events(study.id, after=big, limit=1),
            lambda: store.events(study.id, after=0, limit=big),
            lambda: store.trials(study.id, TrialQuery(limit=big)),
            lambda: store.studies(limit=big),
            lambda: alone.lease(store, hello, big, now=NOW, ttl=TTL, study="a"),
            lambda: alone.report(store, "w", [Report(token, big)], now=NOW, ttl=TTL),
            lambda: alone.report(store, "w", [Report(token, 1, {"loss": big})], now=NOW, ttl=TTL),
            lambda: store.add_trials(big, 0, [{"x": 1}], now=NOW),
            lambda: store.add_trials(stage.id, 2, [{"x": big}], now=NOW),
            lambda: store.add_finished(stage.id, [({"x": 1}, TrialState.COMPLETED, big)], now=NOW),
            lambda: store.set_state(big, StudyState.PAUSED, now=NOW),
            lambda: store.delete_study(big),
            lambda: store.stages_to_settle(max_failures=big),
            lambda: store.reap(now=NOW, max_lost=big),
        ]

    calls = [call for bad in BAD_TEXTS for call in with_text(bad)]
    calls += [call for big in (HUGE, -HUGE, 2**63, 10**400) for call in with_number(big)]
    refused = [error for call in calls if (error := refusal(call)) is not None]
    assert len(refused) > 50
    assert [error for error in refused if isinstance(error, StoreError)] == []
    assert store.study("a").id == study.id


def refusal(call: Callable[[], object]) -> HpsearchError | None:
    try:
        call()
    except HpsearchError as error:
        return error
    return None


def test_naive_times_are_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="no time zone"):
        store.reap(now=datetime(2026, 1, 1), max_lost=1)


def test_times_to_the_microsecond_in_any_zone(store: Store) -> None:
    moment = datetime.fromisoformat("2038-01-19T08:44:08.123457+05:30")
    spec = parse_study(DOCUMENT)
    study, _ = store.create_study(spec, NewStage(spec.stages[0], spec.space, 1), now=moment)
    assert study.created_at == moment
    assert store.study("a").created_at.isoformat() == "2038-01-19T03:14:08.123457+00:00"


def test_more_threads_than_connections(store: Store) -> None:
    create(store)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(store.study("a").name)) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["a"] * 40
