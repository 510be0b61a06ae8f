"""Packs: equal to trials alone and to a plain torch loop; divergence, leaving, stopping."""

import math
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hpsearch.errors import OutOfMemory
from hpsearch.objective import CLASSIFICATION_METRICS, REGRESSION_METRICS, TrainObjective
from hpsearch.training import Dataset, EpochResult, Interrupted, Member, Pack, load_dataset, shape_key
from hpsearch.training.devices import memory_budget
from hpsearch.training.samples import Samples
from hpsearch.training.streams import Purpose, torch_stream


def objective(**keys: Any) -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, **keys})


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(objective(), study_seed=0)


def tiny(n_train: int = 20, n_validation: int = 10) -> Dataset:
    """Random samples of six features in three classes."""
    rng = np.random.default_rng(0)
    n = n_train + n_validation
    samples = Samples(rng.normal(size=(n, 6)).astype(np.float32), np.arange(n) % 3, 3)
    return Dataset(samples, np.arange(n_train), np.arange(n_train, n), device="cpu")


def train(pack: Pack, epochs: int) -> list[list[EpochResult]]:
    return [pack.train_epoch() for _ in range(epochs)]


def members(n: int, base: TrainObjective, diverging: int = -1) -> list[Member]:
    """Trials that differ in every number that a member may have of its own."""
    rng = np.random.default_rng(n)
    found = []
    for k in range(n):
        params: dict[str, Any] = {
            "lr": 10 ** rng.uniform(-3.5, -2),
            "reg": 10 ** rng.uniform(-4, 0.5),
            "optimizer.momentum": rng.uniform(0, 0.9),
            "optimizer.lr_decay": rng.uniform(0.5, 1),
        }
        if k == diverging:
            params["lr"] = 1e6
        found.append(Member(base.with_params(params), seed=100 + k))
    return found


def assert_same(one: EpochResult, other: EpochResult, n_samples: int = 359) -> None:
    assert one.epoch == other.epoch
    assert (one.diverged is None) == (other.diverged is None)
    for name, value in one.metrics.items():
        # Rounding may turn a tie in one sample, seldom in more.
        tolerance = {"abs": 1.01 / n_samples} if name.endswith("accuracy") else {"rel": 1e-4}
        assert other.metrics[name] == pytest.approx(value, **tolerance, nan_ok=True), name


@pytest.mark.parametrize("hidden", [[], [50], [20, 15]])
@pytest.mark.parametrize("width", [1, 3, 16])
def test_a_trial_in_a_pack_equals_the_trial_alone(digits: Dataset, width: int, hidden: list[int]) -> None:
    base = objective(model={"kind": "mlp", "hidden": hidden})
    diverging = 1 if width > 1 else -1
    trials = members(width, base, diverging)
    pack = Pack(trials, digits, data_seed=5, epochs=4)
    packed = train(pack, 2)
    if width > 3:
        pack.drop(0)
        pack.drop(7)
    packed += train(pack, 2)
    left = {0: 2, 7: 2} if width > 3 else {}
    for k, trial in enumerate(trials):
        alone = Pack([trial], digits, data_seed=5, epochs=4)
        own = [result for epoch in packed for result in epoch if result.member == k]
        expected = [result for epoch in train(alone, 4) for result in epoch]
        if k == diverging:
            assert len(own) == 1
            assert own[0].diverged is not None
        else:
            assert len(own) == left.get(k, 4)
        for one, other in zip(own, expected, strict=False):
            assert_same(one, other)


def test_the_same_seed_gives_the_same_bits(digits: Dataset) -> None:
    first, second = (train(Pack(members(3, objective()), digits, data_seed=1, epochs=2), 2) for _ in range(2))
    assert first == second


def test_seeds_change_the_weights_and_data_seeds_the_order(digits: Dataset) -> None:
    o = objective(optimizer={"lr": 0.003})

    def loss(seed: int, data_seed: int) -> float:
        return Pack([Member(o, seed)], digits, data_seed=data_seed, epochs=1).train_epoch()[0].metrics["val_loss"]

    assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3


