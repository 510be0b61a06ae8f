"""The calls that workers make all the time, past FastAPI's own way to an endpoint, which takes longer than they do.

The routes are declared as all others are, and stay behind: for the documentation, and for every body that is not what
they ask for, so that each error is said once and the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch_api import problems
from hpsearch_api.security.scopes import known_routes

Call = tuple[type[BaseModel], Callable[[Any, Request], Awaitable[Response | None]]]
"""What a body is, and what answers it; None: by the long way."""


class Shortcuts:
    """ASGI middleware that answers a ``POST`` of JSON to one of some routes; all else goes on.

    Args:
        app: what takes the rest, and what is not as asked for.
        calls: by the route's template.
    """

    def __init__(self, app: ASGIApp, *, calls: dict[str, Call]) -> None:
        self.app = app
        self._calls = calls
        self._routes = known_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on, with the body if that was read."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        found = self._routes.find("POST", scope["path"]) if is_post else None
        call = None if found is None else self._calls.get(found[0])
        if call is None or Headers(scope=scope).get("content-type") != "application/json":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            body = await request.body()
            given = _read(call[0], body)
            response = None if given is None else await call[1](given, request)
            if response is None:
                await self.app(scope, _again(body, receive), send)
                return
        except Exception as error:
            response = problems.of(request, error)
        await response(scope, receive, send)


def _read(model: type[BaseModel], body: bytes) -> BaseModel | None:
    try:
        return model.model_validate_json(body)
    except ValueError:  # of JSON, of Unicode, or of the model
        return None


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
