"""Changes of trials by Optuna: our row, its metrics and its document are written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select, update

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch.spec import Metric
from hpsearch.study import StudyState
from hpsearch.trial import AttemptState, StepMetrics, TrialState
from hpsearch.verdicts import judge
from hpsearch_storage import events, metrics, results, stages, tables, trials
from hpsearch_storage.codec import chunks, decode, decode_study, encode, from_micros, to_micros
from hpsearch_storage.optuna_documents import whole
from hpsearch_storage.optuna_space import Interned, grow, intern, internal_params, parse, text_of
from hpsearch_storage.prepared import Statement
from hpsearch_storage.stages import Counted
from hpsearch_storage.trials import TrialRow

if TYPE_CHECKING:
    from hpsearch.integrations.optuna.backend import Created, Outcome, Patch

_STUDIES = Statement(
    """SELECT id, kind, metric, spec FROM studies
    WHERE id IN (SELECT study_id FROM trials WHERE id = ANY (%s::bigint[])) ORDER BY id FOR NO KEY UPDATE"""
)
_SIDES = Statement("SELECT trial_id, document, end_key FROM optuna_trials WHERE trial_id = ANY (%s::bigint[])")
_SET_SIDE = Statement("UPDATE optuna_trials SET document = %s, ended = %s, end_key = %s WHERE trial_id = %s")
_ADD_SIDE = Statement(
    """INSERT INTO optuna_trials (document, ended, end_key, trial_id, create_key) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (create_key) DO NOTHING"""
)
_SET_TRIAL = Statement(
    """UPDATE trials SET state = %s, params = %s, value = %s, step = %s, reason = %s, started_at = %s, ended_at = %s,
    verdicts = %s WHERE id = %s"""
)
_TAKE_NUMBER = Statement(
    """UPDATE studies SET next_number = next_number + 1 WHERE id = %s
    RETURNING id, name, kind, state, metric, spec, next_number"""
)
_STAGE = Statement("""SELECT id, name FROM stages WHERE study_id = %s AND state = 'running' ORDER BY "index" LIMIT 1""")
_ADD_TRIAL = Statement(
    """INSERT INTO trials (study_id, stage_id, number, state, params, created_at, started_at, ended_at,
    step, n_attempts, n_lost) VALUES (%s, %s, %s, %s, '{}', %s, %s, %s, 0, 0, 0) RETURNING id"""
)
_STATES = {
    "WAITING": TrialState.QUEUED,
    "RUNNING": TrialState.RUNNING,
    "COMPLETE": TrialState.COMPLETED,
    "PRUNED": TrialState.PRUNED,
    "FAIL": TrialState.FAILED,
}


@dataclass(slots=True)
class Writing:
    """A trial being written: what it was, what it becomes, and its document."""

    old: TrialRow
    new: TrialRow
    document: dict[str, Any]
    is_noted: bool
    """Whether it has a row of Optuna's own."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A trial with its study's kind and metric, and what Optuna noted of it."""

    row: TrialRow
    kind: str
    metric: Metric
    document: str | None
    end_key: str | None


def apply(connection: Connection, patches: Sequence[Patch], interned: Interned, *, now: datetime) -> list[Outcome]:
    """Change trials; each patch is of another one. Their studies are locked, by their ids."""
    ids = [patch["trial"] for patch in patches]
    if len(set(ids)) < len(ids):
        raise InvalidInput("two patches are of one trial: put them together")
    kept = _read(connection, ids)
    outcomes = {}
    for patch in sorted(patches, key=lambda patch: patch["trial"]):
        found = kept.get(patch["trial"])
        outcome = _why_not(found, patch)
        if outcome is None:
            assert found is not None
            outcome = _apply(connection, found, patch, interned, now=now)
        outcomes[patch["trial"]] = outcome
    return [outcomes[trial_id] for trial_id in ids]


def _read(connection: Connection, ids: Sequence[int]) -> dict[int, Kept]:
    found = {}
    for some in chunks(sorted(ids)):
        locked = {row[0]: row for row in _STUDIES.rows(connection, list(some))}
        # Statements of their own: what others wrote before the locks were given is seen now.
        rows = trials.by_ids(connection, some)
        sides = {row[0]: row for row in _SIDES.rows(connection, list(some))}
        for trial_id, row in rows.items():
            if row.study_id in locked:
                _, kind, _, spec = locked[row.study_id]
                _, document, end_key = sides.get(trial_id, (None, None, None))
                found[trial_id] = Kept(row, kind, decode_study(spec).metric, document, end_key)
    return found


def _outcome(what: str, kept: Kept | None, *, at: datetime | None = None, event: int | None = None) -> Outcome:
    moment = None if at is None else to_micros(at)
    number = None if kept is None else kept.row.number
    return {"outcome": what, "at": moment, "unfit": {}, "number": number, "event": event}


def _why_not(kept: Kept | None, patch: Patch) -> Outcome | None:
    if kept is None:
        return _outcome("missing", kept)
    if kept.row.state.is_finished:
        if patch.get("key") and kept.end_key == patch.get("key"):
            return _outcome("applied", kept, at=kept.row.ended_at)  # its answer was lost, and it came again
        return _outcome("finished", kept)
    return _outcome("refused", kept) if kept.kind != "external" else None


def _apply(connection: Connection, kept: Kept, patch: Patch, interned: Interned, *, now: datetime) -> Outcome:
    writing = _writing(connection, kept, interned)
    unfit = _set_params(connection, writing, patch.get("params", ()), interned)
    for name in ("user", "system"):
        writing.document[name] |= patch.get(name, {})
    if (values := patch.get("values")) is not None:
        writing.document["values"] = values
    steps = patch.get("steps", ())
    _keep_steps(connection, writing, steps, kept.metric.name)
    before = kept.row.state
    state = _STATES[patch["state"]] if "state" in patch else before
    if state.is_finished:
        _end(connection, writing, patch, kept.metric, now=now)
    elif state is not before:
        started_at = now if state is TrialState.RUNNING else writing.new.started_at
        writing.new = writing.new._replace(state=state, started_at=started_at)
    event = _write(connection, writing, patch, now=now)
    what = "unchanged" if patch.get("state") == "RUNNING" and before is TrialState.RUNNING else "applied"
    return {**_outcome(what, kept, at=now if "state" in patch else None, event=event), "unfit": unfit}


def _writing(connection: Connection, kept: Kept, interned: Interned) -> Writing:
    row = kept.row
    if kept.document is not None:
        return Writing(row, row, decode(kept.document), is_noted=True)
    document: dict[str, Any] = {"params": [], "user": {}, "system": {}, "reported": row.started_at is not None}
    stage = stages.one(connection, row.stage_id)
    if stage is not None and row.params:
        params = internal_params(stage.space, row.params)
        texts = {name: text_of(stage.space[name]) for name, _ in params}
        ids, _, unfit = intern(connection, row.study_id, list(texts.items()), interned)
        for name, value in params:
            document["params"] += [] if name in unfit else [name, value, ids[name, texts[name]]]
    return Writing(row, row, document, is_noted=False)


def _set_params(
    connection: Connection, writing: Writing, params: Sequence[Sequence[Any]], interned: Interned
) -> dict[str, str]:
    """Set params that fit their study; the names of the others, and why."""
    if not params:
        return {}
    ids, new, unfit = intern(connection, writing.old.study_id, [(name, text) for name, _, text in params], interned)
    before = writing.document["params"]
    kept = {before[i]: before[i : i + 3] for i in range(0, len(before), 3)}
    shown = dict(writing.new.params)
    for name, value, text in params:
        if name in unfit:
            continue
        try:
            shown[name] = parse(text).to_external_repr(float(value))
        except (ValueError, IndexError, OverflowError):
            raise InvalidInput(f"{value} is no value of the parameter {name!r}") from None
        kept[name] = [name, value, ids[name, text]]
    writing.document["params"] = list(chain.from_iterable(kept.values()))
    writing.new = writing.new._replace(params=shown)
    if new:
        grow(connection, writing.old.stage_id, new)
    return unfit


def _keep_steps(connection: Connection, writing: Writing, steps: Sequence[Sequence[Any]], metric: str) -> None:
    if steps:
        row = writing.new
        metrics.put(connection, {(row.id, step): {metric: float(value)} for step, value in steps})
        writing.new = row._replace(step=max(row.step, *(step for step, _ in steps)))


def _end(connection: Connection, writing: Writing, patch: Patch, metric: Metric, *, now: datetime) -> None:
    """End a trial: its row with value and verdicts, its document whole."""
    row = writing.new
    if writing.document.get("reported"):
        steps = metrics.of_ids(connection, {row.id: row.number})[row.id]
    else:  # all that it ever reported is in the patch
        last = {step: {metric.name: float(value)} for step, value in patch.get("steps", ())}
        steps = [StepMetrics(row.number, step, last[step]) for step in sorted(last)]
    writing.new = _ended(row, patch["state"], writing.document.get("values"), steps, metric, ended_at=now)
    text = _whole(writing.new, writing.document, steps, state=patch["state"], metric=metric.name, ended=to_micros(now))
    writing.document = {"whole": text}


def _whole(
    row: TrialRow, document: dict[str, Any], steps: Sequence[StepMetrics], *, state: str, metric: str, ended: int | None
) -> str:
    reported = [(s.step, s.values[metric]) for s in steps if metric in s.values]
    return whole(row, document, reported, state=state, ended=ended)


def _ended(
    row: TrialRow,
    name: str,
    values: Sequence[Any] | None,
    steps: Sequence[StepMetrics],
    metric: Metric,
    *,
    ended_at: datetime,
) -> TrialRow:
    """The row of a trial that ended, with its verdicts."""
    value = float(values[0]) if values else None
    state, value, reason = results.settle(_STATES[name], value, None, metric=metric.name)
    verdicts = judge(steps, state=state, metric=metric.name, direction=metric.direction)
    noted = [asdict(verdict) for verdict in verdicts] or None
    return row._replace(state=state, value=value, reason=reason, ended_at=ended_at, verdicts=noted)


def _write(connection: Connection, writing: Writing, patch: Patch, *, now: datetime) -> int | None:
    """Write a trial; the number of the event that says so, if its state or params changed."""
    old, new = writing.old, writing.new
    text = writing.document.get("whole")
    if text is None and patch.get("steps"):
        writing.document["reported"] = True
    ended, end_key = text is not None, None if text is None else patch.get("key")
    side = (encode(writing.document) if text is None else text, int(ended), end_key, old.id)
    if writing.is_noted:
        _SET_SIDE.run(connection, *side)
    else:
        _ADD_SIDE.run(connection, *side, None)
    if new is not old:
        _set_trial(connection, new)
    if new.state is old.state and new.params == old.params:
        return None
    if new.state is not old.state:
        _let_go(connection, new, now=now)
        deltas = {old.state: -1, new.state: 1}
        stages.count(connection, Counted(new.stage_id, deltas, n_epochs=new.n_epochs * new.state.is_finished))
    events.append(connection, new.study_id, [new.entry()], now=now)
    return events.last(connection, new.study_id)


def _set_trial(connection: Connection, row: TrialRow) -> None:
    times = (None if at is None else to_micros(at) for at in (row.started_at, row.ended_at))
    verdicts = None if row.verdicts is None else encode(row.verdicts)
    told = (row.state.value, encode(row.params), row.value, row.step, row.reason, *times, verdicts)
    _SET_TRIAL.run(connection, *told, row.id)


def _let_go(connection: Connection, row: TrialRow, *, now: datetime) -> None:
    """End the attempt of a worker of ours at a trial that Optuna takes over."""
    if row.n_attempts:
        columns = tables.attempts.c
        running = update(tables.attempts).where(columns.trial_id == row.id, columns.state == AttemptState.RUNNING)
        reason = "Optuna took the trial over"
        connection.execute(running.values(state=AttemptState.CANCELLED, reason=reason, ended_at=now))


# -- new trials -------------------------------------------------------------------------------------------------


class Repeated(Exception):
    """A trial was created by the same request before."""


def create(
    connection: Connection,
    study_id: int,
    template: Patch | None,
    *,
    times: Sequence[int | None],
    key: str,
    interned: Interned,
    now: datetime,
) -> Created:
    """Add a trial, running and empty or of a template. Raises NotFound, Conflict, InvalidInput, Repeated."""
    number, stage_id, stage, metric = _take_number(connection, study_id)
    given: Patch = template or {"state": "RUNNING"}
    state = _STATES[given["state"]]
    started, ended = (None if at is None else from_micros(at) for at in times)
    started = now if template is None else started
    ended = (ended or now) if state.is_finished else None
    row = TrialRow(
        0, study_id, stage_id, stage, number, state, {}, None, 0, None, 0, 0, None, now, started, ended, None, 0
    )
    row = _insert(connection, row)
    document: dict[str, Any] = {"params": [], "user": given.get("user", {}), "system": given.get("system", {})}
    writing = Writing(row, row, document, is_noted=False)
    if template is not None:
        _fill(connection, writing, given, metric.name, interned)
    text = None
    if state.is_finished:
        steps = metrics.of_ids(connection, {row.id: row.number})[row.id]
        values = document.get("values")
        writing.new = _ended(writing.new, given["state"], values, steps, metric, ended_at=row.ended_at or now)
        text = _whole(writing.new, document, steps, state=given["state"], metric=metric.name, ended=times[1])
    side = (encode(document) if text is None else text, int(text is not None), None, row.id, key)
    if _ADD_SIDE.run(connection, *side) == 0:
        raise Repeated
    new = writing.new
    if new is not row:
        _set_trial(connection, new)
    stages.count(connection, Counted(new.stage_id, {new.state: 1}, n_epochs=new.n_epochs * new.state.is_finished))
    event = None
    if new.state is not TrialState.QUEUED:
        events.append(connection, study_id, [new.entry()], now=now)
        event = events.last(connection, study_id)
    return {"trial": row.id, "number": row.number, "at": to_micros(now), "event": event}


def _take_number(connection: Connection, study_id: int) -> tuple[int, int, str, Metric]:
    """The next number of a study, its running stage's id and name, and its metric. The study is locked by it."""
    rows = _TAKE_NUMBER.rows(connection, study_id)
    if not rows:
        raise NotFound("study", study_id)
    _, name, kind, state, _, spec, next_number = rows[0]
    if kind != "external":
        raise Conflict(f"the study {name!r} is trained by workers of the service: Optuna may read it only")
    stages = [] if StudyState(state).is_finished else _STAGE.rows(connection, study_id)
    if not stages:
        raise Conflict(f"the study {name!r} is {state}: it takes no more trials")
    return next_number - 1, *stages[0], decode_study(spec).metric


def _insert(connection: Connection, row: TrialRow) -> TrialRow:
    times = (None if at is None else to_micros(at) for at in (row.created_at, row.started_at, row.ended_at))
    given = (row.study_id, row.stage_id, row.number, row.state.value, *times)
    return row._replace(id=_ADD_TRIAL.rows(connection, *given)[0][0])


def _fill(connection: Connection, writing: Writing, given: Patch, metric: str, interned: Interned) -> None:
    """Write what a template holds. Raises InvalidInput for params that do not fit the study."""
    unfit = _set_params(connection, writing, given.get("params", ()), interned)
    if unfit:
        raise InvalidInput("; ".join(unfit.values()))
    if (values := given.get("values")) is not None:
        writing.document["values"] = values
    steps = given.get("steps", ())
    _keep_steps(connection, writing, steps, metric)
    if steps:
        writing.document["reported"] = True


def created_before(connection: Connection, key: str) -> Created:
    """What the same request created before."""
    columns = tables.trials.c
    query = select(columns.id, columns.number, columns.created_at).join(tables.optuna_trials)
    row = connection.execute(query.where(tables.optuna_trials.c.create_key == key)).one()
    return {"trial": row.id, "number": row.number, "at": to_micros(row.created_at), "event": None}
