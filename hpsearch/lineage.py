"""Which training a trial goes on with, where its stage resumes the best of its parent.

Such a trial trains with the streams of the one that it continues: initial weights, dropout and the order of minibatches
are those of the trial at the beginning of the line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hpsearch.at_once import takes_time
from hpsearch.insight import Insights
from hpsearch.methods import Halving
from hpsearch.search.ranking import params_key
from hpsearch.search.sampling import data_seed, training_seed
from hpsearch.space import Params
from hpsearch.spec import StudySpec
from hpsearch.store import Store
from hpsearch.study import Stage
from hpsearch.trial import Trial


@dataclass(frozen=True, slots=True)
class ResumeFrom:
    """What a trial goes on from: itself before it was stopped or lost, or a trial of the parent stage.

    Attributes:
        step: the last that was reported of it; a checkpoint may be older.
        epochs: what its stage trains.
    """

    stage: str
    trial: int
    step: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Line:
    """Where a trial's training comes from.

    Attributes:
        parent: the trial that it continues, None for one that begins itself.
        seed: what it trains with (weights), its own or that of the first trial of the line.
        data_seed: what the order of the minibatches follows from, shared by all trials of the stage where that began.
        folds, repeats: as the stage where it began has them.
    """

    parent: ResumeFrom | None
    seed: int
    data_seed: int
    folds: int | None
    repeats: int


class Lineage:
    """Answers about trials; what a stage resumes never changes once the stage is open, and is remembered."""

    def __init__(self, store: Store, insights: Insights) -> None:
        self._store = store
        self._insights = insights
        self._stages = lru_cache(maxsize=256)(self._read_stage)
        self._continued = lru_cache(maxsize=1024)(self._read_continued)

    def line(self, spec: StudySpec, study_id: int, stage: str, trial: int, params: Params) -> Line:
        """The line of a trial of a stage. Params that no trial of the parent had begin a line themselves."""
        of = self._stages(study_id, stage)
        before = self._continued(spec.name, study_id, stage, params_key(params)) if of.spec.resume else None
        if before is None:
            return Line(
                None,
                training_seed(spec.seed, of.index, trial),
                data_seed(spec.seed, of.index),
                of.spec.folds,
                of.spec.n_repeats,
            )
        first = self.line(spec, study_id, before.stage, before.number, before.params)
        epochs = self._stages(study_id, before.stage).spec.n_epochs
        parent = ResumeFrom(before.stage, before.number, before.step, epochs)
        return Line(parent, first.seed, first.data_seed, first.folds, first.repeats)

    def behind(self, spec: StudySpec, study_id: int, stage: Stage, params: Params) -> int:
        """Epochs that a trial with these params has behind it when it begins."""
        before = None
        if stage.spec.resume:
            before = self._continued(spec.name, study_id, stage.name, params_key(params))
        return 0 if before is None else before.step

    def n_kept(self, spec: StudySpec, study_id: int, stage: str) -> tuple[int, int]:
        """How many checkpoints may be needed again: of trials stopped at one epoch, and of completed ones, the best."""
        of = self._stages(study_id, stage)
        rule, following = of.spec.early_stopping, spec.stages[of.plan + 1 : of.plan + 2]
        stopped = of.n_trials // rule.reduction if isinstance(rule, Halving) else 0
        return stopped, (following[0].top or 0) if following and following[0].resume else 0

    def _read_stage(self, study_id: int, name: str) -> Stage:
        return next(stage for stage in self._store.stages(study_id) if stage.name == name)

    def _read_continued(self, study: str, study_id: int, name: str, key: str) -> Trial | None:
        """The best trial of the parent with some params. Finalists are found among the first that are read."""
        takes_time()
        stages = self._store.stages(study_id)
        stage = next(s for s in stages if s.name == name)
        parent = next(s for s in stages if s.name == stage.parent)
        best = self._insights.from_best(study_id, stages, parent, self._store.study(study).spec.metric)
        return next((trial for trial in best if params_key(trial.params) == key), None)
