"""Bring your own net: the objective, the user's class, its data, and packs of its modules."""

from __future__ import annotations

import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hpsearch.allow import allowed
from hpsearch.errors import DataError, Interrupted, InvalidSpec
from hpsearch.objective import TaskObjective
from hpsearch.space import Params
from hpsearch.spec import parse_study
from hpsearch.training import EpochResult
from hpsearch.training.checkpoints import load_checkpoint, save_checkpoint
from hpsearch.training.streams import Purpose, torch_stream
from hpsearch.training.task import Task, TaskData, TaskMember, TaskPack, load_task, task_data


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def objective(**keys: Any) -> TaskObjective:
    document = {"kind": "task", "entrypoint": "nets:Net", "optimizer": {"lr": 0.05}, "batch_size": 16}
    return TaskObjective.model_validate(document | keys)


class Flat:
    """70 samples of six features in three classes, and an MLP."""

    def data(self) -> Any:
        rng = np.random.default_rng(0)
        y = np.arange(70) % 3
        return rng.normal(size=(70, 6)) + y[:, None], y

    def model(self, params: dict[str, Any]) -> nn.Module:
        width = params.get("width", 8)
        return nn.Sequential(
            nn.Linear(6, width), nn.Tanh(), nn.Dropout(params.get("dropout", 0.2)), nn.Linear(width, 3)
        )


class Images:
    """70 images of 6 × 6 in three classes, and a CNN with batch norm and dropout of whole maps."""

    def data(self) -> Any:
        rng = np.random.default_rng(1)
        y = np.arange(70) % 3
        x = rng.normal(size=(70, 1, 6, 6)) + y[:, None, None, None]
        return x[:50], y[:50], x[50:], y[50:]

    def model(self, params: dict[str, Any]) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout2d(0.3),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )


class Branching(Flat):
    """Which way it goes depends on the data."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.layer(x)
            return scores if scores.sum() > 0 else scores.tanh()

    def model(self, params: dict[str, Any]) -> nn.Module:
        return self.Net()


class Noisy(Flat):
    """Adds noise of torch's own generator in training."""

    class Net(Branching.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.layer(x + 0.1 * torch.randn_like(x) if self.training else x)
            return scores

    def model(self, params: dict[str, Any]) -> nn.Module:
        return self.Net()


class Hidden(Branching):
    """A number that differs between members, where nobody sees it."""

    class Holder:
        def __init__(self, scale: float) -> None:
            self.scale = scale

    class Scaled(Branching.Net):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.holder = Hidden.Holder(scale)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.layer(x) * self.holder.scale
            return scores

    def model(self, params: dict[str, Any]) -> nn.Module:
        return self.Scaled(params["scale"])


class Squares(Flat):
    """A regression with a loss and metrics of its own."""

    def data(self) -> Any:
        x = np.random.default_rng(2).normal(size=(60, 4))
        return x, x.sum(1)

    def model(self, params: dict[str, Any]) -> nn.Module:
        return nn.Linear(4, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) - targets).abs().mean()

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return {"worst": float((outputs.squeeze(1) - targets).abs().max())}


def task(made: type[Any]) -> tuple[Task, TaskData]:
    of = Task(f"nets:{made.__name__}", made())
    return of, task_data(of, validation=0.2, study_seed=0)


def members(params: list[dict[str, Any]], **keys: Any) -> list[TaskMember]:
    return [TaskMember(objective(**keys).with_params(p), 10 + k) for k, p in enumerate(params)]


RATES = [{"lr": 0.01}, {"lr": 0.1, "reg": 0.1}, {"lr": 0.03}, {"lr": 0.01}]


def train(pack: TaskPack, epochs: int = 3) -> list[EpochResult]:
    return [result for _ in range(epochs) for result in pack.train_epoch()]


def assert_equal(results: list[EpochResult], expected: list[EpochResult]) -> None:
    assert [(r.member, r.epoch) for r in results] == [(r.member, r.epoch) for r in expected]
    for one, other in zip(results, expected, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("made", [Flat, Images, Squares])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_pack_equals_its_members_alone(made: type[Any], kind: str) -> None:
    of, data = task(made)
    trials = members(RATES, optimizer={"kind": kind})
    pack = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
    assert pack.fallback is None
    results = train(pack)
    assert_equal(results, train(TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=False)))
    alone = train(TaskPack(trials[1:2], of, data, data_seed=1, epochs=3))
    assert [r.metrics for r in alone] == [
        pytest.approx(r.metrics, rel=1e-3, abs=1e-5) for r in results if r.member == 1
    ]
    assert len({r.metrics["train_loss"] for r in results}) == 12  # seeds and rates tell


