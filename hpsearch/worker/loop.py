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
from hpsearch.trial import Result, TrialState
from hpsearch.worker.session import LeasedTrial, Session

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs trials of one kind of objective."""

    def run(self, leases: Sequence[LeasedTrial], session: Session) -> None:
        """Run these trials to their end, reporting and finishing through the session.

        Must return soon, with what is unfinished released, once ``session.stop`` is set.
        """
        ...


def work(session: Session, runners: Mapping[str, Runner], *, capacity: int, study: str | None = None) -> None:
    """Lease up to ``capacity`` trials at a time and run them, until the session is told to stop."""
    while not session.stop.is_set():
        leases = session.lease(capacity, kinds=sorted(runners), study=study)
        for kind in sorted({str(lease.objective["kind"]) for lease in leases}):
            mine = [lease for lease in leases if lease.objective["kind"] == kind]
            try:
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
