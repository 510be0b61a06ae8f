"""A study's log as server-sent events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from hpsearch.space import MAX_INT
from hpsearch_api.deps import PROBLEMS, TheStudy
from hpsearch_api.feeds import Feeds
from hpsearch_api.security import Doorkeeper

router = APIRouter(prefix="/api/v1/studies", tags=["events"], responses=PROBLEMS)

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EVENT = {
    "type": "object",
    "description": "one event; `data` is a JSON object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": _EVENT}}, "description": "Events, until the server stops."}
}


@router.get("/{name}/events", response_class=StreamingResponse, responses=_STREAM)
async def events(
    study: TheStudy,
    request: Request,
    after: Annotated[int, Query(ge=0, le=MAX_INT, description="skip events up to this one")] = 0,
    last_event_id: Annotated[str | None, Header(max_length=30, pattern=r"^[0-9]{0,15}$")] = None,
) -> StreamingResponse:
    """Everything that happens in a study, from the beginning or after `Last-Event-ID`, without a gap.

    The id of an event counts from 1 within the study. `study`, `stage` and `trial` events carry what changed.
    """
    feeds: Feeds = request.app.state.feeds
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    access = request.state.access
    feeds.check_room()
    seen = int(last_event_id) if last_event_id else after
    found = feeds.follow(study.id, after=seen, is_allowed=lambda: doorkeeper.holds(access))
    return StreamingResponse(found, media_type=MEDIA_TYPE, headers=HEADERS)
