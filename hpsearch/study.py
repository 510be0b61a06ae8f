"""Studies and stages as the store keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from hpsearch.space import Space
from hpsearch.spec import StageSpec, StudySpec
from hpsearch.trial import TrialState


class StudyState(StrEnum):
    """Where a study stands. The last three are final."""

    PREFLIGHT = "preflight"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self in (StudyState.COMPLETED, StudyState.CANCELLED, StudyState.FAILED)


class PreflightStatus(StrEnum):
    """Where the checks before a study's first stage stand."""

    SKIPPED = "skipped"
    WAITING = "waiting"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    """A check failed: the study is held until its user overrides that, or submits another."""
    OVERRIDDEN = "overridden"


@dataclass(frozen=True, slots=True)
class Preflight:
    """The checks before a study's first stage spends anything.

    Attributes:
        checks: each ``{name, status, message, numbers}``; empty before they have run.
        worker: who runs or ran them.
        token, expires_at: of the worker's right to run them.
    """

    status: PreflightStatus
    checks: tuple[dict[str, Any], ...] = ()
    worker: str | None = None
    token: str | None = None
    expires_at: datetime | None = None


class StageState(StrEnum):
    """Where a stage stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Study:
    """One search problem in the store. ``next_number`` is the number that its next trial gets."""

    id: int
    spec: StudySpec
    state: StudyState
    reason: str | None
    next_number: int
    created_at: datetime
    ended_at: datetime | None

    @property
    def name(self) -> str:
        """The name, unique in the store."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage about to be opened.

    Attributes:
        spec: what the study says of it.
        space: what it samples from.
        n_trials: how many trials it trains.
        parent: name of the stage that its space follows from.
        difference: what its space changes against the parent's: parameter → ``{"low": [from, to], …}``.
        plan: position among the study's planned stages of the one that it is, or stands beside.
        extension: how many stages past a border stand before it on the same plan, itself included; 0 for none.
        exclude: a part of its space that its parent has sampled already, where it draws nothing.
        watched: whether it may be settled before it is done.
        reason: why it was opened beside the plan, a sentence.
    """

    spec: StageSpec
    space: Space
    n_trials: int
    parent: str | None = None
    difference: dict[str, Any] | None = None
    plan: int = 0
    extension: int = 0
    exclude: Space | None = None
    watched: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One pass over one space with one epoch budget; all but state and counts never changes.

    Attributes:
        index: from 0 within the study.
        n_created: how many of its ``n_trials`` planned trials have been created.
        counts: how many trials are in each state (those added from outside included).
        n_epochs: epochs that its ended trials trained: the last step of each, but for what it had behind it, summed.
        plan, extension, exclude, watched, reason: as in :class:`NewStage`.
    """

    id: int
    study_id: int
    index: int
    state: StageState
    spec: StageSpec
    space: Space
    n_trials: int
    n_created: int
    parent: str | None
    difference: dict[str, Any] | None
    counts: Mapping[TrialState, int]
    opened_at: datetime
    ended_at: datetime | None
    n_epochs: int = 0
    plan: int = 0
    extension: int = 0
    exclude: Space | None = None
    watched: bool = False
    reason: str | None = None

    @property
    def name(self) -> str:
        """The name, unique in the study."""
        return self.spec.name

    @property
    def n_finished(self) -> int:
        """How many trials have ended, however they did."""
        return sum(n for state, n in self.counts.items() if state.is_finished)

    @property
    def is_done(self) -> bool:
        """Whether every planned trial has been created and has ended; never of an open-ended stage."""
        open_trials = self.counts.get(TrialState.QUEUED, 0) + self.counts.get(TrialState.RUNNING, 0)
        return not self.spec.open_ended and self.n_created >= self.n_trials and open_trials == 0


@dataclass(frozen=True, slots=True)
class Border:
    """One border of one parameter's range in one stage."""

    stage: str
    parameter: str
    side: str


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a user said of a flag: they have seen it."""

    note: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a study's log. ``seq`` counts from 1 within the study, without a gap."""

    seq: int
    kind: str
    at: datetime
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the server last saw it. ``info`` is what it said of itself (host, device, pid, version)."""

    name: str
    info: dict[str, Any]
    first_seen: datetime
    last_seen: datetime
    n_leases: int
