"""Handing out trials, and taking back those of workers that are gone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from hpsearch.store import Asking
from hpsearch.study import StudyState
from hpsearch.trial import AttemptState, Lease, TrialState
from hpsearch_storage import attempts, stages, studies, trials, workers
from hpsearch_storage.attempts import AttemptRow
from hpsearch_storage.codec import decode_stage
from hpsearch_storage.prepared import Statement, run_together
from hpsearch_storage.trials import TrialRow

_STAGES = Statement(
    """SELECT stages.id, stages."index", stages.spec, studies.name FROM stages
    JOIN studies ON studies.id = stages.study_id WHERE stages.id = ANY (%s::bigint[])"""
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all leases of a transaction; see :meth:`hpsearch.store.Store.lease`."""

    now: datetime
    ttl: timedelta
    max_lost: int

    @property
    def expires_at(self) -> datetime:
        """When leases given now expire."""
        return self.now + self.ttl


def lease(connection: Connection, asked: Sequence[Asking], terms: Terms) -> list[list[Lease]]:
    """Give each worker what it holds already, then queued trials.

    Locks: the workers' rows, by name, then the studies that will be needed, by id. A study whose need shows only later
    is taken if it is free and left out if not, because waiting for it could close a circle.
    """
    sessions = {asking.worker.name: asking.worker.session for asking in asked}
    if len(sessions) < len(asked):  # what the first request of a worker gets is what its second one finds
        return [lease(connection, [asking], terms)[0] for asking in asked]
    workers.greet(connection, [asking.worker for asking in asked], now=terms.now)
    holding = attempts.studies_of_workers(connection, sessions)
    queues = Queues(connection, asked)
    locked = studies.lock(connection, holding | queues.needed(asked))
    held = attempts.of_workers(connection, sessions) if holding else []
    gone = [row for row in held if _is_of_earlier_session(row, sessions[row.worker])]
    if gone:
        lose(connection, gone, "its worker was started anew", max_lost=terms.max_lost, now=terms.now)
        queues = Queues(connection, asked)
    kept = [_kept(asking, held, gone, locked) for asking in asked]
    attempts.renew(connection, [(row, sessions[row.worker]) for rows in kept for row in rows], terms.expires_at)
    rooms = [asking.room(len(rows)) for asking, rows in zip(asked, kept, strict=True)]
    new = _give_out(
        connection, asked, queues.choose(asked, rooms, lambda study: _may(connection, locked, study)), terms
    )
    old = [[(row.trial, row.token) for row in rows] for rows in kept]
    return _leases(connection, [a + b for a, b in zip(old, new, strict=True)], terms)


def _is_of_earlier_session(row: AttemptRow, session: str | None) -> bool:
    return None not in (session, row.session) and row.session != session


def _kept(asking: Asking, held: list[AttemptRow], gone: list[AttemptRow], locked: studies.Locked) -> list[AttemptRow]:
    """What a worker gets back."""
    mine = [row for row in held if row.worker == asking.worker.name and row not in gone]
    return [row for row in mine if asking.study in (None, locked[row.study_id].name)][: max(asking.capacity, 0)]


def _may(connection: Connection, locked: studies.Locked, study_id: int) -> bool:
    """Whether a study gives out trials; it is locked now, if it is free."""
    if study_id not in locked:
        locked |= studies.try_lock(connection, study_id)
    return study_id in locked and locked[study_id].state == StudyState.RUNNING


Choice = list[tuple[int, int]]
"""How many trials of which stages, by id."""


class Queues:
    """How much the stages have for those who ask."""

    def __init__(self, connection: Connection, asked: Sequence[Asking]) -> None:
        found = {key: stages.with_queued(connection, *key) for key in {(each.study, each.kinds) for each in asked}}
        self._stages = {key: [(stage, study) for stage, study, _, _ in rows] for key, rows in found.items()}
        self._n_queued = {row[0]: row[2] for rows in found.values() for row in rows}
        self._n_running = {row[1]: int(row[3]) for rows in found.values() for row in rows}

    def needed(self, asked: Sequence[Asking]) -> set[int]:
        """Ids of the studies that would give something, if nobody held anything."""
        needed: set[int] = set()

        def note(study: int) -> bool:
            needed.add(study)
            return True

        self.choose(asked, [asking.room(0) for asking in asked], note)
        return needed

    def choose(self, asked: Sequence[Asking], rooms: Sequence[int], may: Callable[[int], bool]) -> list[Choice]:
        """What each is given: of the studies that may give something the one with the fewest running trials first."""
        n_queued, n_running = dict(self._n_queued), dict(self._n_running)
        choices = []
        for asking, room in zip(asked, rooms, strict=True):
            choice: Choice = []
            left = room
            for stage, study in sorted(self._stages[asking.study, asking.kinds], key=lambda each: n_running[each[1]]):
                n = min(left, n_queued[stage])
                if n > 0 and may(study):
                    n_queued[stage] -= n
                    n_running[study] += n
                    left -= n
                    choice.append((stage, n))
            choices.append(choice)
        return choices


