"""The width finder: what it chooses, within what memory, and what it remembers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, load_dataset
from hpsearch.training.width import bytes_per_member, choose, find_width


def objective(**keys: Any) -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, **keys})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hpsearch" / "widths"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(objective(), study_seed=0)


@pytest.mark.parametrize(
    ("rates", "width"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 180.0, 4: 300.0, 8: 305.0, 16: 302.0}, 4),  # 305 is within 3 % of 300
        ({1: 100.0, 2: 101.0, 4: 99.0}, 1),
        ({1: 100.0, 2: 60.0, 4: 50.0}, 1),  # a small CNN on a CPU
        ({1: 100.0, 2: 95.0, 4: 120.0}, 4),
    ],
)
def test_the_narrowest_of_the_fastest_is_chosen(rates: dict[int, float], width: int) -> None:
    assert choose(rates) == width


def test_a_small_net_gains_from_company(digits: Dataset) -> None:
    # One at a time its steps are all overhead: packs are many times as fast, whatever else the machine does.
    assert find_width(objective(), digits, device="cpu", memory_budget=1 << 30) > 1


def test_memory_bounds_the_width(digits: Dataset) -> None:
    per_member = bytes_per_member(objective(), digits.shape, 10)
    assert find_width(objective(), digits, device="cpu", memory_budget=3 * per_member) <= 2
    assert find_width(objective(), digits, device="cpu", memory_budget=0) == 1


def test_bytes_per_member_by_hand() -> None:
    # 64·50 + 50·10 weights and 50 + 10 activations for each of 100 samples, six copies of four bytes.
    assert bytes_per_member(objective(), (8, 8, 1), 10) == 24 * (3700 + 100 * 60)
    linear = objective(model={"kind": "linear"}, batch_size=1)
    assert bytes_per_member(linear, (64,), 10) == 24 * (640 + 10)
    maxout = objective(model={"kind": "mlp", "hidden": [5], "activation": "maxout", "pieces": 3}, batch_size=1)
    assert bytes_per_member(maxout, (4,), 2) == 24 * (4 * 15 + 5 * 2 + 15 + 2)
    # 3 × 3 kernels on 8 × 8 pixels: 9 columns of the image and 1 + 9 of the 4 channels; pooled 4 × 4 × 4 to 10 scores.
    cnn = objective(model={"kind": "cnn", "channels": [4]}, batch_size=1)
    assert bytes_per_member(cnn, (8, 8, 1), 10) == 24 * (36 + 640 + 64 * (9 + 40) + 10)


def test_the_answer_is_remembered(digits: Dataset, cache: Path) -> None:
    find_width(objective(), digits, device="cpu", memory_budget=1 << 30)
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"1": 1.0, "2": 5.0}))
    # What a member may have of its own is not in the key.
    other = objective(optimizer={"lr": 0.5, "momentum": 0.1})
    assert find_width(other, digits, device="cpu", memory_budget=1 << 30) == 2
    find_width(objective(batch_size=50), digits, device="cpu", memory_budget=1 << 30)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"a": 1}', '{"1": "x"}', '{"1": NaN}', '{"2": 1}', "\0"]
)
def test_a_damaged_cache_is_measured_anew(digits: Dataset, cache: Path, content: str) -> None:
    find_width(objective(), digits, device="cpu", memory_budget=1)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert find_width(objective(), digits, device="cpu", memory_budget=1) == 1
    assert list(json.loads(file.read_text())) == ["1"]


def test_a_cache_that_cannot_be_written_is_no_error(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert find_width(objective(), digits, device="cpu", memory_budget=1) == 1
