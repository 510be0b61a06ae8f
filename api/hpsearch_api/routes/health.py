"""Is it alive, is it ready, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from hpsearch.errors import StoreError
from hpsearch_api.deps import PROBLEMS, TheChanges, TheCoordinator
from hpsearch_api.telemetry import Meters
from hpsearch_storage import SqlStore

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: PROBLEMS[503]})
def readyz(coordinator: TheCoordinator, changes: TheChanges) -> dict[str, str]:
    """The store answers and has the schema of this program, and the server is not about to stop."""
    if changes.draining:
        raise StoreError("the server is about to stop: ask another")
    coordinator.store.check()
    if isinstance(coordinator.store, SqlStore):
        coordinator.store.check_schema()
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"},
        **{status: PROBLEMS[status] for status in (401, 403, 429, 503)},
    },
)
def metrics(request: Request) -> Response:
    """Numbers for Prometheus; the scope `read`."""
    meters: Meters = request.app.state.meters
    return Response(meters.text(), media_type=CONTENT_TYPE_LATEST)
