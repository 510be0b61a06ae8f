"""Verdicts on curves made by hand: what each rule says, and what it does not say just beside its limits."""

import math
from typing import Any

import pytest

from hpsearch.trial import StepMetrics, TrialState
from hpsearch.verdicts import NAMES, Verdict, judge

LN10 = 2.302585


def curve(start: float | None = LN10, **series: Any) -> list[StepMetrics]:
    """Points of equally long series; ``diag_x`` stands for ``diag/x``; ln 10 at the start and in theory."""
    points = []
    for i, row in enumerate(zip(*series.values(), strict=True)):
        values = {name.replace("diag_", "diag/"): value for name, value in zip(series, row, strict=True)}
        if i == 0 and start is not None:
            values |= {"diag/initial_loss": start, "diag/chance_loss": LN10}
        points.append(StepMetrics(0, i + 1, values))
    return points


def verdicts(points: list[StepMetrics], state: TrialState = TrialState.COMPLETED, **keys: Any) -> dict[str, Verdict]:
    found = judge(points, state=state, **{"metric": "val_accuracy", "direction": "maximize", **keys})
    assert [v.name for v in found] == sorted((v.name for v in found), key=NAMES.index)
    return {v.name: v for v in found}


def names(points: list[StepMetrics], state: TrialState = TrialState.COMPLETED, **keys: Any) -> list[str]:
    return list(verdicts(points, state, **keys))


def test_healthy() -> None:
    points = curve(train_loss=[1.0, 0.4, 0.3, 0.28, 0.275, 0.27], val_loss=[0.6, 0.4, 0.35, 0.34, 0.335, 0.334])
    found = verdicts(points)
    assert list(found) == ["healthy"]
    assert found["healthy"].evidence["progress"] == pytest.approx(1 - 0.27 / LN10)
    assert found["healthy"].epoch is None


def test_diverged_to_nan_names_the_epoch_and_blames_the_rate() -> None:
    points = curve(train_loss=[2.0, 2.5, math.nan], val_loss=[2.0, 2.4, math.nan])
    found = verdicts(points, TrialState.DIVERGED)
    assert list(found) == ["diverged", "lr_too_high"]
    assert found["diverged"].epoch == found["lr_too_high"].epoch == 3
    assert math.isnan(found["diverged"].evidence["value"])


def test_diverged_with_finite_losses() -> None:
    found = verdicts(curve(train_loss=[2.0, 9.0], val_loss=[2.0, 9.0]), TrialState.DIVERGED)
    assert list(found) == ["diverged", "lr_too_high"]
    assert found["diverged"].epoch == 2
    assert found["diverged"].evidence == {"train_loss": 9.0, "initial_loss": LN10}


def test_an_infinite_metric_diverges_whatever_the_state() -> None:
    assert names(curve(train_loss=[2.0, math.inf], val_loss=[2.0, 2.0])) == ["diverged", "lr_too_high"]


def test_divergence_from_a_bad_start_is_not_the_rates_fault() -> None:
    assert names(curve(start=100.0, train_loss=[1e4], val_loss=[1e5]), TrialState.DIVERGED) == ["diverged", "saturated"]


def test_an_initial_loss_that_was_left_out_was_infinite() -> None:
    points = [StepMetrics(0, 1, {"train_loss": math.nan, "diag/chance_loss": LN10})]
    found = verdicts(points, TrialState.DIVERGED)
    assert list(found) == ["diverged", "saturated"]
    assert found["saturated"].evidence == {"chance_loss": LN10}


def test_a_loss_that_was_never_finite() -> None:
    points = [StepMetrics(0, 1, {"train_loss": math.nan})]
    assert names(points, TrialState.DIVERGED) == ["diverged", "lr_too_high"]


def test_diverged_without_a_curve() -> None:
    found = verdicts([], TrialState.DIVERGED)
    assert list(found) == ["diverged"]
    assert found["diverged"].epoch is None


# Rises of 0.15 · 2.303 = 0.345 in all


