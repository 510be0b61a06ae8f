"""Trials, and every change of their state: row, counter and event go together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, select, type_coerce
from sqlalchemy.types import NullType

from hpsearch.errors import NotFound
from hpsearch.space import Params
from hpsearch.trial import Trial, TrialState
from hpsearch_storage import events, stages, studies, tables
from hpsearch_storage.codec import check_text, check_whole, chunks, decode, encode, from_micros, to_micros
from hpsearch_storage.events import Entry
from hpsearch_storage.prepared import Bulk, Change, Statement, run_together
from hpsearch_storage.stages import Counted, StageHead

_trials = tables.trials.c


class TrialRow(NamedTuple):
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
    behind: int

    @property
    def n_epochs(self) -> int:
        """Epochs that it trained itself."""
        return max(self.step - self.behind, 0)

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


FIELDS = TrialRow._fields
"""Of :class:`TrialRow`, in the order of :func:`select_rows`."""
COLUMNS = ", ".join("stages.name" if name == "stage" else f"trials.{name}" for name in FIELDS)
"""Of :class:`TrialRow`, in a query that joins trials and stages."""
_ROWS = f"SELECT {COLUMNS} FROM trials JOIN stages ON stages.id = trials.stage_id"
_BY_IDS = Statement(f"{_ROWS} WHERE trials.id = ANY (%s::bigint[])")
_BY_NUMBERS = Statement(f"{_ROWS} WHERE trials.study_id = %s AND trials.number = ANY (%s::bigint[])")
_QUEUED = Statement(
    f"{_ROWS} WHERE trials.stage_id = %s AND trials.state = 'queued' ORDER BY trials.number LIMIT %s "
    "FOR NO KEY UPDATE OF trials SKIP LOCKED"
)
_CHANGE_TYPES = {
    "state": "text",
    "value": "double precision",
    "reason": "text",
    "n_attempts": "bigint",
    "n_lost": "bigint",
    "worker": "text",
    "started_at": "bigint",
    "ended_at": "bigint",
    "verdicts": "text",
    "step": "bigint",
    "id": "bigint",
}
_CHANGING = [name for name in _CHANGE_TYPES if name not in ("step", "id")]
# A step is written where it is another: what reports write of it meanwhile stands.
_CHANGE = Bulk(
    sqlite=f"UPDATE trials SET {', '.join(f'{name} = ?' for name in _CHANGING)}, step = coalesce(?, step) WHERE id = ?",
    postgres=f"UPDATE trials SET {', '.join(f'{name} = given.{name}' for name in _CHANGING)}, "
    "step = coalesce(given.step, trials.step) FROM {rows} WHERE trials.id = given.id",
    types=_CHANGE_TYPES,
)
_SET_STEP = Bulk(
    sqlite="UPDATE trials SET step = ? WHERE id = ?",
    postgres="UPDATE trials SET step = given.step FROM {rows} WHERE trials.id = given.id",
    types={"step": "bigint", "id": "bigint"},
)
_BEGIN_ANEW = Statement("UPDATE trials SET behind = 0 WHERE id = ANY (%s::bigint[])")
_ADD_TYPES = {
    "study_id": "bigint",
    "stage_id": "bigint",
    "number": "bigint",
    "state": "text",
    "params": "text",
    "value": "double precision",
    "reason": "text",
    "created_at": "bigint",
    "ended_at": "bigint",
    "behind": "bigint",
}
_ADDED = ", ".join(_ADD_TYPES)
_ADD = Bulk(
    sqlite=f"INSERT INTO trials ({_ADDED}, step, n_attempts, n_lost) "
    f"VALUES ({', '.join('?' * len(_ADD_TYPES))}, 0, 0, 0)",
    postgres=f"INSERT INTO trials ({_ADDED}, step, n_attempts, n_lost) SELECT {_ADDED}, 0, 0, 0 FROM {{rows}}",
    types=_ADD_TYPES,
)


def select_rows() -> Select[Any]:
    """Columns of :class:`TrialRow`, first to last; more may follow."""
    columns = [tables.stages.c.name if name == "stage" else _trials[name] for name in FIELDS]
    raw: list[Any] = [type_coerce(column, NullType()) for column in columns]
    raw = [column.label(name) for name, column in zip(FIELDS, raw, strict=True)]
    return select(*raw).join_from(tables.trials, tables.stages, _trials.stage_id == tables.stages.c.id)


def to_row(row: Row[*tuple[Any, ...]]) -> TrialRow:
    """The trial of a row that begins with the columns of :func:`select_rows`."""
    return of_values(*row[: len(FIELDS)])


def of_values(*values: Any) -> TrialRow:
    """The trial of what the database keeps in the columns of :data:`COLUMNS`."""
    trial_id, study_id, stage_id, stage, number, state, params, value, step, reason, *more = values
    n_attempts, n_lost, worker, created_at, started_at, ended_at, verdicts, behind = more
    return TrialRow(
        trial_id,
        study_id,
        stage_id,
        stage,
        number,
        TrialState(state),
        decode(params),
        value,
        step,
        reason,
        n_attempts,
        n_lost,
        worker,
        from_micros(created_at),
        None if started_at is None else from_micros(started_at),
        None if ended_at is None else from_micros(ended_at),
        None if verdicts is None else decode(verdicts),
        behind,
    )


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
        found.update({row[0]: of_values(*row) for row in _BY_IDS.rows(connection, list(some))})
    return found


def by_numbers(connection: Connection, study_id: int, numbers: Sequence[int]) -> dict[int, TrialRow]:
    """Trials of a study by number, those that are there."""
    found = {}
    for some in chunks(sorted(set(numbers))):
        rows = [of_values(*row) for row in _BY_NUMBERS.rows(connection, study_id, list(some))]
        found.update({row.number: row for row in rows})
    return found


def queued(connection: Connection, stage_id: int, limit: int) -> list[TrialRow]:
    """The next trials of a stage to give out; those that another transaction is about to change are left out."""
    return [of_values(*row) for row in _QUEUED.rows(connection, stage_id, limit)]


def cancel_open(connection: Connection, study_id: int, *, reason: str, now: datetime) -> None:
    """Cancel the queued and running trials of a study. The study is locked."""
    is_open = _trials.state.in_([TrialState.QUEUED, TrialState.RUNNING])
    query = select_rows().where(_trials.study_id == study_id, is_open).order_by(_trials.number)
    rows = [to_row(row) for row in connection.execute(query)]
    cancelled = [row._replace(state=TrialState.CANCELLED, reason=reason, ended_at=now) for row in rows]
    change(connection, zip(rows, cancelled, strict=True), now=now)


def add_queued(
    connection: Connection,
    stage: StageHead,
    first: int,
    params: Sequence[Params],
    *,
    now: datetime,
    behind: Sequence[int] | None = None,
) -> None:
    """Add queued trials; they take room of their stage. The study is locked."""
    rows = [_new(stage, number, p, TrialState.QUEUED, now) for number, p in enumerate(params, first)]
    for row, epochs in zip(rows, behind or (), strict=False):
        row["behind"] = epochs
    counted = Counted(stage.id, {TrialState.QUEUED: len(rows)}, n_created=len(rows))
    _insert(connection, rows, stages.to_count([counted]), studies.to_count_up(stage.study_id, len(rows)))


def add_ended(
    connection: Connection,
    stage: StageHead,
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
    entries: list[Entry] = [
        (
            "trial",
            {name: row[name] for name in ("number", "value", "step", "params", "reason")}
            | {"stage": stage.name, "state": row["state"].value},
        )
        for row in rows
    ]
    _insert(
        connection,
        rows,
        stages.to_count([Counted(stage.id, Counter(row["state"] for row in rows))]),
        studies.to_count_up(stage.study_id, len(rows)),
    )
    events.append(connection, stage.study_id, entries, now=now)


def _new(stage: StageHead, number: int, params: Params, state: TrialState, now: datetime) -> dict[str, Any]:
    return {
        "study_id": stage.study_id,
        "stage_id": stage.id,
        "number": number,
        "state": state,
        "params": params,
        "value": None,
        "step": 0,
        "reason": None,
        "created_at": now,
        "ended_at": None,
        "behind": 0,
    }


def _insert(connection: Connection, rows: list[dict[str, Any]], *more: Change) -> None:
    """Add rows, and make more changes with that."""
    added = [
        (
            row["study_id"],
            row["stage_id"],
            row["number"],
            row["state"].value,
            encode(row["params"]),
            row["value"],
            None if row["reason"] is None else check_text(row["reason"]),
            to_micros(row["created_at"]),
            None if row["ended_at"] is None else to_micros(row["ended_at"]),
            row["behind"],
        )
        for row in rows
    ]
    run_together(connection, (_ADD, added), *more)


def change(connection: Connection, changes: Iterable[tuple[TrialRow, TrialRow]], *, now: datetime) -> None:
    """Write new states over old ones: rows, counters of their stages, events. Their studies are locked."""
    run_together(connection, *to_change(changes, now=now))


def to_change(changes: Iterable[tuple[TrialRow, TrialRow]], *, now: datetime) -> list[Change]:
    """What :func:`change` does."""
    rows = []
    deltas: dict[int, Counter[TrialState]] = defaultdict(Counter)
    n_epochs: Counter[int] = Counter()
    entries: dict[int, list[Entry]] = defaultdict(list)
    for old, new in changes:
        rows.append(_changed(old, new))
        deltas[new.stage_id][old.state] -= 1
        deltas[new.stage_id][new.state] += 1
        n_epochs[new.stage_id] += new.n_epochs * new.state.is_finished - old.n_epochs * old.state.is_finished
        entries[new.study_id].append(new.entry())
    counted = (Counted(stage_id, deltas[stage_id], n_epochs=n_epochs[stage_id]) for stage_id in deltas)
    return [(_CHANGE, rows), stages.to_count(counted), *events.to_append(entries, now=now)]


def _changed(old: TrialRow, new: TrialRow) -> tuple[Any, ...]:
    """What :data:`_CHANGE` writes of a trial."""
    return (
        new.state.value,
        new.value,
        None if new.reason is None else check_text(new.reason),
        new.n_attempts,
        new.n_lost,
        None if new.worker is None else check_text(new.worker),
        None if new.started_at is None else to_micros(new.started_at),
        None if new.ended_at is None else to_micros(new.ended_at),
        None if new.verdicts is None else encode(new.verdicts),
        None if new.step == old.step else check_whole(new.step),
        new.id,
    )


def steps_to_set(steps: dict[int, int]) -> Change:
    """Write the last step that each trial (by id) reported."""
    return _SET_STEP, [(check_whole(step), trial_id) for trial_id, step in sorted(steps.items())]


def begin_anew(connection: Connection, ids: Sequence[int]) -> None:
    """Note that trials (by id) train from their beginning, though they could have gone on from another."""
    if ids:
        _BEGIN_ANEW.run(connection, sorted(ids))
