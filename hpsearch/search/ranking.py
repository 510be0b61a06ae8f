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
    sign = -1.0 if metric.direction == "maximize" else 1.0
    done = [t for t in trials if t.state is TrialState.COMPLETED and t.value is not None and math.isfinite(t.value)]
    return sorted(done, key=lambda t: (sign * (t.value or 0.0), t.number))


def finalist_params(trials: Iterable[Trial], metric: Metric, top: int) -> list[Params]:
    """Params of the best ``top`` completed trials (fewer if there are fewer), each set of params once."""
    chosen: dict[str, Params] = {}
    for trial in ranked(trials, metric):
        chosen.setdefault(params_key(trial.params), trial.params)
        if len(chosen) == top:
            break
    return list(chosen.values())


def params_key(params: Params) -> str:
    """Equal for equal params, whatever their order."""
    return json.dumps(params, sort_keys=True)
