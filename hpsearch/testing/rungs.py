"""The memory store's part for rungs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import takewhile

from hpsearch.study import Stage, StageState
from hpsearch.testing.care import Care
from hpsearch.testing.kept import Kept
from hpsearch.trial import RungEntry, RungPlace, TrialState


class Rungs(Care):
    """What trials had at rungs, and promotion."""

    def record_rungs(self, stage_id: int, values: Mapping[RungPlace, float | None], *, after: int) -> list[RungEntry]:
        """See Store."""
        with self._lock:
            found = self._stage_of(stage_id)
            if found is None:
                return []
            entries = found[0].rungs.setdefault(stage_id, {})
            for place, value in sorted(values.items()):
                if place not in entries:
                    finite = value if value is not None and math.isfinite(value) else None
                    entries[place] = RungEntry(place, finite, went_on=False, seq=_next_seq(entries))
            new = list(takewhile(lambda entry: entry.seq > after, reversed(entries.values())))
            return new[::-1]

    def let_on(
        self, stage_id: int, passed: Iterable[RungPlace], *, promoted: Mapping[RungPlace, str], now: datetime
    ) -> list[int]:
        """See Store."""
        with self._lock:
            found = self._stage_of(stage_id)
            if found is None:
                return []
            kept, stage = found
            entries = kept.rungs.setdefault(stage_id, {})
            wanted: dict[RungPlace, str | None] = dict.fromkeys(passed) | dict(promoted)
            queued = []
            for place, reason in sorted(wanted.items(), key=lambda item: item[0]):
                if place not in entries or entries[place].went_on:
                    continue
                trial = kept.trials[place.trial]
                if reason is not None and not trial.state.is_finished:
                    continue
                seq = _next_seq(entries)
                entries[place] = replace(entries.pop(place), went_on=True, seq=seq)
                is_open = stage.state is StageState.RUNNING and not kept.study.state.is_finished
                if reason is not None and trial.state is TrialState.PRUNED and is_open:
                    again = replace(
                        trial, state=TrialState.QUEUED, value=None, reason=reason, ended_at=None, verdicts=()
                    )
                    kept.put(again, now)
                    queued.append(trial.number)
            return sorted(queued)

    def _stage_of(self, stage_id: int) -> tuple[Kept, Stage] | None:
        for kept in self._kept.values():
            for stage in kept.stages:
                if stage.id == stage_id:
                    return kept, stage
        return None


def _next_seq(entries: dict[RungPlace, RungEntry]) -> int:
    """One more than the last: the entries stand in the order of their seq."""
    return next((entry.seq for entry in reversed(entries.values())), 0) + 1
