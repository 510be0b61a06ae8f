"""The workers: who is there, what each holds, how fast it is."""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import Any

from hpsearch.coordinator import Coordinator
from hpsearch.store import TrialQuery
from hpsearch.study import StudyState
from hpsearch.trial import TrialState
from hpsearch_api.views import worker_view

STALE_AFTER = timedelta(seconds=60)
"""A worker that has said nothing for so long stands out."""
WINDOW = timedelta(minutes=10)
"""Throughput is of the trials that ended within this time."""
MAX_STUDIES = 50
"""The newest so many are looked through for what workers hold and have ended."""
MAX_TRIALS = 300
"""Of each study, the newest so many."""
_ENDED = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.DIVERGED)


def crew(coordinator: Coordinator) -> list[dict[str, Any]]:
    """Every worker with its leases by study, epochs per minute, and whether it has gone silent."""
    now = coordinator.clock()
    held: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    epochs: dict[str, int] = defaultdict(int)
    for study in coordinator.store.studies(limit=MAX_STUDIES).items:
        over = study.ended_at is not None and now - study.ended_at > WINDOW
        if over or study.state is StudyState.PREFLIGHT:
            continue
        running = TrialQuery(states=(TrialState.RUNNING,), limit=MAX_TRIALS)
        for trial in coordinator.store.trials(study.id, running).items:
            held[trial.worker or ""][study.name].append(trial.number)
        ended = TrialQuery(states=_ENDED, sort="-number", limit=MAX_TRIALS)
        for trial in coordinator.store.trials(study.id, ended).items:
            if trial.worker and trial.ended_at is not None and now - trial.ended_at <= WINDOW:
                epochs[trial.worker] += trial.step
    workers = []
    for worker in coordinator.store.workers():
        since = max(worker.first_seen, now - WINDOW)
        minutes = max((now - since).total_seconds() / 60, 0.1)
        more = {
            "stale": now - worker.last_seen > STALE_AFTER,
            "leases": {study: sorted(numbers) for study, numbers in held[worker.name].items()},
            "per_minute": epochs[worker.name] / minutes if epochs[worker.name] else None,
        }
        workers.append({**worker_view(worker), **more})
    return workers
