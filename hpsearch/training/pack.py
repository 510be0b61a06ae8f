"""A pack: K trials of one architecture trained as one stacked model on shared minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from hpsearch.errors import Interrupted
from hpsearch.objective import TrainObjective
from hpsearch.training.data import Dataset
from hpsearch.training.losses import softmax_cross_entropy
from hpsearch.training.models import mlp
from hpsearch.training.optimisers import Sgd
from hpsearch.training.streams import Purpose, torch_stream

EXPLODED = 3.0
"""A total loss over so many times its start ends a trial (cs231n, "Hyperparameter search": cost > 3 × original)."""

EVALUATION_NUMBERS = 1_000_000
"""About so many activations of the widest layer at a time when the validation split is evaluated."""


@dataclass(frozen=True)
class Member:
    """One trial of a pack.

    Attributes:
        objective: with the trial's params set.
        seed: of the trial's own stream, ≥ 0: its initial weights come from it alone.
    """

    objective: TrainObjective
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did to one member.

    Attributes:
        member: its index in the list that the pack was made of.
        epoch: from 1.
        metrics: ``train_loss`` and ``train_accuracy``, means over the epoch's minibatches, each as it was before
            its update; ``val_loss`` and ``val_accuracy`` on the validation split after the epoch. Losses are
            cross-entropies in nats without the penalty, so the two compare; accuracies are shares in [0, 1].
            Values may be non-finite if ``diverged`` is set, else never.
        diverged: a sentence that says why the member left the pack, or None.
    """

    member: int
    epoch: int
    metrics: dict[str, float]
    diverged: str | None


def shape_key(objective: TrainObjective) -> Hashable:
    """Trials with equal keys, of one study, may share a pack: same data, preprocessing, layers and batch size.

    What is a number per member (lr, momentum, lr_decay, l2) or drawn per member (the initial weights) is not in it.
    """
    return (
        objective.data.model_dump_json(),
        tuple(objective.preprocess),
        objective.model.model_dump_json(exclude={"init", "dropout"}),
        objective.optimizer.kind,
        objective.batch_size,
    )


def never() -> bool:
    """The ``should_stop`` of a pack that nobody interrupts."""
    return False


