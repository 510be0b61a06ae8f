"""Convolution and what belongs to it, of K models: images are (batch, K, channels, height, width)."""

from __future__ import annotations

import torch
from torch.nn import functional

from hpsearch.training.layers.base import Autograd, Parameter


class Convolution(Autograd):
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
        super().__init__(self._apply, parameters, first=first)
        self._stride = stride
        self._bfloat16 = bfloat16

    def _apply(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        n_members, kernel = len(weight), weight.shape[4]
        dtype = torch.bfloat16 if self._bfloat16 else weight.dtype
        columns = inputs.permute(0, 3, 1, 2).contiguous() if self._first else inputs.flatten(1, 2)
        outputs = functional.conv2d(
            columns.to(dtype),
            weight.flatten(0, 1).to(dtype),
            None if bias is None else bias.flatten().to(dtype),
            stride=self._stride,
            padding=kernel // 2,
            groups=1 if self._first else n_members,
        )
        return torch.unflatten(outputs.to(weight.dtype), 1, (n_members, -1))


def max_pool(size: int) -> Autograd:
    """The largest of each ``size`` × ``size`` square; what is left over at the right and lower border is cut off."""
    return Autograd(lambda x: torch.unflatten(functional.max_pool2d(x.flatten(1, 2), size), 1, x.shape[1:3]))


def flatten() -> Autograd:
    """To (K, channels · height · width, batch), in ``torch.nn.Flatten``'s order."""
    return Autograd(lambda x: x.permute(1, 2, 3, 4, 0).flatten(1, 3))


def image_mean() -> Autograd:
    """The mean of each feature map, (K, channels, batch)."""
    return Autograd(lambda x: x.mean((3, 4)).permute(1, 2, 0))
