"""The loop of a worker: lease, run, again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Protocol

from hpsearch.errors import HpsearchError
from hpsearch.logs import about
from hpsearch.trial import Result, TrialState
from hpsearch.worker.session import Channel, LeasedTrial, PreflightTask, Session

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs trials of one kind of objective.

    Attributes:
        checks: whether it runs the checks of a study, too.
        capacity: how many trials it wants at a time.
    """

    checks: bool

    @property
    def capacity(self) -> int:
        """See the class."""
        ...

    def preflight(self, task: PreflightTask, session: Channel) -> None:
        """Run the checks of a study and hand them over."""
        ...

    def run(self, leases: Sequence[LeasedTrial], session: Channel) -> None:
        """Run these trials to their end, reporting and finishing through the session.

        Must return soon, with what is unfinished released, once ``session.stop`` is set.
        """
        ...


def work(session: Session, runners: Mapping[str, Runner], *, study: str | None = None) -> None:
    """Lease as many trials at a time as the runners want and run them, until the session is told to stop."""
    latest = [min(runners, key=lambda kind: runners[kind].capacity)]  # what comes is most likely of what came last
    kinds = sorted({*runners, *("preflight" for runner in runners.values() if runner.checks)})

    def capacity() -> int:
        return max(runners[kind].capacity for kind in latest)

    while not session.stop.is_set():
        found = session.lease(capacity, kinds=kinds, study=study)
        for task in found.preflights:
            latest = [str(task.objective["kind"])]
            with about(study=task.study):
                runners[latest[0]].preflight(task, session)
        leases = found.leases
        came = sorted({str(lease.objective["kind"]) for lease in leases})
        latest = came or latest
        for kind in came:
            mine = [lease for lease in leases if lease.objective["kind"] == kind]
            try:
                with about(trials=" ".join(f"{lease.study}/{lease.trial}" for lease in mine)):
                    runners[kind].run(mine, session)
            except HpsearchError:
                raise
            except Exception as error:  # a fault of ours must not cost the worker its other trials
                log.exception("running %d trials failed", len(mine))
                reason = f"{type(error).__name__}: {error}"
                session.finish([Result(lease.token, TrialState.FAILED, None, reason) for lease in mine])


def stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM and SIGINT ask to stop; the second one of either ends the process at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.is_set():
            sys.stderr.flush()
            os._exit(128 + number)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def stop_with_parent(stop: threading.Event, parent: int) -> None:
    """Ask to stop when the process that supervises this one is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()
