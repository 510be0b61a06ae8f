from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kstest

from hpsearch.search.borders import Flag, FlagVerdict, border_evidence, border_flags, next_range, results
from hpsearch.search.borders.surface import DEGREE, fit, legendre
from hpsearch.search.borders.trend import p_values
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Params, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UP = Metric(name="val_accuracy", direction="maximize")
DOWN = Metric(name="val_loss", direction="minimize")
LR = FloatParam(type="float", low=1e-5, high=1e-1, log=True)
ONE: Space = {"lr": LR}
SIX: Space = {f"p{j}": LR for j in range(6)}


def trial(number: int, value: float | None, params: Params, state: TrialState = TrialState.COMPLETED) -> Trial:
    return Trial(number, "coarse", state, params, value, 1, None, 1, "w", NOW, NOW, NOW)


def drawn(n: int, space: Space, value: Callable[[np.ndarray], float], seed: int = 0) -> list[Trial]:
    """Random trials of log ranges of four decades from 1e-5; ``value`` of their places in [0, 1]."""
    places = np.random.default_rng(seed).random((n, len(space)))
    return [
        trial(i, value(row), dict(zip(space, (10 ** (4 * row - 5)).tolist(), strict=True)))
        for i, row in enumerate(places)
    ]


def flags(space: Space, trials: Sequence[Trial], metric: Metric = UP) -> list[tuple[str, str, str]]:
    return [(f.parameter, f.side, str(f.verdict)) for f in border_flags("coarse", space, trials, metric)]


def proposed(flag: Flag) -> tuple[float, float]:
    assert flag.proposed is not None
    return flag.proposed["low"], flag.proposed["high"]


def diverge(trials: Sequence[Trial], beyond: float) -> list[Trial]:
    return [
        trial(t.number, None, t.params, TrialState.DIVERGED) if float(str(t.params["lr"])) > beyond else t
        for t in trials
    ]


# -- the permutation test -------------------------------------------------------------------------------------------


def test_the_smallest_p_value_of_a_flat_study_is_uniform() -> None:
    # 300 studies in which nothing matters, two parameters, values that are skewed. The smallest family-wise p-value of
    # a study, and each border's own, are uniform: Kolmogorov's D exceeds 0.094 = 1.63 / √300 with a chance of 1 %.
    rng = np.random.default_rng(3)
    smallest, own = [], []
    for _ in range(300):
        places, scores = rng.random((30, 2)), -rng.exponential(size=30)
        smallest.append(p_values(places, scores).min())
        own.append(p_values(places, scores, family_wise=False)[0])
    assert kstest(smallest, "uniform").statistic < 0.094
    assert kstest(own, "uniform").statistic < 0.094


def test_p_values_of_parameters_that_do_not_matter_stay_right_beside_one_that_does() -> None:
    # 200 studies: the first parameter explains nearly all. Borders of the others reach 0.05 in at most 5 % of studies;
    # Binomial(200, 0.05) exceeds 22 = 10 + 3.9 · 3.08 with a chance below 1e-3.
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(200):
        places = rng.random((40, 3))
        found += bool(p_values(places, 10 * places[:, 0] + rng.standard_normal(40))[2:].min() <= 0.05)
    assert found <= 22


def test_a_small_study_has_the_p_value_of_all_its_orders() -> None:
    # Five trials, increasing: of the 5! = 120 orders, those with as large a statistic are counted here one by one.
    places, scores = np.array([[0.0], [0.25], [0.5], [0.75], [1.0]]), np.arange(5.0)
    x = np.column_stack([places[:, 0], np.maximum(places[:, 0] - 0.5, 0), places[:, 0] >= 0.85])
    sides = np.hstack([np.column_stack([1 - x[:, 0], np.maximum(0.5 - places[:, 0], 0), places[:, 0] <= 0.15]), x])

    def largest(values: Sequence[float]) -> float:
        return float(max(np.corrcoef(column, values)[0, 1] for column in sides.T))  # partial t grows with it

    exact = np.mean([largest(order) >= largest(list(scores)) - 1e-9 for order in permutations(range(5))])
    assert exact == pytest.approx(2 / 120)  # itself and its reverse
    assert p_values(places, scores)[1] == pytest.approx(exact, abs=4 * math.sqrt(exact / 1999))


