"""Layers of K models at once.

Activations are feature-major, (K, features, batch): the batch is the innermost axis, so that softmax, biases and
means run along contiguous memory and every matrix product of a pack is one call. The input of the first layer is
(batch, features), shared by all members.

Backward passes are written by hand: on one core the products and updates of a small net are so cheap that an autograd
graph and its fresh gradient buffers cost a tenth to a fifth of a step. They rely on two facts. Nothing flows between
members, and each backward pass is linear in the gradient it is given: so a gradient scaled per member by −lr
arrives at every parameter as that member's step, and can be added straight into its velocity (see optimisers).
"""

from __future__ import annotations

from typing import Protocol

import torch


class Parameter:
    """One learned tensor of K members.

    Attributes:
        value: (K, …) float32.
        grad: same shape; backward passes add to it. What it starts from is the optimiser's business.
        penalised: whether L2 regularisation applies (weights yes, biases no).
    """

    def __init__(self, value: torch.Tensor, *, penalised: bool) -> None:
        self.value = value
        self.grad = torch.zeros_like(value)
        self.penalised = penalised

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        self.value = self.value.index_select(0, rows)
        self.grad = self.grad.index_select(0, rows)


class Layer(Protocol):
    """One step of K models. ``backward`` belongs to the latest ``forward`` and may overwrite its activations."""

    parameters: list[Parameter]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs for inputs, (K, features, batch); may overwrite the inputs."""
        ...

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Add to the parameters' gradients; the gradient of the inputs, or None where nobody needs it."""
        ...


class Linear:
    """y = W x + b for each member.

    Args:
        weights: (K, fan_out, fan_in) initial ones, on the device; biases start at zero.
        first: whether the inputs are the shared batch (batch, fan_in): then the K products are one wide one,
            and no gradient of the inputs is computed.
    """

    def __init__(self, weights: torch.Tensor, *, first: bool) -> None:
        self.weight = Parameter(weights, penalised=True)
        self.bias = Parameter(weights.new_zeros(*weights.shape[:2], 1), penalised=False)
        self.parameters = [self.weight, self.bias]
        self._first = first
        self._inputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, fan_in) if first, else (K, fan_in, batch) → (K, fan_out, batch)."""
        self._inputs = inputs
        if not self._first:
            return torch.baddbmm(self.bias.value, self.weight.value, inputs)
        n_members, fan_out, fan_in = self.weight.value.shape
        wide = torch.mm(self.weight.value.view(-1, fan_in), inputs.T)
        return wide.view(n_members, fan_out, -1).add_(self.bias.value)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """(K, fan_out, batch) → (K, fan_in, batch), or None if first."""
        self.bias.grad.add_(gradient.sum(2, keepdim=True))
        if self._first:
            fan_in = self._inputs.shape[1]
            self.weight.grad.view(-1, fan_in).addmm_(gradient.flatten(0, 1), self._inputs)
            return None
        self.weight.grad.baddbmm_(gradient, self._inputs.transpose(1, 2))
        return torch.bmm(self.weight.value.transpose(1, 2), gradient)


class Relu:
    """max(0, x), in place; its gradient at 0 is 0."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self._outputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(K, features, batch) → the same tensor, rectified."""
        self._outputs = inputs.relu_()
        return self._outputs

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient where the output is positive, else 0; in place."""
        # A product with a mask of booleans takes ten times as long as this kernel.
        threshold_backward = torch.ops.aten.threshold_backward.grad_input
        masked: torch.Tensor = threshold_backward(gradient, self._outputs, 0, grad_input=gradient)
        return masked
