"""How a stage's space follows from its parent's trials.

The rule: of the parent's completed trials take the best fifth (at least four). Each numeric parameter is narrowed, on
its own scale, to the span of their values and a margin of a tenth of the parent's range on either side, but never to
less than a fifth of the parent's range and never beyond it. Choices are kept. With fewer than eight completed trials
nothing is narrowed: that is too little evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hpsearch.search.ranking import ranked
from hpsearch.search.scale import from_unit, to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Param, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial

BEST_SHARE = 0.2
MIN_BEST = 4
MIN_TRIALS = 8
MARGIN = 0.1
MIN_WIDTH = 0.2


def narrow(space: Space, trials: Sequence[Trial], metric: Metric) -> Space:
    """The child space of a stage with that space and those trials (see the module's text for the rule)."""
    done = ranked(trials, metric)
    if len(done) < MIN_TRIALS:
        return dict(space)
    best = done[: max(MIN_BEST, math.ceil(BEST_SHARE * len(done)))]
    return {
        name: _narrowed(param, [to_unit(param, t.params[name]) for t in best if name in t.params])
        for name, param in space.items()
    }


def _narrowed(param: Param, units: list[float]) -> Param:
    if isinstance(param, CategoricalParam) or not units:
        return param
    low, high = max(min(units) - MARGIN, 0.0), min(max(units) + MARGIN, 1.0)
    if high - low < MIN_WIDTH:
        middle = min(max((low + high) / 2, MIN_WIDTH / 2), 1 - MIN_WIDTH / 2)
        low, high = middle - MIN_WIDTH / 2, middle + MIN_WIDTH / 2
    return _with_ends(param, low, high)


def _with_ends(param: FloatParam | IntParam, low: float, high: float) -> Param:
    new_low, new_high = from_unit(param, low), from_unit(param, high)
    assert isinstance(new_low, int | float)
    assert isinstance(new_high, int | float)
    if new_low >= new_high:
        return param
    ends: dict[str, Any] = {"low": new_low, "high": new_high}
    if param.step is not None and param.step > new_high - new_low:
        return param
    return type(param).model_validate({**param.model_dump(), **ends})


def difference(parent: Space, child: Space) -> dict[str, Any]:
    """What changed: parameter → ``{"low": [from, to], "high": [from, to]}``, only ends that moved."""
    changed: dict[str, Any] = {}
    for name, param in child.items():
        before = parent[name]
        if isinstance(param, CategoricalParam) or isinstance(before, CategoricalParam):
            continue
        ends = {
            end: [getattr(before, end), getattr(param, end)]
            for end in ("low", "high")
            if getattr(before, end) != getattr(param, end)
        }
        if ends:
            changed[name] = ends
    return changed
