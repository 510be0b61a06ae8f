"""What trials had at rungs, and promotion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from hpsearch.study import StageState
from hpsearch.trial import RungEntry, RungPlace, TrialState
from hpsearch_storage import studies, trials
from hpsearch_storage.codec import check_whole
from hpsearch_storage.prepared import Bulk, Change, Statement, run_together
from hpsearch_storage.stages import StageHead
from hpsearch_storage.trials import TrialRow

_COLUMNS = "bracket, step, trial, value, went_on, seq"
_AFTER = Statement(f"SELECT {_COLUMNS} FROM rungs WHERE stage_id = %s AND seq > %s ORDER BY seq")
_AT = Statement(
    f"SELECT {_COLUMNS} FROM rungs WHERE stage_id = %s AND bracket = %s AND step = %s AND trial = ANY (%s::bigint[])"
)
_TAKE = Statement("UPDATE stages SET last_rung = last_rung + %s WHERE id = %s RETURNING last_rung")
_MARK = Bulk(
    sqlite="UPDATE rungs SET went_on = 1, seq = ? WHERE stage_id = ? AND bracket = ? AND step = ? AND trial = ?",
    postgres="""UPDATE rungs SET went_on = 1, seq = given.seq FROM {rows} WHERE rungs.stage_id = given.stage_id
        AND rungs.bracket = given.bracket AND rungs.step = given.step AND rungs.trial = given.trial""",
    types={"seq": "bigint", "stage_id": "bigint", "bracket": "bigint", "step": "bigint", "trial": "bigint"},
)
_RECORD = Bulk(
    sqlite="""INSERT INTO rungs (stage_id, bracket, step, trial, value, seq, went_on) VALUES (?, ?, ?, ?, ?, ?, 0)
        ON CONFLICT (stage_id, bracket, step, trial) DO NOTHING""",
    postgres="""INSERT INTO rungs (stage_id, bracket, step, trial, value, seq, went_on)
        SELECT stage_id, bracket, step, trial, value, seq, 0 FROM {rows}
        ON CONFLICT (stage_id, bracket, step, trial) DO NOTHING""",
    types={
        "stage_id": "bigint",
        "bracket": "bigint",
        "step": "bigint",
        "trial": "bigint",
        "value": "double precision",
        "seq": "bigint",
    },
)


def after(connection: Connection, stage_id: int, seq: int) -> list[RungEntry]:
    """Entries of a stage with a later ``seq``, in order."""
    return [_entry(row) for row in _AFTER.rows(connection, stage_id, seq)]


def to_record(connection: Connection, stage_id: int, values: Mapping[RungPlace, float | None]) -> Change:
    """Keep first values. A place that has its value already leaves a gap among the ``seq``.

    Their numbers come from the stage's row, which stays locked until the transaction ends: who commits first has the
    lower ``seq``. Nothing is kept of a stage that is not there.
    """
    first = _take(connection, stage_id, len(values))
    if first is None:
        return _RECORD, []
    return _RECORD, [(stage_id, *place, kept(values[place]), seq) for seq, place in enumerate(sorted(values), first)]


def kept(value: float | None) -> float | None:
    """A value as it is kept: None unless finite."""
    return value + 0.0 if value is not None and math.isfinite(value) else None


def record(connection: Connection, stage_id: int, values: Mapping[RungPlace, float | None]) -> None:
    """Do what :func:`to_record` does."""
    run_together(connection, to_record(connection, stage_id, values))


def let_on(
    connection: Connection,
    stage: StageHead,
    passed: Iterable[RungPlace],
    promoted: Mapping[RungPlace, str],
    *,
    now: datetime,
) -> list[int]:
    """Mark entries, and queue promoted trials that were pruned. The study is locked."""
    wanted: dict[RungPlace, str | None] = dict.fromkeys(passed) | dict(promoted)
    waiting = [entry for entry in _at(connection, stage.id, wanted) if not entry.went_on]
    asked = [entry.place.trial for entry in waiting if wanted[entry.place] is not None]
    rows = trials.by_numbers(connection, stage.study_id, asked)
    marked = [e for e in waiting if wanted[e.place] is None or rows[e.place.trial].state.is_finished]
    _mark(connection, stage.id, [entry.place for entry in marked])
    if stage.state != StageState.RUNNING or studies.has_ended(connection, stage.study_id):
        return []
    again: list[tuple[TrialRow, TrialRow]] = []
    for entry in marked:
        reason = wanted[entry.place]
        if reason is not None and (row := rows[entry.place.trial]).state == TrialState.PRUNED:
            queued = row._replace(state=TrialState.QUEUED, value=None, reason=reason, ended_at=None, verdicts=None)
            again.append((row, queued))
    trials.change(connection, again, now=now)
    return [row.number for row, _ in again]


def _at(connection: Connection, stage_id: int, places: Iterable[RungPlace]) -> list[RungEntry]:
    """The entries at these places, by place."""
    trials_at: dict[tuple[int, int], list[int]] = {}
    for place in places:
        trials_at.setdefault((place.bracket, place.step), []).append(place.trial)
    rows = [
        row
        for (bracket, step), numbers in sorted(trials_at.items())
        for row in _AT.rows(connection, stage_id, bracket, step, numbers)
    ]
    return sorted((_entry(row) for row in rows), key=lambda entry: entry.place)


def _mark(connection: Connection, stage_id: int, places: list[RungPlace]) -> None:
    first = _take(connection, stage_id, len(places)) or 0
    _MARK.run(connection, [(seq, stage_id, *place) for seq, place in enumerate(places, first)])


def _take(connection: Connection, stage_id: int, n: int) -> int | None:
    """The first of the next ``n`` seq of a stage, None if there is no such stage."""
    rows = _TAKE.rows(connection, n, check_whole(stage_id)) if n else []
    return int(rows[0][0]) - n + 1 if rows else None


def _entry(row: tuple[Any, ...]) -> RungEntry:
    bracket, step, trial, value, went_on, seq = row
    return RungEntry(RungPlace(bracket, step, trial), value, bool(went_on), seq)
