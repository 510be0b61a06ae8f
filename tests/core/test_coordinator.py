from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpsearch.at_once import at_once
from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.errors import Conflict, InvalidSpec, NotFound, WouldWait
from hpsearch.insight import eta_seconds, progress
from hpsearch.space import Params
from hpsearch.spec import StudySpec, parse_study
from hpsearch.store import Asking, TrialQuery, WorkerHello, all_trials
from hpsearch.study import StageState, StudyState
from hpsearch.testing import MemoryStore, alone
from hpsearch.trial import Action, Ending, Report, Result, Trial, TrialState

TTL = timedelta(seconds=30)


class Clock:
    """A clock that stands still until moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def spec(*stages: dict[str, Any], name: str = "s", seed: int = 0) -> StudySpec:
    return parse_study(
        {
            "name": name,
            "objective": {"kind": "external"},
            "metric": {"name": "score", "direction": "maximize"},
            "space": {
                "lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
                "width": {"type": "int", "low": 10, "high": 100},
            },
            "stages": list(stages) or [{"name": "coarse", "trials": 20}, {"name": "fine", "trials": 10}],
            "seed": seed,
        }
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def coordinator(clock: Clock) -> Coordinator:
    return Coordinator(MemoryStore(), clock=clock, lease_ttl=TTL)


def ask(coordinator: Coordinator, capacity: int = 1, worker: str = "w", study: str = "s") -> list[Assignment]:
    return coordinator.lease(WorkerHello(worker, None, {}), capacity, study=study)


def score(params: Params) -> float:
    """Best at lr 1e-3."""
    lr = params["lr"]
    assert isinstance(lr, float)
    return -abs(math.log10(lr) + 3)


def finish_all(coordinator: Coordinator, state: TrialState = TrialState.COMPLETED, capacity: int = 7) -> None:
    while leases := ask(coordinator, capacity):
        done = state is TrialState.COMPLETED
        results = [
            Result(a.lease.token, state, score(a.lease.params) if done else None, None if done else "no such data")
            for a in leases
        ]
        assert all(outcome.accepted for outcome in coordinator.finish("w", results))


def trials(coordinator: Coordinator, **query: Any) -> list[Trial]:
    return all_trials(coordinator.store, coordinator.store.study("s").id, TrialQuery(**query))


def test_a_study_goes_coarse_to_fine_to_its_end(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    finish_all(coordinator)
    study = coordinator.store.study("s")
    coarse, fine = coordinator.store.stages(study.id)
    assert study.state is StudyState.COMPLETED
    assert (coarse.state, fine.state) == (StageState.COMPLETED, StageState.COMPLETED)
    assert [t.number for t in trials(coordinator)] == list(range(30))
    assert fine.parent == "coarse"
    assert fine.difference
    lr, parent = fine.space["lr"], coarse.space["lr"]
    assert lr.type == "float"
    assert parent.type == "float"
    assert parent.low < lr.low < 1e-3 < lr.high < parent.high
    assert all(
        fine.space[name].contains(t.params[name]) for t in trials(coordinator, stage="fine") for name in t.params
    )
    assert progress(study, [coarse, fine]).fraction == 1.0
    assert eta_seconds(study, 1.0, coordinator.clock()) == 0.0


def test_what_a_trial_samples_does_not_depend_on_who_asks_and_how() -> None:
    seen = []
    for capacities in ([20], [1] * 20, [3, 1, 16]):
        coordinator = Coordinator(MemoryStore())
        coordinator.submit(spec())
        for i, capacity in enumerate(capacities):
            ask(coordinator, capacity, worker=f"w{i}")
        seen.append({t.number: t.params for t in trials(coordinator) if t.number < 20})
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 20


def test_the_last_trials_are_shared_among_the_workers(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    coordinator.set_state("s", StudyState.PAUSED)
    assert ask(coordinator, 100, worker="a") == ask(coordinator, 100, worker="b") == []
    coordinator.set_state("s", StudyState.RUNNING)
    assert len(ask(coordinator, 100, worker="a")) == 10  # of 20, for two that wait
    assert len(ask(coordinator, 100, worker="a")) == 10, "what it holds it gets back"
    assert len(ask(coordinator, 7, worker="b")) == 7
    assert len(ask(coordinator, 100, worker="c")) == 3, "nobody else waits"


def test_a_lease_tells_all_that_training_needs(coordinator: Coordinator) -> None:
    coordinator.submit(spec(seed=5))
    first, second = ask(coordinator, 2)
    assert first.spec.objective.kind == "external"
    assert first.lease.epochs == 1
    assert first.seed != second.seed
    assert first.data_seed == second.data_seed
    assert first.lease.expires_at == coordinator.clock() + TTL


def test_a_confirm_stage_trains_the_best_with_fresh_seeds(coordinator: Coordinator) -> None:
    coordinator.submit(spec({"name": "coarse", "trials": 10}, {"name": "confirm", "top": 2, "seeds": 3}))
    while not (stages := coordinator.store.stages(1))[1:]:
        for a in ask(coordinator, 4):
            coordinator.finish("w", [Result(a.lease.token, TrialState.COMPLETED, score(a.lease.params))])
    assert stages[1].n_trials == 6
    leases = ask(coordinator, 10)
    best = sorted(trials(coordinator, stage="coarse"), key=lambda t: -(t.value or 0))[:2]
    assert [a.lease.params for a in leases] == [best[0].params, best[1].params] * 3
    assert len({a.seed for a in leases}) == 6
    values = [0.1, 0.25, 0.2, 0.25, 0.3, 0.25]
    coordinator.finish(
        "w", [Result(a.lease.token, TrialState.COMPLETED, v) for a, v in zip(leases, values, strict=True)]
    )
    study = coordinator.store.study("s")
    winner = coordinator.insights.best(study, coordinator.store.stages(study.id))
    assert winner is not None
    assert (winner.params, winner.value, winner.spread, winner.n) == (best[1].params, 0.25, 0.0, 3)
    assert study.state is StudyState.COMPLETED


def test_fewer_finalists_than_asked_for_are_all_there_are(coordinator: Coordinator) -> None:
    coordinator.submit(spec({"name": "coarse", "trials": 2}, {"name": "confirm", "top": 9, "seeds": 2}))
    finish_all(coordinator)
    assert [stage.n_trials for stage in coordinator.store.stages(1)] == [2, 4]
    assert coordinator.store.study("s").state is StudyState.COMPLETED


def test_a_study_whose_first_trials_all_fail_ends_with_the_reason(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    for a in ask(coordinator, 3):
        coordinator.finish("w", [Result(a.lease.token, TrialState.FAILED, None, "no such data")])
    study = coordinator.store.study("s")
    assert study.state is StudyState.FAILED
    assert study.reason == "no trial of the stage 'coarse' completed (3 failed): no such data"
    assert ask(coordinator, 1) == []


def test_a_last_stage_that_comes_to_nothing_is_told_of(coordinator: Coordinator) -> None:
    coordinator.submit(spec({"name": "coarse", "trials": 4}, {"name": "fine", "trials": 9}))
    for assignment in ask(coordinator, 4):
        coordinator.finish("w", [Result(assignment.lease.token, TrialState.COMPLETED, 1.0)])
    failed = [Result(a.lease.token, TrialState.FAILED, None, "no such data") for a in ask(coordinator, 3)]
    coordinator.finish("w", failed)
    study = coordinator.store.study("s")
    assert study.state is StudyState.COMPLETED, "an earlier stage has a result"
    assert study.reason == "no trial of the stage 'fine' completed (3 failed): no such data"
    assert {t.state for t in trials(coordinator) if t.stage == "fine"} == {TrialState.FAILED, TrialState.CANCELLED}


def test_one_success_among_failures_lets_the_study_go_on(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    leases = ask(coordinator, 6)
    coordinator.finish("w", [Result(leases[0].lease.token, TrialState.COMPLETED, 1.0)])
    for a in leases[1:]:
        coordinator.finish("w", [Result(a.lease.token, TrialState.FAILED, None, "boom")])
    assert coordinator.store.study("s").state is StudyState.RUNNING


def test_a_stage_of_diverged_trials_ends_the_study(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    finish_all(coordinator, TrialState.DIVERGED)
    study = coordinator.store.study("s")
    assert study.state is StudyState.FAILED
    assert "20 diverged" in (study.reason or "")


def test_given_params_take_the_place_of_sampled_ones(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    assert coordinator.enqueue("s", [{"lr": 1e-3, "width": 50}]) == [0]
    assert ask(coordinator)[0].lease.params == {"lr": 1e-3, "width": 50}
    finish_all(coordinator)
    assert coordinator.store.stages(1)[0].n_created == 20
    with pytest.raises(Conflict, match="completed"):
        coordinator.enqueue("s", [{"lr": 1e-3, "width": 50}])


def test_given_params_must_be_points_of_the_space_with_room(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    with pytest.raises(InvalidSpec) as caught:
        coordinator.enqueue("s", [{"lr": 5.0, "wdith": 3}])
    assert {fault.loc for fault in caught.value.faults} == {
        "trials.0.params.lr",
        "trials.0.params.wdith",
        "trials.0.params.width",
    }
    with pytest.raises(Conflict, match="room for 20 more trials, not 21"):
        coordinator.enqueue("s", [{"lr": 1e-3, "width": 50}] * 21)
    assert trials(coordinator) == []


def test_finished_trials_from_elsewhere_count_as_results_but_take_no_room(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    params: Params = {"lr": 1e-3, "width": 50}
    assert coordinator.add_finished("s", [(params, TrialState.COMPLETED, 7.0)]) == [0]
    study = coordinator.store.study("s")
    winner = coordinator.insights.best(study, coordinator.store.stages(study.id))
    assert winner is not None
    assert winner.value == 7.0
    finish_all(coordinator)
    assert len(trials(coordinator, stage="coarse")) == 21


def test_a_silent_workers_trial_goes_to_another(coordinator: Coordinator, clock: Clock) -> None:
    clock.move(3600)
    coordinator.submit(spec())
    (lost,) = ask(coordinator, worker="a")
    clock.move(29)
    coordinator.tick()
    assert [d.action for d in coordinator.report("a", [Report(lost.lease.token)])] == ["continue"]
    clock.move(31)
    coordinator.tick()
    (again,) = ask(coordinator, worker="b")
    assert (again.lease.trial, again.lease.attempt) == (lost.lease.trial, 2)
    assert again.seed == lost.seed
    (outcome,) = coordinator.finish("a", [Result(lost.lease.token, TrialState.COMPLETED, 1.0)])
    assert not outcome.accepted
    assert outcome.reason
    assert trials(coordinator)[0].state is TrialState.RUNNING


def test_a_server_takes_nothing_back_until_workers_could_have_renewed(clock: Clock) -> None:
    store = MemoryStore()
    before = Coordinator(store, clock=clock, lease_ttl=TTL)
    before.submit(spec())
    (held,) = ask(before)
    clock.move(3600)  # the server was away
    after = Coordinator(store, clock=clock, lease_ttl=TTL)
    after.tick()
    assert after.finish("w", [Result(held.lease.token, TrialState.COMPLETED, 1.0)])[0].accepted


def test_two_servers_open_the_next_stage_once(clock: Clock) -> None:
    store = MemoryStore()
    one, two = Coordinator(store, clock=clock), Coordinator(store, clock=clock)
    one.submit(spec())
    for a in ask(one, 20):
        alone.finish(store, "w", [Result(a.lease.token, TrialState.COMPLETED, 1.0)], now=clock())
    pending = store.stages_to_settle(max_failures=3)
    one.settle()
    for study, stage in pending:
        two.stages._settle(study, stage)
    two.settle()
    assert [stage.name for stage in store.stages(1)] == ["coarse", "fine"]


def test_pause_hands_out_nothing_and_cancel_ends_it(coordinator: Coordinator) -> None:
    coordinator.submit(spec())
    (running,) = ask(coordinator)
    coordinator.set_state("s", StudyState.PAUSED)
    assert [a.lease.trial for a in ask(coordinator, 3)] == [running.lease.trial]
    coordinator.set_state("s", StudyState.RUNNING)
    assert len(ask(coordinator, 3)) == 3
    coordinator.set_state("s", StudyState.CANCELLED)
    assert coordinator.report("w", [Report(running.lease.token, 1, {"score": 1.0})])[0].action == "abandon"
    with pytest.raises(Conflict, match="cancelled"):
        coordinator.set_state("s", StudyState.RUNNING)


def test_an_unknown_study_is_said_to_be(coordinator: Coordinator) -> None:
    with pytest.raises(NotFound, match="no study 'nope'"):
        ask(coordinator, study="nope")


def test_whoever_listens_hears_of_changes(coordinator: Coordinator) -> None:
    rung: list[int] = []
    coordinator.on_change(lambda: rung.append(1))
    coordinator.submit(spec())
    assert len(rung) == 1
    coordinator.submit(spec())
    assert len(rung) == 1
    ask(coordinator)
    assert len(rung) == 2


def test_a_huge_stage_is_flagged_by_a_sample_and_says_so(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.insight.SAMPLE", 100)
    study, _ = coordinator.submit(spec({"name": "coarse", "trials": 5000}))
    given: list[tuple[Params, TrialState, float | None]] = [
        ({"lr": 10 ** (-6 + 5 * k / 900), "width": 10 + k * 7 % 91}, TrialState.COMPLETED, float(k)) for k in range(900)
    ]
    coordinator.add_finished("s", given)
    flags = coordinator.insights.flags(study, coordinator.store.stages(study.id))
    assert [(flag.parameter, flag.side) for flag in flags] == [("lr", "high")]
    assert flags[0].message.endswith("(judged by 100 of 900 trials)")


def test_a_server_that_was_stopped_takes_nothing_back_until_workers_could_have_renewed(
    coordinator: Coordinator, clock: Clock
) -> None:
    clock.move(3600)
    coordinator.submit(spec())
    (held,) = ask(coordinator)
    clock.move(3600)
    coordinator.was_away()
    coordinator.tick()
    clock.move(29)
    coordinator.tick()
    assert [d.action for d in coordinator.report("w", [Report(held.lease.token)])] == ["continue"]
    clock.move(31)
    coordinator.tick()
    assert trials(coordinator)[0].state is TrialState.QUEUED


def test_several_workers_at_once(coordinator: Coordinator) -> None:
    coordinator.submit(spec({"name": "only", "trials": 5}, name="a"))
    coordinator.submit(spec({"name": "only", "trials": 1}, name="b"))
    asked = [Asking(WorkerHello(f"w{i}", None, {}), 1, study) for i, study in enumerate(["a", "b", "none", "a", "b"])]
    one, two, none, three, four = coordinator.lease_all(asked)
    assert isinstance(none, NotFound)
    assert "none" in str(none)
    assert four == [], "it has one trial"
    given = [found[0] for found in (one, two, three) if not isinstance(found, NotFound)]
    assert [(each.lease.study, each.lease.trial) for each in given] == [("a", 0), ("b", 0), ("a", 1)]

    tokens = [each.lease.token for each in given]
    reports = [
        ("w0", [Report(tokens[0], 1, {"score": 1.0})]),
        ("w1", []),
        ("w3", [Report(tokens[2], 1), Report("?", 1)]),
    ]
    decisions = coordinator.report_all(reports)
    assert [[d.action.value for d in some] for some in decisions] == [["continue"], [], ["continue", "abandon"]]
    results = [
        Ending("w1", [Result(tokens[1], TrialState.COMPLETED, 1.0)]),
        Ending("w0", [Result("?", TrialState.FAILED)]),
    ]
    outcomes = coordinator.finish_all(results)
    assert [[o.accepted for o in some] for some in outcomes] == [[True], [False]]
    assert coordinator.store.study("b").state is StudyState.COMPLETED


@pytest.mark.parametrize("rule", ["none", "threshold", "patience", "median", "asha"])
def test_what_is_to_be_read_of_other_trials_takes_time(clock: Clock, rule: str) -> None:
    rules: dict[str, dict[str, Any]] = {"threshold": {"value": 1.0}, "patience": {"epochs": 1}}
    stage = {"name": "only", "trials": 2, "epochs": 9, "early_stopping": {"name": rule, **rules.get(rule, {})}}
    first = Coordinator(MemoryStore(), clock=clock, lease_ttl=TTL)
    first.submit(spec(stage))
    held = ask(first, 2)
    knows_too_little = Coordinator(first.store, clock=clock, lease_ttl=TTL)
    took_time = []
    for step, coordinator in enumerate((first, first, knows_too_little), 1):
        calls = [("w", [Report(each.lease.token, step, {"score": 0.5 + step / 10})]) for each in held]
        try:
            with at_once():
                found = coordinator.report_all(calls)
        except WouldWait:
            took_time.append(step)
            found = coordinator.report_all(calls)
        if rule != "asha":
            assert [d.action for (d,) in found] == [Action.STOP if rule == "threshold" else Action.CONTINUE] * 2
    assert took_time == {"patience": [3], "median": [2, 3], "asha": [1, 3]}.get(rule, [])
    steps = first.store.metrics(held[0].lease.study_id, [0])
    assert [each.values["score"] for each in steps] == [0.6, 0.7, 0.8]


def test_nobody_who_must_not_wait_waits_for_a_rule(clock: Clock) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def let_on(self, *args: Any, **more: Any) -> list[int]:
            begun.set()
            assert go_on.wait(20)
            return super().let_on(*args, **more)

    stage = {"name": "only", "trials": 4, "epochs": 9, "early_stopping": {"name": "asha", "min_epochs": 1}}
    coordinator = Coordinator(Slow(), clock=clock, lease_ttl=TTL)
    coordinator.submit(spec(stage))
    reports = [Report(each.lease.token, 1, {"score": 0.1 * each.lease.trial}) for each in ask(coordinator, 4)]
    with ThreadPoolExecutor(1) as elsewhere:
        others = elsewhere.submit(coordinator.report, "w", reports[1:])
        assert begun.wait(20)
        with pytest.raises(WouldWait), at_once():
            coordinator.report("w", reports[:1])
        go_on.set()
        assert sorted(decision.action for decision in others.result(20)) == [Action.CONTINUE, Action.STOP, Action.STOP]
    with at_once():
        assert coordinator.report("w", reports[:1])[0].action is Action.STOP


def test_wide_packs_that_ask_at_once_share_what_there_is(coordinator: Coordinator) -> None:
    coordinator.submit(spec({"name": "only", "trials": 9}))
    hellos = [WorkerHello(f"w{i}", None, {}) for i in range(3)]
    coordinator.lease_all([Asking(hello, 0, "s") for hello in hellos])  # all are there, and hold nothing
    given = coordinator.lease_all([Asking(hello, 100, "s") for hello in hellos])
    assert [len(found) for found in given if not isinstance(found, NotFound)] == [3, 3, 3]
