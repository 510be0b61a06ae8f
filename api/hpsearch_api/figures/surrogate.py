"""A smooth surface through the trials: what a parameter does while the others stay where the best trial has them.

It is the response surface that judges borders (:mod:`hpsearch.search.borders.surface`), here of the values themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpsearch.search.borders.surface import Surface, features, fit
from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, FloatParam
from hpsearch.trial import Trial, TrialState
from hpsearch_api.figures.data import FigureData, Floats, comparable, thin, values_of
from hpsearch_api.figures.scales import ParamScale, param_scale, spans_decades

MIN_TRIALS = 12
"""With fewer there is no surface."""
MAX_TRIALS = 1000
MAX_PARAMS = 12
Z_90 = 1.645
"""Of a standard normal variable, 90 % lies within this of 0."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A surface over the numeric parameters of a study.

    Attributes:
        names: the parameters, in the order of the columns of places.
        scales: their widest ranges, which places from 0 to 1 are of.
        at: place of the best trial (d,).
        log: whether the surface is of the logarithm of the metric.
        n: how many trials it follows from; ``epochs``: those that they trained.
    """

    names: tuple[str, ...]
    scales: Mapping[str, FloatParam]
    at: Floats
    log: bool
    n: int
    epochs: int
    surface: Surface
    centre: Floats
    mean: float
    deviation: float

    def predict(self, places: Floats) -> tuple[Floats, Floats, Floats]:
        """The metric at places (n, d): its middle, and the ends of an interval that holds it with 90 %, each (n,)."""
        basis = features(places, self.surface.terms, self.surface.degrees) - self.centre
        middle = self.mean + self.deviation * (basis @ self.surface.mean)
        reach = Z_90 * self.deviation * np.linalg.norm(basis @ self.surface.root, axis=1)
        ends = (middle, middle - reach, middle + reach)
        middle, low, high = (10**end if self.log else end for end in ends)
        return middle, low, high

    def along(self, name: str, units: Floats) -> Floats:
        """Places (n, d) that differ from the best trial's in one parameter alone."""
        places = np.tile(self.at, (len(units), 1))
        places[:, self.names.index(name)] = units
        return places

    def values(self, name: str, units: Floats) -> Floats:
        """Values (n,) of a parameter at places (n,) of its range."""
        param = self.scales[name]
        low, high = float(param.low), float(param.high)
        return low * (high / low) ** units if param.log else low + units * (high - low)


def surrogate(data: FigureData) -> Surrogate | None:
    """The surface through the completed trials of one budget of epochs, that with the most; None with too few.

    Other budgets give other values, and so another surface. Categorical parameters are left out.
    """
    names = tuple(name for name, p in data.space.items() if not isinstance(p, CategoricalParam))[:MAX_PARAMS]
    known = [t for t in data.valued() if t.state is TrialState.COMPLETED and all(name in t.params for name in names)]
    if not names or not known:
        return None
    alike, budget = comparable(data, known)
    chosen, _ = thin(alike, MAX_TRIALS, keep=data.best())
    raw = values_of(chosen)
    log = not data.maximize and spans_decades(raw)
    scores = np.log10(raw) if log else raw
    if len(chosen) < MIN_TRIALS or not np.isfinite(scores).all() or scores.std() == 0:
        return None
    scales = {name: _widest(data, param_scale(data, name)) for name in names}
    places = _places(scales, chosen)
    surface = fit(places, scores)
    best = chosen[int(scores.argmax() if data.maximize else scores.argmin())]
    return Surrogate(
        names=names,
        scales=scales,
        at=_places(scales, [best])[0],
        log=log,
        n=len(chosen),
        epochs=budget,
        surface=surface,
        centre=features(places, surface.terms, surface.degrees).mean(axis=0),
        mean=float(scores.mean()),
        deviation=float(scores.std()),
    )


def _widest(data: FigureData, scale: ParamScale) -> FloatParam:
    param = data.space[scale.name]
    assert scale.outer is not None
    assert not isinstance(param, CategoricalParam)
    low, high = scale.outer
    return FloatParam(type="float", low=low, high=high, log=param.log)


def _places(scales: Mapping[str, FloatParam], trials: Sequence[Trial]) -> npt.NDArray[np.float64]:
    """(n, d) places in [0, 1]."""
    rows = [[to_unit(param, trial.params[name]) for name, param in scales.items()] for trial in trials]
    return np.clip(np.array(rows, dtype=np.float64), 0.0, 1.0)
