"""Labels: from what a file holds to class numbers 0 … C − 1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError

RULE = "labels must be whole numbers from 0 to the number of classes less one"


class Labels(NamedTuple):
    """What is to be predicted.

    Attributes:
        values: (n,) int64 classes, or float32 numbers.
        n_classes: ≥ 2, or 0 for numbers.
        names: of the classes, where they are words.
    """

    values: NDArray[Any]
    n_classes: int
    names: tuple[str, ...] = ()


def encode_labels(
    labels: NDArray[Any], *, where: str, n_classes: int | None = None, regression: bool = False
) -> Labels:
    """Check labels and number their classes, or take them as numbers for a regression.

    Words are numbered in their sorted order; numbers are taken as they are.

    Args:
        labels: (n,) whole numbers, booleans or strings, n ≥ 1. Missing ones are None or NaN.
        where: names the column or array in errors.
        n_classes: how many classes the file declares; by default the largest label plus one.
        regression: labels are any finite numbers.

    Raises:
        DataError: a label is missing, fractional, negative or out of range, or there is one class only; of a
            regression, one is not a finite number.
    """
    if regression:
        return Labels(_numbers(labels, where), 0)
    if labels.dtype.kind in "OUS":
        return _strings(labels, where)
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where} has the type {labels.dtype}: {RULE}, or strings")
    _refuse(np.isnan(labels) if labels.dtype.kind == "f" else None, labels, where, "is missing")
    _refuse(labels != np.floor(labels) if labels.dtype.kind == "f" else None, labels, where, "is no whole number")
    _refuse(labels < 0, labels, where, "is negative")
    # Without a declared number of classes, more of them than samples can only be a wrong column.
    limit = n_classes or len(labels)
    _refuse(
        labels >= limit,
        labels,
        where,
        f"is out of range, for there are {limit} {'classes' if n_classes else 'samples'}",
    )
    encoded = labels.astype(np.int64)
    found = n_classes or int(encoded.max()) + 1
    if found < 2:
        raise DataError(f"{where} holds class 0 alone: a classifier needs at least two classes")
    return Labels(encoded, found)


def _strings(labels: NDArray[Any], where: str) -> Labels:
    _refuse(np.array([label is None or label == "" for label in labels]), labels, where, "is missing")
    classes, encoded = np.unique(labels.astype(str), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{where} holds {str(classes[0])!r} alone: a classifier needs at least two classes")
    return Labels(encoded.astype(np.int64), len(classes), tuple(map(str, classes)))


def _numbers(labels: NDArray[Any], where: str) -> NDArray[np.float32]:
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where} holds no numbers: the loss mse predicts numbers; for classes take softmax or hinge")
    with np.errstate(over="ignore"):
        numbers = labels.astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{where} holds {labels[row]} in sample {row} (from 0): every label must be a finite number")
    return numbers


def _refuse(bad: NDArray[np.bool_] | None, labels: NDArray[Any], where: str, fault: str) -> None:
    if bad is not None and bad.any():
        row = int(bad.argmax())
        raise DataError(f"{where} holds {labels[row]} in sample {row} (from 0), which {fault}: {RULE}")
