"""A data set ready to train on: read, split, preprocessed, on the device."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.objective.preprocess import Step
from hpsearch.training.augmentation import check_augment
from hpsearch.training.preprocessing import preprocess, shape_after
from hpsearch.training.samples import Samples
from hpsearch.training.sources import read_samples
from hpsearch.training.streams import Purpose, numpy_stream

CACHED_BYTES = 2 * 1024**3
"""Preprocessed copies beyond this are forgotten, the longest unused first; the latest one is always kept."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Samples (n, …) float32 and labels (n,) on the device: int64 classes, or float32 numbers to predict."""

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
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (features,) or (height, width, channels)."""
        return tuple(self.train.samples.shape[1:])

    @property
    def n_bytes(self) -> int:
        """Memory of the samples."""
        return self.train.samples.nbytes + self.validation.samples.nbytes


@dataclass(frozen=True)
class _Part:
    """Those of some samples that make up a split."""

    samples: Samples
    index: Index

    def floats(self) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.samples.x[self.index])).to(torch.float32)

    def labels(self) -> torch.Tensor:
        return torch.from_numpy(self.samples.y[self.index])


class Dataset:
    """A data set and its split. Not for use by several threads at once.

    Args:
        samples: all of them.
        train: where in ``samples`` the training split is.
        validation: where the validation split is.
        device: where the tensors go.
        test: where the test split is; by default it is ``samples.test``, if there is any.
        study_seed: ≥ 0; folds follow from it.

    Attributes:
        n_classes: number of classes C ≥ 2, labels are 0 … C − 1; or 0 where labels are numbers to predict.
        names: of the classes, where the source names them.
        shape: of one sample at raw scale: (features,) or (height, width, channels).
        device: where the tensors live.
    """

    def __init__(
        self,
        samples: Samples,
        train: Index,
        validation: Index,
        *,
        device: str,
        test: Index | None = None,
        study_seed: int = 0,
    ) -> None:
        self.n_classes = samples.n_classes
        self.names = samples.names
        self.shape = tuple(samples.x.shape[1:])
        self.device = device
        self._study_seed = study_seed
        self._train = _Part(samples, train)
        self._validation = _Part(samples, validation)
        self._test: _Part | None = None
        if test is not None:
            self._test = _Part(samples, test)
        elif samples.test is not None:
            self._test = _Part(samples.test, np.arange(len(samples.test.y)))
        self._key: tuple[Any, ...] = ()
        self._prepared: dict[tuple[Any, ...], Prepared] = {}  # shared with folds and the test

    @property
    def n_train(self) -> int:
        """Size of the training split."""
        return len(self._train.index)

    @property
    def n_validation(self) -> int:
        """Size of the validation split."""
        return len(self._validation.index)

    @property
    def n_test(self) -> int:
        """Size of the test split, 0 where there is none."""
        return 0 if self._test is None else len(self._test.index)

    @property
    def n_outputs(self) -> int:
        """Scores that a model gives per sample: one per class, or one number."""
        return self.n_classes or 1

    @property
    def test(self) -> Dataset | None:
        """The same training split with the test split in the place of the validation split; None where there is none.

        To be read once, for the winner.
        """
        if self._test is None:
            return None
        return self._derived("test", train=self._train, validation=self._test, test=None)

    def folds(self, n: int) -> list[Dataset]:
        """The ``n`` ≥ 2 data sets of a stratified cross-validation over training and validation samples.

        Each sample is in the validation split of one of them, and in the training split of the others. Samples are
        shuffled by the study's seed, sorted by class, and dealt out in turn, so that the sizes of any class in two
        folds, and those of the folds, differ by one at most (as scikit-learn's ``StratifiedKFold`` counts). Numbers
        to predict are dealt out without sorting. The test split stays the same.

        Raises:
            DataError: a class, or for numbers the whole, has fewer than ``n`` samples.
            ValueError: n < 2, or the validation split is not of the samples that the training split is of.
        """
        samples = self._train.samples
        if n < 2 or samples is not self._validation.samples:
            raise ValueError(f"{n} folds of {self.n_train} training and {self.n_validation} validation samples")
        pool = np.sort(np.concatenate([self._train.index, self._validation.index]))
        pool = numpy_stream(self._study_seed, Purpose.FOLDS).permutation(pool)
        strata = _strata(samples)[pool]
        self._check_folds(n, strata)
        fold = np.empty(len(pool), dtype=np.int64)
        fold[np.argsort(strata, kind="stable")] = np.arange(len(pool)) % n
        parts = [(np.sort(pool[fold != k]), np.sort(pool[fold == k])) for k in range(n)]
        return [
            self._derived(
                f"fold {k} of {n}", train=_Part(samples, train), validation=_Part(samples, held_out), test=self._test
            )
            for k, (train, held_out) in enumerate(parts)
        ]

    def _check_folds(self, n: int, strata: NDArray[Any]) -> None:
        classes, counts = np.unique(strata, return_counts=True)
        smallest = int(counts.argmin())
        if n > counts[smallest]:
            label = int(classes[smallest])
            name = repr(self.names[label]) if self.names else label
            what = f"class {name} has {counts[smallest]}" if self.n_classes else f"there are {counts[smallest]}"
            raise DataError(
                f"{n} folds are too many: {what} samples in training and validation split together, and each fold "
                f"needs one; give at most {counts[smallest]} folds"
            )

    def _derived(self, key: str, *, train: _Part, validation: _Part, test: _Part | None) -> Dataset:
        other = copy.copy(self)
        other._train, other._validation, other._test = train, validation, test
        other._key = (*self._key, key)
        return other

    def prepared(self, steps: Sequence[Step]) -> Prepared:
        """The splits after the preprocessing ``steps``, whose statistics are of the training split alone; cached.

        Raises:
            DataError: a step does not fit the samples, before anything is computed.
        """
        key = (*self._key, *steps)
        prepared = self._prepared.pop(key, None) or self._prepare(steps)
        self._prepared[key] = prepared
        while len(self._prepared) > 1 and sum(p.n_bytes for p in self._prepared.values()) > CACHED_BYTES:
            del self._prepared[next(iter(self._prepared))]
        return prepared

    def _prepare(self, steps: Sequence[Step]) -> Prepared:
        train, validation = preprocess(steps, self._train.floats(), self._validation.floats())
        rms = float(torch.linalg.vector_norm(train)) / math.sqrt(train.numel())
        return Prepared(self._split(train, self._train), self._split(validation, self._validation), rms or 1.0)

    def _split(self, samples: torch.Tensor, part: _Part) -> Split:
        return Split(samples.to(self.device), part.labels().to(self.device))


def load_dataset(objective: TrainObjective, *, study_seed: int, device: str = "cpu") -> Dataset:
    """Read and check the data of an objective and split it.

    The test split, where ``data.test`` asks for one, is drawn first; then the validation split. Both are functions of
    the data and ``study_seed`` alone, so the same for all trials of a study. They and ``data.train`` take every class
    in proportion to its share; numbers to predict (loss ``mse``) are drawn without regard to their size.

    Args:
        objective: its ``data`` says what to read; relative paths start from the working directory.
        study_seed: ≥ 0.
        device: where the tensors go, as torch names it.

    Raises:
        DataError: the data cannot be read, breaks a rule, or leaves a split empty; or preprocessing or augmentation
            does not fit them.
    """
    data = objective.data
    samples = read_samples(data, regression=objective.loss.kind == "mse")
    strata = _strata(samples)
    n_samples = len(strata)
    rest, test = np.arange(n_samples), None
    if data.test is not None:
        size = _size("test", data.test, n_samples, left=n_samples)
        test, rest = stratified(rest, strata, size, numpy_stream(study_seed, Purpose.TEST))
    rng = numpy_stream(study_seed, Purpose.SPLIT)
    size = _size("validation", data.validation, n_samples, left=len(rest))
    validation, train = stratified(rest, strata, size, rng)
    if data.train is not None and data.train < len(train):
        train, _ = stratified(train, strata, data.train, rng)
    shape = shape_after(objective.preprocess, tuple(samples.x.shape[1:]), len(train))
    check_augment(objective.augment, shape)
    return Dataset(samples, train, validation, device=device, test=test, study_seed=study_seed)


def _strata(samples: Samples) -> Index:
    """What splits keep in proportion: classes; numbers to predict are all one."""
    strata: Index = samples.y if samples.n_classes else np.zeros(len(samples.y), dtype=np.int64)
    return strata


def _size(split: str, wanted: float, n_samples: int, *, left: int) -> int:
    size = round(wanted * n_samples) if isinstance(wanted, float) else wanted
    if size == 0:
        raise DataError(
            f"data.{split} is {wanted}, which is none of the {n_samples} samples: give a larger share or a count"
        )
    if size >= left:
        beside = "" if left == n_samples else f" beside the {n_samples - left} of the test split"
        raise DataError(
            f"data.{split} is {wanted}, which leaves none of the {n_samples} samples to train on{beside}: "
            f"give at most {left - 1}"
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
