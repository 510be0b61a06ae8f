"""The documents of the HTTP interface: what comes in, checked, and what goes out, described for OpenAPI."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from hpsearch.document import Document, StorableText, Text
from hpsearch.space import Value
from hpsearch.study import PreflightStatus, StageState, StudyState
from hpsearch.trial import AttemptState, TrialState

T = TypeVar("T")


def _as_text(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


NON_FINITE = ("NaN", "Infinity", "-Infinity")


def _as_number(value: Any) -> Any:
    if isinstance(value, str) and value not in NON_FINITE:
        raise ValueError(f"a number, or one of {', '.join(NON_FINITE)}")
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    if isinstance(value, int) and abs(value) > 2**1023:
        raise ValueError("a number that a double can hold")
    return float(value) if isinstance(value, str) else value


Number = Annotated[
    float,
    BeforeValidator(_as_number),
    PlainSerializer(_as_text),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "enum": list(NON_FINITE)}]}),
]
"""A float; what is not finite travels as text."""


Interval = Annotated[list[Number], Field(min_length=2, max_length=2)]
"""Low and high end."""


class View(BaseModel):
    """Base of what goes out."""

    model_config = ConfigDict(from_attributes=True)


class Items(View, Generic[T]):
    """A page of a collection; ``next`` goes into ``after`` for the following one."""

    items: list[T]
    next: str | None = None


class BestView(View):
    """The winner so far; ``mean``, ``spread`` and ``n`` after a confirm stage."""

    trial: int
    stage: str
    params: dict[str, Value]
    value: Number
    mean: Number | None = None
    spread: Number | None = None
    n: int | None = None
    interval: Interval | None = Field(None, description="holds the true mean with 90 % probability")
    probability_best: float | None = Field(None, description="that no other finalist's true mean is better")
    optimism: Number | None = Field(None, description="how much better the value was that it was chosen for")


class FlagView(View):
    """A statement about one border of one parameter's range in one stage."""

    stage: str
    parameter: str
    side: Literal["low", "high"]
    level: Literal["watch", "likely", "strong"]
    p_value: float
    verdict: Literal["widen", "unstable_edge", "natural_limit", "insufficient_data"]
    message: str
    proposed: dict[str, float] | None
    acknowledged: AcknowledgementView | None = None
    passed_by: str | None = Field(None, description="the stage that was opened past this border")


class AcknowledgementView(View):
    """A user has seen a flag."""

    note: str
    at: datetime


class AcknowledgeRequest(Document):
    """Note that a flag has been seen; without a note that is taken back."""

    stage: Text
    parameter: Text
    side: Literal["low", "high"]
    note: Annotated[StorableText, Field(max_length=2000)] | None = ""


class ProgressView(View):
    """Trials finished and planned over all stages, and the share of the planned epochs."""

    finished: int
    planned: int
    fraction: float


class StageView(View):
    """One pass over one space with one epoch budget."""

    name: str
    index: int
    state: StageState
    n_trials: int
    epochs: int
    space: dict[str, Any]
    parent: str | None
    difference: dict[str, Any] | None
    counts: dict[TrialState, int]
    opened_at: datetime
    ended_at: datetime | None
    spec: dict[str, Any]
    extension: int
    reason: str | None
    n_inherited: int
    n_epochs: int
    saved_epochs: int


class ProposalView(View):
    """A stage that may be opened by one call, and what it costs: ``n_epochs`` over all of its trials."""

    kind: Literal["next", "extension"]
    name: str
    reason: str
    parent: str | None
    space: dict[str, Any]
    difference: dict[str, Any] | None
    n_trials: int
    epochs: int
    n_epochs: int
    spec: dict[str, Any]


class ParamNarrowingView(View):
    """What became of one parameter's range, and why."""

    parameter: str
    outcome: Literal["kept", "narrowed", "dropped choices"]
    importance: Number | None
    p_value: Number | None
    reason: str


class StageNarrowingView(View):
    """What became of the ranges from a stage to its child."""

    stage: str
    parent: str
    parameters: list[ParamNarrowingView]


