"""The application: routes, errors, and the clockwork that runs beside the requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from hpsearch import __version__
from hpsearch.coordinator import Coordinator
from hpsearch.errors import StoreError
from hpsearch_api import describing, problems
from hpsearch_api.changes import Changes
from hpsearch_api.feeds import Feeds
from hpsearch_api.memory import Memory
from hpsearch_api.routes import events, figures, health, leases, login, optuna, pages, stages, studies, trials
from hpsearch_api.security import Doorkeeper, Guard, Limits
from hpsearch_api.security import Scope as TokenScope
from hpsearch_api.shortcuts import Shortcuts
from hpsearch_api.telemetry import Meters, Telemetry
from hpsearch_api.telemetry.tracing import Tracer, tracer_from_environment
from hpsearch_storage import SqlStore

log = logging.getLogger(__name__)

GIVEN, OWN = "HPSEARCH_TOKEN", "workers of the server"
"""Names of the tokens that a server process was given (scope ``admin``), and that it made for its own workers."""
TICK_SECONDS = 1.0
AWAY_SECONDS = 5 * TICK_SECONDS
"""Who ticks as late as that has not answered workers either."""


class _App(FastAPI):
    """An application behind layers of ours, which see every request and every answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.front: ASGIApp = self.answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self.front(scope, receive, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is behind the layers."""
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describing.with_security(super().openapi())
        return self.openapi_schema


def create_app(
    coordinator: Coordinator,
    *,
    token: str | None = None,
    worker_token: str | None = None,
    asks: bool = True,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    tracer: Tracer | None = None,
) -> FastAPI:
    """The application over a coordinator. It does not close the store.

    Args:
        coordinator: what it answers from.
        token: one that may do everything, beside those of the store; without any, this machine alone may.
        worker_token: one for workers of this process.
        asks: False asks for no token, although the store has some; for the user of this machine alone.
        limits: what clients may ask for.
        tracer: takes traces; None makes one as the environment says.
    """
    changes = Changes()
    calls = leases.Calls(coordinator)
    optuna_calls = optuna.Calls(coordinator, changes, limits)
    coordinator.on_change(changes.ring)
    given = {GIVEN: (token, TokenScope.ADMIN), OWN: (worker_token, TokenScope.WORK)}
    known = {name: (secret, scope) for name, (secret, scope) in given.items() if secret is not None}
    store = coordinator.store
    doorkeeper = Doorkeeper(store.tokens if isinstance(store, SqlStore) and asks else None, known)
    meters = Meters(store)
    feeds = Feeds(store, changes, limit=limits.streams, on_number=meters.streams.set)
    traced = tracer or tracer_from_environment()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        changes.start()
        ticking = asyncio.create_task(_tick(coordinator))
        yield
        changes.close()
        feeds.close()
        ticking.cancel()
        calls.close()
        optuna_calls.close()
        traced.close()

    app = _App(
        title="hpsearch",
        version=__version__,
        summary="Hyperparameter search as a service",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.coordinator = coordinator
    app.state.changes = changes
    app.state.calls = calls
    app.state.optuna_calls = optuna_calls
    app.state.memory = Memory()
    app.state.doorkeeper = doorkeeper
    app.state.feeds = feeds
    app.state.limits = limits
    app.state.meters = meters
    app.state.tracer = traced
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=5)
    shortcuts = Shortcuts(app.answer, calls=leases.SHORTCUTS | optuna.SHORTCUTS)
    guard = Guard(shortcuts, doorkeeper=doorkeeper, limits=limits)
    app.front = Telemetry(guard, meters=meters, tracer=traced)
    problems.install(app)
    # What is asked for most comes first: routes are looked through in this order.
    for module in (leases, studies, stages, trials, events, figures, optuna, health, login, pages):
        app.include_router(module.router)
    app.include_router(figures.compare_router)
    return app


async def _tick(coordinator: Coordinator) -> None:
    ticked = time.monotonic()
    while True:
        if time.monotonic() - ticked > AWAY_SECONDS:  # this process was stopped, or its machine asleep
            coordinator.was_away()
        ticked = time.monotonic()
        try:
            await run_in_threadpool(coordinator.tick)
        except StoreError as error:
            coordinator.was_away()
            log.warning("the store does not answer, trying again: %s", error)
        except Exception:
            log.exception("settling failed, trying again")
        await asyncio.sleep(TICK_SECONDS)
