from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hpsearch.search.borders import FlagVerdict, border_flags
from hpsearch.search.ranking import finalist_params, finalists, ranked
from hpsearch.search.refining import difference, narrow
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Params, Space
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


def test_finalists_are_the_best_params_each_once() -> None:
    trials = [trial(0, 0.5, {"lr": 1.0}), trial(1, 0.9, {"lr": 2.0}), trial(2, 0.8, {"lr": 2.0})]
    assert finalist_params(trials, UP, 2) == [{"lr": 2.0}, {"lr": 1.0}]
    assert finalist_params(trials, UP, 9) == [{"lr": 2.0}, {"lr": 1.0}]
    assert finalist_params([], UP, 3) == []


def test_a_finalist_has_mean_spread_and_n_of_its_seeds() -> None:
    trials = [
        trial(7, 0.5, {"lr": 1.0}),
        trial(8, 0.7, {"lr": 1.0}),
        trial(9, None, {"lr": 1.0}, TrialState.DIVERGED),
        trial(10, 0.59, {"lr": 2.0}),
    ]
    first, second = finalists(trials, UP)
    assert first.params == {"lr": 1.0}
    assert first.mean == pytest.approx(0.6)
    assert first.spread == pytest.approx(0.1414213562)  # sqrt(((0.1)² + (0.1)²) / (2 − 1))
    assert first.n == 2
    assert (second.mean, second.spread, second.n) == (0.59, None, 1)


SPACE: Space = {
    "lr": FloatParam(type="float", low=1e-5, high=1e-1, log=True),
    "width": IntParam(type="int", low=10, high=110),
    "kind": CategoricalParam(type="categorical", choices=["a", "b"]),
}


def test_the_child_space_spans_the_best_fifth_and_a_tenth_on_either_side() -> None:
    # 20 trials, the best four at lr 1e-3 … 1e-2 (places 0.5 … 0.75) and width 40 (place 30.5/101 = 0.302)
    best = [trial(i, 1.0, {"lr": lr, "width": 40, "kind": "a"}) for i, lr in enumerate([1e-3, 2e-3, 5e-3, 1e-2])]
    rest = [trial(4 + i, 0.1, {"lr": 1e-5, "width": 110, "kind": "b"}) for i in range(16)]
    child = narrow(SPACE, best + rest, UP)
    lr, width = child["lr"], child["width"]
    assert isinstance(lr, FloatParam)
    assert isinstance(width, IntParam)
    assert lr.low == pytest.approx(10**-3.4)  # place 0.5 − 0.1
    assert lr.high == pytest.approx(10**-1.6)  # place 0.75 + 0.1
    assert (width.low, width.high) == (30, 50)  # places 0.202 and 0.402
    assert child["kind"] == SPACE["kind"]
    assert set(difference(SPACE, child)) == {"lr", "width"}
    assert difference(SPACE, child)["width"] == {"low": [10, 30], "high": [110, 50]}


def test_narrowing_stays_inside_the_parent_and_is_never_too_narrow() -> None:
    trials = [trial(i, float(i), {"lr": 1e-1, "width": 10, "kind": "a"}) for i in range(10)]
    child = narrow(SPACE, trials, UP)
    lr = child["lr"]
    assert isinstance(lr, FloatParam)
    assert lr.high == pytest.approx(1e-1)
    assert lr.low == pytest.approx(10**-1.8)  # a fifth of four decades


def test_too_little_evidence_narrows_nothing() -> None:
    trials = [trial(i, float(i), {"lr": 1e-1, "width": 10, "kind": "a"}) for i in range(7)]
    assert narrow(SPACE, trials, UP) == SPACE
    assert narrow(SPACE, [], UP) == SPACE


def spread_out(n: int) -> list[float]:
    """Log-uniform learning rates in 1e-5 … 1e-1, in an order that does not follow their size."""
    return [10 ** (-5 + 4 * ((i * 37) % n + 0.5) / n) for i in range(n)]


ONE: Space = {"lr": SPACE["lr"]}


def test_an_optimum_at_a_border_is_flagged_with_its_chance() -> None:
    # 60 trials, the larger lr the better: the best 9 are the 9 in the outer 15 %. Chance 2 / C(60, 9) = 1.35e-10.
    trials = [trial(i, lr, {"lr": lr}) for i, lr in enumerate(spread_out(60))]
    (flag,) = border_flags("coarse", ONE, trials, UP)
    assert (flag.parameter, flag.side, flag.level, flag.verdict) == ("lr", "high", "strong", FlagVerdict.WIDEN)
    assert flag.p_value == pytest.approx(1.3527e-10, rel=1e-3)
    assert flag.proposed == {"low": 1e-5, "high": pytest.approx(1.0)}
    assert "9 of the best 9" in flag.message
    (other,) = border_flags("coarse", ONE, trials, DOWN)
    assert other.side == "low"
    assert other.proposed == {"low": pytest.approx(1e-6), "high": 0.1}


def test_an_optimum_inside_is_not_flagged() -> None:
    trials = [trial(i, -abs(lr - 1e-3), {"lr": lr}) for i, lr in enumerate(spread_out(60))]
    assert border_flags("coarse", ONE, trials, UP) == []


def test_a_cliff_of_diverged_trials_is_no_reason_to_widen() -> None:
    trials = [trial(i, lr, {"lr": lr}) for i, lr in enumerate(spread_out(60))]
    cliff = [trial(60 + i, None, {"lr": 0.09}, TrialState.DIVERGED) for i in range(9)]
    (flag,) = border_flags("coarse", ONE, trials + cliff, UP)
    assert flag.verdict is FlagVerdict.UNSTABLE_EDGE
    assert flag.proposed is None


def test_a_range_that_ends_by_nature_is_said_to() -> None:
    space: Space = {"layers": IntParam(type="int", low=1, high=1000, log=True)}
    trials = [trial(i, -float(n), {"layers": n}) for i, n in enumerate([1] * 10 + list(range(3, 53)))]
    (flag,) = border_flags("coarse", space, trials, UP)
    assert flag.verdict is FlagVerdict.NATURAL_LIMIT


@pytest.mark.parametrize("trials", [[], [trial(0, 1.0, {"lr": 1e-3})]])
def test_without_evidence_nothing_is_flagged(trials: list[Trial]) -> None:
    assert border_flags("coarse", ONE, trials, UP) == []


def test_no_more_false_alarms_than_the_level_promises() -> None:
    # values have nothing to do with lr: of 400 studies at most 5 % may be flagged at all. The p-value is conservative
    # (a discrete test), and Binomial(400, 0.05) exceeds 20 + 5 · 4.36 = 41 with a chance below 1e-5.
    import random

    rng = random.Random(7)
    flagged = 0
    for _ in range(400):
        trials = [trial(i, rng.random(), {"lr": 10 ** rng.uniform(-5, -1)}) for i in range(60)]
        flagged += bool(border_flags("coarse", ONE, trials, UP))
    assert flagged <= 41
