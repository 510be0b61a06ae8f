"""The results of a stage as arrays, on the scales of its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

Floats = NDArray[np.floating[Any]]

N_LEVELS = 21
"""Places of a range at which the surface is read; of a grid with fewer values, all of them."""


@dataclass(frozen=True)
class Results:
    """The results of a stage as arrays; only numeric parameters, whose names are ``names``.

    Attributes:
        places: (n, d) of the trials with a value, 0 at the lowest and 1 at the highest value of a range.
        scores: (n,) normal scores of their ranks, the higher the better; those stopped early share the last rank.
        completed: (n,) whether each of them completed.
        diverged: (m, d) places of the trials that diverged.
        levels: for each parameter the places that it can take, at most ``N_LEVELS`` of them.
    """

    names: tuple[str, ...]
    places: Floats
    scores: Floats
    completed: NDArray[np.bool_]
    diverged: Floats
    levels: tuple[Floats, ...]


def results(space: Space, trials: Sequence[Trial], metric: Metric) -> Results:
    """The arrays behind the flags. Trials that failed, were cancelled or lie outside the space are left out.

    A value that is not finite counts as diverged.
    """
    numeric = {name: p for name, p in space.items() if not isinstance(p, CategoricalParam)}
    inside = [t for t in sorted(trials, key=lambda t: t.number) if _inside(numeric, t)]
    valued = [t for t in inside if _value(t) is not None]
    diverged = [t for t in inside if t.state is TrialState.DIVERGED or (_value(t) is None and _has_result(t))]
    sign = 1.0 if metric.direction == "maximize" else -1.0
    completed = np.array([t.state is TrialState.COMPLETED for t in valued], dtype=bool)
    values = np.array([sign * (_value(t) or 0.0) for t in valued], dtype=np.float64)
    values[~completed] = values[completed].min() - 1 if completed.any() else 0.0
    return Results(
        tuple(numeric),
        _places(numeric, valued),
        normal_scores(values),
        completed,
        _places(numeric, diverged),
        tuple(_levels(p) for p in numeric.values()),
    )


def normal_scores(values: Floats) -> Floats:
    """Normal quantiles of the ranks, (rank − 3/8) / (n + 1/4) (Blom, 1958); ties share their mean rank.

    Ranks make the rule indifferent to the metric's unit, to any monotone change of it, and to values far off.
    """
    if not len(values):
        return values
    scores: Floats = scipy.stats.norm.ppf((scipy.stats.rankdata(values) - 0.375) / (len(values) + 0.25))
    return scores


def _inside(numeric: dict[str, FloatParam | IntParam], trial: Trial) -> bool:
    return all(name in trial.params and param.contains(trial.params[name]) for name, param in numeric.items())


def _has_result(trial: Trial) -> bool:
    return trial.state in {TrialState.COMPLETED, TrialState.PRUNED}


def _value(trial: Trial) -> float | None:
    """The value of a trial that has a finite one; one stopped early has a rank even without."""
    if not _has_result(trial):
        return None
    if trial.value is None:
        return 0.0 if trial.state is TrialState.PRUNED else None
    return trial.value if math.isfinite(trial.value) else None


def _span(param: FloatParam | IntParam) -> tuple[float, float]:
    """Place of the lowest value that can be sampled, and how far that of the highest is from it."""
    if isinstance(param, IntParam):
        highest: float = param.low + (param.high - param.low) // param.step * param.step
    else:
        highest = param.high if param.step is None else param.grid(param.cells - 1)
    low = to_unit(param, param.low)
    return low, (to_unit(param, highest) - low) or 1.0  # beyond 2^52 neighbours share a logarithm


def _places(numeric: dict[str, FloatParam | IntParam], trials: Sequence[Trial]) -> Floats:
    places = np.empty((len(trials), len(numeric)))
    for j, (name, param) in enumerate(numeric.items()):
        low, width = _span(param)
        places[:, j] = [(to_unit(param, t.params[name]) - low) / width for t in trials]
    return np.clip(places, 0.0, 1.0)


def _levels(param: FloatParam | IntParam) -> Floats:
    even = np.linspace(0.0, 1.0, N_LEVELS)
    if isinstance(param, FloatParam):
        return even if param.step is None or param.cells >= N_LEVELS else np.linspace(0.0, 1.0, param.cells)
    n = (param.high - param.low) // param.step + 1
    if n >= N_LEVELS:
        return even
    low, width = _span(param)
    return np.array([(to_unit(param, param.low + i * param.step) - low) / width for i in range(n)])
