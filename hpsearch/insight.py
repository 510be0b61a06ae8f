"""What a study shows so far: its best, its flags, how far it is. Derived from the store, never kept in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from hpsearch.search.borders import Flag, border_flags
from hpsearch.search.ranking import finalists
from hpsearch.space import Params
from hpsearch.store import Store, TrialQuery, all_trials
from hpsearch.study import Stage, Study
from hpsearch.trial import TrialState


@dataclass(frozen=True, slots=True)
class Best:
    """The winner so far.

    Attributes:
        trial: its number; after a confirm stage the first of the finalist's trials.
        value: the metric; after a confirm stage the mean over seeds.
        mean, spread, n: of the seeds that completed, only after a confirm stage; ``spread`` is the sample standard
            deviation, None for a single seed.
    """

    trial: int
    stage: str
    params: Params
    value: float
    mean: float | None = None
    spread: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a study is.

    Attributes:
        finished, planned: trials, over all stages (those not opened yet included).
        fraction: of the planned epochs, from 0 to 1.
    """

    finished: int
    planned: int
    fraction: float


class Insights:
    """Answers about studies, remembered until the study's log grows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flags_at = lru_cache(maxsize=64)(self._read_flags)
        self._best_at = lru_cache(maxsize=256)(self._read_best)

    def best(self, study: Study, stages: list[Stage]) -> Best | None:
        """The winner so far, None before the first completed trial."""
        confirm = [s for s in stages if s.spec.top is not None and s.counts.get(TrialState.COMPLETED)]
        return self._best_at(
            study.name, study.id, self._store.last_event(study.id), confirm[-1].name if confirm else None
        )

    def flags(self, study: Study, stages: list[Stage]) -> list[Flag]:
        """The flags of every stage that samples, the latest stage first."""
        version = self._store.last_event(study.id)
        found: list[Flag] = []
        for index in reversed([s.index for s in stages if s.spec.top is None]):
            found += self._flags_at(study.name, study.id, index, version)
        return found

    def _read_best(self, name: str, study_id: int, version: int, confirm: str | None) -> Best | None:
        del version  # part of the key
        metric = self._store.study(name).spec.metric
        if confirm is not None:
            groups = finalists(all_trials(self._store, study_id, TrialQuery(stage=confirm)), metric)
            if groups:
                top = groups[0]
                number = top.trials[0].number
                return Best(number, confirm, top.params, top.mean, mean=top.mean, spread=top.spread, n=top.n)
        sort = "-value" if metric.direction == "maximize" else "value"
        query = TrialQuery(states=(TrialState.COMPLETED,), sort=sort, limit=1)
        for trial in self._store.trials(study_id, query).items:
            if trial.value is not None:
                return Best(trial.number, trial.stage, trial.params, trial.value)
        return None

    def _read_flags(self, name: str, study_id: int, index: int, version: int) -> tuple[Flag, ...]:
        del version  # part of the key
        stage = self._store.stages(study_id)[index]
        trials = all_trials(self._store, study_id, TrialQuery(stage=stage.name))
        return tuple(border_flags(stage.name, stage.space, trials, self._store.study(name).spec.metric))


def progress(study: Study, stages: list[Stage]) -> Progress:
    """How far a study is; stages not opened yet count with the budget that they plan."""
    finished = planned = 0
    epochs_finished = epochs_planned = 0
    for index, spec in enumerate(study.spec.stages):
        stage = stages[index] if index < len(stages) else None
        n = max(stage.n_trials, stage.n_finished) if stage else spec.n_trials
        done = stage.n_finished if stage else 0
        planned, finished = planned + n, finished + done
        epochs_planned, epochs_finished = epochs_planned + n * spec.n_epochs, epochs_finished + done * spec.n_epochs
    return Progress(finished, planned, min(1.0, epochs_finished / epochs_planned) if epochs_planned else 0.0)


def eta_seconds(study: Study, fraction: float, now: datetime) -> float | None:
    """Seconds to the end at the pace so far; 0 for an ended study, None before the first result."""
    if study.state.is_finished:
        return 0.0
    if fraction <= 0:
        return None
    elapsed = (now - study.created_at).total_seconds()
    return max(0.0, elapsed * (1 - fraction) / fraction)
