"""The data of a task: what ``data()`` returned, checked, split, on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.errors import DataError
from hpsearch.training.data import Split, stratified
from hpsearch.training.streams import Purpose, numpy_stream
from hpsearch.training.task.loading import Task, user_code

SHAPE = "data() must return (x, y), or (x_train, y_train, x_validation, y_validation)"


@dataclass(frozen=True)
class TaskData:
    """Both splits: samples (n, …) float32 or int64, targets (n, …) int64 or float32, on the device.

    Attributes:
        whole: all samples and targets.
        train_index: those of the training split.
        validation_index: those of the validation split.
        study_seed: folds follow from it.
    """

    whole: Split
    train_index: NDArray[np.int64]
    validation_index: NDArray[np.int64]
    study_seed: int

    @cached_property
    def train(self) -> Split:
        """The training split."""
        return _part(self.whole, self.train_index)

    @cached_property
    def validation(self) -> Split:
        """The validation split."""
        return _part(self.whole, self.validation_index)

    def folds(self, n: int) -> list[TaskData]:
        """The ``n`` data sets of a cross-validation over both splits; stratified where targets are classes.

        Raises:
            DataError: a class, or for other targets the whole, has fewer than ``n`` samples.
        """
        strata = _strata(self.whole.labels)
        classes, counts = np.unique(strata, return_counts=True)
        if n > counts.min():
            what = f"class {classes[counts.argmin()]}" if len(classes) > 1 else "the data"
            raise DataError(
                f"{n} folds are too many: {what} has {counts.min()} samples, and each fold needs one; "
                f"give at most {counts.min()} folds"
            )
        order = numpy_stream(self.study_seed, Purpose.FOLDS).permutation(len(strata))
        fold = np.empty(len(order), dtype=np.int64)
        fold[order[np.argsort(strata[order], kind="stable")]] = np.arange(len(order)) % n
        return [
            TaskData(self.whole, np.flatnonzero(fold != k), np.flatnonzero(fold == k), self.study_seed)
            for k in range(n)
        ]


def task_data(
    task: Task, *, validation: float, study_seed: int, numbers: bool = False, device: str = "cpu"
) -> TaskData:
    """The data of a task; where it gives no validation split, one by ``validation`` and the study's seed.

    Args:
        task: its ``data()`` returns arrays, tensors or lists: floating-point numbers become float32, whole ones int64.
        validation: a count of samples, or a share of all. Classes are drawn in proportion.
        study_seed: ≥ 0.
        numbers: whole targets are numbers to predict, too, and become float32.
        device: where the tensors go.

    Raises:
        DataError: ``data()`` raises, or what it returns breaks a rule.
    """
    parts = task.data(study_seed)
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 4):
        got = f"a {type(parts).__name__}" + (f" of {len(parts)}" if isinstance(parts, tuple | list) else "")
        raise DataError(f"{task.entrypoint}: {SHAPE}, but returns {got}")
    tensors = [_tensor(part, f"{task.entrypoint}: {name}") for part, name in zip(parts, _names(parts), strict=True)]
    if numbers:
        tensors[1::2] = [y.to(torch.float32) for y in tensors[1::2]]
    for x, y, name in zip(tensors[::2], tensors[1::2], _names(parts)[::2], strict=True):
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{task.entrypoint}: {name} has {len(x)} samples and its targets are {len(y)}")
    if len(parts) == 4:
        return _given(task, tensors, study_seed, device)
    x, y = tensors
    size = round(validation * len(x)) if isinstance(validation, float) else validation
    if not 0 < size < len(x):
        raise DataError(
            f"validation is {validation}, which is {size} of the {len(x)} samples: both splits need at least one"
        )
    drawn, rest = stratified(np.arange(len(x)), _strata(y), size, numpy_stream(study_seed, Purpose.SPLIT))
    return TaskData(Split(x.to(device), y.to(device)), rest, drawn, study_seed)


def _given(task: Task, tensors: list[torch.Tensor], study_seed: int, device: str) -> TaskData:
    x, y, x_validation, y_validation = tensors
    for a, b, what in ((x, x_validation, "x"), (y, y_validation, "y")):
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise DataError(
                f"{task.entrypoint}: {what} of training and validation differ: {tuple(a.shape)} of {a.dtype} and "
                f"{tuple(b.shape)} of {b.dtype}"
            )
    whole = Split(torch.cat([x, x_validation]).to(device), torch.cat([y, y_validation]).to(device))
    return TaskData(whole, np.arange(len(x)), np.arange(len(x), len(x) + len(x_validation)), study_seed)


def _names(parts: tuple[Any, ...] | list[Any]) -> list[str]:
    return ["x", "y"] if len(parts) == 2 else ["x_train", "y_train", "x_validation", "y_validation"]


def _tensor(part: Any, name: str) -> torch.Tensor:
    with user_code(f"{name} as a tensor"):
        tensor = torch.as_tensor(part).detach()
    if tensor.dim() == 0:
        raise DataError(f"{name} is one number: it needs an axis of samples")
    if tensor.is_complex():
        raise DataError(f"{name} holds complex numbers: give real ones")
    if not tensor.is_floating_point():
        return tensor.to(torch.int64)
    tensor = tensor.to(torch.float32)
    if not bool(torch.isfinite(tensor).all()):
        sample = int((~torch.isfinite(tensor)).flatten(1).any(1).int().argmax()) if tensor.dim() > 1 else -1
        at = f" in sample {sample} (from 0)" if sample >= 0 else ""
        raise DataError(f"{name} holds a value that is no finite 32-bit number{at}: remove such samples")
    return tensor


def _strata(targets: torch.Tensor) -> NDArray[Any]:
    """Classes, where targets may be those; else all in one."""
    if targets.dim() == 1 and not targets.is_floating_point():
        return np.asarray(targets.cpu().numpy())
    return np.zeros(len(targets), dtype=np.int64)


def _part(whole: Split, index: NDArray[np.int64]) -> Split:
    rows = torch.from_numpy(index).to(whole.samples.device)
    return Split(whole.samples.index_select(0, rows), whole.labels.index_select(0, rows))
