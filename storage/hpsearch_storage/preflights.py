"""The checks before a study's first stage: one JSON value in its row."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from hpsearch.errors import NotFound
from hpsearch.study import Preflight, PreflightStatus, Study, StudyState
from hpsearch_storage import studies, tables
from hpsearch_storage.codec import check_text, from_micros, to_micros

_studies = tables.studies.c


def of_study(connection: Connection, study_id: int) -> Preflight:
    """The checks of a study. Raises NotFound."""
    row = connection.execute(select(_studies.preflight).where(_studies.id == study_id)).first()
    if row is None:
        raise NotFound("study", study_id)
    return _decode(row.preflight)


def claim(
    connection: Connection, worker: str, *, kinds: Sequence[str], now: datetime, ttl: timedelta
) -> tuple[Study, str] | None:
    """Give the waiting checks of the oldest study of these kinds to a worker."""
    query = select(_studies.id).where(_studies.state == StudyState.PREFLIGHT, _studies.kind.in_(kinds))
    query = query.order_by(_studies.id)
    for study_id in connection.scalars(query).all():
        if not _is_open(of_study(connection, study_id), worker, now) or not studies.try_lock(connection, study_id):
            continue
        study = studies.lock_one(connection, study_id)
        if study.state != StudyState.PREFLIGHT or not _is_open(of_study(connection, study_id), worker, now):
            continue
        token = secrets.token_urlsafe(18)
        write(connection, study_id, Preflight(PreflightStatus.RUNNING, (), worker, token, now + ttl))
        return study, token
    return None


def n_waiting(connection: Connection, kinds: Iterable[str] | None, *, now: datetime) -> int:
    """How many studies of these kinds have checks that wait for a worker."""
    query = select(_studies.preflight).where(_studies.state == StudyState.PREFLIGHT)
    if kinds is not None:
        query = query.where(_studies.kind.in_(sorted({check_text(kind) for kind in kinds})))
    return sum(_is_open(_decode(value), "", now) for value in connection.scalars(query))


def _is_open(preflight: Preflight, worker: str, now: datetime) -> bool:
    """Whether a worker may have the checks; one that asks again is not running them any more."""
    if preflight.status == PreflightStatus.WAITING:
        return True
    expired = preflight.expires_at is not None and preflight.expires_at <= now
    return preflight.status == PreflightStatus.RUNNING and (expired or preflight.worker == worker)


def write(connection: Connection, study_id: int, preflight: Preflight) -> None:
    """Keep the checks of a study. The study is locked."""
    value = {
        "status": preflight.status.value,
        "checks": list(preflight.checks),
        "worker": preflight.worker,
        "token": preflight.token,
        "expires_at": None if preflight.expires_at is None else to_micros(preflight.expires_at),
    }
    connection.execute(update(tables.studies).where(_studies.id == study_id).values(preflight=value))


def checked(before: Preflight, checks: Sequence[dict[str, Any]], *, failed: bool) -> Preflight:
    """The checks once they have run."""
    status = PreflightStatus.FAILED if failed else PreflightStatus.PASSED
    return Preflight(status, tuple(checks), before.worker, before.token)


def _decode(value: Any) -> Preflight:
    if value is None:
        return Preflight(PreflightStatus.SKIPPED)
    micros = value.get("expires_at")
    return Preflight(
        PreflightStatus(value["status"]),
        tuple(value.get("checks", ())),
        value.get("worker"),
        value.get("token"),
        None if micros is None else from_micros(micros),
    )
