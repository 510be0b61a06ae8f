"""Stages, and the counters that spare counting trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from hpsearch.errors import Conflict
from hpsearch.study import NewStage, Stage, StageState, Study
from hpsearch.trial import TrialState
from hpsearch_storage import studies, tables
from hpsearch_storage.codec import (
    MAX_WHOLE,
    check_text,
    check_whole,
    decode,
    decode_space,
    decode_stage,
    encode_space,
    encode_stage,
    from_micros,
)
from hpsearch_storage.events import Entry
from hpsearch_storage.prepared import Bulk, Change, Rows, Statement, run_together

_stages = tables.stages.c


def counter(state: TrialState) -> str:
    """The column that counts trials of a state."""
    return f"n_{state.value}"


class StageHead(NamedTuple):
    """The part of a stage's row that every change of its trials looks at."""

    id: int
    study_id: int
    name: str
    state: str
    n_trials: int
    n_created: int


FIELDS = (
    *("id", "study_id", "index", "state", "spec", "space", "n_trials", "n_created", "parent", "difference"),
    *("opened_at", "ended_at", "n_epochs", "origin", "watched"),
    *map(counter, TrialState),
)
"""What :func:`_of_values` takes."""
_COLUMNS = ", ".join(f'stages."{name}"' for name in FIELDS)
_PAIR = f"SELECT {_COLUMNS}, {', '.join(f'studies.{name}' for name in studies.FIELDS)}"
_OF_STUDY = Statement(f'SELECT {_COLUMNS} FROM stages WHERE study_id = %s ORDER BY "index"')
_ONE = Statement(f"SELECT {_COLUMNS} FROM stages WHERE id = %s")
_RUNNING = Statement(
    f"""SELECT {_COLUMNS} FROM stages WHERE study_id = %s AND state = 'running' AND "index" < %s
    ORDER BY "index" LIMIT 1"""
)
_HEAD = Statement(f"SELECT {', '.join(StageHead._fields)} FROM stages WHERE id = %s")
_COUNTERS = ("n_created", "n_epochs", *map(counter, TrialState))
_COUNT = Bulk(
    sqlite=f"UPDATE stages SET {', '.join(f'{name} = {name} + ?' for name in _COUNTERS)} WHERE id = ?",
    postgres=f"""UPDATE stages SET {", ".join(f"{name} = stages.{name} + given.{name}" for name in _COUNTERS)}
        FROM {{rows}} WHERE stages.id = given.id""",
    types=dict.fromkeys((*_COUNTERS, "id"), "bigint"),
)
Variants = dict[tuple[bool, bool], Statement]
"""Whether a study is named, and whether kinds are given → the statement for that."""


def _variants(text: str) -> Variants:
    """A statement whose ``{chosen}`` stands for running studies: the one that is named, else all but external ones."""
    return {
        (named, kinds): Statement(
            text.format(
                chosen="studies.state = 'running'"
                + (" AND studies.name = %s" if named else " AND studies.kind <> 'external'")
                + (" AND studies.kind = ANY (%s::text[])" if kinds else "")
            )
        )
        for named in (False, True)
        for kinds in (False, True)
    }


