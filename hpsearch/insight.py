"""What a study shows so far: its best, its flags, how far it is. Derived from the store, never kept in it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from hpsearch.advancing import Evidence, inherits
from hpsearch.methods import NoStopping
from hpsearch.search.borders import Flag, border_flags, worth_extending
from hpsearch.search.confirming import Finalist, finalists
from hpsearch.search.ranking import first_params, params_key, rank
from hpsearch.search.samplers import adaptive_numbers
from hpsearch.search.stopping import saved_epochs, stopped_as
from hpsearch.search.unlearned import Move, move_on
from hpsearch.space import Params, check_params
from hpsearch.spec import Metric
from hpsearch.store import Store, TrialQuery, all_trials
from hpsearch.study import Stage, StageState, Study
from hpsearch.trial import Trial, TrialState

SAMPLE = 5_000
"""A stage with more ended trials is judged by a sample of so many: more would tell nothing else, but take memory."""


@dataclass(frozen=True, slots=True)
class Best:
    """The winner so far.

    Attributes:
        trial: its number; after a confirm stage the first of the finalist's trials.
        value: the metric; after a confirm stage the mean over seeds.
        mean, spread, n: of the seeds that completed, only after a confirm stage; ``spread`` is the sample standard
            deviation, None for a single seed.
        interval, probability_best, optimism: see :class:`hpsearch.search.confirming.Finalist`.
    """

    trial: int
    stage: str
    params: Params
    value: float
    mean: float | None = None
    spread: float | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None
    probability_best: float | None = None
    optimism: float | None = None


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
        self._judged_at = lru_cache(maxsize=64)(self._judge)
        self._n_inherited_at = lru_cache(maxsize=64)(self._count_inherited)
        self._saved_at = lru_cache(maxsize=64)(self._read_saved)
        self._finalists_at = lru_cache(maxsize=64)(self._read_finalists)
        self._best_at = lru_cache(maxsize=256)(self._read_best)

    def best(self, study: Study, stages: list[Stage]) -> Best | None:
        """The winner so far, None before the first completed trial."""
        confirm = [s for s in stages if s.spec.top is not None and s.counts.get(TrialState.COMPLETED)]
        return self._best_at(
            study.name, study.id, self._store.last_event(study.id), confirm[-1].name if confirm else None
        )

    def flags(self, study: Study, stages: list[Stage]) -> list[Flag]:
        """The flags of every stage that samples, the latest stage first."""
        found: list[Flag] = []
        for stage in reversed([s for s in stages if s.spec.top is None]):
            found += self.stage_flags(study, stages, stage)
        return found

    def finalists(self, study: Study, stages: Sequence[Stage]) -> list[Finalist]:
        """The finalists of the last confirm stage that has results, best first."""
        for stage in reversed(stages):
            if stage.spec.top is not None and stage.counts.get(TrialState.COMPLETED):
                parent = next((s for s in stages if s.name == stage.parent), None)
                version = (stage.n_finished, stage.n_epochs, *(_version(stages, parent) if parent else ()))
                return list(self._finalists_at(study.name, study.id, stage.index, version))
        return []

    def stage_flags(self, study: Study, stages: Sequence[Stage], stage: Stage) -> tuple[Flag, ...]:
        """The flags of one stage that samples; of one past a border only once it has sampled what is new in it."""
        if stage.extension and stage.state is StageState.RUNNING and not stage.is_done:
            return ()
        return self._judged_at(study.name, study.id, stage.index, _version(stages, stage))[0]

    def move_on(self, study: Study, stages: Sequence[Stage], stage: Stage) -> Move | None:
        """Where to look instead of a stage in which next to nothing was learned; None while it samples still."""
        if stage.state is StageState.RUNNING and not stage.is_done:
            return None
        return self._judged_at(study.name, study.id, stage.index, _version(stages, stage))[1]

    def worth_extending(self, study: Study, stages: Sequence[Stage], stage: Stage) -> list[Flag]:
        """The borders of a stage that is done that a stage of its own should go past."""
        trials, adaptive = self.judged(study.id, stages, stage), self._adaptive(study.id, stages, stage)
        return worth_extending(stage.name, stage.space, trials, study.spec.metric, adaptive=adaptive)

    def n_inherited(self, study: Study, stages: Sequence[Stage], stage: Stage) -> int:
        """How many trials of its parents a stage takes as its own evidence."""
        parent = _heir_of(stages, stage)
        if parent is None:
            return 0
        return self._n_inherited_at(study.id, stage.index, _version(stages, parent))

    def saved_epochs(self, study: Study, stages: Sequence[Stage], stage: Stage) -> int:
        """Epochs that a stage's early stopping saved; see :func:`hpsearch.search.stopping.saved_epochs`."""
        if isinstance(stage.spec.early_stopping, NoStopping):
            return 0
        return self._saved_at(study.id, stage.index, _version(stages, stage))

    def evidence(self, study_id: int, stages: Sequence[Stage], stage: Stage) -> list[Trial]:
        """The trials of a stage, and those of its parents that lie in its space and trained as its own do."""
        own = all_trials(self._store, study_id, TrialQuery(stage=stage.name))
        parent = _heir_of(stages, stage)
        return own if parent is None else own + _inside(stage, self.evidence(study_id, stages, parent))

    def judged(self, study_id: int, stages: Sequence[Stage], stage: Stage) -> list[Trial]:
        """The same, with a sample of a stage of more than :data:`SAMPLE` ended trials in place of all."""
        return self._own(study_id, stage) + self._inherited(study_id, stages, stage)

    def told(self, study: Study, stages: Sequence[Stage], stage: Stage) -> Evidence:
        """What a stage tells of its child, read when asked for."""
        return Evidence(
            judged=lambda: self.judged(study.id, stages, stage),
            from_best=lambda: self.from_best(study.id, stages, stage, study.spec.metric),
        )

    def planned_params(self, study: Study, stages: Sequence[Stage], stage: Stage) -> list[Params]:
        """The params of every trial of a stage with ``top``: round after round, each finalist of its parent once."""
        parent = next(s for s in stages if s.name == stage.parent)
        best = first_params(self.from_best(study.id, stages, parent, study.spec.metric), stage.spec.top or 0)
        return [params for _ in range(stage.spec.n_seeds) for params in best]

    def from_best(self, study_id: int, stages: Sequence[Stage], stage: Stage, metric: Metric) -> Iterator[Trial]:
        """The completed trials of :meth:`evidence`, best first, read as they are asked for."""
        own = self._own_from_best(study_id, stage, metric)
        parent = _heir_of(stages, stage)
        if parent is None:
            return own
        of_parent = self.from_best(study_id, stages, parent, metric)
        inherited = (t for t in of_parent if not check_params(stage.space, t.params))
        return heapq.merge(own, inherited, key=lambda trial: rank(trial, metric))

    def _own_from_best(self, study_id: int, stage: Stage, metric: Metric) -> Iterator[Trial]:
        sort = "-value" if metric.direction == "maximize" else "value"
        query = TrialQuery(stage=stage.name, states=(TrialState.COMPLETED,), sort=sort)
        while True:
            page = self._store.trials(study_id, query)
            yield from page.items
            if page.next is None:
                return
            query = replace(query, after=page.next)

    def _own(self, study_id: int, stage: Stage) -> list[Trial]:
        """The trials of a stage; of a huge one every so many-th.

        An odd step: a power of two would see one corner of a grid, or of a Sobol sequence.
        """
        every = (-(-stage.n_finished // SAMPLE)) | 1 if stage.n_finished > SAMPLE else 1
        return all_trials(self._store, study_id, TrialQuery(stage=stage.name, every=every))

    def _inherited(self, study_id: int, stages: Sequence[Stage], stage: Stage) -> list[Trial]:
        parent = _heir_of(stages, stage)
        return [] if parent is None else _inside(stage, self.judged(study_id, stages, parent))

    def _read_best(self, name: str, study_id: int, version: int, confirm: str | None) -> Best | None:
        del version  # part of the key
        study = self._store.study(name)
        metric = study.spec.metric
        if confirm is not None and (groups := self.finalists(study, self._store.stages(study_id))):
            top = groups[0]
            return Best(
                top.trials[0].number,
                confirm,
                top.params,
                top.mean,
                mean=top.mean,
                spread=top.spread,
                n=top.n,
                interval=top.interval,
                probability_best=top.probability_best,
                optimism=top.optimism,
            )
        sort = "-value" if metric.direction == "maximize" else "value"
        query = TrialQuery(states=(TrialState.COMPLETED,), sort=sort, limit=1)
        for trial in self._store.trials(study_id, query).items:
            if trial.value is not None:
                return Best(trial.number, trial.stage, trial.params, trial.value)
        return None

    def _read_finalists(self, name: str, study_id: int, index: int, version: tuple[int, ...]) -> tuple[Finalist, ...]:
        del version  # part of the key
        stages = self._store.stages(study_id)
        stage = stages[index]
        metric = self._store.study(name).spec.metric
        trials = self.evidence(study_id, stages, stage)
        return tuple(finalists(trials, metric, parent=self._chosen(study_id, stages, stage, trials, metric)))

    def _chosen(
        self, study_id: int, stages: Sequence[Stage], stage: Stage, trials: Sequence[Trial], metric: Metric
    ) -> Iterator[Trial]:
        """Of each params of some trials of a confirm stage the best that the parent has; read until all are found."""
        parent = next((s for s in stages if s.name == stage.parent), None)
        missing = {params_key(t.params) for t in trials} if parent is not None else set()
        best = iter(()) if parent is None else self.from_best(study_id, stages, parent, metric)
        while missing and (trial := next(best, None)) is not None:
            if (key := params_key(trial.params)) in missing:
                missing.remove(key)
                yield trial

    def _count_inherited(self, study_id: int, index: int, version: tuple[int, ...]) -> int:
        del version  # part of the key
        stages = self._store.stages(study_id)
        parent = _heir_of(stages, stages[index])
        return 0 if parent is None else len(_inside(stages[index], self.evidence(study_id, stages, parent)))

    def _read_saved(self, study_id: int, index: int, version: tuple[int, ...]) -> int:
        del version  # part of the key
        stage = self._store.stages(study_id)[index]
        rule = stage.spec.early_stopping
        return saved_epochs(self._store.n_by_step(study_id, stage.name, stopped_as(rule)), stage.spec.n_epochs)

    def _judge(
        self, name: str, study_id: int, index: int, version: tuple[int, ...]
    ) -> tuple[tuple[Flag, ...], Move | None]:
        del version  # part of the key
        stages = self._store.stages(study_id)
        stage = stages[index]
        metric = self._store.study(name).spec.metric
        trials, adaptive = self.judged(study_id, stages, stage), self._adaptive(study_id, stages, stage)
        n = sum(trial.stage == stage.name for trial in trials)
        said = f" (judged by {n:,} of {stage.n_finished:,} trials)" if stage.n_finished > SAMPLE else ""
        flags = border_flags(stage.name, stage.space, trials, metric, adaptive=adaptive)
        return tuple(replace(flag, message=flag.message + said) for flag in flags), move_on(stage.name, trials)

    def _adaptive(self, study_id: int, stages: Sequence[Stage], stage: Stage) -> set[int]:
        """Numbers of the trials among a stage's evidence whose params followed from earlier results."""
        parent = _heir_of(stages, stage)
        found = self._adaptive(study_id, stages, parent) if parent is not None else set()
        if not stage.spec.sampler.is_own:
            inherited = self._inherited(study_id, stages, stage)
            found |= adaptive_numbers(stage.spec.sampler, self._own(study_id, stage), inherited=inherited)
        return found


def _heir_of(stages: Sequence[Stage], stage: Stage) -> Stage | None:
    """The parent whose trials a stage inherits."""
    parent = next((s for s in stages if s.name == stage.parent), None)
    return parent if parent is not None and inherits(stage, parent) else None


def _inside(stage: Stage, trials: Iterable[Trial]) -> list[Trial]:
    """Those that lie in a stage's space."""
    return [trial for trial in trials if not check_params(stage.space, trial.params)]


def _version(stages: Sequence[Stage], stage: Stage) -> tuple[int, ...]:
    """What changes whenever the results change that a stage is judged by.

    Of a stage that samples still it changes with every result up to 64, then with every 32nd to 64th part of them, so
    that a long stage is not read from its beginning after each of its trials.
    """
    n = stage.n_finished
    is_open = stage.state is StageState.RUNNING and not stage.is_done
    coarse = max(n.bit_length() - 6, 0)
    own = (n >> coarse << coarse, -1) if is_open else (n, stage.n_epochs)
    parent = _heir_of(stages, stage)
    return own if parent is None else (*own, *_version(stages, parent))


def progress(study: Study, stages: list[Stage]) -> Progress:
    """How far a study is; stages not opened yet count with the budget that they plan."""
    opened = [(s.spec.n_epochs, s.n_finished, _n_planned(s)) for s in stages]
    following = study.spec.stages[stages[-1].plan + 1 :] if stages else study.spec.stages
    parts = opened + [(s.n_epochs, 0, s.n_trials) for s in following]
    finished, planned = sum(done for _, done, _ in parts), sum(n for _, _, n in parts)
    epochs_finished = sum(epochs * done for epochs, done, _ in parts)
    epochs_planned = sum(epochs * n for epochs, _, n in parts)
    return Progress(finished, planned, min(1.0, epochs_finished / epochs_planned) if epochs_planned else 0.0)


def _n_planned(stage: Stage) -> int:
    return max(stage.n_trials, stage.n_finished) if stage.state is StageState.RUNNING else stage.n_finished


def eta_seconds(study: Study, fraction: float, now: datetime) -> float | None:
    """Seconds to the end at the pace so far; 0 for an ended study, None before the first result."""
    if study.state.is_finished:
        return 0.0
    if fraction <= 0:
        return None
    elapsed = (now - study.created_at).total_seconds()
    return max(0.0, elapsed * (1 - fraction) / fraction)
