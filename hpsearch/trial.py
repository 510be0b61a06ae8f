"""Trials, attempts, leases, and what passes between a worker and the server about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from hpsearch.space import Params


class TrialState(StrEnum):
    """Where a trial stands. The last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    """Stopped early on merit."""
    DIVERGED = "diverged"
    """Non-finite or exploded loss: a result, with the step and the reason."""
    FAILED = "failed"
    """The objective raised, or every attempt lost its worker."""
    CANCELLED = "cancelled"

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self not in (TrialState.QUEUED, TrialState.RUNNING)


RESULT_STATES = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.DIVERGED, TrialState.FAILED)
"""The states that a worker may give a trial."""


class AttemptState(StrEnum):
    """What became of one try of a worker at a trial."""

    RUNNING = "running"
    FINISHED = "finished"
    LOST = "lost"
    """The lease expired, or the worker came back without it."""
    RELEASED = "released"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration trained once.

    Attributes:
        number: from 0 within its study.
        stage: name of its stage.
        value: the metric at the last step of a completed or pruned trial, else None; always finite.
        step: the last step reported, 0 before the first.
        worker: who holds or held its last attempt.
        verdicts: what its curves show, each ``{name, epoch, evidence, advice}``; see :mod:`hpsearch.verdicts`.
    """

    number: int
    stage: str
    state: TrialState
    params: Params
    value: float | None
    step: int
    reason: str | None
    n_attempts: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    verdicts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a worker at a trial. ``number`` counts from 1."""

    number: int
    worker: str
    state: AttemptState
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one trial reported at one step. Values may be non-finite."""

    trial: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's exclusive, expiring right to a trial, proved by its token."""

    token: str
    study_id: int
    study: str
    stage: str
    stage_index: int
    trial: int
    attempt: int
    expires_at: datetime
    params: Params
    epochs: int
    step: int = 0
    """The last step that earlier attempts reported, 0 for none."""


class Report(NamedTuple):
    """Metrics of one step, or (``step`` None) only a sign of life. Either renews the lease."""

    token: str
    step: int | None = None
    metrics: Mapping[str, float] = MappingProxyType({})


class Action(StrEnum):
    """What a worker is to do with a trial after a report."""

    CONTINUE = "continue"
    STOP = "stop"
    """End it now and finish it as pruned."""
    ABANDON = "abandon"
    """The lease is not yours any more; a result would be refused."""


class Place(NamedTuple):
    """Where a trial that was reported on belongs. ``step``: its last before this call, 0 for none."""

    study_id: int
    study: str
    stage: str
    trial: int
    step: int


class Demand(NamedTuple):
    """How much there is to be leased, and for how many.

    Attributes:
        queued: trials that are queued.
        waiting: those, and planned ones that are not created yet.
        others: other workers that wait.
    """

    queued: int
    waiting: int
    others: int


class Decision(NamedTuple):
    """The answer to one report. ``place`` is known while the lease holds."""

    token: str
    action: Action
    reason: str | None = None
    place: Place | None = None


class RungPlace(NamedTuple):
    """A trial at a rung: the epoch ``step`` of one of hyperband's brackets (0 without brackets)."""

    bracket: int
    step: int
    trial: int


class RungEntry(NamedTuple):
    """What a trial had when it came to a rung.

    Attributes:
        value: the metric, None if it was not finite.
        went_on: whether the trial was let past the rung, at once or when it was promoted.
        seq: rises with every change of the stage's rungs, from 1.
    """

    place: RungPlace
    value: float | None
    went_on: bool
    seq: int


class Climb(NamedTuple):
    """What a report says of a rung: to be kept with the report, if its lease holds.

    Attributes:
        token: of the report.
        value: the metric, or what the rule made of it; None if it is not finite.
        before: the last step of the trial that ``value`` takes for granted; it is kept only if that is so. None: any.
    """

    token: str
    place: RungPlace
    value: float | None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Climbs:
    """What reports say of the rungs of one stage. ``after``: the last ``seq`` that is known of them."""

    stage_id: int
    after: int
    climbs: tuple[Climb, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended. ``value`` None: the metric of the last report is taken.

    ``verdicts`` are the server's, kept with the trial.
    """

    token: str
    state: TrialState
    value: float | None = None
    reason: str | None = None
    verdicts: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """Results of a worker, and what of these trials it did not report before."""

    worker: str
    results: Sequence[Result]
    reports: Sequence[Report] = ()


@dataclass(frozen=True, slots=True)
class HeldTrial:
    """A trial whose lease holds, with all that it reported so far."""

    study_id: int
    study: str
    stage: str
    trial: int
    steps: tuple[StepMetrics, ...]


Judge = Callable[[Result, HeldTrial], Result]
"""Says what a result means, from all that the trial reported; it may be asked again."""


def as_told(result: Result, trial: HeldTrial) -> Result:
    """The result itself."""
    del trial
    return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one result: whether it stands, and if not, why."""

    token: str
    accepted: bool
    reason: str | None = None