_N_RUNNING = "(SELECT coalesce(sum(other.n_running), 0) FROM stages AS other WHERE other.study_id = studies.id)"
_WITH_QUEUED = _variants(
    f"""SELECT stages.id, stages.study_id, stages.n_queued, {_N_RUNNING}
    FROM stages JOIN studies ON studies.id = stages.study_id WHERE {{chosen}} AND stages.n_queued > 0
    ORDER BY studies.id, stages."index\""""
)
_WITH_ROOM = _variants(
    f"""{_PAIR} FROM stages JOIN studies ON studies.id = stages.study_id
    WHERE {{chosen}} AND stages.state = 'running' AND stages.n_created < stages.n_trials
    ORDER BY {_N_RUNNING}, studies.id, stages."index\""""
)
_N_WAITING = _variants(
    """SELECT coalesce(sum(stages.n_queued), 0), coalesce(sum(stages.n_trials - stages.n_created + stages.n_queued), 0)
    FROM stages JOIN studies ON studies.id = stages.study_id WHERE {chosen} AND stages.state = 'running'"""
)
_NO_RESULT = " AND ".join(f"{counter(s)} = 0" for s in TrialState if s.is_finished and s != TrialState.FAILED)
_TO_SETTLE = Statement(
    f"""{_PAIR} FROM stages JOIN studies ON studies.id = stages.study_id
    WHERE studies.state IN ('running', 'paused') AND stages.state = 'running' AND stages.n_trials > 0
    AND (stages.n_created >= stages.n_trials AND stages.n_queued + stages.n_running = 0
        OR stages.n_failed >= %s AND {_NO_RESULT} OR stages.watched = 1)
    ORDER BY stages.study_id, stages."index\""""
)


_N_BY_STEP = Statement(
    """SELECT trials.step, count(*) FROM trials JOIN stages ON stages.id = trials.stage_id
    WHERE stages.study_id = %s AND stages.name = %s AND trials.state = %s GROUP BY trials.step"""
)


def n_by_step(connection: Connection, study_id: int, stage: str, state: TrialState) -> dict[int, int]:
    """Step → how many trials of a state stand there."""
    return dict(_N_BY_STEP.rows(connection, study_id, check_text(stage), state.value))


def of_study(connection: Connection, study_id: int) -> list[Stage]:
    """Stages by index."""
    return [_of_values(*row) for row in _OF_STUDY.rows(connection, check_whole(study_id))]


def one(connection: Connection, stage_id: int) -> Stage | None:
    """One stage by id."""
    rows = _ONE.rows(connection, check_whole(stage_id))
    return _of_values(*rows[0]) if rows else None


def head(connection: Connection, stage_id: int) -> StageHead | None:
    """What is read of a stage to give it trials."""
    rows = _HEAD.rows(connection, check_whole(stage_id))
    return StageHead._make(rows[0]) if rows else None


def number(connection: Connection, study_id: int) -> int:
    """How many stages a study has, all of them opened one after the other."""
    query = select(func.coalesce(func.max(_stages.index), -1) + 1).where(_stages.study_id == study_id)
    return int(connection.execute(query).scalar_one())


def running(connection: Connection, study_id: int, *, before: int | None = None) -> Stage | None:
    """The running stage of a study (of those below an index)."""
    rows = _RUNNING.rows(connection, study_id, MAX_WHOLE if before is None else before)
    return _of_values(*rows[0]) if rows else None


def open_(connection: Connection, study_id: int, index: int, stage: NewStage, *, now: datetime) -> Entry:
    """Add a running stage. The study is locked.

    Raises:
        Conflict: the study has a stage of this name.
    """
    name = stage.spec.name
    taken = select(_stages.id).where(_stages.study_id == study_id, _stages.name == name)
    if connection.execute(taken).first() is not None:
        raise Conflict(f"the study has a stage {name!r} already: give the new one another name")
    connection.execute(
        insert(tables.stages).values(
            study_id=study_id,
            index=index,
            name=name,
            spec=encode_stage(stage.spec),
            space=encode_space(stage.space),
            n_trials=stage.n_trials,
            n_created=0,
            parent=stage.parent,
            difference=stage.difference,
            origin=_encode_origin(stage),
            watched=int(stage.watched),
            n_epochs=0,
            state=StageState.RUNNING,
            opened_at=now,
            **{counter(state): 0 for state in TrialState},
        )
    )
    return _entry(name, index, StageState.RUNNING, stage.n_trials)


def end(connection: Connection, stage: Stage, state: StageState, *, now: datetime) -> Entry:
    """End a running stage."""
    connection.execute(update(tables.stages).where(_stages.id == stage.id).values(state=state, ended_at=now))
    return _entry(stage.name, stage.index, state, stage.n_trials)


