"""Random boxes of ranges laid over tabulated real trainings (lr × reg), with what the table says lies in and beyond.

The table's mean over seeds stands for the truth; a study's trials take one seed each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import RECIPES, Table, load
from hpsearch.space import FloatParam, Space

Floats = NDArray[np.float64]
NAMES = ("lr", "reg")
QUARTER_DECADE = 0.25


@dataclass(frozen=True)
class Box:
    """Ranges of lr and reg over a table, as exponents of 10.

    Attributes:
        low, high: ends of the two ranges.
    """

    table: Table
    low: tuple[float, float]
    high: tuple[float, float]
    number: int

    @property
    def space(self) -> Space:
        return {
            name: FloatParam(type="float", low=10**a, high=10**b, log=True)
            for name, a, b in zip(NAMES, self.low, self.high, strict=True)
        }

    def run(self, n: int, seed: int) -> tuple[list[dict[str, float]], Floats]:
        """Random params and final accuracies (n,), NaN where the trial diverged."""
        rng = np.random.default_rng((seed, self.number))
        params, values = [], np.empty(n)
        for i in range(n):
            drawn = dict(zip(NAMES, (10 ** rng.uniform(self.low, self.high)).tolist(), strict=True))
            params.append(drawn)
            values[i] = self.table.curve(drawn["lr"], drawn["reg"], int(rng.integers(self.table.n_seeds)))[-1]
        return params, values

    @cached_property
    def _axes(self) -> tuple[Floats, Floats]:
        return np.log10(self.table.lr), np.log10(self.table.reg)

    @cached_property
    def _final(self) -> Floats:
        """(L, R): mean accuracy after the last epoch; a trial that diverged has none right."""
        values: Floats = np.nan_to_num(self.table.val_accuracy[..., -1]).mean(2)
        return values

    def _mask(self, low: tuple[float, float], high: tuple[float, float]) -> NDArray[np.bool_]:
        inside = [(x >= a - 1e-9) & (x <= b + 1e-9) for x, a, b in zip(self._axes, low, high, strict=True)]
        return np.outer(*inside)

    def _best(self, low: tuple[float, float], high: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        values = np.where(self._mask(low, high), self._final, -1.0)
        i, j = np.unravel_index(int(values.argmax()), values.shape)
        return float(values[i, j]), (float(self._axes[0][i]), float(self._axes[1][j]))

    @cached_property
    def best(self) -> tuple[float, tuple[float, float]]:
        """Highest mean accuracy inside, and its place."""
        return self._best(self.low, self.high)

    @cached_property
    def sigma(self) -> float:
        """Standard deviation between seeds, pooled over the better half of the cells inside."""
        finals = self.table.val_accuracy[..., -1][self._mask(self.low, self.high)]  # (cells, seeds)
        means = np.nan_to_num(finals).mean(1)
        better = finals[(means >= np.median(means)) & ~np.isnan(finals).any(1)]
        return float(np.sqrt(better.var(axis=1, ddof=1).mean())) if len(better) else math.inf

    def gain(self, axis: int, side: str) -> float:
        """How much better the best is if one range went on to the end of the table, a quarter decade at least."""
        low, high = list(self.low), list(self.high)
        if side == "low":
            low[axis] = self._axes[axis][0]
        else:
            high[axis] = self._axes[axis][-1]
        value, place = self._best((low[0], low[1]), (high[0], high[1]))
        beyond = self.low[axis] - place[axis] if side == "low" else place[axis] - self.high[axis]
        return value - self.best[0] if beyond >= QUARTER_DECADE - 1e-9 else 0.0

    @cached_property
    def gains(self) -> dict[tuple[str, str], float]:
        return {(name, side): self.gain(k, side) for k, name in enumerate(NAMES) for side in ("low", "high")}

    @property
    def is_central(self) -> bool:
        """The best of the table lies in the central 60 % of both ranges, however little better than the outer fifths.

        It is hardly ever more than the noise between seeds better: these nets have a plateau.
        """
        margins = [0.2 * (b - a) for a, b in zip(self.low, self.high, strict=True)]
        centre = self._mask(
            (self.low[0] + margins[0], self.low[1] + margins[1]), (self.high[0] - margins[0], self.high[1] - margins[1])
        )
        outer = self._mask(self.low, self.high) & ~centre
        if not centre.any() or not outer.any():
            return False
        return bool(self._final[centre].max() > self._final[outer].max() and max(self.gains.values()) <= 0)

    @property
    def reaches_divergence(self) -> bool:
        """All trials at the upper end of lr diverge."""
        top = self._mask((self.high[0] - 0.3, self.low[1]), self.high)
        return bool(np.isnan(self.table.val_accuracy[..., -1][top]).all())


def boxes(name: str, n: int, seed: int) -> Iterator[Box]:
    """Boxes two to four decades wide on either axis, anywhere on the table where something is learnt."""
    table, recipe = load(name), RECIPES[name]
    rng = np.random.default_rng((seed, list(RECIPES).index(name)))
    number = 0
    while number < n:
        widths = rng.uniform(2.0, 4.0, 2)
        starts = [rng.uniform(ends[0], ends[1] - w) for ends, w in zip((recipe.lr, recipe.reg), widths, strict=True)]
        low, high = (float(starts[0]), float(starts[1])), (float(starts[0] + widths[0]), float(starts[1] + widths[1]))
        box = Box(table, low, high, number)
        if np.isfinite(box.sigma) and box.best[0] > 0.2 * table.best[2]:
            yield box
            number += 1


def names() -> list[str]:
    """The tables that are there."""
    folder = Path(__file__).parent / "tables"
    return [name for name in RECIPES if (folder / f"{name}.npz").exists()]
