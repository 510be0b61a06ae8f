"""Care for a store: backups, checks, studies as files, thinning, and what deleting leaves behind."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from hpsearch.errors import Conflict, HpsearchError, InvalidInput, NotFound, StoreError, StoreInUse
from hpsearch.spec import parse_study
from hpsearch.store import Store, TrialQuery, WorkerHello
from hpsearch.study import Border, NewStage, Study, StudyState
from hpsearch.testing import alone
from hpsearch.trial import Report, Result, RungPlace, TrialState
from hpsearch_storage import backups, maintenance, open_store, study_files
from hpsearch_storage.checking import check
from hpsearch_storage.engine import Database
from hpsearch_storage.filesystems import network_type
from hpsearch_storage.migrations import VERSION_TABLE
from hpsearch_storage.tables import metadata
from hpsearch_storage.urls import parse_url
from stores import DOCUMENT, NOW, TTL, sentence

DAY = timedelta(days=1)


def rich_study(store: Store, name: str = "a") -> Study:
    """A study with something in every table: retried, late, diverged and given trials, rungs, notes, two stages."""
    document = DOCUMENT | {"name": name, "notes": "ä ' \" % : \\n", "stages": [{"name": "one", "trials": 20}]}
    spec = parse_study(document)
    study, _ = store.create_study(spec, NewStage(spec.stages[0], spec.space, 20), now=NOW)
    stage = store.stages(study.id)[0]
    assert store.add_trials(stage.id, 0, [{"x": k / 7} for k in range(8)], now=NOW)
    hello = WorkerHello("w", "s", {})
    lost = alone.lease(store, hello, 2, now=NOW, ttl=TTL, study=name)
    alone.report(store, "w", [Report(lost[0].token, 1, {"loss": float("nan")})], now=NOW, ttl=TTL)
    store.reap(now=NOW + 2 * TTL, max_lost=3)
    alone.finish(store, "w", [Result(lost[0].token, TrialState.COMPLETED, 0.1)], now=NOW + 2 * TTL)
    leases = alone.lease(store, hello, 6, now=NOW + DAY, ttl=TTL, study=name)
    for step in range(1, 31):
        told = [Report(lease.token, step, {"loss": lease.trial + 1 / step, "other": 1e-300}) for lease in leases]
        alone.report(store, "w", told, now=NOW + DAY, ttl=TTL)
    results = [Result(lease.token, TrialState.COMPLETED) for lease in leases[:4]]
    results.append(Result(leases[4].token, TrialState.DIVERGED, reason="exploded", verdicts=({"name": "diverged"},)))
    alone.finish(store, "w", results, now=NOW + DAY)
    store.add_finished(stage.id, [({"x": 0.25}, TrialState.COMPLETED, 1e308)], now=NOW + DAY)
    store.record_rungs(stage.id, {RungPlace(0, 1, 2): 0.5, RungPlace(0, 1, 3): None}, after=0)
    store.acknowledge(study.id, Border("one", "x", "low"), "seen", now=NOW)
    store.log_test(study.id, {"metrics": {"loss": 0.5}}, now=NOW)
    return store.study(name)


def everything(store: Store, study: Study) -> dict[str, Any]:
    """All that the store says of a study, but for keys."""
    trials = store.trials(study.id, TrialQuery(limit=1000)).items
    numbers = [trial.number for trial in trials]
    stages = store.stages(study.id)
    return {
        "spec": study.spec,
        "times": (study.created_at, study.ended_at, study.next_number),
        "stages": [(s.name, s.state, s.counts, s.n_created, s.n_epochs, s.opened_at, s.ended_at) for s in stages],
        "trials": trials,
        "attempts": [store.attempts(study.id, number) for number in numbers],
        "metrics": [repr(step) for step in store.metrics(study.id, numbers)],
        "events": store.events(study.id, after=0, limit=1000),
        "rungs": [store.record_rungs(stage.id, {}, after=0) for stage in stages],
        "notes": store.acknowledgements(study.id),
        "test": store.test_reading(study.id),
        "preflight": store.preflight(study.id),
    }


def counts(connection: Connection) -> dict[str, int]:
    return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in metadata.tables}


# -- studies as files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["same", "other"])
def test_a_study_goes_round_as_a_file(
    store: Store, url: str, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = rich_study(store)
    store.set_state(study.id, StudyState.COMPLETED, now=NOW + 2 * DAY)
    before = everything(store, store.study("a"))
    file = tmp_path / "a.study.gz"
    assert maintenance.export_study(url, "a", file, now=NOW) == 9
    assert b"token" not in gzip.decompress(file.read_bytes()), "a token speaks for a worker"
    if target == "same":
        store.delete_study(study.id)
        there = url
    else:
        there = request.getfixturevalue("postgres_url" if url.startswith("sqlite") else "sqlite_url")
    made = maintenance.import_study(there, file, name=None, now=NOW + 3 * DAY)
    assert (made.name, made.n_trials, made.state) == ("a", 9, "completed")
    other = open_store(there)
    assert everything(other, other.study("a")) == before
    other.close()
    assert maintenance.check(there).faults == ()


def test_what_was_imported_is_known_to_the_planner(sqlite_url: str, postgres_url: str, tmp_path: Path) -> None:
    """Until it counts for itself PostgreSQL takes a new table for a small one, and sorts all of it for a page."""
    store = open_store(sqlite_url)
    rich_study(store)
    store.close()
    maintenance.export_study(sqlite_url, "a", tmp_path / "a", now=NOW)
    maintenance.import_study(postgres_url, tmp_path / "a", name="b", now=NOW)
    with psycopg.connect(postgres_url) as connection:
        counted = connection.execute("SELECT relname, reltuples FROM pg_class WHERE relname IN ('trials', 'metrics')")
        known: dict[str, float] = dict(counted.fetchall())
    assert known == {"trials": 9, "metrics": known["metrics"]}
    assert known["metrics"] > 0


def test_a_study_that_runs_is_imported_paused(store: Store, url: str, tmp_path: Path) -> None:
    study = rich_study(store)
    maintenance.export_study(url, "a", tmp_path / "a", now=NOW)
    made = maintenance.import_study(url, tmp_path / "a", name="b", now=NOW + DAY)
    assert (made.name, made.state) == ("b", "paused")
    copy = store.study("b")
    assert (copy.spec.name, copy.reason) == ("b", "imported: resume it to go on")
    held = [t.number for t in store.trials(study.id, TrialQuery(states=(TrialState.RUNNING,))).items]
    assert len(held) == 1
    again = store.trial(copy.id, held[0])
    assert (again.state, store.attempts(copy.id, held[0])[-1].state) == (TrialState.QUEUED, "released")
    assert maintenance.check(url).faults == ()
    store.set_state(copy.id, StudyState.RUNNING, now=NOW + DAY)
    lease = alone.lease(store, WorkerHello("v", "s", {}), 1, now=NOW + DAY, ttl=TTL, study="b")[0]
    assert alone.finish(store, "v", [Result(lease.token, TrialState.COMPLETED, 1.0)], now=NOW + DAY)[0].accepted


def test_files_that_are_no_whole_study(store: Store, url: str, tmp_path: Path) -> None:
    rich_study(store)
    file = tmp_path / "a"
    maintenance.export_study(url, "a", file, now=NOW)
    whole, lines = file.read_bytes(), gzip.decompress(file.read_bytes()).splitlines()
    head = json.loads(lines[0])
    damaged = {
        "cut": (whole[: len(whole) // 2], "damaged or not whole"),
        "flipped": (whole[:200] + bytes([whole[200] ^ 255]) + whole[201:], "damaged"),
        "text": (b"name: a\n", "no file of hpsearch export"),
        "shorter": (gzip.compress(b"\n".join([*lines[:-2], lines[-1]])), "not whole"),
        "endless": (gzip.compress(b"\n".join(lines[:-1])), "not whole"),
        "headless": (gzip.compress(b"\n".join(lines[1:])), "no file of hpsearch export"),
        "newer": (gzip.compress(json.dumps(head | {"schema": "9999"}).encode()), "newer hpsearch (schema 9999)"),
        "list": (gzip.compress(b"[1]"), "no file of hpsearch export"),
    }
    for name, (data, said) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput) as error:
            maintenance.import_study(url, tmp_path / name, name="b", now=NOW)
        assert said in sentence(error), name
    with pytest.raises(InvalidInput, match="there is no file"):
        maintenance.import_study(url, tmp_path / "nothing", name=None, now=NOW)
    with pytest.raises(Conflict, match="give --name another"):
        maintenance.import_study(url, file, name=None, now=NOW)
    with pytest.raises(HpsearchError):
        maintenance.import_study(url, file, name="no/name", now=NOW)
    with pytest.raises(NotFound):
        maintenance.export_study(url, "nobody", tmp_path / "new", now=NOW)
    with pytest.raises(InvalidInput, match="there already"):
        maintenance.export_study(url, "a", file, now=NOW)
    assert [study.name for study in store.studies(limit=10).items] == ["a"], "nothing is left of what failed"
    assert not (tmp_path / "new").exists()


def test_every_table_of_a_study_is_in_its_file() -> None:
    owners = {table.name: {key.column.table.name for key in table.foreign_keys} for table in metadata.sorted_tables}
    told = {"studies", "stages", "trials", "events", "rungs", *study_files.OF_STUDY, *study_files.OF_TRIAL}
    assert {name for name, of in owners.items() if of & {"studies", "stages", "trials"}} | {"studies"} == told


# -- checks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE stages SET n_completed = n_completed + 1", "a stage counts other trials than it has: one of study"),
        ("UPDATE stages SET n_epochs = 0", "other epochs"),
        ("DELETE FROM trials WHERE number = 3", "the numbers of trials have a gap"),
        ("DELETE FROM events WHERE seq = 2", "the log has a gap"),
        ("UPDATE attempts SET state = 'lost' WHERE state = 'running'", "a running trial is held by nobody"),
        ("UPDATE trials SET state = 'queued' WHERE state = 'running'", "a lease holds a trial that does not run"),
        ("UPDATE trials SET n_attempts = 7 WHERE number = 0", "another number of attempts"),
        ("UPDATE attempts SET state = 'finished' WHERE state = 'lost'", "was finished by two attempts"),
        ("UPDATE trials SET value = NULL WHERE state = 'completed'", "a completed trial has no value"),
        ("UPDATE studies SET state = 'completed'", "an ended study has open trials"),
    ],
)
def test_damage_is_found(store: Store, url: str, damage: str, said: str) -> None:
    rich_study(store)
    assert maintenance.check(url).faults == ()
    database = Database(parse_url(url))
    database.write(lambda connection: connection.execute(text(damage)))
    assert any(said in fault for fault in check(database).faults)
    database.close()


def test_a_check_changes_no_schema_and_refuses_a_newer_one(store: Store, url: str, tmp_path: Path) -> None:
    assert maintenance.upgrade(url)[0] == maintenance.check(url).newest
    database = Database(parse_url(url))
    database.write(lambda connection: connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")))
    for call in (maintenance.check, maintenance.upgrade):
        with pytest.raises(StoreError, match="newer hpsearch"):
            call(url)
    database.close()
    with pytest.raises(InvalidInput, match="there is no store at"):
        maintenance.check(f"sqlite:///{tmp_path}/no.db")
    assert not (tmp_path / "no.db").exists()


# -- backups ------------------------------------------------------------------------------------------------------


def test_a_backup_of_a_store_at_work(tmp_path: Path, sqlite_url: str) -> None:
    store = open_store(sqlite_url, exclusive=True)
    study = rich_study(store)
    stage, stop = store.stages(study.id)[0], threading.Event()

    def work() -> None:
        while not stop.is_set():
            store.add_finished(stage.id, [({"x": 0.5}, TrialState.COMPLETED, 0.5)] * 50, now=NOW)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for name in ("one.db", "two.db"):
            assert backups.backup(sqlite_url, tmp_path / name) == (tmp_path / name).stat().st_size
    finally:
        stop.set()
        writer.join()
    for name in ("one.db", "two.db"):
        url = f"sqlite:///{tmp_path / name}"
        assert maintenance.check(url).faults == ()
        copy = open_store(url)
        n = copy.study("a").next_number
        assert copy.stages(study.id)[0].counts[TrialState.COMPLETED] == 5 + n - 9
        copy.close()
    with pytest.raises(StoreInUse):
        backups.restore(tmp_path / "one.db", sqlite_url, replace=True)
    store.close()
    with pytest.raises(InvalidInput, match="--replace"):
        backups.restore(tmp_path / "one.db", sqlite_url)
    backups.restore(tmp_path / "one.db", sqlite_url, replace=True)
    with sqlite3.connect(tmp_path / "one.db") as kept, sqlite3.connect(tmp_path / "store.db") as restored:
        assert list(kept.iterdump()) == list(restored.iterdump())
    kept.close()
    restored.close()
    backups.restore(tmp_path / "two.db", f"sqlite:///{tmp_path}/new.db")
    assert maintenance.check(f"sqlite:///{tmp_path}/new.db").faults == ()


def test_what_is_no_backup_replaces_nothing(tmp_path: Path, sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    rich_study(store)
    store.close()
    backups.backup(sqlite_url, tmp_path / "good.db")
    data = (tmp_path / "good.db").read_bytes()
    (tmp_path / "text.db").write_bytes(b"name: a\n" * 1000)
    (tmp_path / "cut.db").write_bytes(data[: len(data) // 2])
    (tmp_path / "bad.db").write_bytes(data[:40_000] + b"\xff" * 60_000 + data[100_000:])
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "newer.db").write_bytes(data)
    with sqlite3.connect(tmp_path / "newer.db") as newer:
        newer.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    newer.close()
    for name in ("text.db", "cut.db", "bad.db", "empty.db", "newer.db", "nothing.db"):
        with pytest.raises(HpsearchError) as error:
            backups.restore(tmp_path / name, sqlite_url, replace=True)
        assert name in sentence(error)
        assert maintenance.check(sqlite_url).faults == ()
    with pytest.raises(InvalidInput, match="a backup overwrites nothing"):
        backups.backup(sqlite_url, tmp_path / "good.db")
    with pytest.raises(InvalidInput, match="cannot be written: the folder"):
        backups.backup(sqlite_url, tmp_path / "no" / "where.db")


def test_postgres_is_backed_up_by_its_own_tools(tmp_path: Path) -> None:
    url = "postgresql://u:secret@h/db"
    with pytest.raises(InvalidInput, match=r"pg_dump --format=custom --file=\S+ postgresql://u:\*\*\*@h/db") as error:
        backups.backup(url, tmp_path / "a")
    assert "secret" not in str(error.value)
    with pytest.raises(InvalidInput, match="pg_restore"):
        backups.restore(tmp_path / "a", url)


# -- retention ----------------------------------------------------------------------------------------------------


def test_deleting_a_study_leaves_nothing(store: Store, url: str) -> None:
    study = rich_study(store)
    database = Database(parse_url(url))
    there = {name for name, n in database.read(counts).items() if n}
    family = {"studies", "stages", "trials"}
    owned = {t.name for t in metadata.sorted_tables if {key.column.table.name for key in t.foreign_keys} & family}
    owned.add("studies")
    assert {"stages", "trials", "attempts", "metrics", "events", "rungs", "acknowledgements"} <= there & owned
    store.delete_study(study.id)
    assert {name for name, n in database.read(counts).items() if n} & owned == set()
    database.close()


def test_thinning_is_told_and_spares_what_is_young(store: Store, url: str) -> None:
    study = rich_study(store)
    done = store.trial(study.id, 2)

    def thin(**more: Any) -> list[tuple[str, int]]:
        given: dict[str, Any] = {"older_than": 30 * DAY, "keep_every": 10, "study": None, "dry_run": False} | more
        found = maintenance.thin(url, now=given.pop("now", NOW + 40 * DAY), **given)
        return [(each.study, each.n_removed) for each in found]

    with pytest.raises(InvalidInput, match="has not ended"):
        thin(study="a")
    store.set_state(study.id, StudyState.COMPLETED, now=NOW + DAY)
    assert thin(now=NOW + 20 * DAY) == [], "it ended too lately"
    seq = store.last_event(study.id)
    assert thin(dry_run=True) == [("a", 6 * 26)]
    assert store.last_event(study.id) == seq
    assert thin() == [("a", 6 * 26)]
    assert [step.step for step in store.metrics(study.id, [2])] == [1, 10, 20, 30]
    assert store.trial(study.id, 2) == done
    (event,) = store.events(study.id, after=seq, limit=10)
    assert (event.kind, event.data["keep_every"], event.data["n_removed"]) == ("thinned", 10, 156)
    assert thin() == [], "again changes nothing"
    assert store.last_event(study.id) == seq + 1
    with pytest.raises(InvalidInput, match="2 or more"):
        thin(keep_every=1)
    with pytest.raises(NotFound):
        thin(study="nobody")
    assert maintenance.check(url).faults == ()


# -- where a file lies --------------------------------------------------------------------------------------------


def test_network_file_systems_are_known_by_their_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /data\\040here nfs4 rw 0 0\ntmpfs /data\\040here/tmp tmpfs rw 0 0\n"
        "host:/y /mnt/s fuse.sshfs rw 0 0\n//h/z /mnt/over cifs rw 0 0\n/dev/sdb /mnt/over ext4 rw 0 0\n"
    )
    found = {
        path: network_type(Path(path), mounts)
        for path in ("/a.db", "/data here/a.db", "/data here/tmp/a.db", "/data/a.db", "/mnt/s/b/a.db", "/mnt/over/a.db")
    }
    assert found == {
        "/a.db": None,
        "/data here/a.db": "nfs4",
        "/data here/tmp/a.db": None,
        "/data/a.db": None,
        "/mnt/s/b/a.db": "fuse.sshfs",
        "/mnt/over/a.db": None,
    }
    assert network_type(tmp_path, tmp_path / "nothing") is None


def test_a_store_on_a_network_file_system_is_warned_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hpsearch_storage.opening.network_type", lambda path: "nfs4")
    with caplog.at_level(logging.WARNING):
        open_store(sqlite_url).close()
    assert "lies on a network file system (nfs4)" in caplog.text
