"""Attempts: who tried which trial, under which token, and what became of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from hpsearch.store import WorkerHello
from hpsearch.trial import Attempt, AttemptState
from hpsearch_storage import tables, trials
from hpsearch_storage.codec import check_text, check_whole, to_micros
from hpsearch_storage.prepared import Bulk, Change, Rows, Statement
from hpsearch_storage.trials import TrialRow

_attempts = tables.attempts.c


class AttemptRow(NamedTuple):
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

    @property
    def behind(self) -> int:
        """What its trial has behind it."""
        return self.trial.behind


class Reporting(NamedTuple):
    """What is read of an attempt that is reported on.

    Attributes:
        state: the value of an :class:`AttemptState`.
        trial, trial_step, behind: number of its trial, its last step, and what it has behind it.
    """

    id: int
    trial_id: int
    study_id: int
    number: int
    token: str
    state: str
    step: int | None
    reason: str | None
    trial: int
    trial_step: int
    behind: int
    stage: str
    study: str

    @property
    def last_step(self) -> int:
        """The last step of the trial. While the attempt is locked nobody else changes it."""
        return self.trial_step if self.step is None else self.step


_OWN = AttemptRow._fields[:-1]
_ROWS = f"""SELECT {", ".join(f"attempts.{name}" for name in _OWN)}, {trials.COLUMNS} FROM attempts
    JOIN trials ON trials.id = attempts.trial_id JOIN stages ON stages.id = trials.stage_id"""
_STUDIES_OF_WORKERS = Statement(
    "SELECT DISTINCT study_id FROM attempts WHERE worker = ANY (%s::text[]) AND state = 'running'"
)
_BY_TOKEN = Statement(f"{_ROWS} WHERE attempts.token = ANY (%s::text[]) ORDER BY attempts.id")
_LOCKED_BY_TOKEN = Statement(
    f"{_ROWS} WHERE attempts.token = ANY (%s::text[]) ORDER BY attempts.id FOR NO KEY UPDATE OF attempts"
)
_REPORTED = """SELECT attempts.id, attempts.trial_id, attempts.study_id, attempts.number, attempts.token,
    attempts.state, attempts.step, attempts.reason, trials.number, trials.step, trials.behind, stages.name, studies.name
    FROM attempts JOIN trials ON trials.id = attempts.trial_id JOIN stages ON stages.id = trials.stage_id
    JOIN studies ON studies.id = attempts.study_id
    WHERE attempts.token = ANY (%s::text[]) ORDER BY attempts.study_id, attempts.id"""
# Studies are locked first, row by row, and rows come in the order of studies: the order of all other transactions.
_REPORTING = Statement(f"{_REPORTED} FOR SHARE OF studies FOR NO KEY UPDATE OF attempts")
_LOOKING = Statement(_REPORTED)
_OF_WORKERS = Statement(
    f"{_ROWS} WHERE attempts.worker = ANY (%s::text[]) AND attempts.state = 'running' ORDER BY attempts.id"
)
_EXPIRED = Statement(f"{_ROWS} WHERE attempts.state = 'running' AND attempts.expires_at <= %s ORDER BY attempts.id")
_START = Bulk(
    sqlite="""INSERT INTO attempts (trial_id, study_id, number, token, worker, session, state, started_at, expires_at)
        VALUES (?, ?, ?, ?, ?, ?, 'running', ?, ?)""",
    postgres="""INSERT INTO attempts
        (trial_id, study_id, number, token, worker, session, state, started_at, expires_at)
        SELECT trial_id, study_id, number, token, worker, session, 'running', started_at, expires_at FROM {rows}""",
    types={
        "trial_id": "bigint",
        "study_id": "bigint",
        "number": "bigint",
        "token": "text",
        "worker": "text",
        "session": "text",
        "started_at": "bigint",
        "expires_at": "bigint",
    },
)
_HEARD = Bulk(
    sqlite="UPDATE attempts SET step = ?, expires_at = ? WHERE id = ?",
    postgres="""UPDATE attempts SET step = given.step, expires_at = given.expires_at FROM {rows}
        WHERE attempts.id = given.id""",
    types={"step": "bigint", "expires_at": "bigint", "id": "bigint"},
)
_RENEW = Bulk(
    sqlite="UPDATE attempts SET expires_at = ?, session = ? WHERE id = ?",
    postgres="""UPDATE attempts SET expires_at = given.expires_at, session = given.session FROM {rows}
        WHERE attempts.id = given.id""",
    types={"expires_at": "bigint", "session": "text", "id": "bigint"},
)
_END = Bulk(
    sqlite="""UPDATE attempts SET step = coalesce(?, step), state = ?, reason = ?, ended_at = ?
        WHERE id = ? AND state = 'running'""",
    postgres="""UPDATE attempts SET step = coalesce(given.step, attempts.step),
        state = given.state, reason = given.reason, ended_at = given.ended_at FROM {rows}
        WHERE attempts.id = given.id AND attempts.state = 'running'""",
    types={"step": "bigint", "state": "text", "reason": "text", "ended_at": "bigint", "id": "bigint"},
)


def studies_of_workers(connection: Connection, workers: Iterable[str]) -> set[int]:
    """Ids of the studies that workers hold trials of. Nothing is locked."""
    return {row[0] for row in _STUDIES_OF_WORKERS.rows(connection, sorted(map(check_text, workers)))}


def studies_of_expired(connection: Connection, now: datetime) -> set[int]:
    """Ids of the studies that have expired leases. Nothing is locked."""
    query = select(_attempts.study_id).where(tables.HELD, _attempts.expires_at <= now)
    return set(connection.scalars(query.distinct()))


def of_workers(connection: Connection, workers: Iterable[str]) -> list[AttemptRow]:
    """Running attempts of workers by study, stage and number."""
    rows = _of_values(_OF_WORKERS.rows(connection, sorted(map(check_text, workers))))
    return sorted(rows, key=lambda row: (row.study_id, row.trial.stage_id, row.trial.number))


def expired(connection: Connection, now: datetime) -> list[AttemptRow]:
    """Running attempts whose lease has expired."""
    return _of_values(_EXPIRED.rows(connection, to_micros(now)))


def by_token(connection: Connection, tokens: Iterable[str]) -> dict[str, AttemptRow]:
    """Token → attempt, for those that exist. The attempts are locked, in the order of their ids."""
    return _by_token(connection, _LOCKED_BY_TOKEN, tokens)


def reporting(connection: Connection, tokens: Iterable[str], *, locked: bool = True) -> dict[str, Reporting]:
    """Token → attempt, for those that exist. They are locked, and their studies are, shared with other reports."""
    wanted = sorted({check_text(token) for token in tokens})
    rows = (_REPORTING if locked else _LOOKING).rows(connection, wanted) if wanted else []
    return {row[4]: Reporting._make(row) for row in rows}


def peek(connection: Connection, tokens: Iterable[str]) -> dict[str, AttemptRow]:
    """Token → attempt, for those that exist. Nothing is locked."""
    return _by_token(connection, _BY_TOKEN, tokens)


def _by_token(connection: Connection, statement: Statement, tokens: Iterable[str]) -> dict[str, AttemptRow]:
    wanted = sorted({check_text(token) for token in tokens})
    return {row.token: row for row in _of_values(statement.rows(connection, wanted))} if wanted else {}


def _of_values(rows: Rows) -> list[AttemptRow]:
    found = []
    for row in rows:
        attempt_id, trial_id, study_id, number, token, worker, session, state, step, reason, *more = row
        trial, held = trials.of_values(*more), AttemptState(state)
        found.append(
            AttemptRow(attempt_id, trial_id, study_id, number, token, worker, session, held, step, reason, trial)
        )
    return found


def of_trial(connection: Connection, study_id: int, number: int) -> list[Attempt]:
    """Every attempt at a trial, first to last. Raises NotFound."""
    trial = trials.one(connection, study_id, number)
    query = select(tables.attempts).where(_attempts.trial_id == trial.id).order_by(_attempts.number)
    return [
        Attempt(row.number, row.worker, row.state, row.started_at, row.expires_at, row.ended_at, row.reason)
        for row in connection.execute(query)
    ]


def to_start(
    started: Sequence[tuple[TrialRow, WorkerHello]], *, now: datetime, expires_at: datetime
) -> tuple[list[str], Change]:
    """Begin an attempt at each trial (``n_attempts`` counts it already) for a worker: their tokens, and the change."""
    tokens = [secrets.token_urlsafe(18) for _ in started]
    times = (to_micros(now), to_micros(expires_at))
    rows = [
        (trial.id, trial.study_id, trial.n_attempts, token, hello.name, hello.session, *times)
        for (trial, hello), token in zip(started, tokens, strict=True)
    ]
    return tokens, (_START, rows)


def renew(connection: Connection, held: Iterable[tuple[AttemptRow, str | None]], expires_at: datetime) -> None:
    """Let leases expire later; a session of their worker that was not told before is noted."""
    expires = to_micros(expires_at)
    rows = sorted((row.id, expires, row.session if session is None else session) for row, session in held)
    _RENEW.run(connection, [(expires, session, attempt_id) for attempt_id, expires, session in rows])


def to_renew(last_steps: dict[int, int | None], *, expires_at: datetime) -> Change:
    """Renew leases whose worker reported, and write the last step of each attempt (by id)."""
    expires = to_micros(expires_at)
    return _HEARD, [
        (None if step is None else check_whole(step), expires, attempt_id)
        for attempt_id, step in sorted(last_steps.items())
    ]


def to_end(
    ids: Iterable[int],
    state: AttemptState,
    *,
    reason: str | None = None,
    steps: Mapping[int, int] | None = None,
    now: datetime,
) -> Change:
    """End running attempts alike, some with another last step."""
    at, told = to_micros(now), steps or {}
    return _END, [
        (check_whole(told[attempt]) if attempt in told else None, state.value, reason, at, attempt)
        for attempt in sorted(ids)
    ]


def cancel_all(connection: Connection, study_id: int, *, reason: str | None, now: datetime) -> None:
    """End the running attempts at a study's trials."""
    connection.execute(
        update(tables.attempts)
        .where(_attempts.study_id == study_id, tables.HELD)
        .values(state=AttemptState.CANCELLED, reason=reason, ended_at=now)
    )


def note(connection: Connection, notes: dict[int, str]) -> None:
    """Write the reasons of attempts (by id)."""
    if notes:
        connection.execute(
            update(tables.attempts).where(_attempts.id == bindparam("row_id")).values(reason=bindparam("new_reason")),
            [{"row_id": attempt_id, "new_reason": reason} for attempt_id, reason in sorted(notes.items())],
        )
