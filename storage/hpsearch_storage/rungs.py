"""What trials had at rungs, and promotion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from hpsearch.study import Stage, StageState
from hpsearch.trial import RungEntry, RungPlace, TrialState
from hpsearch_storage import studies, tables, trials
from hpsearch_storage.trials import TrialRow

_rungs = tables.rungs.c


def after(connection: Connection, stage_id: int, seq: int) -> list[RungEntry]:
    """Entries of a stage with a later ``seq``, in order."""
    columns = (_rungs.bracket, _rungs.step, _rungs.trial, _rungs.value, _rungs.went_on, _rungs.seq)
    query = select(*columns).where(_rungs.stage_id == stage_id, _rungs.seq > seq).order_by(_rungs.seq)
    return [_entry(row) for row in connection.execute(query)]


def record(connection: Connection, stage_id: int, values: Mapping[RungPlace, float | None]) -> None:
    """Keep first values. The study is locked, so that who commits first has the lower ``seq``."""
    first = _last_seq(connection, stage_id) + 1
    known = {entry.place for entry in _at(connection, stage_id, values)}
    rows = [
        {
            "stage_id": stage_id,
            **place._asdict(),
            "value": value + 0.0 if value is not None and math.isfinite(value) else None,
            "went_on": 0,
            "seq": seq,
        }
        for seq, (place, value) in enumerate(sorted((p, v) for p, v in values.items() if p not in known), first)
    ]
    if rows:
        connection.execute(tables.rungs.insert(), rows)


def let_on(
    connection: Connection,
    stage: Stage,
    passed: Iterable[RungPlace],
    promoted: Mapping[RungPlace, str],
    *,
    now: datetime,
) -> list[int]:
    """Mark entries, and queue promoted trials that were pruned. The study is locked."""
    wanted: dict[RungPlace, str | None] = dict.fromkeys(passed) | dict(promoted)
    waiting = [entry for entry in _at(connection, stage.id, wanted) if not entry.went_on]
    rows = trials.by_numbers(connection, stage.study_id, [entry.place.trial for entry in waiting])
    marked = [e for e in waiting if wanted[e.place] is None or rows[e.place.trial].state.is_finished]
    _mark(connection, stage.id, [entry.place for entry in marked])
    if stage.state != StageState.RUNNING or studies.has_ended(connection, stage.study_id):
        return []
    again: list[tuple[TrialRow, TrialRow]] = []
    for entry in marked:
        row, reason = rows[entry.place.trial], wanted[entry.place]
        if reason is not None and row.state == TrialState.PRUNED:
            queued = replace(row, state=TrialState.QUEUED, value=None, reason=reason, ended_at=None, verdicts=None)
            again.append((row, queued))
    trials.change(connection, again, now=now)
    return [row.number for row, _ in again]


def _at(connection: Connection, stage_id: int, places: Iterable[RungPlace]) -> list[RungEntry]:
    """The entries at these places, by place."""
    found = []
    trials_at: dict[tuple[int, int], list[int]] = {}
    for place in places:
        trials_at.setdefault((place.bracket, place.step), []).append(place.trial)
    for (bracket, step), numbers in sorted(trials_at.items()):
        query = select(_rungs.bracket, _rungs.step, _rungs.trial, _rungs.value, _rungs.went_on, _rungs.seq).where(
            _rungs.stage_id == stage_id, _rungs.bracket == bracket, _rungs.step == step, _rungs.trial.in_(numbers)
        )
        found += [_entry(row) for row in connection.execute(query)]
    return sorted(found, key=lambda entry: entry.place)


def _mark(connection: Connection, stage_id: int, places: list[RungPlace]) -> None:
    first = _last_seq(connection, stage_id) + 1
    rows = [
        {"at_bracket": place.bracket, "at_step": place.step, "at_trial": place.trial, "new_seq": seq}
        for seq, place in enumerate(places, first)
    ]
    if rows:
        connection.execute(
            update(tables.rungs)
            .where(
                _rungs.stage_id == stage_id,
                _rungs.bracket == bindparam("at_bracket"),
                _rungs.step == bindparam("at_step"),
                _rungs.trial == bindparam("at_trial"),
            )
            .values(went_on=1, seq=bindparam("new_seq")),
            rows,
        )


def _last_seq(connection: Connection, stage_id: int) -> int:
    found: int | None = connection.execute(select(func.max(_rungs.seq)).where(_rungs.stage_id == stage_id)).scalar()
    return found or 0


def _entry(row: Row[*tuple[Any, ...]]) -> RungEntry:
    return RungEntry(RungPlace(row.bracket, row.step, row.trial), row.value, bool(row.went_on), row.seq)
