"""How a stage's space follows from its parent's trials: a parameter narrows where the evidence says so.

docs/search.md ("Narrowing") explains the rule. In short: a numeric parameter that does not matter keeps its range
(:func:`importance`); one that matters loses the outer parts of its range that the best √n trials shun, judged by a
sequential likelihood ratio, with a margin. A choice is dropped if none of the best √n trials has it and chance does not
explain that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy

from hpsearch.search.importance import importance, standing
from hpsearch.search.scale import from_unit, to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Param, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial

MIN_TRIALS = 8
"""With fewer trials nothing is narrowed: the test of importance holds from here on."""
LEVEL = 0.05
"""A parameter whose importance has a larger p-value keeps its range."""
SHUNNED = 0.25
"""A place is shunned where the best trials are this much rarer than in their midst."""
MARGIN = 0.05
"""A range ends this share of the parent's range beyond what the evidence says: longer training moves an optimum."""
TAIL = 0.1
"""The midst of the best trials leaves out this share of them on either side."""


@dataclass(frozen=True, slots=True)
class ParamNarrowing:
    """What became of one parameter, and why.

    Attributes:
        before, after: the parameter of the parent and of the child.
        outcome: what was done.
        importance: share of the order of the trials that follows from it, from 0 to 1; None for choices, and where
            there is too little to say.
        p_value: of that share, if the parameter did not matter; for choices the smallest of all choices, corrected for
            their number (Holm); None where nothing was tested.
        reason: one sentence.
    """

    parameter: str
    before: Param
    after: Param
    outcome: Literal["kept", "narrowed", "dropped choices"]
    importance: float | None
    p_value: float | None
    reason: str


def narrow(space: Space, trials: Sequence[Trial], metric: Metric, *, confidence: float = 0.9) -> Space:
    """The child space of a stage with that space and those trials. See :func:`narrowing`."""
    return {found.parameter: found.after for found in narrowing(space, trials, metric, confidence=confidence)}


