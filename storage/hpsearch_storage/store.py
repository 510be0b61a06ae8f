"""The store on SQL: the transactions around what the other modules do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from hpsearch.errors import Conflict, InvalidInput, StoreError
from hpsearch.space import Params
from hpsearch.spec import StudySpec
from hpsearch.store import Asking, Page, Table, TrialQuery
from hpsearch.study import (
    Acknowledgement,
    Border,
    Event,
    NewStage,
    Preflight,
    PreflightStatus,
    Stage,
    StageState,
    Study,
    StudyState,
    Worker,
)
from hpsearch.trial import (
    Attempt,
    Climbs,
    Demand,
    Ending,
    Judge,
    Lease,
    Outcome,
    Report,
    RungEntry,
    RungPlace,
    StepMetrics,
    Trial,
    TrialState,
    as_told,
)
from hpsearch_storage import (
    acknowledgements,
    attempts,
    ending,
    events,
    gauges,
    giving,
    leases,
    metrics,
    paging,
    preflights,
    results,
    rungs,
    stages,
    studies,
    trials,
    workers,
)
from hpsearch_storage.engine import Database
from hpsearch_storage.going import Answer, Going, Overtaken
from hpsearch_storage.logs import Logs
from hpsearch_storage.migrations import current_version, newest_version
from hpsearch_storage.optuna_records import OptunaRecords
from hpsearch_storage.results import check_results, finish
from hpsearch_storage.tokens import Tokens

_STUDIES = "studies"
"""Mark of a cursor in the list of studies."""
_UNDONE = (StudyState.CANCELLED, StudyState.FAILED)
"""Ended without a result: no stage is opened after them."""


class SqlStore:
    """:class:`hpsearch.store.Store` on SQLite or PostgreSQL. Every method is one transaction.

    Attributes:
        logs: what trials wrote.
        optuna: what Optuna's clients ask of the same database.
        tokens: who may talk to a server of this store.
    """

    def __init__(self, database: Database, *, on_close: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self.is_local = database.is_sqlite
        self._on_close = on_close
        self._heard = workers.Heard()
        self._going = Going()
        self.logs = Logs(database)
        self.optuna = OptunaRecords(database)
        self.tokens = Tokens(database)
        self._schema = newest_version()

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

        def work(connection: Connection) -> tuple[Study, bool]:
            while True:
                if found := studies.find_same(connection, spec, idempotency_key):
                    return found, False
                if study := studies.insert(connection, spec, idempotency_key, preflight=preflight, now=now):
                    break
            opened = stages.open_(connection, study.id, 0, stage, now=now)
            events.append(connection, study.id, [_state_entry(study), opened], now=now)
            return study, True

        return self._database.write(work)

    def study(self, name: str) -> Study:
        """See Store."""
        return self._database.read(lambda connection: studies.named(connection, name))

    def studies(self, *, limit: int, after: str | None = None) -> Page[Study]:
        """See Store."""
        limit = paging.check_limit(limit)
        before = _study_position(after)
        found = self._database.read(lambda connection: studies.newest(connection, before=before, limit=limit + 1))
        if len(found) <= limit:
            return Page(found, None)
        return Page(found[:limit], paging.encode_cursor([_STUDIES, found[limit - 1].id]))

    def set_state(self, study_id: int, state: StudyState, *, reason: str | None = None, now: datetime) -> Study:
        """See Store."""

        def work(connection: Connection) -> Study:
            study = studies.lock_one(connection, study_id)
            if study.state == state:
                return study
            if study.state.is_finished:
                raise Conflict(f"the study {study.name!r} has ended as {study.state.value}: submit it under a new name")
            if study.state == StudyState.PREFLIGHT and state == StudyState.PAUSED:
                raise Conflict(f"the study {study.name!r} is in preflight: resume it to override that, or cancel it")
            if study.state == StudyState.PREFLIGHT and state == StudyState.RUNNING:
                before = preflights.of_study(connection, study_id)
                preflights.write(connection, study_id, replace(before, status=PreflightStatus.OVERRIDDEN, token=None))
            ended_at = now if state.is_finished else None
            study = studies.set_state(connection, study_id, state, reason, ended_at=ended_at)
            if state.is_finished:
                ending.end_all(connection, study, now=now)
            events.append(connection, study_id, [_state_entry(study)], now=now)
            return study

        return self._database.write(work)

    def delete_study(self, study_id: int) -> None:
        """See Store."""

        def work(connection: Connection) -> None:
            studies.lock_one(connection, study_id)
            studies.remove(connection, study_id)

        self._database.write(work)

    # -- preflight --------------------------------------------------------------------------------------------

    def preflight(self, study_id: int) -> Preflight:
        """See Store."""
        return self._database.read(lambda connection: preflights.of_study(connection, study_id))

    def claim_preflight(
        self, worker: str, *, kinds: Iterable[str], now: datetime, ttl: timedelta
    ) -> tuple[Study, str] | None:
        """See Store."""
        if not self._database.read(studies.any_in_preflight):
            return None
        wanted = sorted(set(kinds))
        return self._database.write(
            lambda connection: preflights.claim(connection, worker, kinds=wanted, now=now, ttl=ttl)
        )

    def finish_preflight(
        self, study_id: int, token: str, checks: Sequence[dict[str, Any]], *, failure: str | None, now: datetime
    ) -> bool:
        """See Store."""

        def work(connection: Connection) -> bool:
            study = studies.lock_one(connection, study_id)
            before = preflights.of_study(connection, study_id)
            if before.token != token:
                return False
            if before.status != PreflightStatus.RUNNING:
                return True
            preflights.write(connection, study_id, preflights.checked(before, checks, failed=failure is not None))
            if study.state == StudyState.PREFLIGHT:
                state = StudyState.RUNNING if failure is None else StudyState.PREFLIGHT
                study = studies.set_state(connection, study_id, state, failure, ended_at=None)
                events.append(connection, study_id, [_state_entry(study)], now=now)
            return True

        return self._database.write(work)

    def n_checks_waiting(self, *, kinds: Iterable[str] | None = None, now: datetime) -> int:
        """See Store."""
        return self._database.read(lambda connection: preflights.n_waiting(connection, kinds, now=now))

    # -- stages -----------------------------------------------------------------------------------------------

    def stages(self, study_id: int) -> list[Stage]:
        """See Store."""
        return self._database.read(lambda connection: stages.of_study(connection, study_id))

    def open_stage(self, study_id: int, index: int, stage: NewStage, *, now: datetime) -> bool:
        """See Store."""

        def work(connection: Connection) -> bool:
            study = studies.lock_one(connection, study_id)
            if study.state in _UNDONE or index != stages.number(connection, study_id):
                return False
            entries = []
            if study.state == StudyState.COMPLETED:
                study = studies.set_state(connection, study_id, StudyState.RUNNING, None, ended_at=None)
                entries.append(_state_entry(study))
            opened = stages.open_(connection, study_id, index, stage, now=now)
            if parent := stages.running(connection, study_id, before=index):
                ending.end_open(connection, study_id, f"the stage {stage.spec.name!r} was opened", now=now)
                entries.append(stages.end(connection, parent, StageState.COMPLETED, now=now))
            events.append(connection, study_id, [*entries, opened], now=now)
            return True

        return self._database.write(work)

    def stages_with_room(
        self, *, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> list[tuple[Study, Stage]]:
        """See Store."""
        return self._database.read(lambda connection: stages.with_room(connection, study, kinds))

    def demand(
        self, worker: str, *, since: datetime, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> Demand:
        """See Store."""

        def work(connection: Connection) -> Demand:
            return Demand(*stages.n_waiting(connection, study, kinds), workers.n_others(connection, worker, since))

        return self._database.read(work)

    def stages_to_settle(self, *, max_failures: int) -> list[tuple[Study, Stage]]:
        """See Store."""
        return self._database.read(lambda connection: stages.to_settle(connection, max_failures=max_failures))

    # -- flags ------------------------------------------------------------------------------------------------

    def acknowledge(self, study_id: int, border: Border, note: str | None, *, now: datetime) -> None:
        """See Store."""

        def work(connection: Connection) -> None:
            studies.lock_one(connection, study_id)
            acknowledgements.write(connection, study_id, border, note, now=now)
            events.append(connection, study_id, [("flag", {**asdict(border), "note": note})], now=now)

        self._database.write(work)

    def acknowledgements(self, study_id: int) -> dict[Border, Acknowledgement]:
        """See Store."""

        def work(connection: Connection) -> dict[Border, Acknowledgement]:
            studies.check(connection, study_id)
            return acknowledgements.of_study(connection, study_id)

        return self._database.read(work)

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
        return self._database.write(
            lambda connection: giving.add_queued(connection, stage_id, first_number, params, behind=behind, now=now)
        )

    def add_finished(
        self, stage_id: int, trials: Sequence[tuple[Params, TrialState, float | None]], *, now: datetime
    ) -> list[int]:
        """See Store."""
        return self._database.write(lambda connection: giving.add_ended(connection, stage_id, trials, now=now))

    def trials(self, study_id: int, query: TrialQuery) -> Page[Trial]:
        """See Store."""
        return self._database.read(lambda connection: paging.page(connection, study_id, query))

    def table(self, study_id: int, query: TrialQuery) -> tuple[Table, str | None]:
        """See Store."""
        return self._database.read(lambda connection: paging.table(connection, study_id, query))

    def n_by_step(self, study_id: int, stage: str, state: TrialState) -> dict[int, int]:
        """See Store."""

        def work(connection: Connection) -> dict[int, int]:
            studies.check(connection, study_id)
            return stages.n_by_step(connection, study_id, stage, state)

        return self._database.read(work)

    def trial(self, study_id: int, number: int) -> Trial:
        """See Store."""
        return self._database.read(lambda connection: trials.one(connection, study_id, number).shown())

    def attempts(self, study_id: int, number: int) -> list[Attempt]:
        """See Store."""
        return self._database.read(lambda connection: attempts.of_trial(connection, study_id, number))

    def metrics(self, study_id: int, numbers: Sequence[int]) -> list[StepMetrics]:
        """See Store."""

        def work(connection: Connection) -> list[StepMetrics]:
            studies.check(connection, study_id)
            return metrics.of_trials(connection, study_id, numbers)

        return self._database.read(work)

    # -- leases -----------------------------------------------------------------------------------------------

    def lease(self, asked: Sequence[Asking], *, now: datetime, ttl: timedelta, max_lost: int = 3) -> list[list[Lease]]:
        """See Store."""
        terms = leases.Terms(now, ttl, max_lost)
        return self._database.write(lambda connection: leases.lease(connection, asked, terms))

    def report(
        self,
        workers: Set[str],
        reports: Sequence[Report],
        climbs: Sequence[Climbs] = (),
        *,
        now: datetime,
        ttl: timedelta,
    ) -> Answer:
        """See Store."""

        def go_on(connection: Connection) -> Answer:
            answer = self._going.report(connection, reports, climbs, now=now, ttl=ttl)
            if self.is_local:
                self._heard.seen(connection, workers, now=now)
            return answer

        def work(connection: Connection) -> Answer:
            self._heard.seen(connection, workers, now=now)
            decisions = results.report(connection, reports, climbs, now=now, ttl=ttl)
            return decisions, [rungs.after(connection, each.stage_id, each.after) for each in climbs]

        if self.is_local:
            with suppress(Overtaken):
                return self._database.write(go_on)
        elif not self._heard.due(workers, now=now):
            with suppress(Overtaken, StoreError):  # such as of a transaction in the way: that one is waited for
                return self._database.write_alone(go_on)
        return self._database.write(work)

    def finish(self, calls: Sequence[Ending], judge: Judge = as_told, *, now: datetime) -> list[Outcome]:
        """See Store."""
        results = [result for call in calls for result in call.results]
        reports = [report for call in calls for report in call.reports]
        check_results(results)

        def work(connection: Connection) -> list[Outcome]:
            self._heard.seen(connection, {call.worker for call in calls}, now=now)
            return finish(connection, results, reports, judge, now=now)

        return self._database.write(work)

    def release(self, worker: str, tokens: Sequence[str], *, now: datetime) -> list[Outcome]:
        """See Store."""

        def work(connection: Connection) -> list[Outcome]:
            self._heard.seen(connection, [worker], now=now)
            return results.release(connection, tokens, now=now)

        return self._database.write(work)

    def reap(self, *, now: datetime, max_lost: int) -> list[int]:
        """See Store."""
        if not self._database.read(lambda connection: attempts.studies_of_expired(connection, now)):
            return []  # the usual case takes no lock
        return self._database.write(lambda connection: leases.reap(connection, max_lost=max_lost, now=now))

    # -- rungs ------------------------------------------------------------------------------------------------

    def record_rungs(self, stage_id: int, values: Mapping[RungPlace, float | None], *, after: int) -> list[RungEntry]:
        """See Store."""

        def work(connection: Connection) -> list[RungEntry]:
            rungs.record(connection, stage_id, values)
            return rungs.after(connection, stage_id, after)

        if not values:  # reading waits for nobody
            return self._database.read(lambda connection: rungs.after(connection, stage_id, after))
        return self._database.write(work)

    def let_on(
        self, stage_id: int, passed: Iterable[RungPlace], *, promoted: Mapping[RungPlace, str], now: datetime
    ) -> list[int]:
        """See Store."""

        def work(connection: Connection) -> list[int]:
            locked = giving.lock_stage(connection, stage_id)
            return [] if locked is None else rungs.let_on(connection, locked[0], passed, promoted, now=now)

        return self._database.write(work)

    # -- the log, the workers, the store itself ---------------------------------------------------------------

    def test_reading(self, study_id: int) -> dict[str, Any] | None:
        """See Store."""
        return self._database.read(lambda connection: events.first_of(connection, study_id, "test"))

    def log_test(self, study_id: int, reading: dict[str, Any], *, now: datetime) -> dict[str, Any]:
        """See Store."""

        def work(connection: Connection) -> dict[str, Any]:
            studies.lock_one(connection, study_id)
            before = events.first_of(connection, study_id, "test")
            if before is None:
                events.append(connection, study_id, [("test", reading)], now=now)
            return before or reading

        return self._database.write(work)

    def events(self, study_id: int, *, after: int, limit: int) -> list[Event]:
        """See Store."""

        def work(connection: Connection) -> list[Event]:
            found = events.after(connection, study_id, after, paging.check_limit(limit))
            if not found:
                studies.check(connection, study_id)
            return found

        return self._database.read(work)

    def last_event(self, study_id: int) -> int:
        """See Store."""
        return self._database.read(lambda connection: events.last(connection, study_id))

    def workers(self) -> list[Worker]:
        """See Store."""
        return self._database.read(workers.every)

    def n_studies(self) -> int:
        """How many studies there are."""
        return self._database.read(gauges.n_studies)

    def n_trials(self, study_id: int) -> int:
        """How many trials a study has had; 0 for one that is not there."""
        return self._database.read(lambda connection: gauges.n_trials(connection, study_id))

    def gauges(self) -> gauges.Gauges:
        """See :func:`hpsearch_storage.gauges.read`."""
        return self._database.read(gauges.read)

    def observe(self, call: Callable[[str, float], None]) -> None:
        """Have ``call`` called after every transaction with ``read`` or ``write``, and the seconds that it took."""
        self._database.observe = call

    def check(self) -> None:
        """See Store."""
        self._database.read(lambda connection: connection.execute(text("SELECT count(*) FROM workers")).scalar_one())

    def check_schema(self) -> None:
        """Raise StoreError if another program has changed the schema since this one opened the store."""
        found = self._database.read(current_version)
        if found != self._schema:
            raise StoreError(f"the schema is now {found}, and not {self._schema}, which this server works with")

    def close(self) -> None:
        """See Store."""
        self._database.close()
        self._on_close()


def _state_entry(study: Study) -> events.Entry:
    return "study", {"state": study.state.value, "reason": study.reason}


def _study_position(after: str | None) -> int | None:
    if after is None:
        return None
    values = paging.decode_cursor(after, _STUDIES)
    if len(values) != 1 or not isinstance(values[0], int):
        raise InvalidInput(f"the cursor {after[:80]!r} is damaged: take 'next' of the page before")
    return values[0]
