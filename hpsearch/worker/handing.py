"""Results of short trials, handed over together: a request for each would take longer than the trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hpsearch.trial import Report, Result
from hpsearch.worker.session import Channel, LeasedTrial

HOLD_SECONDS = 0.1
"""A result waits so long for others at most, while its worker goes on."""
BATCH_SECONDS = 0.25
"""So many trials are leased at a time as take about so long."""
OVER_SECONDS = 1.0
"""What is left of trials that were leased together is given back after so long."""
MAX_BATCH = 128
MAX_LOGGED = 2**21
"""Characters of logs that wait together at most."""


class Results:
    """What is to be handed over of some trials."""

    def __init__(self, session: Channel) -> None:
        self._session = session
        self._reports: list[Report] = []
        self._results: list[Result] = []
        self._logs: dict[str, str] = {}
        self._n_logged = 0
        self._sent_at = time.monotonic()

    def add(self, result: Result, *, reports: Sequence[Report] = (), log: str | None = None) -> None:
        """Take a result, with metrics that are to be reported still, and the log."""
        self._results.append(result)
        self._reports += reports
        if log:
            self._logs[result.token] = log
            self._n_logged += len(log)
        if time.monotonic() - self._sent_at > HOLD_SECONDS or self._n_logged > MAX_LOGGED:
            self.flush()

    def flush(self) -> None:
        """Hand over what there is."""
        if self._logs:
            self._session.log(self._logs)
        if self._reports:
            self._session.report(self._reports)
        self._session.finish(self._results)
        self._reports, self._results, self._logs, self._n_logged = [], [], {}, 0
        self._sent_at = time.monotonic()


class Pace:
    """How many trials to lease at a time: one where they are long, many where asking takes longer than they do."""

    def __init__(self) -> None:
        self.capacity = 1
        self._began = time.monotonic()

    def begin(self) -> None:
        """Some trials begin."""
        self._began = time.monotonic()

    def is_over(self) -> bool:
        """Whether these took so long that what is left of them is better given to others."""
        return time.monotonic() - self._began > OVER_SECONDS

    def end(self, n_trials: int) -> None:
        """So many trials took the time since they began."""
        each = (time.monotonic() - self._began) / max(1, n_trials)
        self.capacity = max(1, min(MAX_BATCH, 4 * self.capacity, int(BATCH_SECONDS / max(each, 1e-6))))


def run_in_turn(
    leases: Sequence[LeasedTrial], session: Channel, pace: Pace, run_one: Callable[[LeasedTrial, Results], None]
) -> None:
    """Run trials one after the other; what is left when the worker stops, or time is up, is given back."""
    results = Results(session)
    pace.begin()
    n_run = 0
    for lease in leases:
        if session.stop.is_set() or (n_run and pace.is_over()):
            break
        run_one(lease, results)
        n_run += 1
    pace.end(n_run)
    results.flush()
    session.release([lease.token for lease in leases[n_run:]])
