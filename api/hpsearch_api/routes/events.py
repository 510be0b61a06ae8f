"""A study's log as server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from hpsearch.errors import NotFound
from hpsearch.space import MAX_INT
from hpsearch_api.deps import PROBLEMS, TheChanges, TheCoordinator, TheStudy

router = APIRouter(prefix="/api/v1/studies", tags=["events"], responses=PROBLEMS)

PAGE = 500
PING_SECONDS = 15.0


@router.get("/{name}/events", response_class=EventSourceResponse)
async def events(
    study: TheStudy,
    request: Request,
    coordinator: TheCoordinator,
    changes: TheChanges,
    after: Annotated[int, Query(ge=0, le=MAX_INT, description="skip events up to this one")] = 0,
    last_event_id: Annotated[str | None, Header(max_length=30, pattern=r"^[0-9]{0,15}$")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Everything that happens in a study, from the beginning or after `Last-Event-ID`, without a gap.

    The id of an event counts from 1 within the study. `study`, `stage` and `trial` events carry what changed.
    """
    seen = int(last_event_id) if last_event_id else after
    spoke = time.monotonic()
    while not changes.closing and not await request.is_disconnected():
        bell = changes.bell()
        try:
            found = await run_in_threadpool(coordinator.store.events, study.id, after=seen, limit=PAGE)
        except NotFound:
            return  # deleted meanwhile
        for event in found:
            seen = event.seq
            data = {**event.data, "at": event.at.isoformat()}
            yield ServerSentEvent(id=str(event.seq), event=event.kind, data=data)
        if found:
            spoke = time.monotonic()
            continue
        if time.monotonic() - spoke >= PING_SECONDS:
            spoke = time.monotonic()
            yield ServerSentEvent(comment="still here")
        await changes.wait(bell, PING_SECONDS)
