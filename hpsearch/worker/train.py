"""Runs ``kind: train``: groups the trials leased into packs and trains each pack as one model."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, EpochResult, Interrupted, Member, Pack, load_dataset, shape_key
from hpsearch.trial import Action, Report, Result, TrialState
from hpsearch.worker.session import LeasedTrial, Session

log = logging.getLogger(__name__)

KEPT_DATASETS = 2
"""Data sets kept in memory between trials."""


@dataclass(frozen=True, slots=True)
class _Job:
    lease: LeasedTrial
    objective: TrainObjective


class TrainRunner:
    """Trains built-in models on one device.

    Args:
        device: a torch device.
        threads: that torch may use in this process.
    """

    def __init__(self, *, device: str = "cpu", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self._datasets: dict[Hashable, Dataset] = {}

    def run(self, leases: Sequence[LeasedTrial], session: Session) -> None:
        """See :class:`hpsearch.worker.loop.Runner`."""
        groups: dict[Hashable, list[_Job]] = {}
        for lease in leases:
            try:
                objective = TrainObjective.model_validate(lease.objective).with_params(lease.params)
            except ValidationError as error:
                reason = f"the params do not fit: {error.errors()[0]['msg']}"
                session.finish([Result(lease.token, TrialState.FAILED, None, reason)])
                continue
            key = (lease.study, lease.stage, lease.data_seed, lease.epochs, shape_key(objective))
            groups.setdefault(key, []).append(_Job(lease, objective))
        waiting = list(groups.values())
        while waiting and not session.stop.is_set():
            self._train(waiting.pop(0), session)
        session.release([job.lease.token for jobs in waiting for job in jobs])

    def _train(self, jobs: list[_Job], session: Session) -> None:
        tokens = [job.lease.token for job in jobs]
        try:
            pack = self._pack(jobs, session)
            _Training(pack, jobs, session).run()
        except Interrupted:
            session.release(tokens)  # of those finished meanwhile the server keeps the result
        except DataError as error:
            session.finish([Result(token, TrialState.FAILED, None, str(error)) for token in tokens])
        except (RuntimeError, MemoryError) as error:
            log.exception("training a pack of %d failed", len(jobs))
            reason = f"{type(error).__name__}: {error}"
            session.finish([Result(token, TrialState.FAILED, None, reason) for token in tokens])

    def _pack(self, jobs: list[_Job], session: Session) -> Pack:
        first = jobs[0].lease
        return Pack(
            [Member(job.objective, job.lease.seed) for job in jobs],
            self._dataset(jobs[0].objective, first.study_seed),
            data_seed=first.data_seed,
            epochs=first.epochs,
            device=self.device,
            should_stop=session.stop.is_set,
        )

    def _dataset(self, objective: TrainObjective, study_seed: int) -> Dataset:
        key = (objective.data.model_dump_json(), study_seed)
        dataset = self._datasets.pop(key, None)
        if dataset is None:
            dataset = load_dataset(objective, study_seed=study_seed, device=self.device)
        while len(self._datasets) >= KEPT_DATASETS:
            del self._datasets[next(iter(self._datasets))]
        self._datasets[key] = dataset
        return dataset


class _Training:
    """One pack on its way from the first epoch to the last."""

    def __init__(self, pack: Pack, jobs: list[_Job], session: Session) -> None:
        self.pack = pack
        self.jobs = jobs
        self.session = session

    def run(self) -> None:
        epochs = self.jobs[0].lease.epochs
        for epoch in range(1, epochs + 1):
            if not self.pack.live:
                return
            trained = self.pack.train_epoch()
            decisions = self.session.report([Report(self._token(t), t.epoch, t.metrics) for t in trained])
            results = []
            for member in trained:
                token = self._token(member)
                decision = decisions[token]
                if decision.action is Action.ABANDON:
                    self.pack.drop(member.member)
                elif result := self._result(member, last=epoch == epochs):
                    results.append(result)
                elif decision.action is Action.STOP:
                    results.append(Result(token, TrialState.PRUNED, self._value(member), decision.reason))
            for result in results:
                self.pack.drop(self._tokens().index(result.token))
            self.session.finish(results)

    def _result(self, member: EpochResult, *, last: bool) -> Result | None:
        if member.diverged is not None:
            return Result(self._token(member), TrialState.DIVERGED, None, member.diverged)
        if last:
            return Result(self._token(member), TrialState.COMPLETED, self._value(member))
        return None

    def _value(self, member: EpochResult) -> float:
        return member.metrics[self.jobs[member.member].lease.metric["name"]]

    def _token(self, member: EpochResult) -> str:
        return self.jobs[member.member].lease.token

    def _tokens(self) -> list[str]:
        return [job.lease.token for job in self.jobs]