def _give_out(
    connection: Connection, asked: Sequence[Asking], choices: Sequence[Choice], terms: Terms
) -> list[list[tuple[TrialRow, str]]]:
    """Hand out the next trials of stages: each with its token."""
    totals: Counter[int] = Counter()
    for choice in choices:
        totals.update(dict(choice))
    rows = {stage: deque(trials.queued(connection, stage, n)) for stage, n in sorted(totals.items())}
    given = [
        [(rows[stage].popleft(), asking.worker) for stage, n in choice for _ in range(min(n, len(rows[stage])))]
        for asking, choice in zip(asked, choices, strict=True)
    ]
    pairs = [pair for some in given for pair in some]
    started = [_started(trial, worker.name, terms.now) for trial, worker in pairs]
    attempted = list(zip(started, (worker for _, worker in pairs), strict=True))
    tokens, beginning = attempts.to_start(attempted, now=terms.now, expires_at=terms.expires_at)
    changes = zip((trial for trial, _ in pairs), started, strict=True)
    run_together(connection, *trials.to_change(changes, now=terms.now), beginning)
    new = iter(zip(started, tokens, strict=True))
    return [list(islice(new, len(some))) for some in given]


def _started(trial: TrialRow, worker: str, now: datetime) -> TrialRow:
    return trial._replace(
        state=TrialState.RUNNING, reason=None, worker=worker, n_attempts=trial.n_attempts + 1, started_at=now
    )


def _leases(connection: Connection, held: list[list[tuple[TrialRow, str]]], terms: Terms) -> list[list[Lease]]:
    ids = sorted({trial.stage_id for some in held for trial, _ in some})
    rows = {row[0]: row for row in _STAGES.rows(connection, ids)} if ids else {}
    return [[_lease(trial, token, rows[trial.stage_id], terms) for trial, token in some] for some in held]


def _lease(trial: TrialRow, token: str, stage: tuple[Any, ...], terms: Terms) -> Lease:
    _, index, spec, study = stage
    return Lease(
        token=token,
        study_id=trial.study_id,
        study=study,
        stage=trial.stage,
        stage_index=index,
        trial=trial.number,
        attempt=trial.n_attempts,
        expires_at=terms.expires_at,
        params=trial.params,
        epochs=decode_stage(spec).n_epochs,
        step=trial.step,
    )


def reap(connection: Connection, *, max_lost: int, now: datetime) -> list[int]:
    """Take back every expired lease; returns the ids of the studies touched."""
    locked = studies.lock(connection, attempts.studies_of_expired(connection, now))
    gone = [row for row in attempts.expired(connection, now) if row.study_id in locked]
    lose(connection, gone, "its lease expired", max_lost=max_lost, now=now)
    return sorted({row.study_id for row in gone})


def lose(connection: Connection, gone: list[AttemptRow], why: str, *, max_lost: int, now: datetime) -> None:
    """Count attempts as lost; their trials are queued again, or failed after ``max_lost`` losses."""
    ending = attempts.to_end([row.id for row in gone], AttemptState.LOST, reason=why, now=now)
    changes = [(row.trial, _after_loss(row, why, max_lost, now)) for row in gone]
    run_together(connection, ending, *trials.to_change(changes, now=now))


def _after_loss(row: AttemptRow, why: str, max_lost: int, now: datetime) -> TrialRow:
    n_lost = row.trial.n_lost + 1
    reason = f"attempt {row.number} lost its worker {row.worker}: {why}"
    if n_lost < max_lost:
        return row.trial._replace(state=TrialState.QUEUED, reason=reason, n_lost=n_lost)
    reason = f"{n_lost} attempts lost their worker, the last one {row.worker}: {why}"
    return row.trial._replace(state=TrialState.FAILED, reason=reason, n_lost=n_lost, ended_at=now)
