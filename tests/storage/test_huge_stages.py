"""What follows a huge stage is found without reading all of it, and a limit of epochs counts what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hpsearch.advancing import OwnStage
from hpsearch.coordinator import Coordinator
from hpsearch.space import Params
from hpsearch.spec import parse_study
from hpsearch.store import Page, TrialQuery, WorkerHello, all_trials
from hpsearch.study import StudyState
from hpsearch.trial import Report, Result, Trial, TrialState
from hpsearch_storage import SqlStore, open_store
from stores import DOCUMENT, NOW

HUGE = 3000
SAMPLE = 100
SHORT = {"name": "short", "trials": 6, "epochs": 3}


class Counting(Coordinator):
    """A coordinator that counts the trials that are read."""

    def __init__(self, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(store, clock=lambda: NOW)
        self.n_read = 0
        read = store.trials

        def trials(study_id: int, query: TrialQuery) -> Page[Trial]:
            page = read(study_id, query)
            self.n_read += len(page.items)
            return page

        monkeypatch.setattr(store, "trials", trials)


@pytest.fixture
def coordinator(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    monkeypatch.setattr("hpsearch.insight.SAMPLE", SAMPLE)
    store = open_store(url)
    yield Counting(store, monkeypatch)
    store.close()


def submit(coordinator: Coordinator, *stages: dict[str, Any], **more: Any) -> None:
    coordinator.submit(parse_study(DOCUMENT | {"stages": list(stages)} | more))


def give(coordinator: Coordinator, n: int) -> None:
    """Finished trials, the best of them in the middle of the range and amid their numbers."""
    given: list[tuple[Params, TrialState, float | None]] = [
        ({"x": k * 7919 % n / n}, TrialState.COMPLETED, abs(k * 7919 % n / n - 0.5)) for k in range(n)
    ]
    coordinator.add_finished("a", given)


def train(coordinator: Coordinator, stage: str | None = None) -> None:
    """Train what is handed out, each trial from where it resumes, until that is nothing or of another stage."""
    while found := coordinator.lease(WorkerHello("w", None, {}), 1, study="a"):
        lease = found[0].lease
        if stage is not None and lease.stage != stage:
            coordinator.release("w", [lease.token])
            return
        begun = found[0].resume_from
        first = 1 if begun is None else begun.step + 1
        value = float(abs(float(str(lease.params["x"])) - 0.5))
        told = [Report(lease.token, step, {"loss": value}) for step in range(first, lease.epochs + 1)]
        coordinator.report("w", told)
        coordinator.finish("w", [Result(lease.token, TrialState.COMPLETED, value)])


@pytest.mark.parametrize(
    ("following", "most"),
    [
        ({"name": "fine", "trials": 10, "epochs": 2}, SAMPLE),
        ({"name": "fine", "trials": 10, "epochs": 2, "refine": "keep"}, 0),
        ({"name": "best", "top": 3, "epochs": 2}, 100),
    ],
)
def test_what_follows_a_huge_stage_is_proposed_from_a_part_of_it(
    coordinator: Counting, following: dict[str, Any], most: int
) -> None:
    submit(coordinator, {"name": "coarse", "trials": 5000, "epochs": 1}, following)
    give(coordinator, HUGE)
    study = coordinator.store.study("a")
    stages = coordinator.store.stages(study.id)
    coordinator.insights.flags(study, stages)
    coordinator.n_read = 0
    (proposal,) = coordinator.stages.proposals(study, stages)
    assert coordinator.n_read <= most
    low, high = (proposal.stage.space["x"].model_dump()[end] for end in ("low", "high"))
    if "top" not in following and following.get("refine") != "keep":
        assert 0.2 < low < 0.5 < high < 0.8, "a sample tells where the best lie"
    else:
        assert (low, high) == (0.0, 1.0)
    assert proposal.stage.n_trials == (9 if "top" in following else 10)


def test_finalists_of_a_huge_stage_are_its_best(coordinator: Counting) -> None:
    submit(coordinator, {"name": "coarse", "trials": 5000, "epochs": 1}, {"name": "best", "top": 3, "epochs": 2})
    give(coordinator, HUGE)
    coordinator.stages.open(coordinator.store.study("a"), OwnStage())
    coordinator.n_read = 0
    train(coordinator)
    study = coordinator.store.study("a")
    assert study.state is StudyState.COMPLETED
    found = coordinator.insights.finalists(study, coordinator.store.stages(study.id))
    assert coordinator.n_read < HUGE
    best = sorted(abs(k / HUGE - 0.5) for k in range(HUGE))[:3]
    assert sorted(f.selected or 0.0 for f in found) == pytest.approx(best)


def test_a_trial_that_resumes_one_of_a_huge_stage_is_leased_without_reading_that(coordinator: Counting) -> None:
    long = {"name": "long", "top": 2, "epochs": 6, "resume": True}
    submit(coordinator, {"name": "short", "trials": 5000, "epochs": 3}, long)
    give(coordinator, HUGE)
    coordinator.stages.open(coordinator.store.study("a"), OwnStage())
    coordinator.n_read = 0
    for _ in range(2):
        (given,) = coordinator.lease(WorkerHello("w", None, {}), 1, study="a")
        assert given.resume_from is not None
        parent = coordinator.store.trial(given.lease.study_id, given.resume_from.trial)
        assert (parent.stage, parent.params) == ("short", given.lease.params)
    assert coordinator.n_read <= 500, "a page of the best for each question, and not the stage"


@pytest.mark.parametrize(("limit", "n_long"), [(20, 0), (21, 1), (23, 1), (24, 2), (26, 2), (27, 3), (40, 3)])
def test_a_trial_that_resumes_another_costs_what_it_trains_itself(
    coordinator: Counting, limit: int, n_long: int
) -> None:
    long = {"name": "long", "top": 3, "epochs": 6, "resume": True}
    submit(coordinator, SHORT, long, stop={"epochs": limit})
    train(coordinator)
    study = coordinator.store.study("a")
    stages = coordinator.store.stages(study.id)
    found = all_trials(coordinator.store, study.id, TrialQuery(stage="long"))
    assert len(found) == n_long, "6 short trials train 3 epochs each, and each long one 3 more"
    assert sum(stage.n_epochs for stage in stages) == 18 + 3 * n_long <= limit
    assert study.state is StudyState.COMPLETED
    left = f"the limit of {limit} epochs leaves no room for another trial ({18 + 3 * n_long} trained)"
    assert study.reason == (left if limit <= 27 else None)


def test_whether_an_improvement_is_to_be_expected_is_asked_without_reading_the_stage_again(
    coordinator: Counting,
) -> None:
    submit(coordinator, {"name": "only", "trials": 5000, "epochs": 1}, stop={"no_improvement": 2000})
    give(coordinator, HUGE)
    coordinator.tick()
    coordinator.n_read = 0
    for _ in range(10):
        (given,) = coordinator.lease(WorkerHello("w", None, {}), 1, study="a")
        coordinator.finish("w", [Result(given.lease.token, TrialState.COMPLETED, 0.7)])
    study = coordinator.store.study("a")
    assert coordinator.n_read <= 20, "the best, and no more, for each of them"
    assert study.state is StudyState.RUNNING, "twice 2,000 are needed to tell"
    worse: list[tuple[Params, TrialState, float | None]] = [({"x": 0.9}, TrialState.COMPLETED, 0.9)] * 2000
    coordinator.add_finished("a", worse)
    coordinator.tick()
    reason = coordinator.store.study("a").reason or ""
    assert reason.startswith("no improvement is to be expected: the last 2000 trials brought none")


def test_open_trials_that_resume_others_take_what_they_have_left(coordinator: Counting) -> None:
    long = {"name": "long", "top": 3, "epochs": 6, "resume": True}
    submit(coordinator, SHORT, long, stop={"epochs": 24})
    train(coordinator, stage="short")
    leases = [coordinator.lease(WorkerHello(name, None, {}), 1, study="a") for name in ("u", "v", "w")]
    assert [len(found) for found in leases] == [1, 1, 0], "6 of 24 epochs are left, and each takes 3"


def test_the_few_of_a_state_are_found_without_reading_the_many_of_others(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    coordinator = Coordinator(store, clock=lambda: NOW)
    submit(coordinator, {"name": "only", "trials": 5000, "epochs": 1})
    give(coordinator, HUGE)
    (running,) = coordinator.lease(WorkerHello("w", None, {}), 1, study="a")
    steps: list[int] = []

    def count(connection: Any, _record: object, _proxy: object) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 1000)

    store.close()
    event.listen(Engine, "checkout", count)
    try:
        reopened = open_store(sqlite_url)
        steps.clear()
        (found,) = reopened.trials(1, TrialQuery(states=(TrialState.RUNNING,))).items
        reopened.close()
    finally:
        event.remove(Engine, "checkout", count)
    assert found.number == running.lease.trial == HUGE
    assert len(steps) <= 2, f"{len(steps)} thousand steps of SQLite's machine for {HUGE} trials that have ended"
