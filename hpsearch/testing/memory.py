"""A store in memory: the contract in its plainest form, for tests and for looking at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch.space import Params
from hpsearch.spec import StudySpec
from hpsearch.store import Asking, Page, TrialQuery, WorkerHello
from hpsearch.study import NewStage, Preflight, PreflightStatus, Stage, StageState, Study, StudyState, Worker
from hpsearch.testing.kept import Kept, Try, document, end, new_trial, settle, why_not
from hpsearch.testing.paging import page_of_studies, page_of_trials
from hpsearch.testing.rungs import Rungs
from hpsearch.trial import (
    RESULT_STATES,
    Action,
    Attempt,
    AttemptState,
    Climbs,
    Decision,
    Demand,
    Ending,
    HeldTrial,
    Judge,
    Lease,
    Outcome,
    Place,
    Report,
    Result,
    RungEntry,
    StepMetrics,
    Trial,
    TrialState,
    as_told,
)


class MemoryStore(Rungs):
    """:class:`hpsearch.store.Store` in dictionaries under one lock. Nothing survives the process."""

    is_local = True

    def __init__(self) -> None:
        super().__init__()
        self._tries: dict[str, Try] = {}
        self._workers: dict[str, Worker] = {}

    # -- studies ----------------------------------------------------------------------------------------------

    def create_study(
        self,
        spec: StudySpec,
        stage: NewStage,
        *,
        now: datetime,
        idempotency_key: str | None = None,
        preflight: bool = False,
    ) -> tuple[Study, bool]:
        """See Store."""
        with self._lock:
            by_key = (k for k in self._kept.values() if idempotency_key is not None and k.key == idempotency_key)
            by_name = (k for k in self._kept.values() if k.study.name == spec.name)
            for found in (*by_key, *by_name):
                if document(found.study.spec) != document(spec):
                    raise Conflict(f"the name or key of study {found.study.name!r} is taken by another spec")
                return found.study, False
            state = StudyState.PREFLIGHT if preflight else StudyState.RUNNING
            study = Study(self._next_id(), spec, state, None, 0, now, None)
            kept = self._kept[study.id] = Kept(study, idempotency_key)
            kept.preflight = Preflight(PreflightStatus.WAITING if preflight else PreflightStatus.SKIPPED)
            kept.log_state(now)
            self._open(kept, 0, stage, now)
            return study, True

    def study(self, name: str) -> Study:
        """See Store."""
        with self._lock:
            for kept in self._kept.values():
                if kept.study.name == name:
                    return kept.study
            raise NotFound("study", name)

    def studies(self, *, limit: int, after: str | None = None) -> Page[Study]:
        """See Store."""
        with self._lock:
            return page_of_studies([kept.study for kept in self._kept.values()], limit, after)

    def set_state(self, study_id: int, state: StudyState, *, reason: str | None = None, now: datetime) -> Study:
        """See Store."""
        with self._lock:
            kept = self._of(study_id)
            if kept.study.state is state:
                return kept.study
            if kept.study.state.is_finished:
                raise Conflict(f"the study {kept.study.name!r} has ended as {kept.study.state.value}")
            if kept.study.state is StudyState.PREFLIGHT and state is StudyState.PAUSED:
                raise Conflict(f"the study {kept.study.name!r} is in preflight")
            if kept.study.state is StudyState.PREFLIGHT and state is StudyState.RUNNING:
                kept.preflight = replace(kept.preflight, status=PreflightStatus.OVERRIDDEN, token=None)
            ended_at = now if state.is_finished else None
            kept.study = replace(kept.study, state=state, reason=reason, ended_at=ended_at)
            if state.is_finished:
                self._end_open(kept, f"the study was {state.value}", now)
                if stage := kept.running_stage():
                    completed = state is StudyState.COMPLETED
                    self._close(kept, stage, StageState.COMPLETED if completed else StageState.CANCELLED, now)
            kept.log_state(now)
            return kept.study

    def _end_open(self, kept: Kept, reason: str, now: datetime) -> None:
        for trial in [t for t in kept.trials if not t.state.is_finished]:
            for item in kept.tries.get(trial.number, []):
                if item.holds:
                    end(item, AttemptState.CANCELLED, reason, now)
            kept.put(replace(trial, state=TrialState.CANCELLED, reason=reason, ended_at=now), now)

    def delete_study(self, study_id: int) -> None:
        """See Store."""
        with self._lock:
            for tries in self._of(study_id).tries.values():
                for item in tries:
                    del self._tries[item.token]
            del self._kept[study_id]

    # -- stages -----------------------------------------------------------------------------------------------

    def stages(self, study_id: int) -> list[Stage]:
        """See Store."""
        with self._lock:
            kept = self._kept.get(study_id)
            return [kept.live(stage) for stage in kept.stages] if kept else []

    def open_stage(self, study_id: int, index: int, stage: NewStage, *, now: datetime) -> bool:
        """See Store."""
        with self._lock:
            kept = self._of(study_id)
            if kept.study.state in (StudyState.CANCELLED, StudyState.FAILED) or index != len(kept.stages):
                return False
            if any(s.name == stage.spec.name for s in kept.stages):
                raise Conflict(f"the study has a stage {stage.spec.name!r} already")
            if kept.study.state is StudyState.COMPLETED:
                kept.study = replace(kept.study, state=StudyState.RUNNING, reason=None, ended_at=None)
                kept.log_state(now)
            if parent := kept.running_stage():
                self._end_open(kept, f"the stage {stage.spec.name!r} was opened", now)
                self._close(kept, parent, StageState.COMPLETED, now)
            self._open(kept, index, stage, now)
            return True

    def _open(self, kept: Kept, index: int, new: NewStage, now: datetime) -> None:
        stage = Stage(
            id=self._next_id(),
            study_id=kept.study.id,
            index=index,
            state=StageState.RUNNING,
            spec=new.spec,
            space=new.space,
            n_trials=new.n_trials,
            n_created=0,
            parent=new.parent,
            difference=new.difference,
            counts={},
            opened_at=now,
            ended_at=None,
            plan=new.plan,
            extension=new.extension,
            exclude=new.exclude,
            watched=new.watched,
            reason=new.reason,
        )
        kept.stages.append(stage)
        kept.log_stage(stage, now)

    def _close(self, kept: Kept, stage: Stage, state: StageState, now: datetime) -> None:
        kept.stages[stage.index] = replace(stage, state=state, ended_at=now)
        kept.log_stage(kept.stages[stage.index], now)

    def stages_with_room(
        self, *, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> list[tuple[Study, Stage]]:
        """See Store."""
        with self._lock:
            stages = [(kept, kept.live(s)) for kept in self._chosen(study, kinds) if (s := kept.running_stage())]
            return [(kept.study, stage) for kept, stage in stages if stage.n_created < stage.n_trials]

    def demand(
        self, worker: str, *, since: datetime, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> Demand:
        """See Store."""
        with self._lock:
            stages = [kept.live(s) for kept in self._chosen(study, kinds) if (s := kept.running_stage())]
            queued = sum(s.counts[TrialState.QUEUED] for s in stages)
            waiting = queued + sum(s.n_trials - s.n_created for s in stages)
            others = [w for w in self._workers.values() if w.name != worker and w.last_seen >= since]
            return Demand(queued, waiting, sum(not self._held(w.name) for w in others))

    def stages_to_settle(self, *, max_failures: int) -> list[tuple[Study, Stage]]:
        """See Store."""
        with self._lock:
            found = []
            for kept in self._kept.values():
                running = kept.running_stage()
                if running is None or running.spec.open_ended or kept.study.state.is_finished:
                    continue
                stage = kept.live(running)
                n_failed = stage.counts[TrialState.FAILED]
                if stage.is_done or stage.watched or (n_failed >= max_failures and stage.n_finished == n_failed):
                    found.append((kept.study, stage))
            return found

    def _chosen(self, study: str | None, kinds: Iterable[str] | None) -> list[Kept]:
        """Studies that a worker may be given trials of, in the order of leasing."""
        kinds = None if kinds is None else set(kinds)
        chosen = [
            kept
            for kept in self._kept.values()
            if kept.study.state is StudyState.RUNNING
            and (kept.study.name == study if study is not None else kept.study.spec.objective.kind != "external")
            and (kinds is None or kept.study.spec.objective.kind in kinds)
        ]
        return sorted(chosen, key=lambda kept: (kept.n_running(), kept.study.id))

    # -- trials -----------------------------------------------------------------------------------------------

    def add_trials(
        self,
        stage_id: int,
        first_number: int,
        params: Sequence[Params],
        *,
        now: datetime,
        behind: Sequence[int] | None = None,
    ) -> bool:
        """See Store."""
        with self._lock:
            found = self._stage(stage_id)
            if found is None:
                return False
            kept, stage = found
            room = stage.n_trials - stage.n_created
            running = stage.state is StageState.RUNNING
            if not running or first_number != kept.study.next_number or len(params) > room:
                return False
            for i, each in enumerate(params):
                kept.behind[len(kept.trials)] = behind[i] if behind else 0
                kept.planned.add(len(kept.trials))
                kept.trials.append(new_trial(len(kept.trials), stage.name, TrialState.QUEUED, each, now))
            kept.study = replace(kept.study, next_number=len(kept.trials))
            return True

    def add_finished(
        self, stage_id: int, trials: Sequence[tuple[Params, TrialState, float | None]], *, now: datetime
    ) -> list[int]:
        """See Store."""
        with self._lock:
            found = self._stage(stage_id)
            if found is None:
                raise NotFound("stage", stage_id)
            if open_states := [state.value for _, state, _ in trials if not state.is_finished]:
                raise InvalidInput(f"a trial in state {open_states[0]!r} has not ended")
            kept, stage = found
            first = len(kept.trials)
            for params, state, value in trials:
                state, value, reason = settle(state, value, None)  # noqa: PLW2901 - what it comes to
                trial = new_trial(len(kept.trials), stage.name, state, params, now)
                kept.put(replace(trial, value=value, reason=reason, ended_at=now), now)
            kept.study = replace(kept.study, next_number=len(kept.trials))
            return list(range(first, len(kept.trials)))

    def trials(self, study_id: int, query: TrialQuery) -> Page[Trial]:
        """See Store."""
        with self._lock:
            kept = self._of(study_id)
            return page_of_trials(kept.study, [stage.name for stage in kept.stages], kept.trials, query)

    def trial(self, study_id: int, number: int) -> Trial:
        """See Store."""
        with self._lock:
            trials = self._of(study_id).trials
            if not 0 <= number < len(trials):
                raise NotFound("trial", number)
            return trials[number]

    def attempts(self, study_id: int, number: int) -> list[Attempt]:
        """See Store."""
        with self._lock:
            self.trial(study_id, number)
            return [item.shown for item in self._kept[study_id].tries.get(number, [])]

    def metrics(self, study_id: int, numbers: Sequence[int]) -> list[StepMetrics]:
        """See Store."""
        with self._lock:
            steps = self._of(study_id).metrics
            return [
                StepMetrics(number, step, dict(steps[number][step]))
                for number in sorted(set(numbers) & set(steps))
                for step in sorted(steps[number])
            ]

    # -- leases -----------------------------------------------------------------------------------------------

    def lease(self, asked: Sequence[Asking], *, now: datetime, ttl: timedelta, max_lost: int = 3) -> list[list[Lease]]:
        """See Store."""
        with self._lock:
            return [self._lease_one(asking, now, ttl, max_lost) for asking in asked]

    def _lease_one(self, asking: Asking, now: datetime, ttl: timedelta, max_lost: int) -> list[Lease]:
        worker, capacity, study = asking.worker, asking.capacity, asking.study
        seen = self._workers.get(worker.name)
        self._workers[worker.name] = Worker(worker.name, dict(worker.info), seen.first_seen if seen else now, now, 0)
        for item in self._held(worker.name):
            if None not in (worker.session, item.session) and item.session != worker.session:
                self._lose(item, "its worker was started anew", max_lost, now)
        leases: list[Lease] = []
        for item in self._held(worker.name):
            if len(leases) < capacity and study in (None, self._kept[item.study_id].study.name):
                item.shown = replace(item.shown, expires_at=now + ttl)
                item.session = worker.session or item.session
                leases.append(self._lease(item))
        queued = [(k, t) for k in self._chosen(study, asking.kinds) for t in self._queued(k)]
        room = asking.room(len(leases))
        return leases + [self._start(k, t, worker, now, ttl) for k, t in queued[:room]]

    def _held(self, worker: str) -> list[Try]:
        held = [item for item in self._tries.values() if item.holds and item.shown.worker == worker]
        return sorted(held, key=lambda item: (item.study_id, self._place(item.study_id, item.trial)))

    def _queued(self, kept: Kept) -> list[Trial]:
        queued = [t for t in kept.trials if t.state is TrialState.QUEUED]
        return sorted(queued, key=lambda t: self._place(kept.study.id, t.number))

    def _place(self, study_id: int, number: int) -> tuple[int, int]:
        kept = self._kept[study_id]
        return [s.name for s in kept.stages].index(kept.trials[number].stage), number

    def _start(self, kept: Kept, trial: Trial, worker: WorkerHello, now: datetime, ttl: timedelta) -> Lease:
        number = trial.n_attempts + 1
        kept.put(
            replace(
                trial, state=TrialState.RUNNING, reason=None, worker=worker.name, n_attempts=number, started_at=now
            ),
            now,
        )
        attempt = Attempt(number, worker.name, AttemptState.RUNNING, now, now + ttl, None, None)
        item = Try(attempt, f"token-{self._next_id()}", worker.session, kept.study.id, trial.number)
        self._tries[item.token] = item
        kept.tries.setdefault(trial.number, []).append(item)
        return self._lease(item)

    def _lease(self, item: Try) -> Lease:
        kept = self._kept[item.study_id]
        trial = kept.trials[item.trial]
        stage = next(s for s in kept.stages if s.name == trial.stage)
        return Lease(
            token=item.token,
            study_id=item.study_id,
            study=kept.study.name,
            stage=stage.name,
            stage_index=stage.index,
            trial=trial.number,
            attempt=item.shown.number,
            expires_at=item.shown.expires_at,
            params=trial.params,
            epochs=stage.spec.n_epochs,
            step=trial.step,
        )

    def report(
        self,
        workers: Set[str],
        reports: Sequence[Report],
        climbs: Sequence[Climbs] = (),
        *,
        now: datetime,
        ttl: timedelta,
    ) -> tuple[list[Decision], list[list[RungEntry]]]:
        """See Store."""
        with self._lock:
            self._seen(workers, now)
            places = {report.token: self._place_of(report.token) for report in reports}
            decisions = [self._report(report, places[report.token], now + ttl) for report in reports]
            return decisions, [self._climb(each, decisions) for each in climbs]

    def _place_of(self, token: str) -> Place | None:
        item = self._tries.get(token)
        if item is None:
            return None
        kept = self._kept[item.study_id]
        trial = kept.trials[item.trial]
        return Place(item.study_id, kept.study.name, trial.stage, trial.number, trial.step)

    def _report(self, report: Report, place: Place | None, expires_at: datetime) -> Decision:
        item = self._tries.get(report.token)
        if item is None or not item.holds:
            return Decision(report.token, Action.ABANDON, why_not(item))
        item.shown = replace(item.shown, expires_at=expires_at)
        if report.step is not None:
            kept = self._kept[item.study_id]
            steps = kept.metrics.setdefault(item.trial, {})
            if item.step is None:
                if 0 < report.step <= kept.behind.get(item.trial, 0):
                    kept.behind[item.trial] = 0
                for step in [s for s in steps if s > report.step]:
                    del steps[step]
            item.step = report.step if item.step is None else max(item.step, report.step)
            steps[report.step] = {name: float(value) for name, value in report.metrics.items()}
            kept.trials[item.trial] = replace(kept.trials[item.trial], step=item.step)
        return Decision(report.token, Action.CONTINUE, place=place)

    def finish(self, calls: Sequence[Ending], judge: Judge = as_told, *, now: datetime) -> list[Outcome]:
        """See Store."""
        results = [result for call in calls for result in call.results]
        if wrong := [result.state.value for result in results if result.state not in RESULT_STATES]:
            raise InvalidInput(f"a trial cannot be finished as {wrong[0]!r}")
        with self._lock:
            self._seen({call.worker for call in calls}, now)
            for report in (report for call in calls for report in call.reports):
                self._report(report, None, now)
            return [self._finish(result, judge, now) for result in results]

    def _finish(self, result: Result, judge: Judge, now: datetime) -> Outcome:
        item = self._tries.get(result.token)
        if item is not None and item.shown.state is AttemptState.FINISHED:
            return Outcome(result.token, accepted=True)
        if item is None or not item.holds:
            if item is not None and "late result" not in (item.shown.reason or ""):
                late = f"{item.shown.reason}; a late result came: {result.state.value}"
                item.shown = replace(item.shown, reason=late)
            return Outcome(result.token, accepted=False, reason=why_not(item))
        kept = self._kept[item.study_id]
        trial, steps = kept.trials[item.trial], tuple(self.metrics(item.study_id, [item.trial]))
        result = judge(result, HeldTrial(item.study_id, kept.study.name, trial.stage, trial.number, steps))
        value = result.value
        if value is None:
            value = kept.metrics.get(item.trial, {}).get(trial.step, {}).get(kept.study.spec.metric.name)
        state, value, reason = settle(result.state, value, result.reason)
        end(item, AttemptState.FINISHED, None, now)
        ended = replace(trial, state=state, value=value, reason=reason, ended_at=now, verdicts=result.verdicts)
        kept.put(ended, now)
        return Outcome(result.token, accepted=True)

    def release(self, worker: str, tokens: Sequence[str], *, now: datetime) -> list[Outcome]:
        """See Store."""
        with self._lock:
            self._seen({worker}, now)
            return [self._release(token, now) for token in tokens]

    def _release(self, token: str, now: datetime) -> Outcome:
        item = self._tries.get(token)
        if item is not None and item.shown.state is AttemptState.RELEASED:
            return Outcome(token, accepted=True)
        if item is None or not item.holds:
            return Outcome(token, accepted=False, reason=why_not(item))
        end(item, AttemptState.RELEASED, None, now)
        kept = self._kept[item.study_id]
        kept.put(replace(kept.trials[item.trial], state=TrialState.QUEUED, reason="it was given back"), now)
        return Outcome(token, accepted=True)

    def reap(self, *, now: datetime, max_lost: int) -> list[int]:
        """See Store."""
        with self._lock:
            expired = [item for item in self._tries.values() if item.holds and item.shown.expires_at <= now]
            for item in expired:
                self._lose(item, "its lease expired", max_lost, now)
            return sorted({item.study_id for item in expired})

    def _lose(self, item: Try, why: str, max_lost: int, now: datetime) -> None:
        end(item, AttemptState.LOST, why, now)
        kept = self._kept[item.study_id]
        n_lost = kept.n_lost[item.trial] = kept.n_lost.get(item.trial, 0) + 1
        trial = replace(kept.trials[item.trial], state=TrialState.QUEUED, reason=f"an attempt was lost: {why}")
        if n_lost >= max_lost:
            reason = f"{n_lost} attempts lost their worker: {why}"
            trial = replace(trial, state=TrialState.FAILED, reason=reason, ended_at=now)
        kept.put(trial, now)

    # -- the log, the workers, the store itself ---------------------------------------------------------------

    def workers(self) -> list[Worker]:
        """See Store."""
        with self._lock:
            workers = [replace(w, n_leases=len(self._held(w.name))) for w in self._workers.values()]
            return sorted(sorted(workers, key=lambda w: w.name), key=lambda w: w.last_seen, reverse=True)

    def check(self) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store."""

    def _stage(self, stage_id: int) -> tuple[Kept, Stage] | None:
        found = self._stage_of(stage_id)
        return None if found is None else (found[0], found[0].live(found[1]))

    def _seen(self, workers: Set[str], now: datetime) -> None:
        for worker in workers & self._workers.keys():
            self._workers[worker] = replace(self._workers[worker], last_seen=now)
