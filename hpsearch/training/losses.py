"""Losses of K members on one shared minibatch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from hpsearch.objective import Trained
from hpsearch.objective.models import Loss


class Scored(NamedTuple):
    """What a minibatch says of each member.

    Attributes:
        loss: (K,) sum over the samples, not their mean.
        gradient: (K, outputs, batch) of the summed loss by the scores.
        correct: (K,) number of samples whose own class has the strictly highest score (a tie is a miss); None where
            there are no classes.
    """

    loss: torch.Tensor
    gradient: torch.Tensor
    correct: torch.Tensor | None


class StackedLoss(Protocol):
    """A loss with its numbers per member."""

    def score(self, scores: torch.Tensor, targets: torch.Tensor) -> Scored:
        """Score (K, outputs, batch) against the shared targets: labels (batch,) int64, or numbers (batch,) float32."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        ...


class Softmax:
    """Cross-entropy of the softmax against targets of which a share ``smoothing`` is spread over all C classes.

    The target is 1 − smoothing + smoothing / C at the label and smoothing / C elsewhere (Szegedy et al. 2015,
    "Rethinking the Inception Architecture", section 7, as ``torch.nn.CrossEntropyLoss`` has it); the gradient is
    softmax − target.

    Args:
        smoothing: (K,) in [0, 1).
    """

    def __init__(self, smoothing: torch.Tensor) -> None:
        self._smoothing = smoothing
        self._smooth = bool(smoothing.any())

    def score(self, scores: torch.Tensor, targets: torch.Tensor) -> Scored:
        """Labels (batch,) int64 in 0 … C − 1."""
        scored = softmax_cross_entropy(scores, targets)
        if not self._smooth:
            return scored
        n_members, n_classes, n_samples = scores.shape
        index = targets.view(1, 1, -1).expand(n_members, 1, n_samples)
        share = self._smoothing
        # −Σ target · log p is the plain loss plus smoothing · Σ (log p at the label − the mean log p).
        own = scores.gather(1, index).squeeze(1)
        loss = scored.loss + share * (own - scores.mean(1)).sum(1)
        back = share.view(-1, 1, 1).expand(n_members, 1, n_samples)
        gradient = scored.gradient.scatter_add_(1, index, back).sub_((share / n_classes).view(-1, 1, 1))
        return Scored(loss, gradient, scored.correct)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        self._smoothing = self._smoothing.index_select(0, rows)


class Hinge:
    """The multi-class SVM of cs231n: Σ over the wrong classes j of max(0, s_j − s_y + margin) (Weston & Watkins 1999).

    Args:
        margin: (K,) > 0.
    """

    def __init__(self, margin: torch.Tensor) -> None:
        self._margin = margin

    def score(self, scores: torch.Tensor, targets: torch.Tensor) -> Scored:
        """Labels (batch,) int64 in 0 … C − 1."""
        index = targets.view(1, 1, -1).expand(len(scores), 1, -1)
        above = (scores - scores.gather(1, index)).scatter_(1, index, -math.inf)  # of the wrong classes over the own
        correct = above.amax(1) < 0
        excess = above.add_(self._margin.view(-1, 1, 1)).relu_()
        gradient = (excess > 0).to(scores.dtype)
        gradient.scatter_(1, index, -gradient.sum(1, keepdim=True))
        return Scored(excess.sum((1, 2)), gradient, correct.sum(1))

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        self._margin = self._margin.index_select(0, rows)


class SquaredError:
    """(s − t)², as ``torch.nn.MSELoss`` with one output has it; the gradient is 2 (s − t)."""

    def score(self, scores: torch.Tensor, targets: torch.Tensor) -> Scored:
        """Scores (K, 1, batch) and targets (batch,) float32."""
        error = scores - targets
        return Scored(error.square().sum((1, 2)), error.mul_(2), None)

    def keep(self, rows: torch.Tensor) -> None:
        """Nothing is a member's own."""


def build_loss(objectives: Sequence[Trained], device: str) -> StackedLoss:
    """The loss of K objectives of one ``loss.kind``, its numbers on the device."""
    losses = [objective.loss for objective in objectives]
    match losses[0].kind:
        case "softmax":
            return Softmax(torch.tensor([loss.label_smoothing for loss in losses], device=device))
        case "hinge":
            return Hinge(torch.tensor([loss.margin for loss in losses], device=device))
        case "mse":
            return SquaredError()


def theoretical_initial_loss(loss: Loss, n_outputs: int) -> float | None:
    """The loss per sample of a net that tells no class from another (all scores equal).

    ln C for ``softmax`` whatever its smoothing, (C − 1) · margin for ``hinge`` (cs231n, "Sanity checks"); None for
    ``mse``, where it depends on the targets.
    """
    match loss.kind:
        case "softmax":
            return math.log(n_outputs)
        case "hinge":
            return (n_outputs - 1) * loss.margin
        case "mse":
            return None


def softmax_cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> Scored:
    """−log of the softmax at the label (cs231n, "Softmax classifier"); the gradient is softmax − one-hot.

    Args:
        scores: (K, classes, batch) float32.
        labels: (batch,) int64 in 0 … classes − 1.
    """
    n_members, _, n_samples = scores.shape
    index = labels.view(1, 1, -1).expand(n_members, 1, n_samples)
    gradient = torch.log_softmax(scores, 1)
    own = gradient.gather(1, index).squeeze(1)  # (K, batch)
    gradient.exp_().scatter_add_(1, index, gradient.new_full((1, 1, 1), -1.0).expand(n_members, 1, n_samples))
    # The label's entry is now p − 1 ≤ 0, so the largest one is that of the best other class. argmax takes as long as
    # all matrix products of a small net together.
    correct = own.exp() > gradient.amax(1)
    return Scored(-own.sum(1), gradient, correct.sum(1))
