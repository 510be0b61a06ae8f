"""What workers say of the trials that they hold: reports, results, and trials given back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from hpsearch.at_once import takes_time
from hpsearch.errors import InvalidInput
from hpsearch.trial import (
    RESULT_STATES,
    Action,
    AttemptState,
    Climb,
    Climbs,
    Decision,
    HeldTrial,
    Judge,
    Outcome,
    Place,
    Report,
    Result,
    RungPlace,
    StepMetrics,
    TrialState,
)
from hpsearch_storage import attempts, metrics, rungs, studies, trials
from hpsearch_storage.attempts import AttemptRow, Reporting
from hpsearch_storage.prepared import Change, run_together
from hpsearch_storage.trials import TrialRow

_LATE = "; a late result came"
SHORT_STEPS = 1000
"""Curves with so many steps in all are judged in a few milliseconds."""


def report(
    connection: Connection, reports: Sequence[Report], climbs: Sequence[Climbs], *, now: datetime, ttl: timedelta
) -> list[Decision]:
    """Keep metrics and what trials had at rungs, renew leases."""
    rows = attempts.reporting(connection, {r.token for r in reports})
    held = {token: row for token, row in rows.items() if row.state == AttemptState.RUNNING}
    told = Told(connection, held, [r for r in reports if r.token in held and r.step is not None])
    run_together(
        connection,
        *told.to_keep(now + ttl),
        *(to_record(connection, each, held) for each in sorted(climbs, key=lambda each: each.stage_id)),
    )
    return [
        continued(r.token, held[r.token])
        if r.token in held
        else Decision(r.token, Action.ABANDON, why_not(rows.get(r.token)))
        for r in reports
    ]


def continued(token: str, row: Reporting) -> Decision:
    """The decision for a report of a lease that holds."""
    place = Place(row.study_id, row.study, row.stage, row.trial, row.last_step)
    return Decision(token, Action.CONTINUE, place=place)


def climbed(climbs: Climbs, held: Mapping[str, Reporting]) -> dict[RungPlace, Climb]:
    """Place → the first that comes to it, of leases that hold, if it took the truth for granted."""
    found: dict[RungPlace, Climb] = {}
    for climb in climbs.climbs:
        row = held.get(climb.token)
        if row is not None and climb.before in (None, row.last_step):
            found.setdefault(climb.place, climb)
    return found


def to_record(connection: Connection, climbs: Climbs, held: Mapping[str, Reporting]) -> Change:
    """Keep what the reports of leases that hold say of the rungs of one stage."""
    values = {place: climb.value for place, climb in climbed(climbs, held).items()}
    return rungs.to_record(connection, climbs.stage_id, values)


class Told:
    """What is reported of leases that hold.

    Attributes:
        steps: trial's id and step → metrics.
        last: token → the last step of the attempt.
        anew: tokens of trials that train from their beginning, though they could have gone on.
    """

    def __init__(
        self, connection: Connection, held: Mapping[str, Reporting | AttemptRow], reports: Iterable[Report]
    ) -> None:
        """Take reports in order; what is given up by them is dropped now."""
        self._held = held
        self.steps: dict[tuple[int, int], Mapping[str, float]] = {}
        self.last: dict[str, int | None] = {token: row.step for token, row in held.items()}
        begun: dict[str, int] = {}
        for item in reports:
            row, step = held[item.token], item.step or 0
            before = self.last[item.token]
            if before is None:
                begun[item.token] = step
            self.last[item.token] = step if before is None else max(before, step)
            self.steps[row.trial_id, step] = item.metrics
        # What an earlier attempt reported behind the first step of this one belongs to a curve that was given up.
        metrics.drop_after(connection, {held[t].trial_id: step for t, step in begun.items() if held[t].number > 1})
        self.anew = {token for token, step in begun.items() if 0 < step <= held[token].behind}
        trials.begin_anew(connection, [held[token].trial_id for token in self.anew])

    def to_keep(self, expires_at: datetime) -> list[Change]:
        """Keep metrics, the last step of each trial and attempt, and renew the leases."""
        held = self._held
        trial_of = {row.id: row.trial_id for row in held.values()}
        return [
            metrics.to_put(self.steps),
            trials.steps_to_set({trial_of[attempt]: step for attempt, step in self.moved().items()}),
            attempts.to_renew({held[token].id: step for token, step in self.last.items()}, expires_at=expires_at),
        ]

    def moved(self) -> dict[int, int]:
        """Attempt's id → its last step, where that is another now."""
        held = self._held
        last = {token: step for token, step in self.last.items() if step is not None}
        return {held[token].id: step for token, step in last.items() if step != held[token].step}


def finish(
    connection: Connection, results: Sequence[Result], reports: Sequence[Report], judge: Judge, *, now: datetime
) -> list[Outcome]:
    """End trials, with what they report at last."""
    locked, rows = _locked(connection, [r.token for r in results])
    if sum(row.trial.step for row in rows.values()) + len(reports) > SHORT_STEPS:
        takes_time()
    held = {token: row for token, row in rows.items() if row.state == AttemptState.RUNNING}
    told = Told(connection, held, [r for r in reports if r.token in held and r.step is not None])
    steps = _curves(connection, held, told.steps)
    accepted: dict[str, Result] = {}
    notes: dict[int, str] = {}
    outcomes = []
    for result in results:
        row = rows.get(result.token)
        if row is not None and row.state == AttemptState.RUNNING:
            if result.token not in accepted:
                accepted[result.token] = judge(result, _held(row, locked[row.study_id].name, steps[row.trial_id]))
            outcomes.append(Outcome(result.token, accepted=True))
        elif row is not None and row.state == AttemptState.FINISHED:
            outcomes.append(Outcome(result.token, accepted=True))
        else:
            outcomes.append(Outcome(result.token, accepted=False, reason=why_not(row)))
            if row is not None and _LATE not in (row.reason or ""):
                notes[row.id] = _late(row, result, now)
    attempts.note(connection, notes)
    changes = []
    for token, result in accepted.items():
        row = rows[token]
        trial = _moved(row.trial, told.last[token], is_anew=token in told.anew)
        changes.append((row.trial, _settled(trial, result, locked[row.study_id].metric, steps[row.trial_id], now)))
    ending = attempts.to_end([rows[t].id for t in accepted], AttemptState.FINISHED, steps=told.moved(), now=now)
    run_together(connection, metrics.to_put(told.steps), ending, *trials.to_change(changes, now=now))
    return outcomes


