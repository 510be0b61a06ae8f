"""What a confirm stage says of its finalists: how good each is, and how sure the winner.

The seeds of all finalists are taken to scatter equally (normal, one variance σ², estimated from all of them together
with Σ(nᵢ − 1) degrees of freedom, as in the analysis of variance). With the usual flat prior the true means are then
independent given σ, each normal around its finalist's mean with variance σ² / nᵢ, and σ² is s² df / χ²(df) (Gelman and
others, Bayesian Data Analysis, 3rd ed., 3.2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from scipy.special import log_ndtr

from hpsearch.search.ranking import params_key, ranked
from hpsearch.space import Params
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

COVERAGE = 0.9
"""Of a finalist's interval."""
MIN_SEEDS = 2
"""Every finalist needs so many for the winner to be settled."""
SIGMAS, WEIGHTS = np.polynomial.legendre.leggauss(32)
"""Nodes of the integration over σ, in [−1, 1], and their weights, which add up to 2."""
N_MEANS = 128
"""Nodes of the integration over the true mean."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """One set of params trained with several fresh seeds.

    Attributes:
        trials: the completed trials of these params, by number.
        mean: of their values.
        spread: sample standard deviation (n − 1) of their values; None for a single one.
        standard_error: of the mean, from the variance of all finalists together; None without any finalist that has
            two seeds.
        interval: holds the true mean with 90 % probability; None as the standard error.
        probability_best: that no other finalist's true mean is better; over all finalists these add up to 1. None as
            the standard error.
        n_diverged: how many seeds diverged; they are in none of the numbers above.
        selected: the value it was chosen for, the best of these params in the parent stage; None if unknown.
        optimism: how much better, in the metric's direction, that value is than the mean over fresh seeds; None if
            unknown. The best of many noisy values is too good on average (the winner's curse). Where the stages differ
            in epochs the difference holds what the epochs do, too.
    """

    params: Params
    trials: tuple[Trial, ...]
    mean: float
    spread: float | None
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    probability_best: float | None = None
    n_diverged: int = 0
    selected: float | None = None
    optimism: float | None = None

    @property
    def n(self) -> int:
        """How many seeds completed."""
        return len(self.trials)


def finalists(trials: Sequence[Trial], metric: Metric, *, parent: Iterable[Trial] = ()) -> list[Finalist]:
    """The finalists of a confirm stage, best mean first. Seeds that did not complete are left out of the numbers.

    Args:
        trials: of the confirm stage.
        metric: what is optimised.
        parent: trials of the stage that the finalists were chosen from, for ``selected`` and ``optimism``.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(ranked(trials, metric), key=lambda t: t.number):
        groups.setdefault(params_key(trial.params), []).append(trial)
    sign = 1.0 if metric.direction == "maximize" else -1.0
    values = {key: [t.value for t in group if t.value is not None] for key, group in groups.items()}
    means = {key: statistics.fmean(of_one) for key, of_one in values.items()}
    keys = sorted(groups, key=lambda key: (-sign * means[key], groups[key][0].number))
    df = sum(len(of_one) - 1 for of_one in values.values())
    deviation = math.sqrt(sum((v - means[key]) ** 2 for key in keys for v in values[key]) / df) if df else None
    chances: list[float | None] = [None] * len(keys)
    if deviation is not None:
        chances = [*probabilities_best([sign * means[k] for k in keys], [len(values[k]) for k in keys], deviation, df)]
    selected = _first_by_params(parent, metric)
    diverged = [params_key(t.params) for t in trials if t.state is TrialState.DIVERGED]
    found = []
    for key, chance in zip(keys, chances, strict=True):
        error = None if deviation is None else deviation / math.sqrt(len(values[key]))
        value = selected.get(key)
        reach = None if error is None else error * float(scipy.stats.t.ppf((1 + COVERAGE) / 2, df))
        found.append(
            Finalist(
                params=groups[key][0].params,
                trials=tuple(groups[key]),
                mean=means[key],
                spread=statistics.stdev(values[key]) if len(values[key]) > 1 else None,
                standard_error=error,
                interval=None if reach is None else (means[key] - reach, means[key] + reach),
                probability_best=chance,
                n_diverged=diverged.count(key),
                selected=value,
                optimism=None if value is None else sign * (value - means[key]),
            )
        )
    return found


def _first_by_params(parent: Iterable[Trial], metric: Metric) -> dict[str, float | None]:
    best: dict[str, float | None] = {}
    for trial in ranked(parent, metric):
        best.setdefault(params_key(trial.params), trial.value)
    return best


def probabilities_best(means: Sequence[float], n: Sequence[int], deviation: float, df: int) -> list[float]:
    """The posterior probability of each true mean that it is the largest.

    ∫ ∫ f_i(x) ∏_{j≠i} F_j(x) dx dP(σ), by Gauss-Legendre quadrature over the quantiles of σ and the trapezoidal rule
    over x.

    Args:
        means: sample means, larger is better; at least one.
        n: how many values each is the mean of, each at least 1.
        deviation: pooled standard deviation, at least 0. With 0 the largest means share the probability.
        df: its degrees of freedom, at least 1.

    Returns:
        probabilities that add up to 1.
    """
    centres, counts = np.asarray(means, dtype=float), np.asarray(n, dtype=float)
    if deviation == 0 or len(centres) == 1:
        top = centres == centres.max()
        return [float(p) for p in top / top.sum()]
    sigmas = deviation * np.sqrt(df / scipy.stats.chi2.ppf((1 + SIGMAS) / 2, df))
    total = np.zeros(len(centres))
    for sigma, weight in zip(sigmas, WEIGHTS, strict=True):
        errors = sigma / np.sqrt(counts)
        x = centres.max() + 8 * errors.max() * np.linspace(-1, 1, N_MEANS)
        z = (x - centres[:, None]) / errors[:, None]  # (finalists, N_MEANS)
        below = log_ndtr(z)
        inside = (np.exp(below.sum(axis=0) - below - z**2 / 2) / errors[:, None]).sum(axis=1)
        total += weight * inside / inside.sum()
    return [float(p) for p in total / total.sum()]


def settled(groups: Sequence[Finalist], *, confidence: float = 0.95) -> str | None:
    """Why the confirm stage may end before its last seed: the winner is sure enough. None if it may not.

    To be asked between rounds, when every finalist has had equally many seeds. With one finalist there is nothing to
    settle, and its spread is worth the seeds.

    Args:
        groups: what :func:`finalists` found, best first.
        confidence: the probability that it takes, in (0.5, 1).

    Raises:
        ValueError: the confidence is outside.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"the confidence {confidence} is not in (0.5, 1)")
    if len(groups) < 2 or min(group.n for group in groups) < MIN_SEEDS:
        return None
    winner = groups[0]
    if winner.probability_best is None or winner.probability_best < confidence:
        return None
    return (
        f"the winner is settled after {winner.n} seeds: with {winner.probability_best:.1%} probability none of the "
        f"other {len(groups) - 1} finalists is better"
    )
