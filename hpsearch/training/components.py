"""Principal components of a training split."""

from __future__ import annotations

from collections.abc import Callable

import torch

NOTHING = 1e-12
"""Variances below this share of the largest are rounding errors of the eigenvalues, and count as 0."""


class Components:
    """The eigenvectors of the covariance matrix (divisor n) and their variances, the largest first.

    Of n samples with d columns there are min(n, d). Each axis points where its largest entry is positive, so that
    its sign does not hang on the library that found it.

    Args:
        train: (n, d) float32, n ≥ 1.
    """

    def __init__(self, train: torch.Tensor) -> None:
        n_samples, n_columns = train.shape
        self._mean = (_total(train) / n_samples).to(torch.float32)
        covariance = torch.zeros(n_columns, n_columns, dtype=torch.float64)
        for piece in _pieces(train):
            centred = (piece - self._mean).double()
            covariance.addmm_(centred.T, centred)
        variances, axes = torch.linalg.eigh(covariance.div_(n_samples))
        n_axes = min(n_samples, n_columns)
        variances, axes = variances.flip(0)[:n_axes], axes.flip(1)[:, :n_axes]
        self.variances = torch.where(variances > NOTHING * variances[0], variances, 0.0)
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        self._axes = axes * largest.sign()

    def n_holding(self, share: float) -> int:
        """The smallest number of axes, at least 1, whose variances sum to ``share`` ∈ (0, 1] of all."""
        total = self.variances.cumsum(0)
        return int((total < (share - 1e-9) * total[-1]).sum()) + 1

    def projection(
        self, n_axes: int | None = None, *, whiten_epsilon: float | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Maps samples (m, …) to their coordinates (m, n_axes) on the first axes, by default on all of them.

        With ``whiten_epsilon`` each is divided by √(variance + whiten_epsilon · largest variance), unless that is 0.
        """
        axes = self._axes[:, :n_axes]
        if whiten_epsilon is not None:
            deviations = (self.variances[:n_axes] + whiten_epsilon * self.variances[0]).sqrt()
            axes = axes / torch.where(deviations > 0, deviations, 1.0)
        matrix = axes.to(torch.float32)
        return lambda samples: (samples.flatten(1) - self._mean) @ matrix


def _total(train: torch.Tensor) -> torch.Tensor:
    return torch.stack([piece.sum(0, dtype=torch.float64) for piece in _pieces(train)]).sum(0)


def _pieces(train: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.tensor_split(train, 1 + len(train) // 1000)  # double precision of all may not fit beside it
