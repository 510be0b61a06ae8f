"""Labels: from what a file holds to class numbers 0 … C − 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError

RULE = "labels must be whole numbers from 0 to the number of classes less one"


def encode_labels(labels: NDArray[Any], *, where: str, n_classes: int | None = None) -> tuple[NDArray[np.int64], int]:
    """Check labels and number their classes.

    Strings are numbered in their sorted order; numbers are taken as they are.

    Args:
        labels: (n,) whole numbers, booleans or strings, n ≥ 1. Missing ones are None or NaN.
        where: names the column or array in errors.
        n_classes: how many classes the file declares; by default the largest label plus one.

    Returns:
        Labels (n,) int64 and the number of classes.

    Raises:
        DataError: a label is missing, fractional, negative or out of range, or there is one class only.
    """
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
    return encoded, found


def _strings(labels: NDArray[Any], where: str) -> tuple[NDArray[np.int64], int]:
    _refuse(np.array([label is None or label == "" for label in labels]), labels, where, "is missing")
    classes, encoded = np.unique(labels.astype(str), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{where} holds {str(classes[0])!r} alone: a classifier needs at least two classes")
    return encoded.astype(np.int64), len(classes)


def _refuse(bad: NDArray[np.bool_] | None, labels: NDArray[Any], where: str, fault: str) -> None:
    if bad is not None and bad.any():
        row = int(bad.argmax())
        raise DataError(f"{where} holds {labels[row]} in sample {row} (from 0), which {fault}: {RULE}")