def test_a_whole_training_equals_a_plain_torch_loop() -> None:
    """nn.Sequential, optim.SGD and CrossEntropyLoss on the same minibatches, batch 8 of 20 so the last is of 4."""
    dataset = tiny()
    lr, momentum, decay, l2 = 0.05, 0.9, 0.5, 0.1
    o = objective(
        model={"kind": "mlp", "hidden": [5]},
        optimizer={"lr": lr, "momentum": momentum, "lr_decay": decay},
        regularization={"l2": l2},
        batch_size=8,
    )
    pack = Pack([Member(o, 3)], dataset, data_seed=9, epochs=3)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    for theirs, ours in zip(net.parameters(), pack.model.parameters, strict=True):
        theirs.data.copy_(ours.value[0].reshape(theirs.shape))
    splits = dataset.prepared(o.preprocess)
    x, y = splits.train.samples, splits.train.labels
    cross_entropy = torch.nn.CrossEntropyLoss()
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for epoch in (1, 2, 3):
        order = torch.randperm(20, generator=torch_stream(9, Purpose.ORDER, epoch))
        total, correct = 0.0, 0
        for index in (order[:8], order[8:16], order[16:]):
            scores = net(x[index])
            data_loss = cross_entropy(scores, y[index])
            total += data_loss.item() * len(index)
            correct += int((scores.argmax(1) == y[index]).sum())
            penalty = sum((p.square().sum() for p in net.parameters() if p.dim() == 2), torch.tensor(0.0))
            net.zero_grad()
            torch.autograd.backward(data_loss + 0.5 * l2 * penalty)
            # torch.optim.SGD scales the velocity by the lr of the day, the lecture by that of its step.
            for p, v in zip(net.parameters(), velocity, strict=True):
                assert p.grad is not None
                v.mul_(momentum).sub_(lr * decay ** (epoch - 1) * p.grad)
                p.data.add_(v)
        with torch.no_grad():
            scores = net(splits.validation.samples)
        (result,) = pack.train_epoch()
        expected = {
            "train_loss": total / 20,
            "train_accuracy": correct / 20,
            "val_loss": cross_entropy(scores, splits.validation.labels).item(),
            "val_accuracy": (scores.argmax(1) == splits.validation.labels).float().mean().item(),
        }
        assert {name: result.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        assert result.epoch == epoch


def test_training_equals_torch_optim_sgd() -> None:
    """With a constant lr the two conventions of momentum are one."""
    dataset = tiny()
    o = objective(
        model={"kind": "mlp", "hidden": []},
        optimizer={"lr": 0.1, "momentum": 0.9},
        regularization={"l2": 0.01},
        batch_size=100,
        preprocess=[],
    )
    pack = Pack([Member(o, 3)], dataset, data_seed=9, epochs=5)
    net = torch.nn.Linear(6, 3)
    net.weight.data.copy_(pack.model.parameters[0].value[0])
    net.bias.data.zero_()
    groups: list[dict[str, Any]] = [{"params": [net.weight], "weight_decay": 0.01}, {"params": [net.bias]}]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    train_split = dataset.prepared([]).train
    for result in train(pack, 5):
        loss = torch.nn.functional.cross_entropy(net(train_split.samples), train_split.labels)
        assert result[0].metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
        sgd.zero_grad()
        torch.autograd.backward(loss)
        sgd.step()


def test_loss_starts_near_ln_c(digits: Dataset) -> None:
    o = objective(optimizer={"lr": 0.0})
    results = Pack([Member(o, seed) for seed in range(8)], digits, data_seed=0, epochs=1).train_epoch()
    # Scores of standard deviation 0.3 add 0.3² / 2 on average.
    mean = sum(result.metrics["train_loss"] for result in results) / 8
    assert mean == pytest.approx(math.log(10) + 0.045, abs=0.05)


def test_twenty_samples_are_overfitted(digits: Dataset) -> None:
    o = objective(data={"source": "digits", "train": 20}, optimizer={"lr": 0.01})
    pack = Pack([Member(o, 0)], load_dataset(o, study_seed=0), data_seed=0, epochs=60)
    last = train(pack, 60)[-1][0]
    assert last.metrics["train_accuracy"] == 1.0
    assert last.metrics["train_loss"] < 0.05


def test_digits_are_learned(digits: Dataset) -> None:
    pack = Pack([Member(objective(optimizer={"lr": 0.01}), 0)], digits, data_seed=0, epochs=5)
    assert train(pack, 5)[-1][0].metrics["val_accuracy"] > 0.9


def test_regularisation_shrinks_the_weights_and_raises_the_loss(digits: Dataset) -> None:
    base = objective(optimizer={"lr": 0.005})
    trials = [Member(base.with_params({"reg": reg}), 0) for reg in (0.0, 1.0, 10.0)]
    pack = Pack(trials, digits, data_seed=0, epochs=5)
    losses = [result.metrics["train_loss"] for result in train(pack, 5)[-1]]
    assert losses == sorted(losses)
    weights = [p.value.flatten(1) for p in pack.model.parameters if p.penalised]
    norms = torch.cat(weights, dim=1).norm(dim=1).tolist()
    assert norms == sorted(norms, reverse=True)


def test_a_diverged_member_says_why_and_leaves(digits: Dataset) -> None:
    base = objective()
    trials = [Member(base.with_params({"lr": lr}), 0) for lr in (1e6, 0.01)]
    pack = Pack(trials, digits, data_seed=0, epochs=2)
    exploded, fine = pack.train_epoch()
    assert exploded.diverged == "in epoch 1 the train_loss is nan: it must be a finite number"
    assert fine.diverged is None
    assert pack.live == [1]
    assert [result.member for result in pack.train_epoch()] == [1]


def test_a_loss_over_three_times_its_start_is_diverged(digits: Dataset) -> None:
    o = objective(optimizer={"lr": 1.0, "momentum": 0.0})
    (result,) = Pack([Member(o, 0)], digits, data_seed=0, epochs=1).train_epoch()
    assert math.isfinite(result.metrics["train_loss"])
    assert result.diverged is not None
    assert result.diverged.startswith("in epoch 1 the total loss is ")
    assert "over 3 times its start of 2." in result.diverged


def test_a_growing_penalty_alone_is_divergence() -> None:
    # Inputs of zero give no gradient to the weights: per step they are multiplied by 1 - 0.5 · 5 = -1.5.
    zeros = Samples(np.zeros((12, 2), np.float32), np.arange(12) % 2, 2)
    dataset = Dataset(zeros, np.arange(10), np.arange(10, 12), device="cpu")
    o = objective(
        model={"kind": "mlp", "hidden": []},
        optimizer={"lr": 0.5, "momentum": 0.0},
        regularization={"l2": 5.0},
        batch_size=1,
    )
    results = [result for epoch in train(Pack([Member(o, 0)], dataset, data_seed=0, epochs=5), 5) for result in epoch]
    assert results[-1].diverged is not None
    assert " penalty)" in results[-1].diverged


def test_dropping_is_harmless_twice_and_everyone_may_leave(digits: Dataset) -> None:
    pack = Pack(members(3, objective()), digits, data_seed=0, epochs=3)
    pack.drop(1)
    pack.drop(1)
    assert pack.live == [0, 2]
    assert [result.member for result in pack.train_epoch()] == [0, 2]
    pack.drop(0)
    pack.drop(2)
    assert pack.train_epoch() == []
    with pytest.raises(ValueError, match="members 0 to 2, not 3"):
        pack.drop(3)


def test_epochs_are_as_many_as_said(digits: Dataset) -> None:
    pack = Pack(members(1, objective()), digits, data_seed=0, epochs=1)
    pack.train_epoch()
    with pytest.raises(ValueError, match="all of its 1 epochs"):
        pack.train_epoch()


def after(n_calls: int) -> Callable[[], bool]:
    calls = iter(range(n_calls))
    return lambda: next(calls, None) is None


def test_interrupted_between_minibatches(digits: Dataset) -> None:
    pack = Pack(members(2, objective()), digits, data_seed=0, epochs=2, should_stop=after(20))
    assert len(pack.train_epoch()) == 2  # 1438 samples are 15 minibatches of at most 100
    with pytest.raises(Interrupted, match="epoch 2"):
        pack.train_epoch()


def test_members_of_other_shapes_are_refused(digits: Dataset) -> None:
    other = objective(model={"kind": "mlp", "hidden": [51]})
    with pytest.raises(ValueError, match="shape_key"):
        Pack([Member(objective(), 0), Member(other, 0)], digits, data_seed=0, epochs=1)
    with pytest.raises(ValueError, match="at least one"):
        Pack([], digits, data_seed=0, epochs=1)


def test_shape_key_holds_what_tensors_depend_on() -> None:
    base = objective()
    same = base.with_params({"lr": 0.5, "reg": 1.0, "optimizer.momentum": 0.1, "optimizer.lr_decay": 0.5})
    assert shape_key(same) == shape_key(base)
    assert hash(shape_key(same)) == hash(shape_key(base))
    others = [
        objective(model={"kind": "mlp", "hidden": [50, 50]}),
        objective(batch_size=50),
        objective(preprocess=[]),
        objective(data={"source": "digits", "validation": 100}),
    ]
    assert len({shape_key(o) for o in [base, *others]}) == 5


# Every system, in company and alone


def images(n_train: int = 26, n_validation: int = 10) -> Dataset:
    """Random images of 6 × 6 pixels and two channels in three classes."""
    rng = np.random.default_rng(0)
    n = n_train + n_validation
    samples = Samples(rng.normal(size=(n, 6, 6, 2)).astype(np.float32), np.arange(n) % 3, 3)
    return Dataset(samples, np.arange(n_train), np.arange(n_train, n), device="cpu")


MLP = {"kind": "mlp", "hidden": [5]}
SYSTEMS: dict[str, dict[str, Any]] = {
    **{a: {"model": {**MLP, "activation": a}} for a in ("sigmoid", "tanh", "leaky_relu", "prelu", "elu", "maxout")},
    **{a: {"model": {**MLP, "activation": a}} for a in ("gelu", "silu")},
    **{init: {"model": {**MLP, "init": init}} for init in ("zeros", "xavier", "he_uniform", "orthogonal", "torch")},
    **{k: {"optimizer": {"kind": k}} for k in ("momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")},
    **{k: {"optimizer": {"schedule": {"kind": k}}} for k in ("step", "cosine", "linear", "one_cycle")},
    "warm-up": {"optimizer": {"schedule": {"warmup_epochs": 1.5}}},
    "clip": {"optimizer": {"clip_norm": 0.5}},
    "l1": {"regularization": {"l1": 0.01}},
    "weight decay": {"regularization": {"weight_decay": 0.1}},
    "smoothing": {"loss": {"label_smoothing": 0.2}},
    "hinge": {"loss": {"kind": "hinge"}},
    "linear": {"model": {"kind": "linear"}},
    "norm": {"model": {**MLP, "batch_norm": True}},
    "norm after": {"model": {**MLP, "batch_norm": "after"}},
    "dropout": {"model": {**MLP, "dropout": 0.3}},
    "cnn": {"model": {"kind": "cnn", "channels": [3, 4], "batch_norm": True, "dropout": 0.2}},
    "resnet": {"model": {"kind": "resnet", "channels": [3, 4], "batch_norm": True}},
    "augment": {"augment": {"flip": True, "crop": 1}},
    "preprocess": {"preprocess": ["standardize", {"kind": "pca", "components": 7}]},
}


@pytest.mark.parametrize("keys", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_every_system_is_the_same_in_company_and_alone(keys: dict[str, Any]) -> None:
    dataset = images()
    trials = members(5, objective(**{"model": MLP, "batch_size": 8, **keys}))
    pack = Pack(trials, dataset, data_seed=5, epochs=4)
    packed = train(pack, 2)
    pack.drop(1)
    packed += train(pack, 2)
    for k, trial in enumerate(trials):
        own = [result for epoch in packed for result in epoch if result.member == k]
        alone = Pack([trial], dataset, data_seed=5, epochs=4)
        for one, (other,) in zip(own, train(alone, 4), strict=k != 1):
            assert one.diverged is None
            losses = [name for name in one.metrics if name.endswith("loss")]
            assert {n: one.metrics[n] for n in losses} == pytest.approx(
                {n: other.metrics[n] for n in losses}, rel=2e-4, abs=1e-6
            )


def test_regression_has_metrics_of_its_own() -> None:
    dataset = images()
    o = objective(model={"kind": "linear"}, loss={"kind": "mse"}, batch_size=8, optimizer={"lr": 1e-4})
    split = dataset.prepared(o.preprocess).train
    object.__setattr__(split, "labels", split.samples.flatten(1).sum(1))  # a target that a linear model can learn
    validation = dataset.prepared(o.preprocess).validation
    object.__setattr__(validation, "labels", validation.samples.flatten(1).sum(1))
    results = train(Pack([Member(o, 0)], dataset, data_seed=0, epochs=60), 60)
    assert set(REGRESSION_METRICS) <= set(results[0][0].metrics)
    assert results[-1][0].metrics["train_loss"] < results[0][0].metrics["train_loss"]


def test_the_metrics_are_those_that_are_promised(digits: Dataset) -> None:
    (first, second) = train(Pack([Member(objective(), 0)], digits, data_seed=0, epochs=2), 2)
    assert set(second[0].metrics) == set(CLASSIFICATION_METRICS)
    diagnosed = {name for name in first[0].metrics if name.startswith("diag/")}
    assert {"diag/update_ratio", "diag/gradient_norm", "diag/initial_loss", "diag/chance_loss"} <= diagnosed
    assert first[0].metrics["diag/chance_loss"] == pytest.approx(math.log(10))
    assert set(first[0].metrics) - diagnosed == set(CLASSIFICATION_METRICS)


def test_diagnostics_change_nothing(digits: Dataset) -> None:
    def losses(diagnose: bool) -> list[float]:
        pack = Pack(members(3, objective()), digits, data_seed=0, epochs=3, diagnose=diagnose)
        return [result.metrics["train_loss"] for epoch in train(pack, 3) for result in epoch]

    assert losses(True) == losses(False)


def test_rows_that_left_late_are_not_worth_taking_out() -> None:
    dataset = images()  # one minibatch per epoch
    pack = Pack(members(4, objective(model=MLP)), dataset, data_seed=0, epochs=3)
    pack.train_epoch()
    pack.train_epoch()
    pack.drop(2)
    assert [result.member for result in pack.train_epoch()] == [0, 1, 3]
    assert len(pack.model.parameters[0].value) == 4
    assert pack.live == [0, 1, 3]


def test_a_pack_that_does_not_fit_says_so(digits: Dataset) -> None:
    wide = objective(model={"kind": "mlp", "hidden": [65_536, 65_536, 65_536]})
    if memory_budget("cpu") > 1 << 40:
        pytest.skip("this machine has terabytes")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
    try:
        with pytest.raises(OutOfMemory, match="a pack of 2 trials does not fit into the memory of cpu"):
            Pack([Member(wide, 0), Member(wide, 1)], digits, data_seed=0, epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
