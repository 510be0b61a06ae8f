"""The log of a study."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from hpsearch.errors import NotFound
from hpsearch.study import Event
from hpsearch_storage import tables

Entry = tuple[str, dict[str, Any]]
"""Kind and data of an event."""


def append(connection: Connection, study_id: int, entries: Sequence[Entry], *, now: datetime) -> None:
    """Add entries to the end of a study's log.

    Their numbers come from the study's row, which stays locked until the transaction ends: what commits first has
    the lower numbers, so a reader who has seen number n will never meet a lower one later.
    """
    if not entries:
        return
    last = connection.execute(
        update(tables.studies)
        .where(tables.studies.c.id == study_id)
        .values(last_event=tables.studies.c.last_event + len(entries))
        .returning(tables.studies.c.last_event)
    ).scalar_one()
    first = last - len(entries) + 1
    connection.execute(
        insert(tables.events),
        [
            {"study_id": study_id, "seq": seq, "kind": kind, "at": now, "data": data}
            for seq, (kind, data) in enumerate(entries, first)
        ],
    )


def after(connection: Connection, study_id: int, seq: int, limit: int) -> list[Event]:
    """Events behind ``seq``, in order."""
    events = tables.events.c
    rows = connection.execute(
        select(events.seq, events.kind, events.at, events.data)
        .where(events.study_id == study_id, events.seq > seq)
        .order_by(events.seq)
        .limit(limit)
    )
    return [Event(row.seq, row.kind, row.at, row.data) for row in rows]


def last(connection: Connection, study_id: int) -> int:
    """Number of the newest event. Raises NotFound."""
    found: int | None = connection.execute(
        select(tables.studies.c.last_event).where(tables.studies.c.id == study_id)
    ).scalar()
    if found is None:
        raise NotFound("study", study_id)
    return found


def first_of(connection: Connection, study_id: int, kind: str) -> dict[str, Any] | None:
    """Data of the first event of a kind, None if there is none. Raises NotFound."""
    events = tables.events.c
    query = select(events.data).where(events.study_id == study_id, events.kind == kind).order_by(events.seq).limit(1)
    row = connection.execute(query).first()
    if row is None:
        last(connection, study_id)
        return None
    data: dict[str, Any] = row.data
    return data
