"""A pack: K trials of one architecture trained as one stacked model on shared minibatches."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hpsearch.errors import Interrupted
from hpsearch.objective import TrainObjective
from hpsearch.training.augmentation import augment, check_augment
from hpsearch.training.checkpoints import Checkpoint, check_resumed, fitting
from hpsearch.training.data import Dataset, Split
from hpsearch.training.devices import memory_errors
from hpsearch.training.diagnostics import diagnostics, start_histograms
from hpsearch.training.losses import Scored, build_loss, theoretical_initial_loss
from hpsearch.training.metrics import Evaluation, evaluation
from hpsearch.training.models import build_model, model_key
from hpsearch.training.optimisers import build_optimiser, optimizer_key
from hpsearch.training.streams import Purpose, torch_stream

EXPLODED = 3.0
"""A total loss over so many times its start ends a trial (cs231n, "Hyperparameter search": cost > 3 × original)."""

EVALUATION_NUMBERS = 300000
"""At most so many activations of the widest layer at a time when the validation split is evaluated, but a minibatch."""

DIAGNOSED_STEPS = 60
"""Diagnostics take a fifth of a step to one and a half, and are taken once in so many: at most 3 % of the time.
Histograms at the start take up to one and three quarters, once, in trainings that are at least as long."""

COMPACTION_STEPS = 0.4
"""Taking rows out copies all others, which was measured to take as long as 0.15 to 0.4 steps."""


@dataclass(frozen=True)
class Member:
    """One trial of a pack.

    Attributes:
        objective: with the trial's params set.
        seed: of the trial's own streams, ≥ 0: initial weights and dropout come from it alone.
    """

    objective: TrainObjective
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did to one member.

    Attributes:
        member: its index in the list that the pack was made of.
        epoch: from 1.
        metrics: those of :func:`hpsearch.objective.train_metrics`; ``train_…`` are means over the epoch's minibatches,
            each as it was before its update, ``val_…`` of the validation split after the epoch. Losses are without
            penalties, so the two compare. In some epochs also ``diag/…`` (see :mod:`hpsearch.training.diagnostics`).
            Values may be non-finite if ``diverged`` is set, else those of ``diag/…`` alone.
        diverged: a sentence that says why the member left the pack, or None.
    """

    member: int
    epoch: int
    metrics: dict[str, float]
    diverged: str | None


def shape_key(objective: TrainObjective) -> Hashable:
    """Trials with equal keys, of one study, may share a pack: same data, preprocessing, layers and batch size.

    What is a number per member (lr, momentum, schedule, l2, dropout) or drawn per member (initial weights) is not.
    """
    shared = {"data", "preprocess", "augment", "batch_size"}
    return objective.model_dump_json(include=shared), architecture_key(objective)


