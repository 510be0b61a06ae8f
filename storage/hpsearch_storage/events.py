"""The log of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from hpsearch.errors import NotFound
from hpsearch.study import Event
from hpsearch_storage import tables
from hpsearch_storage.codec import check_whole, encode, to_micros
from hpsearch_storage.prepared import Bulk, Change, Statement, run_together

Entry = tuple[str, dict[str, Any]]
"""Kind and data of an event."""
_LAST = Statement("SELECT last_event FROM studies WHERE id = %s")
_ADD = Bulk(
    sqlite="""INSERT INTO events (study_id, seq, kind, at, data)
        SELECT studies.id, studies.last_event + given.place, given.kind, given.at, given.data
        FROM (SELECT ? AS study_id, ? AS place, ? AS kind, ? AS at, ? AS data) AS given
        JOIN studies ON studies.id = given.study_id""",
    postgres="""INSERT INTO events (study_id, seq, kind, at, data)
        SELECT studies.id, studies.last_event + given.place, given.kind, given.at, given.data
        FROM {rows} JOIN studies ON studies.id = given.study_id""",
    types={"study_id": "bigint", "place": "bigint", "kind": "text", "at": "bigint", "data": "text"},
)
_COUNT = Bulk(
    sqlite="UPDATE studies SET last_event = last_event + ? WHERE id = ?",
    postgres="UPDATE studies SET last_event = last_event + given.n FROM {rows} WHERE studies.id = given.id",
    types={"n": "bigint", "id": "bigint"},
)


def append(connection: Connection, study_id: int, entries: Sequence[Entry], *, now: datetime) -> None:
    """Add entries to the end of a study's log, which is locked.

    Their numbers come from the study's row, which stays locked until the transaction ends: what commits first has
    the lower numbers, so a reader who has seen number n will never meet a lower one later.
    """
    run_together(connection, *to_append({study_id: entries}, now=now))


def to_append(entries: Mapping[int, Sequence[Entry]], *, now: datetime) -> list[Change]:
    """What :func:`append` does, for several studies (by id); in this order of changes.

    On PostgreSQL both changes see a log's last number as it was before them, on SQLite
    the first one does.
    """
    at = to_micros(now)
    rows = [
        (study_id, place, kind, at, encode(data))
        for study_id, some in sorted(entries.items())
        for place, (kind, data) in enumerate(some, 1)
    ]
    return [(_ADD, rows), (_COUNT, [(len(some), study_id) for study_id, some in sorted(entries.items())])]


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
    rows = _LAST.rows(connection, check_whole(study_id))
    if not rows:
        raise NotFound("study", study_id)
    found: int = rows[0][0]
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
