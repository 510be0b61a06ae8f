"""Reading trials and what they reported; giving trials to a study; whole exports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import PlainTextResponse, StreamingResponse

from hpsearch.errors import Fault, InvalidSpec, NotFound
from hpsearch.space import MAX_INT
from hpsearch.store import TrialQuery
from hpsearch.trial import TrialState
from hpsearch_api import export, views
from hpsearch_api.deps import PROBLEMS, After, Limit, StudyName, TheCoordinator, TheLimits, check_text
from hpsearch_api.models import GivenTrials, Items, Numbers, StepView, TrialDetail, TrialView

router = APIRouter(prefix="/api/v1/studies/{name}/trials", tags=["trials"], responses=PROBLEMS)

Verdict = Literal[
    "diverged", "lr_too_high", "lr_too_low", "plateau_then_progress", "overfitting", "underfitting", "still_improving",
    "saturated", "dead_units", "healthy",
]  # fmt: skip
TrialNumber = Annotated[int, Path(ge=0, le=MAX_INT)]


@router.get(
    "",
    response_model=Items[TrialView],
    responses={200: {"content": {export.CSV: {}, export.PARQUET: {}}, "description": "A page, or a whole export."}},
)
def list_trials(
    name: StudyName,
    coordinator: TheCoordinator,
    stage: Annotated[str | None, Query(max_length=50)] = None,
    state: Annotated[list[TrialState] | None, Query()] = None,
    verdict: Annotated[Verdict | None, Query(description="only trials that have this verdict")] = None,
    sort: Annotated[str, Query(max_length=250, description="`number`, `-value`, `params.lr`, …")] = "number",
    limit: Limit = 100,
    after: After = None,
    accept: Annotated[str, Header()] = "",
) -> Any:
    """A page of trials. With `Accept: text/csv` or `application/vnd.apache.parquet` all of them, streamed."""
    study = coordinator.store.study(name)
    query = TrialQuery(
        stage=None if stage is None else check_text(stage, "query.stage"),
        states=tuple(state or ()),
        verdict=verdict,
        sort=check_text(sort, "query.sort"),
        limit=limit,
        after=None if after is None else check_text(after, "query.after"),
    )
    if stage is not None and stage not in [s.name for s in coordinator.store.stages(study.id)]:
        raise NotFound("stage", stage)
    if export.CSV in accept:
        return StreamingResponse(export.csv_rows(coordinator.store, study, query), media_type=export.CSV)
    if export.PARQUET in accept:
        return StreamingResponse(export.parquet(coordinator.store, study, query), media_type=export.PARQUET)
    page = coordinator.store.trials(study.id, query)
    return {"items": [views.trial_view(trial) for trial in page.items], "next": page.next}


@router.post("", status_code=201, response_model=Numbers)
def give_trials(name: StudyName, body: GivenTrials, coordinator: TheCoordinator, limits: TheLimits) -> dict[str, Any]:
    """Queue given params in the running stage, or add trials that were evaluated elsewhere (all with a value)."""
    limits.check_trials(coordinator.store.study(name).next_number + len(body.trials))
    finished = [t for t in body.trials if t.state is not None or t.value is not None]
    if not finished:
        return {"numbers": coordinator.enqueue(name, [t.params for t in body.trials])}
    if len(finished) < len(body.trials):
        raise InvalidSpec([Fault("trials", "either all trials have a state or value, or none has: send them apart")])
    given = [(t.params, TrialState(t.state or "completed"), t.value) for t in finished]
    for i, (_, state, value) in enumerate(given):
        if state is TrialState.COMPLETED and value is None:
            raise InvalidSpec([Fault(f"trials.{i}.value", "a completed trial needs its value")])
    return {"numbers": coordinator.add_finished(name, given)}


@router.get("/{number}", response_model=TrialDetail)
def read_trial(name: StudyName, number: TrialNumber, coordinator: TheCoordinator) -> dict[str, Any]:
    """One trial with every try at it."""
    study = coordinator.store.study(name)
    trial = coordinator.store.trial(study.id, number)
    return views.trial_detail(trial, coordinator.store.attempts(study.id, number))


@router.get("/{number}/metrics", response_model=Items[StepView])
def read_metrics(name: StudyName, number: TrialNumber, coordinator: TheCoordinator) -> dict[str, Any]:
    """What a trial reported, step by step."""
    study = coordinator.store.study(name)
    coordinator.store.trial(study.id, number)
    steps = coordinator.store.metrics(study.id, [number])
    return {"items": [views.step_view(step) for step in steps], "next": None}


@router.get("/{number}/log", response_class=PlainTextResponse)
def read_log(name: StudyName, number: TrialNumber, coordinator: TheCoordinator) -> str:
    """The end of what a trial of kind python or command wrote; empty if it wrote nothing."""
    study = coordinator.store.study(name)
    return coordinator.store.logs.of_trial(study.id, number) or ""
