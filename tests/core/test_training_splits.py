"""The test split, folds of a cross-validation, and numbers to predict."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, load_dataset
from hpsearch.training.samples import Samples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(seed: int = 0, loss: str = "softmax", **data: Any) -> Dataset:
    document = {"kind": "train", "data": data, "preprocess": [], "loss": {"kind": loss}}
    return load_dataset(TrainObjective.model_validate(document), study_seed=seed)


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def made(labels: list[int], n_validation: int, names: tuple[str, ...] = (), seed: int = 0) -> Dataset:
    """Samples that are their own numbers, the last ones for validation."""
    n = len(labels)
    samples = Samples(np.arange(n, dtype=np.float32)[:, None], np.array(labels), max(labels) + 1, names)
    return Dataset(samples, np.arange(n - n_validation), np.arange(n - n_validation, n), device="cpu", study_seed=seed)


def numbers(dataset: Dataset, split: str = "validation") -> list[float]:
    prepared = dataset.prepared([])
    found: list[float] = getattr(prepared, split).samples[:, 0].tolist()
    return found


# Test split -----------------------------------------------------------------------------------------------------------


def test_there_is_none_by_default() -> None:
    dataset = load(source="digits")
    assert dataset.test is None
    assert dataset.n_test == 0


@pytest.mark.parametrize("size", [300, 1 / 6])
def test_it_is_taken_before_anything_else(size: float) -> None:
    small, large = load(source="digits", test=size, validation=100), load(source="digits", test=size, validation=500)
    assert small.test is not None
    assert large.test is not None
    assert small.n_test == small.test.n_validation == 300
    assert (small.n_train, small.n_validation) == (1397, 100)
    assert (large.n_train, large.n_validation) == (997, 500)
    one, other = (d.test.prepared([]).validation for d in (small, large) if d.test)
    assert torch.equal(one.samples, other.samples)
    assert torch.bincount(one.labels).min() >= 29  # 1797 / 6 of 174 … 183 per class


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(100.0)[:, None], y=np.arange(100) % 4)
    dataset = load(source="npz", path=str(tmp_path / "data.npz"), validation=0.3, test=0.2)
    assert dataset.test is not None
    found = [*numbers(dataset, "train"), *numbers(dataset), *numbers(dataset.test)]
    assert sorted(found) == list(range(100))
    assert (dataset.n_validation, dataset.n_test) == (30, 20)  # shares of all
    assert numbers(dataset.test, "train") == numbers(dataset, "train")
    assert dataset.test.test is None


def test_a_test_split_leaves_the_others_something() -> None:
    with pytest.raises(DataError, match=r"data.test is 1797, .* at most 1796"):
        load(source="digits", test=1797)
    with pytest.raises(DataError, match=r"data.test is 0.0001, which is none of the 1797"):
        load(source="digits", test=0.0001)
    with pytest.raises(DataError, match=r"data.validation is 0.9.* beside the 900 of the test split.* at most 896"):
        load(source="digits", test=900, validation=0.9)


def test_the_test_files_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", {"a": [0.0, 1.0, 2.0], "label": ["x", "z", "x"]})
    write(tmp_path / "test-0.parquet", {"a": [10.0, 11.0], "label": ["z", "y"]})
    write(tmp_path / "test-1.parquet", {"a": [12.0], "label": ["x"]})
    dataset = load(source="parquet", path=str(tmp_path), validation=1)
    assert dataset.test is not None
    assert numbers(dataset.test) == [10, 11, 12]
    assert dataset.test.prepared([]).validation.labels.tolist() == [2, 1, 0]  # words are numbered together
    assert dataset.n_classes == 3
    assert sorted(numbers(dataset, "train") + numbers(dataset)) == [0, 1, 2]


def test_a_test_split_that_is_asked_for_takes_the_place_of_the_files(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", {"a": [0.0, 1.0, 2.0, 3.0], "label": [0, 1, 0, 1]})
    write(tmp_path / "test-0.parquet", {"a": [10.0], "label": [0]})
    dataset = load(source="parquet", path=str(tmp_path), validation=1, test=2)
    assert dataset.test is not None
    assert dataset.n_train + dataset.n_validation + dataset.n_test == 4
    assert max(numbers(dataset.test)) <= 3


WITHHELD: dict[str, dict[str, Any]] = {
    "no column": {"a": [1.0, 2.0]},
    "minus one": {"a": [1.0, 2.0], "label": [-1, -1]},
    "missing": {"a": [1.0, 2.0], "label": pa.array([None, None], pa.int64())},
}


@pytest.mark.parametrize("case", WITHHELD)
def test_test_files_without_labels_are_no_test_split(tmp_path: Path, case: str) -> None:
    write(tmp_path / "train-0.parquet", {"a": [0.0, 1.0], "label": [0, 1]})
    write(tmp_path / "test-0.parquet", WITHHELD[case])
    assert load(source="parquet", path=str(tmp_path), validation=1).test is None


BAD_TEST: dict[str, tuple[dict[str, Any], str]] = {
    "no feature": ({"b": [1.0], "label": [0]}, r"test-0\.parquet: unknown column 'a'"),
    "not finite": ({"a": [float("nan")], "label": [0]}, r"'a' of .*test-0\.parquet holds nan in sample 0"),
    "words": ({"a": [1.0], "label": ["x"]}, "words in some files and numbers in others"),
    "a label of its own": ({"a": [1.0], "label": [9]}, r"holds 9 in sample 2 .* out of range"),
}


@pytest.mark.parametrize("case", BAD_TEST)
def test_bad_test_files_are_refused_before_any_training(tmp_path: Path, case: str) -> None:
    columns, message = BAD_TEST[case]
    write(tmp_path / "train-0.parquet", {"a": [0.0, 1.0], "label": [0, 1]})
    write(tmp_path / "test-0.parquet", columns)
    with pytest.raises(DataError, match=message):
        load(source="parquet", path=str(tmp_path), validation=1)


def images(*pixels: Any) -> pa.Array:
    cells = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(np.asarray(image, dtype=np.uint8)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    return pa.array(cells, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_images_of_the_test_files(tmp_path: Path) -> None:
    """Grey ones beside coloured ones get three channels; those of another size are refused."""
    write(tmp_path / "train.parquet", {"i": images(np.ones((2, 2, 3)), np.ones((2, 2, 3))), "label": [0, 1]})
    write(tmp_path / "test.parquet", {"i": images([[1, 2], [3, 4]]), "label": [1]})
    dataset = load(source="parquet", path=str(tmp_path), validation=1)
    assert dataset.test is not None
    test = dataset.test.prepared([]).validation.samples
    assert test.shape == (1, 2, 2, 3)
    assert test[0, :, :, 2].tolist() == [[1, 2], [3, 4]]
    write(tmp_path / "test.parquet", {"i": images(np.ones((3, 3, 3))), "label": [1]})
    with pytest.raises(DataError, match=r"test\.parquet .* different shapes, 3 × 3 × 3 and 2 × 2 × 3"):
        load(source="parquet", path=str(tmp_path), validation=1)


# Folds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "n"), [([0] * 13 + [1] * 7 + [2] * 5, 5), ([0] * 4 + [1] * 6, 2), ([0, 1] * 10, 10)]
)
def test_folds_are_counted_as_scikit_learn_counts_them(labels: list[int], n: int) -> None:
    folds = made(labels, n_validation=4).folds(n)
    expected = [
        np.bincount(np.array(labels)[held_out], minlength=max(labels) + 1).tolist()
        for _, held_out in StratifiedKFold(n).split(np.zeros(len(labels)), labels)
    ]
    found = [torch.bincount(f.prepared([]).validation.labels, minlength=max(labels) + 1).tolist() for f in folds]
    assert found == expected


def test_every_sample_is_held_out_once_and_trained_on_otherwise() -> None:
    folds = made([0] * 13 + [1] * 7, n_validation=5).folds(3)
    assert sorted(x for fold in folds for x in numbers(fold)) == list(range(20))
    for fold in folds:
        assert sorted(numbers(fold) + numbers(fold, "train")) == list(range(20))
        assert (fold.n_train, fold.n_validation) == (20 - len(numbers(fold)), len(numbers(fold)))


def test_folds_follow_from_the_study_seed_alone() -> None:
    labels = [0, 1] * 15
    first, again, other = (
        [numbers(f) for f in made(labels, n, seed=seed).folds(3)] for n, seed in ((5, 1), (9, 1), (5, 2))
    )
    assert first == again  # however training and validation split were cut
    assert first != other


def test_statistics_are_those_of_the_fold() -> None:
    dataset = made([0, 1] * 10, n_validation=5)
    whole = dataset.prepared(["zero_mean"])
    for fold in dataset.folds(2):
        train = fold.prepared(["zero_mean"]).train.samples
        assert train.mean().abs() < 1e-5
        assert not torch.equal(train, whole.train.samples[: len(train)])
    assert dataset.prepared(["zero_mean"]) is whole


def test_the_test_split_is_in_no_fold() -> None:
    dataset = load(source="digits", test=300)
    assert dataset.test is not None
    held_out = {tuple(x) for x in dataset.test.prepared([]).validation.flat().samples.tolist()}
    for fold in dataset.folds(2):
        assert fold.n_train + fold.n_validation == 1497
        assert fold.n_test == 300
        assert not held_out & {tuple(x) for x in fold.prepared([]).validation.flat().samples.tolist()}


def test_more_folds_than_samples_of_a_class() -> None:
    labels = [0] * 9 + [1] * 3 + [2] * 5
    assert len(made(labels, 2).folds(3)) == 3
    with pytest.raises(DataError, match=r"4 folds are too many: class 1 has 3 samples .* at most 3 folds"):
        made(labels, 2).folds(4)
    with pytest.raises(DataError, match=r"class 'dog' has 3 samples"):
        made(labels, 2, names=("cat", "dog", "eel")).folds(4)


def test_one_fold_is_none() -> None:
    with pytest.raises(ValueError, match="1 folds"):
        made([0, 1] * 5, 2).folds(1)


# Numbers to predict ---------------------------------------------------------------------------------------------------


def test_labels_of_a_regression_are_numbers(tmp_path: Path) -> None:
    y = np.linspace(-1.5, 2.5, 40)
    x = y[:, None]
    np.savez(tmp_path / "t.npz", x=x, y=y)
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"{a},{a}\n" for a in y))
    write(tmp_path / "t.parquet", {"a": y, "label": y})
    for source in ("npz", "csv", "parquet"):
        dataset = load(loss="mse", source=source, path=str(tmp_path / f"t.{source}"), validation=10)
        assert (dataset.n_classes, dataset.n_outputs) == (0, 1)
        validation = dataset.prepared([]).validation
        assert validation.labels.dtype == torch.float32
        assert torch.equal(validation.labels, validation.samples[:, 0])
        # Drawn without regard to size: ten of 40 in a row, or the least ones, would be no draw.
        assert validation.labels.min() < 0 < validation.labels.max()
        held_out = [f.prepared([]).validation.labels for f in dataset.folds(3)]
        assert sorted(map(len, held_out)) == [13, 13, 14]
        assert sorted(torch.cat(held_out).tolist()) == pytest.approx(y.tolist())


def test_classes_may_be_predicted_as_numbers() -> None:
    dataset = load(loss="mse", source="digits")
    assert dataset.n_outputs == 1
    assert set(dataset.prepared([]).train.labels.tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array(["a", "b"]), "'y' .* holds no numbers: the loss mse"),
        (np.array([1.0, np.nan]), "holds nan in sample 1"),
        (np.array([1e39, 0]), r"holds 1e\+39 in sample 0"),
    ],
)
def test_labels_that_are_no_numbers(tmp_path: Path, y: Any, message: str) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((2, 1)), y=y)
    with pytest.raises(DataError, match=message):
        load(loss="mse", source="npz", path=str(tmp_path / "t.npz"), validation=1)


def test_too_many_folds_of_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((4, 1)), y=np.arange(4.0))
    with pytest.raises(DataError, match=r"5 folds are too many: there are 4 samples"):
        load(loss="mse", source="npz", path=str(tmp_path / "t.npz"), validation=1).folds(5)