def test_a_loss_that_swings_has_too_high_a_rate() -> None:
    found = verdicts(curve(train_loss=[1.5, 1.7, 1.5, 1.7, 1.5], val_loss=[1.5] * 5))
    assert "lr_too_high" in found
    assert found["lr_too_high"].evidence["rise"] == pytest.approx(0.4)
    assert "lr_too_high" not in names(curve(train_loss=[1.5, 1.65, 1.5, 1.65, 1.5], val_loss=[1.5] * 5))


def test_a_loss_thrown_up_in_the_first_epoch() -> None:
    found = verdicts(curve(train_loss=[2.7, 1.0, 0.5], val_loss=[2.0, 0.9, 0.5]))
    assert found["lr_too_high"].epoch == 1  # a rise of 0.40
    assert "lr_too_high" not in names(curve(train_loss=[2.6, 1.0, 0.5], val_loss=[2.0, 0.9, 0.5]))  # 0.30


def test_stuck_at_a_bad_value_with_large_updates() -> None:
    curves: dict[str, Any] = {"train_loss": [1.9, 1.8, 1.8, 1.8], "val_loss": [1.9, 1.8, 1.8, 1.8]}
    assert "lr_too_high" in names(curve(**curves, diag_update_ratio=[0.02] * 4))
    assert "lr_too_high" not in names(curve(**curves, diag_update_ratio=[0.009] * 4))
    low: dict[str, Any] = {"train_loss": [1.2, 1.1, 1.1, 1.1], "val_loss": [1.2, 1.1, 1.1, 1.1]}  # under half of chance
    assert "lr_too_high" not in names(curve(**low, diag_update_ratio=[0.02] * 4))


def test_the_lectures_rate_that_is_too_low() -> None:
    """cs231n: at lr 1e-6 the loss goes from 2.302576 to 2.301420 and the accuracy jumps to 0.2."""
    points = curve(
        start=None,
        train_loss=[2.302576, 2.302582, 2.302558, 2.302519, 2.302517, 2.302518, 2.302466, 2.302452, 2.302459, 2.302420],
        train_accuracy=[0.08, 0.121, 0.119, 0.127, 0.158, 0.179, 0.18, 0.175, 0.206, 0.19],
        val_accuracy=[0.103, 0.124, 0.138, 0.151, 0.171, 0.172, 0.176, 0.185, 0.192, 0.192],
    )
    found = verdicts(points)
    assert "lr_too_low" in found
    assert "healthy" not in found
    assert found["lr_too_low"].evidence["val_accuracy"] == 0.192


def test_barely_moved_is_too_low_only_if_updates_are_small() -> None:
    flat: dict[str, Any] = {"train_loss": [2.30, 2.29, 2.28], "val_loss": [2.29, 2.28, 2.27]}
    assert names(curve(**flat, diag_update_ratio=[2e-6] * 3)) == ["lr_too_low"]
    assert names(curve(**flat, diag_update_ratio=[1e-3] * 3)) == ["underfitting"]


def test_a_start_that_was_measured_a_little_too_low_is_no_progress() -> None:
    points = curve(start=2.28, train_loss=[2.31, 2.31, 2.31], val_loss=[2.31, 2.30, 2.30], diag_update_ratio=[1e-6] * 3)
    assert names(points) == ["lr_too_low"]


def test_one_epoch_can_show_too_low_a_rate() -> None:
    assert names(curve(train_loss=[2.301], val_loss=[2.300], diag_update_ratio=[1e-6])) == ["lr_too_low"]
    assert names(curve(train_loss=[2.1], val_loss=[1.9], diag_update_ratio=[1e-3])) == ["still_improving", "healthy"]


def test_a_linear_fall_is_too_low() -> None:
    linear = [2.25, 2.20, 2.15, 2.10, 2.05, 2.00]
    assert names(curve(train_loss=linear, val_loss=linear)) == ["lr_too_low", "still_improving"]
    bent = [1.90, 1.70, 1.60, 1.54, 1.50, 1.47]  # the last third at 0.25 of the mean pace
    assert "lr_too_low" not in names(curve(train_loss=bent, val_loss=bent))


