"""Whether short training tells what long training will: do the same trials lead after few epochs as after many?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from hpsearch.search.ranking import params_key
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

COVERAGE = 0.9
"""Of the interval of the correlation."""
MIN_TRIALS = 10
"""With fewer trials there is no interval, and no warning: the formula for the interval is for larger samples."""
WEAK = 0.5
"""A correlation that lies below this for all that is known is a warning."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the order of trials after few epochs agrees with the order after many.

    Attributes:
        epochs: the shorter budget; ``of``: the longer.
        n: how many trials were compared.
        spearman: rank correlation, from −1 to 1; None where fewer than three trials were compared, or all are equal.
        interval: of the correlation, 90 %; None with fewer than :data:`MIN_TRIALS` trials.
        top: how many count as the best.
        overlap: share of the best after many epochs that are among the best after few, from 0 to 1; where trials tie,
            its mean over all ways to break the ties. ``top / n`` is what chance gives. None without trials.
        warning: a sentence where the shorter budget does not tell the longer, else None.
    """

    epochs: int
    of: int
    n: int
    spearman: float | None
    interval: tuple[float, float] | None
    top: int
    overlap: float | None
    warning: str | None


def agreement(
    curves: Mapping[int, Sequence[float]] | Sequence[Sequence[float]], metric: Metric, *, top: int | None = None
) -> list[Agreement]:
    """The agreement of 1, 2, 4, … epochs with the last, one for each.

    Trials that have no value at the last epoch, such as pruned ones, are left out. One that is not finite by an epoch
    is left out there, as what it will come to is no secret; one that becomes so later counts as the worst at the end.

    Args:
        curves: per trial the metric after each epoch, from the first; in any case (n_trials, ≤ n_epochs). A trial that
            diverged is told from one that was stopped by non-finite values up to the last epoch.
        metric: what is optimised.
        top: how many count as the best, at least 1; √n of the compared trials, rounded up, by default.

    Returns:
        by epochs; empty where no trial has two.

    Raises:
        ValueError: ``top`` is below 1.
    """
    rows = list(curves.values()) if isinstance(curves, Mapping) else list(curves)
    last = max((len(row) for row in rows), default=0)
    complete = np.array([row for row in rows if len(row) == last], dtype=float)
    found = []
    epochs = 1
    while epochs < last:
        found.append(compare(complete[:, epochs - 1], complete[:, -1], metric, epochs=(epochs, last), top=top))
        epochs *= 2
    return found


def stage_agreement(
    short: Sequence[Trial], long: Sequence[Trial], metric: Metric, *, epochs: tuple[int, int], top: int | None = None
) -> Agreement:
    """The agreement of two stages, over the params that completed in the first and ended in the second.

    Several trials of equal params count as one with their mean; params all of whose trials diverged in the second stage
    count as the worst there.

    Args:
        short: trials of the stage that trains shorter.
        long: of the one that trains longer.
        metric: what is optimised.
        epochs: of both.
        top: as in :func:`agreement`.
    """
    before, after = _means(short), _means(long)
    shared = [key for key, value in before.items() if math.isfinite(value) and key in after]
    early, late = np.array([before[key] for key in shared]), np.array([after[key] for key in shared])
    return compare(early, late, metric, epochs=epochs, top=top)


def compare(
    early: np.ndarray, late: np.ndarray, metric: Metric, *, epochs: tuple[int, int], top: int | None = None
) -> Agreement:
    """The agreement of two values of the same trials, both (n,). See :func:`agreement` for the rest."""
    if top is not None and top < 1:
        raise ValueError(f"top {top} is below 1")
    sign = 1.0 if metric.direction == "maximize" else -1.0
    known = np.isfinite(early)
    n = int(known.sum())
    first = scipy.stats.rankdata(sign * early[known])
    second = scipy.stats.rankdata(np.where(np.isfinite(late[known]), sign * late[known], -math.inf))
    k = min(n, top or math.ceil(math.sqrt(n)))
    spearman = None
    if n >= 3 and np.ptp(first) > 0 and np.ptp(second) > 0:
        spearman = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    interval = _interval(spearman, n) if spearman is not None and n >= MIN_TRIALS else None
    overlap = float(_share_of_top(first, k) @ _share_of_top(second, k)) / k if n else None
    return Agreement(*epochs, n, spearman, interval, k, overlap, _warning(epochs, n, spearman, interval))


def _means(trials: Sequence[Trial]) -> dict[str, float]:
    """Params → the mean of their completed trials; NaN where there is none but some diverged."""
    values: dict[str, list[float]] = {}
    for trial in trials:
        if trial.state in (TrialState.COMPLETED, TrialState.DIVERGED):
            of_params = values.setdefault(params_key(trial.params), [])
            if trial.state is TrialState.COMPLETED and trial.value is not None:
                of_params.append(trial.value)
    return {key: float(np.mean(of_params)) if of_params else math.nan for key, of_params in values.items()}


def _interval(spearman: float, n: int) -> tuple[float, float]:
    """Fisher's, with the variance (1 + r² / 2) / (n − 3) that suits ranks (Bonett and Wright, Psychometrika 65, 2000).

    Perfect agreement is taken as two neighbours short of it, 1 − 12 / (n (n² − 1)): no sample proves it.
    """
    most = 1 - 12 / (n * (n * n - 1))
    r = max(-most, min(most, spearman))
    reach = float(scipy.stats.norm.ppf((1 + COVERAGE) / 2)) * math.sqrt((1 + r * r / 2) / (n - 3))
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def _share_of_top(ranks: np.ndarray, k: int) -> np.ndarray:
    """How surely each is among the best k, ties broken at random; adds up to k."""
    last = np.sort(ranks)[-k]
    above, tied = ranks > last, ranks == last
    shares: np.ndarray = above + tied * ((k - above.sum()) / tied.sum())
    return shares


def _warning(
    epochs: tuple[int, int], n: int, spearman: float | None, interval: tuple[float, float] | None
) -> str | None:
    if spearman is None or interval is None or (interval[0] > 0 and interval[1] >= WEAK):
        return None
    few = f"{epochs[0]} epoch{'s' if epochs[0] > 1 else ''}"
    numbers = f"rank correlation {spearman:.2f}, 90 % interval {interval[0]:.2f} to {interval[1]:.2f}, {n} trials"
    if interval[0] <= 0:
        return f"the order after {few} may say nothing of the order after {epochs[1]} ({numbers}): train longer"
    return f"the order after {few} says little of the order after {epochs[1]} ({numbers}): train longer"
