"""Who may talk to the server.

Without any token the server is for this machine alone: it listens on loopback, and refuses requests whose ``Host`` or
``Origin`` is another's, so that no page of another site can reach it through the browser (DNS rebinding, cross-site
posts). With tokens every request carries one (``Authorization: Bearer TOKEN``), or the session of a browser that logged
in with one; :mod:`~hpsearch_api.security.scopes` says what for.
"""

from __future__ import annotations

import asyncio
import math
from functools import lru_cache
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from hpsearch.errors import StoreError
from hpsearch_api.problems import answer
from hpsearch_api.security.access import Access, Doorkeeper
from hpsearch_api.security.limits import Limits, Rates
from hpsearch_api.security.scopes import Scope, known_routes

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
HEALTH = ("/healthz", "/readyz")


class Guard:
    """ASGI middleware that lets through whom the module's text allows, within the limits.

    It notes in the request's state: ``access``, which is None on what is open to all.
    """

    def __init__(self, app: ASGIApp, *, doorkeeper: Doorkeeper, limits: Limits) -> None:
        self.app = app
        self._doorkeeper = doorkeeper
        self._limits = limits
        self._rates = Rates(limits.rate)
        self._failures = Rates(limits.failures)
        self._routes = known_routes()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer with a problem, or pass the request on."""
        if scope["type"] != "http" or scope["path"] in HEALTH:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = await self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    async def _refusal(self, scope: AsgiScope, headers: Headers) -> Response | None:
        """What is wrong with a request; None if nothing is."""
        found = self._routes.find(scope["method"], scope["path"])
        needed = found[1] if found else Scope.ADMIN
        try:
            is_open = await self._doorkeeper.is_open()
            if refusal := _foreign(scope, headers, is_open=is_open) or self._too_large(scope, headers):
                return refusal
            access = None if needed is Scope.OPEN else await self._doorkeeper.admit(headers)
        except StoreError as error:
            return _refused(scope, 503, str(error))
        scope.setdefault("state", {})["access"] = access
        if needed is Scope.OPEN:
            return self._too_many_logins(scope)
        if access is None:
            return self._unknown(scope, headers)
        if seconds := self._rates.take(access.name):
            detail = f"the token {access.name!r} sends more than {self._limits.rate} requests a second"
            return _later(scope, detail, seconds)
        if not access.may(needed):
            return _forbidden(scope, access, needed, is_known=found is not None)
        if access.by_cookie and scope["method"] not in SAFE and not _same_site(headers):
            detail = "a browser's request that changes something must say its Origin, and that must be ours"
            return _refused(scope, 403, detail)
        return None

    def _unknown(self, scope: AsgiScope, headers: Headers) -> Response:
        """Nobody that is known: 401, or for a page the way to the login."""
        if seconds := self._failures.take(_client(scope)):
            return _later(scope, "too many requests without a valid token came from this address", seconds)
        if scope["method"] == "GET" and _wants_page(scope, headers):
            place = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            return RedirectResponse(f"/login?next={quote(place, safe='')}", 303)
        detail = "a valid token is needed: Authorization: Bearer TOKEN; in a browser log in at /login"
        return _refused(scope, 401, detail, {"WWW-Authenticate": 'Bearer realm="hpsearch"'})

    def _too_many_logins(self, scope: AsgiScope) -> Response | None:
        if scope["path"] != "/login" or scope["method"] != "POST":
            return None
        seconds = self._failures.take(_client(scope))
        return _later(scope, "too many logins were tried from this address", seconds) if seconds else None

    def _limited(self, receive: Receive) -> Receive:
        """A body without an announced length is cut off at the limit, too; one that does not come is given up."""
        received, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds

        async def limited() -> Message:
            nonlocal received, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"the body did not come within {self._limits.body_seconds} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > self._limits.body:
                raise HTTPException(413, self._limit())
            return message

        return limited

    def _too_large(self, scope: AsgiScope, headers: Headers) -> Response | None:
        announced = headers.get("content-length", "")
        if not announced or (announced.isdecimal() and len(announced) < 20 and int(announced) <= self._limits.body):
            return None
        return _refused(scope, 413, self._limit())

    def _limit(self) -> str:
        return f"the body is too large: at most {self._limits.body} bytes"


def _foreign(scope: AsgiScope, headers: Headers, *, is_open: bool) -> Response | None:
    host = headers.get("host", "")
    if is_open and _name(host) not in LOOPBACK:
        detail = f"the host {host!r} is not this machine: without a token the server answers on loopback only"
        return _refused(scope, 403, detail)
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return _refused(scope, 403, f"the origin {origin!r} is another site's")
    return None


def _same_site(headers: Headers) -> bool:
    """Whether a browser says that a page of ours asked. A foreign ``Origin`` has been refused before."""
    return "origin" in headers or headers.get("sec-fetch-site") == "same-origin"


def _forbidden(scope: AsgiScope, access: Access, needed: Scope, *, is_known: bool) -> Response:
    if not is_known:
        return _refused(scope, 404, "there is nothing at this address")
    detail = f"this needs the scope {needed.value!r}, which the token {access.name!r} does not have"
    return _refused(scope, 403, detail)


def _later(scope: AsgiScope, detail: str, seconds: float) -> Response:
    return _refused(scope, 429, f"{detail}: try again later", {"Retry-After": str(max(1, math.ceil(seconds)))})


def _refused(scope: AsgiScope, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    response = answer(Request(scope), status, detail)
    response.headers.update(headers or {})
    return response


def _wants_page(scope: AsgiScope, headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "") and not scope["path"].startswith("/api/")


def _client(scope: AsgiScope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


@lru_cache(maxsize=256)
def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
