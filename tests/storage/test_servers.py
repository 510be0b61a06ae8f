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
from hpsearch.testing.memory import MemoryStore
from hpsearch.trial import Action, Report, Result, TrialState
from hpsearch_storage import open_store, results
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


def told(server: Coordinator, token: str, step: int) -> str:
    (decision,) = server.report("w", [Report(token, step, {"loss": step / 7})])
    return decision.action.value


def no_other_way(*_args: object, **_more: object) -> None:
    raise AssertionError("the next step is kept in one statement")


@pytest.mark.parametrize("rule", ["none", "median"])
def test_what_one_server_saw_last_is_believed_only_while_it_is_so(
    servers: list[Coordinator], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = servers
    stage = {"name": "only", "trials": 4, "epochs": 20, "early_stopping": rule}
    study, _ = one.submit(parse_study(DOCUMENT | {"stages": [stage]}))
    tokens = [a.lease.token for a in one.lease(WorkerHello("w", "s", {}), 4, study="a")]
    assert [told(server, tokens[0], 1) for server in servers] == ["continue"] * 3  # the worker is noted by each
    with monkeypatch.context() as only:
        only.setattr(results, "report", no_other_way)
        assert [told(one, tokens[0], 2), told(one, tokens[0], 3), told(two, tokens[1], 1)] == ["continue"] * 3
    assert told(two, tokens[0], 5) == "continue"
    assert told(one, tokens[0], 4) == "continue", "it was not at step 3 any more"
    assert one.store.trial(study.id, 0).step == 5
    assert told(one, tokens[0], 5) == told(one, tokens[0], 2) == "continue", "repeated, and out of order"
    together = [Report(tokens[0], 6, {"loss": 0.5}), Report(tokens[1], 2, {"loss": 0.6}), Report(tokens[2])]
    assert [d.action for d in one.report("w", together)] == ["continue"] * 3, "one is no step"
    two.release("w", [tokens[1]])
    odd = 'a\x1f"b\\{},'
    several = [Report(tokens[i], step, {"loss": step / 7, odd: i}) for step in (1, 2, 4) for i in (2, 3)]
    with monkeypatch.context() as only:
        only.setattr(results, "report", no_other_way)
        assert [d.action for d in one.report("w", several)] == ["continue"] * 6
    assert one.store.metrics(study.id, [3])[2].values == {"loss": 4 / 7, odd: 3}
    assert told(two, tokens[3], 6) == "continue"
    several = [Report(tokens[i], step, {"loss": 0.7}) for i in (2, 3) for step in (5, 7)]
    assert [d.action for d in one.report("w", several)] == ["continue"] * 4, "one was not where it had been"
    steps = {number: [m.step for m in one.store.metrics(study.id, [number])] for number in (2, 3)}
    assert steps == {2: [1, 2, 4, 5, 7], 3: [1, 2, 4, 5, 6, 7]}
    both = [Report(tokens[0], 7, {"loss": 0.5}), Report(tokens[1], 3, {"loss": 0.6})]
    assert [d.action for d in one.report("w", both)] == ["continue", "abandon"]
    steps = {number: [m.step for m in one.store.metrics(study.id, [number])] for number in (0, 1)}
    assert steps == {0: [1, 2, 3, 4, 5, 6, 7], 1: [1, 2]}
    assert one.store.metrics(study.id, [0])[1].values == {"loss": 2 / 7}, "the later word counts"
    assert [one.store.trial(study.id, number).step for number in (0, 1)] == [7, 2]
    two.delete("a")
    assert [d.action for d in one.report("w", [Report(tokens[0], 8, {"loss": 0.5})])] == ["abandon"]


def test_rungs_of_two_servers_are_one_ladder(servers: list[Coordinator]) -> None:
    one, two, _ = servers
    rule = {"name": "median", "warmup_epochs": 1, "min_trials": 2}
    stage = {"name": "only", "trials": 8, "epochs": 9, "early_stopping": rule}
    study, _ = one.submit(parse_study(DOCUMENT | {"stages": [stage]}))
    held = {server: server.lease(WorkerHello(f"w{i}", "s", {}), 4, study="a") for i, server in enumerate((one, two))}
    values: dict[int, float] = {}
    stopped: dict[int, int] = {}
    for step in range(1, 7):
        for i, (server, assignments) in enumerate(held.items()):
            leases = [a.lease for a in assignments if a.lease.trial not in stopped]
            values.update({lease.trial: lease.trial / 7 for lease in leases})
            reports = [Report(lease.token, step, {"loss": values[lease.trial]}) for lease in leases]
            for lease, decision in zip(leases, server.report(f"w{i}", reports), strict=True):
                if decision.action is Action.STOP:
                    stopped[lease.trial] = step
    entries = one.store.record_rungs(one.store.stages(study.id)[0].id, {}, after=0)
    assert len({entry.seq for entry in entries}) == len(entries) == len({entry.place for entry in entries})
    assert {entry.place.trial: entry.value for entry in entries} == pytest.approx(values)
    alone = Coordinator(MemoryStore(), clock=lambda: NOW)
    alone.submit(parse_study(DOCUMENT | {"stages": [stage]}))
    assert stopped == ends_alone(alone, values)


def ends_alone(server: Coordinator, values: dict[int, float]) -> dict[int, int]:
    """When the same trials are stopped by one server whose store is in memory."""
    leases = [a.lease for i in range(2) for a in server.lease(WorkerHello(f"w{i}", "s", {}), 4, study="a")]
    stopped: dict[int, int] = {}
    for step in range(1, 7):
        for some in (leases[:4], leases[4:]):
            going = [lease for lease in some if lease.trial not in stopped]
            reports = [Report(lease.token, step, {"loss": values[lease.trial]}) for lease in going]
            for lease, decision in zip(going, server.report("w", reports), strict=True):
                if decision.action is Action.STOP:
                    stopped[lease.trial] = step
    return stopped
