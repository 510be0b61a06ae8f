"""No question that is asked for every report, result or page reads a whole table: the databases' own plans say so."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, event, text

from hpsearch.coordinator import Coordinator
from hpsearch.space import Params
from hpsearch.spec import parse_study
from hpsearch.store import TrialQuery, WorkerHello
from hpsearch.study import StudyState
from hpsearch.trial import Lease, Report, Result, TrialState
from hpsearch_storage import SqlStore, open_store, prepared
from hpsearch_storage.engine import Database
from hpsearch_storage.urls import parse_url
from stores import DOCUMENT, NOW, TTL

LARGE = ("trials", "attempts", "metrics", "events")
"""Tables that grow with the work done."""
N_TRIALS = 400
FILLER = (
    """INSERT INTO attempts (trial_id, study_id, number, token, worker, state, started_at, expires_at)
    SELECT id, study_id, 1, 'filler' || id, 'worker' || (id % 7), 'finished', 0, 0 FROM trials""",
    *(f"""INSERT INTO metrics (trial_id, step, "values") SELECT id, {step}, '{{}}' FROM trials""" for step in range(9)),
)


def hot_paths(store: SqlStore) -> dict[str, Callable[[], object]]:
    """What workers and pages ask for all the time, by name. They run in this order."""
    coordinator = Coordinator(store, clock=lambda: NOW)
    study = store.study("a")
    hello = WorkerHello("w", "s", {})
    leases: list[Lease] = []

    def lease() -> None:
        leases[:] = [assignment.lease for assignment in coordinator.lease(hello, 4, study="a")]

    def finish() -> object:
        results = [Result(lease.token, TrialState.COMPLETED) for lease in leases[:2]]
        return coordinator.finish("w", [*results, Result(leases[2].token, TrialState.PRUNED)])

    def trials(**query: Any) -> Callable[[], object]:
        return lambda: store.trials(study.id, TrialQuery(limit=10, **query))

    return {
        "lease": lease,
        "lease again": lambda: coordinator.lease(hello, 4, study="a"),
        "report": lambda: coordinator.report("w", [Report(x.token, 1, {"loss": 0.5}) for x in leases]),
        "report once more": lambda: coordinator.report("w", [Report(x.token, 2, {"loss": 0.4}) for x in leases]),
        "finish": finish,
        "release": lambda: coordinator.release("w", [leases[3].token]),
        "tick": coordinator.tick,
        "reap": lambda: store.reap(now=NOW + 10 * TTL, max_lost=3),
        "best": lambda: coordinator.insights.best(study, store.stages(study.id)),
        "first page": trials(),
        "last page": trials(sort="-number"),
        "running page": trials(states=(TrialState.RUNNING,)),
        "best page": trials(sort="value", states=(TrialState.COMPLETED,)),
        "one trial": lambda: store.trial(study.id, 3),
        "attempts": lambda: store.attempts(study.id, N_TRIALS),
        "metrics": lambda: store.metrics(study.id, [N_TRIALS]),
        "events": lambda: store.events(study.id, after=300, limit=10),
        "study": lambda: store.study("a"),
        "stages": lambda: store.stages(study.id),
        "workers": store.workers,
        "demand": lambda: store.demand("w", since=NOW),
        "pause": lambda: store.set_state(study.id, StudyState.PAUSED, now=NOW),
        "cancel": lambda: store.set_state(study.id, StudyState.CANCELLED, now=NOW),
    }


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = open_store(url)
    coordinator = Coordinator(store, clock=lambda: NOW)
    for name in ("a", "b"):
        rule = {"name": "asha", "min_epochs": 1}
        stage = {"name": "only", "trials": 10_000, "epochs": 9, "early_stopping": rule}
        coordinator.submit(parse_study(DOCUMENT | {"name": name, "stages": [stage]}))
        done: list[tuple[Params, TrialState, float | None]] = [
            ({"x": k / N_TRIALS}, TrialState.COMPLETED, k / 7) for k in range(N_TRIALS)
        ]
        coordinator.add_finished(name, done)
    database = Database(parse_url(url))

    def fill(connection: Connection) -> None:
        for statement in FILLER:
            connection.execute(text(statement))

    database.write(fill)
    database.close()
    yield store
    store.close()


def test_no_hot_path_reads_a_whole_table(
    store: SqlStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[tuple[str, Any]]] = {}
    name = ""

    def note(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, many: bool) -> None:
        asked.setdefault(name, []).append((statement, parameters[0] if many else parameters))

    def trace(connection: Any, _record: object, _proxy: object) -> None:
        connection.set_trace_callback(lambda statement: note(None, None, statement, (), None, False))

    run = prepared._postgres

    def noted(connection: Connection, statement: str, values: tuple[Any, ...]) -> Any:
        note(None, None, statement, prepared._postgres_values(values), None, False)
        return run(connection, statement, values)

    if url.startswith("sqlite"):
        event.listen(Engine, "checkout", trace)
        store.close()  # the writer keeps its connection: the next one is traced
    else:
        event.listen(Engine, "before_cursor_execute", note)
        monkeypatch.setattr(prepared, "_postgres", noted)
    try:
        reopened = open_store(url)
        paths = hot_paths(reopened)
        asked.clear()
        for name, act in paths.items():  # noqa: B007
            act()
        reopened.close()
    finally:
        event.remove(Engine, "checkout", trace) if url.startswith("sqlite") else event.remove(
            Engine, "before_cursor_execute", note
        )
    assert set(paths) == set(asked), "every path asked something"
    scans = sqlite_scans(tmp_path / "store.db", asked) if url.startswith("sqlite") else postgres_scans(url, asked)
    assert scans == []


_PLANNED = re.compile(r"^\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")


def sqlite_scans(path: Path, asked: dict[str, list[tuple[str, Any]]]) -> list[str]:
    found = []
    with sqlite3.connect(path) as connection:
        for name, statements in asked.items():
            for statement in {text for text, _ in statements if _PLANNED.match(text)}:
                for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
                    words = row[3].split()
                    if words[0] == "SCAN" and words[1] in LARGE and HELD not in words:
                        found.append(f"{name}: {row[3]}: {statement}")
    connection.close()
    return found


def postgres_scans(url: str, asked: dict[str, list[tuple[str, Any]]]) -> list[str]:
    """With statistics from when the tables were empty, and with fresh ones."""
    found = []
    with psycopg.connect(url, autocommit=True) as connection:
        for way in ("seqscan", "hashjoin", "mergejoin", "bitmapscan"):  # as the store does
            connection.execute(f"SET enable_{way} = off".encode())
        for statistics in ("old", "new"):
            if statistics == "new":
                connection.execute("ANALYZE")
            for name, statements in asked.items():
                for statement, parameters in {
                    text: given for text, given in statements if _PLANNED.match(text)
                }.items():
                    plan = connection.execute(f"EXPLAIN {statement}".encode(), parameters).fetchall()
                    for (line,) in plan:
                        scan = re.search(r"(Seq Scan|Index (?:Only )?Scan using \w+|Bitmap Heap Scan) on (\w+)", line)
                        if scan and scan[1] == "Seq Scan" and scan[2] in LARGE:
                            found.append(f"{name} ({statistics}): {line.strip()}: {statement}")
                    found += [f"{name} ({statistics}): whole index: {s}" for s in whole_indexes(plan)]
    return found


HELD = "ix_attempts_running"
"""Holds the leases that hold, and does not grow with the work done: read from end to end it tells which expired."""


def whole_indexes(plan: list[tuple[str]]) -> list[str]:
    """Lines of scans that walk a large table's index from end to end: they have no condition below them."""
    lines = [line for (line,) in plan]
    found = []
    for i, line in enumerate(lines):
        if re.search(rf"Index (Only )?Scan (Backward )?using (?!{HELD}\b)\w+ on ({'|'.join(LARGE)})\b", line):
            below = lines[i + 1] if i + 1 < len(lines) else ""
            if "Index Cond" not in below:
                found.append(line.strip())
    return found
