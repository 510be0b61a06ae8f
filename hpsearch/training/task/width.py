"""How many trials a pack of a user's net should have: measured, within a memory that is counted on one step."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable

import torch
from torch.autograd.graph import saved_tensors_hooks

from hpsearch.errors import DataError
from hpsearch.objective import TaskObjective
from hpsearch.training.devices import memory_errors
from hpsearch.training.optimisers import optimizer_key
from hpsearch.training.pack import never
from hpsearch.training.streams import Purpose
from hpsearch.training.task.data import TaskData
from hpsearch.training.task.loading import Task, reason, seeded
from hpsearch.training.task.modules import structure
from hpsearch.training.task.pack import TaskPack
from hpsearch.training.task.stack import Setting, Stack, TaskMember, new_module
from hpsearch.training.width import COPIES, fastest_width

log = logging.getLogger(__name__)


def architecture(objective: TaskObjective, task: Task, data: TaskData, *, device: str = "cpu") -> str:
    """A digest of the net's :func:`hpsearch.training.task.modules.structure`: trials of equal ones can be stacked.

    Raises:
        DataError: the user's code raises.
    """
    return _digest(objective, _setting(objective, task, data, device))


def find_task_width(objective: TaskObjective, task: Task, data: TaskData, *, device: str, memory_budget: int) -> int:
    """The width at which a pack of this net makes the most member-steps per second.

    See :func:`hpsearch.training.width.fastest_width`; the answer is kept by entry point, source of its module,
    structure of the net, shape of the data, loss, batch size, optimiser, device, threads and version of torch.

    It is 1, and nothing is measured, where vmap cannot run the net or gives other numbers. It is 1 as well where the
    user's code raises; the log says why.

    Args:
        objective: of any trial of the architecture.
        task: its entry point's.
        data: the task's, on ``device``.
        device: a torch device.
        memory_budget: bytes that the members of a pack may take, beside the data.
    """
    of = _setting(objective, task, data, device)
    try:
        with memory_errors(1, device):
            widest = memory_budget // bytes_per_member(objective, of)
            pair = TaskPack(_members(objective, 2), task, data, data_seed=0, epochs=1, device=device, stacked=True)
        if pair.fallback is not None:
            return 1
        return fastest_width(
            lambda width: _Rehearsal(_members(objective, width), of), _key(objective, of), device=device, widest=widest
        )
    except Exception as error:  # the user's code may do anything
        what = "trained one at a time, for how fast packs are could not be measured"
        why = str(error) if isinstance(error, DataError) else reason(error)
        log.warning("%s: its modules are %s: %s", task.entrypoint, what, why)
        return 1


def bytes_per_member(objective: TaskObjective, of: Setting) -> int:
    """An estimate from above of the memory that one more member takes.

    A generous multiple of the bytes of its parameters and buffers, and of what autograd keeps of a minibatch for the
    backward pass; the samples are shared.

    Raises:
        DataError: the user's code raises.
    """
    member = TaskMember(objective, 0)
    stack = Stack([0], [member], [new_module(member, of)], of, stacked=False)
    own = [p.value for p in stack.modules.parameters] + [b.value for b in stack.modules.buffers]
    counted = {_address(tensor) for tensor in (*own, of.train.samples, of.train.labels)}
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in own)

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal n_bytes
        if _address(tensor) not in counted:
            counted.add(_address(tensor))
            n_bytes += tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor), seeded(0, Purpose.DROPOUT):
        stack.gradients(of.train.samples[: of.batch_size], of.train.labels[: of.batch_size])
    whole: int = COPIES * n_bytes
    return whole


class _Rehearsal:
    """Members as one stack, that has been found to give the right numbers."""

    def __init__(self, members: list[TaskMember], of: Setting) -> None:
        self._n_members, self._device = len(members), of.device
        with memory_errors(self._n_members, self._device):
            modules = [new_module(member, of) for member in members]
            self._stack = Stack(range(len(members)), members, modules, of, stacked=len(members) > 1)

    def rehearse(self, n_steps: int) -> None:
        """See :class:`hpsearch.training.width.Rehearsable`."""
        with memory_errors(self._n_members, self._device), seeded(0, Purpose.DROPOUT):
            self._stack.rehearse(n_steps)


def _key(objective: TaskObjective, of: Setting) -> Hashable:
    """Of all that decides about speed, but for device and torch."""
    samples, labels = of.train.samples, of.train.labels
    return (
        *(of.task.entrypoint, of.task.digest, _digest(objective, of)),
        *(tuple(samples.shape[1:]), samples.dtype, tuple(labels.shape[1:]), labels.dtype),
        *(objective.loss.kind, optimizer_key(objective), min(of.batch_size, len(labels))),
    )


def _digest(objective: TaskObjective, of: Setting) -> str:
    whole = structure(new_module(TaskMember(objective, 0), of))
    return hashlib.sha256(repr(whole).encode()).hexdigest()


def _members(objective: TaskObjective, width: int) -> list[TaskMember]:
    return [TaskMember(objective, seed) for seed in range(width)]


def _setting(objective: TaskObjective, task: Task, data: TaskData, device: str) -> Setting:
    return Setting(task, data.train, data.validation, 0, 1, objective.batch_size, device, never)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
