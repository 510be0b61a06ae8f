"""What is minimised and what is reported of a task: the built-in losses and metrics, or its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch.func import vmap

from hpsearch.errors import DataError
from hpsearch.objective import TaskObjective
from hpsearch.training.losses import Scored, build_loss
from hpsearch.training.metrics import ClassificationEvaluation, Evaluation, RegressionEvaluation
from hpsearch.training.task.loading import Task, user_code

Predicts = Literal["classes", "numbers", "other"]
"""What the outputs are, which decides the metrics; of ``other`` there is the loss alone."""


class Marked(NamedTuple):
    """What the loss says of outputs.

    Attributes:
        scored: the loss (K,) summed over the samples, and hits.
        root: (K, …) what the backward pass starts from.
        gradient: of the mean loss by ``root``, same shape.
    """

    scored: Scored
    root: torch.Tensor
    gradient: torch.Tensor


class TaskLoss(Protocol):
    """A loss of K members."""

    def mark(self, outputs: torch.Tensor, targets: torch.Tensor) -> Marked:
        """Of outputs (K, batch, …) and the targets that members share."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        ...


class BuiltinLoss:
    """A loss of ``objective.loss``, with its numbers per member."""

    def __init__(self, objectives: Sequence[TaskObjective], device: str) -> None:
        self._loss = build_loss(objectives, device)

    def mark(self, outputs: torch.Tensor, targets: torch.Tensor) -> Marked:
        """See :class:`TaskLoss`."""
        scored = self._loss.score(as_scores(outputs.detach()), targets)
        gradient = scored.gradient.transpose(1, 2).reshape(outputs.shape) / len(targets)
        return Marked(scored, outputs, gradient)

    def keep(self, rows: torch.Tensor) -> None:
        """See :class:`TaskLoss`."""
        self._loss.keep(rows)


class OwnLoss:
    """The task's ``loss(outputs, targets)``, a mean over samples."""

    def __init__(self, task: Task, predicts: Predicts, *, stacked: bool) -> None:
        assert task.loss is not None
        self._loss = task.loss
        self._predicts = predicts
        self._stacked = stacked
        self._entrypoint = task.entrypoint

    def mark(self, outputs: torch.Tensor, targets: torch.Tensor) -> Marked:
        """See :class:`TaskLoss`."""
        with user_code(f"{self._entrypoint}: loss(outputs, targets)"):
            if self._stacked:
                losses = vmap(self._one, in_dims=(0, None), randomness="error")(outputs, targets)
            else:
                losses = torch.stack([self._one(own, targets) for own in outputs])
        correct = _hits(as_scores(outputs.detach()), targets) if self._predicts == "classes" else None
        scored = Scored(losses.detach() * len(targets), torch.empty(0), correct)
        return Marked(scored, losses, torch.ones_like(losses))

    def keep(self, rows: torch.Tensor) -> None:
        """Nothing is a member's own."""

    def _one(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self._loss(outputs, targets)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise DataError(f"{self._entrypoint}: loss must return a tensor with one number, and gives {got}")
        return loss.reshape(())


def _hits(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(K,) samples whose own class has the strictly highest of the scores (K, classes, batch)."""
    index = targets.expand(len(scores), 1, -1)
    others = scores.scatter(1, index, -torch.inf).amax(1)
    return (scores.gather(1, index).squeeze(1) > others).sum(1)


def as_scores(outputs: torch.Tensor) -> torch.Tensor:
    """Outputs (K, batch, C) or (K, batch) → (K, C, batch), contiguous, C = 1 for the latter."""
    return (outputs.unsqueeze(1) if outputs.dim() == 2 else outputs.transpose(1, 2)).contiguous()


def predicts(task: Task, loss_kind: str, outputs: torch.Tensor, targets: torch.Tensor) -> Predicts:
    """What a task predicts, by the outputs (n, …) of a few samples and all targets.

    Raises:
        DataError: the built-in loss does not fit them.
    """
    classes = outputs.dim() == 2 and outputs.shape[1] > 1 and targets.dim() == 1 and targets.dtype == torch.int64
    numbers = outputs.shape[1:].numel() == 1 and targets.dim() == 1 and targets.is_floating_point()
    if classes:
        low, high = int(targets.min()), int(targets.max())
        classes = low >= 0 and high < outputs.shape[1]
        if not classes and task.loss is None:
            raise DataError(
                f"{task.entrypoint}: y holds {low if low < 0 else high}, but the model gives {outputs.shape[1]} "
                f"scores: classes are whole numbers from 0 to {outputs.shape[1] - 1}"
            )
    if task.loss is not None:
        return "classes" if classes else "numbers" if numbers and outputs.dim() <= 2 else "other"
    found: Predicts = "numbers" if loss_kind == "mse" else "classes"
    if not (numbers and outputs.dim() <= 2 if found == "numbers" else classes):
        want = (
            "outputs (batch,) or (batch, 1) and y (n,)"
            if found == "numbers"
            else "outputs (batch, classes), two classes or more, and y (n,) of whole numbers"
        )
        raise DataError(
            f"{task.entrypoint}: the loss {loss_kind} needs {want}; here outputs are (batch"
            f"{''.join(f', {n}' for n in outputs.shape[1:])}) and y {tuple(targets.shape)} of {targets.dtype}: mend "
            "them, or give the task a loss(outputs, targets) of its own"
        )
    return found


def evaluation(found: Predicts, n_outputs: int, n_members: int, device: str, *, split: str) -> Evaluation:
    """An empty accumulator; ``split``: ``train`` or ``val``."""
    if found == "classes":
        n_classes = n_outputs if split == "val" else None
        return ClassificationEvaluation(n_members, device, split=split, n_classes=n_classes)
    if found == "numbers":
        return RegressionEvaluation(n_members, device, split=split)
    return _LossAlone(n_members, device, split=split)


class _LossAlone:
    def __init__(self, n_members: int, device: str, *, split: str) -> None:
        self._split = split
        self._loss = torch.zeros(n_members, device=device)
        self._n_samples = 0

    def add(self, scores: torch.Tensor, targets: torch.Tensor, scored: Scored) -> None:
        del scores
        self._loss += scored.loss
        self._n_samples += len(targets)

    def result(self) -> list[dict[str, float]]:
        return [{f"{self._split}_loss": loss} for loss in (self._loss / self._n_samples).tolist()]
