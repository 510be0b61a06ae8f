"""The application: routes, errors, and the clockwork that runs beside the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware

from hpsearch import __version__
from hpsearch.coordinator import Coordinator
from hpsearch.errors import StoreError
from hpsearch_api import problems
from hpsearch_api.changes import Changes
from hpsearch_api.memory import Memory
from hpsearch_api.routes import events, figures, health, leases, optuna, pages, stages, studies, trials
from hpsearch_api.security import Guard

log = logging.getLogger(__name__)

MAX_BODY = 16 * 2**20
"""Bytes of a request's body."""
TICK_SECONDS = 1.0


def create_app(coordinator: Coordinator, *, token: str | None = None) -> FastAPI:
    """The application over a coordinator, guarded by a token if one is given. It does not close the store."""
    changes = Changes()
    coordinator.on_change(changes.ring)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        changes.start()
        ticking = asyncio.create_task(_tick(coordinator))
        yield
        changes.close()
        ticking.cancel()

    app = FastAPI(
        title="hpsearch",
        version=__version__,
        summary="Hyperparameter search as a service",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    app.state.coordinator = coordinator
    app.state.changes = changes
    app.state.memory = Memory()
    app.add_middleware(GZipMiddleware, minimum_size=2048, compresslevel=5)
    app.add_middleware(Guard, token=token, max_body=MAX_BODY)
    problems.install(app)
    # What is asked for most comes first: routes are looked through in this order.
    for module in (leases, studies, stages, trials, events, figures, optuna, health, pages):
        app.include_router(module.router)
    return app


async def _tick(coordinator: Coordinator) -> None:
    while True:
        try:
            await run_in_threadpool(coordinator.tick)
        except StoreError as error:
            log.warning("the store does not answer, trying again: %s", error)
        except Exception:
            log.exception("settling failed, trying again")
        await asyncio.sleep(TICK_SECONDS)