def test_many_trials_have_the_limit_of_the_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    places = rng.random((450, 3))
    scores = 0.15 * places[:, 1] + 0.3 * rng.standard_normal(450)
    exact = p_values(places, scores)
    monkeypatch.setattr("hpsearch.search.borders.trend.N_EXACT", 100)
    assert p_values(places, scores) == pytest.approx(exact, abs=0.04)  # 4 sd of 1,999 permutations at p = 0.3
    assert 0.001 < exact[3] < 0.2  # a p-value worth comparing


def test_p_values_of_degenerate_studies_are_one() -> None:
    places = np.random.default_rng(6).random((20, 2))
    assert p_values(places, np.ones(20)).tolist() == [1.0] * 4
    assert p_values(places[:3], np.arange(3.0)).tolist() == [1.0] * 4
    places[:, 1] = 0.3
    assert p_values(places, np.arange(20.0))[2:].tolist() == [1.0, 1.0]


# -- the surface ----------------------------------------------------------------------------------------------------


def test_legendre_polynomials_are_orthonormal() -> None:
    middles = (np.arange(20_000) + 0.5) / 20_000
    basis = legendre(middles)
    assert basis.T @ basis / len(middles) == pytest.approx(np.eye(DEGREE + 1), abs=1e-6)
    assert legendre(np.array([1.0]))[0] == pytest.approx([1, math.sqrt(3), math.sqrt(5), math.sqrt(7)])


@pytest.mark.parametrize(("optimum", "at"), [((0.3, 0.6), (0.3, 0.6)), ((1.2, 0.5), (1.0, 0.5))])
def test_the_surface_finds_the_maximum_of_a_bowl(optimum: tuple[float, float], at: tuple[float, float]) -> None:
    places = np.random.default_rng(7).random((60, 2))
    levels = [np.linspace(0, 1, 21)] * 2
    maxima = fit(places, -((places - optimum) ** 2).sum(axis=1)).maxima(levels, places)
    assert np.median(maxima, axis=0) == pytest.approx(at, abs=0.051)


def test_a_ridge_needs_its_pair() -> None:
    # the best is where the two agree: 0.8 in the first only because the second cannot go above 0.8 of its range
    places = np.random.default_rng(8).random((80, 2))
    scores = -((places[:, 0] - places[:, 1]) ** 2) - 0.3 * (places[:, 0] - 0.7) ** 2
    maxima = fit(places, scores).maxima([np.linspace(0, 1, 21)] * 2, places)
    assert np.median(maxima, axis=0) == pytest.approx([0.7, 0.7], abs=0.051)


# -- flags ----------------------------------------------------------------------------------------------------------


def test_an_optimum_beyond_a_border_is_flagged_with_what_to_open() -> None:
    trials = drawn(60, ONE, lambda u: u[0])
    (flag,) = border_flags("coarse", ONE, trials, UP)
    assert (flag.stage, flag.parameter, flag.side, flag.level) == ("coarse", "lr", "high", "strong")
    assert flag.verdict is FlagVerdict.WIDEN
    assert flag.p_value == pytest.approx(1 / 2000)  # no permutation of 1,999 comes near
    assert flag.at_border > 0.97
    assert proposed(flag) == pytest.approx((1e-3, 10.0))
    assert "high border of lr (0.1)" in flag.message
    assert "Open 0.001 to 10 next." in flag.message
    (other,) = border_flags("coarse", ONE, trials, DOWN)
    assert other.side == "low"
    assert proposed(other) == pytest.approx((1e-7, 1e-3))


@pytest.mark.parametrize("optimum", [0.2, 0.35, 0.5, 0.8, 0.9])
def test_an_optimum_inside_is_not(optimum: float) -> None:
    assert flags(ONE, drawn(60, ONE, lambda u: -((u[0] - optimum) ** 2))) == []


def test_the_right_one_of_six_parameters_is_flagged() -> None:
    optimum = np.array([0.3, 1.2, 0.5, 0.6, 0.4, 0.7])
    weights = np.array([1, 1, 0.5, 0, 0, 0])
    rng = np.random.default_rng(9)
    trials = drawn(60, SIX, lambda u: float(-(weights * (u - optimum) ** 2).sum() + 0.02 * rng.standard_normal()))
    assert flags(SIX, trials) == [("p1", "high", "widen")]


