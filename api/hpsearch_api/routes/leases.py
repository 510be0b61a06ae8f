"""What workers call: lease, report, finish, release."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic_core import to_json

from hpsearch._version import __version__
from hpsearch.coordinator import Assignment, Coordinator, Queued
from hpsearch.document import Text
from hpsearch.errors import HpsearchError
from hpsearch.store import Asking, WorkerHello, as_kinds
from hpsearch.trial import Decision, Ending, Outcome, Report, Result, TrialState
from hpsearch_api import views
from hpsearch_api.deps import PROBLEMS, TheChanges, TheCoordinator
from hpsearch_api.lease_models import (
    Decisions,
    Finished,
    FinishRequest,
    LeaseRequest,
    Leases,
    LogRequest,
    Outcomes,
    Queue,
    ReleaseRequest,
    ReportBody,
    ReportRequest,
    Wanted,
)
from hpsearch_api.models import WorkerView
from hpsearch_api.security import Limits
from hpsearch_api.shortcuts import Call
from hpsearch_api.telemetry import Meters
from hpsearch_api.together import Together

FEW = 128
"""Trials that are given out, reported on or ended in some milliseconds, by a store in this process."""
ASK_AGAIN = 5.0
"""A worker that waits is noted as there so often, in seconds."""

router = APIRouter(prefix="/api/v1", tags=["workers"], responses=PROBLEMS)


def _answer(document: dict[str, Any]) -> Response:
    """A document of ours as it is: checking it against its model once more takes longer than writing it."""
    return Response(to_json(document), media_type="application/json")


class Calls:
    """What workers ask for all the time, answered together with what others ask for at the same moment."""

    def __init__(self, coordinator: Coordinator) -> None:
        few = FEW if coordinator.store.is_local else -1

        def are_few(asked: Sequence[Asking]) -> bool:
            return sum(each.capacity for each in asked) <= few

        def say_little(calls: Sequence[tuple[str, Sequence[Any]]]) -> bool:
            return sum(len(said) for _, said in calls) <= few

        def end_few(calls: Sequence[Ending]) -> bool:
            return sum(len(each.results) + len(each.reports) for each in calls) <= few

        self.lease: Together[Asking, list[Assignment]] = Together(coordinator.lease_all, name="lease", is_small=are_few)
        self.report: Together[tuple[str, list[Report]], list[Decision]] = Together(
            coordinator.report_all, name="report", is_small=say_little
        )
        self.finish: Together[Ending, list[Outcome]] = Together(coordinator.finish_all, name="finish", is_small=end_few)
        self.queue: Together[Queued, tuple[int, int]] = Together(coordinator.queues, name="queue", most=100_000)

    def close(self) -> None:
        """See :meth:`Together.close`."""
        for each in (self.lease, self.report, self.finish, self.queue):
            each.close()


async def _calls(request: Request) -> Calls:
    calls: Calls = request.app.state.calls
    return calls


TheCalls = Annotated[Calls, Depends(_calls)]


@router.post("/leases", response_model=Leases)
async def lease(
    body: LeaseRequest, request: Request, coordinator: TheCoordinator, changes: TheChanges, calls: TheCalls
) -> Response:
    """Lease trials, first what this worker still holds; waits up to `wait_seconds` for something to do."""
    queue = (body.study, as_kinds(body.kinds))
    deadline = time.monotonic() + body.wait_seconds
    again = min(ASK_AGAIN, coordinator.lease_ttl.total_seconds() / 2)
    asked_at = -math.inf
    while True:
        bell = changes.bell()
        # Any change wakes all who wait: they look together whether there is anything, before each asks for it.
        if time.monotonic() - asked_at > again or any(await calls.queue(queue)):
            asked_at = time.monotonic()
            if found := await _look(body.worker, body, coordinator, calls):
                return _answer(found)
        left = deadline - time.monotonic()
        if left <= 0 or changes.closing:
            return _answer(_work([], []))
        await changes.wait(bell, left)
        if await request.is_disconnected():  # what came meanwhile is for a worker that listens
            return _answer(_work([], []))


async def _look(worker: str, wanted: Wanted, coordinator: Coordinator, calls: Calls) -> dict[str, Any] | None:
    """What a worker is to do now, if there is anything."""
    if wanted.kinds and "preflight" in wanted.kinds:
        claimed = await run_in_threadpool(coordinator.claim_preflight, worker, wanted.kinds)
        if claimed is not None:
            return _work([], [views.preflight_lease(*claimed)])
    hello = WorkerHello(worker, wanted.session, dict(wanted.info))
    assignments = await calls.lease(Asking(hello, wanted.capacity, wanted.study, as_kinds(wanted.kinds)))
    seconds = coordinator.lease_ttl.total_seconds()
    return _work(views.lease_views(assignments, seconds), []) if assignments else None


def _work(leases: list[dict[str, Any]], preflights: list[dict[str, Any]]) -> dict[str, Any]:
    return {"leases": leases, "preflights": preflights, "version": __version__}


@router.get("/leases")
def queue(
    coordinator: TheCoordinator,
    study: Annotated[Text | None, Query(description="count its trials alone")] = None,
    kinds: Annotated[tuple[Text, ...], Query(max_length=20, description="of objectives; repeatable")] = (),
) -> Queue:
    """How much waits for workers; `external` studies count only where `study` names them."""
    waiting, checks = coordinator.queue(study, list(kinds) or None)
    return Queue(waiting=waiting, checks=checks, version=__version__)


@router.post("/leases/report", response_model=Decisions)
async def report(body: ReportRequest, request: Request, calls: TheCalls) -> Response:
    """Keep metrics and renew leases; the answer says for each trial to continue, stop or abandon."""
    decisions = await calls.report((body.worker, _reports(body.reports, request)))
    _count(body, request)
    return _answer({"decisions": [{"token": d.token, "action": str(d.action), "reason": d.reason} for d in decisions]})


def _reports(given: Sequence[ReportBody], request: Request) -> list[Report]:
    """Raises InvalidInput for what is more than the server takes."""
    limits: Limits = request.app.state.limits  # not by Depends, which costs a tenth of a report each
    for each in given:
        limits.check_report(each.step, len(each.metrics))
    return [Report(r.token, r.step, r.metrics) for r in given]


def _count(body: ReportRequest | FinishRequest, request: Request) -> None:
    meters: Meters = request.app.state.meters
    meters.reported(body.worker, sum(r.step is not None for r in body.reports))


@router.post("/leases/finish", response_model=Finished, response_model_exclude_unset=True)
async def finish(body: FinishRequest, request: Request, calls: TheCalls) -> Response:
    """End trials. A result of a lease that was lost is refused with a reason; repeating a call is harmless."""
    results = [Result(r.token, TrialState(r.state), r.value, r.reason) for r in body.results]
    outcomes = await calls.finish(Ending(body.worker, results, _reports(body.reports, request)))
    _count(body, request)
    said = {"outcomes": [{"token": o.token, "accepted": o.accepted, "reason": o.reason} for o in outcomes]}
    if body.next is None:
        return _answer(said)
    try:
        found = await _look(body.worker, body.next, request.app.state.coordinator, calls)
    except HpsearchError:  # the results are kept, and that is what is to be said
        return _answer(said | {"next": None})
    return _answer(said | {"next": found or _work([], [])})


async def _lease(body: LeaseRequest, request: Request) -> Response:
    state = request.app.state
    return await lease(body, request, state.coordinator, state.changes, state.calls)


async def _report(body: ReportRequest, request: Request) -> Response:
    return await report(body, request, request.app.state.calls)


async def _finish(body: FinishRequest, request: Request) -> Response:
    return await finish(body, request, request.app.state.calls)


SHORTCUTS: dict[str, Call] = {
    "/api/v1/leases": (LeaseRequest, _lease),
    "/api/v1/leases/report": (ReportRequest, _report),
    "/api/v1/leases/finish": (FinishRequest, _finish),
}
"""See :class:`hpsearch_api.shortcuts.Shortcuts`."""


@router.post("/leases/log", status_code=204)
def log(body: LogRequest, coordinator: TheCoordinator) -> None:
    """Keep the end of what trials wrote; of a trial whose lease was lost nothing is kept."""
    coordinator.store.logs.keep({item.token: item.text for item in body.logs})


@router.post("/leases/release", response_model=Outcomes)
def release(body: ReleaseRequest, coordinator: TheCoordinator) -> dict[str, Any]:
    """Give unfinished trials back; they are queued again."""
    return {"outcomes": coordinator.release(body.worker, body.tokens)}


@router.get("/workers")
def list_workers(coordinator: TheCoordinator) -> dict[str, list[WorkerView] | None]:
    """Every worker that asked for leases, the last seen first."""
    return {
        "items": [WorkerView.model_validate(views.worker_view(w)) for w in coordinator.store.workers()],
        "next": None,
    }
