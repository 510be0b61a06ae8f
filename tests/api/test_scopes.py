"""Every route × every scope: who is let through, who is not known, who may not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch.testing import MemoryStore
from hpsearch_api.app import create_app
from hpsearch_api.routes import leases, optuna
from hpsearch_api.security import Limits, Scope
from hpsearch_api.security.scopes import CONTINUAL, ROUTES, expanded, known_routes
from hpsearch_storage import open_store
from hpsearch_storage.tokens import SCOPES

ALLOWED = {
    "open": {"read", "submit", "work", "admin"},
    "read": {"read", "submit", "admin"},
    "submit": {"submit", "admin"},
    "work": {"work", "admin"},
    "admin": {"admin"},
}
"""Which tokens are let through to a route that needs a scope; written out, not derived from the program."""


def declared() -> set[str]:
    """All routes of the application, as ``METHOD /path``."""

    def walk(routes: Any) -> Iterator[str]:
        for route in routes:
            inner = getattr(route, "effective_candidates", None)
            if inner is not None:
                yield from walk([*inner(), *route.effective_low_priority_routes()])
            else:
                yield from (f"{method} {route.path}" for method in route.methods if method != "HEAD")

    return set(walk(create_app(Coordinator(MemoryStore())).routes))


def test_every_route_has_a_scope_and_every_scope_a_route() -> None:
    assert declared() == set(ROUTES)
    assert set(ROUTES.values()) == set(Scope)
    assert {f"POST {path}" for path in [*leases.SHORTCUTS, *optuna.SHORTCUTS, *CONTINUAL]} <= declared()


def test_the_scopes_of_tokens_are_those_of_routes() -> None:
    assert set(SCOPES) == set(Scope) - {Scope.OPEN}
    for scope in SCOPES:
        assert {needed for needed in SCOPES if scope in ALLOWED[needed]} == expanded([scope])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, dict[str, str]]]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('scopes')}/a.db")
    now = datetime.now(UTC)
    tokens = {scope: store.tokens.create(scope, [scope], expires_at=None, now=now) for scope in SCOPES}
    app = create_app(Coordinator(store), limits=Limits(failures=10_000))
    with TestClient(app, base_url="http://example", follow_redirects=False) as client:
        yield client, tokens
    store.close()


def address(route: str) -> tuple[str, str]:
    method, _, path = route.partition(" ")
    for name, value in {"{name}": "s", "{number}": "0", "{kind}": "axis", "{path:path}": "style.css"}.items():
        path = path.replace(name, value)
    return method, path.replace("{study_id}", "1").replace("{trial_id}", "1")


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_each_scope_at_each_route(server: tuple[TestClient, dict[str, str]], route: str) -> None:
    client, tokens = server
    method, path = address(route)
    needed = ROUTES[route]
    for scope, token in tokens.items():
        status = client.request(method, path, headers={"Authorization": f"Bearer {token}"}).status_code
        if scope in ALLOWED[needed]:
            assert status not in (401, 403) or route == "POST /login", (scope, status)
        else:
            assert status == 403, (scope, status)
    for header in ({}, {"Authorization": "Bearer hps_" + "x" * 43}):
        status = client.request(method, path, headers=header).status_code
        if needed is Scope.OPEN:
            assert status != 403
        else:
            assert status == 401


def test_a_worker_sees_no_results_and_submits_nothing(server: tuple[TestClient, dict[str, str]]) -> None:
    client, tokens = server
    headers = {"Authorization": f"Bearer {tokens['work']}"}
    for path in ("studies", "studies/s", "studies/s/trials", "studies/s/best", "studies/s/events", "workers"):
        answer = client.get(f"/api/v1/{path}", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["detail"] == "this needs the scope 'read', which the token 'work' does not have"
    assert client.post("/api/v1/studies", headers=headers, json={}).status_code == 403
    assert client.post("/api/v1/leases", headers=headers, json={"worker": "w"}).json()["leases"] == []


def test_what_is_in_no_table_is_for_nobody(server: tuple[TestClient, dict[str, str]]) -> None:
    client, tokens = server
    for scope, token in tokens.items():
        headers = {"Authorization": f"Bearer {token}"}
        for path in ("/nothing", "/api/v1/studies/", "/api/v1/studies/s/trials/0/x", "/API/v1/studies"):
            status = client.get(path, headers=headers).status_code
            assert status == 404 or (scope == "admin" and status == 307), (scope, path, status)
        assert client.put("/api/v1/studies", headers=headers).status_code == (405 if scope == "admin" else 404)


def test_routes_are_found_as_the_application_finds_them() -> None:
    routes = known_routes()
    assert routes.find("GET", "/api/v1/studies/a b/trials/7") == ("/api/v1/studies/{name}/trials/{number}", Scope.READ)
    assert routes.find("HEAD", "/healthz") == ("/healthz", Scope.OPEN)
    assert routes.find("POST", "/api/v1/studies/a/b/c/d") is None
    assert routes.find("GET", "/static/a/b.js") == ("/static/{path:path}", Scope.OPEN)
