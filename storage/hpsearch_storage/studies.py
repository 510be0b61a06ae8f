"""Studies: their rows, their locks, their states."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, select, update

from hpsearch.errors import Conflict, NotFound
from hpsearch.spec import StudySpec
from hpsearch.study import PreflightStatus, Study, StudyState
from hpsearch_storage import tables
from hpsearch_storage.codec import check_text, check_whole, decode_study, encode_study, from_micros, same_study
from hpsearch_storage.dialects import upsert
from hpsearch_storage.prepared import Bulk, Change, Statement

_studies = tables.studies.c


class LockedStudy(NamedTuple):
    """What is read of a study when it is locked."""

    id: int
    name: str
    kind: str
    state: StudyState
    metric: str
    next_number: int


Locked = dict[int, LockedStudy]
"""Study id → what was read of it."""
_SELECT = f"SELECT {', '.join(LockedStudy._fields)} FROM studies WHERE"
_LOCK = Statement(f"{_SELECT} id = ANY (%s::bigint[]) ORDER BY id FOR NO KEY UPDATE")
_TRY_LOCK = Statement(f"{_SELECT} id = ANY (%s::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED")
_OWNERS = "id IN (SELECT study_id FROM attempts WHERE token = ANY (%s::text[])) ORDER BY id"
_OF_STAGE = Statement(f"{_SELECT} id IN (SELECT study_id FROM stages WHERE id = ANY (%s::bigint[])) FOR NO KEY UPDATE")
_OF_TOKENS = Statement(f"{_SELECT} {_OWNERS} FOR NO KEY UPDATE")
_OF_TOKENS_SHARED = Statement(f"{_SELECT} {_OWNERS} FOR SHARE")
FIELDS = ("id", "spec", "state", "reason", "next_number", "created_at", "ended_at")
"""What :func:`of_values` takes."""
_NAMED = Statement(f"SELECT {', '.join(FIELDS)} FROM studies WHERE name = %s")
_COUNT_UP = Bulk(
    sqlite="UPDATE studies SET next_number = next_number + ? WHERE id = ?",
    postgres="UPDATE studies SET next_number = next_number + given.n FROM {rows} WHERE studies.id = given.id",
    types={"n": "bigint", "id": "bigint"},
)


def find_same(connection: Connection, spec: StudySpec, key: str | None) -> Study | None:
    """The study that the same request created before, if any.

    Raises:
        Conflict: another spec has the name or the key.
    """
    for column, value, what in ((_studies.idempotency_key, key, "idempotency key"), (_studies.name, spec.name, "name")):
        row = connection.execute(select(tables.studies).where(column == value)).first() if value is not None else None
        if row is not None:
            if not same_study(row.spec, spec):
                raise Conflict(
                    f"the {what} {value!r} is taken by a study with another spec: "
                    f"give another {what}, or delete the study {row.name!r} first"
                )
            return to_study(row)
    return None


def insert(connection: Connection, spec: StudySpec, key: str | None, *, preflight: bool, now: datetime) -> Study | None:
    """Add a study; None if its name or key is taken (on PostgreSQL: was, while this waited)."""
    row = connection.execute(
        upsert(connection, tables.studies)
        .values(
            name=spec.name,
            spec=encode_study(spec),
            kind=spec.objective.kind,
            metric=spec.metric.name,
            state=StudyState.PREFLIGHT if preflight else StudyState.RUNNING,
            preflight={"status": PreflightStatus.WAITING} if preflight else None,
            next_number=0,
            last_event=0,
            idempotency_key=key,
            created_at=now,
        )
        .on_conflict_do_nothing()
        .returning(tables.studies)
    ).first()
    return None if row is None else to_study(row)


def named(connection: Connection, name: str) -> Study:
    """One study. Raises NotFound."""
    rows = _NAMED.rows(connection, check_text(name))
    if not rows:
        raise NotFound("study", name)
    return of_values(*rows[0])


def any_in_preflight(connection: Connection) -> bool:
    """Whether some study waits for its checks, or has them run."""
    query = select(_studies.id).where(_studies.state == StudyState.PREFLIGHT).limit(1)
    return connection.execute(query).first() is not None


def by_ids(connection: Connection, ids: Iterable[int]) -> dict[int, Study]:
    """Studies by id, those that are there."""
    query = select(tables.studies).where(_studies.id.in_(sorted(set(ids))))
    return {row.id: to_study(row) for row in connection.execute(query)}


def newest(connection: Connection, *, before: int | None, limit: int) -> list[Study]:
    """Studies with an id below ``before``, newest first."""
    query = select(tables.studies).order_by(_studies.id.desc()).limit(limit)
    if before is not None:
        query = query.where(_studies.id < before)
    return [to_study(row) for row in connection.execute(query)]


def lock(connection: Connection, ids: Iterable[int]) -> Locked:
    """Lock studies against every other change of them or of what belongs to them, and read them.

    Locks are taken in the order of the ids, before anything else is locked, so that transactions cannot wait for
    each other in a circle. On SQLite the whole database is locked already.
    """
    return _read(_LOCK, connection, sorted(set(ids)))


def lock_of_tokens(connection: Connection, tokens: Iterable[str], *, shared: bool = False) -> Locked:
    """Like :func:`lock`, the studies that the tokens' trials belong to.

    With ``shared`` others that lock shared go on: for changes that touch no state.
    """
    wanted = sorted({check_text(token) for token in tokens})
    return _read(_OF_TOKENS_SHARED if shared else _OF_TOKENS, connection, wanted)


def lock_of_stage(connection: Connection, stage_id: int) -> Locked:
    """Like :func:`lock`, the study of a stage; empty if there is no such stage."""
    return _read(_OF_STAGE, connection, [check_whole(stage_id)])


def try_lock(connection: Connection, study_id: int) -> Locked:
    """Like :func:`lock`, but a study that somebody else has locked is left out: out of order, one must not wait."""
    return _read(_TRY_LOCK, connection, [study_id])


def _read(statement: Statement, connection: Connection, values: list[Any]) -> Locked:
    rows = [LockedStudy(*row) for row in statement.rows(connection, values)] if values else []
    return {row.id: row._replace(state=StudyState(row.state)) for row in rows}


def lock_one(connection: Connection, study_id: int) -> Study:
    """Lock one study and read all of it. Raises NotFound."""
    query = select(tables.studies).where(_studies.id == study_id).with_for_update(key_share=True)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("study", study_id)
    return to_study(row)


def check(connection: Connection, study_id: int) -> None:
    """Raise NotFound unless there is such a study."""
    if connection.execute(select(_studies.id).where(_studies.id == study_id)).first() is None:
        raise NotFound("study", study_id)


def has_ended(connection: Connection, study_id: int) -> bool:
    """Whether a study's state is final. Raises NotFound."""
    state: StudyState | None = connection.execute(select(_studies.state).where(_studies.id == study_id)).scalar()
    if state is None:
        raise NotFound("study", study_id)
    return state.is_finished


