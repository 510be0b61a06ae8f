"""Preflight of a task: a sound net passes, and each fault is named."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from hpsearch.errors import OutOfMemory
from hpsearch.objective import TaskObjective
from hpsearch.space import Space
from hpsearch.spec import load_study
from hpsearch.training.preflight import Check
from hpsearch.training.task import Task, TaskPack, load_task, task_data
from hpsearch.training.task.preflight import preflight
from hpsearch.trial import Result
from hpsearch.worker.session import PreflightTask
from hpsearch.worker.task import TaskRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
LR = {"lr": {"type": "float", "low": 1e-3, "high": 1, "log": True}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Sound:
    """Three classes apart from each other, a batch norm, a dropout, and a width that is the task's own."""

    def data(self) -> Any:
        rng = np.random.default_rng(0)
        y = np.arange(150) % 3
        return rng.normal(size=(150, 6)) + y[:, None], y

    def model(self, params: dict[str, Any]) -> nn.Module:
        width = params.get("width", 16)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3)
        )


class Numbers(Sound):
    """A regression."""

    def data(self) -> Any:
        x = np.random.default_rng(0).normal(size=(150, 6))
        return x, x[:, 0] - 2 * x[:, 1]

    def model(self, params: dict[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


class Coder(Sound):
    """An auto-encoder, with a loss and metrics of its own."""

    def data(self) -> Any:
        x = np.random.default_rng(0).normal(size=(150, 6))
        return x, x

    def model(self, params: dict[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
        return {"worst": (outputs - targets).abs().max()}


def objective(**keys: Any) -> TaskObjective:
    document = {"kind": "task", "entrypoint": "nets:Net", "optimizer": {"kind": "adam", "lr": 0.01}, "batch_size": 16}
    return TaskObjective.model_validate(document | keys)


def checks(net: Any, space: dict[str, Any] = LR, **keys: Any) -> dict[str, Check]:
    of = objective(**keys)
    task = Task(of.entrypoint, net)
    data = task_data(task, validation=0.2, study_seed=0, numbers=of.loss.kind == "mse" and task.loss is None)
    found = preflight(of, TypeAdapter(Space).validate_python(space), study_seed=0, task=task, data=data)
    assert len({check.name for check in found}) == len(found)
    for check in found:
        assert check.message.endswith(".")
        assert check.status == "pass" or ":" in check.message, "what to do"
    return {check.name: check for check in found}


def not_passed(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in found.items() if check.status != "pass"}


ALL = ["data", "model", "initial_loss", "gradients", "lr_range", "overfit_20"]


def test_a_sound_net_passes_all() -> None:
    found = checks(Sound(), LR | {"width": {"type": "int", "low": 8, "high": 24}})
    assert list(found) == ALL
    assert not_passed(found) == {}
    # 6 × 16 + 16, twice 16 of the batch norm, 16 × 3 + 3
    assert found["model"].numbers == {"parameters": 195.0}
    assert found["initial_loss"].numbers["theory"] == pytest.approx(math.log(3))
    assert found["overfit_20"].numbers["accuracy"] == 1


def test_a_sound_regression_passes_all() -> None:
    found = checks(Numbers(), loss={"kind": "mse"})
    assert list(found) == ALL
    assert not_passed(found) == {}
    assert found["overfit_20"].numbers["loss_left"] <= 0.01


def test_a_sound_loss_of_its_own_passes_all() -> None:
    found = checks(Coder())
    assert list(found) == ["data", "model", "metrics", *ALL[2:]]
    assert not_passed(found) == {}
    assert set(found["metrics"].numbers) == {"worst"}


def test_the_example_passes() -> None:
    study = load_study(EXAMPLES / "my_resnet.yaml")
    of = study.objective
    assert isinstance(of, TaskObjective)
    task = load_task(of.entrypoint, [EXAMPLES])
    data = task_data(task, validation=of.validation, study_seed=0)
    found = preflight(of, study.space, study_seed=0, task=task, data=data)
    assert [check.name for check in found] == ALL
    assert "fail" not in {check.status for check in found}  # on a busy machine there are fewer steps


def test_equal_samples_and_one_target() -> None:
    class Equal(Sound):
        def data(self) -> Any:
            return np.ones((50, 6)), np.arange(50) % 3

    class OneTarget(Sound):
        def data(self) -> Any:
            return np.random.default_rng(0).normal(size=(50, 6)), np.zeros(50, dtype=int)

    found = checks(Equal())
    assert not_passed(found) == {"data": "fail"}
    assert list(found) == ["data"]
    assert checks(OneTarget())["data"].status == "warn"


def test_a_model_that_raises_or_does_not_fit() -> None:
    class Raises(Sound):
        def model(self, params: dict[str, Any]) -> nn.Module:
            raise KeyError("depth")

    class Narrow(Sound):
        def model(self, params: dict[str, Any]) -> nn.Module:
            return nn.Linear(6, 2)

    found = checks(Raises())
    assert list(found) == ["data", "model"]
    assert found["model"].status == "fail"
    assert "KeyError: 'depth' (test_task_preflight.py, line " in found["model"].message
    assert "y holds 2, but the model gives 2 scores" in checks(Narrow())["model"].message


def test_metrics_that_are_no_numbers() -> None:
    class Odd(Coder):
        def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
            return [1.0]

    found = checks(Odd())
    assert not_passed(found) == {"metrics": "fail"}
    assert "must return a dict" in found["metrics"].message


def test_an_initial_loss_off_its_theory_or_not_finite() -> None:
    class Scale(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    class Scaled(Sound):
        factor = 100.0

        def model(self, params: dict[str, Any]) -> nn.Module:
            return nn.Sequential(nn.Linear(6, 3), Scale(self.factor), Scale(self.factor))

    class Raises(Coder):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such thing")

    scaled = Scaled()
    assert checks(scaled)["initial_loss"].status == "warn"
    scaled.factor = 1e38
    found = checks(scaled)
    assert list(found)[-1] == "initial_loss"
    assert found["initial_loss"].status == "fail"
    assert "ValueError: no such thing" in checks(Raises())["initial_loss"].message


def test_parameters_without_a_gradient() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.used(x)
            return scores

    class Forgotten(Sound):
        def model(self, params: dict[str, Any]) -> nn.Module:
            return Net()

    class Root(Coder):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (outputs - outputs.detach()).square().sum().sqrt() + (outputs - targets).square().mean()

    found = checks(Forgotten())
    assert found["gradients"].status == "warn"
    assert "unused.weight, unused.bias:" in found["gradients"].message
    found = checks(Root())
    assert list(found)[-1] == "gradients"
    assert found["gradients"].status == "fail"
    assert "0.weight" in found["gradients"].message


def test_a_detached_net_fails() -> None:
    class Detached(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
            return super().forward(input).detach()

    class Cut(Sound):
        def model(self, params: dict[str, Any]) -> nn.Module:
            return Detached(6, 3)

    assert not_passed(checks(Cut())) == {"gradients": "fail"}


@pytest.mark.parametrize(
    ("low", "high", "status", "words"),
    [(1e-8, 1e-7, "warn", "raise the range"), (1e4, 1e5, "fail", "lower the range"), (1e-3, 1e-1, "pass", "useful")],
)
def test_the_range_of_the_rate(low: float, high: float, status: str, words: str) -> None:
    space = {"lr": {"type": "float", "low": low, "high": high, "log": True}}
    found = checks(Numbers(), space, loss={"kind": "mse"}, optimizer={"kind": "sgd"})
    assert found["lr_range"].status == status, found["lr_range"]
    assert words in found["lr_range"].message


def test_a_first_minibatch_unlike_the_others_is_not_taken_for_the_start() -> None:
    class Outliers(Numbers):
        def data(self) -> Any:
            x = np.random.default_rng(0).normal(size=(150, 6))
            return x, np.where(np.arange(150) % 15 == 7, 0.9, 0.1 * x[:, 0])

    space = {"lr": {"type": "float", "low": 1e-8, "high": 1e-7, "log": True}}
    seen = checks(Outliers(), space, loss={"kind": "mse"}, optimizer={"kind": "sgd"}, batch_size=4)["lr_range"]
    assert seen.numbers["initial_loss"] == pytest.approx(seen.numbers["loss_at_1e-08"], 0.01)
    assert "loss explode" not in seen.message


def test_a_loss_that_nothing_lowers() -> None:
    class Constant(Coder):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return 1 + 1e-6 * outputs.mean().tanh()

    found = checks(Constant())
    assert not_passed(found) == {"lr_range": "warn", "overfit_20": "fail"}
    assert "lowers the loss" in found["lr_range"].message


def test_a_loss_that_always_explodes() -> None:
    class Rising(torch.autograd.Function):
        """Its gradient points the wrong way."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return -1e12 * grads[0]

    class Upwards(Coder):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = Rising.apply((outputs - targets).square().mean())  # type: ignore[no-untyped-call]
            return loss

    found = checks(Upwards(), optimizer={"kind": "sgd"})
    assert not_passed(found) == {"lr_range": "fail", "overfit_20": "fail"}
    assert "explode" in found["lr_range"].message


def test_a_loss_below_zero_has_no_shares() -> None:
    class Below(Coder):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().loss(outputs, targets) - 2

    found = checks(Below())
    assert not_passed(found) == {}
    assert "not positive" in found["lr_range"].message


def test_a_net_that_cannot_learn_by_heart() -> None:
    class Blind(nn.Module):
        """Sees nothing of its inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bias + 0 * x[:, :3]

    class Sightless(Sound):
        def model(self, params: dict[str, Any]) -> nn.Module:
            return Blind()

    found = checks(Sightless())
    assert found["overfit_20"].status == "fail"
    assert "% of 20 samples in" in found["overfit_20"].message


def test_a_net_that_still_learns_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.training.task.preflight.OVERFIT_STEPS", 8)
    monkeypatch.setattr("hpsearch.training.task.preflight.FITTED", 1e-9)
    found = checks(Numbers(), loss={"kind": "mse"})
    assert not_passed(found) == {"overfit_20": "warn"}
    assert "still falling" in found["overfit_20"].message


def test_it_repeats() -> None:
    one, other = checks(Sound()), checks(Sound())  # short trainings may be stacked or not, by the clock
    assert [one[name] for name in ALL[:4]] == [other[name] for name in ALL[:4]]
    assert not_passed(one) == not_passed(other)


class FakeSession:
    """What a worker says to the server."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.checks: list[dict[str, Any]] = []

    def report(self, *args: Any) -> Any:
        raise AssertionError("a preflight trains no trial")

    def release(self, tokens: Any) -> None:
        raise AssertionError("a preflight has no trials")

    def finish(self, results: list[Result]) -> None:
        raise AssertionError("a preflight has no trials")

    def checked(self, task: PreflightTask, checks: list[dict[str, Any]]) -> None:
        self.checks = checks


def run(source: str, tmp_path: Path, allow: list[str]) -> list[dict[str, Any]]:
    (tmp_path / "checked_nets.py").write_text(source)
    sys.modules.pop("checked_nets", None)
    runner = TaskRunner(allow=allow, folders=[tmp_path])
    assert runner.checks
    session: Any = FakeSession()
    document = objective(entrypoint="checked_nets:Net").model_dump(mode="json")
    runner.preflight(PreflightTask("s", "token", document, LR, 0), session)
    found: list[dict[str, Any]] = session.checks
    return found


NET = """
import torch
class Net:
    def data(self):
        y = torch.arange(60) % 2
        return torch.randn(60, 4) + 3 * y[:, None], y
    def model(self, params):
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
"""


@pytest.fixture
def clean_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("clean_path")
def test_a_worker_checks_what_it_may_run(tmp_path: Path) -> None:
    found = run(NET, tmp_path, ["checked_nets:*"])
    assert [(check["name"], check["status"]) for check in found] == [(name, "pass") for name in ALL]


@pytest.mark.usefixtures("clean_path")
def test_a_worker_refuses_other_code(tmp_path: Path) -> None:
    (check,) = run("raise AssertionError('run')", tmp_path, ["others:*"])
    assert (check["name"], check["status"]) == ("allow", "fail")
    assert "--allow 'checked_nets:Net'" in check["message"]


@pytest.mark.usefixtures("clean_path")
def test_data_that_cannot_be_used_are_a_check(tmp_path: Path) -> None:
    (check,) = run(NET.replace("torch.randn(60", "torch.randn(50"), tmp_path, ["checked_nets:*"])
    assert (check["name"], check["status"]) == ("data", "fail")
    (check,) = run(NET.replace("return torch.randn(60, 4) + 3 * y[:, None], y", "return y"), tmp_path, ["*"])
    assert "data() must return (x, y)" in check["message"]


def test_a_slow_net_tries_fewer_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.training.task.preflight.SLOW", 0.0)
    found = checks(Sound())
    assert not_passed(found) == {}
    # three rates of the range, one decade beyond either end; best, useful from and to, and the loss at the start
    assert len(found["lr_range"].numbers) == 5 + 4


def test_a_net_out_of_memory_is_trained_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checks(Sound())["lr_range"].numbers

    class Small(TaskPack):
        def __init__(self, members: Any, *args: Any, **kwargs: Any) -> None:
            if len(members) > 4:
                raise OutOfMemory(len(members), "cpu")
            super().__init__(members, *args, **kwargs)

    monkeypatch.setattr("hpsearch.training.task.preflight.TaskPack", Small)
    found = checks(Sound())
    assert not_passed(found) == {}
    assert set(found["lr_range"].numbers) == set(whole)
