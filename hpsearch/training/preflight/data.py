"""Checks of the data as the model gets them: numbers, columns, classes, and rows that stand in both splits."""

from __future__ import annotations

import zlib

import torch

from hpsearch.training.data import Prepared
from hpsearch.training.preflight.check import Check

MANY_CONSTANT = 0.5
"""Share of constant columns from which on something is wrong with the file; images have a few at their rims (3 of
the 64 of digits)."""

IMBALANCE = 10.0
"""The largest class over the smallest, from which on accuracy says little of the smallest."""

SHARED = 0.01
"""Share of validation rows that are also training rows, from which on the validation metric is flattered by more
than the half a percent that its own noise often is."""

ROWS = 100_000
"""At most so many training rows are compared; a file with doubled rows shows in any part of it."""

PIECE = 250
"""Rows whose ends are found at a time: about what the caches hold of images."""


def finite(prepared: Prepared) -> Check:
    """Whether all numbers are finite after the preprocessing; the sources refuse others before it."""
    ends = [end for split in (prepared.train, prepared.validation) for end in _ends(split.samples)]
    bad = int((~torch.isfinite(torch.stack(ends))).any(0).sum())
    if bad:
        message = f"{bad} columns are not finite after the preprocessing: change or drop one of its steps."
        return Check("data_finite", "fail", message, {"non_finite": float(bad)})
    return Check("data_finite", "pass", "All numbers are finite.", {"non_finite": 0.0})


def _ends(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest number of each column; NaN where one is."""
    # Not aminmax, which takes twice as long.
    pieces = torch.split(samples, PIECE)
    low = torch.stack([piece.flatten(1).amin(0) for piece in pieces]).amin(0)
    return low, torch.stack([piece.flatten(1).amax(0) for piece in pieces]).amax(0)


def columns(prepared: Prepared) -> Check:
    """Features that are the same in every training sample."""
    name = "data_columns"
    low, high = _ends(prepared.train.samples)
    n_columns, constant = len(high), int((high == low).sum())
    numbers = {"columns": float(n_columns), "constant": float(constant)}
    seen = f"{constant} of {n_columns} columns are the same in every training sample"
    if constant == n_columns:
        return Check(name, "fail", f"{seen}: there is nothing to learn from; check the file.", numbers)
    if constant >= MANY_CONSTANT * n_columns:
        return Check(name, "warn", f"{seen}: check the file, and leave out those that hold nothing.", numbers)
    return Check(name, "pass", f"{seen}.", numbers)


def classes(prepared: Prepared, n_classes: int) -> Check:
    """How the training samples spread over the classes."""
    name = "data_classes"
    counts = torch.bincount(prepared.train.labels, minlength=n_classes)
    largest, smallest = int(counts.max()), int(counts.min())
    numbers = {"classes": float(n_classes), "smallest": float(smallest), "largest": float(largest)}
    if smallest == 0:
        empty = int((counts == 0).sum())
        message = f"{empty} of {n_classes} classes have no training sample (class {int(counts.argmin())}, for one): "
        return Check(name, "warn", message + "check the labels, or renumber them from 0 without a gap.", numbers)
    seen = f"The classes have {smallest} to {largest} training samples"
    if largest > IMBALANCE * smallest:
        message = f"{seen}: accuracy hides the small ones; search by val_macro_f1, or balance them."
        return Check(name, "warn", message, numbers)
    return Check(name, "pass", f"{seen}.", numbers)


def duplicates(prepared: Prepared) -> Check:
    """Validation rows that are, number for number, training rows too: learned by heart, they count as understood."""
    name = "data_duplicates"
    train, validation = (s.samples.flatten(1).cpu() for s in (prepared.train, prepared.validation))
    wanted: dict[int, list[int]] = {}
    for i, row in enumerate(validation):
        wanted.setdefault(_checksum(row), []).append(i)
    found: set[int] = set()
    for row in train[:ROWS]:
        for i in wanted.get(_checksum(row), ()):
            if i not in found and torch.equal(row, validation[i]):
                found.add(i)
    numbers = {"shared": float(len(found)), "validation": float(len(validation))}
    seen = f"{len(found)} of {len(validation)} validation rows stand in the training split, too"
    if len(found) > SHARED * len(validation):
        message = f"{seen}: remove duplicate rows, or the validation metric flatters."
        return Check(name, "warn", message, numbers)
    return Check(name, "pass", f"{seen}.", numbers)


def _checksum(row: torch.Tensor) -> int:
    return zlib.crc32(row.numpy().data)
