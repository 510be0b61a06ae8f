"""How much there is of what: the numbers that a monitoring system asks for again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from hpsearch.study import StageState, StudyState
from hpsearch.trial import TrialState
from hpsearch_storage import tables

MOST = 100
"""Studies and workers that are named; the newest studies, and the workers with the most leases."""

_study, _stage, _trial, _attempt = tables.studies.c, tables.stages.c, tables.trials.c, tables.attempts.c
_OPEN = (StudyState.PREFLIGHT, StudyState.RUNNING, StudyState.PAUSED)


@dataclass(frozen=True, slots=True)
class StudyGauge:
    """One study that has not ended.

    Attributes:
        waiting: trials that could be leased: queued, or to be drawn in the running stage.
        leased: trials that workers hold.
        epochs: trained so far, those of running trials included.
    """

    name: str
    waiting: int
    leased: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """See :func:`read`.

    Attributes:
        studies: how many there are of each state.
        open_studies: at most :data:`MOST`.
        workers: leases of each worker that holds any, at most :data:`MOST`.
        n_leases: of all workers.
    """

    studies: Mapping[str, int]
    open_studies: Sequence[StudyGauge]
    workers: Mapping[str, int]
    n_leases: int


def n_studies(connection: Connection) -> int:
    """How many studies there are."""
    return int(connection.execute(select(func.count()).select_from(tables.studies)).scalar_one())


def n_trials(connection: Connection, study_id: int) -> int:
    """How many trials a study has had; 0 for one that is not there."""
    row = connection.execute(select(_study.next_number).where(_study.id == study_id)).first()
    return 0 if row is None else int(row.next_number)


def read(connection: Connection) -> Gauges:
    """The present numbers."""
    states = connection.execute(select(_study.state, func.count().label("n")).group_by(_study.state))
    found = connection.execute(
        select(_study.id, _study.name).where(_study.state.in_(_OPEN)).order_by(_study.id.desc()).limit(MOST)
    ).all()
    by_stage = _sums(connection, [row.id for row in found])
    running = _running_steps(connection, [row.id for row in found])
    held = select(_attempt.worker, func.count().label("n")).where(tables.HELD)
    held = held.group_by(_attempt.worker).order_by(func.count().desc(), _attempt.worker)
    workers = connection.execute(held).all()
    return Gauges(
        {row.state.value: row.n for row in states},
        [
            StudyGauge(row.name, waiting, leased, trained + running.get(row.id, 0))
            for row in found
            for waiting, leased, trained in [by_stage.get(row.id, (0, 0, 0))]
        ],
        {row.worker: row.n for row in workers[:MOST]},
        sum(row.n for row in workers),
    )


def _sums(connection: Connection, study_ids: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Of each study: trials that wait, trials that are leased, epochs of ended trials."""
    sums: dict[int, tuple[int, int, int]] = {}
    for row in connection.execute(select(tables.stages).where(_stage.study_id.in_(study_ids))):
        waiting, leased, trained = sums.get(row.study_id, (0, 0, 0))
        room = max(0, row.n_trials - row.n_created) if row.state == StageState.RUNNING else 0
        sums[row.study_id] = (waiting + row.n_queued + room, leased + row.n_running, trained + row.n_epochs)
    return sums


def _running_steps(connection: Connection, study_ids: Sequence[int]) -> dict[int, int]:
    of_them = (_trial.study_id.in_(study_ids), _trial.state == TrialState.RUNNING)
    trained = case((_trial.step > _trial.behind, _trial.step - _trial.behind), else_=0)
    query = select(_trial.study_id, func.sum(trained).label("n")).where(*of_them).group_by(_trial.study_id)
    return {row.study_id: int(row.n) for row in connection.execute(query)}
