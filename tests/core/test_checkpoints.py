"""Checkpoints: files that are whole or refused, and trials that go on as if they had never stopped."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, EpochResult, Member, Pack
from hpsearch.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from hpsearch.training.samples import Samples


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint() -> Checkpoint:
    tensors = {
        "parameters.weight": torch.arange(6.0).reshape(2, 3),
        "buffers.count": torch.tensor(7),
        "optimiser.empty": torch.empty(0, 4),
        "double": torch.tensor([math.pi], dtype=torch.float64),
    }
    return Checkpoint("net", 3, 2.302, tensors)


def test_a_file_holds_the_same_bits(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_checkpoint(tmp_path / "deep" / "trial.safetensors", checkpoint)
    loaded = load_checkpoint(tmp_path / "deep" / "trial.safetensors")
    assert (loaded.architecture, loaded.epoch, loaded.start) == ("net", 3, 2.302)
    assert loaded.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["trial.safetensors"]


def test_the_format_is_that_of_safetensors(tmp_path: Path) -> None:
    """https://huggingface.co/docs/safetensors: u64 little-endian length, JSON, the numbers."""
    save_checkpoint(tmp_path / "t", Checkpoint("net", 1, 0.0, {"w": torch.tensor([1.0, 2.0])}))
    content = (tmp_path / "t").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header["w"] == {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert all(isinstance(value, str) for value in header["__metadata__"].values())
    assert content[8 + length :] == np.array([1, 2], "<f4").tobytes()


def test_urls_go_through_fsspec(checkpoint: Checkpoint) -> None:
    save_checkpoint("memory://trials/1", checkpoint)
    assert load_checkpoint("memory://trials/1").epoch == 3


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tmp_path / "trial"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        save_checkpoint(path, Checkpoint("net", 4, 0.0, {"w": torch.zeros(1, dtype=torch.complex64)}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "trial"
    save_checkpoint(path, Checkpoint("net", 3, 2.5, {"w": torch.tensor([1.0, 2.0])}))
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"is damaged .* delete it"):
            load_checkpoint(path)


@pytest.mark.parametrize("n_bytes", [0, 7, 8, 100, -1])
def test_a_cut_off_file_is_damaged(tmp_path: Path, checkpoint: Checkpoint, n_bytes: int) -> None:
    path = tmp_path / "trial"
    save_checkpoint(path, checkpoint)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match="is damaged"):
        load_checkpoint(path)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "trial"
    for content in (b"[]", b'{"a": 1}', b'{"__metadata__": {"format": "pt"}}', b"null"):
        path.write_bytes(len(content).to_bytes(8, "little") + content)
        with pytest.raises(DataError, match="is damaged"):
            load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nothing")


# Going on


def dataset() -> Dataset:
    """Random images 4 × 4 of one channel in three classes; 50 to train on make 7 minibatches of 8, the last of 2."""
    rng = np.random.default_rng(0)
    samples = Samples(rng.normal(size=(70, 4, 4, 1)).astype(np.float32), np.arange(70) % 3, 3)
    return Dataset(samples, np.arange(50), np.arange(50, 70), device="cpu")


def objective(**keys: Any) -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, "batch_size": 8, **keys})


def trials(**keys: Any) -> list[Member]:
    base = objective(**keys)
    return [Member(base.with_params({"lr": 0.01 * (k + 1), "reg": 0.01 * k}), seed=k) for k in range(3)]


MLP = {"kind": "mlp", "hidden": [6]}
SYSTEMS = {
    "sgd": {"model": MLP},
    "plain sgd": {"model": MLP, "optimizer": {"momentum": 0.0}},
    "nesterov": {"model": MLP, "optimizer": {"kind": "nesterov"}},
    "adagrad": {"model": MLP, "optimizer": {"kind": "adagrad"}},
    "rmsprop": {"model": MLP, "optimizer": {"kind": "rmsprop"}},
    "adam": {"model": MLP, "optimizer": {"kind": "adam"}},
    "adamw": {"model": MLP, "optimizer": {"kind": "adamw"}, "regularization": {"weight_decay": 0.1}},
    "clipped": {"model": MLP, "optimizer": {"clip_norm": 0.1}, "regularization": {"l1": 0.01}},
    "one cycle": {"model": MLP, "optimizer": {"schedule": {"kind": "one_cycle"}, "lr_decay": 0.9}},
    "cosine": {"model": MLP, "optimizer": {"kind": "adam", "schedule": {"kind": "cosine", "warmup_epochs": 1.5}}},
    "batch norm": {"model": {**MLP, "batch_norm": True}},
    "dropout": {"model": {**MLP, "dropout": 0.5}},
    "prelu": {"model": {**MLP, "activation": "prelu"}},
    "augmented": {"model": MLP, "augment": {"flip": True, "crop": 1}},
    "cnn": {"model": {"kind": "cnn", "channels": [3], "batch_norm": True}},
    "resnet": {"model": {"kind": "resnet", "channels": [3, 4], "batch_norm": True}},
    "linear": {"model": {"kind": "linear"}, "loss": {"kind": "hinge"}},
}