def test_false_alarms_stay_below_the_level() -> None:
    # 150 studies of three parameters that do not matter: the trend alone alarms in at most 5 %, both conditions in
    # fewer. Binomial(150, 0.05) exceeds 17 = 7.5 + 3.5 · 2.67 with a chance below 1e-3.
    space: Space = dict.fromkeys("abc", LR)
    rng = np.random.default_rng(10)
    assert sum(bool(flags(space, drawn(60, space, lambda _: rng.random(), seed))) for seed in range(150)) <= 17


def test_the_rule_is_deterministic_and_blind_to_order_and_unit() -> None:
    trials = drawn(60, ONE, lambda u: u[0])
    first = border_flags("coarse", ONE, trials, UP)
    assert border_flags("coarse", ONE, trials[::-1], UP) == first
    stretched = [trial(t.number, math.exp(9 * (t.value or 0)), t.params) for t in trials]
    assert border_flags("coarse", ONE, stretched, UP) == first


@pytest.mark.parametrize("edge", [10**-1.6, 10**-1.1])
def test_a_cliff_of_diverged_trials_is_no_reason_to_widen(edge: float) -> None:
    trials = diverge(drawn(80, ONE, lambda u: u[0]), edge)
    (flag,) = border_flags("coarse", ONE, trials, UP)
    assert (flag.side, flag.verdict, flag.proposed) == ("high", FlagVerdict.UNSTABLE_EDGE, None)
    n = sum(t.state is TrialState.DIVERGED for t in trials)
    assert f"{n} of the {n} trials beyond it diverged" in flag.message
    assert "Lower the learning rate, warm up or clip" in flag.message


def test_an_optimum_well_before_a_cliff_is_not_flagged() -> None:
    assert flags(ONE, diverge(drawn(80, ONE, lambda u: -((u[0] - 0.4) ** 2)), 10**-1.6)) == []


def test_what_diverges_for_the_learning_rate_is_no_cliff_of_another_parameter() -> None:
    space: Space = {"lr": LR, "reg": LR}
    trials = diverge(drawn(80, space, lambda u: -((u[0] - 0.4) ** 2) - u[1]), 10**-1.6)
    assert flags(space, trials) == [("reg", "low", "widen")]
    cliffs = {(e.parameter, e.side) for e in border_evidence(results(space, trials, UP)) if e.cliff}
    assert cliffs == {("lr", "high")}


def test_trials_that_diverge_by_chance_do_not_hide_a_border() -> None:
    rng = np.random.default_rng(11)
    trials = [
        trial(t.number, None, t.params, TrialState.DIVERGED) if rng.random() < 0.15 else t
        for t in drawn(80, ONE, lambda u: u[0])
    ]
    assert flags(ONE, trials) == [("lr", "high", "widen")]


def test_trials_stopped_early_are_not_among_the_best() -> None:
    # stopped at a value that would be the best of all, in the upper half: they count as last
    stopped = [
        trial(t.number, 9.0, t.params, TrialState.PRUNED) if float(str(t.params["lr"])) > 1e-3 else t
        for t in drawn(60, ONE, lambda u: -u[0])
    ]
    assert flags(ONE, stopped) == [("lr", "low", "widen")]


def test_failed_and_running_trials_say_nothing() -> None:
    trials = drawn(60, ONE, lambda u: u[0])
    others = [
        trial(60 + i, None, {"lr": 0.09}, state)
        for i, state in enumerate([TrialState.FAILED, TrialState.RUNNING, TrialState.CANCELLED] * 10)
    ]
    assert border_flags("coarse", ONE, trials + others, UP) == border_flags("coarse", ONE, trials, UP)


# -- adaptive samplers ----------------------------------------------------------------------------------------------


def test_trials_that_followed_from_results_are_left_out_and_it_is_said() -> None:
    random = drawn(60, ONE, lambda u: -((u[0] - 0.5) ** 2))
    followed = [trial(100 + i, 1.0 + i, {"lr": 0.09 + 1e-4 * i}) for i in range(60)]
    assert border_flags("coarse", ONE, random + followed, UP, adaptive=range(100, 160)) == []
    rising = drawn(60, ONE, lambda u: u[0])
    (flag,) = border_flags("coarse", ONE, rising + followed, UP, adaptive=range(100, 160))
    assert flag.level == "strong"
    assert "60 trials that followed from earlier results are left out" in flag.message


