"""Tokens, sessions and limits over HTTP, with a real SQLite store."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from markupsafe import escape
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch.errors import InvalidInput
from hpsearch_api.app import create_app
from hpsearch_api.security import Limits
from hpsearch_api.security.access import KNOWN_SECONDS
from hpsearch_api.security.limits import Rates
from hpsearch_api.server import listen, serving
from hpsearch_storage import SqlStore, open_store

EXTERNAL: dict[str, Any] = {
    "name": "s",
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "stages": [{"name": "coarse", "trials": 5}],
}
HTML = {"Accept": "text/html"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    yield store
    store.close()


def client_of(store: SqlStore, **limits: int) -> TestClient:
    app = create_app(Coordinator(store), limits=Limits(**{"failures": 10_000, **limits}))
    return TestClient(app, base_url="https://example", follow_redirects=False, raise_server_exceptions=False)


def token_of(store: SqlStore, scope: str = "admin", *, seconds: float | None = None) -> str:
    now = datetime.now(UTC)
    expires_at = None if seconds is None else now + timedelta(seconds=seconds)
    return store.tokens.create(f"my {scope}", [scope], expires_at=expires_at, now=now)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by which the time that tokens are remembered by is ahead."""
    import time

    ahead, real = [0.0], time.monotonic
    monkeypatch.setattr("hpsearch_api.security.access.time.monotonic", lambda: real() + ahead[0])
    return ahead


# -- tokens -------------------------------------------------------------------------------------------------------


def test_a_server_closes_when_the_first_token_is_made(store: SqlStore, clock: list[float]) -> None:
    with client_of(store) as client:
        local = {"Host": "127.0.0.1:8765"}
        assert client.get("/api/v1/studies", headers=local).status_code == 200
        assert client.get("/api/v1/studies").status_code == 403, "another host's name"
        token = token_of(store)
        clock[0] += KNOWN_SECONDS
        assert client.get("/api/v1/studies", headers=local).status_code == 401
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 200
        store.tokens.revoke("my admin", now=datetime.now(UTC))
        clock[0] += KNOWN_SECONDS
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 401
        assert client.get("/api/v1/studies", headers=local).status_code == 401, "it does not open again"


def test_an_expired_token_opens_nothing(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    token = token_of(store, seconds=3600)
    with client_of(store) as client:
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 200
        later = datetime.now(UTC) + timedelta(seconds=3601)
        monkeypatch.setattr(client.app.state.doorkeeper, "_clock", lambda: later)  # type: ignore[attr-defined]
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 401, "although it is remembered"


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Basic OnM=", "bearer\txyz", "Token x", "Bearer \udcff", "x" * 9000]
)
def test_what_is_no_token_is_refused(store: SqlStore, header: str) -> None:
    token_of(store)
    with client_of(store) as client:
        raw = {b"Authorization": header.encode("utf-8", "surrogateescape")}
        answer = client.get("/api/v1/studies", headers=raw)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="hpsearch"'
        assert answer.json()["title"] == "Unauthorized"


def test_wrong_tokens_are_slowed_down(store: SqlStore) -> None:
    token = token_of(store)
    with client_of(store, failures=1) as client:
        statuses = [client.get("/api/v1/studies", headers=bearer("wrong")).status_code for _ in range(4)]
        assert statuses == [401, 401, 429, 429]
        answer = client.get("/api/v1/studies")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/api/v1/studies", headers=bearer(token)).status_code == 200, "who has one is not slowed"
        assert client.post("/login", data={"token": "wrong"}).status_code == 429


# -- browsers -----------------------------------------------------------------------------------------------------


