"""Is it alive, is it ready."""

from __future__ import annotations

from fastapi import APIRouter

from hpsearch_api.deps import PROBLEMS, TheCoordinator

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: PROBLEMS[503]})
def readyz(coordinator: TheCoordinator) -> dict[str, str]:
    """The store answers."""
    coordinator.store.check()
    return {"status": "ok"}