def architecture_key(objective: TrainObjective) -> Hashable:
    """Trials with equal keys have tensors of equal shapes, on data of one shape."""
    return model_key(objective), optimizer_key(objective)


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
        epochs: how many will be trained at most; schedules end with them.
        device: of the dataset.
        should_stop: asked before every minibatch; must be cheap.
        diagnose: whether to take diagnostics, for at most 3 % of the time.

    Attributes:
        model: the stacked model.
        epoch: how many have been trained.

    Raises:
        ValueError: no members, or members of different shapes.
        DataError: the model or the augmentation does not fit the data.
        OutOfMemory: here and wherever the pack trains; it is of no further use then.
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
        diagnose: bool = True,
    ) -> None:
        if len({shape_key(member.objective) for member in members}) != 1:
            raise ValueError("a pack needs at least one member, and members of one shape_key")
        self.epoch = 0
        self._n_epochs = epochs
        self._data_seed = data_seed
        self._should_stop = should_stop
        self._device = device
        self._members = list(members)
        self._rows = list(range(len(members)))  # member trained in each row of the stacked tensors
        self._dropped: set[int] = set()
        self._objective = members[0].objective  # for what all members share
        with memory_errors(len(members), device):
            prepared = dataset.prepared(self._objective.preprocess)
            self._train, self._validation = prepared.train, prepared.validation
            self._build(dataset.n_classes, prepared.rms)
        self._start: dict[int, float] = {}  # total loss of each member on the first minibatch, before any update
        self._initial_loss: list[float] | None = None  # data loss of each row then, for the first diagnostics
        self._histograms: list[dict[str, float]] = []  # and how its layers were activated
        self._diagnose_every = math.ceil(DIAGNOSED_STEPS / self._n_steps) if diagnose else 0

    def _build(self, n_classes: int, rms: float) -> None:
        shape = tuple(self._train.samples.shape[1:])
        check_augment(self._objective.augment, shape)
        objectives = [member.objective for member in self._members]
        self._n_outputs = 1 if self._objective.loss.kind == "mse" else n_classes
        self._n_steps = math.ceil(len(self._train.labels) / self._objective.batch_size)
        self.model = build_model(
            objectives,
            input_shape=shape,
            n_outputs=self._n_outputs,
            input_rms=rms,
            seeds=[member.seed for member in self._members],
            device=self._device,
        )
        self._loss = build_loss(objectives, self._device)
        self._optimiser = build_optimiser(
            objectives, self.model.parameters, epochs=self._n_epochs, steps_per_epoch=self._n_steps, device=self._device
        )
        self._architecture = f"{architecture_key(self._objective)} on samples of {shape} with {self._n_outputs} scores"

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
            OutOfMemory: see :class:`Pack`.
            ValueError: all epochs have been trained.
        """
        if self.epoch == self._n_epochs:
            raise ValueError(f"the pack has trained all of its {self._n_epochs} epochs")
        self.epoch += 1
        if not self.live:
            return []
        with memory_errors(len(self._rows), self._device):
            self._compact()
            diagnosed = bool(self._diagnose_every) and (self.epoch - 1) % self._diagnose_every == 0
            train = self._train_minibatches(measure=diagnosed)
            validation = self._evaluate()
            penalties = self._optimiser.penalty().tolist()
            extra = self._diagnose() if diagnosed else [{} for _ in self._rows]
        metrics = [a | b | c for a, b, c in zip(train, validation, extra, strict=True)]
        return epoch_results(
            self.epoch, self._rows, metrics, penalties=penalties, start=self._start, dropped=self._dropped
        )

    def rehearse(self, n_steps: int) -> None:
        """Train ``n_steps`` minibatches without counting them, to see how long it takes.

        The pack is of no further use but for more of it.
        """
        index = torch.arange(min(self._objective.batch_size, len(self._train.labels)), device=self._device)
        with memory_errors(len(self._rows), self._device):
            for _ in range(n_steps):
                self._step(*self._minibatch(index), 0)

    # Checkpoints

    def checkpoint(self, member: int) -> Checkpoint:
        """All that a live member needs to go on after the latest epoch, on the CPU."""
        row = self._rows.index(member)
        tensors = {name: tensor[row].detach().cpu().clone() for name, tensor in self._state().items()}
        return Checkpoint(self._architecture, self.epoch, self._start.get(member, math.nan), tensors)

    def resume(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Go on where trials were left, as if they had never stopped.

        Args:
            checkpoints: one per member, all of one epoch, of trials of the same objectives, seeds and ``data_seed``.

        Raises:
            DataError: a checkpoint is of another architecture.
            ValueError: the pack has begun, or the number or the epochs of the checkpoints do not fit.
        """
        n_members = len(self._members)
        check_resumed(checkpoints, n_members=n_members, epoch=self.epoch, n_epochs=self._n_epochs)
        state = self._state()
        for checkpoint in checkpoints:
            fitting(checkpoint, self._architecture, {name: tensor[0] for name, tensor in state.items()})
        for name, tensor in state.items():
            tensor.copy_(torch.stack([checkpoint.tensors[name] for checkpoint in checkpoints]))
        self.epoch = checkpoints[0].epoch
        self._start = {member: checkpoint.start for member, checkpoint in enumerate(checkpoints)}

    def _state(self) -> dict[str, torch.Tensor]:
        """All tensors (K, …) that go on from epoch to epoch, themselves and not copies."""
        learned = {f"parameters.{p.name}": p.value for p in self.model.parameters}
        running = {f"buffers.{b.name}": b.value for b in self.model.buffers}
        return learned | running | {f"optimiser.{name}": tensor for name, tensor in self._optimiser.state.items()}

    # An epoch

    def _compact(self) -> None:
        """Take the rows of members that have left out, where that saves more than it costs."""
        kept = [row for row, member in enumerate(self._rows) if member not in self._dropped]
        saved = (1 - len(kept) / len(self._rows)) * self._n_steps * (self._n_epochs - self.epoch + 1)
        if saved <= COMPACTION_STEPS:
            return
        self._rows = [self._rows[row] for row in kept]
        rows = torch.tensor(kept, dtype=torch.int64, device=self._device)
        self.model.keep(rows)
        self._loss.keep(rows)
        self._optimiser.keep(rows)

    def _train_minibatches(self, *, measure: bool) -> list[dict[str, float]]:
        """``train_…`` of each row; ``measure``: have the optimiser keep what the last step did."""
        order = torch.randperm(
            len(self._train.labels), generator=torch_stream(self._data_seed, Purpose.ORDER, self.epoch)
        )
        stream = torch_stream(self._data_seed, Purpose.AUGMENTATION, self.epoch)
        counted = self._evaluation("train")
        self.model.begin_epoch(self.epoch)
        for i, index in enumerate(_pieces(order.to(self._device), self._objective.batch_size)):
            if self._should_stop():
                raise Interrupted(f"the pack was told to stop in epoch {self.epoch}")
            samples, targets = self._minibatch(index)
            samples = augment(samples, self._objective.augment, stream)
            step = (self.epoch - 1) * self._n_steps + i
            scores, scored = self._step(samples, targets, step, measure=measure and i == self._n_steps - 1)
            counted.add(scores, targets, scored)
        self._inspected = samples
        return counted.result()

    def _minibatch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        split = self._train
        # Of flat rows: index_select takes ten times as long on images.
        samples = split.samples.flatten(1).index_select(0, index).view(-1, *split.samples.shape[1:])
        return samples, split.labels.index_select(0, index)

    def _step(
        self, samples: torch.Tensor, targets: torch.Tensor, step: int, *, measure: bool = False
    ) -> tuple[torch.Tensor, Scored]:
        """One update of all rows: scores and what the loss says of them before it."""
        scores = self.model.forward(samples, training=True)
        scored = self._loss.score(scores, targets)
        if not self._start:
            self._set_start(scored, len(targets))
            if self._diagnose_every and self._n_epochs * self._n_steps >= DIAGNOSED_STEPS:
                self._histograms = start_histograms(self.model, samples)
        self._optimiser.set_step(step)
        self._optimiser.begin(measure=measure)
        self.model.backward(scored.gradient.mul_(self._optimiser.scale / len(targets)))
        self._optimiser.apply()
        return scores, scored

    def _set_start(self, scored: Scored, n_samples: int) -> None:
        loss = scored.loss / n_samples
        self._initial_loss = loss.tolist()
        total = (loss + self._optimiser.penalty()).tolist()
        self._start = dict(zip(self._rows, total, strict=True))

    def _evaluate(self) -> list[dict[str, float]]:
        """``val_…`` of each row."""
        chunk = max(self._objective.batch_size, EVALUATION_NUMBERS // (self.model.widest * len(self._rows)))
        counted = self._evaluation("val")
        split: Split = self._validation
        for samples, targets in zip(_pieces(split.samples, chunk), _pieces(split.labels, chunk), strict=True):
            scores = self.model.forward(samples, training=False)
            counted.add(scores, targets, self._loss.score(scores, targets))
        return counted.result()

    def _evaluation(self, split: str) -> Evaluation:
        return evaluation(
            self._objective, self._n_outputs, len(self._rows), self._device, split="val" if split == "val" else "train"
        )

    def _diagnose(self) -> list[dict[str, float]]:
        initial = self._initial_loss if self.epoch == 1 else None
        found = diagnostics(self.model, self._optimiser, self._inspected, initial_loss=initial)
        for row, histograms in enumerate(self._histograms):
            found[row] |= histograms
        self._histograms = []
        for row, member in enumerate(self._rows):
            chance = theoretical_initial_loss(self._members[member].objective.loss, self._n_outputs)
            if initial is not None and chance is not None:
                found[row]["diag/chance_loss"] = chance
        return found


def epoch_results(
    epoch: int,
    rows: Sequence[int],
    metrics: Sequence[dict[str, float]],
    *,
    penalties: Sequence[float],
    start: Mapping[int, float],
    dropped: set[int],
) -> list[EpochResult]:
    """One result per member that has not been dropped; those that diverge in this epoch are dropped.

    Args:
        epoch: from 1.
        rows: the member of each row.
        metrics: of each row.
        penalties: of each row.
        start: total loss of each member before any update.
        dropped: members that have left; added to.
    """
    results = []
    for row, member in enumerate(rows):
        if member in dropped:
            continue
        diverged = _divergence(metrics[row], penalties[row], start[member], epoch)
        if diverged:
            dropped.add(member)
        results.append(EpochResult(member, epoch, metrics[row], diverged))
    return results


def _divergence(metrics: Mapping[str, float], penalty: float, start: float, epoch: int) -> str | None:
    """Why a trial has diverged: a loss that is not finite, or a positive one over three times its start; or None."""
    losses = {"train_loss": metrics["train_loss"], "val_loss": metrics["val_loss"], "penalty": penalty}
    for name, loss in [*losses.items(), ("total loss at the start", start)]:
        if not math.isfinite(loss):
            return f"in epoch {epoch} the {name} is {loss}: it must be a finite number"
    total = metrics["train_loss"] + penalty
    if total > EXPLODED * start > 0:
        return (
            f"in epoch {epoch} the total loss is {total:.4g} (of it {penalty:.4g} penalty), "
            f"over {EXPLODED:g} times its start of {start:.4g}"
        )
    return None


def _pieces(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]
