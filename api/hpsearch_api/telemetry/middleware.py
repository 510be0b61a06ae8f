"""Around every request: its id, its time, and a line of log for what it did."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch.logs import about, told
from hpsearch_api.security import Access
from hpsearch_api.security.guard import SAFE
from hpsearch_api.security.scopes import CONTINUAL, known_routes
from hpsearch_api.security.scopes import Scope as TokenScope
from hpsearch_api.telemetry.metrics import Meters
from hpsearch_api.telemetry.tracing import Tracer

audit = logging.getLogger("hpsearch.audit")
access_log = logging.getLogger("hpsearch.access")

UNKNOWN = "unknown"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Telemetry:
    """ASGI middleware, the outermost.

    Every answer carries ``X-Request-ID``: the client's own if it is plain, else a new one. What changes something, but
    for the calls of workers and of Optuna's trials, and what is refused, is told to the log ``hpsearch.audit`` with who
    did it; every other request to ``hpsearch.access`` at the level DEBUG.
    """

    def __init__(self, app: ASGIApp, *, meters: Meters, tracer: Tracer) -> None:
        self.app = app
        self._meters = meters
        self._tracer = tracer
        self._routes = known_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and tell of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        found = self._routes.find(scope["method"], scope["path"])
        route, needed = found or (UNKNOWN, TokenScope.ADMIN)
        method = scope["method"] if scope["method"] in METHODS else UNKNOWN
        status = 500
        started = time.perf_counter()

        async def told_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with about(request=request_id), self._tracer.span(scope, method, route) as span:
            try:
                await self.app(scope, receive, told_send)
            finally:
                seconds = time.perf_counter() - started
                self._meters.answered(method, route, status, seconds)
                span.ended(status)
                is_work = needed is TokenScope.WORK or route in CONTINUAL
                self._log(scope, status, seconds, changes=scope["method"] not in SAFE and not is_work)

    def _log(self, scope: Scope, status: int, seconds: float, *, changes: bool) -> None:
        log, level = (audit, logging.INFO) if changes or status in (401, 403) else (access_log, logging.DEBUG)
        if not log.isEnabledFor(level):
            return
        access: Access | None = scope.get("state", {}).get("access")
        client = scope.get("client")
        fields = told(
            who=access.name if access else None,
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 6),
            client=client[0] if client else None,
        )
        log.log(level, "request", extra=fields)
