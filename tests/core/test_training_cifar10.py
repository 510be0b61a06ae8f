"""The lecture's two-layer net on the real CIFAR-10."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpsearch.objective import TrainObjective
from hpsearch.space import Params
from hpsearch.spec import load_study
from hpsearch.training import Member, Pack, load_dataset

ROOT = Path(__file__).parents[2]
DATA = (ROOT / "../shared/data/cifar10").resolve()


@pytest.mark.cifar10
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the CIFAR-10 Parquet files are not in {DATA}")
def test_twenty_random_trials_of_one_epoch_pass_forty_percent() -> None:
    """Of 256 random trials 94 pass without diverging (37 %): twenty that all fail have probability 1e-4."""
    torch.set_num_threads(1)
    spec = load_study(ROOT / "examples/cifar10.yaml")
    assert isinstance(spec.objective, TrainObjective)
    objective = spec.objective.model_copy(update={"data": spec.objective.data.model_copy(update={"path": str(DATA)})})
    rng = np.random.default_rng(0)
    params: list[Params] = [{"lr": 10 ** rng.uniform(-6, -3), "reg": 10 ** rng.uniform(-5, 5)} for _ in range(20)]
    dataset = load_dataset(objective, study_seed=0)
    assert (dataset.n_train, dataset.n_validation, dataset.shape) == (49_000, 1000, (32, 32, 3))
    members = [Member(objective.with_params(p), seed) for seed, p in enumerate(params)]
    results = Pack(members, dataset, data_seed=0, epochs=1).train_epoch()
    assert max(r.metrics["val_accuracy"] for r in results if r.diverged is None) > 0.40