def _entry(name: str, index: int, state: StageState, n_trials: int) -> Entry:
    return "stage", {"stage": name, "index": index, "state": state.value, "n_trials": n_trials}


def _encode_origin(stage: NewStage) -> dict[str, Any]:
    exclude = None if stage.exclude is None else encode_space(stage.exclude)
    return {"plan": stage.plan, "extension": stage.extension, "exclude": exclude, "reason": stage.reason}


class Counted(NamedTuple):
    """By how much the counters of a stage change."""

    stage_id: int
    deltas: Mapping[TrialState, int]
    n_created: int = 0
    n_epochs: int = 0


def count(connection: Connection, counted: Counted) -> None:
    """Change a stage's counters. The study is locked."""
    run_together(connection, to_count([counted]))


def to_count(counted: Iterable[Counted]) -> Change:
    """What :func:`count` does, for several stages."""
    return _COUNT, [
        (each.n_created, each.n_epochs, *(each.deltas.get(state, 0) for state in TrialState), each.stage_id)
        for each in sorted(counted, key=lambda each: each.stage_id)
    ]


def with_room(connection: Connection, study: str | None, kinds: Iterable[str] | None) -> list[tuple[Study, Stage]]:
    """Running stages of running studies with trials to create, in the order of leasing."""
    return _pairs(_chosen(connection, _WITH_ROOM, study, kinds))


def n_waiting(connection: Connection, study: str | None, kinds: Iterable[str] | None) -> tuple[int, int]:
    """How many trials are queued, and how many wait to be leased, those not created yet included."""
    queued, waiting = _chosen(connection, _N_WAITING, study, kinds)[0]
    return int(queued), int(waiting)


def _chosen(connection: Connection, variants: Variants, study: str | None, kinds: Iterable[str] | None) -> Rows:
    """Rows of the running studies that a worker may be given trials of."""
    values: list[Any] = [] if study is None else [check_text(study)]
    if kinds is not None:
        values.append(sorted({check_text(kind) for kind in kinds}))
    return variants[study is not None, kinds is not None].rows(connection, *values)


def to_settle(connection: Connection, *, max_failures: int) -> list[tuple[Study, Stage]]:
    """Running stages of running or paused studies that are done, watched, or hopeless; see Store."""
    return _pairs(_TO_SETTLE.rows(connection, check_whole(max_failures)))


def _pairs(rows: Rows) -> list[tuple[Study, Stage]]:
    """Stages, each with its study as it was at the same moment."""
    n = len(FIELDS)
    return [(studies.of_values(*row[n:]), _of_values(*row[:n])) for row in rows]


def with_queued(connection: Connection, study: str | None, kinds: Iterable[str] | None) -> Rows:
    """Stages with queued trials by study and index: id, study id, how many are queued, and running in the study."""
    return _chosen(connection, _WITH_QUEUED, study, kinds)


def _of_values(*values: Any) -> Stage:
    """The stage of what the database keeps of it."""
    row = dict(zip(FIELDS, values, strict=True))
    origin = decode(row["origin"]) if row["origin"] else {"plan": row["index"], "extension": 0, "exclude": None}
    return Stage(
        id=row["id"],
        study_id=row["study_id"],
        index=row["index"],
        state=StageState(row["state"]),
        spec=decode_stage(row["spec"]),
        space=decode_space(row["space"]),
        n_trials=row["n_trials"],
        n_created=row["n_created"],
        parent=row["parent"],
        difference=None if row["difference"] is None else decode(row["difference"]),
        counts={state: row[counter(state)] for state in TrialState},
        opened_at=from_micros(row["opened_at"]),
        ended_at=None if row["ended_at"] is None else from_micros(row["ended_at"]),
        n_epochs=row["n_epochs"],
        plan=origin["plan"],
        extension=origin["extension"],
        exclude=None if origin["exclude"] is None else decode_space(origin["exclude"]),
        watched=bool(row["watched"]),
        reason=origin.get("reason"),
    )
