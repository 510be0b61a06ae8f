"""What the memory store keeps of a study, and the rules that need no more than it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from hpsearch.space import Params
from hpsearch.spec import StudySpec
from hpsearch.study import Acknowledgement, Border, Event, Preflight, PreflightStatus, Stage, StageState, Study
from hpsearch.trial import Attempt, AttemptState, RungEntry, RungPlace, Trial, TrialState


@dataclass(slots=True)
class Try:
    """An attempt with what proves it."""

    shown: Attempt
    token: str
    session: str | None
    study_id: int
    trial: int
    step: int | None = None

    @property
    def holds(self) -> bool:
        """Whether the lease holds."""
        return self.shown.state is AttemptState.RUNNING


@dataclass(slots=True)
class Kept:
    """A study with all that belongs to it; trials and stages stand at their number and index."""

    study: Study
    key: str | None
    stages: list[Stage] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    planned: set[int] = field(default_factory=set)
    behind: dict[int, int] = field(default_factory=dict)
    tries: dict[int, list[Try]] = field(default_factory=dict)
    n_lost: dict[int, int] = field(default_factory=dict)
    metrics: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    rungs: dict[int, dict[RungPlace, RungEntry]] = field(default_factory=dict)
    preflight: Preflight = field(default_factory=lambda: Preflight(PreflightStatus.SKIPPED))
    logs: dict[int, str] = field(default_factory=dict)
    acknowledged: dict[Border, Acknowledgement] = field(default_factory=dict)

    def log(self, kind: str, data: dict[str, Any], now: datetime) -> None:
        """Append to the log."""
        self.events.append(Event(len(self.events) + 1, kind, now, data))

    def log_state(self, now: datetime) -> None:
        """Log the study's state."""
        self.log("study", {"state": self.study.state.value, "reason": self.study.reason}, now)

    def log_stage(self, stage: Stage, now: datetime) -> None:
        """Log a stage's state."""
        data = {"stage": stage.name, "index": stage.index, "state": stage.state.value, "n_trials": stage.n_trials}
        self.log("stage", data, now)

    def put(self, trial: Trial, now: datetime) -> None:
        """Write a trial's new state, and log it."""
        self.trials[trial.number : trial.number + 1] = [trial]
        shown = {name: getattr(trial, name) for name in ("number", "stage", "value", "step", "params", "reason")}
        self.log("trial", {**shown, "state": trial.state.value}, now)

    def live(self, stage: Stage) -> Stage:
        """A stage with its counts."""
        mine = [t for t in self.trials if t.stage == stage.name]
        counts = {state: sum(t.state is state for t in mine) for state in TrialState}
        n_epochs = sum(max(t.step - self.behind.get(t.number, 0), 0) for t in mine if t.state.is_finished)
        n_created = sum(t.number in self.planned for t in mine)
        return replace(stage, counts=counts, n_created=n_created, n_epochs=n_epochs)

    def running_stage(self) -> Stage | None:
        """The stage that is running."""
        return next((s for s in self.stages if s.state is StageState.RUNNING), None)

    def n_running(self) -> int:
        """How many trials are running."""
        return sum(t.state is TrialState.RUNNING for t in self.trials)


def document(spec: StudySpec) -> str:
    """What a spec says, comparable."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True)


def new_trial(number: int, stage: str, state: TrialState, params: Params, now: datetime) -> Trial:
    """A trial that nobody has tried."""
    return Trial(number, stage, state, dict(params), None, 0, None, 0, None, now, None, None)


def end(item: Try, state: AttemptState, reason: str | None, now: datetime) -> None:
    """End an attempt."""
    item.shown = replace(item.shown, state=state, reason=reason, ended_at=now)


def why_not(item: Try | None) -> str:
    """Why a token gives no right."""
    return "there is no such lease" if item is None else f"the attempt is {item.shown.state.value}"


def settle(state: TrialState, value: float | None, reason: str | None) -> tuple[TrialState, float | None, str | None]:
    """State, value and reason of a trial that ended."""
    if state not in (TrialState.COMPLETED, TrialState.PRUNED):
        return state, None, reason
    if value is not None and math.isfinite(value):
        return state, float(value) + 0.0, reason
    if state is TrialState.PRUNED:
        return state, None, reason
    if value is None:
        return TrialState.FAILED, None, "it completed without a value"
    return TrialState.DIVERGED, None, f"its value is {value}"
