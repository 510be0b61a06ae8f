"""What is trained: ``objective.model`` and ``objective.loss``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.document import Document

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "maxout", "gelu", "silu"]
Init = Literal[
    "zeros", "small_random", "large_random", "xavier", "xavier_uniform", "he", "he_uniform", "orthogonal", "torch"
]
Width = Annotated[int, Field(ge=1, le=65_536)]


class _Initialised(Document):
    init: Init = "he"
    """``small_random``, ``large_random``: normal with standard deviation 0.01 and 1; ``torch``: PyTorch's own."""
    init_gain: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Multiplies every initial weight."""


class LinearModel(_Initialised):
    """Scores that are linear in the input."""

    kind: Literal["linear"]


class _Net(_Initialised):
    activation: Activation = "relu"
    slope: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Of ``leaky_relu`` below zero; what ``prelu`` starts from."""
    alpha: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of ``elu``: its limit at minus infinity is −alpha."""
    pieces: Annotated[int, Field(ge=2, le=8)] = 2
    """Of ``maxout``: linear pieces per unit."""
    batch_norm: Literal["before", "after"] | bool = False
    """``true`` and ``before`` normalise before the activation, ``after`` after it."""
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a minibatch's statistics in the running ones."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden activations set to zero in training; the others are scaled up (inverted dropout)."""


class MlpModel(_Net):
    """Linear layers of the widths ``hidden`` with an activation between them; none is a linear classifier."""

    kind: Literal["mlp"]
    hidden: Annotated[list[Width], Field(max_length=100)] = [50]


class CnnModel(_Net):
    """For each of ``channels``: convolution, normalisation, activation, max pooling; then ``hidden`` linear layers."""

    kind: Literal["cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=20)] = [16, 32]
    kernel: Literal[1, 3, 5, 7] = 3
    pool: Annotated[int, Field(ge=1, le=8)] = 2
    hidden: Annotated[list[Width], Field(max_length=20)] = []


class ResnetModel(_Net):
    """A residual net (He et al. 2015b): a convolution, ``blocks`` residual blocks per entry of ``channels``, each entry
    but the first at half the resolution, mean over the image, scores.
    """

    kind: Literal["resnet"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=10)] = [16, 32]
    blocks: Annotated[int, Field(ge=1, le=50)] = 1


Model = Annotated[LinearModel | MlpModel | CnnModel | ResnetModel, Field(discriminator="kind")]


class Loss(Document):
    """What is minimised, beside the regularisation."""

    kind: Literal["softmax", "hinge", "mse"] = "softmax"
    """Softmax cross-entropy; the lecture's multi-class SVM; mean squared error (regression: labels are numbers)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of ``softmax``: this share of the target is spread over all classes (Szegedy et al. 2015)."""
    margin: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Of ``hinge``."""
