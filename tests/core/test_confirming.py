from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from hpsearch.search.confirming import Finalist, finalists, probabilities_best, settled
from hpsearch.space import Params
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = Metric(name="val_accuracy", direction="maximize")
DOWN = Metric(name="val_loss", direction="minimize")


def trial(number: int, value: float | None, lr: float, state: TrialState = TrialState.COMPLETED) -> Trial:
    params: Params = {"lr": lr}
    return Trial(number, "confirm", state, params, value, 1, None, 1, "w", NOW, NOW, NOW)


def of(values: dict[float, list[float]]) -> list[Trial]:
    pairs = [(lr, value) for lr, of_one in values.items() for value in of_one]
    return [trial(i, value, lr) for i, (lr, value) in enumerate(pairs)]


def test_a_finalist_has_mean_spread_and_n_of_its_seeds() -> None:
    trials = [*of({1.0: [0.5, 0.7], 2.0: [0.59]}), trial(9, None, 1.0, TrialState.DIVERGED)]
    first, second = finalists(trials, UP)
    assert first.params == {"lr": 1.0}
    assert first.mean == pytest.approx(0.6)
    assert first.spread == pytest.approx(0.1414213562)  # sqrt(((0.1)² + (0.1)²) / (2 − 1))
    assert (first.n, first.n_diverged) == (2, 1)
    assert (second.mean, second.spread, second.n, second.n_diverged) == (0.59, None, 1, 0)


def test_all_finalists_share_one_variance() -> None:
    # sums of squares 0.02 and 0.0002 with 1 + 1 degrees of freedom: variance 0.0101; t(0.95, 2) = 2.919986
    first, second = finalists(of({1.0: [0.5, 0.7], 2.0: [0.49, 0.51]}), UP)
    error = math.sqrt(0.0101 / 2)
    assert first.standard_error == second.standard_error == pytest.approx(error)
    assert first.interval is not None
    assert first.interval[0] == pytest.approx(0.6 - 2.919986 * error)
    assert first.interval[1] == pytest.approx(0.6 + 2.919986 * error)


@pytest.mark.parametrize(
    ("gap", "n", "df", "expected"),
    # P(T ≤ gap / sqrt(1 / n₁ + 1 / n₂)), T with df degrees of freedom: 1/2 + t / (2 sqrt(2 + t²)) for two of them,
    # 1/2 + atan(t) / π for one; for twenty t = 2.3452 (scipy.stats.t.cdf)
    [
        (0.0, [2, 2], 2, 0.5),
        (1.0, [2, 2], 2, 0.5 + 1 / (2 * math.sqrt(3))),
        (2.0, [2, 2], 2, 0.5 + 2 / (2 * math.sqrt(6))),
        (1.0, [2, 1], 1, 0.5 + math.atan(1 / math.sqrt(1.5)) / math.pi),
        (1.0, [11, 11], 20, 0.985278),
    ],
)
def test_between_two_finalists_it_is_students_t(gap: float, n: list[int], df: int, expected: float) -> None:
    chances = probabilities_best([gap, 0.0], n, 1.0, df)
    assert chances[0] == pytest.approx(expected, abs=2e-5)
    assert sum(chances) == pytest.approx(1)


def test_between_five_it_is_what_drawing_from_the_posterior_gives() -> None:
    rng = np.random.default_rng(1)
    means, n = np.array([0.6, 0.5, 0.45, 0.2, -0.4]), np.array([3, 4, 2, 3, 3])
    sigmas = np.sqrt(10 / rng.chisquare(10, size=200_000))
    draws = means + sigmas[:, None] / np.sqrt(n) * rng.normal(size=(200_000, 5))
    drawn = np.bincount(draws.argmax(axis=1)) / 200_000
    # a share of 200,000 draws has a standard error of at most 0.0011: five of them
    assert probabilities_best(list(means), list(n), 1.0, 10) == pytest.approx(list(drawn), abs=0.0056)