def test_with_too_few_others_they_count_but_no_more_than_to_be_watched() -> None:
    (flag,) = border_flags("coarse", ONE, drawn(60, ONE, lambda u: u[0]), UP, adaptive=range(10, 60))
    assert (flag.level, flag.verdict) == ("watch", FlagVerdict.WIDEN)
    assert "50 of the trials followed from earlier results" in flag.message


# -- where ranges end -----------------------------------------------------------------------------------------------


def param(**fields: object) -> FloatParam | IntParam:
    return (IntParam if fields["type"] == "int" else FloatParam).model_validate(fields)


@pytest.mark.parametrize(
    ("name", "document", "side", "reason"),
    [
        ("lr", {"type": "float", "low": 1e-5, "high": 1e-1, "log": True, "natural": True}, "high", "declared"),
        ("lr", {"type": "float", "low": 1e-5, "high": 1e-1, "log": True, "hard_high": 0.1}, "high", "hard limit"),
        ("model.dropout", {"type": "float", "low": 0.0, "high": 0.5}, "low", "less than 0"),
        ("optimizer.lr_decay", {"type": "float", "low": 0.5, "high": 1.0}, "high", "more than 1"),
        ("batch_size", {"type": "int", "low": 1, "high": 1000, "log": True}, "low", "less than 1"),
        ("layers", {"type": "int", "low": 1, "high": 100}, "low", "less than 1"),
        ("momentum", {"type": "float", "low": 0.0, "high": 0.9, "step": 0.1}, "low", "less than 0"),
    ],
)
def test_a_range_that_ends_by_nature_is_said_to(name: str, document: dict[str, object], side: str, reason: str) -> None:
    space: Space = {name: param(**document)}
    end, step = space[name].extremes(), 1 if side == "high" else -1
    low, high = (float(str(x)) for x in end)
    log, whole = document.get("log"), document["type"] == "int"
    trials = []
    for i, u in enumerate((np.random.default_rng(12).permutation(80) + 0.5) / 80):
        value = low * (high / low) ** u if log else low + u * (high - low)
        value = round(value, 1) if "step" in document else value
        trials.append(trial(i, step * u, {name: round(value) if whole else value}))
    (flag,) = border_flags("coarse", space, trials, UP)
    assert (flag.side, flag.verdict, flag.proposed) == (side, FlagVerdict.NATURAL_LIMIT, None)
    assert reason in flag.message


@pytest.mark.parametrize(
    ("name", "document", "side", "expected"),
    [
        # log: the upper half, and half the width past the border, at least one decade and at most two
        ("lr", {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}, "high", (10**-2.5, 10**0.5)),
        ("lr", {"type": "float", "low": 1e-2, "high": 1e-1, "log": True}, "high", (10**-1.5, 1.0)),
        ("reg", {"type": "float", "low": 1e-5, "high": 1e5, "log": True}, "low", (1e-7, 1.0)),
        ("lr", {"type": "float", "low": 1e-4, "high": 1e-1, "log": True, "hard_high": 0.2}, "high", (10**-2.5, 0.2)),
        ("lr", {"type": "float", "low": 1e-4, "high": 1e-1, "log": True, "hard_low": 5e-5}, "low", (5e-5, 10**-2.5)),
        ("x", {"type": "float", "low": -2.0, "high": 2.0}, "low", (-4.0, 0.0)),
        ("x", {"type": "float", "low": 1.0, "high": 5.0}, "low", (0.0, 3.0)),  # a size
        ("dropout", {"type": "float", "low": 0.0, "high": 0.8}, "high", (0.4, 0.9)),  # half of what is missing to 1
        ("x", {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1}, "high", (0.3, 0.7)),
        ("momentum", {"type": "float", "low": 0.5, "high": 0.9, "step": 0.02}, "high", (0.7, 0.94)),
        ("width", {"type": "int", "low": 10, "high": 50, "step": 10}, "high", (30, 70)),
        ("width", {"type": "int", "low": 16, "high": 256, "log": True}, "high", (64, 2560)),
        ("width", {"type": "int", "low": 4, "high": 64, "log": True}, "low", (1, 16)),
        ("seed", {"type": "int", "low": 2**53 - 9, "high": 2**53 - 1}, "high", (2**53 - 5, 2**53)),
    ],
)
def test_the_range_to_open_next(
    name: str, document: dict[str, object], side: str, expected: tuple[float, float]
) -> None:
    old = param(**document)
    found = next_range(name, old, "low" if side == "low" else "high")
    assert (found["low"], found["high"]) == pytest.approx(expected)
    old.model_validate(old.model_dump() | found)  # the new range is a range


