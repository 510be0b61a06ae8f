"""Submitting, reading, steering and removing studies."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from hpsearch.coordinator import Coordinator
from hpsearch.document import parse_yaml
from hpsearch.errors import Fault, InvalidSpec, NotFound
from hpsearch.spec import StudySpec, parse_study
from hpsearch.store import Store
from hpsearch.study import StudyState
from hpsearch_api import views
from hpsearch_api.deps import PROBLEMS, After, Limit, StudyName, TheCoordinator, TheLimits, check_text
from hpsearch_api.lease_models import Accepted, ChecksRequest
from hpsearch_api.models import BestView, Items, PreflightView, StudyView, ValidationView
from hpsearch_api.security.limits import Limits
from hpsearch_api.validation import validate
from hpsearch_storage import SqlStore

router = APIRouter(prefix="/api/v1/studies", tags=["studies"], responses=PROBLEMS)

EXAMPLE = {
    "name": "digits",
    "objective": {"kind": "train", "data": {"source": "digits"}, "model": {"kind": "mlp", "hidden": [50]}},
    "metric": {"name": "val_accuracy", "direction": "maximize"},
    "space": {
        "lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "reg": {"type": "float", "low": 1e-5, "high": 1e1, "log": True},
    },
    "stages": [{"name": "coarse", "trials": 40, "epochs": 2}, {"name": "fine", "trials": 40, "epochs": 8}],
    "seed": 0,
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": StudySpec.model_json_schema(), "example": EXAMPLE},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}

_ANY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {}, "example": EXAMPLE}, "application/yaml": {"schema": {}}},
    }
}


@router.post(
    "",
    status_code=201,
    response_model=StudyView,
    openapi_extra=_BODY,
    responses={200: {"model": StudyView, "description": "An equal request created it before."}},
)
async def submit(
    request: Request,
    coordinator: TheCoordinator,
    limits: TheLimits,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """Submit a study, as JSON or YAML. Submitting the same document again finds the study and changes nothing."""
    body = await request.body()
    key = None if idempotency_key is None else check_text(idempotency_key, "header.Idempotency-Key")
    return await run_in_threadpool(_submit, coordinator, limits, body, key)


@router.post("/validate", response_model=ValidationView, openapi_extra=_ANY_BODY)
async def validate_study(request: Request) -> Any:
    """Check a study as submitting it would, without keeping it: its wrong places by line, its cost in epochs."""
    return await run_in_threadpool(validate, _text(await request.body()))


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidSpec([Fault("", "the body is not UTF-8")]) from None


def _submit(coordinator: Coordinator, limits: Limits, body: bytes, key: str | None) -> Response:
    spec = parse_study(parse_yaml(_text(body)))
    limits.check_trials(sum(stage.n_trials for stage in spec.stages))
    _check_room(coordinator.store, limits, spec.name)
    study, created = coordinator.submit(spec, idempotency_key=key)
    location = f"/api/v1/studies/{study.name}"
    return JSONResponse(views.study_view(coordinator, study), 201 if created else 200, {"Location": location})


def _check_room(store: Store, limits: Limits, name: str) -> None:
    """Raise TooMany if there are too many studies; one that is there may be submitted again."""
    n_studies = store.n_studies() if isinstance(store, SqlStore) else 0
    if n_studies >= limits.studies:
        try:
            store.study(name)
        except NotFound:
            limits.check_studies(n_studies)


@router.get("", response_model=Items[StudyView])
def list_studies(coordinator: TheCoordinator, limit: Limit = 50, after: After = None) -> dict[str, Any]:
    """Studies, newest first."""
    page = coordinator.store.studies(limit=limit, after=after)
    return {"items": [views.study_view(coordinator, study) for study in page.items], "next": page.next}


@router.get("/{name}", response_model=StudyView)
def read_study(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """One study, with counts per state, stages, best, flags, progress and eta."""
    return views.study_view(coordinator, coordinator.store.study(name))


@router.post("/{name}/pause", response_model=StudyView)
def pause(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """Hand out no more trials of this study; running ones go on."""
    return views.study_view(coordinator, coordinator.set_state(name, StudyState.PAUSED))


@router.post("/{name}/resume", response_model=StudyView)
def resume(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """Hand out trials again; in preflight: start in spite of the checks."""
    return views.study_view(coordinator, coordinator.set_state(name, StudyState.RUNNING))


@router.post("/{name}/cancel", response_model=StudyView)
def cancel(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """End this study now; its open trials become cancelled. What has finished stays."""
    return views.study_view(coordinator, coordinator.set_state(name, StudyState.CANCELLED, reason="cancelled"))


@router.delete("/{name}", status_code=204)
def delete(name: StudyName, coordinator: TheCoordinator) -> None:
    """Remove this study and all that belongs to it. There is no way back: export first."""
    coordinator.delete(name)


@router.get("/{name}/preflight", response_model=PreflightView)
def read_preflight(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """The checks that ran before the first stage; one that failed holds the study until it is resumed or replaced."""
    study = coordinator.store.study(name)
    return views.preflight_view(coordinator.store.preflight(study.id))


@router.post("/{name}/preflight", response_model=Accepted)
def finish_preflight(name: StudyName, body: ChecksRequest, coordinator: TheCoordinator) -> dict[str, bool]:
    """What a worker's checks came to; starts the study unless one failed."""
    checks = [check.model_dump() for check in body.checks]
    return {"accepted": coordinator.finish_preflight(name, body.token, checks)}


@router.get("/{name}/best", response_model=BestView)
def best(name: StudyName, coordinator: TheCoordinator) -> Any:
    """The winner so far; after a confirm stage with mean, spread and n. 404 before the first completed trial."""
    study = coordinator.store.study(name)
    found = coordinator.insights.best(study, coordinator.store.stages(study.id))
    if found is None:
        raise NotFound("completed trial in the study", name)
    return found
