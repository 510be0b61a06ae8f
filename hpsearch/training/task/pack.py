"""A pack of a user's modules: stacked where vmap runs them to the same numbers and is faster, else one at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence

import torch

from hpsearch.errors import DataError
from hpsearch.objective import TaskObjective
from hpsearch.training.checkpoints import Checkpoint, check_resumed
from hpsearch.training.devices import memory_errors, synchronize
from hpsearch.training.optimisers import optimizer_key
from hpsearch.training.pack import EpochResult, never
from hpsearch.training.streams import Purpose
from hpsearch.training.task.data import TaskData
from hpsearch.training.task.loading import Task, reason, seeded
from hpsearch.training.task.modules import structure
from hpsearch.training.task.stack import Setting, Stack, TaskMember, new_module

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""By how much float32 sums in another order may differ: of the number itself, and of the member's largest gradient."""

TIMED = 3
"""Rounds in which both ways are timed, in turn; the fastest of each counts."""


def task_key(objective: TaskObjective) -> Hashable:
    """Trials with equal keys, of one study, may share a :class:`TaskPack`."""
    shared = objective.entrypoint, objective.batch_size, objective.validation, objective.loss.kind
    return (*shared, optimizer_key(objective))


class TaskPack:
    """K ≥ 1 trials of a task; each gets, to float tolerance, the numbers that it would get alone.

    Members whose modules are of one structure are trained as one stacked model, if ``torch.func`` can run them: on one
    minibatch, losses, gradients and running statistics are compared with those of every module by itself. Where
    they differ, where vmap raises, or where it is slower on this device, they are trained one at a time, and the
    task says why. Minibatches are shared, and their order is as in :class:`hpsearch.training.Pack`.

    Args:
        members: trials of equal :func:`task_key`.
        task: theirs.
        data: the task's, on ``device``.
        data_seed: ≥ 0; the same for all trials of a study.
        epochs: how many will be trained at most; schedules end with them.
        device: a torch device.
        should_stop: asked before every minibatch; must be cheap.
        stacked: True: whenever the numbers agree, however fast; False: one at a time.

    Attributes:
        epoch: how many have been trained.
        fallback: why members of one structure are trained one at a time; None where none are.

    Raises:
        ValueError: no members, or members of different keys.
        DataError: the user's code raises, or module, data and loss do not fit each other.
        OutOfMemory: here and wherever the pack trains.
    """

    def __init__(
        self,
        members: Sequence[TaskMember],
        task: Task,
        data: TaskData,
        *,
        data_seed: int,
        epochs: int,
        device: str = "cpu",
        should_stop: Callable[[], bool] = never,
        stacked: bool | None = None,
    ) -> None:
        if len({task_key(member.objective) for member in members}) != 1:
            raise ValueError("a pack needs at least one member, and members of one task_key")
        self.epoch = 0
        self.fallback: str | None = None
        self._n_epochs = epochs
        self._device = device
        self._members = list(members)
        self._stacks: list[Stack] = []
        first = members[0].objective
        self._of = Setting(
            task, data.train, data.validation, data_seed, epochs, first.batch_size, device, should_stop
        )  # fmt: skip
        with memory_errors(len(members), device):
            groups: dict[Hashable, list[int]] = {}
            for number in range(len(members)):
                groups.setdefault(structure(self._module(number)), []).append(number)
            for group in groups.values():
                self._stacks += self._stacked(group, stacked)

    @property
    def live(self) -> list[int]:
        """Members that are still trained, ascending."""
        return sorted(member for stack in self._stacks for member in stack.live)

    def drop(self, member: int) -> None:
        """Take a member out; its neighbours' numbers do not change. Harmless if it has left already."""
        if not 0 <= member < len(self._members):
            raise ValueError(f"the pack has members 0 to {len(self._members) - 1}, not {member}")
        for stack in self._stacks:
            stack.drop(member)

    def train_epoch(self) -> list[EpochResult]:
        """Train one epoch and evaluate on the validation split: one result per live member, ascending.

        Raises:
            Interrupted: ``should_stop()`` was true before a minibatch; the pack is of no further use.
            DataError: the user's code raises.
            ValueError: all epochs have been trained.
        """
        if self.epoch == self._n_epochs:
            raise ValueError(f"the pack has trained all of its {self._n_epochs} epochs")
        self.epoch += 1
        with memory_errors(len(self._members), self._device):
            results = [result for stack in self._stacks for result in stack.train_epoch(self.epoch)]
        return sorted(results, key=lambda result: result.member)

    # Whether to stack

    def _stacked(self, group: list[int], stacked: bool | None) -> list[Stack]:
        """One stack of all, or one for each."""
        if len(group) > 1 and stacked is not False:
            objection = self._objection(group, look_at_time=stacked is None)
            if objection is None:
                return [self._stack(group, stacked=True)]
            topic, self.fallback = objection
            self._of.task.say(topic, f"its modules are trained one at a time: {self.fallback}")
        return [self._stack([member], stacked=False) for member in group]

    def _stack(self, group: list[int], *, stacked: bool) -> Stack:
        trials = [self._members[number] for number in group]
        return Stack(group, trials, [self._module(number) for number in group], self._of, stacked=stacked)

    def _module(self, number: int) -> torch.nn.Module:
        """A fresh one: whatever an earlier one did in a trial run is of no consequence."""
        return new_module(self._members[number], self._of)

    def _objection(self, group: list[int], *, look_at_time: bool) -> tuple[str, str] | None:
        """What speaks against stacking, as topic and sentence; None if nothing does."""
        alone = []
        for number in group:
            with seeded(self._members[number].seed, Purpose.DROPOUT, 0):
                alone.append(_Sample(self._stack([number], stacked=False), self._of))
        try:
            together = _Sample(self._stack(group, stacked=True), self._of)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # whatever the user's code and vmap do not like about each other
            return "vmap", f"vmap cannot run them ({_cause(error)})"
        for row, one in enumerate(alone):
            if difference := one.difference(together, row):
                return "numbers", f"with vmap the {difference} differs from that of the module by itself"
        if look_at_time:
            slow, fast = self._seconds(alone), math.inf
            for _ in range(TIMED):
                slow, fast = min(slow, self._seconds(alone)), min(fast, self._seconds([together]))
            if fast > slow:
                times = f"{1e3 * fast:.3g} ms by vmap and {1e3 * slow:.3g} ms without"
                return "speed", f"a step of {len(group)} takes {times}"
        return None

    def _seconds(self, samples: Sequence[_Sample]) -> float:
        started = time.perf_counter()
        for sample in samples:
            sample.again()
        synchronize(self._device)
        return time.perf_counter() - started

    # Checkpoints

    def checkpoint(self, member: int) -> Checkpoint:
        """All that a live member needs to go on after the latest epoch, on the CPU."""
        stack = next(stack for stack in self._stacks if member in stack.live)
        return stack.checkpoint(member, self._architecture(member), self.epoch)

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
        for stack in self._stacks:
            for member in stack.live:
                stack.resume(checkpoints[member], member, self._architecture(member))
        self.epoch = checkpoints[0].epoch

    def _architecture(self, member: int) -> str:
        objective = self._members[member].objective
        return f"task {objective.entrypoint} with {sorted(objective.params.items())}, {optimizer_key(objective)}"


