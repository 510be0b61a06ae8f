"""Whether a parameter matters at all: how much of the order of the trials follows from it.

All trials that say something are put in one order, and each gets a Savage score, which tells the best apart and lumps
the bad together (Hájek, Šidák, Sen, Theory of Rank Tests, 2nd ed., 4.3.1). The importance of a parameter is the share
of the scores' variance that a smooth function of the parameter's place explains, and its p-value the chance of so large
a share if the scores had been dealt to the trials at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy

from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

ORDER = 4
"""Cosines up to this order: a trend, a bowl, and steeper or one-sided forms of both."""


def standing(trials: Sequence[Trial], metric: Metric) -> tuple[list[Trial], np.ndarray, int]:
    """The trials that are evidence, how good each is, and how many are bad beyond comparison.

    Completed trials stand by their values; below them pruned ones, by how far they got and then by their values; below
    them, all equal, those that diverged or completed with a value that is not finite. Other trials are left out: that
    the objective raised says nothing about a place.

    Returns:
        the trials; their standing, larger is better, equal for equals, as int64 (n,); and the number of diverged.
    """
    sign = 1.0 if metric.direction == "maximize" else -1.0
    evidence, keys = [], []
    for trial in trials:
        value = None if trial.value is None or not math.isfinite(trial.value) else sign * trial.value
        if trial.state is TrialState.COMPLETED and value is not None:
            keys.append((2, 0, value))
        elif trial.state is TrialState.PRUNED:
            keys.append((1, trial.step, -math.inf if value is None else value))
        elif trial.state in (TrialState.COMPLETED, TrialState.DIVERGED):
            keys.append((0, 0, 0.0))
        else:
            continue
        evidence.append(trial)
    place = {key: i for i, key in enumerate(sorted(set(keys)))}
    n_diverged = sum(key[0] == 0 for key in keys)
    return evidence, np.array([place[key] for key in keys], dtype=np.int64), n_diverged


def importance(units: np.ndarray, standings: np.ndarray) -> tuple[float, float]:
    """How much a numeric parameter matters, and the p-value of that.

    The share is R² of the scores on cosines of the parameter's rank, up to :data:`ORDER`. Under random dealing it has
    to good approximation the distribution Beta(r / 2, (n − 1 − r) / 2), r the number of cosines (the F test of
    regression; that it holds for scores from 8 trials on, with half of them tied too, is tested).

    Args:
        units: places (n,), of the trials on the parameter's scale.
        standings: of the same trials (n,), larger is better.

    Returns:
        the share in [0, 1] and the p-value in [0, 1]; 0 and 1 where nothing varies, or with fewer than four trials.
    """
    n = len(units)
    ranks = scipy.stats.rankdata(units)
    order = min(ORDER, len(np.unique(ranks)) - 1, n - 3)
    scores = -np.log1p(-scipy.stats.rankdata(standings) / (n + 1)) if n else np.empty(0)
    if order < 1 or scores.min() == scores.max():
        return 0.0, 1.0
    scores -= scores.mean()
    places = (ranks - 0.5) / n
    basis = np.cos(np.pi * np.outer(places, np.arange(order + 1)))
    parts = np.linalg.qr(basis)[0][:, 1:].T @ scores
    share = min(1.0, float(parts @ parts / (scores @ scores)))
    return share, float(scipy.stats.beta.sf(share, order / 2, (n - 1 - order) / 2))
