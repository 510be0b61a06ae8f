"""What a study's limit of epochs leaves for further trials. One that resumes another costs what it trains itself."""

from __future__ import annotations

from hpsearch.insight import Insights
from hpsearch.lineage import Lineage
from hpsearch.store import Store, TrialQuery, all_trials
from hpsearch.study import Stage, Study
from hpsearch.trial import TrialState

_OPEN = (TrialState.QUEUED, TrialState.RUNNING)


class Budget:
    """Answers about studies; where one sets no limit, nothing is read for it."""

    def __init__(self, store: Store, insights: Insights, lineage: Lineage) -> None:
        self._store = store
        self._insights = insights
        self._lineage = lineage

    def room(self, study: Study, stage: Stage) -> int:
        """How many trials a stage may still create, within the study's limit of epochs."""
        room = stage.n_trials - stage.n_created
        left = self._left(study, stage)
        if left is None or room <= 0:
            return room
        if not stage.spec.resume:
            return min(room, left // stage.spec.n_epochs)
        n = 0
        for cost in self._costs(study, stage)[stage.n_created :]:
            left -= cost
            if left < 0:
                break
            n += 1
        return min(room, n)

    def is_spent(self, study: Study, stage: Stage) -> bool:
        """Whether nothing trains any more, and the limit leaves no room for another trial, of this stage or the next.

        Args:
            study: with the limit.
            stage: the one that runs; it may be done.
        """
        if any(stage.counts.get(state) for state in _OPEN):
            return False
        left = self._left(study, stage)
        return left is not None and left < self._next_cost(study, stage)

    def _left(self, study: Study, stage: Stage) -> int | None:
        """Epochs that neither were trained nor will be by the open trials of the stage; None: there is no limit."""
        limit = study.spec.stop.epochs
        if limit is None:
            return None
        trained = sum(s.n_epochs for s in self._store.stages(study.id))
        n_open = sum(stage.counts.get(state, 0) for state in _OPEN)
        taken = n_open * stage.spec.n_epochs
        if n_open and stage.spec.resume:
            found = all_trials(self._store, study.id, TrialQuery(stage=stage.name, states=_OPEN))
            taken -= sum(self._lineage.behind(study.spec, study.id, stage, trial.params) for trial in found)
        return limit - trained - taken

    def _next_cost(self, study: Study, stage: Stage) -> int:
        """Epochs of the next trial: of the stage, or where that is done, of what may follow it."""
        whole = stage.spec.n_epochs
        if stage.n_created < stage.n_trials:
            return next(iter(self._costs(study, stage)[stage.n_created :]), whole) if stage.spec.resume else whole
        following = study.spec.stages[stage.plan + 1 : stage.plan + 2]
        return min(whole, following[0].n_epochs - whole) if following and following[0].resume else whole

    def _costs(self, study: Study, stage: Stage) -> list[int]:
        """Epochs that each planned trial of a stage that resumes trains itself, in the order of their creation."""
        planned = self._insights.planned_params(study, self._store.stages(study.id), stage)
        return [stage.spec.n_epochs - self._lineage.behind(study.spec, study.id, stage, params) for params in planned]
