"""Who may talk to a server: tokens and the sessions of browsers. Of each only the SHA-256 is kept.

A token and a session's secret are 256 random bits, so one round of SHA-256 is as good as a slow hash: there is nothing
to guess (NIST SP 800-63B 5.1.1.2 asks for slow hashes of what people remember).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Row, delete, insert, select

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch_storage import tables
from hpsearch_storage.engine import Database

SCOPES = ("read", "submit", "work", "admin")
"""What a token may do: look; look and steer studies; train; everything."""
PREFIX = "hps_"
"""What every token begins with, so that scanners of leaked secrets can find it."""
MAX_NAME = 100
MAX_SESSIONS = 1000
"""Sessions of one token; of more the oldest end."""

_token, _session = tables.tokens.c, tables.sessions.c


@dataclass(frozen=True, slots=True)
class Token:
    """One token, without its secret.

    Attributes:
        scopes: of :data:`SCOPES`, not empty.
        expires_at: None for never.
        revoked_at: None while it is not.
    """

    id: int
    name: str
    scopes: tuple[str, ...]
    digest: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything now."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Session:
    """One browser's login.

    Attributes:
        token: what it was opened with; None where that is not kept in the store.
        proof: then, an HMAC of it with the session's secret as key.
    """

    token: Token | None
    proof: str | None
    expires_at: datetime


def digest_of(secret: str) -> str:
    """SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def proof_of(secret: str, token: str) -> str:
    """What ties a session to a token that the store does not have: HMAC-SHA-256, 64 hexadecimal digits."""
    return hmac.new(secret.encode(), token.encode(), hashlib.sha256).hexdigest()


class Tokens:
    """The tokens of one database. Every method is one transaction, and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Collection[str], *, expires_at: datetime | None, now: datetime) -> str:
        """Make a token and return it: nothing can show it again.

        Raises:
            InvalidInput: no name, an unknown scope, or none; or it would have expired by now.
            Conflict: there is a token of that name, maybe a revoked one.
        """
        _check(name, scopes, expires_at, now)
        secret = PREFIX + secrets.token_urlsafe(32)
        values = {
            "name": name,
            "digest": digest_of(secret),
            "scopes": [scope for scope in SCOPES if scope in scopes],
            "created_at": now,
            "expires_at": expires_at,
        }

        def work(connection: Connection) -> None:
            if connection.execute(select(_token.id).where(_token.name == name)).first() is not None:
                raise Conflict(f"there is a token {name!r}, maybe a revoked one: take another name")
            connection.execute(insert(tables.tokens).values(values))

        self._database.write(work)
        return secret

    def every(self) -> list[Token]:
        """All tokens, revoked and expired ones too, in the order of their creation."""
        query = select(tables.tokens).order_by(_token.id)
        return self._database.read(lambda connection: [_read(row) for row in connection.execute(query)])

    def revoke(self, name: str, *, now: datetime) -> None:
        """Let a token, and the sessions opened with it, open nothing any more. Raises NotFound."""

        def work(connection: Connection) -> None:
            found = connection.execute(select(_token.id).where(_token.name == name)).first()
            if found is None:
                raise NotFound("token", name)
            of_it = tables.tokens.update().where(_token.id == found.id, _token.revoked_at.is_(None))
            connection.execute(of_it.values(revoked_at=now))
            connection.execute(delete(tables.sessions).where(_session.token_id == found.id))

        self._database.write(work)

    def any(self) -> bool:
        """Whether there ever was a token: then a server is closed to whoever has none."""
        return (
            self._database.read(lambda connection: connection.execute(select(_token.id).limit(1)).first()) is not None
        )

    def find(self, digest: str) -> Token | None:
        """The token of that digest, valid or not."""
        query = select(tables.tokens).where(_token.digest == digest)
        row = self._database.read(lambda connection: connection.execute(query).first())
        return None if row is None else _read(row)

    # -- sessions -----------------------------------------------------------------------------------------------

    def open_session(self, token: str, *, token_id: int | None, now: datetime, ttl: timedelta) -> str:
        """A session for a token that was checked: its secret. ``token_id`` is None for one that is not kept here."""
        secret = secrets.token_urlsafe(32)
        values = {
            "digest": digest_of(secret),
            "token_id": token_id,
            "proof": proof_of(secret, token) if token_id is None else None,
            "expires_at": now + ttl,
        }

        def work(connection: Connection) -> None:
            connection.execute(delete(tables.sessions).where(_session.expires_at <= now))
            same = _session.token_id.is_(None) if token_id is None else _session.token_id == token_id
            newest = select(_session.digest).where(same).order_by(_session.expires_at.desc()).offset(MAX_SESSIONS - 1)
            oldest = [row.digest for row in connection.execute(newest)]
            if oldest:
                connection.execute(delete(tables.sessions).where(_session.digest.in_(oldest)))
            connection.execute(insert(tables.sessions).values(values))

        self._database.write(work)
        return secret

    def session(self, digest: str) -> Session | None:
        """The session whose secret has that digest, valid or not."""

        def work(connection: Connection) -> Session | None:
            row = connection.execute(select(tables.sessions).where(_session.digest == digest)).first()
            if row is None:
                return None
            of_it = select(tables.tokens).where(_token.id == row.token_id)
            token = None if row.token_id is None else _read(connection.execute(of_it).one())
            return Session(token, row.proof, row.expires_at)

        return self._database.read(work)

    def close_session(self, digest: str) -> None:
        """End a session; nothing happens if there is none."""
        statement = delete(tables.sessions).where(_session.digest == digest)
        self._database.write(lambda connection: connection.execute(statement))


def _check(name: str, scopes: Collection[str], expires_at: datetime | None, now: datetime) -> None:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"the name {name[:80]!r} of a token must be 1 to {MAX_NAME} printable characters")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        given = f"the scope {unknown[0]!r} is unknown" if unknown else "a token needs a scope"
        raise InvalidInput(f"{given}: give one or more of {', '.join(SCOPES)}")
    if expires_at is not None and expires_at <= now:
        raise InvalidInput(f"a token that expires at {expires_at.isoformat()} would open nothing: give a later time")


def _read(row: Row[tuple[object, ...]]) -> Token:
    return Token(row.id, row.name, tuple(row.scopes), row.digest, row.created_at, row.expires_at, row.revoked_at)
