from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest

from hpsearch.search.agreement import agreement, compare, stage_agreement
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = Metric(name="val_accuracy", direction="maximize")
DOWN = Metric(name="val_loss", direction="minimize")


def trial(number: int, value: float | None, lr: float, state: TrialState = TrialState.COMPLETED) -> Trial:
    return Trial(number, "s", state, {"lr": lr}, value, 1, None, 1, "w", NOW, NOW, NOW)


def test_the_order_after_1_2_4_epochs_against_the_last() -> None:
    # ranks after epoch 1: 1 2 3 4 5, at the end: 2 1 4 3 5. Σd² = 4, so 1 − 6 · 4 / (5 · 24) = 0.8
    end = [2.0, 1.0, 4.0, 3.0, 5.0]
    curves = {i: [float(i), 0.0, 0.0, end[i], 0.0, end[i]] for i in range(5)}
    one, two, four = agreement(curves, UP, top=2)
    assert [(a.epochs, a.of, a.n) for a in (one, two, four)] == [(1, 6, 5), (2, 6, 5), (4, 6, 5)]
    assert one.spearman == pytest.approx(0.8)
    assert one.overlap == 0.5  # the best two are {3, 4} and {2, 4}
    assert two.spearman is None  # all equal
    assert two.overlap == pytest.approx(0.4)  # what chance gives: 2 of 5
    assert four.spearman == pytest.approx(1.0)
    assert four.overlap == 1.0
    assert one.interval is None  # five are too few
    assert agreement(list(curves.values()), UP, top=2) == [one, two, four]


def test_the_interval_is_bonett_and_wrights() -> None:
    # n = 20, ranks as they are but for neighbours swapped in pairs: Σd² = 20, ρ = 1 − 120 / 7980 = 0.984962.
    # atanh = 2.441401, ± 1.644854 · sqrt((1 + 0.970151 / 2) / 17) = 0.486158
    early = np.arange(20.0)
    late = early.reshape(10, 2)[:, ::-1].ravel()
    found = compare(early, late, UP, epochs=(1, 5))
    assert found.spearman == pytest.approx(0.9849624)
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(math.tanh(2.441401 - 0.486158))
    assert found.interval[1] == pytest.approx(math.tanh(2.441401 + 0.486158))
    assert found.warning is None


def test_the_interval_holds_the_correlation_as_often_as_it_says() -> None:
    # Normal pairs with correlation 0.6 have a rank correlation of 6 / π · asin(0.3) = 0.5819. Of 500 samples 90 % ± 4
    # standard errors (1.3 %) must hold it.
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(500):
        early = rng.normal(size=40)
        late = 0.6 * early + 0.8 * rng.normal(size=40)
        interval = compare(early, late, UP, epochs=(1, 5)).interval
        assert interval is not None
        held += interval[0] <= 0.5819 <= interval[1]
    assert 0.846 <= held / 500 <= 0.954


def test_a_warning_where_the_short_does_not_tell_the_long() -> None:
    rng = np.random.default_rng(6)
    early = rng.normal(size=200)
    weak = compare(early, 0.3 * early + rng.normal(size=200), UP, epochs=(1, 10))
    assert weak.warning is not None
    assert weak.warning.startswith("the order after 1 epoch says little of the order after 10 (rank correlation 0.")
    nothing = compare(early[:20], rng.normal(size=20), UP, epochs=(2, 10))
    assert nothing.warning is not None
    assert nothing.warning.startswith("the order after 2 epochs may say nothing of the order after 10")
    assert compare(early, early + 0.3 * rng.normal(size=200), UP, epochs=(1, 10)).warning is None
    assert compare(early[:9], -early[:9], UP, epochs=(1, 10)).warning is None  # too few to say


def test_the_direction_tells_which_are_the_best() -> None:
    early, late = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 4.0, 2.0])
    assert compare(early, late, DOWN, epochs=(1, 2), top=1).overlap == 1.0
    assert compare(early, late, UP, epochs=(1, 2), top=1).overlap == 0.0
    assert compare(early, late, UP, epochs=(1, 2)).spearman == compare(early, late, DOWN, epochs=(1, 2)).spearman


def test_ties_count_as_if_they_were_broken_at_random() -> None:
    # after one epoch trials 1, 2, 3 tie for two places: 2/3 each. At the end 2 and 3 lead: (2/3 + 2/3) / 2
    found = compare(np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0]), UP, epochs=(1, 2), top=2)
    assert found.overlap == pytest.approx(2 / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_at_the_end_is_worst_and_what_is_so_early_is_left_out(bad: float) -> None:
    curves = [[0.9, 0.8, bad], [bad, bad, bad], [0.5, 0.6, 0.7], [0.4, 0.5, 0.6]]
    (one, two) = agreement(curves, UP, top=1)
    assert (one.n, one.overlap) == (3, 0.0)
    assert one.spearman == pytest.approx(-0.5)  # ranks 3 2 1 and 1 3 2: Σd² = 6
    assert two.n == 3


def test_stopped_trials_and_too_few_trials() -> None:
    assert agreement({}, UP) == []
    assert agreement({0: [], 1: []}, UP) == []
    assert agreement({0: [0.5], 1: [0.6]}, UP) == []
    (found,) = agreement({0: [0.5, 0.6], 1: [0.9]}, UP)
    assert (found.n, found.spearman, found.interval, found.overlap, found.warning) == (1, None, None, 1.0, None)
    (nobody,) = agreement({0: [math.nan, math.nan]}, UP)
    assert (nobody.n, nobody.top, nobody.overlap) == (0, 0, None)
    with pytest.raises(ValueError, match="top 0 is below 1"):
        agreement({0: [0.5, 0.6]}, UP, top=0)


def test_two_stages_agree_over_the_params_that_both_trained() -> None:
    short = [trial(i, value, lr) for i, (lr, value) in enumerate([(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (9, 0.9)])]
    short.append(trial(5, None, 6, TrialState.DIVERGED))
    long = [
        trial(10, 0.30, 1),
        trial(11, 0.50, 1),  # the mean of lr 1 is 0.4
        trial(12, 0.50, 2),
        trial(13, 0.60, 3),
        trial(14, None, 4, TrialState.DIVERGED),  # the worst
        trial(15, 0.90, 6),
        trial(16, None, 9, TrialState.QUEUED),
    ]
    found = stage_agreement(short, long, UP, epochs=(1, 5), top=1)
    assert (found.epochs, found.of, found.n, found.overlap) == (1, 5, 4, 0.0)
    assert found.spearman == pytest.approx(-0.2)  # ranks 1 2 3 4 and 2 3 4 1: Σd² = 12, 1 − 72 / 60
    assert stage_agreement([], [], UP, epochs=(1, 5)).spearman is None
