"""Synthetic objectives whose optimum is known, for judging border flags: bowls, cones, ridges, plateaus, cliffs, flats.

A surface is a function on [0, 1]^d and beyond, the higher the better: place 0 is the low border of each range and 1 the
high one. Ranges are logarithmic and two to six decades wide, so a place translates into decades.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

Floats = NDArray[np.float64]
Family = Literal["bowl", "cone", "skew", "ridge", "plateau", "saturated", "flat"]
FAMILIES: tuple[Family, ...] = ("bowl", "cone", "skew", "ridge", "plateau", "saturated")
Kind = Literal["flat", "central", "near", "beyond", "cliff", "far cliff"]
KINDS: tuple[Kind, ...] = ("flat", "central", "near", "beyond", "cliff", "far cliff")
NOISES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Standard deviations of the noise, as shares of the range's effect."""


@dataclass(frozen=True)
class Surface:
    """One objective.

    Attributes:
        optimum: place of the optimum, one per parameter; those that do not matter have weight 0.
        weights: how much each parameter matters.
        decades: width of each range.
        noise: standard deviation of the noise over the range's effect (highest less lowest value inside).
        target: the parameter whose optimum lies beyond (or whose cliff it is), and its side.
        cliff: place beyond which trials diverge, counted from the side opposite to the target's.
        unlucky: share of trials that diverge for no reason.
    """

    name: int
    kind: Kind
    family: Family
    optimum: tuple[float, ...]
    weights: tuple[float, ...]
    decades: tuple[float, ...]
    noise: float
    shape: float
    target: tuple[int, int] | None = None
    cliff: float | None = None
    unlucky: float = 0.0

    @property
    def n_params(self) -> int:
        return len(self.optimum)

    def mean(self, places: Floats) -> Floats:
        """Values without noise at places (n, d) → (n,)."""
        delta = places - np.array(self.optimum)
        weights = np.array(self.weights)
        if self.family == "flat":
            return np.zeros(len(places))
        if self.family == "ridge":
            return self._ridge(delta, weights)
        loss = _profile(self.family, delta, self.shape)
        return -(loss @ weights)

    def _ridge(self, delta: Floats, weights: Floats) -> Floats:
        """Neighbouring parameters that matter trade off: along the ridge little changes, across it much."""
        active = np.flatnonzero(weights)
        loss = 0.15 * (delta**2) @ weights
        for a, b in zip(active, np.roll(active, -1), strict=True):
            if a != b:
                loss = loss + weights[a] * (delta[:, a] + self.shape * delta[:, b]) ** 2
        return -loss

    @cached_property
    def _inside(self) -> Floats:
        grid = qmc.Sobol(self.n_params, seed=1).random_base2(12)
        faces = grid.copy()  # the best often lies on a face
        faces[faces < 0.1] = 0.0
        faces[faces > 0.9] = 1.0
        places = np.vstack([grid, faces, np.clip(np.array([self.optimum]), 0.0, 1.0)])
        return places if self.cliff is None else places[~self.diverges(places)]

    @cached_property
    def effect(self) -> float:
        """Highest less lowest value inside the ranges."""
        values = self.mean(self._inside)
        return float(values.max() - values.min()) or 1.0

    @property
    def sigma(self) -> float:
        return self.noise * self.effect if self.family != "flat" else 1.0

    @cached_property
    def cost(self) -> float:
        """How much better the optimum is than the best inside."""
        return float(self.mean(np.array([self.optimum])).max() - self.mean(self._inside).max())

    @cached_property
    def best_inside(self) -> Floats:
        """The best place inside the ranges, where all the others are free."""
        places: Floats = self._inside[self.mean(self._inside).argmax()]
        return places

    @property
    def decades_beyond(self) -> float:
        if self.target is None:
            return 0.0
        j, side = self.target
        place = self.optimum[j]
        return (place - 1 if side > 0 else -place) * self.decades[j]

    @property
    def percent_inside(self) -> int:
        """How far inside the target's border its optimum lies, in percent of the range."""
        place = self.optimum[self.target[0]] if self.target else 0.5
        return round(100 * min(place, 1 - place))

    def diverges(self, places: Floats) -> NDArray[np.bool_]:
        if self.cliff is None or self.target is None:
            return np.zeros(len(places), dtype=bool)
        j, side = self.target
        from_far = places[:, j] if side > 0 else 1 - places[:, j]
        return from_far > self.cliff

    def run(self, n: int, seed: int) -> tuple[Floats, Floats]:
        """A random study → places (n, d), values (n,), NaN where the trial diverged."""
        rng = np.random.default_rng((seed, self.name))
        places = rng.random((n, self.n_params))
        if self.family == "flat":
            return places, _flat_noise(rng, n, self.name)
        values = self.mean(places) + self.sigma * rng.standard_normal(n)
        if self.cliff is not None and self.target is not None:
            j, side = self.target
            from_far = places[:, j] if side > 0 else 1 - places[:, j]
            values[from_far + rng.normal(0, 0.02, n) > self.cliff] = np.nan  # the edge differs from seed to seed
        values[rng.random(n) < self.unlucky] = np.nan
        return places, values


