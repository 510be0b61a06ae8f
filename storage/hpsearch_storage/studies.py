"""Studies: their rows, their locks, their states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select, update

from hpsearch.errors import Conflict, NotFound
from hpsearch.spec import StudySpec
from hpsearch.study import PreflightStatus, Study, StudyState
from hpsearch_storage import tables
from hpsearch_storage.codec import decode_study, encode_study, same_study
from hpsearch_storage.dialects import upsert

_studies = tables.studies.c

Locked = dict[int, Row[*tuple[Any, ...]]]
"""Study id → its id, name, state, metric and next number."""


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
    row = connection.execute(select(tables.studies).where(_studies.name == name)).first()
    if row is None:
        raise NotFound("study", name)
    return to_study(row)


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
    return _locked(connection, ids, shared=False, wait=True)


def lock_shared(connection: Connection, ids: Iterable[int]) -> Locked:
    """Like :func:`lock`, but others that lock shared go on: for changes that touch no state."""
    return _locked(connection, ids, shared=True, wait=True)


def try_lock(connection: Connection, study_id: int) -> Locked:
    """Like :func:`lock`, but a study that somebody else has locked is left out: out of order, one must not wait."""
    return _locked(connection, [study_id], shared=False, wait=False)


def _locked(connection: Connection, ids: Iterable[int], *, shared: bool, wait: bool) -> Locked:
    ordered = sorted(set(ids))
    if not ordered:
        return {}
    columns = (_studies.id, _studies.name, _studies.state, _studies.metric, _studies.next_number)
    query = select(*columns).where(_studies.id.in_(ordered)).order_by(_studies.id)
    query = query.with_for_update(read=shared, key_share=not shared, skip_locked=not wait)
    rows: Sequence[Row[*tuple[Any, ...]]] = connection.execute(query).all()
    return {row.id: row for row in rows}


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


def document(connection: Connection, study_id: int) -> StudySpec:
    """What the study says. Raises NotFound."""
    text = connection.execute(select(_studies.spec).where(_studies.id == study_id)).scalar()
    if text is None:
        raise NotFound("study", study_id)
    return decode_study(text)


def chosen(study: str | None, kinds: Iterable[str] | None) -> Sequence[ColumnElement[bool]]:
    """Conditions on the studies that a worker may be given trials of."""
    conditions: list[ColumnElement[bool]] = [_studies.state == StudyState.RUNNING]
    conditions.append(_studies.name == study if study is not None else _studies.kind != "external")
    if kinds is not None:
        conditions.append(_studies.kind.in_(sorted(set(kinds))))
    return conditions


def n_running() -> ColumnElement[int]:
    """How many trials of the study in the enclosing query are running."""
    other = tables.stages.alias("other")
    return (
        select(func.coalesce(func.sum(other.c.n_running), 0))
        .where(other.c.study_id == _studies.id)
        .correlate(tables.studies)
        .scalar_subquery()
    )


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


def count_up(connection: Connection, study_id: int, n: int) -> None:
    """Take the next ``n`` numbers of trials."""
    connection.execute(
        update(tables.studies).where(_studies.id == study_id).values(next_number=_studies.next_number + n)
    )


def remove(connection: Connection, study_id: int) -> None:
    """Delete a study; the database deletes what belongs to it."""
    connection.execute(delete(tables.studies).where(_studies.id == study_id))


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
