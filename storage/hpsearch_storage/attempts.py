"""Attempts: who tried which trial, under which token, and what became of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, update

from hpsearch.trial import Attempt, AttemptState
from hpsearch_storage import tables, trials
from hpsearch_storage.codec import chunks
from hpsearch_storage.trials import TrialRow

_attempts = tables.attempts.c


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as its row has it, with its trial."""

    id: int
    trial_id: int
    study_id: int
    number: int
    token: str
    worker: str
    session: str | None
    state: AttemptState
    step: int | None
    reason: str | None
    trial: TrialRow


_FIELDS = tuple(field.name for field in fields(AttemptRow))[:-1]


def studies_of_tokens(connection: Connection, tokens: Iterable[str]) -> set[int]:
    """Ids of the studies that the tokens' trials belong to. Nothing is locked."""
    found: set[int] = set()
    for some in chunks(sorted(set(tokens))):
        found.update(connection.scalars(select(_attempts.study_id).where(_attempts.token.in_(some)).distinct()))
    return found


def studies_of_worker(connection: Connection, worker: str) -> set[int]:
    """Ids of the studies that a worker holds trials of. Nothing is locked."""
    query = select(_attempts.study_id).where(_attempts.worker == worker, _attempts.state == AttemptState.RUNNING)
    return set(connection.scalars(query.distinct()))


def studies_of_expired(connection: Connection, now: datetime) -> set[int]:
    """Ids of the studies that have expired leases. Nothing is locked."""
    query = select(_attempts.study_id).where(_attempts.state == AttemptState.RUNNING, _attempts.expires_at <= now)
    return set(connection.scalars(query.distinct()))


def of_worker(connection: Connection, worker: str) -> list[AttemptRow]:
    """Running attempts of a worker by study, stage and number."""
    rows = _rows(connection, _attempts.worker == worker, _attempts.state == AttemptState.RUNNING)
    return sorted(rows, key=lambda row: (row.study_id, row.trial.stage_id, row.trial.number))


def expired(connection: Connection, now: datetime) -> list[AttemptRow]:
    """Running attempts whose lease has expired."""
    return _rows(connection, _attempts.state == AttemptState.RUNNING, _attempts.expires_at <= now)


def by_token(connection: Connection, tokens: Sequence[str]) -> dict[str, AttemptRow]:
    """Token → attempt, for those that exist. The attempts are locked, in the order of their ids."""
    found = {}
    for some in chunks(sorted(set(tokens))):
        found.update({row.token: row for row in _rows(connection, _attempts.token.in_(some), lock=True)})
    return found


def peek(connection: Connection, tokens: Sequence[str]) -> dict[str, AttemptRow]:
    """Token → attempt, for those that exist. Nothing is locked."""
    found = {}
    for some in chunks(sorted(set(tokens))):
        found.update({row.token: row for row in _rows(connection, _attempts.token.in_(some))})
    return found


def _rows(connection: Connection, *conditions: ColumnElement[bool], lock: bool = False) -> list[AttemptRow]:
    query = select(*(_attempts[name] for name in _FIELDS)).where(*conditions).order_by(_attempts.id)
    if lock:
        query = query.with_for_update(key_share=True)
    rows = connection.execute(query).all()
    # Two steps, not a join: with old statistics PostgreSQL would read all trials for a handful of tokens.
    found = trials.by_ids(connection, [row.trial_id for row in rows])
    values: list[list[Any]] = [[*row, found[row.trial_id]] for row in rows if row.trial_id in found]
    return [AttemptRow(*each) for each in values]


def of_trial(connection: Connection, study_id: int, number: int) -> list[Attempt]:
    """Every attempt at a trial, first to last. Raises NotFound."""
    trial = trials.one(connection, study_id, number)
    query = select(tables.attempts).where(_attempts.trial_id == trial.id).order_by(_attempts.number)
    return [
        Attempt(row.number, row.worker, row.state, row.started_at, row.expires_at, row.ended_at, row.reason)
        for row in connection.execute(query)
    ]


def start(
    connection: Connection,
    started: Sequence[TrialRow],
    *,
    worker: str,
    session: str | None,
    now: datetime,
    expires_at: datetime,
) -> list[str]:
    """Begin an attempt at each trial (``n_attempts`` counts it already); returns their tokens."""
    tokens = [secrets.token_urlsafe(18) for _ in started]
    rows: list[dict[str, Any]] = [
        {
            "trial_id": trial.id,
            "study_id": trial.study_id,
            "number": trial.n_attempts,
            "token": token,
            "worker": worker,
            "session": session,
            "state": AttemptState.RUNNING,
            "started_at": now,
            "expires_at": expires_at,
        }
        for trial, token in zip(started, tokens, strict=True)
    ]
    if rows:
        connection.execute(insert(tables.attempts), rows)
    return tokens


def renew(connection: Connection, ids: Iterable[int], *, expires_at: datetime, session: str | None = None) -> None:
    """Let leases expire later; a session that was not told before is noted."""
    values: dict[str, Any] = {"expires_at": expires_at}
    if session is not None:
        values["session"] = session
    for some in chunks(sorted(ids)):
        connection.execute(update(tables.attempts).where(_attempts.id.in_(some)).values(values))


def heard(connection: Connection, last_steps: dict[int, int | None], *, expires_at: datetime) -> None:
    """Renew leases whose worker reported, and write the last step of each attempt (by id)."""
    if last_steps:
        connection.execute(
            update(tables.attempts)
            .where(_attempts.id == bindparam("row_id"))
            .values(step=bindparam("new_step"), expires_at=expires_at),
            [{"row_id": attempt_id, "new_step": step} for attempt_id, step in sorted(last_steps.items())],
        )


def end(
    connection: Connection, ids: Iterable[int], state: AttemptState, *, reason: str | None = None, now: datetime
) -> None:
    """End running attempts alike."""
    for some in chunks(sorted(ids)):
        connection.execute(
            update(tables.attempts)
            .where(_attempts.id.in_(some), _attempts.state == AttemptState.RUNNING)
            .values(state=state, reason=reason, ended_at=now)
        )


def cancel_all(connection: Connection, study_id: int, *, reason: str | None, now: datetime) -> None:
    """End the running attempts at a study's trials."""
    connection.execute(
        update(tables.attempts)
        .where(_attempts.study_id == study_id, _attempts.state == AttemptState.RUNNING)
        .values(state=AttemptState.CANCELLED, reason=reason, ended_at=now)
    )


def note(connection: Connection, notes: dict[int, str]) -> None:
    """Write the reasons of attempts (by id)."""
    if notes:
        connection.execute(
            update(tables.attempts).where(_attempts.id == bindparam("row_id")).values(reason=bindparam("new_reason")),
            [{"row_id": attempt_id, "new_reason": reason} for attempt_id, reason in sorted(notes.items())],
        )
