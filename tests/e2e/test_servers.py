"""Two servers on one PostgreSQL, no leader: one is killed at each step of a stage's end, and the other carries on.

A trigger, or a lock, of the test holds the first server at the step; then it is killed, and only then does PostgreSQL
go on with what it had been sent. The second server stands still until then, so that the first is the one at work.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pytest

from hpsearch.client import Client
from hpsearch.errors import ServerUnreachable
from hpsearch_storage.maintenance import check
from processes import House, Process, eventually

STUDY: dict[str, Any] = {
    "name": "two",
    "objective": {"kind": "external"},
    "metric": {"name": "loss", "direction": "minimize"},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "stages": [{"name": "coarse", "trials": 2}, {"name": "fine", "trials": 3}],
}
GATE = 4711
"""Number of the advisory lock that the triggers wait for."""
WAIT: LiteralString = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END $$
"""
ENDED: LiteralString = "WHEN (NEW.state = 'completed' AND OLD.state = 'running') EXECUTE FUNCTION wait()"
LAST: LiteralString = "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
CALL: LiteralString = "EXECUTE FUNCTION wait()"
STEPS: dict[str, LiteralString] = {
    "writing the last result": f"CREATE TRIGGER gate BEFORE UPDATE ON trials FOR EACH ROW {ENDED}",
    "committing the last result": f"CREATE CONSTRAINT TRIGGER gate AFTER UPDATE ON trials {LAST} {ENDED}",
    "opening the next stage": f"CREATE TRIGGER gate BEFORE INSERT ON stages FOR EACH ROW {CALL}",
    "committing the next stage": f"CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON stages {LAST} {CALL}",
}
BETWEEN = "between the two"


@contextmanager
def gate(url: str, trigger: LiteralString) -> Iterator[psycopg.Connection]:
    """While open, whatever the trigger is of waits in the middle of its transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(WAIT)
        connection.execute(trigger)
        connection.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield connection
        connection.execute("SELECT pg_advisory_unlock(%s)", [GATE])


def waits(connection: psycopg.Connection, kind: LiteralString = "locktype = 'advisory'") -> bool:
    """Whether somebody waits for a lock of a kind in this database."""
    own = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    query: LiteralString = f"SELECT count(*) FROM pg_locks WHERE NOT granted AND {own} AND {kind}"
    row = connection.execute(query).fetchone()
    return row is not None and row[0] > 0


def kill_at(step: str, url: str, first: Process, last: threading.Thread) -> None:
    """Have the last result sent, and kill the server that it was sent to when it is at the step."""
    if step != BETWEEN:
        with gate(url, STEPS[step]) as watch:
            last.start()
            eventually(lambda: waits(watch))
            first.stop(signal.SIGKILL)
        return
    with psycopg.connect(url) as table:
        with gate(url, STEPS["committing the last result"]) as watch:
            last.start()
            eventually(lambda: waits(watch))
            lock = threading.Thread(target=table.execute, args=["LOCK TABLE stages IN ACCESS EXCLUSIVE MODE"])
            lock.start()
            eventually(lambda: waits(watch, "mode = 'AccessExclusiveLock'"))
        lock.join()  # the result is there: the table was held by its transaction until now
        with psycopg.connect(url, autocommit=True) as watch:
            eventually(lambda: waits(watch, "mode = 'AccessShareLock'"), explain=lambda: first.output)
            assert watch.execute("SELECT state, n_attempts FROM trials").fetchall() == [("completed", 1)] * 2
        first.stop(signal.SIGKILL)


class Worker:
    """Speaks HTTP to both servers."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def _post(self, path: str, body: dict[str, Any], client: Client | None = None) -> Any:
        connection = (client or self.client).connection
        return connection.call("POST", f"/api/v1/leases{path}", body={"worker": "w", **body})

    def lease(self, n: int) -> list[dict[str, Any]]:
        leases: list[dict[str, Any]] = self._post("", {"capacity": n, "study": "two", "wait_seconds": 10})["leases"]
        return leases

    def finish(self, lease: dict[str, Any], client: Client | None = None) -> dict[str, Any]:
        result = {"token": lease["token"], "state": "completed", "value": lease["trial"] / 10}
        outcome: dict[str, Any] = self._post("/finish", {"results": [result]}, client)["outcomes"][0]
        return outcome


@pytest.mark.parametrize("step", [*STEPS, BETWEEN])
def test_one_server_is_killed_at_a_stages_end_and_the_other_carries_on(
    house: House, postgres_url: str, step: str
) -> None:
    first, dying = house.serve(postgres_url)
    second, client = house.serve(postgres_url)
    study, worker = client.submit(STUDY), Worker(client)
    one, other = worker.lease(2)
    assert worker.finish(one)["accepted"]

    os.kill(second.popen.pid, signal.SIGSTOP)
    unanswered: list[Exception] = []

    def send() -> None:
        try:
            worker.finish(other, dying)
        except ServerUnreachable as error:
            unanswered.append(error)

    last = threading.Thread(target=send)
    kill_at(step, postgres_url, first, last)
    last.join(20)
    assert len(unanswered) == 1, "the worker was not answered, so it sends its result again"
    os.kill(second.popen.pid, signal.SIGCONT)

    assert worker.finish(other)["accepted"]
    leases: list[dict[str, Any]] = eventually(lambda: worker.lease(3))
    assert [(lease["stage"], lease["trial"], lease["attempt"]) for lease in leases] == [
        ("fine", n, 1) for n in (2, 3, 4)
    ]
    assert all(worker.finish(lease)["accepted"] for lease in leases)
    study.wait(timeout_seconds=20)
    assert [(t["number"], t["stage"], t["state"], t["n_attempts"]) for t in study.trials()] == [
        (n, "coarse" if n < 2 else "fine", "completed", 1) for n in range(5)
    ]
    assert stage_events(client) == [
        ("coarse", "running"),
        ("coarse", "completed"),
        ("fine", "running"),
        ("fine", "completed"),
    ]
    assert second.stop() == 0
    assert check(postgres_url).faults == ()


def stage_events(client: Client) -> list[tuple[str, str]]:
    """What the log says of stages."""
    study = client.study("two")
    found, last = [], study.read()["last_event"]
    for seq, kind, data in study.events():
        if kind == "stage":
            found.append((data["stage"], data["state"]))
        if seq == last:
            return found
    return found
