"""A trial's learning curves as the rules of :mod:`hpsearch.verdicts` want them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Protocol

TINY = 1e-12
"""What is divided by is at least this."""


class Point(Protocol):
    """What was reported at one step; :class:`hpsearch.trial.StepMetrics` is one."""

    @property
    def step(self) -> int:
        """The epoch, from 1."""
        ...

    @property
    def values(self) -> Mapping[str, float]:
        """Metric → value, which may be non-finite."""
        ...


class Curves:
    """The curves of a trial, up to the first step with a non-finite loss or metric.

    Attributes:
        bad: that step, with its value, or None.
        train, val: losses; empty where not reported, or where one is negative, for a loss without a zero has no
            shares.
        start: the loss before the first update; None if unknown. ``raw_start``: the same, as reported.
        theory: what it should have been, if known.
        chance: what shares are of, > 0: the loss at chance, or the start where that is less or nothing else is known,
            or the first loss.
        has_losses: whether any loss was reported, finite or not.
    """

    def __init__(self, curves: Sequence[Point], metric: str, direction: str, chance: float | None) -> None:
        self.bad: tuple[int, float] | None = None
        watched = ("train_loss", "val_loss", metric)
        points: list[Point] = []
        for point in curves:
            reported = point.values
            values = [reported[name] for name in watched if name in reported]
            if not all(map(math.isfinite, values)):
                self.bad = (point.step, next(value for value in values if not math.isfinite(value)))
                break
            if values:
                points.append(point)
        self._rows = [point.values for point in points]
        self.first_step = curves[0].step if curves else None
        self.last_step = curves[-1].step if curves else None
        self.steps = [point.step for point in points]
        self.train = self._losses("train_loss")
        self.val = self._losses("val_loss")
        self.metric = self.series(metric)
        self.sign = 1.0 if direction == "minimize" else -1.0
        # Of the first step, even if it is the bad one: how it started explains how it ended.
        first = curves[0].values if curves else {}
        self.theory = _positive(first.get("diag/chance_loss")) or _positive(chance)
        # Diagnostics that are not finite are left out, so one that is missing beside its theory was infinite.
        self.raw_start = first.get("diag/initial_loss", math.inf if "diag/chance_loss" in first else None)
        self.start = _positive(self.raw_start)
        losses = self.train or self.val
        if self.start is None and losses:
            self.start = self.theory
        self.has_losses = any("train_loss" in point.values or "val_loss" in point.values for point in curves)
        self.chance = self.theory or self.start or (losses[0] if losses else 0.0)
        if self.start is not None:
            self.chance = min(self.chance, self.start)
        self.chance = max(self.chance, TINY)

    def series(self, name: str) -> list[float]:
        """Finite values of a metric, if every step has one, else none."""
        try:
            values = list(map(itemgetter(name), self._rows))
        except KeyError:
            return []
        return values if all(map(math.isfinite, values)) else []

    def _losses(self, name: str) -> list[float]:
        values = self.series(name)
        return values if min(values, default=0.0) >= 0 else []

    def found(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of what is not reported at every step, where it is finite."""
        rows = zip(self.steps, self._rows, strict=True)
        return [(step, v) for step, row in rows if (v := row.get(name)) is not None and math.isfinite(v)]

    def median(self, name: str) -> float | None:
        """The median over the steps that have a finite one (the upper of two middle ones)."""
        values = sorted(value for _, value in self.found(name))
        return values[len(values) // 2] if values else None

    @property
    def lowest_loss(self) -> float:
        """The lower of the last losses: the training loss is the mean over its epoch, and so lags."""
        return min(losses[-1] for losses in (self.train, self.val) if losses)

    @property
    def progress(self) -> float | None:
        """Share of the starting loss that is gone; None if the start or the end is unknown."""
        if not (self.train or self.val):
            return None
        start = self.start if self.start is not None else (self.train or self.val)[0]
        if self.start is None and len(self.steps) < 2:
            return None
        return 1 - self.lowest_loss / max(start, TINY)


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
