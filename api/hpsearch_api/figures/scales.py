"""A parameter or a metric on its own scale: linear, logarithmic or categorical."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpsearch.space import CategoricalParam, Param, Space, Value
from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, values_of
from hpsearch_api.figures.style import compact, plain

PAD = 0.05
"""Room beyond the ends of an axis, as a share of its length."""
LOG_FROM = 10.0
"""Positive values of a metric to be minimised go on a log axis when they span this factor."""


@dataclass(frozen=True, slots=True)
class ParamScale:
    """One parameter over all stages of a study.

    Attributes:
        ends: ``low`` and ``high`` in the study's space; None for a categorical parameter.
        outer: the widest range that any stage has.
        labels: the choices as they are drawn; empty for a number.
        choices: what each label stands for; of choices that read the same all.
    """

    name: str
    log: bool
    ends: tuple[float, float] | None
    outer: tuple[float, float] | None
    labels: tuple[str, ...]
    choices: tuple[tuple[Value, ...], ...] = ()

    def column(self, trials: Sequence[Trial]) -> npt.NDArray[Any]:
        """The trials' values of this parameter: numbers, or labels where it is categorical."""
        if self.labels:
            return np.array(
                [label(p[self.name]) if self.name in (p := t.params) else None for t in trials], dtype=object
            )
        return np.array([_float(t.params.get(self.name)) for t in trials], dtype=np.float64)

    def axis(self) -> dict[str, Any]:
        """Layout of a Plotly axis for this parameter."""
        if self.labels:
            return {
                "type": "category",
                "title": {"text": plain(self.name)},
                "categoryorder": "array",
                "categoryarray": list(self.labels),
                "range": [-0.5, len(self.labels) - 0.5],
            }
        assert self.outer is not None
        low, high = (math.log10(end) for end in self.outer) if self.log else self.outer
        pad = PAD * (high - low)
        axis: dict[str, Any] = {"type": "linear", "title": {"text": plain(self.name)}, "range": [low - pad, high + pad]}
        if self.log:
            axis |= {"type": "log", "exponentformat": "power", "title": {"text": f"{plain(self.name)} (log scale)"}}
            axis["dtick"] = max(1, math.ceil((high - low) / 8)) if high - low > 2 else None
        return axis

    def bounds(self, space: Space) -> tuple[float | str, float | str] | None:
        """Where a stage's range of this parameter begins and ends on the axis; None if the stage lacks it."""
        param = space.get(self.name)
        if param is None:
            return None
        if isinstance(param, CategoricalParam):
            places = [self.labels.index(label(choice)) for choice in param.choices]
            return min(places) - 0.5, max(places) + 0.5
        return float(param.low), float(param.high)


def param_scale(data: FigureData, name: str) -> ParamScale:
    """The scale of a parameter of the study's space."""
    own = data.space[name]
    spaces: list[Param] = [own, *(s.space[name] for s in data.stages if name in s.space)]
    if isinstance(own, CategoricalParam):
        choices = [c for param in spaces if isinstance(param, CategoricalParam) for c in param.choices]
        told: dict[str, dict[str, Value]] = {}
        for choice in choices:
            told.setdefault(label(choice), {})[repr(choice)] = choice
        return ParamScale(name, False, None, None, tuple(told), tuple(tuple(each.values()) for each in told.values()))
    ranges = [(float(p.low), float(p.high)) for p in spaces if not isinstance(p, CategoricalParam)]
    outer = (min(low for low, _ in ranges), max(high for _, high in ranges))
    return ParamScale(name, own.log, ranges[0], outer, ())


def label(value: Value) -> str:
    """A choice as it stands on an axis."""
    return plain(compact(value))


def _float(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


@dataclass(frozen=True, slots=True)
class MetricScale:
    """The axis of values.

    Attributes:
        log: whether it is logarithmic.
        edge: where diverged trials are drawn: beyond the worst value, below it if higher is better, above it if not.
    """

    log: bool
    edge: float
    range: tuple[float, float]

    def axis(self, title: str) -> dict[str, Any]:
        """Layout of a Plotly axis for these values."""
        return {"type": "log" if self.log else "linear", "title": {"text": title}, "range": list(self.range)}


def metric_scale(data: FigureData) -> MetricScale:
    """The axis for the values of all trials; ``[0, 1]`` if there is none."""
    values = values_of(data.valued())
    log = not data.maximize and spans_decades(values)
    drawn = np.log10(values) if log else values
    low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (0.0, 1.0)
    if high <= low:
        half = 0.5 if log else max(abs(low) * 0.1, 1e-9)
        low, high = low - half, high + half
    span = high - low
    worst = low - 0.07 * span if data.maximize else high + 0.07 * span
    has_edge = bool(data.diverged())
    bottom = (worst if data.maximize and has_edge else low) - PAD * span
    top = (worst if not data.maximize and has_edge else high) + PAD * span
    return MetricScale(log, 10**worst if log else worst, (bottom, top))


def spans_decades(values: npt.NDArray[np.float64]) -> bool:
    """Whether finite values are all positive and so far apart that a linear axis would hide most of them."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > LOG_FROM * finite.min())
