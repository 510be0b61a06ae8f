"""Members of one structure, trained together: by one vmap, or one as it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpsearch.errors import DataError, Interrupted
from hpsearch.objective import TaskObjective
from hpsearch.training.checkpoints import Checkpoint, fitting
from hpsearch.training.data import Split
from hpsearch.training.diagnostics import middle
from hpsearch.training.losses import Scored, theoretical_initial_loss
from hpsearch.training.metrics import Evaluation
from hpsearch.training.optimisers import build_optimiser
from hpsearch.training.pack import DIAGNOSED_STEPS, EpochResult, epoch_results
from hpsearch.training.streams import Purpose, torch_stream
from hpsearch.training.task.loading import Task, seeded, user_code
from hpsearch.training.task.losses import BuiltinLoss, Marked, OwnLoss, Predicts, as_scores, evaluation, predicts
from hpsearch.training.task.modules import Modules

EVALUATED = 256
"""At least so many samples of the validation split at a time."""


@dataclass(frozen=True)
class TaskMember:
    """One trial of a pack.

    Attributes:
        objective: with the trial's params set.
        seed: of the trial's own streams, ≥ 0: initial weights and dropout come from it alone.
    """

    objective: TaskObjective
    seed: int


@dataclass(frozen=True)
class Setting:
    """What all stacks of a pack share.

    Attributes:
        task: the user's.
        train: the training split.
        validation: the validation split.
        data_seed: the order of the minibatches follows from it.
        epochs: how many will be trained at most.
        batch_size: samples of a minibatch.
        device: of the data.
        should_stop: asked before every minibatch.
    """

    task: Task
    train: Split
    validation: Split
    data_seed: int
    epochs: int
    batch_size: int
    device: str
    should_stop: Callable[[], bool]

    @property
    def n_steps(self) -> int:
        """Minibatches per epoch."""
        return math.ceil(len(self.train.labels) / self.batch_size)


class Stack:
    """Modules of one structure on their way from epoch to epoch.

    Args:
        members: their numbers in the pack.
        trials: the members themselves.
        modules: as :class:`Modules` takes them.
        of: what the pack's stacks share.
        stacked: run them by one vmap; else there must be one.

    Attributes:
        modules: the stacked modules.

    Raises:
        DataError: the module does not fit the data or the loss.
    """

    def __init__(
        self,
        members: Sequence[int],
        trials: Sequence[TaskMember],
        modules: Sequence[torch.nn.Module],
        of: Setting,
        *,
        stacked: bool,
    ) -> None:
        objectives = [trial.objective for trial in trials]
        self._of = of
        self._trials = dict(zip(members, trials, strict=True))
        self._rows = list(members)
        self._dropped: set[int] = set()
        self._predicts, self._n_outputs = _look(modules[0], trials[0], of)
        self.modules = Modules(modules, [trial.seed for trial in trials], stacked=stacked)
        self._loss = (
            OwnLoss(of.task, self._predicts, stacked=stacked) if of.task.loss else BuiltinLoss(objectives, of.device)
        )
        self._optimiser = build_optimiser(
            objectives, self.modules.parameters, epochs=of.epochs, steps_per_epoch=of.n_steps, device=of.device
        )
        self._penalised = any(p.penalised for p in self.modules.parameters)
        self._diagnose_every = math.ceil(DIAGNOSED_STEPS / of.n_steps)
        self._start: dict[int, float] = {}
        self._initial_loss: list[float] = []

    @property
    def live(self) -> list[int]:
        """Members that are still trained."""
        return [member for member in self._rows if member not in self._dropped]

    def drop(self, member: int) -> None:
        """Take a member out."""
        self._dropped.add(member)

    def gradients(self, samples: torch.Tensor, targets: torch.Tensor) -> tuple[Marked, list[torch.Tensor | None]]:
        """A training pass: what the loss says, and the gradients (K, …) of the mean loss; running statistics change."""
        with self._user_code("the model"):
            leaves, outputs = self.modules.train(samples)
        marked = self._loss.mark(outputs, targets)
        self._outputs = outputs.detach()
        return marked, self._backward(marked, leaves, torch.ones(len(outputs), device=outputs.device))

    def train_epoch(self, epoch: int) -> list[EpochResult]:
        """Train an epoch (from 1) and evaluate: one result per live member.

        Raises:
            Interrupted: told to stop before a minibatch.
            DataError: the user's code raises.
        """
        if not self.live:
            return []
        self._compact()
        measure = (epoch - 1) % self._diagnose_every == 0
        # A module that stands alone may draw from torch's generator: from its own stream then.
        alone = seeded(self._trials[self._rows[0]].seed, Purpose.DROPOUT, epoch)
        with contextlib.nullcontext() if self.modules.stacked else alone:
            train = self._train_minibatches(epoch, measure=measure)
            validation = self._evaluate()
        penalties = self._penalty().tolist()
        extra = self._diagnose(epoch) if measure else [{} for _ in self._rows]
        metrics = [a | b | c for a, b, c in zip(train, validation, extra, strict=True)]
        return epoch_results(epoch, self._rows, metrics, penalties=penalties, start=self._start, dropped=self._dropped)

    def rehearse(self, n_steps: int) -> None:
        """Train ``n_steps`` minibatches without counting them; the stack is of no further use but for more of it."""
        index = torch.arange(min(self._of.batch_size, len(self._of.train.labels)), device=self._of.device)
        for _ in range(n_steps):
            self._step(*self._minibatch(index), 0, measure=False)

    def checkpoint(self, member: int, architecture: str, epoch: int) -> Checkpoint:
        """All that a live member needs to go on after ``epoch``, on the CPU."""
        row = self._rows.index(member)
        tensors = {name: tensor[row].detach().cpu().clone() for name, tensor in self._state().items()}
        return Checkpoint(architecture, epoch, self._start.get(member, math.nan), tensors)

    def resume(self, checkpoint: Checkpoint, member: int, architecture: str) -> None:
        """Go on where a member was left. Raises DataError if the checkpoint is of another architecture."""
        row, state = self._rows.index(member), self._state()
        fitting(checkpoint, architecture, {name: tensor[row] for name, tensor in state.items()})
        for name, tensor in state.items():
            tensor[row] = checkpoint.tensors[name].to(tensor.device)
        self._start[member] = checkpoint.start

    def _state(self) -> dict[str, torch.Tensor]:
        """All tensors (K, …) that go on from epoch to epoch, themselves and not copies."""
        learned = {f"parameters.{p.name}": p.value for p in self.modules.parameters}
        running = {f"buffers.{b.name}": b.value for b in self.modules.buffers}
        return learned | running | {f"optimiser.{name}": tensor for name, tensor in self._optimiser.state.items()}

    # An epoch

    def _compact(self) -> None:
        kept = [row for row, member in enumerate(self._rows) if member not in self._dropped]
        if len(kept) == len(self._rows):
            return
        self._rows = [self._rows[row] for row in kept]
        rows = torch.tensor(kept, dtype=torch.int64, device=self._of.device)
        self.modules.keep(rows)
        self._loss.keep(rows)
        self._optimiser.keep(rows)

    def _train_minibatches(self, epoch: int, *, measure: bool) -> list[dict[str, float]]:
        of = self._of
        order = torch.randperm(len(of.train.labels), generator=torch_stream(of.data_seed, Purpose.ORDER, epoch))
        counted = self._evaluation("train")
        self.modules.begin_epoch(epoch)
        for i, index in enumerate(torch.split(order.to(of.device), of.batch_size)):
            if of.should_stop():
                raise Interrupted(f"the pack was told to stop in epoch {epoch}")
            samples, targets = self._minibatch(index)
            step = (epoch - 1) * of.n_steps + i
            scored = self._step(samples, targets, step, measure=measure and i == of.n_steps - 1)
            counted.add(as_scores(self._outputs) if self._predicts != "other" else self._outputs, targets, scored)
        return counted.result()

    def _minibatch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        split = self._of.train
        return split.samples.index_select(0, index), split.labels.index_select(0, index)

    def _step(self, samples: torch.Tensor, targets: torch.Tensor, step: int, *, measure: bool) -> Scored:
        """One update of all rows, and what the loss said before it."""
        with self._user_code("the model"):
            leaves, outputs = self.modules.train(samples)
        marked = self._loss.mark(outputs, targets)
        self._outputs = outputs.detach()
        if not self._start:
            self._set_start(marked.scored, len(targets))
        self._optimiser.set_step(step)
        self._optimiser.begin(measure=measure)
        gradients = self._backward(marked, leaves, self._optimiser.scale.flatten())
        for parameter, gradient in zip(self.modules.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad.add_(gradient)
        self._optimiser.apply()
        return marked.scored

    def _backward(self, marked: Marked, leaves: list[torch.Tensor], scale: torch.Tensor) -> list[torch.Tensor | None]:
        gradient = marked.gradient * scale.view(-1, *[1] * (marked.gradient.dim() - 1))
        with self._user_code("the gradient"):
            found = torch.autograd.grad(marked.root, leaves, gradient, allow_unused=True)
        shapes = [p.value.shape for p in self.modules.parameters]
        return [None if g is None else g.view(shape) for g, shape in zip(found, shapes, strict=True)]

    def _set_start(self, scored: Scored, n_samples: int) -> None:
        loss = scored.loss / n_samples
        self._initial_loss = loss.tolist()
        self._start = dict(zip(self._rows, (loss + self._penalty()).tolist(), strict=True))

    def _penalty(self) -> torch.Tensor:
        return self._optimiser.penalty() if self._penalised else torch.zeros(len(self._rows), device=self._of.device)

    def _evaluate(self) -> list[dict[str, float]]:
        """``val_…`` of each row, and the task's own metrics."""
        split, size = self._of.validation, max(EVALUATED, self._of.batch_size)
        counted = self._evaluation("val")
        kept = []
        for samples, targets in zip(torch.split(split.samples, size), torch.split(split.labels, size), strict=True):
            with self._user_code("the model"):
                outputs = self.modules.evaluate(samples)
            with torch.no_grad():
                scored = self._loss.mark(outputs, targets).scored
            counted.add(as_scores(outputs) if self._predicts != "other" else outputs, targets, scored)
            if self._of.task.metrics is not None:
                kept.append(outputs)
        found = counted.result()
        if self._of.task.metrics is None:
            return found
        return [a | self._own_metrics(own) for a, own in zip(found, torch.cat(kept, 1), strict=True)]

    def _own_metrics(self, outputs: torch.Tensor) -> dict[str, float]:
        task = self._of.task
        assert task.metrics is not None
        with self._user_code("metrics(outputs, targets)"):
            found = task.metrics(outputs, self._of.validation.labels)
            if not isinstance(found, dict):
                raise TypeError(f"it must return a dict of numbers by name, not {type(found).__name__}")
            return {str(name): float(value) for name, value in found.items()}

    def _evaluation(self, split: str) -> Evaluation:
        return evaluation(self._predicts, self._n_outputs, len(self._rows), self._of.device, split=split)

    def _diagnose(self, epoch: int) -> list[dict[str, float]]:
        """``diag/…`` of each row, as :mod:`hpsearch.training.diagnostics` has them but for the looks into layers."""
        columns = {"diag/gradient_norm": self._optimiser.gradient_norm().tolist()}
        if ratios := [ratio for _, ratio in self._optimiser.updates()]:
            columns["diag/update_ratio"] = middle(torch.stack(ratios)).tolist()
        if epoch == 1:
            columns["diag/initial_loss"] = self._initial_loss
            loss = self._trials[self._rows[0]].objective.loss
            chance = theoretical_initial_loss(loss, self._n_outputs) if self._predicts == "classes" else None
            if chance is not None and self._of.task.loss is None:
                columns["diag/chance_loss"] = [chance] * len(self._rows)
        return [
            {name: values[row] for name, values in columns.items() if math.isfinite(values[row])}
            for row in range(len(self._rows))
        ]

    def _user_code(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return user_code(f"{self._of.task.entrypoint}: {doing}")


def new_module(trial: TaskMember, of: Setting) -> torch.nn.Module:
    """A fresh one on the device, without lazy parameters, its weights by the trial's seed."""
    module = of.task.model(trial.objective.params, trial.seed).to(of.device)
    first_look(module, trial, of)
    return module


def first_look(module: torch.nn.Module, trial: TaskMember, of: Setting) -> Any:
    """What the module says of two samples in evaluation mode; lazy parameters take their shapes."""
    module.eval()
    doing = f"{of.task.entrypoint}: the model"
    with seeded(trial.seed, Purpose.INITIALISATION, 1), torch.no_grad(), user_code(doing):
        return module(of.train.samples[:2])


def _look(module: torch.nn.Module, trial: TaskMember, of: Setting) -> tuple[Predicts, int]:
    """What the module predicts and how many numbers per sample; lazy parameters have been made by then."""
    entrypoint = of.task.entrypoint
    samples = of.train.samples[:2]
    outputs = first_look(module, trial, of)
    if not any(p.requires_grad for p in module.parameters()):
        raise DataError(f"{entrypoint}: the model has no parameters to train")
    if not isinstance(outputs, torch.Tensor) or outputs.dim() == 0 or len(outputs) != len(samples):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(
            f"{entrypoint}: the model must return one tensor (batch, …), but for {len(samples)} samples gives {got}"
        )
    targets = torch.cat([of.train.labels, of.validation.labels])
    return predicts(of.task, trial.objective.loss.kind, outputs, targets), outputs.shape[1:].numel()
