"""What routes ask the application for. What does not wait is ``async``: FastAPI runs the rest in a thread each."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request

from hpsearch.coordinator import Coordinator
from hpsearch.document import is_storable
from hpsearch.errors import Fault, InvalidSpec
from hpsearch.study import Study
from hpsearch_api.changes import Changes
from hpsearch_api.memory import Memory
from hpsearch_api.models import Problem
from hpsearch_api.security.limits import Limits


async def _coordinator(request: Request) -> Coordinator:
    coordinator: Coordinator = request.app.state.coordinator
    return coordinator


async def _changes(request: Request) -> Changes:
    changes: Changes = request.app.state.changes
    return changes


def _memory(request: Request) -> Memory:
    memory: Memory = request.app.state.memory
    return memory


async def _limits(request: Request) -> Limits:
    limits: Limits = request.app.state.limits
    return limits


TheCoordinator = Annotated[Coordinator, Depends(_coordinator)]
TheChanges = Annotated[Changes, Depends(_changes)]
TheLimits = Annotated[Limits, Depends(_limits)]
TheMemory = Annotated[Memory, Depends(_memory)]

Limit = Annotated[int, Query(ge=1, le=1000, description="page size")]
After = Annotated[str | None, Query(max_length=2000, description="the ``next`` of the page before")]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        401: "No valid token.",
        403: "The token lacks the scope, or the request comes from another site.",
        404: "There is nothing of that name.",
        409: "The request contradicts what is there.",
        408: "The body did not come in time.",
        413: "The body, or what it asks for, is over a limit.",
        422: "The input breaks a rule; `errors` says where and which.",
        429: "Too many requests; `Retry-After` says when to come again.",
        503: "The store cannot be reached.",
    }.items()
}


def check_text(value: str, loc: str) -> str:
    """A text from a URL or header that every store can hold. Raises InvalidSpec."""
    if not is_storable(value):
        raise InvalidSpec([Fault(loc, "the text holds a NUL or half of a surrogate pair")])
    return value


async def _study_name(name: str) -> str:
    return check_text(name, "path.name")


StudyName = Annotated[str, Depends(_study_name)]


def _study(name: StudyName, coordinator: TheCoordinator) -> Study:
    return coordinator.store.study(name)


TheStudy = Annotated[Study, Depends(_study)]
