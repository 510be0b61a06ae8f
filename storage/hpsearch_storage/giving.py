"""Trials that are given to a stage: queued, or ended elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from hpsearch.errors import InvalidInput, NotFound
from hpsearch.space import Params
from hpsearch.study import StageState
from hpsearch.trial import TrialState
from hpsearch_storage import results, stages, studies, trials
from hpsearch_storage.stages import StageHead


def lock_stage(connection: Connection, stage_id: int) -> tuple[StageHead, int] | None:
    """A stage of a study, which is locked, and the study's next number; None if the stage is not there."""
    study = next(iter(studies.lock_of_stage(connection, stage_id).values()), None)
    stage = None if study is None else stages.head(connection, stage_id)
    return None if study is None or stage is None else (stage, study.next_number)


def add_queued(
    connection: Connection,
    stage_id: int,
    first_number: int,
    params: Sequence[Params],
    *,
    behind: Sequence[int] | None,
    now: datetime,
) -> bool:
    """See :meth:`hpsearch.store.Store.add_trials`."""
    locked = lock_stage(connection, stage_id)
    if locked is None:
        return False
    stage, next_number = locked
    room = stage.n_trials - stage.n_created
    if stage.state != StageState.RUNNING or next_number != first_number or len(params) > room:
        return False
    trials.add_queued(connection, stage, first_number, params, behind=behind, now=now)
    return True


def add_ended(
    connection: Connection, stage_id: int, ended: Sequence[tuple[Params, TrialState, float | None]], *, now: datetime
) -> list[int]:
    """See :meth:`hpsearch.store.Store.add_finished`."""
    for _, state, _ in ended:
        if not state.is_finished:
            raise InvalidInput(f"a trial in state {state.value!r} has not ended: enqueue it instead")
    locked = lock_stage(connection, stage_id)
    if locked is None:
        raise NotFound("stage", stage_id)
    stage, first = locked
    metric = studies.document(connection, stage.study_id).metric.name
    settled = [(params, *results.settle(state, value, None, metric=metric)) for params, state, value in ended]
    trials.add_ended(connection, stage, first, settled, now=now)
    return list(range(first, first + len(settled)))