def _curves(
    connection: Connection, held: Mapping[str, AttemptRow], told: Mapping[tuple[int, int], Mapping[str, float]]
) -> dict[int, list[StepMetrics]]:
    """Trial's id → what was reported, before and now, by step."""
    number_of = {row.trial_id: row.trial.number for row in held.values()}
    found = metrics.of_ids(connection, number_of)
    if told:
        known = {(trial_id, each.step): each for trial_id, steps in found.items() for each in steps}
        known |= {(at, step): StepMetrics(number_of[at], step, dict(values)) for (at, step), values in told.items()}
        found = {trial_id: [] for trial_id in number_of}
        for (trial_id, _), each in sorted(known.items(), key=lambda item: item[0]):
            found[trial_id].append(each)
    return found


def _moved(trial: TrialRow, last: int | None, *, is_anew: bool) -> TrialRow:
    """A trial at the last step of its attempt."""
    behind = 0 if is_anew else trial.behind
    return trial._replace(step=trial.step if last is None else last, behind=behind)


def _held(row: AttemptRow, study: str, steps: Sequence[StepMetrics]) -> HeldTrial:
    return HeldTrial(row.study_id, study, row.trial.stage, row.trial.number, tuple(steps))


def _settled(trial: TrialRow, result: Result, metric: str, steps: Sequence[StepMetrics], now: datetime) -> TrialRow:
    """The trial as its result leaves it; where that says no value it is what was reported last."""
    value = result.value
    if value is None:
        value = next((each.values.get(metric) for each in reversed(steps) if each.step == trial.step), None)
    state, value, reason = settle(result.state, value, result.reason, metric=metric)
    verdicts = list(result.verdicts) or None
    return trial._replace(state=state, value=value, reason=reason, ended_at=now, verdicts=verdicts)


def check_results(results: Iterable[Result]) -> None:
    """Raise InvalidInput for a state that a worker may not give a trial."""
    for result in results:
        if result.state not in RESULT_STATES:
            raise InvalidInput(
                f"a trial cannot be finished as {result.state.value!r}: give one of {', '.join(RESULT_STATES)}"
            )


_WITH_VALUE = (TrialState.COMPLETED, TrialState.PRUNED)


def settle(
    state: TrialState, value: float | None, reason: str | None, *, metric: str
) -> tuple[TrialState, float | None, str | None]:
    """State, value and reason of a trial that ended: only completed and pruned ones have a value, a finite one."""
    if state not in _WITH_VALUE:
        return state, None, reason
    if value is not None and math.isfinite(value):
        return state, float(value) + 0.0, reason  # + 0.0: SQLite stores no -0.0
    if state == TrialState.PRUNED:
        return state, None, reason
    if value is None:
        return TrialState.FAILED, None, f"it completed without a value: {metric!r} is not among its last metrics"
    return TrialState.DIVERGED, None, f"its value of {metric!r} is {value}"


def release(connection: Connection, tokens: Sequence[str], *, now: datetime) -> list[Outcome]:
    """Queue trials again; their attempts do not count against them."""
    _, rows = _locked(connection, tokens)
    given = {token: row for token, row in rows.items() if row.state == AttemptState.RUNNING}
    ending = attempts.to_end([row.id for row in given.values()], AttemptState.RELEASED, now=now)
    changes = []
    for row in given.values():
        reason = f"attempt {row.number} was given back by {row.worker}"
        changes.append((row.trial, row.trial._replace(state=TrialState.QUEUED, reason=reason)))
    run_together(connection, ending, *trials.to_change(changes, now=now))
    return [_released(token, rows.get(token)) for token in tokens]


def _released(token: str, row: AttemptRow | None) -> Outcome:
    if row is not None and row.state in (AttemptState.RUNNING, AttemptState.RELEASED):
        return Outcome(token, accepted=True)
    return Outcome(token, accepted=False, reason=why_not(row))


def _locked(connection: Connection, tokens: Sequence[str]) -> tuple[studies.Locked, dict[str, AttemptRow]]:
    locked = studies.lock_of_tokens(connection, tokens)
    return locked, attempts.by_token(connection, tokens)


def why_not(row: AttemptRow | Reporting | None) -> str:
    """Why a token gives no right any more."""
    if row is None:
        return "there is no such lease; its study may have been deleted"
    said = f" ({row.reason.split(_LATE)[0]})" if row.reason else ""
    return {
        AttemptState.LOST: f"the attempt was counted as lost{said} and the trial taken back",
        AttemptState.RELEASED: "the trial was given back before",
        AttemptState.CANCELLED: f"the trial was cancelled{said}",
        AttemptState.FINISHED: "the trial has ended",
    }.get(AttemptState(row.state), "the lease does not hold")


def _late(row: AttemptRow, result: Result, now: datetime) -> str:
    value = "" if result.value is None else f" with value {result.value}"
    return f"{row.reason or row.state.value}{_LATE} at {now.isoformat()}: {result.state.value}{value}"
