"""What the finished trials of a stage say of each border of its ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from hpsearch.search.borders.flag import MAX_P, Side
from hpsearch.search.borders.results import N_LEVELS, Results
from hpsearch.search.borders.surface import fit
from hpsearch.search.borders.trend import BAND, p_values

Floats = NDArray[np.floating[Any]]

MIN_COMPLETED = 8
"""With fewer completed trials nothing is said."""
CLIFF_LEVEL = 0.02
"""Largest p-value (Mann & Whitney) at which diverged trials count as gathered beyond a cliff."""
MIN_FEASIBLE = 0.05
"""Cliffs leave at least this share of the range."""
AGAINST = 0.1
"""The best lies against a cliff if it lies in this outer share of the range before it: a cliff is known no closer."""
BEST_SHARE = 0.15
WORST = -0.6745
"""Scores below it, the lower quarter of a normal law, count as equally bad for the surface: it is to follow the better
trials closely, and how badly the others did says little of where the best lies.
"""
MIN_OUTER = 5
"""Fewer trials than this in a range's outer half, or none in its outer band, say nothing about its end."""

SIDES: tuple[Side, Side] = ("low", "high")


@dataclass(frozen=True, slots=True)
class Cliff:
    """An edge beyond which trials diverge.

    Attributes:
        place: of the edge, in [0, 1] on the parameter's own scale.
        n_diverged, n_finite: trials beyond it that diverged, and that did not.
    """

    place: float
    n_diverged: int
    n_finite: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for and against an optimum beyond one border.

    Attributes:
        p_value: family-wise, of a trend toward the border; the smallest of a stage is uniform on (0, 1] if no parameter
            matters.
        at_border: posterior probability that the best value inside lies at the border; with a cliff, against it.
        close_up: the same from the trials in the outer half of the range alone; None where the trend or the whole
            surface already speaks against it, or too few trials lie there.
        hits, n_best: of the best completed trials, how many lie in the outer band (before the cliff).
    """

    parameter: str
    side: Side
    p_value: float
    at_border: float
    close_up: float | None
    hits: int
    n_best: int
    cliff: Cliff | None


def border_evidence(found: Results) -> list[Evidence]:
    """One for each border, low then high of every parameter; empty with fewer than 8 completed trials."""
    if found.completed.sum() < MIN_COMPLETED or not found.names:
        return []
    cliffs = _cliffs(found)
    ranges = [_feasible(cliffs.get((j, 0)), cliffs.get((j, 1))) for j in range(len(found.names))]
    lows, highs = np.array(ranges).T
    places = np.clip((found.places - lows) / (highs - lows), 0.0, 1.0)
    levels = [_rescaled(grid, *ends) for grid, ends in zip(found.levels, ranges, strict=True)]
    p = p_values(places, found.scores)
    scores = np.maximum(found.scores, WORST)
    maxima = fit(places, scores).maxima(levels, places)
    best = _best(found)
    evidence = []
    for j, name in enumerate(found.names):
        for k, side in enumerate(SIDES):
            cliff, p_value = cliffs.get((j, k)), float(p[2 * j + k])
            width = AGAINST if cliff else 0.0
            at_border = _at_end(maxima[:, j], levels[j], k, width)
            likely = p_value <= MAX_P and at_border >= 0.5
            close_up = _close_up(places, scores, levels, (j, k), width) if likely else None
            hits = int((np.abs(places[best, j] - k) <= BAND).sum())
            evidence.append(Evidence(name, side, p_value, at_border, close_up, hits, len(best), cliff))
    return evidence


def _close_up(
    places: Floats, scores: Floats, levels: list[Floats], border: tuple[int, int], width: float
) -> float | None:
    """How probably the best lies at a border, from the trials in the outer half of its range.

    A cubic over the whole range cannot turn sharply near its end; over half of it, it can. The trials are chosen by
    their places alone, so that the choice favours neither answer.
    """
    j, end = border
    from_end = np.abs(places[:, j] - end)
    outer = from_end <= 0.5
    if outer.sum() < MIN_OUTER or from_end.min() > BAND:
        return None
    near = places[outer].copy()
    near[:, j] = 1 - 2 * from_end[outer]
    steps = np.sort(1 - 2 * np.abs(levels[j] - end))
    grids = list(levels)
    grids[j] = np.linspace(0.0, 1.0, N_LEVELS) if len(steps) == N_LEVELS else steps[steps >= 0]
    maxima = fit(near, scores[outer]).maxima(grids, near)
    return _at_end(maxima[:, j], grids[j], 1, 2 * width)


def _at_end(maxima: Floats, levels: Floats, end: int, width: float) -> float:
    """Share of the maxima at the first (``end`` 0) or last level (1), or within ``width`` of it."""
    return float((np.abs(maxima - levels[-end]) <= width).mean())


def _cliffs(found: Results) -> dict[tuple[int, int], Cliff]:
    """The edges beyond which trials diverge, by (parameter, side), the clearest first.

    What lies beyond one is left out when the next is looked for: trials that diverge for a high learning rate are no
    edge of the other parameters.
    """
    ok, bad = found.places, found.diverged
    cliffs: dict[tuple[int, int], Cliff] = {}
    while len(bad) and len(ok):
        borders = [(j, k) for j in range(ok.shape[1]) for k in (0, 1) if (j, k) not in cliffs]
        p = [scipy.stats.mannwhitneyu(_from(bad, *b), _from(ok, *b), alternative="less").pvalue for b in borders]
        if not borders or min(p) > CLIFF_LEVEL:
            break
        border = borders[int(np.argmin(p))]
        edge, n_diverged, n_finite = _edge(_from(ok, *border), _from(bad, *border))
        if not n_diverged:
            break
        cliffs[border] = Cliff(abs(border[1] - edge), n_diverged, n_finite)
        ok, bad = ok[_from(ok, *border) >= edge], bad[_from(bad, *border) >= edge]
    return cliffs


def _from(places: Floats, j: int, end: int) -> Floats:
    """Distances from one border."""
    distances: Floats = np.abs(places[:, j] - end)
    return distances


def _edge(ok: Floats, bad: Floats) -> tuple[float, int, int]:
    """The distance from a border that best parts diverged trials (nearer) from the others, and how many of both.

    It has the most diverged less other trials before it; without such an excess nothing is parted: (0, 0, 0).
    """
    distances = np.concatenate([ok, bad])
    order = np.argsort(distances, kind="stable")
    n_diverged = np.cumsum(order >= len(ok))
    excess = 2 * n_diverged - np.arange(1, len(order) + 1)
    last = int(excess.argmax())
    if excess[last] < 1:
        return 0.0, 0, 0
    following = distances[order[last + 1]] if last + 1 < len(order) else 1.0
    return float(distances[order[last]] + following) / 2, int(n_diverged[last]), int(last + 1 - n_diverged[last])


def _feasible(low: Cliff | None, high: Cliff | None) -> tuple[float, float]:
    """The part of a range between its cliffs."""
    ends = (low.place if low else 0.0, high.place if high else 1.0)
    return ends if ends[1] - ends[0] >= MIN_FEASIBLE else (0.0, 1.0)


def _rescaled(levels: Floats, low: float, high: float) -> Floats:
    if len(levels) == N_LEVELS:
        return levels
    inside = levels[(levels >= low) & (levels <= high)]
    return (inside - low) / (high - low) if len(inside) else levels


def _best(found: Results) -> NDArray[np.intp]:
    """Positions of the best completed trials."""
    order = np.argsort(-found.scores, kind="stable")
    order = order[found.completed[order]]
    return order[: math.ceil(BEST_SHARE * len(order))]
