"""Tokens and sessions: what is kept of them, and how long they open anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch_storage import open_store, tables
from hpsearch_storage.engine import Database
from hpsearch_storage.tokens import MAX_SESSIONS, Tokens, digest_of, proof_of
from hpsearch_storage.urls import parse_url
from stores import NOW

HOUR = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    open_store(url).close()
    database = Database(parse_url(url))
    yield database
    database.close()


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


def test_a_token_is_shown_once_and_kept_as_its_digest(tokens: Tokens, database: Database) -> None:
    assert not tokens.any()
    secret = tokens.create("ci", ["work", "read"], expires_at=NOW + HOUR, now=NOW)
    assert secret.startswith("hps_")
    assert len(secret) == 4 + 43  # 256 bits, six in a character
    assert tokens.any()
    rows = database.read(lambda connection: connection.execute(select(tables.tokens)).all())
    assert len(rows) == 1
    assert secret not in str(rows)
    assert secret[4:] not in str(rows)
    (token,) = tokens.every()
    assert (token.name, token.scopes, token.expires_at) == ("ci", ("read", "work"), NOW + HOUR)
    assert tokens.find(digest_of(secret)) == token
    assert tokens.find(digest_of(secret + "x")) is None


def test_the_digest_is_sha_256() -> None:
    assert digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_the_proof_is_hmac_sha_256() -> None:
    assert (  # RFC 4231, 4.3
        proof_of("Jefe", "what do ya want for nothing?")
        == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_it_ends_when_it_expires_or_is_revoked(tokens: Tokens) -> None:
    secret = tokens.create("a", ["read"], expires_at=NOW + HOUR, now=NOW)
    found = tokens.find(digest_of(secret))
    assert found is not None
    assert found.is_valid(NOW + HOUR - timedelta(microseconds=1))
    assert not found.is_valid(NOW + HOUR)
    tokens.revoke("a", now=NOW)
    revoked = tokens.find(digest_of(secret))
    assert revoked is not None
    assert not revoked.is_valid(NOW)
    tokens.revoke("a", now=NOW + HOUR)
    assert tokens.every()[0].revoked_at == NOW, "the first time counts"
    assert tokens.any(), "a store that had tokens does not open again"
    with pytest.raises(NotFound, match="there is no token 'b'"):
        tokens.revoke("b", now=NOW)


def test_names_stand_for_one_token(tokens: Tokens) -> None:
    tokens.create("a", ["read"], expires_at=None, now=NOW)
    tokens.revoke("a", now=NOW)
    with pytest.raises(Conflict, match="there is a token 'a', maybe a revoked one"):
        tokens.create("a", ["read"], expires_at=None, now=NOW)


@pytest.mark.parametrize(
    ("name", "scopes", "words"),
    [
        ("", ["read"], "1 to 100 printable characters"),
        ("x" * 101, ["read"], "1 to 100 printable characters"),
        ("a\u202eb", ["read"], "1 to 100 printable characters"),
        ("a", [], "a token needs a scope: give one or more of read, submit, work, admin"),
        ("a", ["write"], "the scope 'write' is unknown"),
    ],
)
def test_bad_input_is_named(tokens: Tokens, name: str, scopes: list[str], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        tokens.create(name, scopes, expires_at=None, now=NOW)
    with pytest.raises(InvalidInput, match="give a later time"):
        tokens.create("a", ["read"], expires_at=NOW, now=NOW)


def test_a_session_ends_with_its_token(tokens: Tokens) -> None:
    secret = tokens.create("a", ["read"], expires_at=None, now=NOW)
    token = tokens.every()[0]
    session = tokens.open_session(secret, token_id=token.id, now=NOW, ttl=HOUR)
    found = tokens.session(digest_of(session))
    assert found is not None
    assert (found.token, found.proof, found.expires_at) == (token, None, NOW + HOUR)
    assert tokens.session(session) is None, "the secret is kept nowhere"
    tokens.revoke("a", now=NOW)
    assert tokens.session(digest_of(session)) is None


def test_a_session_of_a_token_that_is_not_kept_proves_it(tokens: Tokens) -> None:
    session = tokens.open_session("s3cret", token_id=None, now=NOW, ttl=HOUR)
    found = tokens.session(digest_of(session))
    assert found is not None
    assert found.token is None
    assert found.proof == proof_of(session, "s3cret")
    assert found.proof != proof_of(session, "another")
    tokens.close_session(digest_of(session))
    assert tokens.session(digest_of(session)) is None


def test_sessions_are_bounded(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SESSIONS == 1000
    monkeypatch.setattr("hpsearch_storage.tokens.MAX_SESSIONS", 3)
    minute = timedelta(minutes=1)
    opened = [tokens.open_session("s", token_id=None, now=NOW + i * minute, ttl=HOUR) for i in range(5)]
    assert [tokens.session(digest_of(secret)) is not None for secret in opened] == [False, False, True, True, True]
    last = tokens.open_session("s", token_id=None, now=NOW + timedelta(days=1), ttl=HOUR)
    assert [tokens.session(digest_of(secret)) is not None for secret in [*opened, last]] == [*[False] * 5, True]
