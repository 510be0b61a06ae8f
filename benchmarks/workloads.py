"""What the benchmarks train: an objective for our packs, and the same net and loop in plain PyTorch for the others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpsearch.objective import TrainObjective
from hpsearch.space import Params
from hpsearch.training import Dataset, Member, Pack, load_dataset

CIFAR10 = {
    "source": "parquet",
    "path": str(Path("../shared/data/cifar10").resolve()),  # Ray's actors start elsewhere
    "validation": 1000,
    "train": 20_000,
}
DIGITS = {"source": "digits"}


@dataclass(frozen=True)
class Workload:
    """One kind of trial.

    Attributes:
        title: for people.
        objective: of the study, without what a trial samples.
        epochs: of one trial.
        net: input shape (height, width, channels) or (features,) and number of classes → an untrained net, whose
            inputs are flat if it starts with a Linear layer and (n, channels, height, width) if not.
        widths: that the width curve tries.
        product_flops: matrix multiply-adds × 2 for one training sample and one validation sample; None: not counted.
    """

    title: str
    objective: dict[str, Any]
    epochs: int
    net: Callable[[tuple[int, ...], int], nn.Module]
    widths: tuple[int, ...]
    product_flops: tuple[int, int] | None = None
    params: dict[str, Any] = field(default_factory=dict)


def mlp(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(math.prod(shape), 50), nn.ReLU(), nn.Linear(50, n_classes))


def mlp_flops(n_features: int) -> tuple[int, int]:
    """Forward and weight gradient of both layers and the input gradient of the second; forward alone to evaluate."""
    return 2 * (2 * n_features * 50 + 3 * 50 * 10), 2 * (n_features * 50 + 50 * 10)


def normed_mlp(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(math.prod(shape), 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, n_classes)
    )


def linear(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    return nn.Linear(math.prod(shape), n_classes)


def cnn(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two blocks of convolution, ReLU and pooling by two, then scores."""
    height, width, channels = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), n_classes),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2015b), which is a 1 × 1 convolution where the shapes differ."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_outputs), nn.ReLU(),
            nn.Conv2d(n_outputs, n_outputs, 3, padding=1, bias=False), nn.BatchNorm2d(n_outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            convolution = nn.Conv2d(n_inputs, n_outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(n_outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) → the same, halved by the stride."""
        return nn.functional.relu(self.main(x) + self.shortcut(x))


def resnet(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """A convolution, two stages of one block with 16 and 32 channels, the mean of each map, then scores."""
    return nn.Sequential(
        nn.Conv2d(shape[2], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16, 16, 1), Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes),
    )  # fmt: skip


def _train(data: dict[str, Any], batch_size: int, **keys: Any) -> dict[str, Any]:
    return {"kind": "train", "data": data, "batch_size": batch_size, **keys}


RESNET = {"kind": "resnet", "channels": [16, 32], "blocks": 1, "batch_norm": True}
ADAM = {"kind": "adam", "lr": 1e-3}
WORKLOADS: dict[str, Workload] = {
    "cifar10": Workload(
        "two-layer net 3072–50–10, CIFAR-10, 20,000 images, batch 200, 1 epoch",
        _train(CIFAR10, 200),
        1,
        mlp,
        (1, 2, 4, 8, 16, 32),
        mlp_flops(3072),
    ),
    "cifar10-bf16": Workload(
        "the same, ours in bfloat16",
        _train(CIFAR10, 200, precision="bfloat16"),
        1,
        mlp,
        (1, 2, 4, 8, 16, 32),
        mlp_flops(3072),
    ),
    "digits": Workload(
        "MLP 64–50–10, digits, batch 100, 10 epochs",
        _train(DIGITS, 100),
        10,
        mlp,
        (1, 4, 16, 64, 128, 256),
        mlp_flops(64),
    ),
    "digits-norm": Workload(
        "the same with batch norm, dropout 0.2 and Adam",
        _train(DIGITS, 100, model={"kind": "mlp", "batch_norm": True, "dropout": 0.2}, optimizer=ADAM),
        10,
        normed_mlp,
        (1, 4, 16, 64, 128),
    ),
    "digits-linear": Workload(
        "linear softmax 64–10, digits, batch 100, 10 epochs",
        _train(DIGITS, 100, model={"kind": "linear"}),
        10,
        linear,
        (1, 4, 16, 64, 128, 256),
    ),
    "digits-cnn": Workload(
        "CNN 16, 32 channels 3 × 3, digits 8 × 8, batch 100, 1 epoch",
        _train(DIGITS, 100, model={"kind": "cnn", "channels": [16, 32]}),
        1,
        cnn,
        (1, 2, 4, 8, 16),
    ),
    "digits-resnet": Workload(
        "residual net 16, 32 channels with batch norm, digits 8 × 8, batch 100, 4 epochs",
        _train(DIGITS, 100, model=RESNET),
        4,
        resnet,
        (1, 2, 4, 8),
    ),
}
"""Name on the command line → what it is."""


def trial_params(number: int) -> Params:
    """Of a trial: rates at which nothing diverges, for a member that leaves would make a pack look fast."""
    fraction = (number * 0.618034) % 1.0
    return {"lr": 10.0 ** (-5 + fraction), "reg": 10.0 ** (-5 + 2 * fraction)}


class Bench:
    """One workload loaded in this process.

    Args:
        workload: what to train.
        device: where.
    """

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload = workload
        self.device = device
        self.objective = TrainObjective.model_validate(workload.objective)
        self.dataset: Dataset = load_dataset(self.objective, study_seed=0, device=device)
        self._plain = self._plain_splits()
        self._trials = 0

    def plain_trial(self, params: Mapping[str, Any]) -> float:
        """One trial in a plain PyTorch loop; its validation accuracy."""
        (x, y), (x_val, y_val) = self._plain
        net = self.workload.net(self.dataset.shape, self.dataset.n_classes).to(self.device)
        optimizer: torch.optim.Optimizer
        if self.objective.optimizer.kind == "adam":
            optimizer = torch.optim.Adam(net.parameters(), lr=params["lr"], weight_decay=params["reg"])
        else:
            optimizer = torch.optim.SGD(net.parameters(), lr=params["lr"], momentum=0.9, weight_decay=params["reg"])
        cross_entropy = nn.CrossEntropyLoss()
        accuracy = 0.0
        for _ in range(self.workload.epochs):
            total = torch.zeros((), device=self.device)
            net.train()
            for index in torch.split(torch.randperm(len(y)).to(self.device), self.objective.batch_size):
                optimizer.zero_grad()
                loss = cross_entropy(net(x[index]), y[index])
                loss.backward()
                optimizer.step()
                total += loss.detach()
            net.eval()
            with torch.no_grad():
                scores = net(x_val)
                cross_entropy(scores, y_val).item()
                accuracy = (scores.argmax(1) == y_val).float().mean().item()
        return accuracy

    def plain(self, seconds: float) -> float:
        """Trials per second of the plain loop, one after the other."""
        return self._rate(lambda: (self.plain_trial(self._next()), 1)[1], seconds)

    def pack(self, width: int, seconds: float) -> float:
        """Trials per second of packs of ``width``, their making included."""
        return self._rate(lambda: self._pack(width), seconds)

    def flops(self) -> float | None:
        """Of the matrix products of one trial."""
        if self.workload.product_flops is None:
            return None
        train, validation = self.workload.product_flops
        return self.workload.epochs * (train * self.dataset.n_train + validation * self.dataset.n_validation)

    def _pack(self, width: int) -> int:
        members = [Member(self.objective.with_params(self._next()), self._trials) for _ in range(width)]
        pack = Pack(members, self.dataset, data_seed=0, epochs=self.workload.epochs, device=self.device)
        for _ in range(self.workload.epochs):
            results = pack.train_epoch()
        assert len(results) == width, "a member diverged"
        return width

    def _next(self) -> Params:
        self._trials += 1
        return trial_params(self._trials)

    def _rate(self, unit: Callable[[], int], seconds: float) -> float:
        start = time.perf_counter()
        n_done = 0
        while (elapsed := time.perf_counter() - start) < seconds:
            n_done += unit()
        return n_done / elapsed

    def _plain_splits(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        prepared = self.dataset.prepared(self.objective.preprocess)
        images = self.objective.model.kind in ("cnn", "resnet")
        found = []
        for split in (prepared.train, prepared.validation):
            x = split.samples.movedim(-1, 1).contiguous() if images else split.samples.flatten(1)
            found.append((x, split.labels))
        return found


def matmul_rate(seconds: float, device: str, size: int = 2048) -> float:
    """FLOP/s of square float32 matrix products, the median of those done in about ``seconds``."""
    a, b, c = (torch.randn(size, size, device=device) for _ in range(3))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(times)[len(times) // 2]
