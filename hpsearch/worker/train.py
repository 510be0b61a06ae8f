"""Runs ``kind: train``: groups the trials leased into packs and trains each pack as one model."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hpsearch.errors import DataError, OutOfMemory
from hpsearch.objective import TrainObjective
from hpsearch.search.sampling import repeat_seed
from hpsearch.space import Space
from hpsearch.training import Dataset, Interrupted, Member, Pack, load_dataset, shape_key
from hpsearch.training.devices import in_halves, memory_budget, prepare_process
from hpsearch.training.preflight import preflight
from hpsearch.training.samples import confined
from hpsearch.training.width import find_width
from hpsearch.trial import Result, TrialState
from hpsearch.worker.checkpoints import Checkpoints
from hpsearch.worker.jobs import Job, train_jobs
from hpsearch.worker.session import Channel, LeasedTrial, PreflightTask

log = logging.getLogger(__name__)

_SPACE: TypeAdapter[Space] = TypeAdapter(Space)
KEPT_DATASETS = 2
"""Data sets kept in memory between trials."""


FIRST_WIDTH = 8
"""Trials per pack before anything is measured."""


class TrainRunner:
    """Trains built-in models on one device.

    Args:
        device: a torch device.
        threads: that torch may use in this process.
        width: trials per pack; None finds the fastest for each architecture by itself.
        n_workers: workers that share this machine's memory.
        checkpoints: where trials go on after a worker was lost; None keeps none.
        on_test: evaluate on the test split in place of the validation split.
        data_root: the folder that data may be read from; None: anywhere.
    """

    checks = True

    def __init__(
        self,
        *,
        device: str = "cpu",
        threads: int = 1,
        width: int | None = None,
        n_workers: int = 1,
        checkpoints: Checkpoints | None = None,
        on_test: bool = False,
        data_root: Path | None = None,
    ) -> None:
        prepare_process(threads)
        self.device = device
        self.capacity = width or FIRST_WIDTH
        self._width = width
        self._memory = memory_budget(device, n_workers)
        self._checkpoints = checkpoints
        self._datasets: dict[Hashable, Dataset] = {}
        self._on_test = on_test
        self._data_root = data_root
        self._widths: dict[Hashable, int | None] = {}

    def run(self, leases: Sequence[LeasedTrial], session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`."""
        groups: dict[Hashable, list[Job[TrainObjective]]] = {}
        for lease in leases:
            try:
                objective = TrainObjective.model_validate(lease.objective).with_params(lease.params)
            except ValidationError as error:
                reason = f"the params do not fit: {error.errors()[0]['msg']}"
                session.finish([Result(lease.token, TrialState.FAILED, None, reason)])
                continue
            left = self._checkpoints.load(lease) if self._checkpoints else None
            job = Job(lease, objective, shape_key(objective), left)
            groups.setdefault(job.key, []).append(job)
        waiting = list(groups.values())
        while waiting and not session.stop.is_set():
            self._train(waiting.pop(0), session)
        session.release([job.lease.token for jobs in waiting for job in jobs])

    def preflight(self, task: PreflightTask, session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`. Data that cannot be used is a check that failed."""
        try:
            objective = TrainObjective.model_validate(task.objective)
            dataset = self._dataset(objective, task.study_seed)
            space = _SPACE.validate_python(task.space)
            checks = [asdict(c) for c in preflight(objective, space, study_seed=task.study_seed, dataset=dataset)]
        except DataError as error:
            checks = [{"name": "data", "status": "fail", "message": str(error), "numbers": {}}]
        except Exception as error:  # a fault of ours must not cost the worker
            log.exception("the preflight of %s failed", task.study)
            message = f"the checks themselves failed: {type(error).__name__}: {error}"
            checks = [{"name": "preflight", "status": "fail", "message": message, "numbers": {}}]
        session.checked(task, checks)

    def _train(self, jobs: list[Job[TrainObjective]], session: Channel) -> None:
        """Train jobs that can share a pack, at most as many at a time as is fastest."""
        tokens = [job.lease.token for job in jobs]
        try:
            n_jobs = self._jobs_per_pack(jobs[0])
            for start in range(0, len(jobs), n_jobs):
                widest = in_halves(jobs[start : start + n_jobs], lambda some: self._train_pack(some, session))
                if widest < len(jobs[start : start + n_jobs]):
                    log.warning("out of memory: packs of %d from now on", widest)
                    self.capacity = self._width = widest
        except Interrupted:
            session.release(tokens)  # of those finished meanwhile the server keeps the result
        except DataError as error:
            session.finish([Result(token, TrialState.FAILED, None, str(error)) for token in tokens])
        except (RuntimeError, MemoryError, OutOfMemory) as error:
            log.exception("training a pack of %d failed", len(jobs))
            reason = f"{type(error).__name__}: {error}"
            session.finish([Result(token, TrialState.FAILED, None, reason) for token in tokens])

    def _jobs_per_pack(self, job: Job[TrainObjective]) -> int:
        """The width that was asked for or, from the second time an architecture comes, the fastest one."""
        if self._width is not None:
            return self._width
        key = job.kind
        if key not in self._widths:
            self._widths[key] = None  # many architectures come once: those are not worth measuring
        elif self._widths[key] is None:
            dataset = self._dataset(job.objective, job.lease.study_seed)
            width = find_width(job.objective, dataset, device=self.device, memory_budget=self._memory)
            self._widths[key] = max(1, width // job.lease.seeds)
        self.capacity = self._widths[key] or FIRST_WIDTH
        return self.capacity

    def _train_pack(self, jobs: Sequence[Job[TrainObjective]], session: Channel) -> None:
        packs = self._packs(jobs, session)
        for fold, pack in enumerate(packs):
            if jobs[0].left is not None:
                pack.resume([member for job in jobs for member in (job.left or [])[fold]])
        train_jobs(packs, jobs, session, self._checkpoints)

    def _packs(self, jobs: Sequence[Job[TrainObjective]], session: Channel) -> list[Pack]:
        """One pack per fold; in each, every job has a member per repeat, one after the other."""
        first = jobs[0].lease
        whole = self._dataset(jobs[0].objective, first.study_seed)
        members = [
            Member(job.objective, repeat_seed(job.lease.seed, repeat))
            for job in jobs
            for repeat in range(job.lease.seeds)
        ]
        return [
            Pack(
                members,
                dataset,
                data_seed=first.data_seed,
                epochs=first.epochs,
                device=self.device,
                should_stop=session.stop.is_set,
            )
            for dataset in ([whole] if first.folds is None else whole.folds(first.folds))
        ]

    def _dataset(self, objective: TrainObjective, study_seed: int) -> Dataset:
        key = (objective.data.model_dump_json(), study_seed)
        dataset = self._datasets.pop(key, None)
        if dataset is None:
            with confined(self._data_root):
                dataset = load_dataset(objective, study_seed=study_seed, device=self.device)
        while len(self._datasets) >= KEPT_DATASETS:
            del self._datasets[next(iter(self._datasets))]
        self._datasets[key] = dataset
        if not self._on_test:
            return dataset
        if dataset.test is None:
            raise DataError(
                "the data have no test split: give data.test a size, or files named test* beside the others"
            )
        return dataset.test