class AgreementView(View):
    """Rank correlation and overlap of the best, after few epochs and after many."""

    epochs: int
    of: int
    n: int
    spearman: Number | None
    interval: Interval | None
    top: int
    overlap: Number | None
    warning: str | None


class StageAgreementView(View):
    """Whether short training tells what long training will: within a stage, or against a later one."""

    stage: str
    against: str
    agreement: AgreementView


class FinalistView(View):
    """One set of params trained with several fresh seeds."""

    params: dict[str, Value]
    trials: list[int]
    mean: Number
    spread: Number | None
    n: int
    n_diverged: int
    interval: Interval | None
    probability_best: float | None
    selected: Number | None
    optimism: Number | None


class AnalysisView(View):
    """What the statistics say of a study."""

    narrowings: list[StageNarrowingView]
    agreements: list[StageAgreementView]
    finalists: list[FinalistView]


class StagesView(Items[StageView]):
    """The stages opened so far, and those that are proposed."""

    proposals: list[ProposalView]


class StudyView(View):
    """One search problem and how it stands."""

    name: str
    state: StudyState
    reason: str | None
    spec: dict[str, Any]
    counts: dict[TrialState, int]
    n_trials: int
    stage: str
    stages: list[StageView]
    best: BestView | None
    flags: list[FlagView]
    progress: ProgressView
    preflight: PreflightStatus
    eta_seconds: float | None
    created_at: datetime
    ended_at: datetime | None
    last_event: int


class AttemptView(View):
    """One try of a worker at a trial."""

    number: int
    worker: str
    state: AttemptState
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    reason: str | None


class VerdictView(View):
    """What a trial's curves show."""

    name: str
    epoch: int | None
    evidence: dict[str, Number]
    advice: str


class CheckView(View):
    """One check before a study's first stage."""

    name: str
    status: Literal["pass", "warn", "fail"]
    message: str
    numbers: dict[str, Number]


class PreflightView(Items[CheckView]):
    """The checks of a study, and where they stand."""

    status: PreflightStatus
    worker: str | None


class TrialView(View):
    """One configuration trained once."""

    number: int
    stage: str
    state: TrialState
    params: dict[str, Value]
    value: Number | None
    step: int
    verdicts: list[VerdictView]
    reason: str | None
    n_attempts: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    duration_seconds: float | None


class TrialDetail(TrialView):
    """A trial with every try at it."""

    attempts: list[AttemptView]


class StepView(View):
    """What a trial reported at one step."""

    step: int
    values: dict[str, Number]


class WorkerView(View):
    """A worker as last seen."""

    name: str
    host: str | None
    device: str | None
    info: dict[str, Any]
    holds: int
    first_seen: datetime
    last_seen: datetime


class FaultView(View):
    """One wrong place."""

    loc: str
    msg: str


class LineFaultView(FaultView):
    """One wrong place of a text; ``line`` counts from 1."""

    line: int


class StageCostView(View):
    """What a planned stage costs: ``n_epochs`` over all of its trials, folds and repeats."""

    name: str
    n_trials: int
    epochs: int
    n_epochs: int


class ValidationView(View):
    """Whether a text is a study, where it is not, and what it would cost."""

    valid: bool
    errors: list[LineFaultView]
    name: str | None = None
    space: dict[str, Any] | None = None
    stages: list[StageCostView] = []
    n_epochs: int | None = None


class Problem(View):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FaultView] | None = None


class GivenTrial(Document):
    """Params to train, or, with a state or value, a trial that was evaluated elsewhere."""

    params: dict[Text, Value]
    state: Literal["completed", "pruned", "diverged", "failed"] | None = None
    value: Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)] | None = None


class GivenTrials(Document):
    """Trials given by the user."""

    trials: Annotated[list[GivenTrial], Field(min_length=1, max_length=10_000)]


class Numbers(View):
    """Numbers of the trials made, in the order given."""

    numbers: list[int]
