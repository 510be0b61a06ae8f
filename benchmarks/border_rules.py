"""Rules that say at which borders of a study the optimum is suspected: ours, a naive one, Ax's and skore's.

Each takes a study and answers with the borders (parameter, side) at which it would have the range widened.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

Floats = NDArray[np.float64]
Border = tuple[str, str]
UP = Metric(name="value", direction="maximize")
AX_BATCH = 5
AX_TOLERANCE = 1e-6
AX_THRESHOLD = 0.5


@dataclass(frozen=True)
class Trials:
    """A random study: its space and its finished trials (completed or diverged); the higher the value the better."""

    space: Space
    trials: tuple[Trial, ...]

    def completed(self) -> list[Trial]:
        return [t for t in self.trials if t.state is TrialState.COMPLETED]

    def places(self, trials: list[Trial]) -> Floats:
        return np.array([[to_unit(p, t.params[name]) for name, p in self.space.items()] for t in trials])


def naive(study: Trials) -> set[Border]:
    """The best trial lies in the outer 10 % of a range."""
    best = max(study.completed(), key=lambda t: t.value or 0.0)
    place = study.places([best])[0]
    low = {(name, "low") for name, u in zip(study.space, place, strict=True) if u <= 0.1}
    return low | {(name, "high") for name, u in zip(study.space, place, strict=True) if u >= 0.9}


def skore(study: Trials) -> set[Border]:
    """The best value of a numeric parameter equals the least or greatest that was tried.

    skore's check SKD014 "hyperparameters at search edge" (probabl-ai/skore, pull requests 2944 and 3069), which reads
    ``best_params_`` and ``cv_results_`` of a fitted search; fits that failed count as tried.
    """
    best = max(study.completed(), key=lambda t: t.value or 0.0)
    found: set[Border] = set()
    for name, param in study.space.items():
        assert not isinstance(param, CategoricalParam)
        tried = [t.params[name] for t in study.trials]
        if best.params[name] == min(tried):  # type: ignore[type-var]
            found.add((name, "low"))
        elif best.params[name] == max(tried):  # type: ignore[type-var]
            found.add((name, "high"))
    return found


def ax(study: Trials, *, seed: int) -> set[Border]:
    """More than half of the trials that a Bayesian optimiser suggests next lie on the border (to 1e-6 of the width).

    Ax's health check ``SearchSpaceAnalysis`` (ax/analysis/healthcheck/search_space_analysis.py: tolerance 1e-6,
    proportion above 0.5), which looks at the arms of a suggested trial; on random arms it can never fire. Ax itself is
    not needed for it: the suggestions here are a batch of five by expected improvement under a Gaussian process with
    Matérn-5/2 kernel and one length scale per parameter, the place of each suggestion filled with its prediction before
    the next is found. Diverged trials are left out, as failed trials are in Ax.
    """
    done = study.completed()
    places, values = study.places(done), np.array([t.value for t in done], dtype=np.float64)
    batch = _suggest(places, values, np.random.default_rng(seed))
    found: set[Border] = set()
    for name, column in zip(study.space, batch.T, strict=True):
        if (column < AX_TOLERANCE).mean() > AX_THRESHOLD:
            found.add((name, "low"))
        if (column > 1 - AX_TOLERANCE).mean() > AX_THRESHOLD:
            found.add((name, "high"))
    return found


def _suggest(places: Floats, values: Floats, rng: np.random.Generator) -> Floats:
    """(AX_BATCH, d): places with the largest expected improvement on the best prediction, one after the other."""
    n_params = places.shape[1]
    y = (values - values.mean()) / (values.std() or 1.0)
    kernel = Matern(np.ones(n_params), (0.1, 20.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # length scales at their bounds: parameters that do not matter
        kernel = GaussianProcessRegressor(kernel, optimizer=_climb).fit(places, y).kernel_
    batch: list[Floats] = []
    for _ in range(AX_BATCH):
        process = GaussianProcessRegressor(kernel, optimizer=None).fit(places, y)
        predicted = process.predict(places)
        pool = _pool(places[predicted.argmax()], rng)
        mean, deviation = process.predict(pool, return_std=True)
        deviation = np.sqrt(np.maximum(deviation**2 - kernel.k2.noise_level, 1e-12))
        z = (mean - predicted.max()) / deviation
        chosen = int((deviation * (z * norm.cdf(z) + norm.pdf(z))).argmax())
        batch.append(pool[chosen])
        places, y = np.vstack([places, pool[chosen]]), np.append(y, mean[chosen])
    return np.array(batch)


def _pool(best: Floats, rng: np.random.Generator) -> Floats:
    """Candidates everywhere, near the best, and the same with some or all places on the border."""
    anywhere = rng.random((512, len(best)))
    near = np.clip(best + 0.15 * rng.standard_normal((256, len(best))), 0.0, 1.0)  # where it leaves the box, on it
    mixed = np.where(rng.random(anywhere.shape) < 0.3, np.round(anywhere), anywhere)
    return np.vstack([anywhere, mixed, near])


def _climb(objective: Any, start: Floats, bounds: Floats) -> tuple[Floats, float]:
    found = minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 15})
    return found.x, found.fun
