"""Trials on their way from the first epoch to the last: trained in lockstep, reported once per epoch for all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

from hpsearch.training import EpochResult
from hpsearch.training.checkpoints import Checkpoint
from hpsearch.trial import Action, Decision, Report, Result, TrialState
from hpsearch.worker.session import Channel, LeasedTrial


class Trainable(Protocol):
    """A pack, as far as lockstep needs it; see :class:`hpsearch.training.Pack`."""

    epoch: int

    def train_epoch(self) -> list[EpochResult]:
        """Train one epoch: one result per live member."""
        ...

    def drop(self, member: int) -> None:
        """Take a member out."""
        ...

    def checkpoint(self, member: int) -> Checkpoint:
        """All that a live member needs to go on."""
        ...


class Lockstep:
    """Some trials of equal epochs, folds and seeds.

    Args:
        packs: one per fold; in each, every trial has a member per seed, one after the other.
        leases: the trials.
        session: where they are reported.
        after_epoch: called with the places of the trials that go on.
        before_end: called with the place and the result of a trial that ends, while its members are still there.
        notes: what to say of each trial when it completes, if anything.
    """

    def __init__(
        self,
        packs: Sequence[Trainable],
        leases: Sequence[LeasedTrial],
        session: Channel,
        *,
        after_epoch: Callable[[list[int]], None] = lambda live: None,  # noqa: ARG005
        before_end: Callable[[int, Result], None] = lambda place, result: None,  # noqa: ARG005
        notes: Sequence[str | None] = (),
    ) -> None:
        self.packs = packs
        self.leases = leases
        self.session = session
        self.repeats = leases[0].seeds
        self._after_epoch = after_epoch
        self._before_end = before_end
        self._notes = notes or [None] * len(leases)

    def run(self) -> None:
        """Train until every trial has ended, and say how each did."""
        live = list(range(len(self.leases)))
        for epoch in range(self.packs[0].epoch + 1, self.leases[0].epochs + 1):
            trained = self._train_epoch()
            reports = [Report(self.leases[n].token, epoch, mean_metrics([r.metrics for r in trained[n]])) for n in live]
            decisions = self.session.report(reports)
            results = []
            for place, report in zip(list(live), reports, strict=True):
                decision = decisions[report.token]
                result = self._result(place, report, trained[place], decision)
                if result is not None:
                    self._before_end(place, result)
                    results.append(result)
                if result is not None or decision.action is Action.ABANDON:
                    live.remove(place)
                    self._drop(place)
            self.session.finish(results)
            if not live:
                return
            self._after_epoch(live)

    def _train_epoch(self) -> dict[int, list[EpochResult]]:
        trained: dict[int, list[EpochResult]] = {}
        for pack in self.packs:
            for result in pack.train_epoch():
                trained.setdefault(result.member // self.repeats, []).append(result)
        return trained

    def _result(self, place: int, report: Report, trained: list[EpochResult], decision: Decision) -> Result | None:
        lease = self.leases[place]
        if decision.action is Action.ABANDON:
            return None
        diverged = [result.diverged for result in trained if result.diverged is not None]
        value = report.metrics.get(lease.metric["name"])
        if diverged:
            many = f"{len(diverged)} of {len(trained)} trainings diverged: " if len(trained) > 1 else ""
            return Result(lease.token, TrialState.DIVERGED, None, many + diverged[0])
        if value is None:
            known = ", ".join(name for name in report.metrics if "/" not in name)
            reason = f"the objective never reports {lease.metric['name']!r}: it reports {known}"
            return Result(lease.token, TrialState.FAILED, None, reason)
        if report.step == lease.epochs:  # also where the server had said stop while it could not be heard
            return Result(lease.token, TrialState.COMPLETED, value, self._notes[place])
        if decision.action is Action.STOP:
            return Result(lease.token, TrialState.PRUNED, value, decision.reason)
        return None

    def _drop(self, place: int) -> None:
        for pack in self.packs:
            for repeat in range(self.repeats):
                pack.drop(place * self.repeats + repeat)


def mean_metrics(runs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over several trainings, and ``NAME_std``, their sample standard deviation (n − 1)."""
    if len(runs) == 1:
        return runs[0]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    means = {name: statistics.fmean(run[name] for run in runs) for name in names}
    spreads = {f"{name}_std": _std([run[name] for run in runs]) for name in names if "/" not in name}
    return means | spreads


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if all(math.isfinite(value) for value in values) else math.nan
