"""Short trainings on a few samples: what the checks measure with."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpsearch.objective import TrainObjective
from hpsearch.space import Params
from hpsearch.training.losses import build_loss
from hpsearch.training.models import StackedModel, build_model
from hpsearch.training.optimisers import build_optimiser

PLAIN: Params = {
    "optimizer.schedule.kind": "constant",
    "optimizer.schedule.warmup_epochs": 0.0,
    "optimizer.lr_decay": 1.0,
    "loss.label_smoothing": 0.0,
}
"""What would blur a check of a few steps: a warm-up hides the rate, smoothing the loss of a perfect fit."""


def plain(objective: TrainObjective, params: Params) -> TrainObjective:
    """The objective with ``params`` and :data:`PLAIN` set, and without dropout."""
    dropout: Params = {"model.dropout": 0.0} if hasattr(objective.model, "dropout") else {}
    return objective.with_params({**PLAIN, **dropout, **params})


FALLING = 0.95
"""Of the mean loss of one quarter of the steps to that of the next, below which it is falling."""

SECONDS = 1.25
"""After which a probe of a slow model stops early."""

LEAST_STEPS = 15
"""Momentum takes about ten steps to get going."""


@dataclass(frozen=True)
class Bench:
    """What every probe of one preflight shares.

    Attributes:
        samples: (n, …) preprocessed, on the device.
        targets: (n,) labels, or numbers for ``mse``.
        n_outputs: scores of the model.
        rms: root mean square of the training samples, as packs take it.
        seed: of the initial weights and of the order of samples.
    """

    samples: torch.Tensor
    targets: torch.Tensor
    n_outputs: int
    rms: float
    seed: int

    @property
    def device(self) -> str:
        """Where the tensors live."""
        return str(self.samples.device)

    def head(self, n_samples: int) -> Bench:
        """The first so many samples (all, if there are fewer)."""
        return Bench(self.samples[:n_samples], self.targets[:n_samples], self.n_outputs, self.rms, self.seed)

    def model(self, objectives: Sequence[TrainObjective], *, one_seed: bool = True) -> StackedModel:
        """A stacked model, all members with the same initial weights or each with its own."""
        seeds = [self.seed + (0 if one_seed else k) for k in range(len(objectives))]
        return build_model(
            objectives,
            input_shape=tuple(self.samples.shape[1:]),
            n_outputs=self.n_outputs,
            input_rms=self.rms,
            seeds=seeds,
            device=self.device,
        )


@dataclass(frozen=True)
class Trained:
    """What a short training left.

    Attributes:
        model: of K members.
        losses: (steps, K) mean data loss of each minibatch before its update; non-finite where it exploded.
    """

    model: StackedModel
    losses: torch.Tensor

    def late(self) -> torch.Tensor:
        """(K,) mean loss over the last quarter of the steps."""
        return self.losses[-self._quarter :].mean(0)

    def falling(self) -> bool:
        """Whether any member's loss was still falling."""
        before = self.losses[-2 * self._quarter : -self._quarter].mean(0)
        return bool((self.late() < FALLING * before).any())

    @property
    def best(self) -> int:
        """The member of the lowest late loss."""
        return int(self.late().nan_to_num(math.inf).argmin())

    @property
    def _quarter(self) -> int:
        return max(1, len(self.losses) // 4)


def train(
    bench: Bench, objectives: Sequence[TrainObjective], *, steps: int, batch_size: int, enough: float = -math.inf
) -> Trained:
    """Train K objectives on the samples of a bench, in an order that its seed gives.

    Args:
        bench: its samples are gone through again and again.
        objectives: of one shape and one kind of optimiser, usually from :func:`plain`.
        steps: minibatches at most.
        batch_size: at most all samples.
        enough: a member's loss of a minibatch at which all stop.

    A slow model stops after :data:`SECONDS`, but never before a tenth of the steps and :data:`LEAST_STEPS`.
    """
    model, loss = bench.model(objectives), build_loss(objectives, bench.device)
    optimiser = build_optimiser(objectives, model.parameters, epochs=1, steps_per_epoch=steps, device=bench.device)
    n_samples = len(bench.samples)
    batch_size = min(batch_size, n_samples)
    generator = torch.Generator().manual_seed(bench.seed)
    order = torch.randperm(n_samples, generator=generator)
    losses: list[torch.Tensor] = []
    model.begin_epoch(1)
    end, at = time.monotonic() + SECONDS, 0
    for step in range(steps):
        if at + batch_size > n_samples:
            order, at = torch.randperm(n_samples, generator=generator), 0
        index = order[at : at + batch_size].to(bench.samples.device)
        at += batch_size
        optimiser.set_step(step)
        scored = loss.score(model.forward(bench.samples[index], training=True), bench.targets[index])
        losses.append(scored.loss / batch_size)
        optimiser.begin()
        model.backward(scored.gradient.mul_(optimiser.scale / batch_size))
        optimiser.apply()
        if (time.monotonic() > end and step >= max(steps // 10, LEAST_STEPS)) or bool((losses[-1] <= enough).any()):
            break
    return Trained(model, torch.stack(losses).cpu())


def scores(model: StackedModel, samples: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    """(K, outputs, n) of all samples, in pieces that fit."""
    pieces = [model.forward(piece, training=training) for piece in torch.split(samples, 250)]
    return torch.cat(pieces, 2)
