"""Losses of K members on one shared minibatch."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Scored(NamedTuple):
    """What a minibatch says of each member.

    Attributes:
        loss: (K,) sum over the samples, not their mean.
        correct: (K,) number of samples whose own class has the strictly highest score; a tie is a miss.
        gradient: (K, classes, batch) of the summed loss by the scores.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    gradient: torch.Tensor


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
    return Scored(-own.sum(1), correct.sum(1), gradient)
