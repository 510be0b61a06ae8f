"""What :class:`hpsearch.integrations.optuna.ServiceStorage` calls. Studies made here are ordinary studies."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from hpsearch import __version__
from hpsearch.errors import InvalidInput
from hpsearch_api.deps import PROBLEMS, After, Limit, TheChanges, TheCoordinator, TheLimits, check_text
from hpsearch_api.models import View
from hpsearch_api.optuna_models import (
    AttributesBody,
    CreatedView,
    NewStudy,
    NewTrial,
    OutcomesBody,
    Patches,
    StaleTrials,
    Studies,
    StudyBody,
    SyncAnswer,
    SyncRequest,
    TrialAnswer,
    plain,
)
from hpsearch_storage import SqlStore
from hpsearch_storage.optuna_records import OptunaRecords

if TYPE_CHECKING:
    from hpsearch.integrations.optuna.backend import Position

router = APIRouter(prefix="/api/v1/optuna", tags=["optuna"], responses=PROBLEMS)

Id = Annotated[int, Path(ge=0, lt=2**63)]


def _records(coordinator: TheCoordinator) -> OptunaRecords:
    store = coordinator.store
    if not isinstance(store, SqlStore):
        raise InvalidInput(f"the store {type(store).__name__} keeps nothing of Optuna")
    return store.optuna


TheRecords = Annotated[OptunaRecords, Depends(_records)]


def _room_for_study(coordinator: TheCoordinator, limits: TheLimits) -> None:
    if isinstance(coordinator.store, SqlStore):
        limits.check_studies(coordinator.store.n_studies())


def _room_for_trial(study_id: Id, coordinator: TheCoordinator, limits: TheLimits) -> None:
    if isinstance(coordinator.store, SqlStore):
        limits.check_trials(coordinator.store.n_trials(study_id) + 1)


class Hello(View):
    """Who answers."""

    version: str


@router.get("", response_model=Hello)
def greet() -> dict[str, str]:
    """A server that knows Optuna answers, to a client whose token it knows."""
    return {"version": __version__}


@router.get("/studies", response_model=Studies)
def list_studies(records: TheRecords, limit: Limit = 100, after: After = None) -> dict[str, Any]:
    """Studies by id, with their attributes."""
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidInput(f"the cursor {after[:80]!r} is damaged: take 'next' of the page before")
    found = records.studies(after=int(after or 0), limit=limit)
    return {"items": found, "next": str(found[-1]["id"]) if len(found) == limit else None}


@router.post("/studies", response_model=StudyBody, status_code=201, dependencies=[Depends(_room_for_study)])
def create_study(body: NewStudy, records: TheRecords, coordinator: TheCoordinator, changes: TheChanges) -> Any:
    """Make a study; 409 if the name is taken."""
    study = records.create_study(body.name, body.directions, body.key, now=coordinator.clock())
    changes.ring()
    return study


@router.get("/study", response_model=StudyBody)
def read_study(
    records: TheRecords,
    study_id: Annotated[int | None, Query(alias="id", ge=0, lt=2**63)] = None,
    name: Annotated[str | None, Query(max_length=2000)] = None,
) -> Any:
    """One study by `id`, or by `name`, which is Optuna's or our own."""
    if study_id is None and name is None:
        raise InvalidInput("say which study: give id or name")
    return records.study(study_id=study_id, name=None if name is None else check_text(name, "query.name"))


@router.delete("/studies/{study_id}", status_code=204)
def delete_study(study_id: Id, records: TheRecords, changes: TheChanges) -> None:
    """Remove a study and all that belongs to it."""
    records.delete_study(study_id)
    changes.ring()


@router.post("/studies/{study_id}/attributes", status_code=204)
def set_attributes(study_id: Id, body: AttributesBody, records: TheRecords) -> None:
    """Set attributes of a study."""
    for kind, attributes in (("user", body.user), ("system", body.system)):
        if attributes:
            records.set_attributes(study_id, kind, attributes)


@router.post(
    "/studies/{study_id}/trials",
    response_model=CreatedView,
    status_code=201,
    dependencies=[Depends(_room_for_trial)],
)
def create_trial(
    study_id: Id, body: NewTrial, records: TheRecords, coordinator: TheCoordinator, changes: TheChanges
) -> Any:
    """Make a trial; 409 if the study has ended or is trained by workers of the service."""
    template = None if body.template is None else plain(body.template)
    created = records.create_trial(study_id, template, body.times, body.key, now=coordinator.clock())
    changes.ring()
    return created


@router.post("/patches", response_model=OutcomesBody)
def patch_trials(body: Patches, records: TheRecords, coordinator: TheCoordinator, changes: TheChanges) -> Any:
    """Change trials, in one transaction."""
    outcomes = records.apply([plain(patch) for patch in body.patches], now=coordinator.clock())
    changes.ring()
    return {"outcomes": outcomes}


@router.post("/studies/{study_id}/sync", response_model=SyncAnswer)
def sync(
    study_id: Id, body: SyncRequest, records: TheRecords, coordinator: TheCoordinator, changes: TheChanges
) -> Response:
    """Change trials, then read what is new in a study."""
    outcomes = records.apply([plain(patch) for patch in body.patches], now=coordinator.clock())
    if outcomes:
        changes.ring()
    at = body.position
    position: Position = {"event": at.event, "number": at.number, "distribution": at.distribution}
    view = records.view(study_id, position, body.needs)
    return Response(f'{{"outcomes":{json.dumps(outcomes)},"view":{view}}}', media_type="application/json")


@router.get("/trials/{trial_id}", response_model=TrialAnswer)
def read_trial(trial_id: Id, records: TheRecords) -> Response:
    """One trial."""
    return Response(records.trial(trial_id), media_type="application/json")


@router.post("/trials/{trial_id}/heartbeat", status_code=204)
def heartbeat(trial_id: Id, records: TheRecords, coordinator: TheCoordinator) -> None:
    """The process of a trial lives."""
    records.heartbeat(trial_id, now=coordinator.clock())


@router.get("/studies/{study_id}/stale", response_model=StaleTrials)
def stale_trials(
    study_id: Id,
    grace_seconds: Annotated[float, Query(ge=0, le=10**9)],
    records: TheRecords,
    coordinator: TheCoordinator,
) -> Any:
    """Running trials whose last heartbeat is older than that, by the server's clock."""
    return {"trials": records.stale_trials(study_id, timedelta(seconds=grace_seconds), now=coordinator.clock())}
