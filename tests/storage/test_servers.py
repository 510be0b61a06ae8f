"""Several servers on one PostgreSQL: what one does, the others see, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest

from hpsearch.coordinator import Coordinator
from hpsearch.spec import parse_study
from hpsearch.store import TrialQuery, WorkerHello
from hpsearch.trial import Report, Result, TrialState
from hpsearch_storage import open_store
from hpsearch_storage.maintenance import check
from stores import DOCUMENT, NOW

N_SERVERS = 3
STAGES = [{"name": "one", "trials": 30}, {"name": "two", "trials": 20}, {"name": "three", "trials": 10}]


class Clock:
    def __init__(self) -> None:
        self.now = NOW


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def servers(postgres_url: str, clock: Clock) -> Iterator[list[Coordinator]]:
    stores = [open_store(postgres_url, exclusive=True) for _ in range(N_SERVERS)]
    yield [Coordinator(store, clock=lambda: clock.now) for store in stores]
    for store in stores:
        store.close()


def test_stages_advance_once_and_every_trial_is_trained_once(servers: list[Coordinator], postgres_url: str) -> None:
    study, _ = servers[0].submit(parse_study(DOCUMENT | {"stages": STAGES}))
    begin = Barrier(2 * N_SERVERS)

    def work(i: int) -> list[int]:
        server, done = servers[i % N_SERVERS], []
        begin.wait()
        while not server.store.study("a").state.is_finished:
            leases = [a.lease for a in server.lease(WorkerHello(f"w{i}", "s", {}), 3, study="a")]
            server.report(f"w{i}", [Report(x.token, 1, {"loss": x.trial / 7}) for x in leases])
            outcomes = server.finish(f"w{i}", [Result(x.token, TrialState.COMPLETED) for x in leases])
            assert all(outcome.accepted for outcome in outcomes)
            server.tick()
            done += [lease.trial for lease in leases]
        return done

    with ThreadPoolExecutor(2 * N_SERVERS) as pool:
        done = sorted(number for numbers in pool.map(work, range(2 * N_SERVERS)) for number in numbers)
    assert done == list(range(60))
    stages = servers[1].store.stages(study.id)
    assert [(stage.name, stage.n_finished) for stage in stages] == [("one", 30), ("two", 20), ("three", 10)]
    assert check(postgres_url).faults == ()


def test_a_lease_is_known_to_every_server(servers: list[Coordinator], clock: Clock) -> None:
    one, two, three = servers
    study, _ = one.submit(parse_study(DOCUMENT))
    hello = WorkerHello("w", "s", {})
    (held,) = one.lease(hello, 1, study="a")
    assert [a.lease.token for a in two.lease(hello, 1, study="a")] == [held.lease.token], "its own comes back"
    clock.now += timedelta(seconds=29)
    assert three.report("w", [Report(held.lease.token)])[0].action == "continue"
    clock.now += timedelta(seconds=29)
    for server in servers:
        server.tick()
    (outcome,) = two.finish("w", [Result(held.lease.token, TrialState.COMPLETED, 0.5)])
    assert outcome.accepted, "renewed at one server, it holds at the others"
    assert one.finish("w", [Result(held.lease.token, TrialState.COMPLETED, 0.5)])[0].accepted, "repeating is harmless"
    assert one.store.trial(study.id, held.lease.trial).value == 0.5


def test_a_lost_lease_is_lost_at_every_server(servers: list[Coordinator], clock: Clock) -> None:
    one, two, _ = servers
    study, _ = one.submit(parse_study(DOCUMENT))
    clock.now += timedelta(hours=1)
    (lost,) = one.lease(WorkerHello("w", "s", {}), 1, study="a")
    clock.now += timedelta(seconds=31)
    two.tick()
    (again,) = two.lease(WorkerHello("v", "s", {}), 1, study="a")
    assert (again.lease.trial, again.lease.attempt) == (lost.lease.trial, 2)
    (late,) = one.finish("w", [Result(lost.lease.token, TrialState.COMPLETED, 0.1)])
    assert (late.accepted, bool(late.reason)) == (False, True)
    assert two.finish("v", [Result(again.lease.token, TrialState.COMPLETED, 0.2)])[0].accepted
    assert one.store.trial(study.id, lost.lease.trial).value == 0.2
    first, _ = one.store.attempts(study.id, lost.lease.trial)
    assert "late result came" in (first.reason or "")
    assert "with value 0.1" in (first.reason or "")
    assert len(one.store.trials(study.id, TrialQuery(states=(TrialState.COMPLETED,))).items) == 1