def test_plateau_then_progress() -> None:
    loss = [2.30, 2.30, 2.30, 2.29, 1.5, 0.9, 0.6, 0.5]
    found = verdicts(curve(train_loss=loss, val_loss=loss))
    assert found["plateau_then_progress"].epoch == 4
    assert found["plateau_then_progress"].evidence["plateau_epochs"] == 4
    assert "lr_too_low" not in found
    assert "healthy" not in found
    one = [2.30, 1.7, 1.2, 0.9, 0.7, 0.6, 0.5, 0.5]  # a plateau of one epoch is none
    assert "plateau_then_progress" not in names(curve(train_loss=one, val_loss=one))
    linear = [2.30, 2.28, 2.26, 2.24, 2.20, 2.16, 2.12, 2.08]  # twice as fast as before, not five times
    assert "plateau_then_progress" not in names(curve(train_loss=linear, val_loss=linear))
    never = [2.30] * 8
    assert names(curve(train_loss=never, val_loss=never)) == ["underfitting"]


def test_overfitting_since_the_lowest_validation_loss() -> None:
    found = verdicts(curve(train_loss=[1.5, 1.0, 0.6, 0.3, 0.1], val_loss=[1.4, 1.2, 1.25, 1.4, 1.6]))
    assert found["overfitting"].epoch == 2
    assert found["overfitting"].evidence == {"lowest_val_loss": 1.2, "val_loss": 1.6, "train_loss": 0.1}
    # 8 % over the lowest, and a gap below a quarter of chance
    close = curve(train_loss=[1.5, 1.25, 1.1, 0.9, 0.8], val_loss=[1.4, 1.2, 1.22, 1.25, 1.296])
    assert "overfitting" not in names(close)


def test_a_validation_loss_that_only_rises_overfits_from_the_first_epoch() -> None:
    found = verdicts(curve(train_loss=[2.2, 1.6, 1.0], val_loss=[2.4, 2.9, 3.5]))
    assert found["overfitting"].epoch == 1
    assert found["overfitting"].evidence["lowest_val_loss"] == LN10


def test_both_losses_rising_is_not_overfitting() -> None:
    assert "overfitting" not in names(curve(train_loss=[1.0, 0.9, 1.2], val_loss=[1.0, 0.9, 1.2]))


def test_overfitting_by_the_gap_of_accuracies() -> None:
    curves: dict[str, Any] = {
        "train_loss": [1.0, 0.8, 0.7],
        "val_loss": [1.0, 0.95, 0.94],
        "val_accuracy": [0.65, 0.66, 0.66],
    }
    found = verdicts(curve(**curves, train_accuracy=[0.65, 0.77, 0.80]))
    assert found["overfitting"].epoch == 2
    assert found["overfitting"].evidence["gap"] == pytest.approx(0.14)
    assert "overfitting" not in names(curve(**curves, train_accuracy=[0.65, 0.70, 0.75]))


def test_underfitting_needs_a_high_loss_and_a_small_gap() -> None:
    assert names(curve(train_loss=[2.0, 1.9, 1.9, 1.9], val_loss=[2.0, 1.9, 1.9, 1.9])) == ["underfitting"]
    assert "underfitting" not in names(curve(train_loss=[2.0, 1.8, 1.8, 1.8], val_loss=[2.0, 1.8, 1.8, 1.8]))
    assert "underfitting" not in names(curve(train_loss=[2.0, 1.9, 1.9, 1.9], val_loss=[2.1, 2.1, 2.1, 2.1]))


def test_still_improving_by_the_last_third() -> None:
    # from 2.303 to 1.0; late: 1.07 to 1.0 is 5.4 %, 1.05 to 1.0 is 3.8 %
    assert "still_improving" in names(curve(train_loss=[1.2, 1.1, 1.0], val_loss=[1.2, 1.07, 1.0]))
    assert "still_improving" not in names(curve(train_loss=[1.2, 1.1, 1.0], val_loss=[1.2, 1.05, 1.0]))


def test_saturated_units_since_when() -> None:
    loss = [2.0, 1.5, 1.2]
    found = verdicts(curve(train_loss=loss, val_loss=loss, diag_saturated=[0.3, 0.5, 0.7]))
    assert found["saturated"].epoch == 2
    assert found["saturated"].evidence == {"saturated": 0.7}
    assert "saturated" not in names(curve(train_loss=loss, val_loss=loss, diag_saturated=[0.7, 0.5, 0.49]))


