"""The layers of K members of one architecture, made one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpsearch.objective.models import CnnModel, MlpModel, ResnetModel
from hpsearch.training.initialisation import initial
from hpsearch.training.layers import Activation, BatchNorm, Bfloat16Linear, Convolution, Dropout, Layer, Linear, Relu
from hpsearch.training.streams import Purpose, torch_stream

Net = MlpModel | CnnModel | ResnetModel


class Parts:
    """Makes layers; each member's weights come from its own stream, in the order of the calls.

    Args:
        models: one per member, of one architecture.
        seeds: one per member, ≥ 0.
        input_rms: root mean square of the samples, > 0.
        bfloat16: whether matrix products take bfloat16 numbers.
        device: where the tensors live.

    Attributes:
        widest: largest number of activations that a member has had for one sample after a layer so far.
    """

    def __init__(
        self, models: Sequence[Net], seeds: Sequence[int], *, input_rms: float, bfloat16: bool, device: str
    ) -> None:
        self.widest = 0
        self._models = models
        self._seeds = seeds
        self._streams = [torch_stream(seed, Purpose.INITIALISATION) for seed in seeds]
        self._input_rms = input_rms
        self._norm_place = "before" if models[0].batch_norm is True else models[0].batch_norm
        self._bfloat16 = bfloat16
        self._device = device
        self._first = True
        self._n_dropouts = 0

    def raw(self, n_units: int) -> int:
        """How many outputs the layer before an activation of ``n_units`` has: more for maxout."""
        model = self._models[0]
        return n_units * model.pieces if model.activation == "maxout" else n_units

    def linear(self, n_outputs: int, n_inputs: int, *, last: bool = False) -> Layer:
        """A linear layer, :meth:`activated` after it; ``last``: to the scores."""
        self.widest = max(self.widest, n_outputs)
        weights, biases, first = self._draw((n_outputs, n_inputs), last=last)
        return (Bfloat16Linear if self._bfloat16 else Linear)(weights, biases, first=first)

    def convolution(
        self, n_outputs: int, n_inputs: int, kernel: int, *, size: tuple[int, int], stride: int = 1
    ) -> Layer:
        """A convolution, :meth:`norm` or :meth:`activated` after it; ``size``: of its inputs."""
        self.widest = max(self.widest, n_outputs * strided(size[0], stride) * strided(size[1], stride))
        weights, biases, first = self._draw((n_outputs, n_inputs, kernel, kernel))
        return Convolution(weights, biases, stride=stride, first=first, bfloat16=self._bfloat16)

    def norm(self, place: str, n_units: int) -> list[Layer]:
        """Batch norm, if the model has it ``before`` or ``after`` the activation."""
        if place != self._norm_place:
            return []
        return [BatchNorm(n_units, self._vector([model.batch_norm_momentum for model in self._models]))]

    def activation(self) -> Layer:
        """The model's activation."""
        model = self._models[0]
        if model.activation == "relu":
            return Relu()
        numbers = [m.alpha if model.activation == "elu" else m.slope for m in self._models]
        return Activation(model.activation, self._vector(numbers), pieces=model.pieces)

    def activated(self, n_units: int) -> list[Layer]:
        """The activation with batch norm where the model has it."""
        return [*self.norm("before", self.raw(n_units)), self.activation(), *self.norm("after", n_units)]

    def dropout(self) -> Layer:
        """Always a layer, so that the names of parameters do not depend on who else is in the pack."""
        self._n_dropouts += 1
        return Dropout(self._vector([model.dropout for model in self._models]), self._seeds, layer=self._n_dropouts)

    def _draw(self, shape: tuple[int, ...], *, last: bool = False) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
        """Weights (K, *shape), biases (K, shape[0]) or None, and whether the layer is the first."""
        first, self._first = self._first, False
        rms = self._input_rms if first else 1.0
        drawn = [
            initial(model.init, shape, stream, input_rms=rms, last=last)
            for model, stream in zip(self._models, self._streams, strict=True)
        ]
        weights = torch.stack([w * model.init_gain for model, (w, _) in zip(self._models, drawn, strict=True)])
        # Batch norm takes a bias away again. Its gradient would be a rounding error, which an optimiser that divides by
        # the root of the mean square makes a step of full size.
        biases = None if not last and self._norm_place == "before" else torch.stack([b for _, b in drawn])
        return weights.to(self._device), None if biases is None else biases.to(self._device), first

    def _vector(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def strided(n_pixels: int, stride: int) -> int:
    """Height or width after a convolution that keeps the size at stride 1."""
    return -(-n_pixels // stride)
