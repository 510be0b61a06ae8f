"""Which trials are best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from hpsearch.space import Params
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState


def ranked(trials: Iterable[Trial], metric: Metric) -> list[Trial]:
    """Completed trials with a finite value, best first; equal values by number."""
    done = [t for t in trials if t.state is TrialState.COMPLETED and t.value is not None and math.isfinite(t.value)]
    return sorted(done, key=lambda t: rank(t, metric))


def rank(trial: Trial, metric: Metric) -> tuple[float, int]:
    """What completed trials are ordered by, the best first."""
    value = trial.value or 0.0
    return (-value if metric.direction == "maximize" else value), trial.number


def first_params(trials: Iterable[Trial], top: int) -> list[Params]:
    """The first ``top`` different sets of params, at least 1; no more trials are taken than that needs."""
    chosen: dict[str, Params] = {}
    for trial in trials:
        chosen.setdefault(params_key(trial.params), trial.params)
        if len(chosen) == top:
            break
    return list(chosen.values())


def params_key(params: Params) -> str:
    """Equal for equal params, whatever their order."""
    return json.dumps(params, sort_keys=True)
