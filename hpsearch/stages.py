"""When a stage ends and what follows: the next of the plan, a stage past a border, the end of the study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from hpsearch import advancing
from hpsearch.advancing import OwnStage, Proposal
from hpsearch.at_once import takes_time
from hpsearch.budget import Budget
from hpsearch.errors import Conflict, InvalidSpec, NotFound
from hpsearch.insight import Insights
from hpsearch.search import ending
from hpsearch.search.confirming import settled
from hpsearch.search.samplers import n_planned, stage_fault
from hpsearch.stopper import Stopper
from hpsearch.store import Store, TrialQuery
from hpsearch.study import Border, NewStage, Stage, StageState, Study, StudyState
from hpsearch.trial import TrialState
from hpsearch.values import Values

MAX_FAILURES = 3
"""A stage whose first trials all fail, so many of them, ends its study: the fault lies in the set-up."""

_CLOSED = (StudyState.CANCELLED, StudyState.FAILED, StudyState.PREFLIGHT)
"""States in which a study opens no stage."""


class Stages:
    """Ends and opens the stages of a store's studies. Repeating anything is harmless, also on several servers."""

    def __init__(
        self, store: Store, insights: Insights, stopper: Stopper, budget: Budget, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._insights = insights
        self._stopper = stopper
        self._budget = budget
        self._clock = clock
        self._values = Values(store)

    # -- what happens by itself ---------------------------------------------------------------------------------

    def settle(self) -> bool:
        """End every stage that is over, and open what follows; end studies that are complete or hopeless.

        Returns:
            whether anything may have changed.
        """
        found = self._store.stages_to_settle(max_failures=MAX_FAILURES)
        if found:
            takes_time()
        changed = [self._settle(study, stage) for study, stage in found]
        return any(changed)

    def _settle(self, study: Study, stage: Stage) -> bool:
        if stage.is_done and self._stopper.promote(study.id, study.name, stage.name, ending=stage):
            return True  # not over: trials that were stopped go on
        over = stage.is_done or _is_hopeless(stage)
        if over and not stage.counts.get(TrialState.COMPLETED):
            if self._extend(study, stage):
                return True
            if not self._has_result(study):
                return self._end(study, StudyState.FAILED, self._why_none_completed(study, stage))
        if over and study.state is StudyState.PAUSED and self._next_is_manual(study, stage):
            return False  # it waits for its user
        if reason := self._reason_to_stop(study, stage):
            return self._end(study, StudyState.COMPLETED, reason)
        if over or self._is_settled(study, stage):
            return self._extend(study, stage) or self._go_on(study, stage)
        return False

    def _go_on(self, study: Study, stage: Stage) -> bool:
        """Open the next stage of the plan, hold for it, or end the study."""
        if stage.plan + 1 >= len(study.spec.stages):
            is_fruitful = stage.counts.get(TrialState.COMPLETED, 0) > 0
            return self._end(
                study, StudyState.COMPLETED, None if is_fruitful else self._why_none_completed(study, stage)
            )
        if self._next_is_manual(study, stage):
            name = study.spec.stages[stage.plan + 1].name
            reason = f"the stage {name!r} waits for you: see what is proposed, then resume the study or open another"
            self._store.set_state(study.id, StudyState.PAUSED, reason=reason, now=self._clock())
            return True
        return self._open_next(study, stage)

    @staticmethod
    def _next_is_manual(study: Study, stage: Stage) -> bool:
        following = study.spec.stages[stage.plan + 1 : stage.plan + 2]
        return bool(following) and following[0].advance == "manual"

    def _open_next(self, study: Study, stage: Stage) -> bool:
        stages = self._store.stages(study.id)
        child = advancing.next_stage(study.spec, stages, stage, self._insights.told(study, stages, stage))
        return child is not None and self._store.open_stage(study.id, stage.index + 1, child, now=self._clock())

    def _extend(self, study: Study, stage: Stage) -> bool:
        """Open a stage past the flagged borders of one that asks for it, or past where nothing learns."""
        if stage.spec.on_border != "extend" or stage.spec.top is not None:
            return False
        stages = self._store.stages(study.id)
        if move := self._insights.move_on(study, stages, stage):
            return self._open(study, stage, advancing.elsewhere(study.spec, stages, stage, move, limited=True))
        flags = self._insights.worth_extending(study, stages, stage)
        return self._open(study, stage, advancing.extension(study.spec, stages, stage, flags, limited=True))

    def _open(self, study: Study, stage: Stage, proposal: Proposal | None) -> bool:
        if proposal is None:
            return False
        return self._store.open_stage(study.id, stage.index + 1, proposal.stage, now=self._clock())

    def _has_result(self, study: Study) -> bool:
        return any(s.counts.get(TrialState.COMPLETED) for s in self._store.stages(study.id))

    def _end(self, study: Study, state: StudyState, reason: str | None) -> bool:
        self._store.set_state(study.id, state, reason=reason, now=self._clock())
        return True

    def _why_none_completed(self, study: Study, stage: Stage) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in stage.counts.items() if n and state.is_finished)
        last = self._store.trials(study.id, TrialQuery(stage=stage.name, sort="-ended_at", limit=1)).items
        why = f": {last[0].reason}" if last and last[0].reason else ""
        return f"no trial of the stage {stage.name!r} completed ({counts}){why}"

    def _reason_to_stop(self, study: Study, stage: Stage) -> str | None:
        """Why a study ends itself now, None if it does not."""
        stop = study.spec.stop
        if stop.is_never:
            return None
        n_epochs = sum(s.n_epochs for s in self._store.stages(study.id))
        if self._budget.is_spent(study, stage):
            return f"the limit of {stop.epochs:,} epochs leaves no room for another trial ({n_epochs:,} trained)"
        metric = study.spec.metric
        sort = "-value" if metric.direction == "maximize" else "value"
        best = self._store.trials(study.id, TrialQuery(states=(TrialState.COMPLETED,), sort=sort, limit=1)).items
        seconds = (self._clock() - study.created_at).total_seconds()
        follows = stop.no_improvement is not None and stage.spec.top is None
        return ending.reason(
            stop,
            metric,
            best=best[0] if best else None,
            values=self._values.completed(study.id, stage.name) if follows else (),
            seconds=seconds,
            epochs=n_epochs,
        )

    def _is_settled(self, study: Study, stage: Stage) -> bool:
        """Whether a confirm stage has found its winner before all of its trials are done; asked between rounds."""
        if stage.spec.top is None or not stage.counts.get(TrialState.COMPLETED):
            return False
        found = self._insights.finalists(study, self._store.stages(study.id))
        rounds = {f.n + f.n_diverged for f in found}
        return len(rounds) == 1 and settled(found) is not None

    # -- what a user opens --------------------------------------------------------------------------------------

    def open_waiting(self, study: Study) -> None:
        """Open the stage that a paused study holds for its user, if it holds one."""
        for stage in self._store.stages(study.id):
            if stage.state is StageState.RUNNING and stage.is_done:
                self._open_next(study, stage)

    def proposals(self, study: Study, stages: Sequence[Stage]) -> list[Proposal]:
        """What may be opened by one call: stages past flagged borders, the latest first, and the next of the plan."""
        if study.state in _CLOSED:
            return []
        seen = self._store.acknowledgements(study.id)
        found = []
        for stage in reversed([s for s in stages if s.spec.top is None]):
            flags = self._insights.stage_flags(study, stages, stage)
            new = [f for f in flags if Border(f.stage, f.parameter, f.side) not in seen]
            proposal = advancing.extension(study.spec, stages, stage, advancing.to_act_on(new), limited=False)
            if proposal is None and (move := self._insights.move_on(study, stages, stage)):
                proposal = advancing.elsewhere(study.spec, stages, stage, move, limited=False)
            if proposal is not None:
                found.append(proposal)
        last = stages[-1]
        if last.counts.get(TrialState.COMPLETED):
            child = advancing.next_stage(study.spec, stages, last, self._insights.told(study, stages, last))
            if child is not None:
                found.append(Proposal("next", child, f"it follows the stage {last.name} in the plan of the study"))
        return found

    def open(self, study: Study, asked: OwnStage) -> Stage:
        """Open a proposed stage, as it is or with changes, or one of the user's own; what runs now ends.

        Raises:
            NotFound: there is no stage of the name of the parent.
            InvalidSpec, InvalidInput: what is asked for is no stage of this study.
            Conflict: nothing is proposed, the study was cancelled or failed, or another stage was opened meanwhile.
        """
        if study.state in _CLOSED:
            raise Conflict(f"the study {study.name!r} is {study.state.value}: no stage can be opened")
        stages = self._store.stages(study.id)
        new = self._asked(study, stages, asked)
        if fault := stage_fault(new.spec, new.space):
            raise InvalidSpec([fault])
        new = replace(new, n_trials=n_planned(new))
        if not self._store.open_stage(study.id, len(stages), new, now=self._clock()):
            raise Conflict("another stage was opened meanwhile: look at it first")
        if study.state is StudyState.PAUSED:
            self._store.set_state(study.id, StudyState.RUNNING, now=self._clock())
        return next(s for s in self._store.stages(study.id) if s.name == new.spec.name)

    def _asked(self, study: Study, stages: Sequence[Stage], asked: OwnStage) -> NewStage:
        if asked.proposal is not None or asked.says_nothing:
            proposal = advancing.find(self.proposals(study, stages), asked.proposal)
            return advancing.edited(study.spec, proposal, asked)
        parent = next((s for s in stages if s.name == (asked.parent or stages[-1].name)), None)
        if parent is None:
            raise NotFound("stage", asked.parent)
        return advancing.own_stage(study.spec, stages, parent, asked, self._insights.told(study, stages, parent))

    def acknowledge(self, study: Study, border: Border, note: str | None) -> None:
        """Note that the user has seen the flag of a border; None takes it back. Raises NotFound."""
        stage = next((s for s in self._store.stages(study.id) if s.name == border.stage), None)
        if stage is None:
            raise NotFound("stage", border.stage)
        if border.parameter not in stage.space:
            raise NotFound("parameter", border.parameter)
        self._store.acknowledge(study.id, border, note, now=self._clock())


def _is_hopeless(stage: Stage) -> bool:
    n_failed = stage.counts.get(TrialState.FAILED, 0)
    return n_failed >= MAX_FAILURES and n_failed == stage.n_finished
