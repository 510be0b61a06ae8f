"""Runs ``kind: task``: the user's own nets, where this worker allows their code."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hpsearch.allow import allowed, refusal
from hpsearch.errors import DataError, Interrupted, OutOfMemory
from hpsearch.objective import TaskObjective
from hpsearch.search.sampling import repeat_seed
from hpsearch.space import Space
from hpsearch.training.devices import in_halves, memory_budget, prepare_process
from hpsearch.training.preflight import Check
from hpsearch.training.task import (
    Task,
    TaskData,
    TaskMember,
    TaskPack,
    architecture,
    find_task_width,
    load_task,
    task_data,
    task_key,
)
from hpsearch.training.task.loading import reason
from hpsearch.training.task.preflight import preflight
from hpsearch.trial import Result, TrialState
from hpsearch.worker.checkpoints import Checkpoints
from hpsearch.worker.jobs import Job, train_jobs
from hpsearch.worker.session import Channel, LeasedTrial, PreflightTask

log = logging.getLogger(__name__)

_SPACE: TypeAdapter[Space] = TypeAdapter(Space)

FIRST_WIDTH = 8
"""Trials per pack before anything is measured."""

KEPT_DATA = 2
"""Data of so many tasks is kept in memory between trials."""


class TaskRunner:
    """Trains nets of users on one device.

    Args:
        allow: patterns of entry points whose code may run here.
        folders: where their modules are looked for, beside the working directory.
        device: a torch device.
        threads: that torch may use in this process.
        width: trials per pack; None finds the fastest for each architecture by itself.
        n_workers: workers that share this machine's memory.
        checkpoints: where trials go on after a worker was lost; None keeps none.
    """

    checks = True

    def __init__(
        self,
        *,
        allow: Sequence[str],
        folders: Sequence[Path] = (),
        device: str = "cpu",
        threads: int = 1,
        width: int | None = None,
        n_workers: int = 1,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        prepare_process(threads)
        self.capacity = width or FIRST_WIDTH
        self._width = width
        self._memory = memory_budget(device, n_workers)
        self._allow = list(allow)
        self._folders = list(folders)
        self._device = device
        self._checkpoints = checkpoints
        self._tasks: dict[str, Task] = {}
        self._data: dict[Hashable, TaskData] = {}
        self._architectures: dict[Hashable, str] = {}
        self._widths: dict[Hashable, int | None] = {}

    def run(self, leases: Sequence[LeasedTrial], session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`."""
        groups: dict[Hashable, list[Job[TaskObjective]]] = {}
        for lease in leases:
            try:
                objective = TaskObjective.model_validate(lease.objective).with_params(lease.params)
            except ValidationError as error:
                self._fail([lease], f"the params do not fit: {error.errors()[0]['msg']}", session)
                continue
            if not allowed(objective.entrypoint, self._allow):
                self._fail([lease], refusal(objective.entrypoint), session)
                continue
            try:
                shape = task_key(objective), self._architecture(objective, lease)
            except Exception as error:  # the user's code may do anything
                self._fail([lease], _said(error), session)
                continue
            left = self._checkpoints.load(lease) if self._checkpoints else None
            job = Job(lease, objective, shape, left)
            groups.setdefault(job.key, []).append(job)
        waiting = list(groups.values())
        while waiting and not session.stop.is_set():
            jobs = waiting.pop(0)
            n_jobs = self._jobs_per_pack(jobs[0])
            if len(jobs) > n_jobs:
                waiting.insert(0, jobs[n_jobs:])
            self._train(jobs[:n_jobs], session)
        session.release([job.lease.token for jobs in waiting for job in jobs])

    def preflight(self, task: PreflightTask, session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`. Code that may not run here is a check that failed."""
        session.checked(task, [asdict(check) for check in self._checks(task)])

    def _checks(self, task: PreflightTask) -> list[Check]:
        objective = TaskObjective.model_validate(task.objective)
        if not allowed(objective.entrypoint, self._allow):
            return [Check("allow", "fail", refusal(objective.entrypoint))]
        try:
            loaded = self._task(objective.entrypoint)
            data = self._dataset(loaded, objective, task.study_seed)
            space = _SPACE.validate_python(task.space)
            return preflight(objective, space, study_seed=task.study_seed, task=loaded, data=data, device=self._device)
        except DataError as error:
            return [Check("data", "fail", str(error))]
        except Exception as error:  # the user's code may do anything
            log.exception("the preflight of %s failed", objective.entrypoint)
            return [Check("preflight", "fail", f"the checks themselves failed: {reason(error)}")]

    def _architecture(self, objective: TaskObjective, lease: LeasedTrial) -> str:
        key = objective.entrypoint, lease.study, repr(sorted(objective.params.items()))
        if key not in self._architectures:
            task = self._task(objective.entrypoint)
            data = self._dataset(task, objective, lease.study_seed)
            self._architectures[key] = architecture(objective, task, data, device=self._device)
        return self._architectures[key]

    def _jobs_per_pack(self, job: Job[TaskObjective]) -> int:
        """The width that was asked for or, from the second time an architecture comes, the fastest one."""
        if self._width is not None:
            return self._width
        key = job.kind
        if key not in self._widths:
            self._widths[key] = None  # many architectures come once: those are not worth measuring
        elif self._widths[key] is None:
            task = self._task(job.objective.entrypoint)
            data = self._dataset(task, job.objective, job.lease.study_seed)
            self._widths[key] = find_task_width(
                job.objective, task, data, device=self._device, memory_budget=self._memory
            )
        width = self._widths[key]
        self.capacity = FIRST_WIDTH if width is None else max(1, width // job.lease.seeds)
        return self.capacity

    def _is_faster(self, job: Job[TaskObjective], n_members: int) -> bool:
        """Whether a pack so wide has been found to be faster than one at a time: then it is not timed once more."""
        width = self._widths.get(job.kind)
        return width is not None and width // 2 < n_members <= width

    def _train(self, jobs: Sequence[Job[TaskObjective]], session: Channel) -> None:
        leases = [job.lease for job in jobs]
        try:
            widest = in_halves(jobs, lambda some: self._train_pack(some, session))
        except Interrupted:
            session.release([lease.token for lease in leases])  # of those finished the server keeps the result
        except Exception as error:  # the user's code may do anything
            self._fail(leases, _said(error), session)
        else:
            if widest < len(jobs):
                log.warning("out of memory: packs of %d from now on", widest)
                self.capacity = self._width = max(1, widest)

    def _train_pack(self, jobs: Sequence[Job[TaskObjective]], session: Channel) -> None:
        try:
            packs = self._packs(jobs, session)
        except DataError:
            if len(jobs) == 1:
                raise
            for job in jobs:  # the one whose params are at fault fails alone
                self._train([job], session)
            return
        train_jobs(packs, jobs, session, self._checkpoints)

    def _packs(self, jobs: Sequence[Job[TaskObjective]], session: Channel) -> list[TaskPack]:
        """One pack per fold; in each, every job has a member per repeat, one after the other."""
        first, objective = jobs[0].lease, jobs[0].objective
        task = self._task(objective.entrypoint)
        whole = self._dataset(task, objective, first.study_seed)
        members = [
            TaskMember(job.objective, repeat_seed(job.lease.seed, repeat))
            for job in jobs
            for repeat in range(job.lease.seeds)
        ]
        packs = [
            TaskPack(
                members,
                task,
                data,
                data_seed=first.data_seed,
                epochs=first.epochs,
                device=self._device,
                should_stop=session.stop.is_set,
                stacked=True if self._is_faster(jobs[0], len(members)) else None,
            )
            for data in ([whole] if first.folds is None else whole.folds(first.folds))
        ]
        if jobs[0].left is not None:
            for fold, pack in enumerate(packs):
                pack.resume([member for job in jobs for member in (job.left or [])[fold]])
        return packs

    def _task(self, entrypoint: str) -> Task:
        if entrypoint not in self._tasks:
            self._tasks[entrypoint] = load_task(entrypoint, self._folders)
        return self._tasks[entrypoint]

    def _dataset(self, task: Task, objective: TaskObjective, study_seed: int) -> TaskData:
        numbers = objective.loss.kind == "mse" and task.loss is None
        key = (task.entrypoint, objective.validation, study_seed, numbers)
        data = self._data.pop(key, None)
        if data is None:
            data = task_data(
                task, validation=objective.validation, study_seed=study_seed, numbers=numbers, device=self._device
            )
        while len(self._data) >= KEPT_DATA:
            del self._data[next(iter(self._data))]
        self._data[key] = data
        return data

    @staticmethod
    def _fail(leases: Sequence[LeasedTrial], reason: str, session: Channel) -> None:
        session.finish([Result(lease.token, TrialState.FAILED, None, reason) for lease in leases])


def _said(error: Exception) -> str:
    """Why a trial failed; what is not known to happen is logged besides."""
    if isinstance(error, DataError | OutOfMemory):
        return str(error)
    log.error("training a task failed", exc_info=error)
    return f"{type(error).__name__}: {error}"