def test_a_browser_logs_in_and_out(store: SqlStore) -> None:
    token = token_of(store)
    with client_of(store) as client:
        sent = client.get("/studies/a%20b?x=1", headers=HTML)
        assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=%2Fstudies%2Fa%20b%3Fx%3D1")
        page = client.get(sent.headers["location"], headers=HTML)
        assert page.status_code == 200
        assert 'value="/studies/a b?x=1"' in page.text
        wrong = client.post("/login", data={"token": "x", "next": "/workers"})
        assert wrong.status_code == 401
        assert "not known here" in wrong.text
        assert "set-cookie" not in wrong.headers
        done = client.post("/login", data={"token": f" {token} ", "next": "/workers"})
        assert (done.status_code, done.headers["location"]) == (303, "/workers")
        cookie = done.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", "secure", "max-age=43200", "path=/"))
        assert token.lower() not in cookie
        assert client.get("/workers", headers=HTML).status_code == 200
        assert "my admin" in client.get("/login").text
        assert client.post("/logout").headers["location"] == "/login"
        assert client.get("/workers", headers=HTML).status_code == 303
        client.cookies.set("hpsearch_session", done.cookies.get("hpsearch_session") or "")
        assert client.get("/workers", headers=HTML).status_code == 303, "a kept cookie does not bring it back"


def test_a_session_may_what_its_token_may_and_ends_with_it(store: SqlStore, clock: list[float]) -> None:
    token = token_of(store, "read")
    with client_of(store) as client:
        client.post("/login", data={"token": token})
        same = {"Origin": "https://example"}
        assert client.get("/api/v1/studies").status_code == 200
        assert client.post("/api/v1/studies", json=EXTERNAL, headers=same).status_code == 403
        store.tokens.revoke("my read", now=datetime.now(UTC))
        clock[0] += KNOWN_SECONDS
        assert client.get("/api/v1/studies").status_code == 401


def test_a_session_of_the_servers_own_token_survives_a_restart_but_not_another_token(store: SqlStore) -> None:
    def client(token: str) -> TestClient:
        return TestClient(create_app(Coordinator(store), token=token), base_url="https://example")

    with client("s3cret") as first:
        assert first.post("/login", data={"token": "s3cret"}, follow_redirects=False).status_code == 303
        cookie = first.cookies.get("hpsearch_session") or ""
    for token, status in (("s3cret", 200), ("other", 401)):
        with client(token) as again:
            again.cookies.set("hpsearch_session", cookie)
            assert again.get("/api/v1/studies").status_code == status


