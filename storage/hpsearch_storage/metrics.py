"""What trials reported, a row per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, select, tuple_

from hpsearch.trial import StepMetrics
from hpsearch_storage import tables
from hpsearch_storage.codec import chunks, decode_metrics, encode_metrics
from hpsearch_storage.dialects import upsert

Steps = Mapping[tuple[int, int], dict[str, float]]
"""(trial id, step) → values."""


def put(connection: Connection, steps: Steps) -> None:
    """Keep the values of each step in place of what was there."""
    if not steps:
        return
    statement = upsert(connection, tables.metrics)
    statement = statement.on_conflict_do_update(
        index_elements=["trial_id", "step"], set_={"values": statement.excluded["values"]}
    )
    connection.execute(
        statement,
        [
            {"trial_id": trial_id, "step": step, "values": encode_metrics(values)}
            for (trial_id, step), values in sorted(steps.items())
        ],
    )


def drop_after(connection: Connection, last_steps: Mapping[int, int]) -> None:
    """Forget what each trial (by id) reported behind a step."""
    if last_steps:
        metrics = tables.metrics.c
        connection.execute(
            delete(tables.metrics).where(metrics.trial_id == bindparam("trial"), metrics.step > bindparam("last")),
            [{"trial": trial_id, "last": step} for trial_id, step in sorted(last_steps.items())],
        )


def at_steps(connection: Connection, steps: Mapping[int, int]) -> dict[int, dict[str, float]]:
    """Trial id → values, of one step of each trial, for those that reported it."""
    metrics = tables.metrics.c
    found = {}
    for some in chunks(sorted(steps.items())):
        wanted = tuple_(metrics.trial_id, metrics.step).in_(some)
        rows = connection.execute(select(metrics.trial_id, metrics["values"]).where(wanted))
        found.update({row[0]: decode_metrics(row[1]) for row in rows})
    return found


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
    metrics = tables.metrics.c
    found: dict[int, list[StepMetrics]] = {trial_id: [] for trial_id in number_of}
    for some in chunks(sorted(number_of)):
        query = select(metrics.trial_id, metrics.step, metrics["values"]).where(metrics.trial_id.in_(some))
        for trial_id, step, values in connection.execute(query.order_by(metrics.trial_id, metrics.step)):
            found[trial_id].append(StepMetrics(number_of[trial_id], step, decode_metrics(values)))
    return found
