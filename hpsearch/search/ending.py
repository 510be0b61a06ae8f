"""When a study ends by itself: its target is reached, its budget is spent, or no improvement is to be expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hpsearch.spec import Metric
from hpsearch.trial import Trial

RELEVANT = 0.01
"""An improvement below this share of what the best is ahead of the median trial is none."""
UNLIKELY = 0.05
"""A chance of an improvement up to this is not worth waiting for."""


class Stop(Protocol):
    """The limits that a study sets itself; None where it sets none."""

    @property
    def target(self) -> float | None:
        """Value of the metric that is good enough."""
        ...

    @property
    def seconds(self) -> float | None:
        """Since the study was created, > 0."""
        ...

    @property
    def epochs(self) -> int | None:
        """Trained by all trials together, at least 1."""
        ...

    @property
    def no_improvement(self) -> int | None:
        """So many trials without an improvement, in the past and to be expected; at least 1."""
        ...


def reason(
    stop: Stop, metric: Metric, *, best: Trial | None, values: Sequence[float], seconds: float, epochs: int
) -> str | None:
    """Why a study should end now, in a sentence; None if it should go on.

    Args:
        stop: its limits.
        metric: what is optimised.
        best: its best completed trial, None before the first.
        values: of the completed trials of the running stage, in the order in which they ended; none of a stage that
            confirms. Values that are not finite are left out.
        seconds: since it was created.
        epochs: trained so far.
    """
    if stop.target is not None and best is not None and best.value is not None:
        reached = best.value >= stop.target if metric.direction == "maximize" else best.value <= stop.target
        if reached:
            return f"the target {stop.target:g} was reached by trial {best.number} ({best.value:.6g})"
    if stop.epochs is not None and epochs >= stop.epochs:
        return f"the limit of {stop.epochs:,} epochs was reached ({epochs:,} trained)"
    if stop.seconds is not None and seconds >= stop.seconds:
        return f"the limit of {stop.seconds:,.0f} seconds was reached ({seconds:,.0f} since the study was created)"
    if stop.no_improvement is not None:
        return _no_improvement(stop.no_improvement, values, metric)
    return None


def improvement_chance(values: Sequence[float], n: int) -> float:
    """About the chance that ``n`` more trials improve the best by a relevant amount d.

    n / (m + n) · 1 / c, with c the number of the m values that are less than d behind the best, the best included, and
    d = :data:`RELEVANT` times what the best is ahead of the median. If the values are draws from one distribution, the
    first factor is the chance that the best of all m + n is among the new ones, whatever the distribution. The second
    is the chance that a record is one by more than d: P(X > b + d) / P(X > b) is at most P(X > b) / P(X > b - d) where
    the tail falls ever faster, as that of a normal or bounded metric does, and the ratio of the counts is 1 / c.

    Args:
        values: m of them, larger is better, at least one.
        n: at least 0.
    """
    best = max(values)
    close = best - RELEVANT * (best - float(np.median(values)))
    return n / (len(values) + n) / sum(value >= close for value in values)


def _no_improvement(n: int, values: Sequence[float], metric: Metric) -> str | None:
    sign = 1.0 if metric.direction == "maximize" else -1.0
    finite = [sign * value for value in values if math.isfinite(value)]
    if len(finite) < 2 * n or len(finite) < 2:
        return None
    best, median = max(finite), float(np.median(finite))
    chance = improvement_chance(finite, n)
    if chance > UNLIKELY or best - max(finite[:-n]) > RELEVANT * (best - median):
        return None
    return (
        f"no improvement is to be expected: the last {n} trials brought none, and {n} more beat {sign * best:.6g} by "
        f"over {RELEVANT:.0%} of its lead on the median ({sign * median:.6g}) with a chance of about {chance:.1%}"
    )