def test_no_other_site_can_use_a_session(store: SqlStore) -> None:
    token = token_of(store)
    with client_of(store) as client:
        client.post("/login", data={"token": token})
        for headers, status in (
            ({}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "none"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "https://example.evil"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Sec-Fetch-Site": "same-origin"}, 201),
            ({"Origin": "https://example"}, 200),
        ):
            assert client.post("/api/v1/studies", json=EXTERNAL, headers=headers).status_code == status, headers
        foreign = client.post("/login", data={"token": token}, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403


@pytest.mark.parametrize(
    "place", ["//evil.example", "/\\evil.example", "https://evil.example", "x", "/a\r\nSet-Cookie: x", ""]
)
def test_the_login_leads_nowhere_else(store: SqlStore, place: str) -> None:
    token = token_of(store)
    with client_of(store) as client:
        assert client.post("/login", data={"token": token, "next": place}).headers["location"] == "/"


@pytest.mark.parametrize("body", [b"\xff", b"a=1&" * 20, b"x" * 20_000])
def test_what_is_no_login_form_is_refused(store: SqlStore, body: bytes) -> None:
    token_of(store)
    with client_of(store) as client:
        assert client.post("/login", content=body).status_code in (413, 422)


# -- limits -------------------------------------------------------------------------------------------------------


def test_limits_are_read_from_texts() -> None:
    assert Limits.parse(["rate=7", "body=100"]) == Limits(rate=7, body=100)
    for text in ("rate", "rate=", "rate=0", "rate=-1", "rate=1.5", "nothing=1", "rate=" + "9" * 30, "rate=\u0661"):
        with pytest.raises(InvalidInput, match="give NAME=NUMBER with a whole number from 1; names are body, studies"):
            Limits.parse([text])


def test_rates_fill_up_again() -> None:
    now = [0.0]
    rates = Rates(2, most=2, clock=lambda: now[0])
    assert [rates.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]  # twice the rate at once, then one each 0.5 s
    now[0] = 0.25
    assert rates.take("a") == 0.25
    now[0] = 0.5
    assert rates.take("a") == 0
    assert rates.take("b") == rates.take("c") == 0
    assert rates.take("a") == 0, "of three the longest unused was forgotten"


def test_requests_of_a_token_are_limited(store: SqlStore) -> None:
    token, other = token_of(store), token_of(store, "read")
    with client_of(store, rate=2) as client:
        statuses = [client.get("/api/v1/studies", headers=bearer(token)).status_code for _ in range(20)]
        assert statuses[:4] == [200] * 4
        assert 429 in statuses
        answer = client.get("/api/v1/studies", headers=bearer(other))
        assert answer.status_code == 200
        assert client.get("/healthz").status_code == 200


def test_how_much_may_be_asked_for(store: SqlStore) -> None:
    headers = bearer(token_of(store))
    with client_of(store, studies=1, trials=6, metrics=2, steps=9, body=3000) as client:
        client.headers.update(headers)
        assert client.post("/api/v1/studies", json=EXTERNAL).status_code == 201
        assert client.post("/api/v1/studies", json=EXTERNAL).status_code == 200, "it is there already"
        more = client.post("/api/v1/studies", json=EXTERNAL | {"name": "t"})
        assert (more.status_code, more.headers["retry-after"]) == (429, "60")
        assert more.json()["detail"] == "there are 1 studies: at most 1, the server's limit 'studies'; try again later"
        many = client.post("/api/v1/studies", json=EXTERNAL | {"stages": [{"name": "a", "trials": 7}]})
        assert (many.status_code, many.json()["detail"]) == (
            413,
            "the study would have 7 trials: at most 6, the server's limit 'trials'",
        )
        given = {"trials": [{"params": {"x": 0.5}, "value": 1.0}] * 7}
        assert client.post("/api/v1/studies/s/trials", json=given).status_code == 413
        lease = client.post("/api/v1/leases", json={"worker": "w", "study": "s"}).json()["leases"][0]
        for report, status in (
            ({"step": 1, "metrics": {"a": 1, "b": 2}}, 200),
            ({"step": 1, "metrics": {"a": 1, "b": 2, "c": 3}}, 413),
            ({"step": 10, "metrics": {"a": 1}}, 413),
        ):
            body = {"worker": "w", "reports": [{"token": lease["token"], **report}]}
            assert client.post("/api/v1/leases/report", json=body).status_code == status
        assert client.post("/api/v1/studies", content=b" " * 3001).status_code == 413
        chunks = client.post("/api/v1/studies", content=iter([b" " * 2000] * 3))
        assert chunks.status_code == 413


# -- telling ------------------------------------------------------------------------------------------------------


def test_every_answer_has_an_id_and_the_log_says_who_did_it(store: SqlStore, caplog: pytest.LogCaptureFixture) -> None:
    token = token_of(store)
    with client_of(store) as client, caplog.at_level(logging.INFO, "hpsearch.audit"):
        answer = client.post("/api/v1/studies", json=EXTERNAL, headers=bearer(token) | {"X-Request-ID": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        forged = client.get("/api/v1/studies", headers={"X-Request-ID": "a b\u202e"[:3]})
        assert len(forged.headers["x-request-id"]) == 16
        client.get("/api/v1/studies", headers=bearer(token))
        client.post("/api/v1/leases", json={"worker": "w"}, headers=bearer(token))
        assert client.post("/api/v1/optuna/patches", json={}, headers=bearer(token)).status_code == 200
    told = [record.fields for record in caplog.records if record.name == "hpsearch.audit"]  # type: ignore[attr-defined]
    assert [(line["who"], line["method"], line["path"], line["status"]) for line in told] == [
        ("my admin", "POST", "/api/v1/studies", 201),
        (None, "GET", "/api/v1/studies", 401),
    ]
    assert token not in caplog.text


def test_an_error_nobody_foresaw_is_counted_and_has_an_id(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = bearer(token_of(store))
    with client_of(store) as client:
        monkeypatch.setattr(store, "studies", lambda **_: 1 / 0)
        answer = client.get("/api/v1/studies", headers=headers)
        assert answer.status_code == 500
        assert "ZeroDivision" not in answer.text
        assert answer.headers["x-request-id"]
        text = client.get("/metrics", headers=headers).text
        assert 'hpsearch_request_seconds_count{method="GET",route="/api/v1/studies",status="500"} 1.0' in text


def test_metrics(store: SqlStore) -> None:
    headers = bearer(token_of(store))
    with client_of(store) as client:
        client.headers.update(headers)
        client.post("/api/v1/studies", json=EXTERNAL)
        leases = client.post("/api/v1/leases", json={"worker": "w", "study": "s", "capacity": 2}).json()["leases"]
        reports = [{"token": lease["token"], "step": 3, "metrics": {"score": 1}} for lease in leases]
        client.post("/api/v1/leases/report", json={"worker": "w", "reports": reports})
        client.get("/surprise/" + "x" * 50)
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.text.splitlines()
    for line in (
        "hpsearch_store_up 1.0",
        "hpsearch_leases 2.0",
        'hpsearch_studies{state="running"} 1.0',
        'hpsearch_study_waiting{study="s"} 3.0',  # of five trials two are leased
        'hpsearch_study_leases{study="s"} 2.0',
        'hpsearch_study_epochs{study="s"} 6.0',  # two trials at step 3
        'hpsearch_worker_leases{worker="w"} 2.0',
        'hpsearch_epochs_total{worker="w"} 2.0',
        'hpsearch_request_seconds_count{method="POST",route="/api/v1/leases/report",status="200"} 1.0',
        'hpsearch_request_seconds_count{method="GET",route="unknown",status="404"} 1.0',
    ):
        assert line in lines, answer.text
    assert any(line.startswith('hpsearch_store_seconds_count{kind="write"}') for line in lines)


def test_a_server_that_stops_is_not_ready(store: SqlStore) -> None:
    with client_of(store) as client:
        assert client.get("/readyz").status_code == 200
        client.app.state.changes.draining = True  # type: ignore[attr-defined]
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "the server is about to stop: ask another")
        assert client.get("/healthz").status_code == 200


def test_a_server_whose_schema_was_changed_is_not_ready(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(store) as client:
        monkeypatch.setattr(store, "_schema", "0001")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert "not 0001" in json.loads(answer.text)["detail"]


# -- what is sent to do harm ----------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine lines that unfold to 9⁹ words ("billion laughs")."""
BODIES: dict[str, bytes] = {
    "a YAML bomb": BOMB.encode(),
    "a YAML loop": b"a: &a [*a]",
    "a Python object": b"!!python/object/apply:os.system [id]",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep mappings": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep YAML": b"- " * 5000 + b"x",
    "a giant number": b'{"worker": "w", "capacity": ' + b"9" * 5000 + b"}",
    "a giant exponent": b'{"worker": "w", "capacity": 1e999999999}',
    "a giant seed": b'{"name": "s", "seed": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"worker": "w", "capacity": NaN}',
    "not UTF-8": b'{"worker": "\xff"}',
    "a huge name": b'{"name": "' + b"x" * 1_000_000 + b'", "worker": "' + b"x" * 1_000_000 + b'"}',
    "many keys": b"{" + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}",
    "one key twice": b'{"name": "a", "name": "b"}',
    "nothing": b"",
    "half a character": b'{"worker": "\\ud800"}',
    "half a character as key": b'{"\\ud800": {"\\udfff": 1}}',
    "half a character deep inside": b'{"info": {"\\ud800": 1}, "reports": [{"metrics": {"\\udfff": 1}}]}',
}


@pytest.mark.parametrize("what", BODIES)
def test_no_body_breaks_the_server(store: SqlStore, what: str) -> None:
    headers = bearer(token_of(store)) | JSON
    with client_of(store) as client:
        for path in ("studies", "leases", "leases/report", "optuna/studies", "optuna/patches", "studies/validate"):
            answer = client.post(f"/api/v1/{path}", content=BODIES[what], headers=headers)
            assert answer.status_code == 422 or path in ("studies/validate", "optuna/studies"), (
                path,
                answer.text[:300],
            )
            assert answer.status_code < 500, (path, answer.text[:300])
            assert len(answer.content) < 100_000, "an answer is no louder than its question"
        assert client.get("/healthz").status_code == 200


HARMFUL = [
    "'; DROP TABLE studies; --",
    '" OR 1=1 --',
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "\u202egnp.exe",
    "a\r\nSet-Cookie: x=1",
    "../../etc/passwd",
    "%00%0a",
    "=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("text", HARMFUL, ids=ascii)
def test_harmful_text_is_kept_and_shown_as_text_or_refused(store: SqlStore, text: str) -> None:
    headers = bearer(token_of(store))
    with client_of(store) as client:
        client.headers.update(headers)
        assert client.post("/api/v1/studies", json=EXTERNAL | {"name": text}).status_code == 422
        spec = EXTERNAL | {
            "notes": text,
            "tags": [text],
            "space": {"x": {"type": "categorical", "choices": [text, "b"]}},
        }
        assert client.post("/api/v1/studies", json=spec).status_code == 201
        given = {"trials": [{"params": {"x": text}, "value": 1.0}]}
        assert client.post("/api/v1/studies/s/trials", json=given).status_code == 201
        lease = client.post("/api/v1/leases", json={"worker": text, "study": "s", "info": {text: text}}).json()[
            "leases"
        ][0]
        report = {"worker": text, "reports": [{"token": lease["token"], "step": 1, "metrics": {text: 1.0}}]}
        assert client.post("/api/v1/leases/report", json=report).status_code == 200
        result = {"worker": text, "results": [{"token": lease["token"], "state": "failed", "reason": text}]}
        assert client.post("/api/v1/leases/finish", json=result).json()["outcomes"][0]["accepted"]
        study = client.get("/api/v1/studies/s").json()
        assert (study["spec"]["notes"], study["spec"]["tags"]) == (text, [text])
        assert client.get("/api/v1/studies/s/trials/0").json()["params"]["x"] == text
        assert text in client.get("/api/v1/studies/s/trials/1/metrics").json()["items"][0]["values"]
        assert client.get("/api/v1/workers").json()["items"][0]["name"] == text
        for page in (
            "/",
            "/studies/s",
            "/studies/s/trials/0",
            "/studies/s/trials/1",
            "/workers",
            "/studies/s?q=" + quote("x" + text.replace("%00", "")),
        ):
            answer = client.get(page, headers=HTML)
            assert answer.status_code == 200, page
            assert "<script>alert(1)" not in answer.text
            assert "<img src=x" not in answer.text
        shown = client.get("/workers", headers=HTML).text
        assert escape(text) in shown or not text.isprintable()
        for path in ("studies/{}", "studies/{}/events", "studies/s/figures/{}", "studies/s/trials?sort={}"):
            assert client.get(f"/api/v1/{path.format(quote(text, safe=''))}").status_code in (404, 422)
        assert client.get("/metrics").status_code == 200
        assert client.get("/readyz").status_code == 200


def test_characters_beyond_the_first_65536_may_be_escaped_as_json_does(store: SqlStore) -> None:
    headers = bearer(token_of(store)) | JSON
    with client_of(store) as client:
        text = json.dumps(EXTERNAL | {"notes": "\U0001f600"}, ensure_ascii=True)
        assert "\\ud83d\\ude00" in text
        assert client.post("/api/v1/studies", content=text, headers=headers).json()["spec"]["notes"] == "\U0001f600"


def test_limits_hold_for_optuna_too(store: SqlStore) -> None:
    headers = bearer(token_of(store))
    with client_of(store, studies=1, trials=1) as client:
        client.headers.update(headers)
        made = client.post("/api/v1/optuna/studies", json={"name": "a", "directions": ["minimize"], "key": "1" * 8})
        assert made.status_code == 201, made.text
        more = client.post("/api/v1/optuna/studies", json={"name": "b", "directions": ["minimize"], "key": "2" * 8})
        assert more.status_code == 429
        url = f"/api/v1/optuna/studies/{made.json()['id']}/trials"
        assert [client.post(url, json={"key": 8 * key}).status_code for key in "ab"] == [201, 413]


def test_the_server_of_hpsearch_run_asks_for_no_token_but_answers_this_machine_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/b.db"
    store = open_store(url)
    token_of(store)
    store.close()
    with serving(url, listen("127.0.0.1", 0)) as server, httpx2.Client(base_url=server) as client:
        assert client.get("/api/v1/studies").status_code == 200
        assert client.get("/api/v1/studies", headers={"Host": "evil.example"}).status_code == 403
        assert client.post("/api/v1/studies", headers={"Origin": "http://evil.example"}).status_code == 403