def test_a_training_equals_a_plain_torch_loop() -> None:
    """Weights by torch's generator at the seed of the member; torch's own optimiser, with a constant rate."""
    of, data = task(Flat)
    trial = TaskMember(objective(params={"dropout": 0.0}, optimizer={"lr": 0.1, "momentum": 0.9}), 3)
    results = train(TaskPack([trial], of, data, data_seed=5, epochs=3))
    with torch.random.fork_rng():
        torch.manual_seed(torch_stream(3, Purpose.INITIALISATION).initial_seed())
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3))
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = data.train.samples, data.train.labels
    for epoch in (1, 2, 3):
        order = torch.randperm(56, generator=torch_stream(5, Purpose.ORDER, epoch))
        total = 0.0
        for start in range(0, 56, 16):
            index = order[start : start + 16]
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            total += loss.item() * len(index)
            sgd.zero_grad()
            torch.autograd.backward(loss)
            sgd.step()
        with torch.no_grad():
            validation = nn.functional.cross_entropy(net(data.validation.samples), data.validation.labels)
        assert results[epoch - 1].metrics["train_loss"] == pytest.approx(total / 56, rel=1e-4)
        assert results[epoch - 1].metrics["val_loss"] == pytest.approx(float(validation), rel=1e-4)


def test_nothing_global_leaks() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    of, data = task(Noisy)
    train(TaskPack(members(RATES), of, data, data_seed=1, epochs=3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Branching, "vmap cannot run them \\(RuntimeError: vmap: It looks like you're attempting to use a Tensor in "),
        (Noisy, "vmap cannot run them \\(RuntimeError: vmap: called random operation while in randomness error mode"),
    ],
)
def test_what_vmap_cannot_run_is_trained_one_at_a_time(
    made: type[Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    of, data = task(made)
    trials = members(RATES)
    with caplog.at_level(logging.WARNING):
        pack = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
        TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
    assert len(caplog.messages) == 1  # once is enough
    assert f"nets:{made.__name__}: its modules are trained one at a time: " in caplog.text
    assert pack.fallback is not None
    assert re.match(said, pack.fallback), pack.fallback
    results = train(pack)
    alone = train(TaskPack(trials[2:3], of, data, data_seed=1, epochs=3))
    assert [r.metrics for r in alone] == [r.metrics for r in results if r.member == 2]


def test_modules_whose_numbers_differ_under_vmap_are_trained_one_at_a_time() -> None:
    of, data = task(Hidden)
    trials = members([{"scale": 1.0}, {"scale": 2.0}])
    pack = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
    assert pack.fallback == "with vmap the loss differs from that of the module by itself"
    assert_equal(train(pack), train(TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=False)))


def test_other_shapes_and_other_rates_of_dropout_share_a_pack_but_no_stack() -> None:
    of, data = task(Flat)
    trials = members([{"width": 4}, {"width": 8}, {"dropout": 0.5}, {"width": 8, "lr": 0.1}])
    pack = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
    assert pack.fallback is None
    assert_equal(train(pack), train(TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=False)))


def test_members_leave_and_diverge_without_touching_their_neighbours() -> None:
    of, data = task(Flat)
    trials = members([{"lr": 0.01}, {"lr": 1e30}, {"lr": 0.1}, {"lr": 0.03}])
    pack = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=True)
    first = pack.train_epoch()
    assert [r.diverged is not None for r in first] == [False, True, False, False]
    assert pack.live == [0, 2, 3]
    pack.drop(0)
    pack.drop(0)
    rest = train(pack, 2)
    assert [r.member for r in rest] == [2, 3, 2, 3]
    expected = train(TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=False))
    assert_equal(rest, [r for r in expected if r.epoch > 1 and r.member > 1])
    with pytest.raises(ValueError, match="members 0 to 3, not 4"):
        pack.drop(4)
    with pytest.raises(ValueError, match="all of its 3 epochs"):
        pack.train_epoch()


def test_interrupted_between_minibatches() -> None:
    of, data = task(Flat)
    pack = TaskPack(members(RATES), of, data, data_seed=1, epochs=3, should_stop=lambda: True)
    with pytest.raises(Interrupted):
        pack.train_epoch()


