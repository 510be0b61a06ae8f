"""Writes that wait a moment for company: many reports travel as one request."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from hpsearch.errors import HpsearchError
from hpsearch.integrations.optuna.backend import Patch

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class Pending:
    """One patch per trial, in which what is written to it is gathered; later values go over earlier ones."""

    def __init__(self) -> None:
        self._patches: dict[int, Patch] = {}

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._patches

    def __bool__(self) -> bool:
        return bool(self._patches)

    def add(self, patch: Patch) -> None:
        """Gather a patch without a state."""
        into = self._patches.setdefault(patch["trial"], {"trial": patch["trial"]})
        _merge(into, patch)

    def with_last(self, patch: Patch | None = None) -> list[Patch]:
        """All that waits, and a patch that goes with it; nothing is forgotten yet."""
        patches = dict(self._patches)
        if patch is not None:
            last: Patch = {"trial": patch["trial"]}
            _merge(last, patches.pop(patch["trial"], last))
            _merge(last, patch)
            patches[patch["trial"]] = last
        return list(patches.values())

    def drop(self, trial_id: int) -> None:
        """Forget what was sent of a trial."""
        self._patches.pop(trial_id, None)


def _merge(into: Any, patch: Mapping[str, Any]) -> None:
    for name in ("params", "steps"):
        if patch.get(name):
            into[name] = [*into.get(name, []), *patch[name]]
    for name in ("user", "system"):
        if patch.get(name):
            into[name] = into.get(name, {}) | patch[name]
    for name in ("state", "values", "key"):
        if name in patch:
            into[name] = patch[name]


class _Flushes(Protocol):
    def flush(self) -> None: ...


class Flusher:
    """A thread that calls an object's ``flush`` soon after :meth:`wake`, and ends some time after the object's end."""

    def __init__(self, owner: _Flushes, seconds: float) -> None:
        self._owner = weakref.ref(owner)
        self._seconds = seconds
        self._kept: _Flushes | None = None  # what waits must not go with its owner
        self._due = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have it flushed after a moment."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="optuna-flush", daemon=True)
            self._thread.start()
        self._kept = self._owner()
        self._due.set()

    def _run(self) -> None:
        pause = self._seconds
        while (owner := self._owner()) is not None:
            del owner  # while it waits the thread keeps nothing alive
            if not self._due.wait(1.0):
                continue
            self._due.clear()
            time.sleep(pause)
            pause = self._flush()

    def _flush(self) -> float:
        owner, self._kept = self._kept, None
        try:
            if owner is not None:
                owner.flush()
        except HpsearchError as error:
            log.warning("what was reported waits for the service: %s", error)
            self.wake()
            return _RETRY_SECONDS
        return self._seconds
