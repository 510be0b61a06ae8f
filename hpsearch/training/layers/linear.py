"""Linear layers of K models."""

from __future__ import annotations

import torch

from hpsearch.training.layers.base import Layer, Parameter, Pass


class Linear(Layer):
    """y = W x + b for each member.

    Args:
        weights: (K, fan_out, fan_in) initial ones, on the device.
        biases: (K, fan_out) initial ones; None for a layer without.
        first: whether the inputs are the shared batch (batch, fan_in): then the K products are one wide one,
            and no gradient of the inputs is computed.
    """

    def __init__(self, weights: torch.Tensor, biases: torch.Tensor | None, *, first: bool) -> None:
        super().__init__(_parameters(weights, biases))
        self.weight = self.parameters[0]
        self.bias = None if biases is None else self.parameters[1]
        self._first = first
        self._inputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass = Pass.TRAINING) -> torch.Tensor:
        """(batch, fan_in) if first, else (K, fan_in, batch) → (K, fan_out, batch)."""
        if kind is Pass.TRAINING:
            self._inputs = inputs
        if not self._first:
            if self.bias is None:
                return torch.bmm(self.weight.value, inputs)
            return torch.baddbmm(self.bias.value, self.weight.value, inputs)
        n_members, fan_out, fan_in = self.weight.value.shape
        wide = torch.mm(self.weight.value.view(-1, fan_in), inputs.T).view(n_members, fan_out, -1)
        return wide if self.bias is None else wide.add_(self.bias.value)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """(K, fan_out, batch) → (K, fan_in, batch), or None if first."""
        if self.bias is not None:
            self.bias.grad.add_(gradient.sum(2, keepdim=True))
        if self._first:
            fan_in = self._inputs.shape[1]
            self.weight.grad.view(-1, fan_in).addmm_(gradient.flatten(0, 1), self._inputs)
            return None
        self.weight.grad.baddbmm_(gradient, self._inputs.transpose(1, 2))
        return torch.bmm(self.weight.value.transpose(1, 2), gradient)


class Bfloat16Linear(Linear):
    """As :class:`Linear`, with products of bfloat16 numbers summed up in float32; weights and outputs are float32.

    By hand, for autograd's copies of wide weights and their gradients take three times as long as the products.
    """

    def forward(self, inputs: torch.Tensor, kind: Pass = Pass.TRAINING) -> torch.Tensor:
        """See :class:`Linear`."""
        inputs, weight = inputs.bfloat16(), self.weight.value.bfloat16()
        if kind is Pass.TRAINING:
            self._inputs, self._weight = inputs, weight
        if self._first:
            outputs = torch.mm(weight.flatten(0, 1), inputs.T).view(*weight.shape[:2], -1).float()
        else:
            outputs = torch.bmm(weight, inputs).float()
        return outputs if self.bias is None else outputs.add_(self.bias.value)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """See :class:`Linear`."""
        if self.bias is not None:
            self.bias.grad.add_(gradient.sum(2, keepdim=True))
        gradient = gradient.bfloat16()
        if self._first:
            self.weight.grad.flatten(0, 1).add_(torch.mm(gradient.flatten(0, 1), self._inputs))
            return None
        self.weight.grad.add_(torch.bmm(gradient, self._inputs.transpose(1, 2)))
        return torch.bmm(self._weight.transpose(1, 2), gradient).float()


def _parameters(weights: torch.Tensor, biases: torch.Tensor | None) -> list[Parameter]:
    weight = Parameter(weights, penalised=True, name="weight")
    return [weight] if biases is None else [weight, Parameter(biases.unsqueeze(2), penalised=False, name="bias")]