def test_saturated_softmax_at_the_start() -> None:
    loss = [2.0, 1.5, 1.2]
    found = verdicts(curve(start=7.0, train_loss=loss, val_loss=loss))
    assert found["saturated"].evidence == {"initial_loss": 7.0, "chance_loss": LN10}
    assert found["saturated"].epoch == 1
    assert "saturated" not in names(curve(start=6.8, train_loss=loss, val_loss=loss))  # under 3 · 2.303


def test_dead_units() -> None:
    loss = [2.0, 1.5, 1.2]
    found = verdicts(curve(train_loss=loss, val_loss=loss, diag_dead=[0.1, 0.4, 0.4]))
    assert found["dead_units"].epoch == 2
    assert "healthy" not in found
    assert "dead_units" not in names(curve(train_loss=loss, val_loss=loss, diag_dead=[0.1, 0.4, 0.39]))


def test_diagnostics_of_some_epochs_only() -> None:
    points = curve(train_loss=[2.0, 1.5, 1.2, 1.1], val_loss=[2.0, 1.5, 1.2, 1.1])
    points[0].values["diag/dead"] = 0.1
    points[2].values["diag/dead"] = 0.6
    assert verdicts(points)["dead_units"].epoch == 3


def external(*values: float) -> list[StepMetrics]:
    return [StepMetrics(0, i + 1, {"score": value}) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "direction", "expected"),
    [
        ([0.1, 0.4, 0.5, 0.52, 0.52, 0.52], "maximize", ["healthy"]),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "maximize", ["still_improving", "healthy"]),
        ([0.6, 0.5, 0.4], "minimize", ["still_improving", "healthy"]),
        ([0.6, 0.5, 0.4], "maximize", []),
        ([0.6], "maximize", []),
        ([0.6, math.nan], "maximize", ["diverged"]),
        ([-3.0, -7.0, -8.0, -8.0], "minimize", ["healthy"]),
    ],
)
def test_a_metric_alone(values: list[float], direction: str, expected: list[str]) -> None:
    assert names(external(*values), metric="score", direction=direction) == expected


def test_a_loss_below_zero_has_no_shares() -> None:
    points = [
        StepMetrics(0, i + 1, {"train_loss": -float(i), "val_loss": -float(i), "score": s})
        for i, s in enumerate([0.1, 0.4, 0.5, 0.5])
    ]
    assert names(points, metric="score") == ["healthy"]


def test_a_failed_trial_is_not_healthy() -> None:
    assert names(external(0.1, 0.4, 0.5, 0.5), TrialState.FAILED, metric="score") == []


def test_known_chance_loss_stands_in_for_the_start() -> None:
    loss = [2.30, 2.295, 2.29]
    points = curve(start=None, train_loss=loss, val_loss=loss)
    assert names(points, chance_loss=LN10) == ["lr_too_low"]


@pytest.mark.parametrize("state", list(TrialState))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324])
def test_never_raises(state: TrialState, bad: float) -> None:
    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "diag/initial_loss", "diag/chance_loss")
    diagnostics = ("diag/update_ratio", "diag/dead", "diag/saturated", "diag/gradient_norm")
    for length in (0, 1, 2, 5):
        for name in (*keys, *diagnostics):
            for fill in (bad, 0.5):
                points = [StepMetrics(0, i, dict.fromkeys((*keys, *diagnostics), fill)) for i in range(length)]
                for point in points[-1:]:
                    point.values[name] = bad
                for verdict in verdicts(points, state).values():
                    assert verdict.name == "diverged" or all(math.isfinite(v) for v in verdict.evidence.values())


def test_points_may_be_empty_or_uneven() -> None:
    assert names([StepMetrics(0, 1, {}), StepMetrics(0, 2, {})]) == []
    points = [StepMetrics(0, 1, {"train_loss": 2.0}), StepMetrics(0, 2, {"val_loss": 1.0}), StepMetrics(0, 3, {})]
    assert names(points) == []
