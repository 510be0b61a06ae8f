"""What a stage's trials came to, in the order in which they ended: read once, then followed by the study's log."""

from __future__ import annotations

import threading
from functools import lru_cache

from hpsearch.store import Store, TrialQuery, all_trials
from hpsearch.trial import TrialState

KEPT_STAGES = 32
"""Stages whose values are kept in memory."""
EVENTS = 10_000
"""Events are read so many at a time."""


class Values:
    """Values of stages. May be asked from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followed = lru_cache(maxsize=KEPT_STAGES)(self._follow)

    def completed(self, study_id: int, stage: str) -> list[float]:
        """Of the completed trials of a stage, first to last; each question reads what happened since the one before."""
        return self._followed(study_id, stage).now()

    def _follow(self, study_id: int, stage: str) -> _Followed:
        return _Followed(self._store, study_id, stage)


class _Followed:
    """One stage."""

    def __init__(self, store: Store, study_id: int, stage: str) -> None:
        self._store = store
        self._study_id = study_id
        self._stage = stage
        self._lock = threading.Lock()
        self._seen = store.last_event(study_id)
        query = TrialQuery(stage=stage, states=(TrialState.COMPLETED,), sort="ended_at")
        self._values = {trial.number: trial.value for trial in all_trials(store, study_id, query)}

    def now(self) -> list[float]:
        with self._lock:
            while events := self._store.events(self._study_id, after=self._seen, limit=EVENTS):
                self._seen = events[-1].seq
                for event in events:
                    data = event.data
                    if event.kind == "trial" and (data["stage"], data["state"]) == (self._stage, TrialState.COMPLETED):
                        self._values.setdefault(data["number"], data["value"])  # it may have been read before
            return [value for value in self._values.values() if value is not None]