def document(connection: Connection, study_id: int) -> StudySpec:
    """What the study says. Raises NotFound."""
    text = connection.execute(select(_studies.spec).where(_studies.id == study_id)).scalar()
    if text is None:
        raise NotFound("study", study_id)
    return decode_study(text)


def set_state(
    connection: Connection, study_id: int, state: StudyState, reason: str | None, *, ended_at: datetime | None
) -> Study:
    """Write a state."""
    row = connection.execute(
        update(tables.studies)
        .where(_studies.id == study_id)
        .values(state=state, reason=reason, ended_at=ended_at)
        .returning(tables.studies)
    ).one()
    return to_study(row)


def to_count_up(study_id: int, n: int) -> Change:
    """Take the next ``n`` numbers of trials."""
    return _COUNT_UP, [(n, study_id)]


def remove(connection: Connection, study_id: int) -> None:
    """Delete a study; the database deletes what belongs to it."""
    connection.execute(delete(tables.studies).where(_studies.id == study_id))


def of_values(*values: Any) -> Study:
    """The study of what the database keeps of it."""
    row = dict(zip(FIELDS, values, strict=True))
    return Study(
        id=row["id"],
        spec=decode_study(row["spec"]),
        state=StudyState(row["state"]),
        reason=row["reason"],
        next_number=row["next_number"],
        created_at=from_micros(row["created_at"]),
        ended_at=None if row["ended_at"] is None else from_micros(row["ended_at"]),
    )


def to_study(row: Row[*tuple[Any, ...]]) -> Study:
    """The study of a row."""
    return Study(
        id=row.id,
        spec=decode_study(row.spec),
        state=row.state,
        reason=row.reason,
        next_number=row.next_number,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )
