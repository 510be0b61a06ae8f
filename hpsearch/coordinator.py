"""The rules between requests and the store: what is sampled, who gets it, when a stage ends and what follows.

A coordinator keeps no state of its own but a cache of immutable specs, so any number of them may work on one store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from hpsearch import advancing
from hpsearch.advancing import OwnStage
from hpsearch.at_once import takes_time
from hpsearch.budget import Budget
from hpsearch.drawing import Drawer
from hpsearch.errors import Conflict, Fault, InvalidSpec, NotFound
from hpsearch.insight import Insights
from hpsearch.lineage import Line, Lineage, ResumeFrom
from hpsearch.search.samplers import check_samplers
from hpsearch.space import Params, check_params
from hpsearch.spec import StudySpec
from hpsearch.stages import Stages
from hpsearch.stopper import Stopper
from hpsearch.store import Asking, Store, WorkerHello, as_kinds
from hpsearch.study import Border, Stage, StageState, Study, StudyState
from hpsearch.trial import Decision, Ending, HeldTrial, Lease, Outcome, Report, Result, TrialState
from hpsearch.verdicts import judge as verdicts_of

T = TypeVar("T")
Queued = tuple[str | None, tuple[str, ...] | None]
"""Which trials are meant: of a study, or of any but ``external`` ones; of some kinds of objectives, or of all."""

PREFLIGHT_TTL = timedelta(seconds=180)
"""How long a worker has to run the checks of a study before another may."""
MAX_LOST = 3
"""A trial that lost so many workers is failed: it probably kills them."""


def utcnow() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A lease, with what its worker needs to know of the study.

    Attributes:
        line: where its training comes from, with the seeds that it trains with.
        n_kept: how many checkpoints its worker keeps: of trials stopped at one epoch, and of completed ones, the best.
        stops_at, stops_from: see :class:`hpsearch.stopper.Stopper`.
    """

    lease: Lease
    spec: StudySpec
    line: Line
    n_kept: tuple[int, int] = (0, 0)
    stops_at: Sequence[int] = ()
    stops_from: int | None = 0

    @property
    def seed(self) -> int:
        """What the trial trains with (weights)."""
        return self.line.seed

    @property
    def data_seed(self) -> int:
        """What the order of the minibatches follows from."""
        return self.line.data_seed

    @property
    def resume_from(self) -> ResumeFrom | None:
        """What the trial goes on from: a trial of the parent stage, or itself."""
        lease = self.lease
        own = ResumeFrom(lease.stage, lease.trial, lease.step, lease.epochs)
        return self.line.parent or (own if lease.step else None)


