"""Models of K members: their architectures, and what is asked of the whole."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.objective.models import CnnModel, LinearModel, MlpModel, Model, ResnetModel
from hpsearch.training.layers import (
    Activation,
    Activity,
    Buffer,
    ImageMean,
    Layer,
    Parameter,
    Pass,
    Relu,
    Residual,
    flatten,
    max_pool,
    run,
    run_back,
)
from hpsearch.training.parts import Net, Parts, strided


class StackedModel:
    """K models of one architecture.

    Args:
        layers: run one after the other.
        image: (height, width, channels) that the first layer takes; None for flat samples.
        widest: see the attribute.

    Attributes:
        parameters: all learned tensors, in the order of a forward pass.
        buffers: all running statistics, in that order.
        widest: largest number of activations that a member has for one sample after a layer.
    """

    def __init__(self, layers: Sequence[Layer], *, image: tuple[int, int, int] | None, widest: int) -> None:
        for i, layer in enumerate(layers):
            layer.place(f"layers.{i}")
        self.parameters: list[Parameter] = [p for layer in layers for p in layer.parameters]
        self.buffers: list[Buffer] = [b for layer in layers for b in layer.buffers]
        self.widest = widest
        self._layers = layers
        self._image = image

    def forward(self, inputs: torch.Tensor, *, training: bool) -> torch.Tensor:
        """Scores (K, outputs, batch) of the shared inputs (batch, features) or (batch, height, width, channels).

        In training, dropout is on, batch norm takes the statistics of the minibatch and remembers them, and
        :meth:`backward` may follow.
        """
        return self._run(inputs, Pass.TRAINING if training else Pass.EVALUATION)

    def backward(self, gradient: torch.Tensor) -> None:
        """Add the parameters' gradients, given that of the scores of the latest training pass; may overwrite it."""
        run_back(self._layers, gradient)

    def begin_epoch(self, epoch: int) -> None:
        """Restart the streams of dropout from (member seed, epoch), so that a resumed trial sees the same masks."""
        for layer in self._layers:
            layer.begin_epoch(epoch)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows`` (int64, on the device), in that order: parameters, buffers and the rest."""
        for layer in self._layers:
            layer.keep(rows)

    def activities(self, inputs: torch.Tensor) -> list[Activity]:
        """How each activation does on shared inputs, in the order of a forward pass; none for a linear model.

        Batch norm takes the statistics of these inputs and nothing is dropped; nothing is changed.
        """
        self._run(inputs, Pass.INSPECTION)
        leaves = [leaf for layer in self._layers for leaf in layer.walk()]
        found = [leaf.activity for leaf in leaves if isinstance(leaf, Relu | Activation)]
        return [activity for activity in found if activity is not None]

    def _run(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        inputs = inputs.flatten(1) if self._image is None else inputs.reshape(len(inputs), *self._image)
        return run(self._layers, inputs, kind)


def model_key(objective: TrainObjective) -> Hashable:
    """Objectives with equal keys can be members of one stacked model and loss: same shapes and same control flow.

    What is a number per member (dropout, slope, alpha, momentum of batch norm, label smoothing, margin) or drawn per
    member (the initial weights) is not in it.
    """
    model = objective.model
    if isinstance(model, LinearModel):
        shape: dict[str, object] = {"kind": "linear"}
    else:
        own = {"init", "init_gain", "slope", "alpha", "batch_norm", "batch_norm_momentum", "dropout", "pieces"}
        pieces = model.pieces if model.activation == "maxout" else 1
        batch_norm = "before" if model.batch_norm is True else model.batch_norm
        shape = {**model.model_dump(exclude=own), "pieces": pieces, "batch_norm": batch_norm}
    return (repr(sorted(shape.items())), objective.loss.kind, objective.precision)


def build_model(
    objectives: Sequence[TrainObjective],
    *,
    input_shape: tuple[int, ...],
    n_outputs: int,
    input_rms: float,
    seeds: Sequence[int],
    device: str,
) -> StackedModel:
    """K models of one shape, each initialised from its own seed, layer after layer.

    Args:
        objectives: one per member, of equal :func:`model_key`.
        input_shape: of one sample: (features,), (height, width) or (height, width, channels).
        n_outputs: number of scores: classes, or 1 for a regression.
        input_rms: root mean square of the samples, > 0.
        seeds: one per member, ≥ 0.
        device: where the parameters live.

    Raises:
        DataError: the model does not fit the shape of the samples.
    """
    models = [_as_net(objective.model) for objective in objectives]
    bfloat16 = objectives[0].precision == "bfloat16"
    parts = Parts(models, seeds, input_rms=input_rms, bfloat16=bfloat16, device=device)
    model = models[0]
    if isinstance(model, MlpModel):
        layers = _linear_layers(parts, model.hidden, math.prod(input_shape), n_outputs)
        return StackedModel(layers, image=None, widest=parts.widest)
    image = _image_shape(model, input_shape)
    if isinstance(model, CnnModel):
        layers = _cnn(parts, model, image, n_outputs)
    else:
        layers = _resnet(parts, model, image, n_outputs)
    return StackedModel(layers, image=image, widest=parts.widest)


def _as_net(model: Model) -> Net:
    """A linear model is a net without hidden layers."""
    if isinstance(model, LinearModel):
        return MlpModel(kind="mlp", hidden=[], init=model.init, init_gain=model.init_gain)
    return model


def _image_shape(model: CnnModel | ResnetModel, shape: tuple[int, ...]) -> tuple[int, int, int]:
    match shape:
        case (height, width):
            return height, width, 1
        case (height, width, channels):
            return height, width, channels
    raise DataError(
        f"model.kind {model.kind} needs images (height × width × channels), and a sample here is of the shape {shape}: "
        "take mlp or linear, or leave out a step of preprocess that flattens images (pca, whiten)"
    )


def _linear_layers(parts: Parts, hidden: Sequence[int], n_inputs: int, n_outputs: int) -> list[Layer]:
    layers: list[Layer] = []
    for width in hidden:
        layers += [parts.linear(parts.raw(width), n_inputs), *parts.activated(width), parts.dropout()]
        n_inputs = width
    return [*layers, parts.linear(n_outputs, n_inputs, last=True)]


def _cnn(parts: Parts, model: CnnModel, image: tuple[int, int, int], n_outputs: int) -> list[Layer]:
    layers: list[Layer] = []
    height, width, n_inputs = image
    for i, channels in enumerate(model.channels):
        layers += [parts.convolution(parts.raw(channels), n_inputs, model.kernel, size=(height, width))]
        layers += parts.activated(channels)
        if model.pool > 1:
            layers.append(max_pool(model.pool))
        layers.append(parts.dropout())
        height, width, n_inputs = height // model.pool, width // model.pool, channels
        if not height or not width:
            raise DataError(
                f"images of {image[0]} × {image[1]} are too small for model.pool {model.pool} after each of the "
                f"{len(model.channels)} entries of model.channels: entry {i + 1} leaves nothing; take a smaller pool "
                "or fewer entries"
            )
    return [*layers, flatten(), *_linear_layers(parts, model.hidden, height * width * n_inputs, n_outputs)]


def _resnet(parts: Parts, model: ResnetModel, image: tuple[int, int, int], n_outputs: int) -> list[Layer]:
    height, width, n_inputs = image
    channels = model.channels[0]
    layers = [parts.convolution(parts.raw(channels), n_inputs, 3, size=(height, width)), *parts.activated(channels)]
    for stage, n_channels in enumerate(model.channels):
        for block in range(model.blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            if stride == 2 and min(height, width) == 1:
                raise DataError(
                    f"images of {image[0]} × {image[1]} cannot be halved {len(model.channels) - 1} times, once for "
                    "each entry of model.channels after the first: take fewer entries"
                )
            layers += _block(parts, (channels, n_channels), size=(height, width), stride=stride)
            height, width, channels = strided(height, stride), strided(width, stride), n_channels
    return [*layers, ImageMean(), parts.linear(n_outputs, channels, last=True)]


def _block(parts: Parts, channels: tuple[int, int], *, size: tuple[int, int], stride: int) -> list[Layer]:
    """Two convolutions of 3 × 3, dropout between them (Zagoruyko & Komodakis 2016), and a shortcut: a convolution of
    1 × 1 where the shapes differ (He et al. 2015b, option B).
    """
    n_inputs, n_units = channels
    n_outputs = parts.raw(n_units)
    inner = strided(size[0], stride), strided(size[1], stride)
    main = [
        parts.convolution(n_outputs, n_inputs, 3, size=size, stride=stride),
        *parts.activated(n_units),
        parts.dropout(),
        parts.convolution(n_outputs, n_units, 3, size=inner),
        *parts.norm("before", n_outputs),
    ]
    shortcut: list[Layer] = []
    if stride != 1 or n_inputs != n_outputs:
        projection = parts.convolution(n_outputs, n_inputs, 1, size=size, stride=stride)
        shortcut = [projection, *parts.norm("before", n_outputs)]
    return [Residual(main, shortcut), parts.activation(), *parts.norm("after", n_units)]
