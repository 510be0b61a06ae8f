"""Batch normalisation of K models."""

from __future__ import annotations

import torch
from torch.nn import functional

from hpsearch.training.layers.base import Autograd, Buffer, Parameter, Pass

EPSILON = 1e-5
"""Added to the variance, as in ``torch.nn.BatchNorm1d``."""


class BatchNorm(Autograd):
    """Each feature, or feature map, to mean 0 and variance 1 over the minibatch, then scaled and shifted.

    Ioffe & Szegedy 2015, as ``torch.nn.BatchNorm1d`` and ``2d`` have it: training divides by the biased variance, the
    running one is unbiased; running ← (1 − momentum) · running + momentum · the minibatch's.

    A minibatch with one number per feature, which torch refuses, has no variance: it is normalised by the running
    statistics and leaves them as they are.

    Args:
        n_features: per member.
        momentum: (K,) in (0, 1], on the device.
    """

    def __init__(self, n_features: int, momentum: torch.Tensor) -> None:
        shape = (len(momentum), n_features)
        self.mean = Buffer(momentum.new_zeros(shape), name="running_mean")
        self.variance = Buffer(momentum.new_ones(shape), name="running_variance")
        scale = Parameter(momentum.new_ones(shape), penalised=False, name="scale")
        shift = Parameter(momentum.new_zeros(shape), penalised=False, name="shift")
        super().__init__(self._normalise, [scale, shift], [self.mean, self.variance])
        self._momentum = momentum
        self._use_running = False
        self._batch_mean = self._batch_rstd = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """Activations of either layout → the same shape."""
        n_values = inputs.numel() // self.mean.value.numel()
        self._use_running = kind is Pass.EVALUATION or n_values == 1
        outputs = super().forward(inputs, kind)
        if kind is Pass.TRAINING and not self._use_running:
            self._remember(n_values)
        return outputs

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        super().keep(rows)
        self._momentum = self._momentum.index_select(0, rows)

    def _normalise(self, inputs: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        # All members' features side by side on the axis of channels: (1, K · features, batch) or (batch, K · C, H, W).
        columns = inputs.reshape(1, -1, inputs.shape[2]) if inputs.dim() == 3 else inputs.flatten(1, 2)
        affine = scale.flatten(), shift.flatten()
        if self._use_running:
            running = self.mean.value.flatten(), self.variance.value.flatten()
            return functional.batch_norm(columns, *running, *affine, eps=EPSILON).view(inputs.shape)
        outputs, mean, rstd = torch.native_batch_norm(columns, *affine, None, None, True, 0.0, EPSILON)
        self._batch_mean, self._batch_rstd = mean.detach(), rstd.detach()
        return outputs.view(inputs.shape)

    def _remember(self, n_values: int) -> None:
        shape, momentum = self.mean.value.shape, self._momentum.unsqueeze(1).to(self.mean.value)
        variance = (self._batch_rstd.pow(-2) - EPSILON) * (n_values / (n_values - 1))
        self.mean.value.lerp_(self._batch_mean.view(shape), momentum)
        self.variance.value.lerp_(variance.view(shape), momentum)
