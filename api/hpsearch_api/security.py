"""Who may talk to the server.

Without a token the server is for this machine alone: it listens on loopback, and refuses requests whose ``Host`` or
``Origin`` is another's, so that no page of another site can reach it through the browser (DNS rebinding, cross-site
posts). With a token every request carries it: as a bearer token, or, from a browser, as the password of its own login
prompt. Only the health checks are open.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpsearch_api.problems import problem

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/healthz", "/readyz")


class Guard:
    """ASGI middleware that lets through whom the module's text allows.

    Args:
        token: the token that is asked for; None admits this machine only.
        max_body: a body of more bytes is refused, before it is read if it announces its length.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, max_body: int) -> None:
        self.app = app
        self.max_body = max_body
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a problem, or pass the request on."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            headers = Headers(scope=scope)
            refusal = self._foreign(headers) or self._unknown(headers) or self._too_large(headers)
            if refusal is not None:
                status, detail = refusal
                extra = {"WWW-Authenticate": 'Basic realm="hpsearch", charset="UTF-8"'} if status == 401 else {}
                await problem(status, detail, headers=extra)(scope, receive, send)
                return
        await self.app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        """A stream without an announced length is cut off at the limit, too."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise HTTPException(413, self._limit())
            return message

        return limited

    def _foreign(self, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.token is None and _name(host) not in LOOPBACK:
            return 403, f"the host {host!r} is not this machine: without a token the server answers on loopback only"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, f"the origin {origin!r} is another site's"
        return None

    def _unknown(self, headers: Headers) -> tuple[int, str] | None:
        if self.token is None:
            return None
        given = _credential(headers.get("authorization", ""))
        if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode()):
            return None
        return 401, "a token is needed: Authorization: Bearer TOKEN, or in a browser the token as password"

    def _too_large(self, headers: Headers) -> tuple[int, str] | None:
        announced = headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) <= self.max_body:
            return None
        return (413, self._limit()) if announced else None

    def _limit(self) -> str:
        return f"the body is too large: at most {self.max_body} bytes"


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _credential(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
