"""Learning rates against literal values and torch.optim.lr_scheduler."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, LRScheduler, StepLR

from hpsearch.objective.optimizers import Optimizer
from hpsearch.training.schedules import LearningRates


def rates(optimizer: dict[str, Any], steps: list[int], *, epochs: int, steps_per_epoch: int) -> list[float]:
    made = LearningRates([Optimizer.model_validate(optimizer)], epochs=epochs, steps_per_epoch=steps_per_epoch)
    column: list[float] = made.at(np.array(steps))[:, 0].tolist()
    return column


def schedule(**keys: Any) -> dict[str, Any]:
    return {"lr": 1.0, "schedule": keys}


LITERAL: dict[str, tuple[dict[str, Any], list[float]]] = {
    # 4 epochs of 2 minibatches.
    "constant": (schedule(kind="constant"), [1] * 8),
    "lr_decay": ({"lr": 0.8, "lr_decay": 0.5}, [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]),
    "step": (schedule(kind="step", step_epochs=3, factor=0.1), [1, 1, 1, 1, 1, 1, 0.1, 0.1]),
    "linear": (schedule(kind="linear"), [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    "linear to a half": (schedule(kind="linear", final=0.5), [1, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625]),
    "cosine": (  # (1 + cos(π s / 8)) / 2
        schedule(kind="cosine"),
        [1, 0.96193977, 0.85355339, 0.69134172, 0.5, 0.30865828, 0.14644661, 0.03806023],
    ),
    "one_cycle": (  # 0.2 + 0.8 h: h = (1 − cos 0°, 75°, 150°) / 2, then (1 + cos 19.2857°, 51.4286°, …) / 2
        schedule(kind="one_cycle", final=0.2),
        [0.2, 0.49647238, 0.94641016, 0.97755333, 0.84939592, 0.64478579, 0.42644650, 0.26131032],
    ),
    "warm-up": (schedule(kind="constant", warmup_epochs=2), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    "warm-up of a part of an epoch": (schedule(warmup_epochs=0.75), [2 / 3, 1, 1, 1, 1, 1, 1, 1]),
    "warm-up, then linear": (
        schedule(kind="linear", warmup_epochs=2),
        [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25],
    ),
    "a warm-up that is longer than the training": (
        schedule(kind="cosine", warmup_epochs=8),
        [k / 16 for k in range(1, 9)],
    ),
    "all at once": (
        {"lr": 8, "lr_decay": 0.5, "schedule": {"kind": "step", "step_epochs": 2, "factor": 0.5, "warmup_epochs": 1}},
        [4, 8, 4, 4, 1, 1, 0.5, 0.5],
    ),
}


@pytest.mark.parametrize("case", LITERAL)
def test_literal_rates(case: str) -> None:
    optimizer, expected = LITERAL[case]
    assert rates(optimizer, list(range(8)), epochs=4, steps_per_epoch=2) == pytest.approx(expected, abs=1e-7)


Make = Callable[[torch.optim.Optimizer], LRScheduler]

PER_STEP: dict[str, tuple[dict[str, Any], Make]] = {
    "cosine": (schedule(kind="cosine", final=0.1), lambda o: CosineAnnealingLR(o, T_max=30, eta_min=0.1)),
    "linear": (schedule(kind="linear", final=0.3), lambda o: LinearLR(o, 1.0, 0.3, total_iters=30)),
    "warm-up": (schedule(warmup_epochs=4), lambda o: LinearLR(o, 1 / 12, 1.0, total_iters=11)),
}
PER_EPOCH: dict[str, tuple[dict[str, Any], Make]] = {
    "step": (schedule(kind="step", step_epochs=4, factor=0.3), lambda o: StepLR(o, 4, 0.3)),
    "lr_decay": ({"lr": 1.0, "lr_decay": 0.7}, lambda o: ExponentialLR(o, 0.7)),
}


def reference(make: Make, n: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimiser)
    found = []
    for _ in range(n):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("case", PER_STEP)
def test_rates_per_step_are_those_of_torch(case: str) -> None:
    optimizer, make = PER_STEP[case]
    assert rates(optimizer, list(range(30)), epochs=10, steps_per_epoch=3) == pytest.approx(reference(make, 30))


@pytest.mark.parametrize("case", PER_EPOCH)
def test_rates_per_epoch_are_those_of_torch(case: str) -> None:
    optimizer, make = PER_EPOCH[case]
    first_steps = list(range(0, 30, 3))
    assert rates(optimizer, first_steps, epochs=10, steps_per_epoch=3) == pytest.approx(reference(make, 10))


def test_members_have_schedules_of_their_own() -> None:
    optimizers = [Optimizer.model_validate(optimizer) for optimizer, _ in LITERAL.values()]
    pack = LearningRates(optimizers, epochs=4, steps_per_epoch=2)
    expected = np.array([values for _, values in LITERAL.values()]).T
    assert pack.at(np.arange(8)) == pytest.approx(expected, abs=1e-7)
    pack.keep([5, 0])
    assert pack.at(np.arange(8)) == pytest.approx(expected[:, [5, 0]], abs=1e-7)


@pytest.mark.parametrize(
    ("case", "moving"), [("constant", False), ("lr_decay", False), ("step", False), ("cosine", True), ("warm-up", True)]
)
def test_what_moves_within_an_epoch(case: str, moving: bool) -> None:
    optimizer = Optimizer.model_validate(LITERAL[case][0])
    assert LearningRates([optimizer], epochs=4, steps_per_epoch=2).moving == moving
