"""The rules between requests and the store: what is sampled, who gets it, when a stage ends and what follows.

A coordinator keeps no state of its own but a cache of immutable specs, so any number of them may work on one store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from hpsearch.errors import Conflict, Fault, InvalidSpec
from hpsearch.insight import Insights
from hpsearch.search.ranking import finalist_params
from hpsearch.search.refining import difference, narrow
from hpsearch.search.sampling import data_seed, sample, training_seed
from hpsearch.space import Params, check_params
from hpsearch.spec import StageSpec, StudySpec
from hpsearch.store import Store, TrialQuery, WorkerHello, all_trials
from hpsearch.study import NewStage, Stage, StageState, Study, StudyState
from hpsearch.trial import Decision, HeldTrial, Lease, Outcome, Report, Result, TrialState
from hpsearch.verdicts import judge

QUEUE_AHEAD = 64
"""At least so many trials are created at a time, if the stage has room."""
MAX_FAILURES = 3
"""A stage whose first trials all fail, so many of them, ends its study: the fault lies in the set-up."""
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
        seed: what the trial trains with (weights), its own.
        data_seed: what the order of the minibatches follows from, shared by all trials of the stage.
    """

    lease: Lease
    spec: StudySpec
    seed: int
    data_seed: int


class Coordinator:
    """See the module's text. Every method may be called from any thread; each may wait for the store."""

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
        """Create a study, or find the one that an equal request created. See :meth:`Store.create_study`."""
        first = spec.stages[0]
        stage = NewStage(spec=first, space=spec.space, n_trials=first.n_trials)
        study, created = self.store.create_study(
            spec,
            stage,
            now=self.clock(),
            idempotency_key=idempotency_key,
            preflight=spec.preflight and spec.objective.kind != "external",
        )
        if created:
            self._changed()
        return study, created

    def set_state(self, name: str, state: StudyState, *, reason: str | None = None) -> Study:
        """Pause, resume or cancel a study. Raises NotFound, Conflict."""
        study = self.store.study(name)
        changed = self.store.set_state(study.id, state, reason=reason, now=self.clock())
        self._changed()
        return changed

    def delete(self, name: str) -> None:
        """Remove a study and all that belongs to it. Raises NotFound."""
        self.store.delete_study(self.store.study(name).id)
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
        if study is not None:
            self.store.study(study)
        wanted = None if kinds is None else sorted(set(kinds))
        share = self._fair_share(worker, capacity, study, wanted) if capacity > 1 else 1
        if share < capacity:
            held = self._lease(worker, capacity, study, [])
            if held:
                return [self._assignment(lease) for lease in held]
            if share == 0:
                return []
            capacity = share
        leases = self._lease(worker, capacity, study, wanted)
        while len(leases) < capacity and self._create_trials(capacity - len(leases), study, wanted):
            leases = self._lease(worker, capacity, study, wanted)
        if leases:
            self._changed()
        return [self._assignment(lease) for lease in leases]

    def _fair_share(self, worker: WorkerHello, capacity: int, study: str | None, kinds: list[str] | None) -> int:
        """How many trials this worker may take so that all who wait get as many: a wide pack must idle nobody."""
        since = self.clock() - 2 * self.lease_ttl
        waiting, others = self.store.demand(worker.name, since=since, study=study, kinds=kinds)
        return min(capacity, -(-waiting // (others + 1)))

    def _lease(self, worker: WorkerHello, capacity: int, study: str | None, kinds: list[str] | None) -> list[Lease]:
        return self.store.lease(
            worker, capacity, now=self.clock(), ttl=self.lease_ttl, study=study, kinds=kinds, max_lost=MAX_LOST
        )

    def _create_trials(self, wanted: int, study: str | None, kinds: list[str] | None) -> bool:
        """Create queued trials in the first stage that has room; False if none has."""
        for owner, stage in self.store.stages_with_room(study=study, kinds=kinds):
            count = min(stage.n_trials - stage.n_created, max(wanted, QUEUE_AHEAD))
            first = owner.next_number
            if stage.spec.top is None:
                numbers = range(first, first + count)
                params = [sample(stage.space, seed=owner.spec.seed, stage=stage.index, number=n) for n in numbers]
            else:
                params = self._finalists(owner, stage)[stage.n_created : stage.n_created + count]
            self.store.add_trials(stage.id, first, params, now=self.clock())
            return True  # also where another server was faster: then there is something to lease now
        return False

    def _finalists(self, study: Study, stage: Stage) -> list[Params]:
        """The params of every trial of a confirm stage: each finalist of the parent, once per seed."""
        trials = all_trials(self.store, study.id, TrialQuery(stage=stage.parent))
        best = finalist_params(trials, study.spec.metric, stage.spec.top or 0)
        return [params for params in best for _ in range(stage.spec.n_seeds)]

    def _assignment(self, lease: Lease) -> Assignment:
        spec = self._spec(lease.study, lease.study_id)
        return Assignment(
            lease,
            spec,
            seed=training_seed(spec.seed, lease.stage_index, lease.trial),
            data_seed=data_seed(spec.seed, lease.stage_index),
        )

    def _read_spec(self, name: str, study_id: int) -> StudySpec:
        del study_id  # part of the key: a study deleted and made anew has another
        return self.store.study(name).spec

    def report(self, worker: str, reports: Sequence[Report]) -> list[Decision]:
        """See :meth:`Store.report`."""
        return self.store.report(worker, reports, now=self.clock(), ttl=self.lease_ttl)

    def finish(self, worker: str, results: Sequence[Result]) -> list[Outcome]:
        """End trials, and whatever ends with them. See :meth:`Store.finish`."""
        held = self.store.held([result.token for result in results])
        judged = [self._judged(result, held.get(result.token)) for result in results]
        outcomes = self.store.finish(worker, judged, now=self.clock())
        self.settle()
        self._changed()
        return outcomes

    def _judged(self, result: Result, held: HeldTrial | None) -> Result:
        if held is None:
            return result
        metric = self._spec(held.study, held.study_id).metric
        verdicts = judge(held.steps, state=result.state, metric=metric.name, direction=metric.direction)
        return replace(result, verdicts=tuple(asdict(verdict) for verdict in verdicts))

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

    def settle(self) -> None:
        """End every stage that is done, and open what follows; end studies that are complete or hopeless.

        Repeating it is harmless, also at the same time on several servers.
        """
        for study, stage in self.store.stages_to_settle(max_failures=MAX_FAILURES):
            self._settle(study, stage)
            self._changed()

    def _settle(self, study: Study, stage: Stage) -> None:
        now = self.clock()
        if not stage.counts.get(TrialState.COMPLETED):
            reason = self._why_none_completed(study, stage)
            self.store.set_state(study.id, StudyState.FAILED, reason=reason, now=now)
        elif stage.index + 1 == len(study.spec.stages):
            self.store.set_state(study.id, StudyState.COMPLETED, now=now)
        else:
            self._open_next(study, stage, study.spec.stages[stage.index + 1])

    def _why_none_completed(self, study: Study, stage: Stage) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in stage.counts.items() if n and state.is_finished)
        last = self.store.trials(study.id, TrialQuery(stage=stage.name, sort="-ended_at", limit=1)).items
        why = f": {last[0].reason}" if last and last[0].reason else ""
        return f"no trial of the stage {stage.name!r} completed ({counts}){why}"

    def _open_next(self, study: Study, stage: Stage, following: StageSpec) -> None:
        trials = all_trials(self.store, study.id, TrialQuery(stage=stage.name))
        metric = study.spec.metric
        if following.top is None:
            space, n_trials = narrow(stage.space, trials, metric), following.n_trials
        else:
            space = stage.space
            n_trials = len(finalist_params(trials, metric, following.top)) * following.n_seeds
        child = NewStage(following, space, n_trials, parent=stage.name, difference=difference(stage.space, space))
        self.store.open_stage(study.id, stage.index + 1, child, now=self.clock())
