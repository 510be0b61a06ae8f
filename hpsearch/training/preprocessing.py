"""Preprocessing steps: statistics of the training split alone, applied to every split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hpsearch.errors import DataError
from hpsearch.objective.preprocess import PcaStep, Step, WhitenStep
from hpsearch.training.components import Components

Transform = Callable[[torch.Tensor], torch.Tensor]
"""Maps samples (n, …) of any split, float32; may work in place."""


def zero_mean(train: torch.Tensor) -> Transform:
    """Subtract the mean sample of the training split, for images the mean image (cs231n, "Data Preprocessing").

    Args:
        train: (n, …) float32, n ≥ 1.
    """
    mean = _mean(train, [0]).to(torch.float32)
    return lambda samples: samples.sub_(mean)


def per_channel_mean(train: torch.Tensor) -> Transform:
    """Subtract one mean per channel (cs231n: "as VGGNet").

    Args:
        train: (n, height, width, channels) float32, n ≥ 1.
    """
    mean = _mean(train, [0, 1, 2]).to(torch.float32)
    return lambda samples: samples.sub_(mean)


def standardize(train: torch.Tensor) -> Transform:
    """Mean 0 and standard deviation 1 (divisor n) of every feature; one that is constant becomes 0.

    Args:
        train: (n, …) float32, n ≥ 1.
    """
    mean = _mean(train, [0]).to(torch.float32)
    total = torch.zeros(train.shape[1:], dtype=torch.float64)
    for piece in _pieces(train):
        total += (piece - mean).double().square().sum(0)
    deviation = (total / len(train)).sqrt().to(torch.float32)
    deviation[deviation == 0] = 1.0
    return lambda samples: samples.sub_(mean).div_(deviation)


def min_max(train: torch.Tensor) -> Transform:
    """Every feature from its smallest to its largest training value to [0, 1]; one that is constant becomes 0.

    Other splits may leave [0, 1].

    Args:
        train: (n, …) float32, n ≥ 1.
    """
    low = train.amin(0)
    span = train.amax(0).sub_(low)
    span[span == 0] = 1.0
    return lambda samples: samples.sub_(low).div_(span)


def pca(train: torch.Tensor, step: PcaStep) -> Transform:
    """Subtract the mean and rotate onto the principal axes (see :class:`Components`); samples become flat.

    Args:
        train: (n, …) float32, n ≥ 1.
        step: how many axes are kept.
    """
    components = Components(train.flatten(1))
    n_kept = components.n_holding(step.variance) if step.variance is not None else step.components
    return components.projection(n_kept)


def whiten(train: torch.Tensor, step: WhitenStep) -> Transform:
    """As :func:`pca`, each axis over √(its variance + epsilon · the largest variance) (cs231n, "PCA and Whitening").

    Args:
        train: (n, …) float32, n ≥ 1.
        step: how many axes are kept, and epsilon.
    """
    components = Components(train.flatten(1))
    return components.projection(step.components, whiten_epsilon=step.epsilon)


def preprocess(steps: Sequence[Step], train: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All splits after ``steps`` in their order; each step is fitted to the training split as the one before left it.

    Args:
        steps: as in ``objective.preprocess``; none leaves the samples at their raw scale.
        train: (n, …) float32; overwritten.
        *others: further splits (m, …) float32; overwritten.

    Raises:
        DataError: a step does not fit the samples; see :func:`shape_after`.
    """
    shape_after(steps, tuple(train.shape[1:]), len(train))  # so that nothing is computed in vain
    splits = (train, *others)
    for step in steps:
        shape_after([step], tuple(splits[0].shape[1:]), len(train))
        transform = _fitted(step, splits[0])
        splits = tuple(transform(split) for split in splits)
    return splits


def shape_after(steps: Sequence[Step], shape: tuple[int, ...], n_train: int) -> tuple[int, ...]:
    """The shape of a sample after ``steps``; after ``pca`` by kept variance, the largest that it can have.

    Raises:
        DataError: a step needs images and gets flat samples, or more components are wanted than there are columns or
            training samples.
    """
    for step in steps:
        if step == "per_channel_mean" and len(shape) != 3:
            raise DataError(
                f"per_channel_mean needs images, but where it comes a sample is {shape[0]} numbers in a row: "
                "use zero_mean"
            )
        if isinstance(step, PcaStep | WhitenStep) or step in {"pca", "whiten"}:
            shape = (_n_kept(step, _product(shape), n_train),)
    return shape


def _n_kept(step: Step, n_columns: int, n_train: int) -> int:
    wanted = None if isinstance(step, str) else step.components
    available = min(n_columns, n_train)
    if wanted is None:
        return available
    if wanted > available:
        what = f"{n_columns} columns" if n_columns <= n_train else f"{n_train} training samples"
        assert not isinstance(step, str)
        raise DataError(f"{step.kind} is to keep {wanted} components of {what}: give at most {available}")
    return wanted


def _product(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _fitted(step: Step, train: torch.Tensor) -> Transform:
    match step:
        case "zero_mean":
            return zero_mean(train)
        case "per_channel_mean":
            return per_channel_mean(train)
        case "standardize":
            return standardize(train)
        case "min_max":
            return min_max(train)
        case "pca":
            return pca(train, PcaStep(kind="pca"))
        case "whiten":
            return whiten(train, WhitenStep(kind="whiten"))
        case PcaStep():
            return pca(train, step)
        case WhitenStep():
            return whiten(train, step)


def _pieces(samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """About 1,000 samples each, for a copy of a whole split in double precision may not fit beside it."""
    return torch.tensor_split(samples, 1 + len(samples) // 1000)


def _mean(train: torch.Tensor, dims: list[int]) -> torch.Tensor:
    total = torch.stack([piece.sum(dims, dtype=torch.float64) for piece in _pieces(train)]).sum(0)
    return total / (train.numel() // total.numel())
