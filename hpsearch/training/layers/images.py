"""Convolution and what belongs to it, of K models: images are (batch, K, channels, height, width)."""

from __future__ import annotations

import torch
from torch.nn import functional

from hpsearch.training.layers.base import Autograd, Layer, Parameter, Pass


class Convolution(Layer):
    """``torch.nn.Conv2d`` for each member, with padding that keeps the size at stride 1.

    Args:
        weights: (K, channels, input channels, kernel, kernel) initial ones, kernel odd.
        biases: (K, channels) initial ones; None for a layer without.
        stride: 2 halves height and width, rounded up.
        first: whether the inputs are the shared (batch, height, width, channels): then the K convolutions are one with
            K times the channels, else one in K groups.
        bfloat16: whether the products take bfloat16 numbers; the outputs are of the weights' type.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        biases: torch.Tensor | None,
        *,
        stride: int = 1,
        first: bool,
        bfloat16: bool = False,
    ) -> None:
        parameters = [Parameter(weights, penalised=True, name="weight")]
        if biases is not None:
            parameters.append(Parameter(biases, penalised=False, name="bias"))
        super().__init__(parameters)
        self._stride = stride
        self._first = first
        self._bfloat16 = bfloat16
        self._columns = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """(batch, K, input channels, height, width), or what the first layer takes → (batch, K, channels, …)."""
        weight, *bias = (p.value for p in self.parameters)
        dtype = torch.bfloat16 if self._bfloat16 else weight.dtype
        columns = inputs.permute(0, 3, 1, 2).contiguous() if self._first else inputs.flatten(1, 2)
        columns = columns.to(dtype)
        outputs = functional.conv2d(
            columns,
            weight.flatten(0, 1).to(dtype),
            bias[0].flatten().to(dtype) if bias else None,
            stride=self._stride,
            padding=weight.shape[4] // 2,
            groups=1 if self._first else len(weight),
        )
        if kind is Pass.TRAINING:
            self._columns = columns
        return torch.unflatten(outputs.to(weight.dtype), 1, (len(weight), -1))

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """See :class:`Layer`; None if first."""
        columns, self._columns = self._columns, torch.empty(0)
        weight, *bias = (p.value for p in self.parameters)
        of_inputs, *of_parameters = torch.ops.aten.convolution_backward(
            gradient.flatten(1, 2).to(columns.dtype),
            columns,
            weight.flatten(0, 1).to(columns.dtype),
            [weight.shape[0] * weight.shape[1]] if bias else None,
            [self._stride] * 2,
            [weight.shape[4] // 2] * 2,
            [1, 1],  # dilation
            False,  # transposed
            [0, 0],  # output padding
            1 if self._first else len(weight),
            [not self._first, True, bool(bias)],
        )
        for parameter, of_parameter in zip(self.parameters, of_parameters, strict=False):
            parameter.grad.add_(of_parameter.view(parameter.value.shape))
        if self._first:
            return None
        return torch.unflatten(of_inputs.to(weight.dtype), 1, (len(weight), -1))


class ImageMean(Layer):
    """The mean of each feature map, (K, channels, batch)."""

    def __init__(self) -> None:
        super().__init__()
        self._inputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """(batch, K, channels, height, width) → (K, channels, batch)."""
        if kind is Pass.TRAINING:
            self._inputs = inputs
        return inputs.mean((3, 4)).permute(1, 2, 0)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The same for every pixel, in the inputs' order of memory: others cost every layer before it a copy."""
        like, self._inputs = self._inputs, torch.empty(0)
        per_map = gradient.permute(2, 0, 1) / like.shape[3:].numel()
        return torch.empty_like(like).copy_(per_map[..., None, None])


def max_pool(size: int) -> Autograd:
    """The largest of each ``size`` × ``size`` square; what is left over at the right and lower border is cut off."""
    return Autograd(lambda x: torch.unflatten(functional.max_pool2d(x.flatten(1, 2), size), 1, x.shape[1:3]))


def flatten() -> Autograd:
    """To (K, channels · height · width, batch), in ``torch.nn.Flatten``'s order."""
    return Autograd(lambda x: x.permute(1, 2, 3, 4, 0).flatten(1, 3))
