"""The memory store's part for rungs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from hpsearch.store import Page, Table, TrialQuery
from hpsearch.study import Stage, StageState
from hpsearch.testing.care import Care
from hpsearch.testing.kept import Kept
from hpsearch.trial import Climbs, Decision, RungEntry, RungPlace, Trial, TrialState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rungs(Care):
    """What trials had at rungs, and promotion; trials by columns and by steps."""

    def _climb(self, climbs: Climbs, decisions: Sequence[Decision]) -> list[RungEntry]:
        """Keep what reports say of the rungs of one stage, as far as they were taken."""
        last = {d.token: d.place.step for d in decisions if d.place is not None}
        values: dict[RungPlace, float | None] = {}
        for climb in climbs.climbs:
            if climb.token in last and climb.before in (None, last[climb.token]):
                values.setdefault(climb.place, climb.value)
        return self.record_rungs(climbs.stage_id, values, after=climbs.after)

    @abstractmethod
    def trials(self, study_id: int, query: TrialQuery) -> Page[Trial]:
        """See Store."""

    def table(self, study_id: int, query: TrialQuery) -> tuple[Table, str | None]:
        """See Store."""
        page = self.trials(study_id, query)
        columns = {f.name: [getattr(trial, f.name) for trial in page.items] for f in fields(Table)}
        for name in ("started_at", "ended_at"):
            columns[name] = [None if at is None else (at - _EPOCH) // timedelta(microseconds=1) for at in columns[name]]
        columns["state"] = [state.value for state in columns["state"]]
        columns["verdicts"] = [" ".join(v["name"] for v in verdicts) for verdicts in columns["verdicts"]]
        return Table(**columns), page.next

    def n_by_step(self, study_id: int, stage: str, state: TrialState) -> dict[int, int]:
        """See Store."""
        with self._lock:
            return dict(Counter(t.step for t in self._of(study_id).trials if (t.stage, t.state) == (stage, state)))

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
                entries[place] = entries.pop(place)._replace(went_on=True, seq=seq)
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
