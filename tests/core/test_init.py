"""Looking at a user's data, and the study that is written for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from hpsearch.cli.drafting import Draft, described, study_name, study_text
from hpsearch.cli.image_folder import images_of, write_parquet
from hpsearch.cli.looking import find_data, look
from hpsearch.document import parse_yaml
from hpsearch.errors import DataError, InvalidInput
from hpsearch.objective import TrainObjective
from hpsearch.spec import StudySpec, parse_study

CIFAR10 = (Path(__file__).parents[2] / "../shared/data/cifar10").resolve()


def csv(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def spec_of(place: str, *, gpu: bool = False, label: str | None = None) -> StudySpec:
    return parse_study(parse_yaml(study_text(Draft(study_name(place), look(place, label), gpu=gpu), place)))


def trained(spec: StudySpec) -> TrainObjective:
    assert isinstance(spec.objective, TrainObjective)
    return spec.objective


def flowers(path: Path, n: int = 60) -> str:
    return csv(path, "height,width,Species", [f"{i % 7},{i % 5},{'iris' if i % 3 else 'rose'}" for i in range(n)])


def test_a_table_of_words(tmp_path: Path) -> None:
    place = flowers(tmp_path / "My flowers (1).csv")
    seen = look(place)
    assert (seen.data["label"], seen.shape, seen.n_classes, seen.class_sizes) == ("Species", (2,), 2, (20, 40))
    assert described(seen) == "60 samples of 2 features, 2 classes of 20 to 40 samples"
    assert seen.notes == ()
    spec = spec_of(place)
    assert spec.name == "My-flowers-1"
    assert spec.metric.name == "val_accuracy"
    assert [stage.folds for stage in spec.stages] == [5, 5, 5]  # 12 validation samples would tell nothing
    assert trained(spec).batch_size == 20
    # 48 samples to train on are 3 minibatches, and a coarse trial is to have 100, in at most 20 epochs
    assert [stage.epochs for stage in spec.stages] == [20, 100, 200]


def test_numbers_are_predicted_where_they_are_many(tmp_path: Path) -> None:
    prices = csv(tmp_path / "prices.csv", "rooms,age,price", [f"{i % 6},{i % 50},{1000 * i + 0.5}" for i in range(90)])
    seen = look(prices)
    assert seen.n_classes == 0
    assert any("'price'" in note and "--label" in note for note in seen.notes)
    assert any("standard deviation of 2.6e+04" in note for note in seen.notes)
    spec = spec_of(prices)
    assert (spec.metric.name, trained(spec).loss.kind) == ("val_r2", "mse")
    lr = spec.space["lr"].model_dump()
    assert (lr["low"], lr["high"]) == (1e-9, 1e-4)  # four decades lower, for the numbers are as many larger


@pytest.mark.parametrize(
    ("labels", "n_classes"),
    [
        ([0, 1, 2] * 20, 3),
        ([3, 5, 8] * 20, 9),  # grades: whole, few and near each other
        (list(range(60)), 0),
        ([0.5, 1.5] * 30, 0),
        ([1990, 2000, 2010] * 20, 0),  # years: whole and few, but far from 0
    ],
)
def test_whole_numbers_may_be_classes(tmp_path: Path, labels: list[float], n_classes: int) -> None:
    place = csv(tmp_path / "a.csv", "a,b,label", [f"{i % 4},{i % 9},{label}" for i, label in enumerate(labels)])
    seen = look(place)
    assert seen.n_classes == n_classes
    assert any("classes have no sample" in note for note in seen.notes) == (n_classes == 9)


def test_unbalanced_classes_are_compared_by_their_mean(tmp_path: Path) -> None:
    rows = [f"{i % 5},{i % 3},{'rare' if i % 10 == 0 else 'usual'}" for i in range(100)]
    spec = spec_of(csv(tmp_path / "a.csv", "a,b,class", rows))
    assert spec.metric.name == "val_macro_f1"


def test_a_column_that_counts_the_rows_is_named_or_left_out(tmp_path: Path) -> None:
    rows = [f"{i + 1},{i % 5},{i % 3},{i // 30}" for i in range(60)]
    seen = look(csv(tmp_path / "a.csv", "Id,a,b,class", rows))
    assert any("'Id' counts the rows: take it out" in note for note in seen.notes)
    columns: dict[str, Any] = {"Id": range(60), "a": [i % 5 for i in range(60)], "class": [i // 30 for i in range(60)]}
    pa.parquet.write_table(pa.table({name: list(cells) for name, cells in columns.items()}), tmp_path / "a.parquet")
    seen = look(str(tmp_path / "a.parquet"))
    assert (seen.data["columns"], seen.shape) == (["a"], (1,))


def test_arrays_are_found_by_name_and_shape(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", weights=np.ones((3, 3)), images=x, labels=np.arange(80) % 4, ids=np.arange(80))
    seen = look(str(tmp_path / "a.npz"))
    assert (seen.data["x"], seen.data["y"], seen.shape, seen.n_classes) == ("images", "labels", (16, 16, 3), 4)
    assert trained(spec_of(str(tmp_path / "a.npz"))).model.kind == "cnn"


def image_folder(folder: Path, *, sizes: tuple[int, ...] = (16,), n: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            size = sizes[i % len(sizes)]
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    (folder / "README.txt").write_text("photos")
    return folder


def test_a_folder_of_images_becomes_a_parquet_file(tmp_path: Path) -> None:
    folder, target = image_folder(tmp_path / "pets"), tmp_path / "pets.parquet"
    images = images_of(folder)
    assert [label for label, _ in images] == ["cat"] * 6 + ["dog"] * 6
    write_parquet(folder, images, target)
    seen = look(str(target))
    assert (seen.shape, seen.n_classes, len(seen.y)) == ((16, 16, 3), 2, 12)
    with Image.open(folder / "cat" / "0.png") as image:
        assert (seen.x[0] == np.asarray(image)).all()
    with pytest.raises(InvalidInput, match="is there already"):
        write_parquet(folder, images, target)


def test_images_that_cannot_be_packed(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets", sizes=(16, 24))
    with pytest.raises(DataError, match=r"16 × 16 and .* is 24 × 24"):
        write_parquet(folder, images_of(folder), tmp_path / "a.parquet")
    (folder / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png is no image"):
        write_parquet(folder, images_of(folder), tmp_path / "a.parquet")
    one = [(label, file) for label, file in images_of(folder) if label == "dog"]
    with pytest.raises(DataError, match="one folder for each class"):
        write_parquet(folder, one, tmp_path / "a.parquet")
    assert list(tmp_path.glob("a.parquet*")) == []


@pytest.mark.parametrize(("n", "gpu", "kind"), [(300, False, "cnn"), (20_000, False, "mlp"), (20_000, True, "cnn")])
def test_many_images_want_a_gpu_for_a_cnn(tmp_path: Path, n: int, gpu: bool, kind: str) -> None:
    x = np.zeros((n, 16, 16, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=np.arange(n) % 10)
    spec = spec_of(str(tmp_path / "a.npz"), gpu=gpu)
    assert trained(spec).model.kind == kind
    assert [stage.folds for stage in spec.stages] == ([5] * 3 if n < 1000 else [None] * 3)
    assert trained(spec).data.test == (None if n < 1000 else 0.1)  # few samples are all trained on


def test_what_the_comments_offer_is_valid(tmp_path: Path) -> None:
    """Each line that is a key behind a comment's sign, tried alone."""
    np.savez(tmp_path / "a.npz", x=np.zeros((400, 16, 16, 1), dtype=np.uint8), y=np.arange(400) % 3)
    places = [flowers(tmp_path / "a.csv"), "digits", str(tmp_path / "a.npz")]
    tried = 0
    for place in places:
        text = study_text(Draft("a", look(place), gpu=False), place)
        for line in re.findall(r"^ +# [\w.]+: \{.*$", text, re.MULTILINE):
            indent, _, key = line.partition("# ")
            name = key.partition(":")[0]
            replaced = re.sub(rf"^{indent}{re.escape(name)}: .*$\n", "", text, flags=re.MULTILINE)
            spec = parse_study(parse_yaml(replaced.replace(line, indent + key)))
            assert spec != parse_study(parse_yaml(text)), line
            tried += 1
    assert tried >= 8


