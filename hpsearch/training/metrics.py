"""What is reported of an epoch: sums over minibatches, and the metrics that follow from them."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from hpsearch.objective import TrainObjective
from hpsearch.training.losses import Scored


class Evaluation(Protocol):
    """Sums over minibatches of one split, for K members."""

    def add(self, scores: torch.Tensor, targets: torch.Tensor, scored: Scored) -> None:
        """Count a minibatch.

        Args:
            scores: (K, outputs, batch) as the model gave them.
            targets: (batch,) int64 classes, or float32 numbers for ``mse``.
            scored: what the loss says of them.
        """
        ...

    def result(self) -> list[dict[str, float]]:
        """Metrics of each member over all minibatches added, at least one."""
        ...


def evaluation(
    objective: TrainObjective,
    n_outputs: int,
    n_members: int,
    device: str,
    *,
    split: Literal["train", "val"] = "val",
) -> Evaluation:
    """An empty accumulator for what an objective reports of a split (see ``hpsearch.objective.train_metrics``).

    Losses are means over samples of what ``Scored.loss`` sums, without penalties.

    Args:
        objective: its loss decides; any member's.
        n_outputs: scores per sample: classes C, or 1 for ``mse``.
        n_members: K.
        device: of the scores.
        split: ``train`` gives ``train_loss`` and ``train_accuracy`` or ``train_mae``; ``val`` all ``val_…``.
    """
    if objective.loss.kind == "mse":
        return RegressionEvaluation(n_members, device, split=split)
    if split == "train":
        return ClassificationEvaluation(n_members, device, split=split)
    return ClassificationEvaluation(n_members, device, split=split, n_classes=n_outputs)


class ClassificationEvaluation:
    """``accuracy``, and given ``n_classes`` also ``top5_accuracy`` and ``macro_f1``.

    A tie never counts as a hit: a sample is right if its class has the strictly highest score, and within the top 5
    if at least C − 5 classes have strictly lower ones (always, with five classes or fewer and finite scores).

    Macro-F1 is the mean over classes of 2 · hits / (predicted + present), as scikit-learn's ``f1_score`` has it: over
    the classes that occur or are predicted (Opitz & Burst 2019, equation 1). In a tie all classes of the highest score
    are predicted, and none is a hit.
    """

    def __init__(self, n_members: int, device: str, *, split: str, n_classes: int | None = None) -> None:
        self._split = split
        self._n_classes = n_classes
        self._n_samples = 0
        self._loss = torch.zeros(n_members, device=device)
        self._correct = torch.zeros(n_members, dtype=torch.int64, device=device)
        self._top5 = torch.zeros_like(self._correct)
        if n_classes:
            self._present = torch.zeros(n_classes, dtype=torch.int64, device=device)
            self._hits = torch.zeros(n_members, n_classes, device=device)  # whole numbers, exact up to 2²⁴
            self._predicted = torch.zeros_like(self._hits)

    def add(self, scores: torch.Tensor, targets: torch.Tensor, scored: Scored) -> None:
        """See :class:`Evaluation`."""
        assert scored.correct is not None  # None is for mse
        self._n_samples += len(targets)
        self._loss += scored.loss
        self._correct += scored.correct
        if self._n_classes:
            self._count(scores, targets, self._n_classes)

    def _count(self, scores: torch.Tensor, targets: torch.Tensor, n_classes: int) -> None:
        own = scores.gather(1, targets.expand(len(scores), 1, -1))
        # Compared into floats, for sums of booleans take three times as long.
        lower = torch.lt(scores, own, out=torch.empty_like(scores))
        n_lower = lower.sum(1)  # (K, batch)
        self._top5 += ((n_lower >= n_classes - 5) & torch.isfinite(own.squeeze(1))).sum(1)
        right = (n_lower == n_classes - 1).float()
        self._hits += right @ torch.nn.functional.one_hot(targets, n_classes).float()
        # argmax takes four times as long as all of this.
        self._predicted += torch.eq(scores, scores.amax(1, keepdim=True), out=lower).sum(2)
        self._present += torch.bincount(targets, minlength=n_classes)

    def result(self) -> list[dict[str, float]]:
        """See :class:`Evaluation`."""
        n_samples = self._n_samples
        metrics = {"loss": _exact(self._loss) / n_samples, "accuracy": _exact(self._correct) / n_samples}
        if self._n_classes:
            counted = _exact(self._predicted + self._present)
            f1 = 2 * _exact(self._hits) / counted.clamp(min=1)
            metrics["top5_accuracy"] = _exact(self._top5) / n_samples
            metrics["macro_f1"] = f1.sum(1) / (counted > 0).sum(1)
        return _per_member(metrics, self._split)


class RegressionEvaluation:
    """``mae``, the mean of |score − target|, and for ``val`` ``r2``, 1 − Σ (score − target)² / Σ (target − mean)².

    If all targets are equal, r² is 1 where every score equals them, else 0, as scikit-learn's ``r2_score`` has it.
    """

    def __init__(self, n_members: int, device: str, *, split: str) -> None:
        self._split = split
        self._n_samples = 0
        self._loss = torch.zeros(n_members, device=device)
        self._absolute = torch.zeros(n_members, device=device)
        self._squared = torch.zeros(n_members, device=device)
        self._targets: list[torch.Tensor] = []

    def add(self, scores: torch.Tensor, targets: torch.Tensor, scored: Scored) -> None:
        """See :class:`Evaluation`."""
        self._n_samples += len(targets)
        self._loss += scored.loss
        residuals = scores.squeeze(1) - targets  # (K, batch)
        self._absolute += residuals.abs().sum(1)
        if self._split == "val":
            self._squared += residuals.square().sum(1)
            self._targets.append(targets)

    def result(self) -> list[dict[str, float]]:
        """See :class:`Evaluation`."""
        n_samples = self._n_samples
        metrics = {"loss": _exact(self._loss) / n_samples, "mae": _exact(self._absolute) / n_samples}
        if self._split == "val":
            targets = _exact(torch.cat(self._targets))
            total = float((targets - targets.mean()).square().sum())
            squared = _exact(self._squared)
            metrics["r2"] = 1 - squared / total if total else torch.where(squared == 0, 1.0, 0.0)
        return _per_member(metrics, self._split)


def _exact(sums: torch.Tensor) -> torch.Tensor:
    """On the CPU in double precision, which not every device has: 6 of 10 is 0.6."""
    return sums.cpu().double()


def _per_member(metrics: dict[str, torch.Tensor], split: str) -> list[dict[str, float]]:
    names = [f"{split}_{name}" for name in metrics]
    columns = [column.tolist() for column in metrics.values()]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