def test_the_best_is_the_least_where_the_metric_is_minimised() -> None:
    values = {1.0: [0.5, 0.7], 2.0: [0.1, 0.3]}
    down, up = finalists(of(values), DOWN), finalists(of(values), UP)
    assert [f.params["lr"] for f in down] == [2.0, 1.0]
    assert down[0].probability_best == pytest.approx(up[0].probability_best)


def test_optimism_is_what_the_selected_value_has_over_the_mean() -> None:
    parent = [trial(0, 0.75, 1.0), trial(1, 0.8, 1.0), trial(2, 0.55, 3.0)]
    first, second = finalists(of({1.0: [0.5, 0.7], 2.0: [0.4, 0.6]}), UP, parent=parent)
    assert first.selected == 0.8
    assert first.optimism == pytest.approx(0.2)
    assert (second.selected, second.optimism) == (None, None)
    best = finalists(of({1.0: [0.5, 0.7]}), DOWN, parent=parent)[0]
    assert best.optimism == pytest.approx(-0.15)  # of losses: chosen for 0.75, on average 0.6


def test_without_repeats_nothing_is_known_of_the_noise() -> None:
    for finalist in finalists(of({1.0: [0.5], 2.0: [0.6]}), UP):
        assert (finalist.standard_error, finalist.interval, finalist.probability_best) == (None, None, None)


def test_seeds_that_all_agree_leave_no_doubt() -> None:
    first, second, third = finalists(of({1.0: [0.5, 0.5], 2.0: [0.6, 0.6], 3.0: [0.6, 0.6]}), UP)
    assert (first.interval, first.probability_best) == ((0.6, 0.6), 0.5)
    assert (second.probability_best, third.probability_best) == (0.5, 0.0)


def test_no_finalist_where_none_completed() -> None:
    assert finalists([], UP) == []
    assert finalists([trial(0, None, 1.0, TrialState.DIVERGED), trial(1, math.nan, 1.0)], UP) == []
    assert finalists(of({1.0: [0.5, 0.7]}), UP)[0].probability_best == 1.0


def test_a_clear_winner_is_settled_with_a_sentence() -> None:
    groups = finalists(of({1.0: [0.90, 0.91], 2.0: [0.50, 0.51], 3.0: [0.40, 0.41]}), UP)
    assert settled(groups) == (
        "the winner is settled after 2 seeds: with 100.0% probability none of the other 2 finalists is better"
    )
    assert settled([groups[0]]) is None
    assert settled([]) is None


def test_a_close_race_a_single_seed_and_doubt_are_not_settled() -> None:
    assert settled(finalists(of({1.0: [0.6, 0.5], 2.0: [0.55, 0.51]}), UP)) is None
    assert settled(finalists(of({1.0: [0.90, 0.91, 0.9], 2.0: [0.50]}), UP)) is None
    sure = finalists(of({1.0: [0.90, 0.91], 2.0: [0.50, 0.51]}), UP)
    unsure: list[Finalist] = [dataclasses.replace(sure[0], probability_best=0.94), sure[1]]
    assert settled(unsure) is None
    assert settled(unsure, confidence=0.9)
    with pytest.raises(ValueError, match=r"confidence 1.5 is not in \(0.5, 1\)"):
        settled(sure, confidence=1.5)


def test_a_settled_winner_is_the_best_as_often_as_it_says() -> None:
    # Five finalists whose true means scatter twice as much as their seeds, asked after each of rounds 2 … 5. Of about
    # 180 races that end early at 95 %, Binomial(180, 0.05) has more than 20 wrong (9 + 4 · 2.9) with a chance < 1e-3.
    rng = np.random.default_rng(3)
    early = wrong = 0
    for _ in range(300):
        truth = 2 * rng.normal(size=5)
        seeds = truth[:, None] + rng.normal(size=(5, 5))
        for n in range(2, 6):
            means, variances = seeds[:, :n].mean(axis=1), seeds[:, :n].var(axis=1, ddof=1)
            chances = probabilities_best(list(means), [n] * 5, math.sqrt(variances.mean()), 5 * (n - 1))
            if max(chances) >= 0.95:
                early += 1
                wrong += bool(means.argmax() != truth.argmax())
                break
    assert early > 120
    assert wrong <= 20
