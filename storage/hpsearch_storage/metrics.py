"""What trials reported, a row per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, select

from hpsearch.trial import StepMetrics
from hpsearch_storage import tables
from hpsearch_storage.codec import check_whole, chunks, decode_metrics, encode_metrics
from hpsearch_storage.prepared import Bulk, Change, Statement, run_together

Steps = Mapping[tuple[int, int], Mapping[str, float]]
"""(trial id, step) → values."""
_PUT = Bulk(
    sqlite="""INSERT INTO metrics (trial_id, step, "values") VALUES (?, ?, ?)
        ON CONFLICT (trial_id, step) DO UPDATE SET "values" = excluded."values\"""",
    postgres="""INSERT INTO metrics (trial_id, step, "values") SELECT trial_id, step, told FROM {rows}
        ON CONFLICT (trial_id, step) DO UPDATE SET "values" = excluded."values\"""",
    types={"trial_id": "bigint", "step": "bigint", "told": "text"},
)
_OF_IDS = Statement(
    """SELECT trial_id, step, "values" FROM metrics WHERE trial_id = ANY (%s::bigint[]) ORDER BY trial_id, step"""
)


def put(connection: Connection, steps: Steps) -> None:
    """Keep the values of each step in place of what was there."""
    run_together(connection, to_put(steps))


def to_put(steps: Steps) -> Change:
    """What :func:`put` does."""
    rows = [(*at, encode_metrics(values)) for at, values in steps.items()]
    return _PUT, sorted((trial_id, check_whole(step), text) for trial_id, step, text in rows)


def drop_after(connection: Connection, last_steps: Mapping[int, int]) -> None:
    """Forget what each trial (by id) reported behind a step."""
    if last_steps:
        metrics = tables.metrics.c
        connection.execute(
            delete(tables.metrics).where(metrics.trial_id == bindparam("trial"), metrics.step > bindparam("last")),
            [{"trial": trial_id, "last": step} for trial_id, step in sorted(last_steps.items())],
        )


def of_trials(connection: Connection, study_id: int, numbers: Sequence[int]) -> list[StepMetrics]:
    """All that these trials reported, by trial and step."""
    trials = tables.trials.c
    found = []
    for some in chunks(sorted(set(numbers))):
        ids = select(trials.id, trials.number).where(trials.study_id == study_id, trials.number.in_(some))
        number_of = {row.id: row.number for row in connection.execute(ids)}
        of_some = [step for steps in of_ids(connection, number_of).values() for step in steps]
        found += sorted(of_some, key=lambda step: (step.trial, step.step))
    return found


def of_ids(connection: Connection, number_of: Mapping[int, int]) -> dict[int, list[StepMetrics]]:
    """Trial id → all that it reported, by step; ``number_of`` says which number each id has."""
    found: dict[int, list[StepMetrics]] = {trial_id: [] for trial_id in number_of}
    for some in chunks(sorted(number_of)):
        for trial_id, step, values in _OF_IDS.rows(connection, list(some)):
            found[trial_id].append(StepMetrics(number_of[trial_id], step, decode_metrics(values)))
    return found
