"""What users noted of the borders of a study's stages."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from hpsearch.study import Acknowledgement, Border
from hpsearch_storage import tables

_noted = tables.acknowledgements.c


def write(connection: Connection, study_id: int, border: Border, note: str | None, *, now: datetime) -> None:
    """Keep a note, in place of an earlier one, or (None) forget it. The study is locked."""
    key = (_noted.stage == border.stage, _noted.parameter == border.parameter, _noted.side == border.side)
    connection.execute(delete(tables.acknowledgements).where(_noted.study_id == study_id, *key))
    if note is not None:
        values = {"study_id": study_id, **asdict(border), "note": note, "at": now}
        connection.execute(insert(tables.acknowledgements).values(values))


def of_study(connection: Connection, study_id: int) -> dict[Border, Acknowledgement]:
    """All notes of a study."""
    rows = connection.execute(select(tables.acknowledgements).where(_noted.study_id == study_id))
    return {Border(row.stage, row.parameter, row.side): Acknowledgement(row.note, row.at) for row in rows}
