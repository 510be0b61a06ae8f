from __future__ import annotations

import math
from datetime import UTC, datetime

from hpsearch.search.ranking import first_params, ranked
from hpsearch.space import Params
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = Metric(name="val_accuracy", direction="maximize")
DOWN = Metric(name="val_loss", direction="minimize")


def trial(
    number: int, value: float | None, params: Params, state: TrialState = TrialState.COMPLETED, stage: str = "coarse"
) -> Trial:
    return Trial(number, stage, state, params, value, 1, None, 1, "w", NOW, NOW, NOW)


def test_best_first_whatever_the_direction() -> None:
    trials = [trial(0, 0.2, {}), trial(1, 0.9, {}), trial(2, 0.2, {}), trial(3, None, {}, TrialState.DIVERGED)]
    assert [t.number for t in ranked(trials, UP)] == [1, 0, 2]
    assert [t.number for t in ranked(trials, DOWN)] == [0, 2, 1]


def test_a_value_that_is_not_finite_is_not_ranked() -> None:
    trials = [trial(0, math.nan, {}), trial(1, 0.5, {}), trial(2, math.inf, {})]
    assert [t.number for t in ranked(trials, UP)] == [1]


def test_finalists_are_the_best_params_each_once() -> None:
    trials = [trial(0, 0.5, {"lr": 1.0}), trial(1, 0.9, {"lr": 2.0}), trial(2, 0.8, {"lr": 2.0})]
    assert first_params(ranked(trials, UP), 2) == [{"lr": 2.0}, {"lr": 1.0}]
    assert first_params(ranked(trials, UP), 9) == [{"lr": 2.0}, {"lr": 1.0}]
    assert first_params(ranked([], UP), 3) == []
