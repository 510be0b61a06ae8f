"""What routes ask the application for. What does not wait is ``async``: FastAPI runs the rest in a thread each."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request

from hpsearch.coordinator import Coordinator
from hpsearch.errors import Fault, InvalidSpec
from hpsearch.study import Study
from hpsearch_api.changes import Changes
from hpsearch_api.memory import Memory
from hpsearch_api.models import Problem


async def _coordinator(request: Request) -> Coordinator:
    coordinator: Coordinator = request.app.state.coordinator
    return coordinator


async def _changes(request: Request) -> Changes:
    changes: Changes = request.app.state.changes
    return changes


def _memory(request: Request) -> Memory:
    memory: Memory = request.app.state.memory
    return memory


TheCoordinator = Annotated[Coordinator, Depends(_coordinator)]
TheChanges = Annotated[Changes, Depends(_changes)]
TheMemory = Annotated[Memory, Depends(_memory)]

Limit = Annotated[int, Query(ge=1, le=1000, description="page size")]
After = Annotated[str | None, Query(max_length=2000, description="the ``next`` of the page before")]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        404: "There is nothing of that name.",
        409: "The request contradicts what is there.",
        413: "The body is too large.",
        422: "The input breaks a rule; `errors` says where and which.",
        503: "The store cannot be reached.",
    }.items()
}


def check_text(value: str, loc: str) -> str:
    """A text from a URL or header that every store can hold. Raises InvalidSpec."""
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidSpec([Fault(loc, "the text holds a NUL or half of a surrogate pair")])
    return value


async def _study_name(name: str) -> str:
    return check_text(name, "path.name")


StudyName = Annotated[str, Depends(_study_name)]


def _study(name: StudyName, coordinator: TheCoordinator) -> Study:
    return coordinator.store.study(name)


TheStudy = Annotated[Study, Depends(_study)]
