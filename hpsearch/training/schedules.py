"""Learning rates: the number of every member at every minibatch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpsearch.objective.optimizers import Optimizer

Floats = NDArray[np.float64]

RISE = 0.3
"""Share of the training in which ``one_cycle`` rises (Smith 2018; PyTorch's ``pct_start``)."""


class LearningRates:
    """lr · lr_decay^epoch · schedule · warm-up, of K members at any minibatches.

    With s the minibatch from 0, n the minibatches per epoch, e = ⌊s / n⌋ the epoch from 0, T = epochs · n all
    minibatches and W = warmup_epochs · n, and f = ``final``, the schedules are

    - ``constant``: 1
    - ``step``: factor^⌊e / step_epochs⌋ (``torch.optim.lr_scheduler.StepLR``)
    - ``cosine``: f + (1 − f) · (1 + cos π u) / 2 with u = (s − W) / (T − W), 0 before W (``CosineAnnealingLR``)
    - ``linear``: 1 − (1 − f) · u (``LinearLR``)
    - ``one_cycle``: with u = s / T, f + (1 − f) · (1 − cos(π u / 0.3)) / 2 up to u = 0.3, then
      f + (1 − f) · (1 + cos(π (u − 0.3) / 0.7)) / 2

    so ``final`` is what the step after the last one would have. The warm-up multiplies by min(1, (s + 1) / W): the
    first step is not lost to a rate of 0. A warm-up longer than the training ends with it.

    Args:
        optimizers: of the members.
        epochs: how many are trained, ≥ 1.
        steps_per_epoch: minibatches per epoch, ≥ 1.

    Attributes:
        moving: whether any member's rate changes within an epoch.
    """

    def __init__(self, optimizers: Sequence[Optimizer], *, epochs: int, steps_per_epoch: int) -> None:
        self._optimizers = list(optimizers)
        self._steps_per_epoch = steps_per_epoch
        self._n_steps = epochs * steps_per_epoch
        self._arrange()

    def at(self, steps: NDArray[np.int64]) -> Floats:
        """Rates at minibatches (S,), counted from 0 over all epochs, as (S, K)."""
        epochs = (steps // self._steps_per_epoch)[:, None]
        rates: Floats = self._lr * self._decay**epochs
        if self._kinds != {"constant"}:
            for kind in self._kinds - {"constant"}:
                members = np.flatnonzero(self._kind == kind)
                rates[:, members] *= self._schedule(kind, members, steps[:, None], epochs)
        if self._warmup.any():
            with np.errstate(divide="ignore"):
                rates *= np.minimum(1.0, (steps[:, None] + 1) / self._warmup)
        return rates

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the members at ``rows``, in that order."""
        self._optimizers = [self._optimizers[row] for row in rows]
        self._arrange()

    def _arrange(self) -> None:
        optimizers = self._optimizers
        schedules = [o.schedule for o in optimizers]
        self._lr = np.array([o.lr for o in optimizers], dtype=np.float64)
        self._decay = np.array([o.lr_decay for o in optimizers], dtype=np.float64)
        self._kind = np.array([s.kind for s in schedules], dtype=object)
        self._kinds: set[str] = {s.kind for s in schedules}
        self._final = np.array([s.final for s in schedules], dtype=np.float64)
        self._factor = np.array([s.factor for s in schedules], dtype=np.float64)
        self._period = np.array([s.step_epochs for s in schedules], dtype=np.int64)
        self._warmup = np.array([s.warmup_epochs * self._steps_per_epoch for s in schedules], dtype=np.float64)
        self.moving = bool(self._kinds - {"constant", "step"}) or bool(self._warmup.any())

    def _schedule(
        self, kind: str, members: NDArray[np.int64], steps: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> Floats:
        """(S, members of the kind)."""
        if kind == "step":
            return np.asarray(self._factor[members] ** (epochs // self._period[members]))
        if kind == "one_cycle":
            u = np.clip(steps / self._n_steps, 0.0, 1.0)
            angle = np.where(u < RISE, 1.0 - u / RISE, (u - RISE) / (1.0 - RISE))
            height = (1.0 + np.cos(np.pi * angle)) / 2.0
        else:
            start = np.minimum(self._warmup[members], self._n_steps - 1)
            u = np.clip((steps - start) / (self._n_steps - start), 0.0, 1.0)
            height = (1.0 + np.cos(np.pi * u)) / 2.0 if kind == "cosine" else 1.0 - u
        final = self._final[members]
        return np.asarray(final + (1.0 - final) * height)
