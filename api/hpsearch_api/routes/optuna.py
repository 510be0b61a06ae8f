"""What :class:`hpsearch.integrations.optuna.ServiceStorage` calls. Studies made here are ordinary studies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from hpsearch import __version__
from hpsearch.coordinator import Coordinator
from hpsearch.errors import InvalidInput
from hpsearch_api.changes import Changes
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
from hpsearch_api.security import Limits
from hpsearch_api.shortcuts import Call
from hpsearch_api.together import Together
from hpsearch_storage import SqlStore
from hpsearch_storage.optuna_records import OptunaRecords

if TYPE_CHECKING:
    from hpsearch.integrations.optuna.backend import Created, Outcome, Position

Q = TypeVar("Q")
A = TypeVar("A")
router = APIRouter(prefix="/api/v1/optuna", tags=["optuna"], responses=PROBLEMS)

Id = Annotated[int, Path(ge=0, lt=2**63)]


def _records(coordinator: TheCoordinator) -> OptunaRecords:
    return _store(coordinator).optuna


def _store(coordinator: Coordinator) -> SqlStore:
    store = coordinator.store
    if not isinstance(store, SqlStore):
        raise InvalidInput(f"the store {type(store).__name__} keeps nothing of Optuna")
    return store


TheRecords = Annotated[OptunaRecords, Depends(_records)]


def _room_for_study(coordinator: TheCoordinator, limits: TheLimits) -> None:
    if isinstance(coordinator.store, SqlStore):
        limits.check_studies(coordinator.store.n_studies())


MOST = 16
"""Calls in one turn, each with a transaction of its own: so many wait for the last of them."""


class Calls:
    """What Optuna's clients call all the time, one after the other: side by side they would wait for each other's turn.

    Threads of one process take turns at computing, and with several that compute each waits far longer than it works.
    """

    def __init__(self, coordinator: Coordinator, changes: Changes, limits: Limits) -> None:
        self._coordinator = coordinator
        self._changes = changes
        self._limits = limits
        self.create: Together[tuple[int, NewTrial], Created] = Together(
            _in_turn(self._create), name="optuna-create", most=MOST
        )
        self.patch: Together[Patches, list[Outcome]] = Together(_in_turn(self._patch), name="optuna-patch", most=MOST)
        self.sync: Together[tuple[int, SyncRequest], str] = Together(
            _in_turn(self._sync), name="optuna-sync", most=MOST
        )

    def close(self) -> None:
        """See :meth:`Together.close`."""
        for each in (self.create, self.patch, self.sync):
            each.close()

    def _create(self, asked: tuple[int, NewTrial]) -> Created:
        study_id, body = asked
        store = _store(self._coordinator)
        self._limits.check_trials(store.n_trials(study_id) + 1)
        template = None if body.template is None else plain(body.template)
        created = store.optuna.create_trial(study_id, template, body.times, body.key, now=self._coordinator.clock())
        self._changes.ring()
        return created

    def _patch(self, body: Patches) -> list[Outcome]:
        if not body.patches:
            return []
        patches = [plain(patch) for patch in body.patches]
        outcomes = _store(self._coordinator).optuna.apply(patches, now=self._coordinator.clock())
        self._changes.ring()
        return outcomes

    def _sync(self, asked: tuple[int, SyncRequest]) -> str:
        study_id, body = asked
        outcomes = self._patch(body)
        at = body.position
        position: Position = {"event": at.event, "number": at.number, "distribution": at.distribution}
        view = _store(self._coordinator).optuna.view(study_id, position, body.needs)
        return f'{{"outcomes":{json.dumps(outcomes)},"view":{view}}}'


def _in_turn(answer: Callable[[Q], A]) -> Callable[[Sequence[Q]], list[A | Exception]]:
    """One answer after the other, each with its own error: none is given twice for another's sake."""

    def answered(call: Q) -> A | Exception:
        try:
            return answer(call)
        except Exception as error:
            return error

    return lambda calls: [answered(call) for call in calls]


async def _calls(request: Request) -> Calls:
    calls: Calls = request.app.state.optuna_calls
    return calls


TheCalls = Annotated[Calls, Depends(_calls)]


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


@router.post("/studies/{study_id}/trials", response_model=CreatedView, status_code=201)
async def create_trial(study_id: Id, body: NewTrial, calls: TheCalls) -> Any:
    """Make a trial; 409 if the study has ended or is trained by workers of the service."""
    return await calls.create((study_id, body))


@router.post("/patches", response_model=OutcomesBody)
async def patch_trials(body: Patches, calls: TheCalls) -> Any:
    """Change trials, in one transaction."""
    return {"outcomes": await calls.patch(body)}


@router.post("/studies/{study_id}/sync", response_model=SyncAnswer)
async def sync(study_id: Id, body: SyncRequest, calls: TheCalls) -> Response:
    """Change trials, then read what is new in a study."""
    return Response(await calls.sync((study_id, body)), media_type="application/json")


async def _sync(body: SyncRequest, request: Request) -> Response | None:
    if body.position.number == 0:  # all of the study: the long way compresses it
        return None
    study_id = str(request.scope["path"]).split("/")[5]
    if not study_id.isascii() or not study_id.isdigit() or len(study_id) > _DIGITS:
        return None
    return await sync(int(study_id), body, request.app.state.optuna_calls)


_DIGITS = 18
"""Of an id that any route takes."""
SHORTCUTS: dict[str, Call] = {"/api/v1/optuna/studies/{study_id}/sync": (SyncRequest, _sync)}
"""See :class:`hpsearch_api.shortcuts.Shortcuts`."""


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
