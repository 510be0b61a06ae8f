"""What the parts of the conformance class share: a clock that stands still, and short ways to a study and a lease."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpsearch.space import Params
from hpsearch.spec import StudySpec, parse_study
from hpsearch.store import Store, WorkerHello
from hpsearch.study import NewStage, Stage, Study
from hpsearch.testing import alone
from hpsearch.trial import Lease, Trial, TrialState

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
TTL = timedelta(seconds=30)
SECOND = timedelta(seconds=1)
METRIC = "val_accuracy"

_SPACE: dict[str, Any] = {"lr": {"type": "float", "low": 1e-6, "high": 1.0, "log": True}}
_STAGES: list[dict[str, Any]] = [
    {"name": "coarse", "trials": 4, "epochs": 3},
    {"name": "fine", "trials": 2, "epochs": 5},
]


def make_spec(
    name: str = "a", *, kind: str = "train", space: dict[str, Any] | None = None, trials: int = 4, **changes: Any
) -> StudySpec:
    """A study of two stages, coarse (``trials`` of 3 epochs) and fine (2 of 5 epochs)."""
    objective = {"kind": "train", "data": {"source": "digits"}} if kind == "train" else {"kind": kind}
    stages = [{**_STAGES[0], "trials": trials}, _STAGES[1]]
    document = {
        "name": name,
        "objective": objective,
        "metric": {"name": METRIC, "direction": "maximize"},
        "space": space or _SPACE,
        "stages": stages,
    }
    return parse_study(document | changes)


def new_stage(spec: StudySpec, index: int = 0, **changes: Any) -> NewStage:
    """A stage of a study as it would be opened first."""
    stage = spec.stages[index]
    return NewStage(stage, spec.space, stage.n_trials, **changes)


def hello(name: str = "w1", session: str | None = "s1") -> WorkerHello:
    """A worker that asks."""
    return WorkerHello(name, session, {"host": "here"})


class Base:
    """The fixture to override, and helpers that take the store."""

    @pytest.fixture
    def store(self) -> Store:
        """A fresh, empty store."""
        raise NotImplementedError("override the fixture 'store'")

    def create(self, store: Store, name: str = "a", *, queued: int = 0, **options: Any) -> Study:
        """A study, with so many queued trials whose lr are 0.1, 0.2, …"""
        spec = make_spec(name, **options)
        study, created = store.create_study(spec, new_stage(spec), now=T0)
        assert created
        if queued:
            self.enqueue(store, study, queued)
        return study

    def enqueue(self, store: Store, study: Study, n: int) -> None:
        """Fill the running stage with ``n`` more trials."""
        first = store.study(study.name).next_number
        params: list[Params] = [{"lr": round(0.1 * (number + 1), 10)} for number in range(first, first + n)]
        assert store.add_trials(self.stage(store, study).id, first, params, now=T0)

    def stage(self, store: Store, study: Study) -> Stage:
        """The newest stage of a study."""
        return store.stages(study.id)[-1]

    def lease(self, store: Store, n: int = 1, worker: WorkerHello | None = None, **options: Any) -> list[Lease]:
        """Ask for trials at T0."""
        asked: dict[str, Any] = {"now": T0, "ttl": TTL} | options
        return alone.lease(store, worker or hello(), n, **asked)

    def states(self, store: Store, study: Study) -> dict[TrialState, int]:
        """The counts of all stages together that are not zero."""
        counts: dict[TrialState, int] = {}
        for stage in store.stages(study.id):
            for state, n in stage.counts.items():
                if n:
                    counts[state] = counts.get(state, 0) + n
        return counts

    def events(self, store: Store, study: Study, kind: str) -> list[dict[str, Any]]:
        """Data of the events of one kind, first to last; the log's numbers are checked on the way."""
        log = store.events(study.id, after=0, limit=10_000)
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert store.last_event(study.id) == len(log)
        return [event.data for event in log if event.kind == kind]

    def numbers(self, things: Sequence[Lease] | Sequence[Trial]) -> list[int]:
        """Numbers of trials or leases."""
        return [thing.trial if isinstance(thing, Lease) else thing.number for thing in things]
