"""Which scope each route needs: one table. A route that is not in it is for nobody but ``admin``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache

from starlette.routing import compile_path


class Scope(StrEnum):
    """What a token may do; and ``OPEN``, which needs none."""

    OPEN = "open"
    READ = "read"
    SUBMIT = "submit"
    WORK = "work"
    ADMIN = "admin"


INCLUDED = {
    Scope.READ: (Scope.READ,),
    Scope.SUBMIT: (Scope.SUBMIT, Scope.READ),  # who submits is answered with studies, so reads them
    Scope.WORK: (Scope.WORK,),
    Scope.ADMIN: (Scope.ADMIN, Scope.SUBMIT, Scope.READ, Scope.WORK),
}
"""What a scope gives beside itself."""

_TABLE = {
    Scope.WORK: """
        POST /api/v1/leases/report
        POST /api/v1/leases
        GET /api/v1/leases
        POST /api/v1/leases/finish
        POST /api/v1/leases/release
        POST /api/v1/leases/log
        POST /api/v1/studies/{name}/preflight
    """,
    Scope.OPEN: """
        GET /healthz
        GET /readyz
        GET /login
        POST /login
        POST /logout
        GET /static/{path:path}
    """,
    Scope.SUBMIT: """
        POST /api/v1/studies
        POST /api/v1/studies/validate
        POST /api/v1/studies/{name}/pause
        POST /api/v1/studies/{name}/resume
        POST /api/v1/studies/{name}/cancel
        POST /api/v1/studies/{name}/trials
        POST /api/v1/studies/{name}/stages
        POST /api/v1/studies/{name}/flags/acknowledge
        POST /api/v1/optuna/studies
        POST /api/v1/optuna/studies/{study_id}/attributes
        POST /api/v1/optuna/studies/{study_id}/trials
        POST /api/v1/optuna/studies/{study_id}/sync
        POST /api/v1/optuna/patches
        POST /api/v1/optuna/trials/{trial_id}/heartbeat
    """,
    Scope.ADMIN: """
        DELETE /api/v1/studies/{name}
        DELETE /api/v1/optuna/studies/{study_id}
    """,
    Scope.READ: """
        GET /api/v1/studies
        GET /api/v1/studies/{name}
        GET /api/v1/studies/{name}/preflight
        GET /api/v1/studies/{name}/best
        GET /api/v1/studies/{name}/stages
        GET /api/v1/studies/{name}/analysis
        GET /api/v1/studies/{name}/flags
        GET /api/v1/studies/{name}/trials
        GET /api/v1/studies/{name}/trials/{number}
        GET /api/v1/studies/{name}/trials/{number}/metrics
        GET /api/v1/studies/{name}/trials/{number}/log
        GET /api/v1/studies/{name}/events
        GET /api/v1/studies/{name}/figures
        GET /api/v1/studies/{name}/figures/{kind}
        GET /api/v1/figures/compare
        GET /api/v1/workers
        GET /api/v1/optuna
        GET /api/v1/optuna/studies
        GET /api/v1/optuna/study
        GET /api/v1/optuna/trials/{trial_id}
        GET /api/v1/optuna/studies/{study_id}/stale
        GET /metrics
        GET /openapi.json
        GET /docs
        GET /docs/oauth2-redirect
        GET /redoc
        GET /
        GET /compare
        GET /new
        GET /new/schema.json
        GET /workers
        GET /parts/studies
        GET /parts/workers
        GET /studies/{name}
        GET /studies/{name}/figures/{kind}
        GET /studies/{name}/parts/summary
        GET /studies/{name}/parts/trials
        GET /studies/{name}/trials/{number}
        GET /studies/{name}/trials/{number}/parts/summary
    """,
}
CONTINUAL = frozenset(
    (
        "/api/v1/optuna/studies/{study_id}/trials",
        "/api/v1/optuna/studies/{study_id}/sync",
        "/api/v1/optuna/patches",
        "/api/v1/optuna/trials/{trial_id}/heartbeat",
    )
)
"""What who trains calls all the time, beside the routes of :attr:`Scope.WORK`: it steers nothing."""
ROUTES: dict[str, Scope] = {
    line.strip(): scope for scope, text in _TABLE.items() for line in text.split("\n") if line.strip()
}
"""``METHOD /path/{template}`` → the scope that it needs; what is called most comes first."""


class Routes:
    """Finds the route of a request by its method and path, as the application does."""

    def __init__(self, routes: dict[str, Scope]) -> None:
        self._fixed = {route: scope for route, scope in routes.items() if "{" not in route}
        self._templates = [(*_compiled(route), scope) for route, scope in routes.items() if "{" in route]

    def find(self, method: str, path: str) -> tuple[str, Scope] | None:
        """The route's template, without its method, and its scope; None where nothing is."""
        method = "GET" if method == "HEAD" else method
        scope = self._fixed.get(f"{method} {path}")
        if scope is not None:
            return path, scope
        for allowed, pattern, template, scope in self._templates:
            if method == allowed and pattern.match(path):
                return template, scope
        return None


@lru_cache(maxsize=1)
def known_routes() -> Routes:
    """The routes of :data:`ROUTES`."""
    return Routes(ROUTES)


def expanded(scopes: Iterable[str]) -> frozenset[Scope]:
    """These scopes with those that they include."""
    return frozenset(inner for scope in scopes for inner in INCLUDED[Scope(scope)])


def _compiled(route: str) -> tuple[str, re.Pattern[str], str]:
    method, _, path = route.partition(" ")
    return method, compile_path(path)[0], path
