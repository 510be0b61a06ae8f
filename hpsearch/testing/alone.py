"""The store's calls for workers, of one worker alone, as most tests make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from hpsearch.store import Asking, Store, WorkerHello, as_kinds
from hpsearch.trial import Decision, Ending, Judge, Lease, Outcome, Report, Result, as_told


def lease(
    store: Store,
    worker: WorkerHello,
    capacity: int,
    *,
    now: datetime,
    ttl: timedelta,
    study: str | None = None,
    kinds: Iterable[str] | None = None,
    max_lost: int = 3,
) -> list[Lease]:
    """Give one worker trials."""
    asking = Asking(worker, capacity, study, as_kinds(kinds))
    return store.lease([asking], now=now, ttl=ttl, max_lost=max_lost)[0]


def report(store: Store, worker: str, reports: Sequence[Report], *, now: datetime, ttl: timedelta) -> list[Decision]:
    """Keep what one worker reports."""
    return store.report({worker}, reports, now=now, ttl=ttl)[0]


def finish(
    store: Store,
    worker: str,
    results: Sequence[Result],
    judge: Judge = as_told,
    *,
    reports: Sequence[Report] = (),
    now: datetime,
) -> list[Outcome]:
    """End trials of one worker."""
    return store.finish([Ending(worker, results, reports)], judge, now=now)
