"""A trial of the user's own code while it runs: what it reports, why it is to stop, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from hpsearch.objective.own import Limits
from hpsearch.running_trial import not_finite
from hpsearch.space import MAX_INT
from hpsearch.trial import Action, Decision, Report, Result, TrialState
from hpsearch.worker.program import Program, Tail
from hpsearch.worker.session import Channel, LeasedTrial

LOG_BYTES = 2**16
"""So much of the end of a trial's output is kept."""
MEMORY_SECONDS = 0.2
"""Memory is looked at so often."""
LOG_SECONDS = 5.0
"""The log of a running trial is sent at most so often."""
WORKER_GRACE_SECONDS = 10.0
"""What a trial gets to stop in when its worker stops, at most: who started the worker does not wait for long."""
MAX_METRICS, MAX_NAME = 1000, 200


@dataclass(frozen=True, slots=True)
class End:
    """Why a trial is to stop, and what it then is: None if it is not the worker's to say (lost, or given back)."""

    state: TrialState | None
    reason: str
    release: bool = False


class OwnTrial:
    """One trial of a worker.

    Args:
        lease: the trial.
        session: where it is reported.
        limits: what it may use.
    """

    def __init__(self, lease: LeasedTrial, session: Channel, limits: Limits) -> None:
        self.lease = lease
        self.limits = limits
        self.log = Tail(LOG_BYTES)
        self.end: End | None = None
        self.step = 0
        self.unsent: list[Report] = []
        """What nobody waits for an answer to, to be reported with the result."""
        self._session = session
        self._metric = lease.metric["name"]
        self._value: float | None = None
        self._at_step: dict[str, float] = {}
        self._names: set[str] = set()
        self._odd: object = None
        self._began = self._heard = self._logged = self._weighed = time.monotonic()
        self._n_logged = 0

    def report(self, step: int, metrics: Mapping[str, float], *, is_over: bool = False) -> str | None:
        """Report metrics of a step, beside what was reported of the same step before.

        Args:
            step: from 1.
            metrics: the numbers.
            is_over: the trial has ended: there is nothing left to stop.

        Returns:
            why the trial is to stop, None if it goes on.
        """
        if self.end is not None:
            return self.end.reason
        known = {name: value for name, value in list(metrics.items())[:MAX_METRICS] if 0 < len(name) <= MAX_NAME}
        self._at_step = known if step != self.step else self._at_step | known
        self.step = min(step, MAX_INT)
        self._names |= known.keys()
        report = Report(self.lease.token, self.step, dict(self._at_step))
        if is_over:
            self.unsent.append(report)
            decision = Decision(report.token, Action.CONTINUE)
        else:
            self._heard = time.monotonic()
            decision = self._session.report([report])[report.token]
        value = known.get(self._metric)
        diverged = None if value is None else not_finite(self._metric, value, step)
        if diverged is not None:
            self.end = End(TrialState.DIVERGED, diverged)
        else:
            self._value = self._value if value is None else value
            self._follow(decision)
        return self.end.reason if self.end else None

    def _follow(self, decision: Decision) -> None:
        if decision.action is Action.ABANDON:
            self.end = End(None, decision.reason or "the trial was taken back")
        elif decision.action is Action.STOP and self.step < self.lease.epochs:
            self.end = End(TrialState.PRUNED, decision.reason or "it was stopped early")

    def look(self, program: Program) -> None:
        """See whether there is a reason to stop, and stop the program if so; called every so often."""
        now = time.monotonic()
        if self.end is None:
            self._look(program, now)
        if self.end is not None and not program.is_being_stopped:
            grace = self.limits.grace_seconds
            program.stop(min(grace, WORKER_GRACE_SECONDS) if self.end.release else grace)
        elif self.end is not None and self._session.stop.is_set():
            program.stop(min(self.limits.grace_seconds, WORKER_GRACE_SECONDS))
        if self.log.n_seen != self._n_logged and now - self._logged > LOG_SECONDS:
            self._logged, self._n_logged = now, self.log.n_seen
            self._session.log({self.lease.token: self.log.text()})

    def _look(self, program: Program, now: float) -> None:
        limits = self.limits
        if self._session.stop.is_set():
            self.end = End(None, "the worker stops", release=True)
        elif limits.seconds is not None and now - self._began > limits.seconds:
            self.end = End(TrialState.FAILED, f"it took longer than limits.seconds, {limits.seconds:g}: raise that")
        elif limits.memory_mib is not None and now - self._weighed > MEMORY_SECONDS:
            self._weighed = now
            used = program.memory() / 2**20
            if used > limits.memory_mib:
                text = f"its processes took {used:,.0f} MiB of memory, and limits.memory_mib is {limits.memory_mib:,}"
                self.end = End(TrialState.FAILED, f"{text}: raise that")
        elif now - self._heard > max(1.0, self.lease.lease_seconds / 6):  # the study may have been cancelled
            self._heard = now
            self._follow(self._session.report([Report(self.lease.token)])[self.lease.token])

    def result(
        self,
        *,
        value: float | None = None,
        fault: str | None = None,
        stopped: str | None = None,
        note: str | None = None,
    ) -> Result | None:
        """How the trial ended; None if that is not the worker's to say.

        Args:
            value: of the metric; None: the last one reported.
            fault: why it failed.
            stopped: why it stopped by itself.
            note: what else is to be said of a trial that completed.
        """
        token = self.lease.token
        if self.end is not None:
            last = self._value if self.end.state is TrialState.PRUNED else None
            return None if self.end.state is None else Result(token, self.end.state, last, self.end.reason)
        if fault is not None:
            return Result(token, TrialState.FAILED, None, fault.replace("\0", "\ufffd"))
        value = self._value if value is None else value
        if stopped is not None:
            return Result(token, TrialState.PRUNED, value, stopped)
        if value is None:
            return Result(token, TrialState.FAILED, None, self._never())
        if (diverged := not_finite(self._metric, value, max(1, self.step))) is not None:
            return Result(token, TrialState.DIVERGED, None, diverged)
        return Result(token, TrialState.COMPLETED, value, note)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Have the last step reported with these beside its metrics, unless it has them all: its curve stays."""
        if not metrics.keys() <= self._at_step.keys():
            self.unsent.append(Report(self.lease.token, max(1, self.step), {**metrics, **self._at_step}))

    def odd(self, value: object) -> None:
        """The metric was reported as something that is no number."""
        self._odd = value

    def _never(self) -> str:
        if self._odd is not None:
            text = repr(self._odd)[:100]
            return f"the objective reports {self._metric!r} as {text}, and not as a number: report a number"
        reported = f"it reports {', '.join(sorted(self._names)[:20])}" if self._names else "it reports nothing"
        return f"the objective never reports {self._metric!r}: {reported}; report it, or name another metric"

    @property
    def unsent_log(self) -> str | None:
        """The log, if the server does not have all of it."""
        return self.log.text() if self.log.n_seen != self._n_logged else None
