"""Where inside the ranges is the best? A Bayesian response surface, and the law of its maximum.

The surface is a polynomial in the places, as in response surface methodology (Box & Wilson, "On the experimental
attainment of optimum conditions", 1951): for every parameter the orthonormal Legendre polynomials to degree 3, for
every pair their products to degree 2 each. Its coefficients are normal with mean 0; one variance per parameter and per
pair says how much that one matters, and is learnt from the data (automatic relevance determination: MacKay, "Bayesian
interpolation", 1992; Tipping, "Sparse Bayesian learning and the relevance vector machine", 2001), so that what does not
matter is switched off and a pair counts only where it helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DEGREE = 3
PAIR_DEGREES = ((1, 1), (1, 2), (2, 1), (2, 2))
DECAY = 3.0
"""The prior variance of a term falls with this power of its degree (of the product of its two degrees)."""
PAIRED = 6
"""Only this many parameters, those that matter most, are paired."""
N_STEPS = 60
N_DRAWS = 256
N_STARTS = 256
N_SWEEPS = 4
MIN_NOISE = 1e-4
"""Least variance of the residuals, of a total of 1: ranks do not follow a polynomial exactly."""
GROUP_SHAPE, GROUP_RATE, NOISE_RATE = 0.5, 0.005, 0.001
"""Weak inverse-gamma priors that keep the variances of groups and residuals from collapsing to 0."""


@dataclass(frozen=True)
class Surface:
    """A posterior over polynomials in d places.

    Attributes:
        terms: (p, 2): parameters of each term, the same one twice where the term has only one.
        degrees: (p, 2): their degrees, the second 0 where the term has only one.
        mean: (p,) of the coefficients.
        root: (p, p): a square root of their covariance.
    """

    terms: NDArray[np.intp]
    degrees: NDArray[np.intp]
    mean: Floats
    root: Floats

    def maxima(self, levels: Sequence[Floats], starts: Floats) -> Floats:
        """Where draws of the surface are highest: (N_DRAWS, d) places, each one of its parameter's ``levels``.

        Coordinate ascent over the levels from the best of the starts.

        Args:
            levels: for every parameter, the places that it can take, increasing.
            starts: (s, d) places.
        """
        rng = np.random.default_rng(0)
        weights = self.mean + rng.standard_normal((N_DRAWS, len(self.mean))) @ self.root.T
        candidates = np.vstack([starts[:N_STARTS], _spread(rng, levels)])
        best = (features(candidates, self.terms, self.degrees) @ weights.T).argmax(axis=0)
        places: Floats = candidates[best]
        basis = legendre(places)  # (draws, d, degrees)
        for _ in range(N_SWEEPS):
            for j, grid in enumerate(levels):
                values = self._slice(weights, basis, j) @ legendre(grid).T  # (draws, levels)
                places[:, j] = grid[values.argmax(axis=1)]
                basis[:, j] = legendre(places[:, j])
        return places

    def _slice(self, weights: Floats, basis: Floats, j: int) -> Floats:
        """Coefficients (draws, degrees) of the polynomials in parameter ``j`` alone, the others held."""
        found = np.zeros((len(weights), DEGREE + 1))
        for term in np.flatnonzero((self.terms == j).any(axis=1)):
            (a, b), (m, n) = self.terms[term], self.degrees[term]
            own, other, held = (m, b, n) if a == j else (n, a, m)
            found[:, own] += weights[:, term] * basis[:, other, held] if held else weights[:, term]
        return found


def fit(places: Floats, scores: Floats) -> Surface:
    """The posterior given scores (n,), the higher the better, at places (n, d) in [0, 1].

    The variances are found by expectation maximisation (Tipping 2001, eqs. 16 to 18) under weak priors.
    """
    terms, degrees, groups, prior = _terms(places, scores)
    x = features(places, terms, degrees)
    x -= x.mean(axis=0)
    y = (scores - scores.mean()) / (scores.std() or 1.0)
    gram, moment, total, n, p = x.T @ x, x.T @ y, float(y @ y), len(y), len(terms)
    sizes = np.bincount(groups)
    variance = np.full(len(sizes), 0.5 / len(sizes))
    noise = 0.3
    for _ in range(N_STEPS):
        scale = np.sqrt(variance[groups] * prior)
        precision = scale[:, None] * gram * scale / noise + np.eye(p)
        inverse_root = np.linalg.inv(np.linalg.cholesky(precision))  # precision⁻¹ = inverse_rootᵀ · inverse_root
        mean = scale * (inverse_root.T @ (inverse_root @ (scale * moment))) / noise
        root = scale[:, None] * inverse_root.T
        posterior = (inverse_root**2).sum(axis=0)  # diagonal of precision⁻¹
        squares = np.bincount(groups, (mean**2 + scale**2 * posterior) / prior)
        variance = (squares + 2 * GROUP_RATE) / (sizes + 2 * GROUP_SHAPE)
        residual = total - 2 * mean @ moment + mean @ gram @ mean + noise * (p - posterior.sum())
        noise = max(float(residual + 2 * NOISE_RATE) / (n + 2), MIN_NOISE)
    return Surface(terms, degrees, mean, root)


def legendre(places: Floats) -> Floats:
    """Legendre polynomials of degree 0 to 3 at places in [0, 1], with mean square 1 there; a last axis is added."""
    t = 2 * places - 1
    ones = np.ones_like(t)
    return np.stack(
        [ones, math.sqrt(3) * t, math.sqrt(5) * (3 * t**2 - 1) / 2, math.sqrt(7) * (5 * t**3 - 3 * t) / 2], axis=-1
    )


def features(places: Floats, terms: NDArray[np.intp], degrees: NDArray[np.intp]) -> Floats:
    """(n, p): every term at every place."""
    basis = legendre(places)
    values: Floats = basis[:, terms[:, 0], degrees[:, 0]] * basis[:, terms[:, 1], degrees[:, 1]]
    return values


def _terms(places: Floats, scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], Floats]:
    """Parameters and degrees of all terms, the group of each, and the prior variance of each within its group."""
    d = places.shape[1]
    rows = [((j, j), (k, 0), j) for j in range(d) for k in range(1, DEGREE + 1)]
    for group, (a, b) in enumerate(combinations(_paired(places, scores), 2), start=d):
        rows += [((a, b), degrees, group) for degrees in PAIR_DEGREES]
    terms, degrees, groups = (np.array(column, dtype=np.intp) for column in zip(*rows, strict=True))
    prior = np.maximum(degrees, 1).prod(axis=1) ** -DECAY
    prior /= np.bincount(groups, prior)[groups]
    return terms, degrees, groups, prior


def _paired(places: Floats, scores: Floats) -> list[int]:
    """The parameters to pair: those whose own polynomials follow the scores best, if there are many."""
    d = places.shape[1]
    if d <= PAIRED:
        return list(range(d))
    x = legendre(places)[:, :, 1:]
    x = x - x.mean(axis=0)
    follows = (np.einsum("ndk,n->dk", x, scores - scores.mean()) ** 2 / np.maximum((x**2).sum(axis=0), 1e-12)).sum(1)
    return sorted(np.argsort(-follows, kind="stable")[:PAIRED].tolist())


def _spread(rng: np.random.Generator, levels: Sequence[Floats]) -> Floats:
    """Random starts, a fifth of whose places lie at a border."""
    places = rng.random((N_STARTS, len(levels)))
    places = np.where(rng.random(places.shape) < 0.2, np.round(places), places)
    return np.column_stack(
        [grid[np.abs(grid - u[:, None]).argmin(axis=1)] for grid, u in zip(levels, places.T, strict=True)]
    )
