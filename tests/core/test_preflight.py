"""Preflight on real short trainings: a sound study passes, and each fault is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from hpsearch.objective import TrainObjective
from hpsearch.space import Space
from hpsearch.spec import load_study
from hpsearch.training import Dataset, load_dataset
from hpsearch.training.preflight import Check, preflight
from hpsearch.training.preflight.learning import overfit
from hpsearch.training.preflight.setup import set_up
from hpsearch.training.samples import Samples
from hpsearch.training.sources import read_samples

EXAMPLES = Path(__file__).parents[2] / "examples"
LR = {"lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def objective(**keys: Any) -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, "batch_size": 50, **keys})


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(objective(), study_seed=0)


def checks(dataset: Dataset, space: dict[str, Any] = LR, seed: int = 0, **keys: Any) -> dict[str, Check]:
    space_of = TypeAdapter(Space).validate_python(space)
    found = preflight(objective(**keys), space_of, study_seed=seed, dataset=dataset)
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.message.endswith(".")
        assert check.status == "pass" or ":" in check.message, "what to do"
    return {check.name: check for check in found}


def not_passed(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in found.items() if check.status != "pass"}


def changed(x: Any = None, y: Any = None) -> Dataset:
    """Digits with other samples or labels, every fifth for validation."""
    samples = read_samples(objective().data)
    samples = replace(samples, x=samples.x if x is None else x, y=samples.y if y is None else y)
    n = len(samples.y)
    validation = np.arange(0, n, 5)
    return Dataset(samples, np.setdiff1d(np.arange(n), validation), validation, device="cpu")


ALL = [
    "data_finite", "data_columns", "data_duplicates", "data_classes", "initial_loss", "activations", "gradients",
    "regularisation", "symmetry", "lr_range", "overfit_20", "labels",
]  # fmt: skip


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model": {"kind": "linear"}},
        {"model": {"kind": "mlp", "hidden": [40, 30], "activation": "tanh", "init": "xavier"}},
        {"model": {"kind": "mlp", "batch_norm": True, "dropout": 0.5}},
        {"model": {"kind": "cnn", "channels": [8]}, "preprocess": ["standardize"]},
        {"loss": {"kind": "hinge"}, "optimizer": {"kind": "adam"}},
        {"loss": {"label_smoothing": 0.1}, "optimizer": {"schedule": {"warmup_epochs": 3}, "clip_norm": 5.0}},
    ],
)
def test_sound_studies_pass(digits: Dataset, keys: dict[str, Any]) -> None:
    found = checks(digits, **keys)
    assert not_passed(found) == {}
    assert list(found) == ALL


def test_the_digits_example_passes() -> None:
    spec = load_study(EXAMPLES / "digits.yaml")
    assert isinstance(spec.objective, TrainObjective)
    dataset = load_dataset(spec.objective, study_seed=spec.seed)
    found = preflight(spec.objective, spec.space, study_seed=spec.seed, dataset=dataset)
    assert [check.name for check in found if check.status != "pass"] == []


def test_the_same_seed_gives_the_same_checks(digits: Dataset) -> None:
    assert repr(checks(digits, seed=3)) == repr(checks(digits, seed=3))  # NaN is not equal to itself
    assert checks(digits, seed=3)["initial_loss"] != checks(digits, seed=4)["initial_loss"]


# The start


def test_initial_loss_against_its_theory(digits: Dataset) -> None:
    softmax = checks(digits)["initial_loss"]
    assert softmax.numbers["theory"] == pytest.approx(2.302585)
    assert softmax.numbers["initial_loss"] == pytest.approx(2.302585, rel=0.1)
    assert checks(digits, loss={"kind": "hinge"})["initial_loss"].numbers["theory"] == 9


def test_huge_initial_weights(digits: Dataset) -> None:
    found = checks(digits, model={"kind": "mlp", "init": "large_random"})["initial_loss"]
    assert found.status == "warn"
    assert "init_gain" in found.message


def test_an_initial_loss_that_is_not_finite_ends_the_checks(digits: Dataset) -> None:
    model = {"kind": "mlp", "hidden": [50] * 15, "init": "large_random", "init_gain": 1000.0}
    found = checks(digits, model=model)
    assert found["initial_loss"].status == "fail"
    assert "overfit_20" not in found


def test_saturated_activations(digits: Dataset) -> None:
    model = {"kind": "mlp", "activation": "tanh", "init": "large_random"}
    found = checks(digits, model=model)["activations"]
    assert found.status == "warn"
    assert "saturated" in found.message


def test_a_signal_that_vanishes(digits: Dataset) -> None:
    model = {"kind": "mlp", "hidden": [50] * 6, "init": "small_random"}
    found = checks(digits, model=model)
    assert found["activations"].status == "warn"
    assert "spread" in found["activations"].message
    assert found["overfit_20"].status == "fail"


def test_gradients_that_differ_by_layer(digits: Dataset) -> None:
    model = {"kind": "mlp", "hidden": [50] * 8, "activation": "sigmoid", "init": "small_random"}
    found = checks(digits, model=model)["gradients"]
    assert found.status == "warn"
    assert "layers.0.weight" in found.message


def test_all_zero_weights_keep_their_symmetry(digits: Dataset) -> None:
    found = checks(digits, model={"kind": "mlp", "init": "zeros"})
    assert found["symmetry"].status == "fail"
    assert found["overfit_20"].status == "fail"
    assert found["gradients"].status == "warn"


def test_zeros_among_the_choices_are_warned_of(digits: Dataset) -> None:
    space = {**LR, "model.init": {"type": "categorical", "choices": ["zeros", "he"]}}
    assert not_passed(checks(digits, space)) == {"symmetry": "warn"}


def test_a_linear_model_may_start_at_zero(digits: Dataset) -> None:
    assert not_passed(checks(digits, model={"kind": "linear", "init": "zeros"})) == {}


def test_regularisation_by_hand(digits: Dataset) -> None:
    space = {**LR, "reg": {"type": "float", "low": 0.01, "high": 1.0, "log": True}}
    numbers = checks(digits, space)["regularisation"].numbers
    assert list(numbers) == ["penalty_at_0", "penalty_at_0.01", "penalty_at_1"]
    assert numbers["penalty_at_0"] == 0
    assert numbers["penalty_at_1"] == pytest.approx(100 * numbers["penalty_at_0.01"], rel=1e-4)


def test_a_range_of_reg_that_starts_too_high(digits: Dataset) -> None:
    space = {**LR, "reg": {"type": "float", "low": 1e4, "high": 1e6, "log": True}}
    assert checks(digits, space)["regularisation"].status == "warn"


# Learning


@pytest.mark.parametrize(
    ("low", "high", "status", "advice"),
    [
        (1e-4, 1e-1, "pass", "useful"),
        (1e-9, 1e-7, "warn", "raise the range"),
        (1e-14, 1e-12, "warn", "raise the range"),
        (10.0, 1000.0, "fail", "lower the range"),
    ],
)
def test_the_range_of_the_learning_rate(digits: Dataset, low: float, high: float, status: str, advice: str) -> None:
    found = checks(digits, {"lr": {"type": "float", "low": low, "high": high, "log": True}})
    assert found["lr_range"].status == status
    assert advice in found["lr_range"].message
    assert found["overfit_20"].status == "pass"  # its rate is found, whatever the study's


def test_a_fixed_learning_rate_is_judged(digits: Dataset) -> None:
    space = {"reg": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
    assert checks(digits, space, optimizer={"lr": 0.01})["lr_range"].status == "pass"
    assert checks(digits, space, optimizer={"lr": 100.0})["lr_range"].status == "fail"
    assert checks(digits, space, optimizer={"lr": 0.0})["lr_range"].status == "warn"


def test_shuffled_labels_are_noticed() -> None:
    labels = np.random.default_rng(0).permutation(read_samples(objective().data).y)
    found = checks(changed(y=labels))["labels"]
    assert found.status == "warn"
    assert found.numbers["sigmas"] < 3


def test_a_net_that_cannot_fit_fails(digits: Dataset) -> None:
    model = {"kind": "mlp", "hidden": [1], "activation": "sigmoid", "init_gain": 0.0}
    assert checks(digits, model=model)["overfit_20"].status == "fail"


# The data


def test_nothing_to_learn_from() -> None:
    n = len(read_samples(objective().data).y)
    found = checks(changed(x=np.ones((n, 8), dtype=np.float32)))
    assert found["data_columns"].status == "fail"
    assert "overfit_20" not in found


def test_mostly_constant_columns() -> None:
    x = read_samples(objective().data).x.reshape(-1, 64)
    found = checks(changed(x=np.concatenate([x, np.ones((len(x), 64), dtype=np.float32)], 1)))
    assert found["data_columns"].status == "warn"
    assert found["data_columns"].numbers["columns"] == 128


def test_rows_of_both_splits() -> None:
    x = read_samples(objective().data).x.copy()
    x[5:50:5] = x[1]  # nine validation rows of 360, or 2.5 %
    found = checks(changed(x=x))["data_duplicates"]
    assert found.status == "warn"
    assert found.numbers == {"shared": 9.0, "validation": 360.0}


def test_classes_out_of_balance() -> None:
    y = read_samples(objective().data).y
    rare = np.where((y == 9) & (np.arange(len(y)) % 20 != 1), 0, y)
    assert checks(changed(y=rare))["data_classes"].status == "warn"


def test_a_class_without_samples() -> None:
    samples = read_samples(objective().data)
    n = len(samples.y)
    dataset = Dataset(
        Samples(samples.x, samples.y, 11), np.arange(n // 2), np.arange(n // 2, n), device="cpu"
    )  # fmt: skip
    found = checks(dataset)["data_classes"]
    assert found.status == "warn"
    assert "class 10" in found.message


# Regression


def numbers_to_predict(seed: int, *, shuffled: bool) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 10)).astype(np.float32)
    y = (x @ rng.normal(size=10)).astype(np.float32)
    samples = Samples(x, rng.permutation(y) if shuffled else y, 0)
    return Dataset(samples, np.arange(500), np.arange(500, 600), device="cpu")


def test_a_regression() -> None:
    found = checks(numbers_to_predict(0, shuffled=False), loss={"kind": "mse"})
    assert not_passed(found) == {}
    assert list(found) == [name for name in ALL if name != "data_classes"]


def test_shuffled_targets_of_a_regression() -> None:
    assert checks(numbers_to_predict(0, shuffled=True), loss={"kind": "mse"})["labels"].status == "warn"


def test_a_model_that_runs_out_of_time_while_it_learns_has_not_failed(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = objective(model={"kind": "mlp", "hidden": [5], "activation": "tanh"})
    setup = set_up(small, TypeAdapter(Space).validate_python(LR), study_seed=0, dataset=digits)
    monkeypatch.setattr("hpsearch.training.preflight.probe.SECONDS", 60.0)
    assert overfit(setup, 0.003)[0].status == "pass"
    monkeypatch.setattr("hpsearch.training.preflight.probe.SECONDS", 0.0)
    found, _ = overfit(setup, 0.003)
    assert found.status == "warn"
    assert found.numbers["steps"] < 50
    assert "still falling" in found.message


def test_samples_are_fitted_from_a_rate_that_is_far_too_high(digits: Dataset) -> None:
    space = TypeAdapter(Space).validate_python(LR)
    setup = set_up(objective(), space, study_seed=0, dataset=digits)
    check, rate = overfit(setup, 30.0)
    assert check.status == "pass"
    assert 0.03 <= rate <= 0.3
