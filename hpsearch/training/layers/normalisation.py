"""Batch normalisation of K models."""

from __future__ import annotations

import torch
from torch.nn import functional

from hpsearch.training.layers.base import Buffer, Layer, Parameter, Pass

EPSILON = 1e-5
"""Added to the variance, as in ``torch.nn.BatchNorm1d``."""


class BatchNorm(Layer):
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
        super().__init__([scale, shift], [self.mean, self.variance])
        self._momentum = momentum
        self._columns = torch.empty(0)
        self._statistics: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """Activations of either layout → the same shape."""
        # All members' features side by side on the axis of channels: (1, K · features, batch) or (batch, K · C, H, W).
        columns = inputs.reshape(1, -1, inputs.shape[2]) if inputs.dim() == 3 else inputs.flatten(1, 2)
        scale, shift = (p.value.flatten() for p in self.parameters)
        if kind is Pass.TRAINING:
            self._columns, self._statistics = columns, None
        if kind is Pass.EVALUATION or columns.numel() == scale.numel():
            outputs = functional.batch_norm(columns, *self._running(), scale, shift, eps=EPSILON)
            return outputs.view(inputs.shape)
        mean, variance = scale.new_zeros(2, len(scale))  # with a momentum of 1 the minibatch's own, unbiased
        outputs, *saved = torch.native_batch_norm(columns, scale, shift, mean, variance, True, 1.0, EPSILON)
        if kind is Pass.TRAINING:
            self._statistics = saved[0], saved[1]
            momentum = self._momentum.unsqueeze(1).to(mean)
            self.mean.value.lerp_(mean.view(self.mean.value.shape), momentum)
            self.variance.value.lerp_(variance.view(self.variance.value.shape), momentum)
        return outputs.view(inputs.shape)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """See :class:`Layer`."""
        columns, self._columns = self._columns, torch.empty(0)
        of_inputs, *of_parameters = torch.ops.aten.native_batch_norm_backward(
            gradient.reshape(columns.shape),
            columns,
            self.parameters[0].value.flatten(),
            *self._running(),
            *(self._statistics or (None, None)),
            self._statistics is not None,
            EPSILON,
            [True, True, True],
        )
        for parameter, of_parameter in zip(self.parameters, of_parameters, strict=True):
            parameter.grad.add_(of_parameter.view(parameter.value.shape))
        inner: torch.Tensor = of_inputs.view(gradient.shape)
        return inner

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        super().keep(rows)
        self._momentum = self._momentum.index_select(0, rows)

    def _running(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean.value.flatten(), self.variance.value.flatten()
