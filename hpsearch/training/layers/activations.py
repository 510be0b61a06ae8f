"""Activation functions of K models, and how the activations of a layer do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from hpsearch.objective.models import Activation as ActivationName
from hpsearch.training.layers.base import Autograd, Layer, Parameter, Pass, per_member

DEAD = 1e-3
"""Activations of gelu and silu that small are as good as the zero of a dead relu: so is their derivative, or the
unit sits at zero exactly."""

SAMPLED = 2048
"""At most so many activations of a layer stand for all of them in a histogram: a share is then exact to 2 %."""

SATURATED = 0.01
"""An activation that close to its limit, as a share of the limit, passes next to no gradient."""


PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
"""Activations without a number of their own."""


@dataclass(frozen=True)
class Activity:
    """How the activations of one hidden layer do on one minibatch; every tensor is (K,) but ``sample``.

    Attributes:
        name: path of the activation in the model.
        mean: over units and samples.
        spread: standard deviation over units and samples.
        dead: share of units (of images: feature maps) that put out 0 for every sample; 0 but for relu, gelu and silu.
        saturated: share of activations within 1 % of a limit; 0 but for sigmoid, tanh and elu.
        sample: (K, at most :data:`SAMPLED` + 1) of the activations, evenly spread.
    """

    name: str
    mean: torch.Tensor
    spread: torch.Tensor
    dead: torch.Tensor
    saturated: torch.Tensor
    sample: torch.Tensor


class Relu(Layer):
    """max(0, x), in place; its gradient at 0 is 0.

    Attributes:
        activity: of the latest inspection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activity: Activity | None = None
        self._outputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass = Pass.TRAINING) -> torch.Tensor:
        """Any shape → the same tensor, rectified."""
        outputs = inputs.relu_()
        if kind is Pass.TRAINING:
            self._outputs = outputs
        elif kind is Pass.INSPECTION:
            self.activity = inspect(self.name, outputs, dead=0.0)
        return outputs

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient where the output is positive, else 0; in place."""
        # A product with a mask of booleans takes ten times as long as this kernel.
        threshold_backward = torch.ops.aten.threshold_backward.grad_input
        masked: torch.Tensor = threshold_backward(gradient, self._outputs, 0, grad_input=gradient)
        return masked


class Activation(Autograd):
    """Every activation but relu, as ``torch.nn`` defines it, with its number per member.

    ``prelu`` learns one slope per layer, as ``torch.nn.PReLU()`` does (He et al. 2015, "channel-shared"). ``maxout``
    takes the largest of ``pieces`` neighbouring units (Goodfellow et al. 2013): the layer before it is that many
    times wider.

    Args:
        name: which one.
        numbers: (K,) slopes of leaky_relu, what prelu's start from, alphas of elu; else unused.
        pieces: of maxout.

    Attributes:
        activity: of the latest inspection.
    """

    def __init__(self, name: ActivationName, numbers: torch.Tensor, *, pieces: int = 2) -> None:
        learned = [Parameter(numbers.clone(), penalised=False, name="slope")] if name == "prelu" else []
        super().__init__(self._apply, learned)
        self.activity: Activity | None = None
        self._activation = name
        self._numbers = numbers
        self._pieces = pieces

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """Activations of either layout; maxout's have ``pieces`` times fewer units."""
        outputs = super().forward(inputs, kind)
        if kind is Pass.INSPECTION:
            dead = DEAD if self._activation in ("gelu", "silu") else None
            self.activity = inspect(self.name, outputs, dead=dead, limits=self._limits(outputs))
        return outputs

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        super().keep(rows)
        self._numbers = self._numbers.index_select(0, rows)

    def _apply(self, x: torch.Tensor, *slope: torch.Tensor) -> torch.Tensor:
        match self._activation:
            case "leaky_relu" | "prelu":
                return _leaky(x, slope[0] if slope else self._numbers)
            case "elu":
                return _leaky(functional.elu(x), self._numbers)
            case "maxout":
                axis = 1 if x.dim() == 3 else 2
                return torch.unflatten(x, axis, (-1, self._pieces)).max(axis + 1).values
            case name:
                return PLAIN[name](x)

    def _limits(self, x: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float] | None:
        """The activations below the first and above the second number are saturated."""
        match self._activation:
            case "sigmoid":
                return SATURATED, 1 - SATURATED
            case "tanh":
                return SATURATED - 1, 1 - SATURATED
            case "elu":
                return (SATURATED - 1) * per_member(self._numbers, x), float("inf")
            case _:
                return None


def _leaky(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """Positive x as they are, others times the member's slope; both layouts."""
    # A third of the time that torch.where takes.
    return functional.prelu(x.unsqueeze(0), slopes).squeeze(0) if x.dim() == 3 else functional.prelu(x, slopes)


def inspect(
    name: str,
    outputs: torch.Tensor,
    *,
    dead: float | None = None,
    limits: tuple[torch.Tensor | float, torch.Tensor | float] | None = None,
) -> Activity:
    """What activations of either layout say; a unit is dead if none of its outputs exceeds ``dead`` in size."""
    outside = torch.zeros_like(outputs) if limits is None else ((outputs < limits[0]) | (outputs > limits[1])).float()
    units, saturated = _by_unit(outputs), _by_unit(outside).mean((1, 2))
    spread, mean = torch.std_mean(units, (1, 2), correction=0)
    silent = torch.zeros_like(mean) if dead is None else (units.abs().amax(2) <= dead).to(mean.dtype).mean(1)
    every = units.flatten(1)
    sample = every[:, :: math.ceil(every.shape[1] / SAMPLED) | 1].clone()  # odd: not always the same minibatch samples
    return Activity(name, mean, spread, silent, saturated, sample)


def _by_unit(activations: torch.Tensor) -> torch.Tensor:
    """(K, units, everything else)."""
    return activations if activations.dim() == 3 else activations.permute(1, 2, 0, 3, 4).flatten(2)