def _profile(family: Family, delta: Floats, shape: float) -> Floats:
    if family == "bowl":
        return delta**2
    if family == "cone":
        return np.abs(delta)
    if family == "skew":  # slow rise, steep fall, or the reverse
        return np.where(delta * (1 if shape > 0.5 else -1) > 0, 3.0, 0.7) * delta**2
    if family == "plateau":  # a flat top of this half-width
        return np.maximum(np.abs(delta) - 0.25 * shape, 0.0) ** 2
    return 1 - np.exp(-0.5 * (delta / (0.2 + 0.4 * shape)) ** 2)  # far from the optimum nothing is learnt


def _flat_noise(rng: np.random.Generator, n: int, name: int) -> Floats:
    """Normal, heavy-tailed, skewed, coarse (many ties), and with trials that diverge at random."""
    kind = name % 5
    if kind == 1:
        return rng.standard_t(2, n)
    if kind == 2:
        return -rng.exponential(size=n)
    if kind == 3:
        return rng.binomial(20, 0.6, n) / 20
    values = rng.standard_normal(n)
    if kind == 4:
        values[rng.random(n) < 0.15] = np.nan
    return values


def surfaces(seed: int, n_each: int) -> Iterator[Surface]:
    """``n_each`` surfaces of each kind."""
    for k, kind in enumerate(KINDS):
        for i in range(n_each):
            yield _surface(kind, name=100_000 * k + i, rng=np.random.default_rng((seed, k, i)), index=i)


def _surface(kind: Kind, *, name: int, rng: np.random.Generator, index: int) -> Surface:
    n_params = 1 + index % 6
    family: Family = "flat" if kind == "flat" else FAMILIES[(index // 6) % len(FAMILIES)]
    n_active = int(rng.integers(1, n_params + 1))
    active = rng.permutation(n_params)[:n_active]
    weights = np.zeros(n_params)
    weights[active] = np.exp(rng.uniform(np.log(0.3), np.log(1.0), n_active))
    decades = rng.uniform(2.0, 6.0, n_params)
    optimum = rng.uniform(0.2, 0.8, n_params)
    noise = NOISES[int(rng.integers(len(NOISES)))]
    shape = float(rng.uniform(0.2, 0.9))
    target: tuple[int, int] | None = None
    cliff: float | None = None
    if kind not in {"flat", "central"}:
        j, side = int(active[0]), 1 if rng.random() < 0.5 else -1
        target = (j, side)
        if kind == "near":
            far = 1 - rng.choice([0.0, 0.05, 0.1, 0.15])
        elif kind == "beyond":
            far = 1 + 10 ** rng.uniform(np.log10(0.25), np.log10(2.0)) / decades[j]
        else:
            cliff = float(rng.uniform(0.6, 0.97))
            far = cliff + rng.uniform(0.1, 0.5) if kind == "cliff" else cliff * rng.uniform(0.2, 0.8)
        optimum[j] = far if side > 0 else 1 - far
        weights[j] = 1.0
    surface = Surface(name, kind, family, tuple(optimum), tuple(weights), tuple(decades), noise, shape, target, cliff)
    if index % 5 == 4 and kind not in {"flat", "cliff", "far cliff"}:
        surface = replace(surface, unlucky=0.1)
    if kind in {"beyond", "cliff"} and index % 4:  # else hardly any would cost more than twice the noise
        surface = replace(surface, noise=min(1.0, float(rng.random()) * surface.cost / (2 * surface.effect)))
    return surface