# -- few, equal, broken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, 1.0, {"lr": 1e-3})],
        drawn(7, ONE, lambda u: u[0]),
        drawn(60, ONE, lambda _: 0.5),
        [trial(i, None, {"lr": 1e-3}, TrialState.DIVERGED) for i in range(30)],
        [trial(i, math.nan, {"lr": 1e-3}) for i in range(30)],
        [trial(i, float(i), {"lr": 1e-3}) for i in range(30)],
        [trial(i, float(i), {"lr": 1.0}) for i in range(30)],
        [trial(i, float(i), {}) for i in range(30)],
    ],
    ids=["none", "one", "seven", "equal values", "all diverged", "all NaN", "one place", "all outside", "no params"],
)
def test_without_evidence_nothing_is_said(trials: list[Trial]) -> None:
    assert border_flags("coarse", ONE, trials, UP) == []


def test_few_trials_that_point_to_a_border_are_too_few() -> None:
    (flag,) = border_flags("coarse", ONE, drawn(15, ONE, lambda u: u[0]), UP)
    assert (flag.verdict, flag.level, flag.proposed) == (FlagVerdict.INSUFFICIENT_DATA, "watch", None)
    assert "Only 15 trials completed" in flag.message


def test_a_value_that_is_not_a_number_counts_as_diverged() -> None:
    trials = drawn(80, ONE, lambda u: u[0])
    nan = [trial(t.number, math.nan if float(str(t.params["lr"])) > 0.02 else t.value, t.params) for t in trials]
    as_diverged = border_flags("coarse", ONE, diverge(trials, 0.02), UP)
    assert border_flags("coarse", ONE, nan, UP) == as_diverged
    assert [f.verdict for f in as_diverged] == [FlagVerdict.UNSTABLE_EDGE]


def test_a_range_whose_border_was_never_tried_is_not_flagged() -> None:
    # trials inherited from a parent fill the lower half of the range only, and rise to its middle
    wide: Space = {"lr": FloatParam(type="float", low=1e-5, high=1e3, log=True)}
    assert flags(wide, drawn(60, ONE, lambda u: u[0])) == []


def test_categorical_parameters_are_skipped() -> None:
    kind: Space = {"kind": CategoricalParam(type="categorical", choices=["a", "b"])}
    trials = [trial(t.number, t.value, t.params | {"kind": "ab"[t.number % 2]}) for t in drawn(60, ONE, lambda u: u[0])]
    assert flags(ONE | kind, trials) == [("lr", "high", "widen")]
    assert flags(kind, trials) == []


@pytest.mark.parametrize("n_values", [2, 4, 30])
def test_whole_numbers(n_values: int) -> None:
    space: Space = {"layers": IntParam(type="int", low=3, high=2 + n_values)}
    rng = np.random.default_rng(13)
    values = rng.integers(3, 3 + n_values, 60)
    trials = [trial(i, float(v + 0.01 * rng.standard_normal()), {"layers": int(v)}) for i, v in enumerate(values)]
    assert flags(space, trials) == [("layers", "high", "widen")]
    inside = [trial(t.number, -abs(float(str(t.params["layers"])) - 4.5), t.params) for t in trials]
    assert n_values == 2 or flags(space, inside) == []


def test_a_range_of_two_neighbours_that_share_a_logarithm() -> None:
    space: Space = {"n": IntParam(type="int", low=2**53 - 1, high=2**53, log=True)}
    assert flags(space, [trial(i, float(i % 2), {"n": 2**53 - i % 2}) for i in range(40)]) == []


def test_all_but_the_diverged_beyond_a_cliff() -> None:
    # at one end those that completed, at the other those that diverged, and nothing between
    low = [trial(i, float(i), {"lr": 1e-5 * (1 + i / 1e6)}) for i in range(30)]
    high = [trial(30 + i, None, {"lr": 0.1 - 1e-4 * i}, TrialState.DIVERGED) for i in range(30)]
    assert {v for _, _, v in flags(ONE, low + high)} <= {"unstable_edge"}


def test_many_parameters_and_few_trials() -> None:
    space: Space = {f"p{j}": LR for j in range(30)}
    found: list[Flag] = border_flags("coarse", space, drawn(60, space, lambda u: u[3]), UP)
    assert [(f.parameter, f.side) for f in found] == [("p3", "high")]
