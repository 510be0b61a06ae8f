"""Models of K members: a list of layers and what is asked of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpsearch.objective import MlpModel
from hpsearch.training.initialisation import RELU_GAIN, SCORE_GAIN, he_normal
from hpsearch.training.layers import Layer, Linear, Parameter, Relu
from hpsearch.training.streams import Purpose, torch_stream


class Sequential:
    """Layers one after the other."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self.parameters: list[Parameter] = [p for layer in layers for p in layer.parameters]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Shared inputs (batch, features) → scores (K, classes, batch)."""
        for layer in self.layers:
            inputs = layer.forward(inputs)
        return inputs

    def backward(self, gradient: torch.Tensor) -> None:
        """Add the parameters' gradients, given that of the latest scores (K, classes, batch)."""
        inner: torch.Tensor | None = gradient
        for layer in reversed(self.layers):
            assert inner is not None  # only the first layer returns None
            inner = layer.backward(inner)

    def squared_norm(self) -> torch.Tensor:
        """Σ w² over all penalised parameters of each member, (K,)."""
        norms = [torch.linalg.vector_norm(p.value.flatten(1), dim=1) for p in self.parameters if p.penalised]
        return torch.stack(norms).square().sum(0)


def mlp(
    model: MlpModel, n_features: int, n_classes: int, *, input_rms: float, seeds: Sequence[int], device: str
) -> Sequential:
    """K multilayer perceptrons of one shape, each initialised from its own seed, layer after layer.

    Args:
        model: widths of the hidden layers; none is a linear classifier.
        n_features: width of the input.
        n_classes: number of scores.
        input_rms: root mean square of the inputs, > 0.
        seeds: one per member, ≥ 0.
        device: where the parameters live.
    """
    generators = [torch_stream(seed, Purpose.INITIALISATION) for seed in seeds]
    widths = [n_features, *model.hidden, n_classes]
    layers: list[Layer] = []
    for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True)):
        first, last = i == 0, i == len(model.hidden)
        gain, rms = SCORE_GAIN if last else RELU_GAIN, input_rms if first else 1.0
        weights = torch.stack([he_normal(shape, generator, gain=gain, input_rms=rms) for generator in generators])
        layers.append(Linear(weights.to(device), first=first))
        if not last:
            layers.append(Relu())
    return Sequential(layers)
