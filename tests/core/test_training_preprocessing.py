"""Preprocessing against numbers worked out by hand and scikit-learn; nothing of a validation split leaks."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.objective.preprocess import PcaStep, Step, WhitenStep
from hpsearch.training import Dataset, load_dataset
from hpsearch.training.preprocessing import preprocess, shape_after
from hpsearch.training.samples import Samples

EVERY_STEP: list[Step] = [
    "zero_mean",
    "per_channel_mean",
    "standardize",
    "min_max",
    "pca",
    "whiten",
    PcaStep(kind="pca", components=5),
    PcaStep(kind="pca", variance=0.7),
    WhitenStep(kind="whiten", epsilon=0.1, components=4),
]


def data(n: int, *shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated columns of unlike scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)) * rng.uniform(0.1, 20, size=shape) + rng.uniform(-5, 5, size=shape)
    return np.asarray(x + rng.normal(size=(n, *[1] * len(shape))), dtype=np.float32)


def apply(step: Step, *splits: Any) -> list[Any]:
    """The splits after one step, as nested lists."""
    tensors = [torch.tensor(split, dtype=torch.float32) for split in splits]
    return [split.tolist() for split in preprocess([step], *tensors)]


# By hand --------------------------------------------------------------------------------------------------------------


def test_zero_mean_takes_its_statistics_from_the_training_split_alone() -> None:
    train, validation = apply("zero_mean", [[1, 10], [3, 30]], [[100, 100]])
    assert train == [[-1, -10], [1, 10]]
    assert validation == [[98, 80]]


def test_per_channel_mean() -> None:
    """Two images of 1 × 2 pixels: channel means (1 + 3 + 5 + 7) / 4 = 4 and (0 + 0 + 0 + 8) / 4 = 2."""
    train, validation = apply("per_channel_mean", [[[[1, 0], [3, 0]]], [[[5, 0], [7, 8]]]], [[[[0, 0], [0, 0]]]])
    assert train == [[[[-3, -2], [-1, -2]]], [[[1, -2], [3, 6]]]]
    assert validation == [[[[-4, -2], [-4, -2]]]]


def test_standardize_leaves_a_constant_column_at_zero() -> None:
    """Means 2, 20 and 0.1; deviations 1 and 10; the third is constant, in float32 no round number."""
    train, validation = apply("standardize", [[1, 10, 0.1], [3, 30, 0.1]], [[4, 0, 0.6]])
    assert train == [[-1, -1, 0], [1, 1, 0]]
    assert validation[0] == pytest.approx([2, -2, 0.5])


def test_min_max_leaves_a_constant_column_at_zero() -> None:
    train, validation = apply("min_max", [[1, 10, 7], [3, 30, 7], [2, 15, 7]], [[4, 0, 8]])
    assert train == [[0, 0, 0], [1, 1, 0], [0.5, 0.25, 0]]
    assert validation == [[1.5, -0.5, 1]]


CROSS = [[3, 3], [-3, -3], [1, -1], [-1, 1]]
"""Principal axes (1, 1) / √2 with variance (18 + 18) / 4 = 9 and (1, −1) / √2 with (2 + 2) / 4 = 1."""


def test_pca_by_hand() -> None:
    root = 2**0.5
    train, validation = apply("pca", CROSS, [[2, 0]])
    first, second = np.array(train).T
    assert first.tolist() == pytest.approx([3 * root, -3 * root, 0, 0], abs=1e-6)
    assert np.abs(second).tolist() == pytest.approx([0, 0, root, root], abs=1e-6)
    assert np.abs(validation[0]).tolist() == pytest.approx([root, root])


@pytest.mark.parametrize(("variance", "n_axes"), [(0.5, 1), (0.9, 1), (0.91, 2), (1.0, 2)])
def test_kept_variance(variance: float, n_axes: int) -> None:
    """The first axis holds 9 of 10."""
    (train,) = apply(PcaStep(kind="pca", variance=variance), CROSS)
    assert np.shape(train) == (4, n_axes)


@pytest.mark.parametrize(("epsilon", "first", "second"), [(0.0, 3.0, 1.0), (1.0, 18**0.5, 10**0.5)])
def test_whiten_by_hand(epsilon: float, first: float, second: float) -> None:
    """Coordinates 3√2 and √2 over √(9 + 9 epsilon) and √(1 + 9 epsilon)."""
    (train,) = apply(WhitenStep(kind="whiten", epsilon=epsilon), CROSS)
    assert train[0] == pytest.approx([3 * 2**0.5 / first, 0], abs=1e-6)
    assert abs(train[2][1]) == pytest.approx(2**0.5 / second)


@pytest.mark.parametrize("step", ["pca", "whiten", PcaStep(kind="pca", variance=0.9)])
def test_samples_that_are_all_alike_become_zeros(step: Step) -> None:
    train, validation = apply(step, [[1, 2]] * 3, [[1, 2]])
    assert not np.any(train)
    assert not np.any(validation)


def test_steps_follow_each_other() -> None:
    """(1, 3) → (−1, 1) → (0, 1); 5 → 3 → 2."""
    train, validation = preprocess(["zero_mean", "min_max"], torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]))
    assert train.tolist() == [[0], [1]]
    assert validation.tolist() == [[2]]
    other, _ = preprocess(["min_max", "zero_mean"], torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]))
    assert other.tolist() == [[-0.5], [0.5]]


# Against scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 2500])
def test_scikit_learn_scales_alike(n: int) -> None:
    train, validation = data(n, 6), data(5, 6, seed=1)
    for step, scaler in (("standardize", StandardScaler()), ("min_max", MinMaxScaler())):
        expected = scaler.fit_transform(train), scaler.transform(validation)
        found = preprocess([step], torch.tensor(train), torch.tensor(validation))  # type: ignore[list-item]
        for split, goal in zip(found, expected, strict=True):
            np.testing.assert_allclose(split.numpy(), goal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "n_columns"), [(2500, 8), (40, 8), (6, 20)])
def test_scikit_learn_finds_the_same_components(n: int, n_columns: int) -> None:
    train, validation = data(n, n_columns), data(9, n_columns, seed=1)
    reference = PCA(svd_solver="full").fit(train)
    n_axes = min(n - 1, n_columns)  # n centred samples span n − 1 axes
    steps: list[Step] = [PcaStep(kind="pca", components=n_axes)]
    for split, raw in zip(preprocess(steps, *map(torch.tensor, (train, validation))), (train, validation), strict=True):
        expected = reference.transform(raw)[:, :n_axes]
        np.testing.assert_allclose(np.abs(split.numpy()), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_whitened_columns_have_variance_one_and_no_correlation() -> None:
    (train,) = preprocess([WhitenStep(kind="whiten", epsilon=0)], torch.tensor(data(500, 5)))
    np.testing.assert_allclose(np.cov(train.numpy().T, bias=True), np.eye(5), atol=1e-4)


# Leaks, shapes, errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", EVERY_STEP, ids=str)
def test_validation_and_test_data_cannot_leak(step: Step) -> None:
    """Whatever stands in the other splits, training samples and all statistics keep their bits."""
    x = data(60, 4, 3, 2)
    train, validation, test = np.arange(30), np.arange(30, 45), np.arange(45, 60)
    changed = x.copy()
    changed[30:] = data(30, 4, 3, 2, seed=7) * 1e4
    changed[50] = x[50]  # a witness: the same sample beside other ones is mapped alike
    changed[40] = x[40]
    labels = np.arange(60) % 3
    one, other = (
        Dataset(Samples(values, labels, 3), train, validation, test=test, device="cpu") for values in (x, changed)
    )
    steps: list[Step] = [step, "zero_mean"]
    assert one.prepared(steps).rms == other.prepared(steps).rms
    assert torch.equal(one.prepared(steps).train.samples, other.prepared(steps).train.samples)
    assert torch.equal(one.prepared(steps).validation.samples[10], other.prepared(steps).validation.samples[10])
    assert one.test is not None
    assert other.test is not None
    assert torch.equal(one.test.prepared(steps).train.samples, one.prepared(steps).train.samples)
    assert torch.equal(one.test.prepared(steps).validation.samples[5], other.test.prepared(steps).validation.samples[5])


@pytest.mark.parametrize("step", ["zero_mean", "per_channel_mean", "standardize", "min_max"])
def test_images_stay_images(step: Step) -> None:
    (train,) = preprocess([step], torch.tensor(data(10, 4, 3, 2)))
    assert train.shape == (10, 4, 3, 2)
    assert shape_after([step], (4, 3, 2), 10) == (4, 3, 2)


@pytest.mark.parametrize(
    ("step", "n_kept"), [("pca", 10), ("whiten", 10), (PcaStep(kind="pca", components=7), 7)], ids=str
)
def test_components_are_flat(step: Step, n_kept: int) -> None:
    train, validation = preprocess([step], torch.tensor(data(10, 4, 3, 2)), torch.tensor(data(3, 4, 3, 2)))
    assert train.shape == (10, n_kept)
    assert validation.shape == (3, n_kept)
    assert shape_after([step], (4, 3, 2), 10) == (n_kept,)


def load(preprocess: list[Any], augment: dict[str, Any] | None = None, **data: Any) -> Dataset:
    document = {
        "kind": "train",
        "data": {"source": "digits", **data},
        "preprocess": preprocess,
        "augment": augment or {},
    }
    return load_dataset(TrainObjective.model_validate(document), study_seed=0)


BAD: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], str]] = {
    "over the columns": ([{"kind": "pca", "components": 65}], {}, {}, "pca .* 65 components of 64 columns.*at most 64"),
    "over the samples": (
        [{"kind": "whiten", "components": 50}],
        {},
        {"train": 40},
        "whiten .* 50 components of 40 training samples.*at most 40",
    ),
    "over what is left": (
        ["zero_mean", {"kind": "pca", "components": 9}, {"kind": "whiten", "components": 10}],
        {},
        {},
        "whiten .* 10 components of 9 columns",
    ),
    "no images left": (["pca", "per_channel_mean"], {}, {}, "per_channel_mean needs images.*64 numbers in a row"),
    "no images to mirror": (["whiten"], {"flip": True}, {}, "augment needs images.*64 numbers in a row"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_when_the_data_are_loaded(case: str) -> None:
    steps, augment, keys, message = BAD[case]
    with pytest.raises(DataError, match=message):
        load(steps, augment, **keys)


def test_components_over_those_of_kept_variance_are_refused() -> None:
    steps: list[Step] = [PcaStep(kind="pca", variance=0.5), PcaStep(kind="pca", components=2)]
    with pytest.raises(DataError, match=r"pca .* 2 components of 1 columns"):
        preprocess(steps, torch.tensor(CROSS, dtype=torch.float32))


def test_prepared_splits_are_kept_by_every_setting_of_a_step() -> None:
    dataset = load([])
    few, more = (dataset.prepared([PcaStep(kind="pca", components=n)]) for n in (3, 5))
    assert (few.shape, more.shape) == ((3,), (5,))
    assert dataset.prepared([PcaStep(kind="pca", components=3)]) is few