@pytest.mark.parametrize("stacked", [True, False])
def test_resuming_equals_never_having_stopped(tmp_path: Path, stacked: bool) -> None:
    of, data = task(Images)
    trials = members(RATES, optimizer={"kind": "adam"})
    whole = train(TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=stacked))
    begun = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=stacked)
    begun.train_epoch()
    for k in range(4):
        save_checkpoint(tmp_path / str(k), begun.checkpoint(k))
    kept = [load_checkpoint(tmp_path / str(k)) for k in range(4)]
    resumed = TaskPack(trials, of, data, data_seed=1, epochs=3, stacked=stacked)
    resumed.resume(kept)
    assert train(resumed, 2) == whole[4:]
    other = TaskPack(members(RATES), of, data, data_seed=1, epochs=3)
    with pytest.raises(DataError, match="another architecture"):
        other.resume(kept)


def test_own_loss_and_metrics_are_reported() -> None:
    of, data = task(Squares)
    (result,) = TaskPack(members([{}]), of, data, data_seed=1, epochs=1).train_epoch()
    assert {n for n in result.metrics if "/" not in n} == {
        "train_loss", "train_mae", "val_loss", "val_mae", "val_r2", "worst",
    }  # fmt: skip
    # The loss is the mean absolute error.
    assert result.metrics["val_loss"] == pytest.approx(result.metrics["val_mae"])
    assert result.metrics["worst"] >= result.metrics["val_mae"]


def test_metrics_of_a_classifier_and_diagnostics() -> None:
    of, data = task(Flat)
    (result,) = TaskPack(members([{}]), of, data, data_seed=1, epochs=1).train_epoch()
    assert set(result.metrics) == {
        "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5_accuracy", "val_macro_f1",
        "diag/gradient_norm", "diag/update_ratio", "diag/initial_loss", "diag/chance_loss",
    }  # fmt: skip
    assert result.metrics["diag/chance_loss"] == pytest.approx(math.log(3))


def test_folds_hold_every_sample_once() -> None:
    _, data = task(Flat)
    folds = data.folds(4)
    assert sorted(n for fold in folds for n in fold.validation_index) == list(range(70))
    for fold in folds:
        assert len(fold.train_index) + len(fold.validation_index) == 70
        assert np.bincount(fold.validation.labels.numpy()).tolist() in ([6, 6, 6], [6, 6, 5], [6, 5, 6], [5, 6, 6])
    with pytest.raises(DataError, match="71 folds are too many: class 1 has 23 samples"):
        data.folds(71)


# Bad input


def given(data: Any, model: Any = None, loss: str = "softmax") -> None:
    """Makes a pack of a task with this data (and module)."""

    class Given(Flat):
        def data(self) -> Any:
            return data

        def model(self, params: dict[str, Any]) -> Any:
            return nn.Linear(6, 3) if model is None else model

    of = Task("nets:Given", Given())
    numbers = task_data(of, validation=0.2, study_seed=0, numbers=loss == "mse")
    TaskPack(members([{}], loss={"kind": loss}), of, numbers, data_seed=0, epochs=1)


