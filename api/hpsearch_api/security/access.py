"""From what a request carries to what it may do."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.cookies import CookieError, SimpleCookie

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from hpsearch.coordinator import utcnow
from hpsearch_api.security.scopes import Scope, expanded
from hpsearch_storage.tokens import Token, Tokens, digest_of, proof_of

COOKIE = "hpsearch_session"
SESSION_TTL = timedelta(hours=12)
KNOWN_SECONDS = 5.0
"""So long a server goes on believing what it read of a token, and of there being any."""
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks, and what for.

    Attributes:
        name: of the token.
        scopes: with those that they include.
        expires_at: None for never.
        token_id: its key in the store; None for one that is not kept there.
        key: of a token or session, by which it is looked up again; empty where none is needed.
        by_cookie: a browser that logged in, which sends its session with whatever a page asks for.
    """

    name: str
    scopes: frozenset[Scope]
    expires_at: datetime | None = None
    token_id: int | None = None
    key: str = ""
    by_cookie: bool = False

    def may(self, scope: Scope) -> bool:
        """Whether that is in its scopes."""
        return scope in self.scopes


ANYBODY = Access("this machine", expanded([Scope.ADMIN]))
"""Whoever asks a server that has no tokens: it answers on loopback only."""


class Doorkeeper:
    """Knows the tokens of a server: those given to its process, and those in its store.

    Args:
        tokens: of the store; None for one that keeps none.
        given: name → (secret, scope) of tokens that only this process knows.
        clock: aware, in UTC.
    """

    def __init__(
        self,
        tokens: Tokens | None,
        given: Mapping[str, tuple[str, Scope]] | None = None,
        *,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        self._tokens = tokens
        self._given = {name: (secret, expanded([scope])) for name, (secret, scope) in (given or {}).items()}
        self._clock = clock
        self._known: dict[str, tuple[float, Access]] = {}
        self._open_at: float | None = None
        # what a server makes for its own workers alone closes it to nobody
        self._is_closed = any(scope is not Scope.WORK for _, scope in (given or {}).values())

    async def is_open(self) -> bool:
        """Whether there is no token at all; a store that once had one stays closed."""
        if self._is_closed or self._tokens is None:
            return not self._is_closed
        now = time.monotonic()
        if self._open_at is None or now - self._open_at > KNOWN_SECONDS:
            self._is_closed = await run_in_threadpool(self._tokens.any)
            self._open_at = now
        return not self._is_closed

    async def admit(self, headers: Headers) -> Access | None:
        """What a request's ``Authorization`` or session gives; None for nothing. Raises StoreError."""
        if await self.is_open():
            return ANYBODY
        authorization = headers.get("authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            return await self.by_token(secret.strip()) if scheme.lower() == "bearer" else None
        session = session_in(headers)
        return await self._by_session(session) if session else None

    async def by_token(self, secret: str) -> Access | None:
        """What a token gives. Raises StoreError."""
        key = digest_of(secret)
        for name, (given, scopes) in self._given.items():
            if hmac.compare_digest(key, digest_of(given)):
                return Access(name, scopes, key=key)
        if access := self._remembered(key):
            return access
        token = None if self._tokens is None else await run_in_threadpool(self._tokens.find, key)
        if token is None or not hmac.compare_digest(token.digest, key) or not token.is_valid(self._clock()):
            return None
        return self._remember(_access(token, key))

    async def _by_session(self, secret: str) -> Access | None:
        key = "session " + digest_of(secret)
        if access := self._remembered(key):
            return access
        session = None if self._tokens is None else await run_in_threadpool(self._tokens.session, digest_of(secret))
        if session is None or session.expires_at <= self._clock():
            return None
        if session.token is not None:
            if not session.token.is_valid(self._clock()):
                return None
            access = _access(session.token, key, session.expires_at)
            return self._remember(access)
        for name, (given, scopes) in self._given.items():
            if hmac.compare_digest(session.proof or "", proof_of(secret, given)):
                return self._remember(Access(name, scopes, session.expires_at, key=key, by_cookie=True))
        return None

    async def holds(self, access: Access) -> bool:
        """Whether what was admitted is still valid. Raises StoreError."""
        if access.key == "" or self._tokens is None or any(digest_of(s) == access.key for s, _ in self._given.values()):
            return True
        if access.expires_at is not None and access.expires_at <= self._clock():
            return False
        kind, _, digest = access.key.rpartition(" ")
        if kind:
            session = await run_in_threadpool(self._tokens.session, digest)
            return session is not None and (session.token is None or session.token.is_valid(self._clock()))
        token = await run_in_threadpool(self._tokens.find, digest)
        return token is not None and token.is_valid(self._clock())

    async def log_in(self, secret: str) -> str | None:
        """Open a session with a token: the session's secret; None if the token gives nothing. Raises StoreError."""
        access = await self.by_token(secret)
        if access is None or self._tokens is None:
            return None
        tokens, now = self._tokens, self._clock()
        return await run_in_threadpool(
            lambda: tokens.open_session(secret, token_id=access.token_id, now=now, ttl=SESSION_TTL)
        )

    async def log_out(self, headers: Headers) -> None:
        """End the session that a request carries. Raises StoreError."""
        secret = session_in(headers)
        if secret and self._tokens is not None:
            self._known.pop("session " + digest_of(secret), None)
            await run_in_threadpool(self._tokens.close_session, digest_of(secret))

    def _remembered(self, key: str) -> Access | None:
        known = self._known.get(key)
        if known is None or time.monotonic() - known[0] > KNOWN_SECONDS:
            return None
        access = known[1]
        return access if access.expires_at is None or self._clock() < access.expires_at else None

    def _remember(self, access: Access) -> Access:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[access.key] = (time.monotonic(), access)
        return access


def session_in(headers: Headers) -> str | None:
    """The secret of a request's session; None without one."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None and 0 < len(morsel.value) <= 200 else None


def _access(token: Token, key: str, session_end: datetime | None = None) -> Access:
    ends = [moment for moment in (token.expires_at, session_end) if moment is not None]
    end = min(ends, default=None)
    return Access(token.name, expanded(token.scopes), end, token.id, key, session_end is not None)
