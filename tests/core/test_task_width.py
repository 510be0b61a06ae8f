"""Packs of a user's net: their width, the memory that bounds it, and when a worker measures it."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpsearch.objective import TaskObjective
from hpsearch.training.pack import never
from hpsearch.training.task import Task, TaskData, architecture, find_task_width, load_task, task_data
from hpsearch.training.task.stack import Setting
from hpsearch.training.task.width import bytes_per_member
from hpsearch.trial import Action, Decision, Report, Result, TrialState
from hpsearch.worker.session import LeasedTrial
from hpsearch.worker.task import FIRST_WIDTH, TaskRunner

GIB = 1 << 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "hpsearch" / "widths"


def objective(**keys: Any) -> TaskObjective:
    return TaskObjective.model_validate({"kind": "task", "entrypoint": "nets:Net", "batch_size": 16, **keys})


class Net:
    """Samples of six features in three classes, and an MLP."""

    def data(self) -> Any:
        y = np.arange(70) % 3
        return np.random.default_rng(0).normal(size=(70, 6)) + y[:, None], y

    def model(self, params: dict[str, Any]) -> nn.Module:
        width = params.get("width", 8)
        return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 3))


class Branching(Net):
    """What vmap cannot run."""

    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = super().forward(x)
            return scores if scores.sum() > 0 else scores.tanh()

    def model(self, params: dict[str, Any]) -> nn.Module:
        return self.Layer(6, 3)


class Raising(Net):
    """A model that can be made four times."""

    n_made = 0

    def model(self, params: dict[str, Any]) -> nn.Module:
        self.n_made += 1
        if self.n_made > 4:
            raise OSError("no more handles")
        return super().model(params)


def task(made: type[Any] = Net) -> tuple[Task, TaskData]:
    of = Task("nets:Net", made())
    return of, task_data(of, validation=0.2, study_seed=0)


def width(of: tuple[Task, TaskData], *, memory_budget: int = GIB, **keys: Any) -> int:
    return find_task_width(objective(**keys), *of, device="cpu", memory_budget=memory_budget)


def n_bytes(of: tuple[Task, TaskData], **keys: Any) -> int:
    o = objective(**keys)
    return bytes_per_member(o, Setting(of[0], of[1].train, of[1].validation, 0, 1, o.batch_size, "cpu", never))


def test_bytes_per_member_by_hand() -> None:
    # 18 weights and 3 biases of four bytes, six copies; a linear layer keeps its inputs, which all members share.
    assert n_bytes(task(Branching)) == 6 * 4 * 21
    # 56 + 27 numbers learned; of each of 16 samples 8 outputs of tanh, the mask of dropout and what comes of it.
    assert n_bytes(task()) == 6 * 4 * (83 + 16 * 3 * 8)
    assert n_bytes(task(), params={"width": 4}, batch_size=5) == 6 * 4 * (43 + 5 * 3 * 4)


def test_a_small_net_gains_from_company_within_its_memory(cache: Path) -> None:
    of = task()
    assert width(of) > 1
    assert width(of, memory_budget=3 * n_bytes(of)) <= 2
    assert width(of, memory_budget=0) == 1
    assert len(list(cache.iterdir())) == 3


def test_what_vmap_cannot_run_is_not_measured(cache: Path) -> None:
    assert width(task(Branching)) == 1
    assert not cache.exists()


def test_code_that_raises_is_no_error_here(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert width(task(Raising)) == 1
    assert (
        "could not be measured: nets:Net: model({}) failed: OSError: no more handles (test_task_width.py, line "
        in caplog.text
    )
    assert not cache.exists()


SOURCE = """
import torch
class Net:
    def data(self):
        y = torch.arange(60) % 2
        return torch.randn(60, 4) + 3 * y[:, None], y
    def model(self, params):
        return torch.nn.Linear(4, 2)