def narrowing(
    space: Space, trials: Sequence[Trial], metric: Metric, *, confidence: float = 0.9
) -> list[ParamNarrowing]:
    """What the trials of a stage say of each parameter of its space, in the space's order.

    Pruned and diverged trials are evidence that a place is bad. For each parameter the trials that have it count, and
    of these the ones inside its range.

    Args:
        space: of the parent.
        trials: of the parent; their values may come from any sampler.
        metric: what is optimised.
        confidence: with which the range of a parameter that matters holds the optimum; in [0.5, 1).

    Raises:
        ValueError: the confidence is outside.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"the confidence {confidence} is not in [0.5, 1)")
    evidence, standings, n_diverged = standing(trials, metric)
    nothing = _nothing_said(evidence, standings, n_diverged)
    if nothing:
        return [_kept(name, param, f"{nothing}: {name} stays as it is.") for name, param in space.items()]
    return [_judged(name, param, evidence, standings, confidence) for name, param in space.items()]


def difference(parent: Space, child: Space) -> dict[str, Any]:
    """What changed: parameter → only the ends that moved, and the choices that went.

    ``{"low": [from, to], "high": [from, to]}`` or ``{"dropped": [choice, …]}``.
    """
    changed: dict[str, Any] = {}
    for name, param in child.items():
        before = parent[name]
        if isinstance(param, CategoricalParam) or isinstance(before, CategoricalParam):
            if isinstance(param, CategoricalParam) and isinstance(before, CategoricalParam):
                dropped = [choice for choice in before.choices if not param.contains(choice)]
                if dropped:
                    changed[name] = {"dropped": dropped}
            continue
        ends = {
            end: [getattr(before, end), getattr(param, end)]
            for end in ("low", "high")
            if getattr(before, end) != getattr(param, end)
        }
        if ends:
            changed[name] = ends
    return changed


def _nothing_said(evidence: Sequence[Trial], standings: np.ndarray, n_diverged: int) -> str | None:
    n = len(evidence)
    if n == 0:
        return "No trial has finished"
    if n_diverged == n:
        return f"All of {n} finished trials diverged, so that none is best"
    if n < MIN_TRIALS:
        return f"Finished trials: {n}, too little evidence, for {MIN_TRIALS} are needed"
    if standings.min() == standings.max():
        return f"All of {n} finished trials have the same value"
    return None


def _kept(name: str, param: Param, reason: str, share: float | None = None, p: float | None = None) -> ParamNarrowing:
    return ParamNarrowing(name, param, param, "kept", share, p, reason)


def _chance(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-15 else "p < 1e-15"


def _judged(
    name: str, param: Param, evidence: Sequence[Trial], standings: np.ndarray, confidence: float
) -> ParamNarrowing:
    has = [name in t.params and param.contains(t.params[name]) for t in evidence]
    n = sum(has)
    if n < MIN_TRIALS:
        return _kept(
            name, param, f"Finished trials that have {name}: {n}, and {MIN_TRIALS} are needed: it stays as it is."
        )
    values = [t.params[name] for t, there in zip(evidence, has, strict=True) if there]
    standings = standings[has]
    best = _best(standings)
    if isinstance(param, CategoricalParam):
        return _chosen(name, param, np.array([param.index(v) for v in values]), best, 1 - confidence)
    units = np.array([to_unit(param, v) for v in values])
    share, p = importance(units, standings)
    if p > LEVEL:
        text = f"{name} does not matter as far as {n} trials show ({_chance(p)}): it keeps its range."
        return _kept(name, param, text, share, p)
    low, high = limits(units, best, error=(1 - confidence) / 2)
    after = _with_ends(param, low - MARGIN, high + MARGIN)
    matters = f"{name} matters ({_chance(p)})"
    if after == param:
        text = f"{matters}, but no outer part of its range is clearly worse than the best: it keeps its range."
        return _kept(name, param, text, share, p)
    text = (
        f"{matters}: of the best {best.sum()} of {n} trials too few lie outside [{after.low:.3g}, {after.high:.3g}] "
        f"for the optimum to be there ({confidence:.0%} confidence, with a margin)."
    )
    return ParamNarrowing(name, param, after, "narrowed", share, p, text)


def _best(standings: np.ndarray) -> np.ndarray:
    """Which are the best √n, rounded up, with all that are as good as the last of them; never the worst of all."""
    last = np.sort(standings)[-math.ceil(math.sqrt(len(standings)))]
    mask: np.ndarray = (standings >= last) & (standings > standings.min())
    return mask if mask.any() else standings >= last


def limits(units: np.ndarray, best: np.ndarray, *, error: float) -> tuple[float, float]:
    """The region that holds the optimum, as places.

    From the median of the best trials outward, each trial of the best speaks for its place and each other against it:
    by the logarithm of the ratio of the chances, if the best are :data:`SHUNNED` times as frequent here as in their
    midst, to if they are as frequent. A place is out once, for this place and all beyond it, some run of trials that
    ends there has evidence of at least ln(1 / error) against it. If the best are at the optimum and between it and
    their midst as frequent as in their midst, that happens to it with a chance of at most ``error`` (Ville's
    inequality; the statistic is Page's CUSUM, Biometrika 41, 1954).

    Args:
        units: places (n,) in [0, 1].
        best: which trials are the best, bool (n,), at least one.
        error: allowed chance to cut off the optimum, per side, in (0, 0.5).

    Returns:
        the ends; 0 or 1 where the range's own end stays.
    """
    places, where = np.unique(units, return_inverse=True)
    total, hits = np.bincount(where), np.bincount(where, weights=best)
    of_best = np.sort(units[best])
    k = len(of_best)
    tail = math.ceil(TAIL * k) if k > 4 else 0
    midst = (places >= of_best[tail]) & (places <= of_best[k - 1 - tail])
    rate = min(0.95, float(hits[midst].sum() / total[midst].sum()))
    evidence = hits * math.log(SHUNNED) + (total - hits) * math.log((1 - SHUNNED * rate) / (1 - rate))
    bound = math.log(1 / error)
    up, down = places >= of_best[k // 2], places <= of_best[k // 2]
    high = _out_from(places[up], evidence[up], bound)
    low = _out_from(places[down][::-1], evidence[down][::-1], bound)
    return (0.0 if low is None else low), (1.0 if high is None else high)


def _out_from(places: np.ndarray, evidence: np.ndarray, bound: float) -> float | None:
    """The first place, going outward, from which on all are out; None if the last one stays."""
    total = np.concatenate([[0.0], np.cumsum(evidence)])
    against = total[1:] - np.minimum.accumulate(total)[:-1]
    stay = np.nonzero(against < bound)[0]
    out = stay[-1] + 1 if len(stay) else 0
    return float(places[out]) if out < len(places) else None


def _with_ends(param: FloatParam | IntParam, low: float, high: float) -> FloatParam | IntParam:
    """The parameter between two places, which may lie outside; grids keep their values, two at least."""
    new_low = param.low if low <= 0 else from_unit(param, low)
    new_high = param.high if high >= 1 else from_unit(param, high)
    assert isinstance(new_low, int | float)
    assert isinstance(new_high, int | float)
    if param.step is not None and new_high - new_low < param.step:
        new_low, new_high = _neighbours(param, new_low)
    if new_low >= new_high or (param.step is not None and new_high - new_low < param.step):
        return param  # so narrow that floats do not tell the ends apart, or the grid has but two values
    return type(param).model_validate({**param.model_dump(), "low": new_low, "high": new_high})


def _neighbours(param: FloatParam | IntParam, value: float) -> tuple[float, float]:
    """The values of the grid before and after one of its values; itself where there is none."""
    if isinstance(param, IntParam):
        above = value + param.step
        return max(param.low, value - param.step), above if above <= param.high else value
    assert param.step is not None
    i = round((value - param.low) / param.step)
    return param.grid(max(i - 1, 0)), param.grid(min(i + 1, param.cells - 1))


def _chosen(name: str, param: CategoricalParam, index: np.ndarray, best: np.ndarray, error: float) -> ParamNarrowing:
    """Drop the choices that none of the best has, if the chance of that is at most ``error`` (Holm's correction)."""
    n, k = len(index), int(best.sum())
    total = np.bincount(index, minlength=len(param.choices))
    hits = np.bincount(index[best], minlength=len(param.choices))
    shunned = np.nonzero((hits == 0) & (total > 0))[0]
    chances = sorted((float(scipy.stats.hypergeom.pmf(0, n, int(total[i]), k)), int(i)) for i in shunned)
    n_tried = int((total > 0).sum())
    smallest = min(1.0, n_tried * chances[0][0]) if chances else None
    if smallest is None or smallest > error:
        text = f"No choice of {name} is clearly worse" + (f" ({_chance(smallest)})" if smallest is not None else "")
        return _kept(name, param, f"{text}: all stay.", None, smallest)
    n_dropped = next((i for i, (p, _) in enumerate(chances) if (n_tried - i) * p > error), len(chances))
    gone = sorted(i for _, i in chances[:n_dropped])
    after = CategoricalParam(type="categorical", choices=[c for i, c in enumerate(param.choices) if i not in gone])
    names = ", ".join(repr(param.choices[i]) for i in gone)
    text = f"None of the best {k} of {n} trials has {names} ({_chance(smallest)}): dropped."
    return ParamNarrowing(name, param, after, "dropped choices", None, smallest, text)
