"""Trials, and every change of their state: row, counter and event go together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update

from hpsearch.errors import NotFound
from hpsearch.space import Params
from hpsearch.study import Stage
from hpsearch.trial import Trial, TrialState
from hpsearch_storage import events, stages, studies, tables
from hpsearch_storage.codec import chunks
from hpsearch_storage.events import Entry

_trials = tables.trials.c


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as its row has it, with its stage's name."""

    id: int
    study_id: int
    stage_id: int
    stage: str
    number: int
    state: TrialState
    params: Params
    value: float | None
    step: int
    reason: str | None
    n_attempts: int
    n_lost: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    verdicts: list[dict[str, Any]] | None

    def shown(self) -> Trial:
        """The trial as others see it."""
        return Trial(
            number=self.number,
            stage=self.stage,
            state=self.state,
            params=self.params,
            value=self.value,
            step=self.step,
            reason=self.reason,
            n_attempts=self.n_attempts,
            worker=self.worker,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            verdicts=tuple(self.verdicts or ()),
        )

    def entry(self) -> Entry:
        """The event that says which state the trial has now."""
        return "trial", {
            "number": self.number,
            "stage": self.stage,
            "state": self.state.value,
            "value": self.value,
            "step": self.step,
            "params": self.params,
            "reason": self.reason,
        }


_FIELDS = tuple(field.name for field in fields(TrialRow))
_CHANGING = ("state", "value", "reason", "n_attempts", "n_lost", "worker", "started_at", "ended_at", "verdicts")


def select_rows() -> Select[Any]:
    """Columns of :class:`TrialRow`, first to last; more may follow."""
    columns = [tables.stages.c.name.label("stage") if name == "stage" else _trials[name] for name in _FIELDS]
    return select(*columns).join_from(tables.trials, tables.stages, _trials.stage_id == tables.stages.c.id)


def to_row(row: Row[*tuple[Any, ...]]) -> TrialRow:
    """The trial of a row that begins with the columns of :func:`select_rows`."""
    return TrialRow(*row[: len(_FIELDS)])


def one(connection: Connection, study_id: int, number: int) -> TrialRow:
    """One trial. Raises NotFound."""
    row = connection.execute(select_rows().where(_trials.study_id == study_id, _trials.number == number)).first()
    if row is None:
        studies.check(connection, study_id)
        raise NotFound("trial", number)
    return to_row(row)


def by_ids(connection: Connection, ids: Sequence[int]) -> dict[int, TrialRow]:
    """Trials by id, those that are there."""
    found = {}
    for some in chunks(ids):
        found.update({row[0]: to_row(row) for row in connection.execute(select_rows().where(_trials.id.in_(some)))})
    return found


def queued(connection: Connection, stage_id: int, limit: int) -> list[TrialRow]:
    """The next trials of a stage to give out; those that another transaction is about to change are left out."""
    query = (
        select_rows()
        .where(_trials.stage_id == stage_id, _trials.state == TrialState.QUEUED)
        .order_by(_trials.number)
        .limit(limit)
        .with_for_update(of=tables.trials, key_share=True, skip_locked=True)
    )
    return [to_row(row) for row in connection.execute(query)]


def cancel_open(connection: Connection, study_id: int, *, reason: str, now: datetime) -> None:
    """Cancel the queued and running trials of a study. The study is locked."""
    is_open = _trials.state.in_([TrialState.QUEUED, TrialState.RUNNING])
    query = select_rows().where(_trials.study_id == study_id, is_open).order_by(_trials.number)
    rows = [to_row(row) for row in connection.execute(query)]
    cancelled = [replace(row, state=TrialState.CANCELLED, reason=reason, ended_at=now) for row in rows]
    change(connection, zip(rows, cancelled, strict=True), now=now)


def add_queued(connection: Connection, stage: Stage, first: int, params: Sequence[Params], *, now: datetime) -> None:
    """Add queued trials; they take room of their stage. The study is locked."""
    rows = [_new(stage, number, p, TrialState.QUEUED, now) for number, p in enumerate(params, first)]
    _insert(connection, stage, rows)
    stages.count(connection, stage.id, {TrialState.QUEUED: len(rows)}, n_created=len(rows))


def add_ended(
    connection: Connection,
    stage: Stage,
    first: int,
    ended: Sequence[tuple[Params, TrialState, float | None, str | None]],
    *,
    now: datetime,
) -> None:
    """Add trials that have ended, each with params, state, value and reason. The study is locked."""
    rows = [
        _new(stage, number, params, state, now) | {"value": value, "reason": reason, "ended_at": now}
        for number, (params, state, value, reason) in enumerate(ended, first)
    ]
    _insert(connection, stage, rows)
    stages.count(connection, stage.id, Counter(row["state"] for row in rows))
    entries: list[Entry] = [
        (
            "trial",
            {name: row[name] for name in ("number", "value", "step", "params", "reason")}
            | {"stage": stage.name, "state": row["state"].value},
        )
        for row in rows
    ]
    events.append(connection, stage.study_id, entries, now=now)


def _new(stage: Stage, number: int, params: Params, state: TrialState, now: datetime) -> dict[str, Any]:
    return {
        "study_id": stage.study_id,
        "stage_id": stage.id,
        "number": number,
        "state": state,
        "params": params,
        "value": None,
        "step": 0,
        "reason": None,
        "n_attempts": 0,
        "n_lost": 0,
        "created_at": now,
        "ended_at": None,
    }


def _insert(connection: Connection, stage: Stage, rows: list[dict[str, Any]]) -> None:
    for some in chunks(rows):
        connection.execute(insert(tables.trials), list(some))
    studies.count_up(connection, stage.study_id, len(rows))


def change(connection: Connection, changes: Iterable[tuple[TrialRow, TrialRow]], *, now: datetime) -> None:
    """Write new states over old ones: rows, counters of their stages, events. Their studies are locked."""
    parameters = []
    deltas: dict[int, Counter[TrialState]] = defaultdict(Counter)
    n_epochs: Counter[int] = Counter()
    entries: dict[int, list[Entry]] = defaultdict(list)
    for old, new in changes:
        parameters.append({f"new_{name}": getattr(new, name) for name in _CHANGING} | {"row_id": new.id})
        deltas[new.stage_id][old.state] -= 1
        deltas[new.stage_id][new.state] += 1
        n_epochs[new.stage_id] += new.step * new.state.is_finished - old.step * old.state.is_finished
        entries[new.study_id].append(new.entry())
    if parameters:
        connection.execute(
            update(tables.trials)
            .where(_trials.id == bindparam("row_id"))
            .values({name: bindparam(f"new_{name}") for name in _CHANGING}),
            parameters,
        )
    for stage_id in sorted(deltas):
        stages.count(connection, stage_id, deltas[stage_id], n_epochs=n_epochs[stage_id])
    for study_id in sorted(entries):
        events.append(connection, study_id, entries[study_id], now=now)


def set_steps(connection: Connection, steps: dict[int, int]) -> None:
    """Write the last step that each trial (by id) reported."""
    if steps:
        connection.execute(
            update(tables.trials).where(_trials.id == bindparam("row_id")).values(step=bindparam("new_step")),
            [{"row_id": trial_id, "new_step": step} for trial_id, step in sorted(steps.items())],
        )
