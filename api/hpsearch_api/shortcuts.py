"""The calls that workers make all the time, past FastAPI's own way to an endpoint, which takes longer than they do.

The routes are declared as all others are, and stay behind: for the documentation, and for every body that is not what
they ask for, so that each error is said once and the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match
from starlette.types import Message, Receive, Scope, Send

Call = tuple[type[BaseModel], Callable[[Any, Request], Awaitable[Response]]]
"""What a body is, and what answers it."""


class Shortcuts(BaseRoute):
    """The first of an application's routes: takes a ``POST`` of JSON to one of some paths.

    Args:
        app: whose other routes take what this one cannot.
        calls: by path.
    """

    def __init__(self, app: FastAPI, calls: dict[str, Call]) -> None:
        self._app = app
        self._calls = calls

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this is such a call, and not one that was passed on."""
        is_one = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._calls
        return (Match.FULL if is_one and not scope.get("shortcut") else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on with the body that was read."""
        model, call = self._calls[scope["path"]]
        request = Request(scope, receive, send)
        body: bytes | None = None
        if request.headers.get("content-type") == "application/json":
            body = await request.body()
            try:
                given = model.model_validate_json(body)
            except ValueError:  # of JSON, of Unicode, or of the model
                pass
            else:
                response = await call(given, request)
                await response(scope, receive, send)
                return
        scope["shortcut"] = True
        await self._app.router.app(scope, receive if body is None else _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, and what comes after it."""
    is_told = False

    async def told() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return told
