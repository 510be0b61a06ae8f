from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from hpsearch.search.ending import improvement_chance, reason
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = Metric(name="val_accuracy", direction="maximize")
DOWN = Metric(name="val_loss", direction="minimize")


@dataclass(frozen=True)
class Limits:
    target: float | None = None
    seconds: float | None = None
    epochs: int | None = None
    no_improvement: int | None = None


def best(value: float | None) -> Trial:
    return Trial(17, "coarse", TrialState.COMPLETED, {}, value, 1, None, 1, "w", NOW, NOW, NOW)


def test_the_target_is_reached_in_the_metrics_direction() -> None:
    limits = Limits(target=0.95)
    said = reason(limits, UP, best=best(0.953), values=[], seconds=0, epochs=0)
    assert said == "the target 0.95 was reached by trial 17 (0.953)"
    assert reason(limits, UP, best=best(0.949), values=[], seconds=0, epochs=0) is None
    assert reason(limits, UP, best=best(0.95), values=[], seconds=0, epochs=0)
    assert reason(limits, DOWN, best=best(0.953), values=[], seconds=0, epochs=0) is None
    assert reason(limits, DOWN, best=best(0.1), values=[], seconds=0, epochs=0)


def test_a_budget_is_spent() -> None:
    epochs = reason(Limits(epochs=1000), UP, best=None, values=[], seconds=0, epochs=1003)
    assert epochs == "the limit of 1,000 epochs was reached (1,003 trained)"
    seconds = reason(Limits(seconds=3600), UP, best=None, values=[], seconds=3612.4, epochs=0)
    assert seconds == "the limit of 3,600 seconds was reached (3,612 since the study was created)"
    assert reason(Limits(seconds=3600, epochs=1000), UP, best=None, values=[], seconds=3599, epochs=999) is None


def test_no_limit_never_ends() -> None:
    assert reason(Limits(), UP, best=best(1.0), values=[0.5] * 999, seconds=1e9, epochs=10**9) is None


def test_the_chance_of_a_relevant_improvement() -> None:
    # the best 1.0 is 0.5 ahead of the median: closer than 0.005 are 1.0 and 0.996. 2 / (8 + 2) / 2
    values = [0.1, 0.2, 0.3, 0.5, 0.5, 0.9, 0.996, 1.0]
    assert improvement_chance(values, 2) == pytest.approx(0.1)
    assert improvement_chance([0.7], 1) == 0.5
    assert improvement_chance([0.7] * 10, 10) == pytest.approx(0.05)


def test_no_improvement_says_why() -> None:
    values = [0.9, *[i / 100 for i in range(39)]]  # median 0.195: 2 / (40 + 2) = 4.8 %
    said = reason(Limits(no_improvement=2), UP, best=best(0.9), values=values, seconds=0, epochs=0)
    assert said == (
        "no improvement is to be expected: the last 2 trials brought none, and 2 more beat 0.9 by over 1% of its lead "
        "on the median (0.195) with a chance of about 4.8%"
    )
    flipped = [-value for value in values]
    said = reason(Limits(no_improvement=2), DOWN, best=None, values=flipped, seconds=0, epochs=0)
    assert said is not None
    assert "beat -0.9 by" in said
    # the best came last: that is an improvement
    assert reason(Limits(no_improvement=2), UP, best=None, values=values[::-1], seconds=0, epochs=0) is None
    # 2 / (30 + 2) = 6 %: too likely
    assert reason(Limits(no_improvement=2), UP, best=None, values=values[:30], seconds=0, epochs=0) is None


def test_too_little_or_bad_evidence_ends_nothing() -> None:
    limits = Limits(target=0.5, no_improvement=1)
    for values in ([], [0.3], [math.nan] * 50, [math.nan, 0.2, math.inf]):
        assert reason(limits, UP, best=best(None), values=values, seconds=0, epochs=0) is None
    equal = reason(limits, UP, best=None, values=[0.3] * 10, seconds=0, epochs=0)  # 1 / 11 / 10
    assert equal is not None
    assert "a chance of about 0.9%" in equal


DRAWS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "uniform": lambda rng: rng.random(400),
    "normal": lambda rng: rng.normal(size=400),
    "exponential": lambda rng: rng.exponential(size=400),
    "bowl of two": lambda rng: -(rng.random((400, 2)) ** 2).sum(axis=1),
}


def test_a_relevant_improvement_after_the_end_is_as_rare_as_it_says() -> None:
    # Each of 4 · 60 studies of up to 390 random trials stops when it is told to, with n = 10. At 5 %
    # Binomial(240, 0.05) exceeds 25 (12 + 4 · 3.4) with a chance below 1e-3.
    rng = np.random.default_rng(11)
    limits = Limits(no_improvement=10)
    improved = ended = 0
    for draw in DRAWS.values():
        for _ in range(60):
            values = draw(rng)
            for m in range(20, 390, 10):
                if reason(limits, UP, best=None, values=list(values[:m]), seconds=0, epochs=0):
                    so_far, median = values[:m].max(), np.median(values[:m])
                    ended += 1
                    improved += bool(values[m : m + 10].max() > so_far + 0.01 * (so_far - median))
                    break
    assert ended == 240
    assert improved <= 25
