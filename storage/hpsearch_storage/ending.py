"""Ending what is open in a study: its queued and running trials, and its running stage."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from hpsearch.study import StageState, Study, StudyState
from hpsearch_storage import attempts, events, stages, trials


def end_open(connection: Connection, study_id: int, reason: str, *, now: datetime) -> None:
    """Cancel the open trials of a study, and the attempts at them. The study is locked."""
    attempts.cancel_all(connection, study_id, reason=reason, now=now)
    trials.cancel_open(connection, study_id, reason=reason, now=now)


def end_all(connection: Connection, study: Study, *, now: datetime) -> None:
    """End what is open in a study that has ended. The study is locked."""
    reason = f"the study was {study.state.value}" + (f": {study.reason}" if study.reason else "")
    end_open(connection, study.id, reason, now=now)
    if stage := stages.running(connection, study.id):
        completed = study.state == StudyState.COMPLETED
        state = StageState.COMPLETED if completed else StageState.CANCELLED
        events.append(connection, study.id, [stages.end(connection, stage, state, now=now)], now=now)