class Pack:
    """K ≥ 1 trials trained together; each gets, to float tolerance, the numbers that it would get alone.

    The minibatches of an epoch are a function of ``data_seed`` and the epoch and shared by all members; the last
    one is smaller where the batch size does not divide the training split, and a batch size over its size
    makes one batch. A member that diverges leaves by itself.

    Args:
        members: trials of equal :func:`shape_key`.
        dataset: loaded for their objective.
        data_seed: ≥ 0; the same for all trials of a study, so that any of them can share a pack.
        epochs: how many will be trained at most.
        device: of the dataset.
        should_stop: asked before every minibatch; must be cheap.

    Attributes:
        model: the stacked model; row k belongs to the k-th of the members that the latest epoch trained.

    Raises:
        ValueError: no members, or members of different shapes.
    """

    def __init__(
        self,
        members: Sequence[Member],
        dataset: Dataset,
        *,
        data_seed: int,
        epochs: int,
        device: str = "cpu",
        should_stop: Callable[[], bool] = never,
    ) -> None:
        if len({shape_key(member.objective) for member in members}) != 1:
            raise ValueError("a pack needs at least one member, and members of one shape_key")
        objective = members[0].objective
        self.epoch = 0
        self._n_epochs = epochs
        self._data_seed = data_seed
        self._should_stop = should_stop
        self._device = device
        self._members = list(members)
        self._rows = list(range(len(members)))  # member trained in each row of the stacked tensors
        self._dropped: set[int] = set()
        self._batch_size = objective.batch_size
        prepared = dataset.prepared(objective.preprocess)
        self._train, self._validation = prepared.train.flat(), prepared.validation.flat()
        self.model = mlp(
            objective.model,
            self._train.samples.shape[1],
            dataset.n_classes,
            input_rms=prepared.rms,
            seeds=[member.seed for member in members],
            device=device,
        )
        self._widest = max([*objective.model.hidden, dataset.n_classes])
        self._l2 = self._vector([member.objective.regularization.l2 for member in members])
        self._optimiser = Sgd(
            self.model.parameters,
            lr=self._vector([member.objective.optimizer.lr for member in members]),
            momentum=self._vector([member.objective.optimizer.momentum for member in members]),
            l2=self._l2,
        )
        self._start: dict[int, float] = {}  # total loss of each member on the first minibatch, before any update

    @property
    def live(self) -> list[int]:
        """Members that are still trained, ascending."""
        return [member for member in self._rows if member not in self._dropped]

    def drop(self, member: int) -> None:
        """Take a member out; its neighbours' numbers do not change. Harmless if it has left already."""
        if not 0 <= member < len(self._members):
            raise ValueError(f"the pack has members 0 to {len(self._members) - 1}, not {member}")
        self._dropped.add(member)

    def train_epoch(self) -> list[EpochResult]:
        """Train one epoch and evaluate on the validation split: one result per live member, ascending.

        Raises:
            Interrupted: ``should_stop()`` was true before a minibatch.
            ValueError: all epochs have been trained.
        """
        if self.epoch == self._n_epochs:
            raise ValueError(f"the pack has trained all of its {self._n_epochs} epochs")
        self._compact()
        self.epoch += 1
        if not self._rows:
            return []
        self._set_lr()
        train = self._train_minibatches()
        validation = self._evaluate()
        penalty = (0.5 * self._l2 * self.model.squared_norm()).tolist()
        results = []
        for row, member in enumerate(self._rows):
            metrics = {
                "train_loss": train[0][row],
                "val_loss": validation[0][row],
                "train_accuracy": train[1][row],
                "val_accuracy": validation[1][row],
            }
            diverged = self._divergence(metrics, penalty[row], self._start[member])
            if diverged:
                self._dropped.add(member)
            results.append(EpochResult(member, self.epoch, metrics, diverged))
        return results

    def _vector(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _compact(self) -> None:
        kept = [row for row, member in enumerate(self._rows) if member not in self._dropped]
        if len(kept) == len(self._rows):
            return
        self._rows = [self._rows[row] for row in kept]
        rows = torch.tensor(kept, dtype=torch.int64, device=self._device)
        for parameter in self.model.parameters:
            parameter.keep(rows)
        self._l2 = self._l2.index_select(0, rows)
        self._optimiser.keep(rows)

    def _set_lr(self) -> None:
        optimizers = [self._members[member].objective.optimizer for member in self._rows]
        self._optimiser.lr = self._vector([o.lr * o.lr_decay ** (self.epoch - 1) for o in optimizers])

    def _train_minibatches(self) -> tuple[list[float], list[float]]:
        """Mean data loss and accuracy of each row over the epoch's minibatches."""
        n_samples = len(self._train.labels)
        order = torch.randperm(n_samples, generator=torch_stream(self._data_seed, Purpose.ORDER, self.epoch))
        loss = torch.zeros(len(self._rows), device=self._device)
        correct = torch.zeros(len(self._rows), dtype=torch.int64, device=self._device)
        for index in _pieces(order.to(self._device), self._batch_size):
            if self._should_stop():
                raise Interrupted(f"the pack was told to stop in epoch {self.epoch}")
            scores = self.model.forward(self._train.samples.index_select(0, index))
            scored = softmax_cross_entropy(scores, self._train.labels.index_select(0, index))
            if not self._start:
                penalty = 0.5 * self._l2 * self.model.squared_norm()
                start = (scored.loss / len(index) + penalty).tolist()
                self._start = dict(zip(self._rows, start, strict=True))
            self._optimiser.begin()
            self.model.backward(scored.gradient.mul_(self._optimiser.scale / len(index)))
            self._optimiser.apply()
            loss += scored.loss
            correct += scored.correct
        return _shares(loss, n_samples), _shares(correct, n_samples)

    def _evaluate(self) -> tuple[list[float], list[float]]:
        """Mean data loss and accuracy of each row on the validation split."""
        n_samples = len(self._validation.labels)
        chunk = max(256, EVALUATION_NUMBERS // (self._widest * len(self._rows)))
        loss = torch.zeros(len(self._rows), device=self._device)
        correct = torch.zeros(len(self._rows), dtype=torch.int64, device=self._device)
        samples, labels = self._validation.samples, self._validation.labels
        for inputs, classes in zip(_pieces(samples, chunk), _pieces(labels, chunk), strict=True):
            scored = softmax_cross_entropy(self.model.forward(inputs), classes)
            loss += scored.loss
            correct += scored.correct
        return _shares(loss, n_samples), _shares(correct, n_samples)

    def _divergence(self, metrics: dict[str, float], penalty: float, start: float) -> str | None:
        total = metrics["train_loss"] + penalty
        losses = {"train_loss": metrics["train_loss"], "val_loss": metrics["val_loss"], "L2 penalty": penalty}
        for name, loss in [*losses.items(), ("total loss at the start", start)]:
            if not math.isfinite(loss):
                return f"in epoch {self.epoch} the {name} is {loss}: it must be a finite number"
        if total > EXPLODED * start:
            return (
                f"in epoch {self.epoch} the total loss is {total:.4g} (of it {penalty:.4g} L2 penalty), "
                f"over {EXPLODED:g} times its start of {start:.4g}"
            )
        return None


def _pieces(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


def _shares(sums: torch.Tensor, n_samples: int) -> list[float]:
    return [float(total) / n_samples for total in sums.tolist()]
