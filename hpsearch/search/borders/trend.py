"""Do the values rise toward a border? An exact permutation test of all borders at once.

For every border there are three contrasts of a trial's place u (1 at the border): u itself, the hinge max(0, u − ½),
and the outer band u ≥ 0.85, so that a trend over the whole range, one over its half, and a concentration at its end are
all found. What the other parameters explain (each by u and u²) is projected out of scores and contrasts; the statistic
is the partial t, and a border's is the largest of its contrasts.

If no parameter matters, every order of the scores over the places is equally likely, whatever the places: so the test
is exact for any sampler whose places do not follow from results (Fisher 1935; Lehmann & Romano, "Testing Statistical
Hypotheses", 15.2). The p-value of a border is the share of permutations in which the largest statistic of *any* border
is at least its own: the chance of any false statement in the stage (max-T: Westfall & Young, "Resampling-based multiple
testing", 1993).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

BAND = 0.15
"""The outer band of a range, as a share of it on the parameter's own scale."""
N_PERMUTATIONS = 1999
N_EXACT = 500
"""With more trials the permutations are replaced by their limit, a normal law."""
N_NORMAL = 19_999
MAX_NUISANCE = 1 / 3
"""At most this share of the trials' degrees of freedom is spent on the other parameters."""


def contrasts(place: Floats) -> Floats:
    """(n,) places, 1 at the border → (n, 3)."""
    return np.column_stack([place, np.maximum(place - 0.5, 0.0), place >= 1 - BAND])


def p_values(places: Floats, scores: Floats, *, family_wise: bool = True) -> Floats:
    """(2 d,): for each parameter its low, then its high border.

    Args:
        places: (n, d) in [0, 1].
        scores: (n,), the higher the better.
        family_wise: whether a border is compared with the largest statistic of any border, or with its own.

    Returns:
        p-values in (0, 1]: 1 at the borders of a parameter of which only one place was tried, and everywhere if all
        scores are equal or fewer than four.
    """
    n, d = places.shape
    if n < 4 or np.ptp(scores) == 0:
        return np.ones(2 * d)
    nuisances = [_nuisance(np.delete(places, j, axis=1)) for j in range(d)]
    residuals = [
        _directions(np.hstack([contrasts(1 - place), contrasts(place)]), nuisance)
        for place, nuisance in zip(places.T, nuisances, strict=True)
    ]
    pairs = list(zip(nuisances, residuals, strict=True))
    centred = (scores - scores.mean())[:, None]
    observed = np.vstack([_statistics(centred, *pair) for pair in pairs])[:, 0]
    if n > N_EXACT:
        drawn = _limit(np.hstack(residuals))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1)
        drawn = np.vstack([_statistics(centred[orders.T, 0], *pair) for pair in pairs])
    reference = drawn.max(axis=0) if family_wise else drawn
    exceeded = (reference >= observed[:, None] - 1e-9).sum(axis=1)
    p: Floats = np.where(observed > -np.inf, (1 + exceeded) / (1 + drawn.shape[1]), 1.0)
    return p


def _nuisance(others: Floats) -> Floats:
    """(n, k): an orthonormal basis of what the other parameters explain; less of it where there are few trials.

    It depends on the places alone, so that the test stays exact.
    """
    n, d = others.shape
    t = others - others.mean(axis=0)
    columns: list[Floats] = [np.full((n, 1), n**-0.5)]
    if d + 1 <= MAX_NUISANCE * n:
        columns.append(t)
    if 2 * d + 1 <= MAX_NUISANCE * n:
        columns.append(t**2)
    x = np.hstack(columns)
    sizes, vectors = np.linalg.eigh(x.T @ x)  # quicker than a decomposition of x itself, which is tall
    kept = sizes > 1e-9 * sizes[-1]
    basis: Floats = x @ (vectors[:, kept] / np.sqrt(sizes[kept]))
    return basis


def _directions(x: Floats, nuisance: Floats) -> Floats:
    """Contrasts of unit length, orthogonal to the nuisance; 0 where the nuisance explains one wholly."""
    left = x - nuisance @ (nuisance.T @ x)
    lengths = np.linalg.norm(left, axis=0)
    found: Floats = np.where(lengths > 1e-6, left / np.maximum(lengths, 1e-6), 0.0)
    return found


def _statistics(scores: Floats, nuisance: Floats, directions: Floats) -> Floats:
    """(2, b): largest partial t of the low and of the high border, for b columns of scores."""
    along = directions.T @ scores
    left = (scores**2).sum(axis=0) - ((nuisance.T @ scores) ** 2).sum(axis=0)
    freedom = len(scores) - nuisance.shape[1] - 1
    t = along / np.sqrt(np.maximum(left - along**2, 1e-12 * np.maximum(left, 1e-12)) / freedom)
    t[~directions.any(axis=0)] = -np.inf
    largest: Floats = t.reshape(2, -1, scores.shape[1]).max(axis=1)
    return largest


def _limit(directions: Floats) -> Floats:
    """(2 d, N_NORMAL): draws of the statistics under the null, in the limit of many trials.

    A permuted sum is asymptotically normal (Hoeffding, "A combinatorial central limit theorem", 1951); two of them
    correlate as their contrasts do.
    """
    values, vectors = np.linalg.eigh(directions.T @ directions)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    t = root @ np.random.default_rng(0).standard_normal((len(values), N_NORMAL))
    t[~directions.any(axis=0)] = -np.inf
    drawn: Floats = t.reshape(-1, 3, N_NORMAL).max(axis=1)
    return drawn