@pytest.mark.parametrize("keys", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_going_on_equals_never_having_stopped(tmp_path: Path, keys: dict[str, Any]) -> None:
    data, members = dataset(), trials(**keys)
    whole = Pack(members, data, data_seed=1, epochs=4)
    stopped = Pack(members, data, data_seed=1, epochs=4)
    for _ in range(2):
        whole.train_epoch()
        stopped.train_epoch()
    for member in range(3):
        save_checkpoint(tmp_path / str(member), stopped.checkpoint(member))
    resumed = Pack(members, data, data_seed=1, epochs=4)
    resumed.resume([load_checkpoint(tmp_path / str(member)) for member in range(3)])
    alone = Pack(members[2:], data, data_seed=1, epochs=4)
    alone.resume([load_checkpoint(tmp_path / "2")])
    for _ in range(2):
        expected = whole.train_epoch()
        assert plain(resumed.train_epoch()) == plain(expected)  # the same bits
        (own,) = alone.train_epoch()
        assert own.epoch == expected[2].epoch
        for name, value in own.metrics.items():
            if "loss" in name:  # rounding differs with the width
                assert value == pytest.approx(expected[2].metrics[name], rel=1e-4)


def plain(results: list[EpochResult]) -> list[tuple[int, int, dict[str, float], str | None]]:
    return [(r.member, r.epoch, {k: v for k, v in r.metrics.items() if "/" not in k}, r.diverged) for r in results]


def test_a_member_that_was_moved_by_compaction_keeps_its_own() -> None:
    data, members = dataset(), trials(model=MLP, optimizer={"kind": "adam"})
    pack = Pack(members, data, data_seed=1, epochs=4)
    pack.train_epoch()
    pack.drop(0)
    pack.train_epoch()
    resumed = Pack(members[1:2], data, data_seed=1, epochs=4)
    resumed.resume([pack.checkpoint(1)])
    expected = pack.train_epoch()[0].metrics["val_loss"]
    assert resumed.train_epoch()[0].metrics["val_loss"] == pytest.approx(expected, rel=1e-4)


def test_another_architecture_is_refused_before_training() -> None:
    data = dataset()
    pack = Pack(trials(model=MLP), data, data_seed=1, epochs=4)
    pack.train_epoch()
    checkpoints = [pack.checkpoint(member) for member in range(3)]
    for keys in ({"model": {"kind": "mlp", "hidden": [7]}}, {"model": MLP, "optimizer": {"kind": "adam"}}):
        other = Pack(trials(**keys), data, data_seed=1, epochs=4)
        with pytest.raises(DataError, match="of another architecture"):
            other.resume(checkpoints)


def test_tensors_must_be_those_of_the_model() -> None:
    data, members = dataset(), trials(model=MLP)[:1]
    pack = Pack(members, data, data_seed=1, epochs=4)
    pack.train_epoch()
    whole = pack.checkpoint(0)
    name = next(iter(whole.tensors))
    fewer = {key: tensor for key, tensor in whole.tensors.items() if key != name}
    for tensors in (fewer, {**fewer, name: torch.zeros(1)}, {**fewer, name: whole.tensors[name].double()}):
        with pytest.raises(DataError, match=name):
            Pack(members, data, data_seed=1, epochs=4).resume(
                [Checkpoint(whole.architecture, whole.epoch, whole.start, tensors)]
            )


def test_checkpoints_of_a_pack_are_of_one_epoch() -> None:
    data, members = dataset(), trials(model=MLP)[:2]
    pack = Pack(members, data, data_seed=1, epochs=2)
    pack.train_epoch()
    first = pack.checkpoint(0)
    pack.train_epoch()
    for checkpoints in ([first, pack.checkpoint(1)], [first]):
        with pytest.raises(ValueError, match="one epoch"):
            Pack(members, data, data_seed=1, epochs=2).resume(checkpoints)
    with pytest.raises(ValueError, match="one epoch"):
        pack.resume([first, first])
