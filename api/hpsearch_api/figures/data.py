"""What every figure is made of: a study's trials as columns, and which of them to draw."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hpsearch.analysis import StageAgreement
from hpsearch.search.borders import Flag
from hpsearch.search.confirming import Finalist
from hpsearch.space import CategoricalParam, FloatParam, Param, Space, Value
from hpsearch.spec import StudySpec
from hpsearch.study import Stage
from hpsearch.trial import StepMetrics, Trial, TrialState

Floats = npt.NDArray[np.float64]

MAX_CHOICES = 1000
N_BEST = 3
"""How many of the best trials a figure marks."""


def no_metrics(numbers: Sequence[int]) -> list[StepMetrics]:  # noqa: ARG001 - the shape of FigureData.metrics
    """Metrics of a study whose trials have reported nothing."""
    return []


@dataclass(frozen=True)
class FigureData:
    """Everything a figure may show.

    Attributes:
        stages: by index; figures draw them in this order.
        trials: in any order; all of the study, or those a caller chose.
        flags: of the study's borders.
        finalists: of its last confirm stage, best first.
        agreements: between epoch budgets.
        n_trials: how many the study has, where ``trials`` are a sample of them; None: they are all.
        metrics: what the trials of these numbers reported, by trial and step. Called only by figures of curves, with
            few numbers, so that nobody loads every step of every trial.
    """

    spec: StudySpec
    stages: list[Stage]
    trials: list[Trial]
    metrics: Callable[[Sequence[int]], list[StepMetrics]] = no_metrics
    flags: Sequence[Flag] = ()
    finalists: Sequence[Finalist] = ()
    agreements: Sequence[StageAgreement] = ()
    n_trials: int | None = None

    @cached_property
    def space(self) -> Space:
        """The study's space; of one that has none of its own (an Optuna study) what its trials have."""
        return self.spec.space or inferred_space(self.trials)

    @property
    def sample_note(self) -> str:
        """What the trials are a sample of; empty if they are all."""
        n = self.n_trials
        return "" if n is None else f"{len(self.trials):,} of {n:,} trials drawn, evenly spread, the best among them"

    @property
    def maximize(self) -> bool:
        """Whether a higher value of the metric is better."""
        return self.spec.metric.direction == "maximize"

    @property
    def stage_names(self) -> list[str]:
        """The opened stages by index; a stage that only a trial names comes after them."""
        names = [stage.name for stage in self.stages]
        return names + sorted({trial.stage for trial in self.trials} - set(names))

    def valued(self) -> list[Trial]:
        """Trials that have a value, by number."""
        return sorted((t for t in self.trials if t.value is not None), key=lambda t: t.number)

    def diverged(self) -> list[Trial]:
        """Trials that diverged, by number."""
        return sorted((t for t in self.trials if t.state is TrialState.DIVERGED), key=lambda t: t.number)

    def running(self) -> list[Trial]:
        """Trials that a worker holds, by number."""
        return sorted((t for t in self.trials if t.state is TrialState.RUNNING), key=lambda t: t.number)

    def ranked(self) -> list[Trial]:
        """Completed trials, best first; ties go to the lower number. Pruned ones follow, best first too.

        A pruned trial's value belongs to fewer steps than a completed one's, so it never outranks it.
        """
        return list(self._ranked)

    @cached_property
    def _ranked(self) -> list[Trial]:
        sign = -1.0 if self.maximize else 1.0
        return sorted(
            (t for t in self.trials if t.value is not None),
            key=lambda t: (t.state is not TrialState.COMPLETED, sign * (t.value or 0.0), t.number),
        )

    def best(self) -> list[Trial]:
        """At most :data:`N_BEST` completed trials, best first."""
        return [t for t in self._ranked[:N_BEST] if t.state is TrialState.COMPLETED]


def inferred_space(trials: Sequence[Trial]) -> Space:
    """The ranges that trials span, for those whose study does not say.

    A parameter that is a number in every trial that has it is a number, on a log scale where it is positive and spans
    more than two decades; any other is categorical.
    """
    seen: dict[str, list[Value]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            seen.setdefault(name, []).append(value)
    return {name: _inferred(values) for name, values in seen.items()}


def _inferred(values: list[Value]) -> Param:
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if len(numbers) < len(values) or low == high:
        unlike = {json.dumps(value): value for value in values}
        return CategoricalParam(type="categorical", choices=list(unlike.values())[:MAX_CHOICES])
    return FloatParam(type="float", low=low, high=high, log=low > 0 and high > 100 * low)


def values_of(trials: Sequence[Trial]) -> Floats:
    """The trials' values, NaN where there is none."""
    return np.array([np.nan if t.value is None else t.value for t in trials], dtype=np.float64)


def comparable(data: FigureData, trials: Sequence[Trial]) -> tuple[list[Trial], int]:
    """The trials of one budget of epochs, that which most of them have, and the budget: others give other values."""
    epochs = {stage.name: stage.spec.n_epochs for stage in data.stages}
    counts = Counter(epochs.get(trial.stage, 1) for trial in trials)
    budget = max(counts, key=lambda n: (counts[n], n), default=1)
    return [trial for trial in trials if epochs.get(trial.stage, 1) == budget], budget


def numbers_of(trials: Sequence[Trial]) -> npt.NDArray[np.int64]:
    """The trials' numbers."""
    return np.array([t.number for t in trials], dtype=np.int64)


def thin(trials: list[Trial], limit: int, *, keep: Sequence[Trial] = ()) -> tuple[list[Trial], str]:
    """At most ``limit`` trials, evenly spread over the given order, with those of ``keep`` always among them.

    Returns:
        the trials, and a sentence that says what is left out (empty if nothing is).
    """
    if len(trials) <= limit:
        return trials, ""
    kept = {t.number for t in keep}
    free = max(limit - len(kept), 1)
    picked = {trials[int(i)].number for i in np.linspace(0, len(trials) - 1, free)} | kept
    shown = [t for t in trials if t.number in picked]
    return shown, f"{len(shown):,} of {len(trials):,} trials drawn, evenly spread, the best among them"