"""


def loaded(folder: Path, source: str = SOURCE) -> tuple[Task, TaskData]:
    folder.mkdir()
    (folder / "measured_nets.py").write_text(source)
    sys.modules.pop("measured_nets", None)
    of = load_task("measured_nets:Net", [folder])
    return of, task_data(of, validation=0.2, study_seed=0)


def test_the_answer_is_remembered_for_the_same_code_and_shapes(tmp_path: Path, cache: Path) -> None:
    of = loaded(tmp_path / "a")
    width(of, memory_budget=GIB)
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"1": 1.0, "2": 5.0}))
    # What a member may have of its own is not in the key; nor is where the code lies.
    assert width(of, optimizer={"lr": 0.5, "momentum": 0.1}) == 2
    assert width(loaded(tmp_path / "b")) == 2
    others: list[Any] = [
        (of, {"batch_size": 8}),
        (of, {"optimizer": {"kind": "adam"}}),
        (of, {"loss": {"kind": "hinge"}}),
    ]
    others += [(loaded(tmp_path / "c", SOURCE + "# another\n"), {})]
    for n, (other, keys) in enumerate(others, start=2):
        width(other, memory_budget=GIB, **keys)
        assert len(list(cache.iterdir())) == n


def test_the_architecture_is_what_decides_whether_nets_can_be_stacked() -> None:
    of = task()
    same = architecture(objective(), *of)
    assert architecture(objective(params={"width": 8, "unused": 1}, batch_size=3), *of) == same
    assert architecture(objective(params={"width": 9}), *of) != same


# The worker


class FakeChannel:
    """A server that wants every trial to go on."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.results: list[Result] = []

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        return {report.token: Decision(report.token, Action.CONTINUE) for report in reports}

    def finish(self, results: Sequence[Result]) -> list[Any]:
        self.results += results
        return []

    def release(self, tokens: Sequence[str]) -> None:
        assert not tokens

    def log(self, texts: Any) -> None:
        """Nothing is kept."""


def leases(n: int, *, seeds: int = 1, **params: Any) -> list[LeasedTrial]:
    document = objective(entrypoint="measured_nets:Net").model_dump(mode="json")
    first = LeasedTrial(
        study="s", stage="a", trial=0, attempt=1, token="0", params=params, epochs=1, folds=None, seeds=seeds, seed=7,
        objective=document, metric={"name": "val_loss", "direction": "minimize"}, study_seed=0, data_seed=0,
        lease_seconds=9,
    )  # fmt: skip
    return [replace(first, trial=i, token=str(i), seed=i, params={**params, "lr": 0.01 * (1 + i)}) for i in range(n)]


def run(runner: TaskRunner, trials: list[LeasedTrial]) -> list[Result]:
    channel: Any = FakeChannel()
    runner.run(trials, channel)
    results: list[Result] = channel.results
    return sorted(results, key=lambda result: int(result.token))


@pytest.fixture
def runner(tmp_path: Path) -> TaskRunner:
    loaded(tmp_path / "nets")
    return TaskRunner(allow=["measured_nets:*"], folders=[tmp_path / "nets"])


def test_a_worker_measures_an_architecture_that_it_meets_twice(runner: TaskRunner, cache: Path) -> None:
    assert runner.capacity == FIRST_WIDTH
    run(runner, leases(2))
    assert runner.capacity == FIRST_WIDTH
    assert not cache.exists()
    run(runner, leases(2))
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"1": 1.0, "2": 1.5, "4": 5.0}))
    run(runner, leases(2, unused=1))  # other params, the same net
    assert len(list(cache.iterdir())) == 1
    measured = runner.capacity
    run(runner, leases(1, seeds=3))  # trials of three members each are another kind
    assert runner.capacity == FIRST_WIDTH
    run(runner, leases(1, seeds=3))
    assert runner.capacity == 4 // 3
    run(runner, leases(1))
    assert runner.capacity == measured


def test_packs_of_the_width_found_give_the_numbers_of_one_alone(runner: TaskRunner, cache: Path) -> None:
    run(runner, leases(1))
    run(runner, leases(1))
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"1": 1.0, "2": 1.5, "4": 5.0}))
    again = TaskRunner(allow=["measured_nets:*"], width=None)
    run(again, leases(1))
    results = run(again, leases(6))  # a pack of four, and one of two
    assert again.capacity == 4
    assert [result.state for result in results] == [TrialState.COMPLETED] * 6
    alone = run(TaskRunner(allow=["measured_nets:*"], width=1), leases(6))
    assert [r.value for r in results] == [pytest.approx(r.value, rel=1e-4) for r in alone]


def test_a_net_that_cannot_be_made_fails_alone(tmp_path: Path) -> None:
    loaded(tmp_path / "some", SOURCE.replace("Linear(4, 2)", "Linear(4, params['units'])"))
    runner = TaskRunner(allow=["measured_nets:*"], folders=[tmp_path / "some"])
    good, bad = leases(2, units=2)
    results = run(runner, [good, replace(bad, params={})])
    assert [result.state for result in results] == [TrialState.COMPLETED, TrialState.FAILED]
    assert "KeyError: 'units' (measured_nets.py, line 8)" in (results[1].reason or "")
