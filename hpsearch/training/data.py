"""A data set ready to train on: read, split, preprocessed, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.training.preprocessing import preprocess
from hpsearch.training.samples import Samples
from hpsearch.training.sources import read_samples
from hpsearch.training.streams import Purpose, numpy_stream

CACHED_BYTES = 2 * 1024**3
"""Preprocessed copies beyond this are forgotten, the longest unused first; the latest one is always kept."""


@dataclass(frozen=True)
class Split:
    """Samples (n, …) float32 and labels (n,) int64 on the device."""

    samples: torch.Tensor
    labels: torch.Tensor

    def flat(self) -> Split:
        """Samples as rows, (n, features): images row by row, their channels innermost."""
        return Split(self.samples.flatten(1), self.labels)


@dataclass(frozen=True)
class Prepared:
    """Both splits after preprocessing, not to be written to.

    Attributes:
        rms: root mean square of all numbers of the training split; 1 where they are all 0.
    """

    train: Split
    validation: Split
    rms: float

    @property
    def n_bytes(self) -> int:
        """Memory of the samples."""
        return self.train.samples.nbytes + self.validation.samples.nbytes


class Dataset:
    """A data set and its split. Not for use by several threads at once.

    Attributes:
        n_classes: number of classes C ≥ 2; labels are 0 … C − 1.
        shape: of one sample: (features,) or (height, width, channels).
        n_train: size of the training split.
        n_validation: size of the validation split.
        device: where the tensors live.
    """

    def __init__(
        self, samples: Samples, train: NDArray[np.int64], validation: NDArray[np.int64], *, device: str
    ) -> None:
        self.n_classes = samples.n_classes
        self.shape = tuple(samples.x.shape[1:])
        self.n_train = len(train)
        self.n_validation = len(validation)
        self.device = device
        self._samples = samples
        self._train = train
        self._validation = validation
        self._prepared: dict[tuple[str, ...], Prepared] = {}

    def prepared(self, steps: Sequence[str]) -> Prepared:
        """The splits after the preprocessing ``steps``, whose statistics are of the training split alone; cached."""
        key = tuple(steps)
        prepared = self._prepared.pop(key, None) or self._prepare(key)
        self._prepared[key] = prepared
        while len(self._prepared) > 1 and sum(p.n_bytes for p in self._prepared.values()) > CACHED_BYTES:
            del self._prepared[next(iter(self._prepared))]
        return prepared

    def _prepare(self, steps: Sequence[str]) -> Prepared:
        train, validation = preprocess(steps, self._floats(self._train), self._floats(self._validation))
        rms = float(torch.linalg.vector_norm(train)) / math.sqrt(train.numel())
        return Prepared(self._split(train, self._train), self._split(validation, self._validation), rms or 1.0)

    def _floats(self, index: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self._samples.x[index])).to(torch.float32)

    def _split(self, samples: torch.Tensor, index: NDArray[np.int64]) -> Split:
        labels = torch.from_numpy(self._samples.y[index])
        return Split(samples.to(self.device), labels.to(self.device))


def load_dataset(objective: TrainObjective, *, study_seed: int, device: str = "cpu") -> Dataset:
    """Read and check the data of an objective and split it.

    The validation split is a function of the data and ``study_seed`` alone, so the same for all trials of a study. Both
    it and ``data.train`` take every class in proportion to its share.

    Args:
        objective: its ``data`` says what to read; relative paths start from the working directory.
        study_seed: ≥ 0.
        device: where the tensors go, as torch names it.

    Raises:
        DataError: the data cannot be read, breaks a rule, or leaves a split empty.
    """
    samples = read_samples(objective.data)
    n_samples = len(samples.y)
    n_validation = _validation_size(objective.data.validation, n_samples)
    rng = numpy_stream(study_seed, Purpose.SPLIT)
    validation, train = stratified(np.arange(n_samples), samples.y, n_validation, rng)
    if objective.data.train is not None and objective.data.train < len(train):
        train, _ = stratified(train, samples.y, objective.data.train, rng)
    return Dataset(samples, train, validation, device=device)


def _validation_size(validation: float, n_samples: int) -> int:
    size = round(validation * n_samples) if isinstance(validation, float) else validation
    if size == 0:
        raise DataError(
            f"data.validation is {validation}, which is none of the {n_samples} samples: give a larger share or a count"
        )
    if size >= n_samples:
        raise DataError(
            f"data.validation is {validation}, which leaves none of the {n_samples} samples to train on: "
            f"give at most {n_samples - 1}"
        )
    return size


def stratified(
    index: NDArray[np.int64], labels: NDArray[Any], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``size`` of the samples at ``index``, and the rest; both in ascending order.

    Every class gives its share of ``size`` rounded down, and those with the largest remainders one more
    (Hamilton's method), so that a class is off its exact share by less than one sample.
    """
    index = rng.permutation(index)
    classes, position = np.unique(labels[index], return_inverse=True)
    exact = np.bincount(position, minlength=len(classes)) * (size / len(index))
    quota = np.floor(exact).astype(np.int64)
    largest = np.argsort(quota - exact, kind="stable")
    quota[largest[: size - quota.sum()]] += 1
    drawn = np.zeros(len(index), dtype=bool)
    for k, n_drawn in enumerate(quota):
        drawn[np.flatnonzero(position == k)[:n_drawn]] = True
    return np.sort(index[drawn]), np.sort(index[~drawn])
