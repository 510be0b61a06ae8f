"""Where retried trials go on from: found by what they are, in a folder or behind a URL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpsearch.objective import TrainObjective
from hpsearch.training import Member, Pack, load_dataset
from hpsearch.worker.checkpoints import Checkpoints
from hpsearch.worker.session import LeasedTrial

OBJECTIVE = {"kind": "train", "data": {"source": "digits", "train": 200}, "model": {"kind": "mlp", "hidden": [5]}}
LEASE = LeasedTrial(
    study="s", stage="a", trial=0, attempt=1, token="t", params={"lr": 0.01}, epochs=3, folds=None, seeds=1, seed=7,
    objective=OBJECTIVE, metric={"name": "val_loss", "direction": "minimize"}, study_seed=0, data_seed=0,
    lease_seconds=9,
)  # fmt: skip


@pytest.fixture(params=["folder", "memory://hpsearch-test"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path) if request.param == "folder" else request.param, every_seconds=0)


def pack() -> Pack:
    objective = TrainObjective.model_validate(OBJECTIVE).with_params(LEASE.params)
    return Pack([Member(objective, 7)], load_dataset(objective, study_seed=0), data_seed=0, epochs=3)


def test_a_trial_is_found_until_it_ends(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(LEASE) is None
    training = pack()
    training.train_epoch()
    checkpoints.save([training], [LEASE], [0])
    found = checkpoints.load(replace(LEASE, attempt=2, token="another", trial=5, lease_seconds=1.0))
    assert found is not None
    assert found[0][0].epoch == 1
    again = pack()
    again.resume(found[0])
    assert again.train_epoch() == training.train_epoch()
    checkpoints.remove(LEASE)
    assert checkpoints.load(LEASE) is None
    checkpoints.remove(LEASE)


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"lr": 0.02}},
        {"seed": 8},
        {"data_seed": 1},
        {"study_seed": 1},
        {"epochs": 4},
        {"seeds": 2},
        {"folds": 2},
    ],
    ids=str,
)
def test_another_training_is_never_mistaken_for_it(checkpoints: Checkpoints, other: dict[str, object]) -> None:
    training = pack()
    training.train_epoch()
    checkpoints.save([training], [LEASE], [0])
    assert checkpoints.load(replace(LEASE, **other)) is None  # type: ignore[arg-type]
    checkpoints.remove(LEASE)


def test_a_damaged_one_is_left_aside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), every_seconds=0)
    training = pack()
    training.train_epoch()
    checkpoints.save([training], [LEASE], [0])
    (path,) = tmp_path.glob("*/*.ckpt")
    path.write_bytes(path.read_bytes()[:-7])
    assert checkpoints.load(LEASE) is None
