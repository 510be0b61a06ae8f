"""The documents between workers and the server: leases, reports, results, checks and logs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, StrictFloat, StrictInt

from hpsearch.document import STORABLE, Document, Text
from hpsearch.space import MAX_INT, Value
from hpsearch.trial import Action
from hpsearch_api.models import Number, View

WorkerName = Annotated[Text, Field(description="stable identity of the worker", examples=["gpu-box/0"])]
Token = Annotated[str, Field(max_length=100), STORABLE]
Reason = Annotated[str, Field(max_length=2000), STORABLE]
MetricName = Text


class Wanted(Document):
    """What a worker would run, and what it says of itself."""

    capacity: Annotated[int, Strict(), Field(ge=1, le=1024)] = 1
    study: Text | None = None
    kinds: Annotated[list[Text], Field(max_length=20)] | None = None
    session: Text | None = Field(None, description="anew for every process: leases of an earlier one are lost at once")
    info: Annotated[dict[Text, Text | StrictInt | StrictFloat | StrictBool | None], Field(max_length=50)] = {}


class LeaseRequest(Wanted):
    """Ask for trials. A worker that asks again first gets back what it still holds."""

    worker: WorkerName
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 0


class ResumeView(View):
    """What a trial goes on from: itself, stopped or lost after `step`, or a trial of the stage before."""

    stage: str
    trial: int
    step: int
    epochs: int


class LeaseView(View):
    """A worker's exclusive, expiring right to a trial."""

    study: str
    stage: str
    trial: int
    attempt: int
    token: str
    expires_at: datetime
    params: dict[str, Value]
    epochs: int
    folds: int | None
    seeds: int
    seed: int
    resume_from: ResumeView | None = None
    keep_stopped: int = 0
    keep_completed: int = 0
    stops_at: list[int] = Field([], description="the first report at or behind one of these may be answered `stop`")
    stops_from: int | None = Field(0, description="as may every one from this step on, but the last; null: no other")
    objective: dict[str, Any]
    metric: dict[str, str]
    study_seed: int
    data_seed: int
    lease_seconds: float


class PreflightLease(View):
    """A study whose checks are to be run; `POST /studies/{name}/preflight` takes them."""

    study: str
    token: str
    objective: dict[str, Any]
    space: dict[str, Any]
    study_seed: int


class Leases(View):
    """What was leased; empty if nothing is to be done. Preflights go to workers whose kinds name `preflight`."""

    leases: list[LeaseView]
    preflights: list[PreflightLease] = []
    version: str = Field("", description="of the server: a worker of another one may not understand it")


class Queue(View):
    """What there is to do: trials that could be leased, those not drawn yet included, and studies to be checked."""

    waiting: int
    checks: int
    version: str = Field(description="of the server")


class CheckBody(Document):
    """One check, as a worker found it."""

    name: Text
    status: Literal["pass", "warn", "fail"]
    message: Reason
    numbers: Annotated[dict[MetricName, Number], Field(max_length=1000)] = {}


class ChecksRequest(Document):
    """What a worker's checks of a study came to."""

    worker: WorkerName
    token: Token
    checks: Annotated[list[CheckBody], Field(max_length=1000)]


class Accepted(View):
    """Whether it stands."""

    accepted: bool


class _Item(BaseModel):
    """Base of what comes by the dozen, from programs: of an unknown key no known one is named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportBody(_Item):
    """Metrics of one step; without a step only a sign of life."""

    token: Token
    step: Annotated[int, Strict(), Field(ge=0, le=MAX_INT)] | None = None
    metrics: Annotated[dict[MetricName, Number], Field(max_length=1000)] = {}


class ReportRequest(Document):
    """What a worker reports for the trials that it holds; renews the leases named."""

    worker: WorkerName
    reports: Annotated[list[ReportBody], Field(max_length=10_000)]


class DecisionView(View):
    """What to do with the trial now."""

    token: str
    action: Action
    reason: str | None = None


class Decisions(View):
    """One decision per report, in order."""

    decisions: list[DecisionView]


class ResultBody(_Item):
    """How a trial ended; without a value the metric of its last report is taken."""

    token: Token
    state: Literal["completed", "pruned", "diverged", "failed"]
    value: Number | None = None
    reason: Reason | None = None


class LogBody(Document):
    """The end of what a trial wrote."""

    token: Token
    text: Annotated[str, Field(max_length=200_000), STORABLE]


class LogRequest(Document):
    """What trials of users' own code wrote, in place of what was told of them before."""

    worker: WorkerName
    logs: Annotated[list[LogBody], Field(max_length=1000)]


class FinishRequest(Document):
    """Results of trials, what of them was not reported before, and what to run next; repeating it is harmless."""

    worker: WorkerName
    results: Annotated[list[ResultBody], Field(max_length=10_000)]
    reports: Annotated[list[ReportBody], Field(max_length=10_000)] = []
    next: Wanted | None = Field(None, description="asked for when the results are kept")


class ReleaseRequest(Document):
    """Give unfinished trials back."""

    worker: WorkerName
    tokens: Annotated[list[Token], Field(max_length=10_000)]


class OutcomeView(View):
    """Whether a result stands, and if not, why."""

    token: str
    accepted: bool
    reason: str | None = None


class Outcomes(View):
    """One outcome per result, in order."""

    outcomes: list[OutcomeView]


class Finished(Outcomes):
    """And what to run next, if that was asked for and could be found out: else ask for it again."""

    next: Leases | None = None
