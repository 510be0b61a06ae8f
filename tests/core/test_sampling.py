"""Random search: bounds, uniformity on the parameter's own scale, independence, and no dependence on order.

Uniformity is judged by the Kolmogorov–Smirnov distance. By the Dvoretzky–Kiefer–Wolfowitz inequality (with Massart's
constant) P(D > e) ≤ 2 exp(−2 n e²) for n draws of the true law; with n = 4000 and e = 0.045 that is 2e-7. The seeds are
fixed, so a test that passes once passes always; the bound says that passing is no luck.
"""

from __future__ import annotations

import math
import random

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.search.sampling import data_seed, sample, training_seed
from hpsearch.search.scale import from_unit, to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Param, Space

N = 4000
KS_BOUND = 0.045

SPACE: Space = {
    "lr": FloatParam(type="float", low=1e-6, high=1e-3, log=True),
    "momentum": FloatParam(type="float", low=0.5, high=0.99),
    "grid": FloatParam(type="float", low=0.0, high=1.0, step=0.25),
    "batch_size": IntParam(type="int", low=16, high=512, log=True),
    "layers": IntParam(type="int", low=1, high=7, step=2),
    "activation": CategoricalParam(type="categorical", choices=["relu", "tanh", None, True, [50, 20]]),
}


def draws(name: str, *, seed: int = 0, stage: int = 0) -> list[object]:
    return [sample(SPACE, seed=seed, stage=stage, number=number)[name] for number in range(N)]


def ks_distance(units: list[float]) -> float:
    """Largest distance between the empirical distribution of values in [0, 1] and the uniform one."""
    ordered = sorted(units)
    n = len(ordered)
    return max(max((i + 1) / n - u, u - i / n) for i, u in enumerate(ordered))


@pytest.mark.parametrize("stage", [0, 1, 7])
@pytest.mark.parametrize("seed", [0, 1, 2**53])
def test_log_uniform(seed: int, stage: int) -> None:
    values = [float(str(v)) for v in draws("lr", seed=seed, stage=stage)]
    assert min(values) >= 1e-6
    assert max(values) <= 1e-3
    assert ks_distance([(math.log10(v) + 6) / 3 for v in values]) < KS_BOUND


def test_uniform() -> None:
    assert ks_distance([(float(str(v)) - 0.5) / 0.49 for v in draws("momentum")]) < KS_BOUND


def test_every_grid_value_and_choice_is_equally_likely() -> None:
    # each count is Binomial(4000, p); six standard deviations have a chance of 2e-9
    for name, cells in (("grid", 5), ("layers", 4), ("activation", 5)):
        values = [repr(v) for v in draws(name)]
        spread = 6 * math.sqrt(N / cells * (1 - 1 / cells))
        assert len(set(values)) == cells
        for value in set(values):
            assert abs(values.count(value) - N / cells) < spread, (name, value)


def test_whole_numbers_on_a_log_scale_have_their_logarithmic_share() -> None:
    values = [int(str(v)) for v in draws("batch_size")]
    assert min(values) >= 16
    assert max(values) <= 512
    share = sum(v <= 90 for v in values) / N  # ln(90.5 / 15.5) / ln(512.5 / 15.5) = 0.5044
    assert abs(share - 0.5044) < 6 * math.sqrt(0.25 / N)


def test_streams_are_independent() -> None:
    # of independent uniform pairs the correlation is about Normal(0, 1/n): six standard deviations are 0.095
    def units(name: str, **where: int) -> list[float]:
        return [to_unit(SPACE[name], v) for v in draws(name, **where)]  # type: ignore[arg-type]

    lr = units("lr")
    for other in (units("momentum"), units("lr", stage=1), units("lr", seed=1), lr[1:] + lr[:1]):
        assert abs(np.corrcoef(lr, other)[0, 1]) < 6 / math.sqrt(N)
    assert len(set(lr)) == N


def test_any_order_of_asking_gives_the_same() -> None:
    in_order = {n: sample(SPACE, seed=5, stage=2, number=n) for n in range(100)}
    numbers = list(range(100))
    random.Random(1).shuffle(numbers)
    assert {n: sample(SPACE, seed=5, stage=2, number=n) for n in numbers} == in_order


def test_the_order_of_the_document_does_not_matter() -> None:
    turned = dict(reversed(SPACE.items()))
    assert sample(turned, seed=3, stage=0, number=9) == sample(SPACE, seed=3, stage=0, number=9)


def test_a_known_draw_stays_what_it_is() -> None:
    # a change of these numbers would change what every stored study replays to
    space: Space = {"lr": SPACE["lr"]}
    assert [sample(space, seed=0, stage=0, number=n)["lr"] for n in (0, 1)] == pytest.approx(KNOWN_DRAWS, rel=1e-12)


KNOWN_DRAWS = [1.1020495130336917e-06, 7.309817810386807e-06]


def test_seeds_for_training_are_fresh_for_every_trial_and_shared_for_data() -> None:
    seeds = {training_seed(s, stage, n) for s in (0, 1) for stage in (0, 1) for n in range(100)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert data_seed(0, 0) == data_seed(0, 0)
    assert len({data_seed(s, stage) for s in (0, 1) for stage in (0, 1)} | seeds) == 404


@st.composite
def params(draw: st.DrawFn) -> Param:
    kind = draw(st.sampled_from(["float", "log", "step", "int", "int_log", "int_step", "categorical"]))
    if kind == "categorical":
        return CategoricalParam(
            type="categorical", choices=draw(st.lists(st.integers(-(2**53), 2**53), min_size=1, unique=True))
        )
    if kind in ("int", "int_log", "int_step"):
        low = draw(st.integers(1 if kind == "int_log" else -(2**53), 2**53 - 1))
        high = draw(st.integers(low + 1, 2**53))
        step = draw(st.integers(1, high - low)) if kind == "int_step" else 1
        return IntParam(type="int", low=low, high=high, log=kind == "int_log", step=step)
    if kind == "step":
        start = draw(st.integers(-(10**6), 10**6)) / 1000
        width = draw(st.integers(1, 1000)) / 1000
        return FloatParam(type="float", low=start, high=start + width * draw(st.integers(2, 1000)), step=width)
    bound = st.floats(1e-300 if kind == "log" else -1e300, 1e300)
    ends = sorted(draw(st.tuples(bound, bound).filter(lambda ends: ends[0] != ends[1])))
    return FloatParam(type="float", low=ends[0], high=ends[1], log=kind == "log")


@given(params(), st.floats(0, 1))
def test_no_draw_leaves_its_range(param: Param, unit: float) -> None:
    value = from_unit(param, unit)
    assert param.contains(value)


@given(params(), st.floats(0, 1))
def test_optuna_finds_every_draw_in_its_distribution(param: Param, unit: float) -> None:
    value = from_unit(param, unit)
    drawn = param.index(value) if isinstance(param, CategoricalParam) else value
    trial = optuna.trial.create_trial(params={"x": drawn}, distributions={"x": param.distribution}, value=0.0)
    assert trial.params["x"] == drawn


@given(params(), st.floats(0, 1, exclude_max=True))
def test_a_values_place_is_where_it_was_drawn_from(param: Param, unit: float) -> None:
    value = from_unit(param, unit)
    place = to_unit(param, value)
    assert from_unit(param, min(max(place, 0.0), 1.0)) == pytest.approx(value, rel=1e-6, abs=0)