def test_which_data_are_meant(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="hpsearch init digits"):
        find_data(tmp_path)
    flowers(tmp_path / "a.csv")
    assert find_data(tmp_path) == "a.csv"
    flowers(tmp_path / "b.csv")
    with pytest.raises(InvalidInput, match=r"several data sets here \(a\.csv, b\.csv\)"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.csv", None, "there is no"),
        ("a.xlsx", "x", "by its name no CSV"),
        ("a.csv", "a,label\n1,x\nnan,y\n1,x\n", "must be a finite"),
        ("a.csv", "a,label\n1,x\n2,x\n", "at least two classes"),
        ("a.parquet", "x", "cannot be read"),
        ("a.npz", "x", "no NPZ archive"),
    ],
)
def test_data_that_cannot_be_used_are_named(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput, match=words):
        look(str(tmp_path / name))


@pytest.mark.cifar10
@pytest.mark.skipif(not CIFAR10.exists(), reason="CIFAR-10 is not here")
def test_cifar10() -> None:
    seen = look(str(CIFAR10))
    assert described(seen) == (
        "50,000 images of 32 × 32 × 3, 10 classes of 5,000 samples each, 10,000 more set apart as test"
    )
    spec = spec_of(str(CIFAR10))
    assert [stage.epochs for stage in spec.stages] == [1, 5, 10]  # the lecture's
    assert trained(spec).data.validation == 5000
