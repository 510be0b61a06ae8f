"""Handing out trials, and taking back those of workers that are gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from hpsearch.store import WorkerHello
from hpsearch.study import StudyState
from hpsearch.trial import AttemptState, Lease, TrialState
from hpsearch_storage import attempts, stages, studies, trials, workers
from hpsearch_storage.attempts import AttemptRow
from hpsearch_storage.codec import decode_stage
from hpsearch_storage.prepared import Rows, Statement
from hpsearch_storage.trials import TrialRow

_STAGES = Statement(
    """SELECT stages.id, stages."index", stages.spec, studies.name FROM stages
    JOIN studies ON studies.id = stages.study_id WHERE stages.id = ANY (%s::bigint[])"""
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker asks for; see :meth:`hpsearch.store.Store.lease`."""

    worker: WorkerHello
    capacity: int
    now: datetime
    ttl: timedelta
    study: str | None
    kinds: tuple[str, ...] | None
    max_lost: int

    @property
    def expires_at(self) -> datetime:
        """When leases given now expire."""
        return self.now + self.ttl


def lease(connection: Connection, request: Request) -> list[Lease]:
    """Give out what the worker holds already, then queued trials.

    Locks: the worker's row, then the studies that will be needed, by id. A study whose need shows only later is
    taken if it is free and left out if not, because waiting for it could close a circle.
    """
    workers.greet(connection, request.worker, now=request.now)
    holding = attempts.studies_of_worker(connection, request.worker.name)
    candidates = stages.with_queued(connection, request.study, request.kinds)
    locked = studies.lock(connection, holding | _first_needed(candidates, request.capacity))
    held = attempts.of_worker(connection, request.worker.name) if holding else []
    gone = [row for row in held if _is_of_earlier_session(row, request.worker)]
    if gone:
        lose(connection, gone, "its worker was started anew", max_lost=request.max_lost, now=request.now)
        candidates = stages.with_queued(connection, request.study, request.kinds)
    kept = [row for row in held if row not in gone and request.study in (None, locked[row.study_id].name)]
    leases = _give_back(connection, kept[: max(request.capacity, 0)], request)
    for stage_id, study_id, _ in candidates:
        room = request.capacity - len(leases)
        if room <= 0:
            break
        if study_id not in locked:
            locked |= studies.try_lock(connection, study_id)
        if study_id in locked and locked[study_id].state == StudyState.RUNNING:
            leases += _give_out(connection, trials.queued(connection, stage_id, room), request)
    return leases


def _first_needed(candidates: Rows, capacity: int) -> set[int]:
    needed: set[int] = set()
    for _, study_id, n_queued in candidates:
        if capacity <= 0:
            break
        needed.add(study_id)
        capacity -= n_queued
    return needed


def _is_of_earlier_session(row: AttemptRow, worker: WorkerHello) -> bool:
    return None not in (worker.session, row.session) and row.session != worker.session


def _give_back(connection: Connection, held: list[AttemptRow], request: Request) -> list[Lease]:
    attempts.renew(connection, [row.id for row in held], expires_at=request.expires_at, session=request.worker.session)
    return _leases(connection, [row.trial for row in held], [row.token for row in held], request)


def _give_out(connection: Connection, queued: list[TrialRow], request: Request) -> list[Lease]:
    started = [
        replace(
            trial,
            state=TrialState.RUNNING,
            reason=None,
            worker=request.worker.name,
            n_attempts=trial.n_attempts + 1,
            started_at=request.now,
        )
        for trial in queued
    ]
    trials.change(connection, zip(queued, started, strict=True), now=request.now)
    tokens = attempts.start(
        connection,
        started,
        worker=request.worker.name,
        session=request.worker.session,
        now=request.now,
        expires_at=request.expires_at,
    )
    return _leases(connection, started, tokens, request)


def _leases(connection: Connection, held: list[TrialRow], tokens: list[str], request: Request) -> list[Lease]:
    ids = sorted({trial.stage_id for trial in held})
    rows = {row[0]: row for row in _STAGES.rows(connection, ids)} if ids else {}
    leases = []
    for trial, token in zip(held, tokens, strict=True):
        _, index, spec, study = rows[trial.stage_id]
        leases.append(
            Lease(
                token=token,
                study_id=trial.study_id,
                study=study,
                stage=trial.stage,
                stage_index=index,
                trial=trial.number,
                attempt=trial.n_attempts,
                expires_at=request.expires_at,
                params=trial.params,
                epochs=decode_stage(spec).n_epochs,
                step=trial.step,
            )
        )
    return leases


def reap(connection: Connection, *, max_lost: int, now: datetime) -> list[int]:
    """Take back every expired lease; returns the ids of the studies touched."""
    locked = studies.lock(connection, attempts.studies_of_expired(connection, now))
    gone = [row for row in attempts.expired(connection, now) if row.study_id in locked]
    lose(connection, gone, "its lease expired", max_lost=max_lost, now=now)
    return sorted({row.study_id for row in gone})


def lose(connection: Connection, gone: list[AttemptRow], why: str, *, max_lost: int, now: datetime) -> None:
    """Count attempts as lost; their trials are queued again, or failed after ``max_lost`` losses."""
    attempts.end(connection, [row.id for row in gone], AttemptState.LOST, reason=why, now=now)
    trials.change(connection, [(row.trial, _after_loss(row, why, max_lost, now)) for row in gone], now=now)


def _after_loss(row: AttemptRow, why: str, max_lost: int, now: datetime) -> TrialRow:
    n_lost = row.trial.n_lost + 1
    reason = f"attempt {row.number} lost its worker {row.worker}: {why}"
    if n_lost < max_lost:
        return replace(row.trial, state=TrialState.QUEUED, reason=reason, n_lost=n_lost)
    reason = f"{n_lost} attempts lost their worker, the last one {row.worker}: {why}"
    return replace(row.trial, state=TrialState.FAILED, reason=reason, n_lost=n_lost, ended_at=now)