X, Y = np.ones((10, 6)), np.arange(10) % 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (X, r"data\(\) must return \(x, y\), or .*, but returns a ndarray"),
        ((X, Y, X), "but returns a tuple of 3"),
        ((X, Y[:9]), "x has 10 samples and its targets are 9"),
        ((X, Y, X[:, :5], Y), r"x of training and validation differ: \(10, 6\) .* and \(10, 5\)"),
        ((X, 3), "y is one number: it needs an axis of samples"),
        ((["a"], [1]), "nets:Given: x as a tensor failed: "),
        ((np.where(np.arange(10)[:, None] == 4, np.nan, X), Y), r"x holds a value that is no finite .* in sample 4 "),
        ((X[:1], Y[:1]), "both splits need at least one"),
        ((X, Y + 1), r"y holds 3, but the model gives 3 scores: classes are whole numbers from 0 to 2"),
        ((X, Y / 2), r"the loss softmax needs outputs \(batch, classes\).* y \(10,\) of torch.float32"),
        ((X[:, :5], Y), "nets:Given: the model failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_data_of_a_wrong_shape_is_refused(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        given(data)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (5, r"model\(params\) returns int, and not a nn.Module"),
        (nn.Identity(), "the model has no parameters to train"),
        (nn.Sequential(nn.Linear(6, 3), nn.Flatten(0)), r"one tensor \(batch, …\), but for 2 samples gives \(6,\)"),
    ],
)
def test_models_of_a_wrong_shape_are_refused(model: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        given((X, Y), model)


def test_the_loss_mse_takes_whole_targets_but_one_output() -> None:
    given((X, Y), nn.Linear(6, 1), "mse")
    with pytest.raises(DataError, match="the loss mse needs outputs"):
        given((X, Y), None, "mse")


BROKEN = """
class Whole:
    def data(self): raise ValueError("no disk\\nat all")
    def model(self, params): return 1 / 0
class Half:
    def data(self): pass
def function(): pass
class Unmade(Whole):
    def __init__(self): raise KeyError("x")
"""


@pytest.mark.parametrize(
    ("entrypoint", "said"),
    [
        ("no_such_module_of_mine:Net", "there is no module 'no_such_module_of_mine' for the entry point .* --path"),
        ("broken_nets:Hole", "unknown class 'Hole'; did you mean 'Whole'"),
        ("broken_nets:function", "unknown class 'function'. Known: Half, Unmade, Whole"),
        ("broken_nets:Half", r"has no method model\(self, params\)"),
        ("broken_nets:Unmade", r"making it failed: KeyError: 'x' \(broken_nets.py, line 9\)"),
        ("unimportable:Net", "importing unimportable failed: ModuleNotFoundError: No module named 'not_installed'"),
        ("unparsable:Net", "importing unparsable failed: SyntaxError: "),
    ],
)
def test_bad_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entrypoint: str, said: str) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "broken_nets.py").write_text(BROKEN)
    (tmp_path / "unimportable.py").write_text("import not_installed")
    (tmp_path / "unparsable.py").write_text("class")
    with pytest.raises(DataError, match=said):
        load_task(entrypoint, [tmp_path])


def test_errors_of_the_users_code_are_short_and_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "broken_nets.py").write_text(BROKEN)
    of = load_task("broken_nets:Whole", [tmp_path])
    with pytest.raises(DataError, match=r"data\(\) failed: ValueError: no disk \(broken_nets.py, line 3\)$"):
        of.data(0)
    with pytest.raises(DataError, match=r"model\({'width': 3}\) failed: ZeroDivisionError: .* line 4\)$"):
        of.model({"width": 3}, 0)


# The objective


def test_params_set_fields_or_go_to_the_model() -> None:
    params: Params = {
        "lr": 0.5,
        "optimizer.momentum": 0.1,
        "loss.label_smoothing": 0.2,
        "batch_size": 7,
        "width": 3,
        "a.b": 1,
    }
    o = objective(params={"width": 1, "depth": 2}).with_params(params)
    assert (o.optimizer.lr, o.optimizer.momentum, o.loss.label_smoothing, o.batch_size) == (0.5, 0.1, 0.2, 7)
    assert o.params == {"width": 3, "depth": 2, "a.b": 1}
    with pytest.raises(ValidationError):
        objective().with_params({"lr": -1.0})


def study(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "objective": {"kind": "task", "entrypoint": "my_nets:Net"},
        "metric": {"name": "anything", "direction": "maximize"},
        "space": {"lr": {"type": "float", "low": 0.1, "high": 1}, "width": {"type": "int", "low": 1, "high": 9}},
        "stages": [{"name": "a", "trials": 1, "epochs": 1}],
        **changes,
    }


def test_a_study_of_a_task() -> None:
    assert isinstance(parse_study(study()).objective, TaskObjective)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"kind": "task", "entrypoint": "my_nets.Net"}}, "objective.entrypoint"),
        ({"objective": {"kind": "task"}}, "objective.entrypoint: this key is missing"),
        ({"objective": {"kind": "task", "entrypoint": "a:B", "params": {"x": math.inf}}}, "must be finite"),
        ({"space": {"optimizer.momentun": {"type": "float", "low": 0, "high": 1}}}, "mean 'optimizer.momentum'"),
        ({"space": {"entrypoint": {"type": "categorical", "choices": ["a:B"]}}}, "unknown parameter 'entrypoint'"),
        ({"space": {"batch_size": {"type": "int", "low": 0, "high": 8}}}, "space.batch_size: 0 does not fit"),
        ({"stages": [{"name": "a", "trials": 1}]}, "has no budget of epochs"),
    ],
)
def test_bad_studies_of_a_task(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_study(study(**changes))
    assert said in str(caught.value)


def test_patterns_of_entry_points() -> None:
    assert allowed("nets.mine:Net", ["other:*", "nets.*:N?t"])
    assert not allowed("nets:Net", [])
    assert not allowed("nets:Net", ["Nets:*", "nets"])
