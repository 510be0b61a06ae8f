"""Random calls in random order: every store against a model that fits on a page."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hpsearch.errors import Conflict
from hpsearch.spec import parse_study
from hpsearch.store import Store, TrialQuery, WorkerHello
from hpsearch.study import NewStage, StudyState
from hpsearch.testing import MemoryStore, alone
from hpsearch.trial import Action, AttemptState, Report, Result, TrialState
from hpsearch_storage import open_store
from hpsearch_storage.maintenance import check
from stores import DOCUMENT, NOW, TTL

MAX_LOST = 2
N_TRIALS = 12
EXAMPLES = int(os.environ.get("HPSEARCH_MACHINE_EXAMPLES", "8"))
WORKERS = strategies.sampled_from(["v", "w"])
ENDS = strategies.sampled_from([TrialState.COMPLETED, TrialState.PRUNED, TrialState.DIVERGED, TrialState.FAILED])
STEERED = strategies.sampled_from([StudyState.PAUSED, StudyState.RUNNING, StudyState.PAUSED, StudyState.CANCELLED])
VALUES = strategies.one_of(strategies.none(), strategies.floats(allow_nan=True, allow_infinity=True, width=64))


@dataclass
class Held:
    """A token that was handed out: whose, for which trial, and what became of it."""

    worker: str
    session: str
    trial: int
    expires: timedelta
    state: AttemptState = AttemptState.RUNNING
    step: int | None = None


@dataclass
class Model:
    """What the store should say, by the rules of its Protocol alone."""

    clock: timedelta = timedelta(0)
    study: StudyState = StudyState.RUNNING
    states: list[TrialState] = field(default_factory=list)
    values: dict[int, float | None] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)
    metrics: dict[int, dict[int, float]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    attempts: dict[int, list[str]] = field(default_factory=dict)

    def running(self, worker: str) -> list[str]:
        mine = [t for t, h in self.held.items() if h.worker == worker and h.state is AttemptState.RUNNING]
        return sorted(mine, key=lambda token: self.held[token].trial)

    def lose(self, token: str) -> None:
        held = self.held[token]
        held.state = AttemptState.LOST
        self.lost[held.trial] = self.lost.get(held.trial, 0) + 1
        gone = self.lost[held.trial] >= MAX_LOST
        self.states[held.trial] = TrialState.FAILED if gone else TrialState.QUEUED


class StoreMachine(RuleBasedStateMachine):
    """One study, two workers. Subclasses say which store."""

    make: Callable[[], Store]
    url: str | None = None

    @initialize()
    def begin(self) -> None:
        self.store = type(self).make()
        self.model = Model()
        spec = parse_study(DOCUMENT | {"stages": [{"name": "only", "trials": N_TRIALS}]})
        study, _ = self.store.create_study(spec, NewStage(spec.stages[0], spec.space, N_TRIALS), now=NOW)
        self.study_id, self.stage_id = study.id, self.store.stages(study.id)[0].id
        self.add_trials(4, 0)
        self.lease("w", "s", 3)

    @property
    def now(self) -> Any:
        return NOW + self.model.clock

    @rule(seconds=strategies.sampled_from([31, 10, 29, 120]))
    def wait(self, seconds: int) -> None:
        self.model.clock += timedelta(seconds=seconds)

    @rule(n=strategies.integers(1, 4), first=strategies.sampled_from([0, 0, 0, -1, 1]))
    def add_trials(self, n: int, first: int) -> None:
        model, number = self.model, len(self.model.states) + first
        added = self.store.add_trials(self.stage_id, number, [{"x": 0.5}] * n, now=self.now)
        fits = first == 0 and len(model.states) + n <= N_TRIALS and not model.study.is_finished
        assert added == fits
        model.states += [TrialState.QUEUED] * (n if fits else 0)

    @rule(worker=WORKERS, session=strategies.sampled_from(["s", "t"]), n=strategies.sampled_from([1, 2, 3, 4, 0]))
    def lease(self, worker: str, session: str, n: int) -> None:
        model = self.model
        hello = WorkerHello(worker, session, {})
        leases = alone.lease(self.store, hello, n, now=self.now, ttl=TTL, study="a", max_lost=MAX_LOST)
        for token in model.running(worker):
            if model.held[token].session != session:
                model.lose(token)
        kept = model.running(worker)[:n]
        assert [lease.token for lease in leases[: len(kept)]] == kept, "what is held comes first"
        for token in kept:
            model.held[token].expires = model.clock + TTL
        room = n - len(kept) if model.study is StudyState.RUNNING else 0
        queued = [i for i, state in enumerate(model.states) if state is TrialState.QUEUED][:room]
        assert [lease.trial for lease in leases[len(kept) :]] == queued
        for lease in leases[len(kept) :]:
            assert lease.token not in model.held, "a token is given once"
            model.held[lease.token] = Held(worker, session, lease.trial, model.clock + TTL)
            model.states[lease.trial] = TrialState.RUNNING
            model.attempts.setdefault(lease.trial, []).append(lease.token)
            assert lease.attempt == len(model.attempts[lease.trial])

    def token(self, data: strategies.DataObject) -> str:
        return data.draw(strategies.sampled_from([*self.model.held, "never given"]))

    @precondition(lambda self: self.model.held)
    @rule(
        data=strategies.data(),
        steps=strategies.lists(strategies.integers(1, 9), max_size=4).map(sorted)
        | strategies.lists(strategies.integers(1, 6) | strategies.none(), min_size=1, max_size=3),
    )
    def report(self, data: strategies.DataObject, steps: list[int | None]) -> None:
        model, token = self.model, self.token(data)
        values = [data.draw(strategies.floats(allow_nan=False)) for _ in steps]
        reports = [Report(token, step, {"loss": value}) for step, value in zip(steps, values, strict=True)]
        decisions = alone.report(self.store, "v", reports, now=self.now, ttl=TTL)
        held = model.held.get(token)
        is_held = held is not None and held.state is AttemptState.RUNNING
        assert {decision.action for decision in decisions} <= {Action.CONTINUE if is_held else Action.ABANDON}
        assert len(decisions) == len(steps)
        for step, value in zip(steps, values, strict=True):
            if held is not None and is_held:
                self.take(held, step, value)

    def take(self, held: Held, step: int | None, value: float) -> None:
        """A report of a lease that holds."""
        model = self.model
        held.expires = model.clock + TTL
        if step is not None:
            steps = model.metrics.setdefault(held.trial, {})
            if held.step is None and len(model.attempts[held.trial]) > 1:
                model.metrics[held.trial] = steps = {s: v for s, v in steps.items() if s <= step}
            steps[step] = value
            held.step = max(step, held.step or 0)

    @precondition(lambda self: self.model.held)
    @rule(
        data=strategies.data(),
        state=ENDS,
        value=VALUES,
        last=strategies.lists(strategies.tuples(strategies.integers(1, 9), strategies.floats(-9, 9)), max_size=3),
    )
    def finish(
        self, data: strategies.DataObject, state: TrialState, value: float | None, last: list[tuple[int, float]]
    ) -> None:
        model, token = self.model, self.token(data)
        reports = [Report(token, step, {"loss": told}) for step, told in last]
        (outcome,) = alone.finish(self.store, "v", [Result(token, state, value)], reports=reports, now=self.now)
        held = model.held.get(token)
        if held is None or held.state not in (AttemptState.RUNNING, AttemptState.FINISHED):
            assert not outcome.accepted
            assert outcome.reason
            return
        assert outcome.accepted
        if held.state is AttemptState.RUNNING:
            for step, told in last:
                self.take(held, step, told)
            held.state = AttemptState.FINISHED
            model.states[held.trial], model.values[held.trial] = self.settled(held, state, value)

    def settled(self, held: Held, state: TrialState, value: float | None) -> tuple[TrialState, float | None]:
        if state not in (TrialState.COMPLETED, TrialState.PRUNED):
            return state, None
        if value is None and held.step is not None:
            value = self.model.metrics[held.trial].get(self.last_step(held))
        if value is not None and abs(value) < float("inf"):
            return state, value + 0.0
        if state is TrialState.PRUNED:
            return state, None
        return (TrialState.FAILED if value is None else TrialState.DIVERGED), None

    def last_step(self, held: Held) -> int:
        return self.store.trial(self.study_id, held.trial).step

    @precondition(lambda self: self.model.held)
    @rule(data=strategies.data())
    def release(self, data: strategies.DataObject) -> None:
        model, token = self.model, self.token(data)
        (outcome,) = self.store.release("v", [token], now=self.now)
        held = model.held.get(token)
        fits = held is not None and held.state in (AttemptState.RUNNING, AttemptState.RELEASED)
        assert outcome.accepted == fits
        if held is not None and held.state is AttemptState.RUNNING:
            held.state = AttemptState.RELEASED
            model.states[held.trial] = TrialState.QUEUED

    @rule()
    def reap(self) -> None:
        model = self.model
        expired = [t for t, h in model.held.items() if h.state is AttemptState.RUNNING and h.expires <= model.clock]
        touched = self.store.reap(now=self.now, max_lost=MAX_LOST)
        assert touched == ([self.study_id] if expired else [])
        for token in expired:
            model.lose(token)

    @rule(
        state=strategies.sampled_from([StudyState.PAUSED, StudyState.RUNNING, StudyState.PAUSED, StudyState.CANCELLED])
    )
    def steer(self, state: StudyState) -> None:
        model = self.model
        if model.study.is_finished:
            if state is not model.study:
                with pytest.raises(Conflict):
                    self.store.set_state(self.study_id, state, now=self.now)
            return
        if state is StudyState.CANCELLED and len(model.held) < N_TRIALS:
            return  # seldom: nothing happens afterwards
        assert self.store.set_state(self.study_id, state, now=self.now).state is state
        model.study = state
        if state.is_finished:
            for held in model.held.values():
                if held.state is AttemptState.RUNNING:
                    held.state = AttemptState.CANCELLED
            open_ = (TrialState.QUEUED, TrialState.RUNNING)
            model.states = [TrialState.CANCELLED if s in open_ else s for s in model.states]

    @invariant()
    def trials_are_as_in_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        trials = self.store.trials(self.study_id, TrialQuery()).items
        assert [t.number for t in trials] == list(range(len(model.states)))
        assert [t.state for t in trials] == model.states
        for trial in trials:
            if trial.state in (TrialState.COMPLETED, TrialState.PRUNED):
                assert trial.value == model.values[trial.number]
            assert trial.n_attempts == len(model.attempts.get(trial.number, ()))
            states = [attempt.state for attempt in self.store.attempts(self.study_id, trial.number)]
            assert states == [model.held[token].state for token in model.attempts.get(trial.number, ())]
        told = [(m.trial, m.step, m.values["loss"]) for m in self.store.metrics(self.study_id, range(N_TRIALS))]
        assert told == [(n, s, v) for n, steps in sorted(model.metrics.items()) for s, v in sorted(steps.items())]
        stage = self.store.stages(self.study_id)[0]
        assert {s: n for s, n in stage.counts.items() if n} == {s: model.states.count(s) for s in set(model.states)}
        log = self.store.events(self.study_id, after=0, limit=10_000)
        assert [event.seq for event in log] == list(range(1, len(log) + 1))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            if self.url is not None:
                assert check(self.url).faults == ()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where each example has its own file."""
    path = Path(tempfile.mkdtemp(prefix="hpsearch-machine-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgresql"])
def test_calls_in_any_order(kind: str, folder: Path, request: pytest.FixtureRequest) -> None:
    class Machine(StoreMachine):
        url: str | None = None

    def sqlite() -> Store:
        file = f"sqlite:///{folder / secrets.token_hex(8)}.db"
        Machine.url = file
        return open_store(file)

    def postgres() -> Store:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DELETE FROM studies")
            connection.execute("DELETE FROM workers")
        Machine.url = url
        return open_store(url)

    url: str = request.getfixturevalue("postgres_url") if kind == "postgresql" else ""
    Machine.make = staticmethod({"memory": MemoryStore, "sqlite": sqlite, "postgresql": postgres}[kind])
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES if kind != "memory" else 5 * EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
