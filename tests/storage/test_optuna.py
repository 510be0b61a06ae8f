"""Optuna's own conformance class over a store of this process, on both databases."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from hpsearch_storage.maintenance import export_study, import_study
from hpsearch_storage.optuna import StoreStorage
from hpsearch_storage.optuna_records import our_name


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[StoreStorage]:
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    storage = StoreStorage(url)
    yield storage
    storage.close()


class TestStore(StorageTestCase):
    """59 tests of Optuna's."""


def test_a_study_as_a_file_is_the_same_study(storage: StoreStorage, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="exp/α", storage=storage, directions=["minimize", "maximize"])
    study.set_user_attr("who", "me")
    for i in range(4):
        trial = study.ask({"x": FloatDistribution(0, 1 + i), "kind": CategoricalDistribution(("a", None, math.inf))})
        trial.set_user_attr("i", i)
        study.tell(trial, (math.inf, -0.0) if i else None, state=None if i else TrialState.FAIL)
    study.enqueue_trial({"x": 0.5})
    now = datetime.now(UTC)
    export_study(storage.url, our_name("exp/α"), tmp_path / "study", now=now)
    fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    import_study(fresh, tmp_path / "study", name=None, now=now)
    copied = StoreStorage(fresh)
    theirs = optuna.load_study(study_name="exp/α", storage=copied)
    assert theirs.user_attrs == {"who": "me"}
    assert theirs.directions == study.directions
    for ours, other in zip(study.trials, theirs.trials, strict=True):
        other._trial_id = ours._trial_id
        assert ours == other
    theirs.tell(theirs.ask({"x": FloatDistribution(0, 9)}), (0.0, 0.0))
    copied.close()


def test_processes_share_a_store(storage: StoreStorage) -> None:
    study = optuna.create_study(study_name="shared", storage=storage)
    code = (
        "import sys, optuna; from hpsearch_storage.optuna import StoreStorage\n"
        "study = optuna.load_study(study_name='shared', storage=StoreStorage(sys.argv[1]))\n"
        "study.optimize(lambda t: t.suggest_float('x', 0, 1), n_trials=8)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, storage.url]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0] * 3
    assert [t.number for t in study.trials] == list(range(24))
    assert all(t.value == t.params["x"] for t in study.trials)


def test_use_after_fork(storage: StoreStorage) -> None:
    code = (
        "import os, sys, optuna; from hpsearch_storage.optuna import StoreStorage\n"
        "study = optuna.create_study(study_name='forked', storage=StoreStorage(sys.argv[1]))\n"
        "study.tell(study.ask(), 1.0)\n"
        "child = os.fork()\n"
        "study.tell(study.ask(), 2.0)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0; study.tell(study.ask(), 3.0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, storage.url], check=True, timeout=60)
    trials = optuna.load_study(study_name="forked", storage=storage).trials
    assert sorted(t.value for t in trials if t.value is not None) == [1.0, 2.0, 2.0, 3.0]