class _Sample:
    """A training pass over the first minibatch of the split."""

    def __init__(self, stack: Stack, of: Setting) -> None:
        self._stack = stack
        self._batch = of.train.samples[: of.batch_size], of.train.labels[: of.batch_size]
        marked, gradients = stack.gradients(*self._batch)
        self._loss = marked.scored.loss.clone()
        self._gradients = gradients
        self._buffers = [(b.name, b.value.clone()) for b in stack.modules.buffers]
        self._names = [p.name for p in stack.modules.parameters]

    def difference(self, together: _Sample, row: int) -> str | None:
        """What differs between this module by itself and the member ``row`` of a stack; None if nothing does."""
        if not _close(self._loss[0], together._loss[row], ABSOLUTE):
            return "loss"
        norms = [float(g.abs().max()) for g in self._gradients if g is not None and g.numel()]
        scale = max((n for n in norms if math.isfinite(n)), default=0.0)
        for name, own, other in zip(self._names, self._gradients, together._gradients, strict=True):
            if (own is None) != (other is None):
                return f"gradient of {name}"
            if own is not None and other is not None and not _close(own[0], other[row], ABSOLUTE * scale):
                return f"gradient of {name}"
        for (name, mine), (_, theirs) in zip(self._buffers, together._buffers, strict=True):
            if not _close(mine[0], theirs[row], ABSOLUTE):
                return f"buffer {name}"
        return None

    def again(self) -> None:
        """The same pass once more."""
        self._stack.gradients(*self._batch)


def _close(one: torch.Tensor, other: torch.Tensor, absolute: float) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=RELATIVE, atol=absolute, equal_nan=True)


def _cause(error: BaseException) -> str:
    return reason(error.__cause__ if isinstance(error, DataError) and error.__cause__ else error)
