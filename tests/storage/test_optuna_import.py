"""``hpsearch import`` of an Optuna study: copied as it is, or as the warm start of a study here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hpsearch.store import TrialQuery
from hpsearch.trial import TrialState
from hpsearch_storage import open_store

SPEC: dict[str, Any] = {
    "name": "warm",
    "objective": {"kind": "python", "entrypoint": "mine:objective"},
    "metric": {"name": "loss", "direction": "minimize"},
    "space": {
        "lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
        "kind": {"type": "categorical", "choices": ["a", "b"]},
    },
    "stages": [{"name": "only", "trials": 4}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage of Optuna's with two studies, and a SPEC."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=url, study_name="past", direction="minimize")
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "lr": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }

    def add(lr: float, value: float | None, state: optuna.trial.TrialState, **more: Any) -> None:
        params = {"lr": lr, "kind": "a"}
        made = optuna.trial.create_trial(params=params, distributions=distributions, value=value, state=state, **more)
        study.add_trial(made)

    complete, pruned, fail = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL"))
    add(0.1, 0.25, complete)
    add(0.5, None, pruned, intermediate_values={3: 2.0})
    add(0.7, None, fail)
    add(0.0001, 0.125, complete)
    optuna.create_study(storage=url, study_name="other", direction="maximize")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpsearch", "import", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_warm_start(folder: Path) -> None:
    arguments = ["sqlite:///optuna.db", "--study", "past", "--into", "spec.yaml"]
    done = run(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["name"], said["n_trials"]) == ("warm", 3)
    (why,) = said["left_out"]
    assert "0.0001 is outside" in why
    store = open_store(f"sqlite:///{folder}/hpsearch.db")
    try:
        study = store.study("warm")
        trials = store.trials(study.id, TrialQuery()).items
        assert [(t.params, t.state, t.value) for t in trials] == [
            ({"lr": 0.1, "kind": "a"}, TrialState.COMPLETED, 0.25),
            ({"lr": 0.5, "kind": "a"}, TrialState.PRUNED, 2.0),
            ({"lr": 0.7, "kind": "a"}, TrialState.FAILED, None),
        ]
        assert store.stages(study.id)[0].n_trials == 4  # they take none of its room
    finally:
        store.close()
    again = run(folder, *arguments)
    assert again.returncode == 2
    assert "the study 'warm' has trials already: a warm start comes before them" in again.stderr


def test_a_copy(folder: Path) -> None:
    done = run(folder, "sqlite:///optuna.db", "--study", "past", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "mine: 4 trials" in done.stdout
    store = open_store(f"sqlite:///{folder}/hpsearch.db")
    try:
        trials = store.trials(store.study("mine").id, TrialQuery()).items
        assert [t.value for t in trials if t.state is TrialState.COMPLETED] == [0.25, 0.125]
    finally:
        store.close()
    again = run(folder, "sqlite:///optuna.db", "--study", "past", "--name", "mine")
    assert again.returncode == 2
    assert "there is a study 'mine' already: give --name another" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sqlite:///optuna.db"], "has 2 studies: name one with --study; it has "),
        (["sqlite:///optuna.db", "--study", "lost"], "has no study 'lost'; it has "),
        (["nosuch://u:secret@host/db"], "host/db cannot be read as a storage of Optuna"),
        (
            ["sqlite:///optuna.db", "--study", "other", "--into", "spec.yaml"],
            "other is to maximize its value, and loss",
        ),
        (["sqlite:///optuna.db", "--study", "past", "--into", "no.yaml"], "no.yaml cannot be read"),
        (["file", "--study", "past"], "belong to the URL of an Optuna storage"),
    ],
)
def test_bad_input(folder: Path, arguments: list[str], said: str) -> None:
    done = run(folder, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())
    assert "secret" not in done.stderr