class Coordinator:
    """See the module's text. Every method may be called from any thread; each may wait for the store.

    The calls of workers may be tried :func:`~hpsearch.at_once.at_once`; one that was begun may be repeated.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], datetime] = utcnow,
        lease_ttl: timedelta = timedelta(seconds=30),
    ) -> None:
        self.store = store
        self.clock = clock
        self.lease_ttl = lease_ttl
        self.insights = Insights(store)
        self.lineage = Lineage(store, self.insights)
        self.budget = Budget(store, self.insights, self.lineage)
        self.drawer = Drawer(store, self.insights, clock)
        self.stopper = Stopper(store, clock)
        self.stages = Stages(store, self.insights, self.stopper, self.budget, clock)
        self._reap_from = clock() + lease_ttl
        self._spec = lru_cache(maxsize=256)(self._read_spec)
        self._on_change: list[Callable[[], None]] = []

    def on_change(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, from any thread, whenever this coordinator changed something."""
        self._on_change.append(call)

    def _changed(self) -> None:
        for call in self._on_change:
            call()

    # -- studies ------------------------------------------------------------------------------------------------

    def submit(self, spec: StudySpec, *, idempotency_key: str | None = None) -> tuple[Study, bool]:
        """Create a study, or find the one that an equal request created. See :meth:`Store.create_study`.

        Raises:
            InvalidSpec: a stage's sampler cannot be used here.
            Conflict: the name, or the key, is taken by another spec.
        """
        check_samplers(spec)
        study, created = self.store.create_study(
            spec,
            advancing.first_stage(spec),
            now=self.clock(),
            idempotency_key=idempotency_key,
            preflight=spec.preflight and spec.objective.kind != "external",
        )
        if created:
            self._changed()
        return study, created

    def set_state(self, name: str, state: StudyState, *, reason: str | None = None) -> Study:
        """Pause, resume or cancel a study; resuming opens a stage that waits. Raises NotFound, Conflict."""
        study = self.store.study(name)
        if state is StudyState.RUNNING and study.state is StudyState.PAUSED:
            self.stages.open_waiting(study)
        changed = self.store.set_state(study.id, state, reason=reason, now=self.clock())
        self._changed()
        return changed

    def delete(self, name: str) -> None:
        """Remove a study and all that belongs to it. Raises NotFound."""
        self.store.delete_study(self.store.study(name).id)
        self._changed()

    def open_stage(self, study: Study, asked: OwnStage) -> Stage:
        """See :meth:`hpsearch.stages.Stages.open`."""
        opened = self.stages.open(study, asked)
        self._changed()
        return opened

    def acknowledge(self, name: str, border: Border, note: str | None) -> None:
        """See :meth:`hpsearch.stages.Stages.acknowledge`. Raises NotFound."""
        self.stages.acknowledge(self.store.study(name), border, note)
        self._changed()

    def enqueue(self, name: str, params: Sequence[Params]) -> list[int]:
        """Queue given params in the running stage, where they take the place of sampled ones.

        Returns:
            the numbers of the new trials.

        Raises:
            InvalidSpec: params outside the stage's space.
            Conflict: the stage has no room for them, or the study has ended.
        """
        study, stage = self._running_stage(name)
        self._check_params(stage, params)
        while stage.n_trials - stage.n_created >= len(params):
            if self.store.add_trials(stage.id, study.next_number, params, now=self.clock()):
                self._changed()
                return list(range(study.next_number, study.next_number + len(params)))
            study, stage = self._running_stage(name)
        raise Conflict(
            f"the stage {stage.name!r} has room for {stage.n_trials - stage.n_created} more trials, not {len(params)}"
        )

    def add_finished(self, name: str, trials: Sequence[tuple[Params, TrialState, float | None]]) -> list[int]:
        """Add trials that were evaluated elsewhere to the running stage. Raises as :meth:`enqueue` does."""
        _, stage = self._running_stage(name)
        self._check_params(stage, [params for params, _, _ in trials])
        numbers = self.store.add_finished(stage.id, trials, now=self.clock())
        self._changed()
        return numbers

    def _running_stage(self, name: str) -> tuple[Study, Stage]:
        study = self.store.study(name)
        running = [s for s in self.store.stages(study.id) if s.state is StageState.RUNNING]
        if study.state.is_finished or not running:
            raise Conflict(f"the study {name!r} is {study.state}: it takes no more trials")
        return study, running[-1]

    @staticmethod
    def _check_params(stage: Stage, params: Sequence[Params]) -> None:
        faults = [
            Fault(f"trials.{i}.params.{name}", text)
            for i, given in enumerate(params)
            for name, text in check_params(stage.space, given)
        ]
        if faults:
            raise InvalidSpec(faults)

    # -- leases -------------------------------------------------------------------------------------------------

    def lease(
        self, worker: WorkerHello, capacity: int, *, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> list[Assignment]:
        """Up to ``capacity`` trials for a worker. Raises NotFound if ``study`` names none."""
        (found,) = self.lease_all([Asking(worker, capacity, study, as_kinds(kinds))])
        if isinstance(found, NotFound):
            raise found
        return found

    def lease_all(self, asked: Sequence[Asking]) -> list[list[Assignment] | NotFound]:
        """Like :meth:`lease` for several workers, in order, at hardly more than the cost of one."""
        found = self._lease([self._with_share(asking) for asking in asked])
        pairs = list(zip(asked, found, strict=True))
        missing = self._missing({asking.study for asking, leases in pairs if asking.study is not None and not leases})
        return [
            missing[asking.study] if asking.study in missing else [self._assignment(lease) for lease in leases]
            for asking, leases in pairs
        ]

    def _missing(self, names: Iterable[str]) -> dict[str | None, NotFound]:
        """Studies that are not there, and the error for each."""
        missing: dict[str | None, NotFound] = {}
        for name in names:
            try:
                self.store.study(name)
            except NotFound as error:
                missing[name] = error
        return missing

    def _lease(self, asked: Sequence[Asking]) -> list[list[Lease]]:
        """What the store has queued, and what is created where that is not enough."""
        found = self._lease_queued(asked)
        while True:
            wanted: Counter[Queued] = Counter()
            for asking, leases in zip(asked, found, strict=True):
                wanted[asking.study, asking.kinds] += asking.room(len(leases))
            created = [self._create_trials(n, *key) for key, n in wanted.items() if n > 0]
            if not any(created):
                break
            short = [i for i, leases in enumerate(found) if asked[i].room(len(leases))]
            for i, leases in zip(short, self._lease_queued([asked[i] for i in short]), strict=True):
                found[i] = leases
        if any(found):
            self._changed()
        return found

    def queue(self, study: str | None = None, kinds: Iterable[str] | None = None) -> tuple[int, int]:
        """How many trials could be leased, those not created yet included, and how many checks wait for a worker.

        Raises NotFound if ``study`` names none.
        """
        (found,) = self.queues([(study, as_kinds(kinds))])
        if isinstance(found, NotFound):
            raise found
        return found

    def queues(self, wanted: Sequence[Queued]) -> list[tuple[int, int] | NotFound]:
        """Like :meth:`queue` for several, each of which is looked up once."""
        found = {key: self._queue(*key) for key in set(wanted)}
        return [found[key] for key in wanted]

    def _queue(self, study: str | None, wanted: tuple[str, ...] | None) -> tuple[int, int] | NotFound:
        if study is not None and (missing := self._missing([study])):
            return missing[study]
        demand = self.store.demand("", since=self.clock(), study=study, kinds=wanted)
        return demand.waiting, self.store.n_checks_waiting(kinds=wanted, now=self.clock())

    def _with_share(self, asking: Asking) -> Asking:
        """Who asks for several gets so many that all who wait get as many: a wide pack must idle nobody."""
        if asking.capacity <= 1:
            return asking
        since = self.clock() - 2 * self.lease_ttl
        demand = self.store.demand(asking.worker.name, since=since, study=asking.study, kinds=asking.kinds)
        asking = replace(asking, share=-(-demand.waiting // (demand.others + 1)))
        short = min(asking.room(0), demand.waiting) - demand.queued
        if short > 0:
            self._create_trials(short, asking.study, asking.kinds)
        return asking

    def _lease_queued(self, asked: Sequence[Asking]) -> list[list[Lease]]:
        found = self.store.lease(asked, now=self.clock(), ttl=self.lease_ttl, max_lost=MAX_LOST) if asked else []
        self.stopper.leased([lease for leases in found for lease in leases])
        return found

    def _create_trials(self, wanted: int, study: str | None, kinds: Iterable[str] | None) -> bool:
        """Create queued trials in the first stage that has room; False if none has."""
        takes_time()
        for owner, stage in self.store.stages_with_room(study=study, kinds=kinds):
            room = self.budget.room(owner, stage)
            if room <= 0:
                continue
            if stage.spec.top is None:
                if not self.drawer.create(owner, stage, wanted, room=room):
                    continue
            else:
                planned = self.insights.planned_params(owner, self.store.stages(owner.id), stage)
                params = planned[stage.n_created : stage.n_created + room]
                behind = [self.lineage.behind(owner.spec, owner.id, stage, each) for each in params]
                self.store.add_trials(stage.id, owner.next_number, params, now=self.clock(), behind=behind)
            return True  # also where another server was faster: then there is something to lease now
        return False

    def _assignment(self, lease: Lease) -> Assignment:
        spec = self._spec(lease.study, lease.study_id)
        line = self.lineage.line(spec, lease.study_id, lease.stage, lease.trial, lease.params)
        n_kept = self.lineage.n_kept(spec, lease.study_id, lease.stage)
        stops_at, stops_from = self.stopper.stops_at(lease), self.stopper.stops_from(lease)
        return Assignment(lease, spec, line, n_kept, stops_at, stops_from)

    def _read_spec(self, name: str, study_id: int) -> StudySpec:
        del study_id  # part of the key: a study deleted and made anew has another
        return self.store.study(name).spec

    def report(self, worker: str, reports: Sequence[Report]) -> list[Decision]:
        """See :meth:`Store.report`; and ``stop`` where the rule of a stage says so."""
        return self.report_all([(worker, reports)])[0]

    def report_all(self, calls: Sequence[tuple[str, Sequence[Report]]]) -> list[list[Decision]]:
        """Like :meth:`report` for several workers, in order, at hardly more than the cost of one."""
        reports = [report for _, some in calls for report in some]
        plan = self.stopper.plan(reports)
        decisions, entries = self.store.report(
            {worker for worker, _ in calls}, reports, plan.climbs, now=self.clock(), ttl=self.lease_ttl
        )
        decisions, promoted = self.stopper.decide(reports, decisions, plan, entries)
        if promoted:
            self._changed()
        return _shared_out(decisions, [some for _, some in calls])

    def finish(self, worker: str, results: Sequence[Result]) -> list[Outcome]:
        """End trials, and whatever ends with them. See :meth:`Store.finish`."""
        return self.finish_all([Ending(worker, results)])[0]

    def finish_all(self, calls: Sequence[Ending]) -> list[list[Outcome]]:
        """Like :meth:`finish` for several workers, in order, at hardly more than the cost of one."""
        reports = [report for call in calls for report in call.reports]
        ended = {result.token for call in calls for result in call.results}
        if not (all(report.token in ended for report in reports) and self.stopper.are_free(reports)):
            self.report_all([(call.worker, call.reports) for call in calls])  # others may be stopped by them
            calls = [replace(call, reports=()) for call in calls]
        stopped: set[tuple[int, str, str]] = set()

        def judge(result: Result, trial: HeldTrial) -> Result:
            judged = self._judged(result, trial)
            if judged.state is TrialState.PRUNED:
                stopped.add((trial.study_id, trial.study, trial.stage))
            return judged

        outcomes = self.store.finish(calls, judge, now=self.clock())
        for study_id, study, stage in sorted(stopped):
            self.stopper.promote(study_id, study, stage)
        self.settle()
        self._changed()
        return _shared_out(outcomes, [call.results for call in calls])

    def _judged(self, result: Result, trial: HeldTrial) -> Result:
        metric = self._spec(trial.study, trial.study_id).metric
        verdicts = verdicts_of(trial.steps, state=result.state, metric=metric.name, direction=metric.direction)
        state = self.stopper.ends_as(trial.study_id, trial.study, trial.stage, result.state)
        return replace(result, state=state, verdicts=tuple(verdict.document() for verdict in verdicts))

    # -- preflight ----------------------------------------------------------------------------------------------

    def claim_preflight(self, worker: str, kinds: Iterable[str]) -> tuple[Study, str] | None:
        """A study whose checks this worker is to run, and the token to finish them with; None if there is none."""
        return self.store.claim_preflight(worker, kinds=kinds, now=self.clock(), ttl=PREFLIGHT_TTL)

    def finish_preflight(self, name: str, token: str, checks: Sequence[dict[str, Any]]) -> bool:
        """Keep the checks of a study, and start it unless one failed. False if the token gives no right."""
        failed = [f"{check['name']}: {check['message']}" for check in checks if check["status"] == "fail"]
        failure = f"preflight failed: {'; '.join(failed)}" if failed else None
        study = self.store.study(name)
        accepted = self.store.finish_preflight(study.id, token, checks, failure=failure, now=self.clock())
        self._changed()
        return accepted

    def release(self, worker: str, tokens: Sequence[str]) -> list[Outcome]:
        """See :meth:`Store.release`."""
        outcomes = self.store.release(worker, tokens, now=self.clock())
        self._changed()
        return outcomes

    # -- what happens by itself ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Take back expired leases and settle stages. Called every second or so by whoever serves.

        For the length of a lease after its start a server takes nothing back: while it was away nobody could renew.
        """
        now = self.clock()
        if now >= self._reap_from and self.store.reap(now=now, max_lost=MAX_LOST):
            self._changed()
        self.settle()

    def was_away(self) -> None:
        """Take nothing back for the length of a lease: the server or its store did not answer, nobody could renew."""
        self._reap_from = self.clock() + self.lease_ttl

    def settle(self) -> None:
        """End every stage that is over, and open what follows. See :class:`hpsearch.stages.Stages`."""
        if self.stages.settle():
            self._changed()


def _shared_out(answers: Sequence[T], calls: Sequence[Sequence[Any]]) -> list[list[T]]:
    """The answers to each call."""
    left = iter(answers)
    return [list(islice(left, len(some))) for some in calls]
