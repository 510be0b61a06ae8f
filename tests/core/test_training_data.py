"""Reading, checking, splitting and preprocessing of data; every kind of bad input is a DataError."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, load_dataset
from hpsearch.training.data import stratified


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hpsearch"


def load(seed: int = 0, preprocess: list[str] | None = None, **data: Any) -> Dataset:
    document = {"kind": "train", "data": data, "preprocess": preprocess or []}
    return load_dataset(TrainObjective.model_validate(document), study_seed=seed)


def contents(dataset: Dataset) -> tuple[NDArray[Any], NDArray[Any]]:
    """All samples and labels, ordered by the first feature."""
    splits = dataset.prepared([])
    x = torch.cat([splits.train.samples, splits.validation.samples]).numpy()
    y = torch.cat([splits.train.labels, splits.validation.labels]).numpy()
    order = np.argsort(x.reshape(len(x), -1)[:, 0], kind="stable")
    return x[order], y[order]


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> str:
    table = pa.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def images(*cells: bytes | None) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": cell, "path": None} for cell in cells], type=kind)


# Splits ---------------------------------------------------------------------------------------------------------------


def test_digits_is_the_whole_data_set_at_raw_scale() -> None:
    dataset = load(source="digits", validation=360)
    splits = dataset.prepared([])
    assert (dataset.n_train, dataset.n_validation, dataset.n_classes, dataset.shape) == (1437, 360, 10, (8, 8, 1))
    assert splits.train.flat().samples.shape == (1437, 64)
    assert sorted(set(splits.train.samples.flatten().tolist())) == list(range(17))
    assert splits.train.samples.dtype == torch.float32
    assert splits.train.labels.dtype == torch.int64


def test_the_split_is_a_function_of_the_study_seed() -> None:
    first, again, other = (load(seed, source="digits").prepared([]).validation for seed in (3, 3, 4))
    assert torch.equal(first.samples, again.samples)
    assert not torch.equal(first.samples, other.samples)


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(100.0)[:, None], y=np.arange(100) % 4)
    dataset = load(source="npz", path=str(tmp_path / "data.npz"), validation=0.3)
    x, y = contents(dataset)
    assert x[:, 0].tolist() == list(range(100))
    assert y.tolist() == [i % 4 for i in range(100)]
    assert dataset.n_validation == 30


def test_stratified_gives_every_class_its_share() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    drawn, rest = stratified(np.arange(100), labels, 25, np.random.default_rng(0))
    # Exact shares 15, 7.5 and 2.5: the 25th goes to one of the halves.
    assert np.bincount(labels[drawn]).tolist() == [15, 8, 2]
    assert sorted([*drawn, *rest]) == list(range(100))


def test_train_limits_the_training_split_alone() -> None:
    whole, limited = load(source="digits"), load(source="digits", train=50)
    assert torch.equal(whole.prepared([]).validation.samples, limited.prepared([]).validation.samples)
    assert limited.n_train == 50
    assert set(limited.prepared([]).train.labels.tolist()) == set(range(10))
    assert load(source="digits", train=10_000).n_train == whole.n_train


@pytest.mark.parametrize("validation", [1797, 5000])
def test_no_training_split(validation: int) -> None:
    with pytest.raises(DataError, match=f"data.validation is {validation}.*1797.*at most 1796"):
        load(source="digits", validation=validation)


def test_no_validation_split() -> None:
    with pytest.raises(DataError, match=r"data.validation is 0.0001, which is none of the 1797 samples"):
        load(source="digits", validation=0.0001)


# Preprocessing --------------------------------------------------------------------------------------------------------


def test_zero_mean_is_the_mean_image() -> None:
    splits = load(source="digits").prepared(["zero_mean"])
    assert splits.train.samples.mean(0).abs().max() < 1e-5
    assert splits.validation.samples.mean(0).abs().max() > 1e-2


def test_rms_is_that_of_the_preprocessed_training_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.array([[3.0, 3.0]] * 10), y=np.arange(10) % 2)
    dataset = load(source="npz", path=str(tmp_path / "data.npz"), validation=2)
    assert dataset.prepared([]).rms == pytest.approx(3.0)
    assert dataset.prepared(["zero_mean"]).rms == 1.0  # of zeros: nothing to scale by


def test_preprocessed_splits_are_cached_and_do_not_touch_each_other() -> None:
    dataset = load(source="digits")
    raw = dataset.prepared([]).train.samples.clone()
    assert dataset.prepared(["zero_mean"]) is dataset.prepared(["zero_mean"])
    assert torch.equal(dataset.prepared([]).train.samples, raw)


# Sources --------------------------------------------------------------------------------------------------------------


def test_csv_with_words_as_labels(tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    path.write_text("a,species,b\n1,virginica,0.5\n2,setosa,1.5\n3,virginica,-2e3\n")
    x, y = contents(load(source="csv", path=str(path), label="species", validation=1))
    assert x.tolist() == [[1.0, 0.5], [2.0, 1.5], [3.0, -2000.0]]
    assert y.tolist() == [1, 0, 1]  # setosa, virginica


def test_csv_types_are_not_guessed_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("a,label\n" + "1,0\n2,1\n" * 150_000 + "1.5,1\n")
    dataset = load(source="csv", path=str(path), validation=1)
    assert dataset.n_train == 300_000


def test_parquet_with_numeric_columns(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "t.parquet", {"a": [1, 2, 3], "label": [0, 1, 1], "b": [0.5, 1.5, 2.5], "n": ["x"] * 3}
    )
    x, y = contents(load(source="parquet", path=path, validation=1))
    assert x.tolist() == [[1.0, 0.5], [2.0, 1.5], [3.0, 2.5]]
    assert y.tolist() == [0, 1, 1]
    x, _ = contents(load(source="parquet", path=path, validation=1, columns=["b"]))
    assert x.tolist() == [[0.5], [1.5], [2.5]]


@pytest.mark.parametrize("others", [["test-0.parquet", "validation-0.parquet"], ["train-1.parquet", "more.parquet"]])
def test_a_folder_in_the_layout_of_hugging_face(tmp_path: Path, others: list[str]) -> None:
    has_train = others[0].startswith("train")
    first = "train-0.parquet" if has_train else "part.parquet"
    for i, name in enumerate([first, *others]):
        write_parquet(tmp_path / "data" / name, {"a": [10.0 * i, 10.0 * i + 1], "label": ["x", "y"]})
    x, _ = contents(load(source="parquet", path=str(tmp_path), validation=1))
    assert x[:, 0].tolist() == ([0.0, 1.0, 10.0, 11.0] if has_train else [0.0, 1.0])


def test_dictionary_labels(tmp_path: Path) -> None:
    labels = pa.array(["b", "a", "b"]).dictionary_encode()
    path = write_parquet(tmp_path / "t.parquet", {"a": [1, 2, 3], "label": labels})
    assert contents(load(source="parquet", path=path, validation=1))[1].tolist() == [1, 0, 1]


def test_images_are_height_width_channels(tmp_path: Path) -> None:
    pixels = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    path = write_parquet(tmp_path / "t.parquet", {"img": images(*map(encoded, pixels)), "label": [0, 1, 0, 1]})
    dataset = load(source="parquet", path=path, validation=1)
    x, y = contents(dataset)
    assert dataset.shape == (2, 3, 3)
    assert np.array_equal(x, pixels)
    assert y.tolist() == [0, 1, 0, 1]


def test_grey_images_have_one_channel_and_beside_colours_three(tmp_path: Path) -> None:
    grey, colour = encoded([[1, 2], [3, 4]]), encoded(np.full((2, 2, 3), 9))
    path = write_parquet(tmp_path / "grey.parquet", {"b": pa.array([grey, grey], pa.binary()), "label": [0, 1]})
    assert load(source="parquet", path=path, validation=1).shape == (2, 2, 1)
    path = write_parquet(
        tmp_path / "mixed.parquet", {"b": pa.array([grey, colour, grey], pa.binary()), "label": [0, 1, 0]}
    )
    x, _ = contents(load(source="parquet", path=path, validation=1))
    assert x[0, :, :, 2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x[2].flatten().tolist() == [9.0] * 12


def test_decoded_images_are_cached_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    def first_pixel(value: int, labels: list[int]) -> float:
        cells = [encoded(np.full((2, 2, 3), value))] * len(labels)
        path = write_parquet(tmp_path / "t.parquet", {"img": images(*cells), "label": labels})
        return float(contents(load(source="parquet", path=path, validation=1))[0].flat[0])

    assert first_pixel(7, [0, 1]) == 7.0
    (file,) = cache.iterdir()
    assert first_pixel(200, [0, 1, 1]) == 200.0
    assert len(list(cache.iterdir())) == 2
    assert np.load(file).shape == (2, 2, 2, 3)


def test_a_damaged_or_impossible_cache_is_no_error(tmp_path: Path, cache: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"img": images(*[encoded(np.ones((2, 2, 3)))] * 2), "label": [0, 1]})
    load(source="parquet", path=path, validation=1)
    (file,) = cache.iterdir()
    for damage in (b"", b"not an array", file.read_bytes()[:-1]):
        file.write_bytes(damage)
        assert load(source="parquet", path=path, validation=1).shape == (2, 2, 3)
    file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert load(source="parquet", path=path, validation=1).shape == (2, 2, 3)


# Bad input ------------------------------------------------------------------------------------------------------------

TWO = encoded(np.zeros((2, 2, 3)))
PNG = encoded(np.arange(300).reshape(10, 10, 3))

BAD_PARQUET: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unreadable image": ({"img": images(TWO, b"no image"), "label": [0, 1]}, {}, "'img'.*sample 1"),
    "truncated image": ({"img": images(PNG, PNG[: len(PNG) // 2]), "label": [0, 1]}, {}, "'img'.*sample 1"),
    "missing image": ({"img": images(TWO, None), "label": [0, 1]}, {}, "'img'.*sample 1.*it is missing"),
    "ragged images": ({"img": images(TWO, PNG), "label": [0, 1]}, {}, "sample 1.*10 × 10 pixels and sample 0 is 2 × 2"),
    "two columns of images": ({"a": images(TWO), "b": images(TWO), "label": [0]}, {}, "a, b.*data.image"),
    "no such image column": ({"img": images(TWO), "label": [0]}, {"image": "imgs"}, "'imgs'; did you mean 'img'"),
    "no column of images": ({"a": [1.0], "label": [0]}, {"image": "a"}, "'a' has the type double"),
    "both": ({"a": [1.0], "label": [0]}, {"image": "a", "columns": ["a"]}, "both given"),
    "no such feature": ({"width": [1.0], "label": [0]}, {"columns": ["widht"]}, "'widht'; did you mean 'width'"),
    "words as features": ({"a": ["x", "y"], "label": [0, 1]}, {"columns": ["a"]}, "'a' has the type string"),
    "label as feature": ({"a": [1, 2], "label": [0, 1]}, {"columns": ["label"]}, "not the label"),
    "no features": ({"a": ["x", "y"], "label": [0, 1]}, {}, "nothing to learn from"),
    "no label column": ({"a": [1, 2], "labels": [0, 1]}, {}, "'label'; did you mean 'labels'"),
    "no samples": ({"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}, {}, "no samples"),
    "a missing feature": ({"a": [1.0, None], "label": [0, 1]}, {}, "'a' of .* holds nan in sample 1"),
    "an infinite feature": ({"a": [1.0, float("inf")], "label": [0, 1]}, {}, "'a' of .* holds inf in sample 1"),
    "over float32": ({"a": [1.0, 1e39], "label": [0, 1]}, {}, r"'a' of .* holds 1e\+39 in sample 1"),
    "a missing label": ({"a": [1, 2, 3], "label": [0, None, 1]}, {}, "'label' of .* holds nan in sample 1.*is missing"),
    "a missing word": ({"a": [1, 2, 3], "label": ["x", "y", None]}, {}, "holds None in sample 2.*is missing"),
    "a negative label": ({"a": [1, 2], "label": [0, -1]}, {}, "holds -1 in sample 1.*is negative"),
    "a fractional label": ({"a": [1, 2], "label": [0, 0.5]}, {}, "holds 0.5 in sample 1.*is no whole number"),
    "an infinite label": ({"a": [1, 2], "label": [0, float("inf")]}, {}, "holds inf in sample 1"),
    "a label out of range": ({"a": [1, 2], "label": [0, 7]}, {}, "holds 7 in sample 1.*out of range.*2 samples"),
    "one class": ({"a": [1, 2], "label": [0, 0]}, {}, "at least two classes"),
    "one word": ({"a": [1, 2], "label": ["x", "x"]}, {}, "'x' alone"),
    "dates as labels": ({"a": [1], "label": pa.array([0], pa.date32())}, {}, "has the type date32"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet(tmp_path: Path, case: str) -> None:
    columns, keys, message = BAD_PARQUET[case]
    path = write_parquet(tmp_path / "t.parquet", columns)
    with pytest.raises(DataError, match=message):
        load(source="parquet", path=path, validation=1, **keys)


def test_a_label_over_the_declared_classes(tmp_path: Path) -> None:
    columns = {"a": [1, 2, 3, 4], "label": [0, 1, 2, 0]}
    path = write_parquet(tmp_path / "t.parquet", columns, names=["cat", "dog"])
    with pytest.raises(DataError, match=r"holds 2 in sample 2.*out of range.*2 classes"):
        load(source="parquet", path=path, validation=1)
    path = write_parquet(tmp_path / "t.parquet", columns, names=["cat", "dog", "bird", "fish"])
    assert load(source="parquet", path=path, validation=1).n_classes == 4


def test_files_of_a_folder_that_differ(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", {"a": [1.0], "label": [0]})
    write_parquet(tmp_path / "train-1.parquet", {"a": ["x"], "label": [1]})
    with pytest.raises(DataError, match="cannot be read together"):
        load(source="parquet", path=str(tmp_path), validation=1)
    write_parquet(tmp_path / "train-1.parquet", {"b": [1.0], "label": [1]})
    with pytest.raises(DataError, match=r"train-1\.parquet: unknown column 'a'"):
        load(source="parquet", path=str(tmp_path), validation=1)


def test_a_folder_without_files_to_train_on(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", {"a": [1.0], "label": [0]})
    with pytest.raises(DataError, match="no Parquet files to train on"):
        load(source="parquet", path=str(tmp_path))


BAD_CSV = {
    "empty": ("", "not a CSV file"),
    "header only": ("a,label\n", "no samples"),
    "label only": ("label\n0\n1\n", "nothing to learn from"),
    "a missing label column": ("a,lable\n1,0\n", "'label'; did you mean 'lable'"),
    "a word": ("a,b,label\n1,2,0\n1,many,1\n", "'b' of .* holds 'many' in line 3: every column but the label"),
    "a gap": ("a,label\n1,0\n,1\n", "'a' of .* holds nan in sample 1"),
    "a missing label": ("a,label\n1,0\n2,\n3,1\n", "'label' of .* in sample 1.*is missing"),
    "a missing word": ("a,label\n1,x\n2,\n3,y\n", "'label' of .* in sample 1.*is missing"),
    "ragged lines": ("a,label\n1,0\n1,2,3\n", "damaged.*Expected 2 columns, got 3"),
    "two columns of one name": ("a,a,label\n1,1,0\n", "several columns 'a'"),
    "two labels": ("a,label,label\n1,1,0\n", "several columns 'label'"),
    "a negative label": ("a,label\n1,0\n2,-3\n", "holds -3.0 in sample 1.*is negative"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    text, message = BAD_CSV[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(source="csv", path=str(tmp_path / "t.csv"), validation=1)


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])

BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "no array": ({"xs": X, "y": Y}, "unknown array 'x'; did you mean 'xs'"),
    "objects": ({"x": np.array([[1, "a"]] * 4, dtype=object), "y": Y}, "'x'.*Python objects"),
    "words": ({"x": np.array([["a"]] * 4), "y": Y}, "'x'.*real numbers"),
    "complex": ({"x": X + 1j, "y": Y}, "'x'.*complex128.*real numbers"),
    "flat": ({"x": X[:, 0], "y": Y}, r"'x'.*shape \(4,\).*samples × features"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, r"'x'.*shape \(0, 2\)"),
    "other lengths": ({"x": X, "y": Y[:3]}, r"'y'.*shape \(3,\).*one label for each of the 4"),
    "one-hot": ({"x": X, "y": np.eye(4)}, r"'y'.*shape \(4, 4\)"),
    "NaN": ({"x": np.where(np.eye(4) > 0, np.nan, 0), "y": Y}, "holds nan in sample 0, feature 0"),
    "complex labels": ({"x": X, "y": Y + 1j}, "'y'.*complex128"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_NPZ[case]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(source="npz", path=str(tmp_path / "t.npz"), validation=1)


@pytest.mark.parametrize("source", ["npz", "csv", "parquet"])
@pytest.mark.parametrize(
    "bytes_", [b"", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", b"PK\x03\x04 no zip", b"PAR1 no parquet PAR1"]
)
def test_a_file_of_another_kind(tmp_path: Path, source: str, bytes_: bytes) -> None:
    (tmp_path / "data").write_bytes(bytes_)
    with pytest.raises(DataError, match="data"):
        load(source=source, path=str(tmp_path / "data"))


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match="not an NPZ archive"):
        load(source="npz", path=str(tmp_path / "x.npy"))


@pytest.mark.parametrize("source", ["npz", "csv", "parquet"])
def test_a_path_with_nothing_there(source: str) -> None:
    with pytest.raises(DataError, match=r"there is no nowhere/data .*data.path"):
        load(source=source, path="nowhere/data")


@pytest.mark.parametrize("source", ["npz", "csv"])
def test_a_folder_instead_of_a_file(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(source=source, path=str(tmp_path))
