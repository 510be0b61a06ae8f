"""What stopping early follows of trials: the curve of each, and the rungs of a stage.

Both follow the store: a curve is read again where another server or another attempt had the steps before, and the rungs
are the store's log as far as this server has seen it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from hpsearch.at_once import held, takes_time
from hpsearch.methods import Halving, MedianRule
from hpsearch.search.stopping import Curve, Means, Rung, bracket_of, median_says, rung_levels
from hpsearch.store import Store
from hpsearch.trial import Place, Report, RungEntry, RungPlace

KEPT_CURVES = 4096
"""Trials whose curves are kept in memory."""


@dataclass(frozen=True, slots=True)
class Said:
    """A report of a step, whose trial it is, and its place among the answers."""

    index: int
    place: Place
    report: Report

    @property
    def step(self) -> int:
        """The step, which it has."""
        return self.report.step or 0


def median_place(rule: MedianRule, trial: int, step: int, curve: Curve) -> RungPlace | None:
    """Where a trial's running mean is noted, None if it is not."""
    return RungPlace(0, step, trial) if curve.n and step >= rule.first_epoch else None


class Curves:
    """The curves of trials so far, followed report by report."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Curve] = OrderedDict()

    def ahead(self, heard: Sequence[tuple[Said, float]], *, maximize: bool) -> dict[int, tuple[int, Curve]]:
        """Answer → the last step that is taken for granted, and the curve from there; of trials that are known."""
        found: dict[int, tuple[int, Curve]] = {}
        with held(self._lock):
            for key, items in _by_trial(heard).items():
                curve = self._kept.get(key)
                if curve is None and items[0][0].place.step > 0:
                    continue
                curve = curve or Curve(maximize)
                before = curve.last
                if not _rise(before, items):
                    continue
                for said, value in items:
                    curve = curve.after(said.step, value)
                    found[said.index] = (before, curve)
        return found

    def of(
        self,
        heard: Sequence[tuple[Said, float]],
        metric: str,
        planned: Mapping[int, tuple[int, Curve]],
        *,
        maximize: bool,
        min_delta: float,
    ) -> dict[int, tuple[Said, Curve]]:
        """Answer → what was said, and the trial's curve up to there; as planned, if that took the truth for granted."""
        found: dict[int, tuple[Said, Curve]] = {}
        with held(self._lock):
            for key, items in _by_trial(heard).items():
                first = items[0][0]
                if all(said.index in planned for said, _ in items) and planned[first.index][0] == first.place.step:
                    found |= {said.index: (said, planned[said.index][1]) for said, _ in items}
                    self._keep(key, planned[items[-1][0].index][1])
                    continue
                curve = self._kept.pop(key, None) or Curve(maximize, min_delta)
                if curve.last == first.place.step and _rise(curve.last, items):
                    values = [(said.step, value) for said, value in items]
                else:  # another server, or another attempt, had the steps before
                    takes_time()
                    curve = Curve(maximize, min_delta)
                    metrics = self._store.metrics(key[0], [key[1]])
                    values = [(m.step, m.values[metric]) for m in metrics if metric in m.values]
                wanted = {said.step: said for said, _ in items}
                for step, value in values:
                    curve = curve.after(step, value)
                    if step in wanted:
                        found[wanted[step].index] = (wanted[step], curve)
                self._keep(key, curve)
        return found

    def _keep(self, key: tuple[int, int], curve: Curve) -> None:
        self._kept.pop(key, None)
        self._kept[key] = curve
        if len(self._kept) > KEPT_CURVES:
            self._kept.popitem(last=False)


def _by_trial(heard: Sequence[tuple[Said, float]]) -> dict[tuple[int, int], list[tuple[Said, float]]]:
    found: dict[tuple[int, int], list[tuple[Said, float]]] = defaultdict(list)
    for said, value in heard:
        found[said.place.study_id, said.place.trial].append((said, value))
    return found


def _rise(last: int, items: Sequence[tuple[Said, float]]) -> bool:
    """Whether steps follow each other, and the last one before."""
    return all(a < b for a, b in pairwise([last, *(said.step for said, _ in items)]))


class Ladder:
    """The rungs of one stage as this server has seen them."""

    def __init__(self, store: Store, stage_id: int, rule: Halving | MedianRule, epochs: int, *, maximize: bool) -> None:
        self._store = store
        self._stage_id = stage_id
        self._rule = rule
        self._epochs = epochs
        self._maximize = maximize
        self._lock = threading.Lock()
        self.seen = 0
        self._rungs: dict[tuple[int, int], Rung] = {}
        self._means: dict[int, Means] = defaultdict(Means)
        self._highest: dict[int, RungPlace] = {}
        self._went_on: set[RungPlace] = set()

    def places(self, heard: Sequence[tuple[Said, float]]) -> dict[int, RungPlace]:
        """Answer → the rung that its trial comes to with it, or is at still."""
        with held(self._lock):
            return {said.index: place for said, _ in heard if (place := self._rung_of(said)) is not None}

    def take(self, entries: Sequence[RungEntry]) -> None:
        """Take in what the store has behind some entry that was seen."""
        with held(self._lock):
            self._take_all(entries)

    def climb(
        self, heard: Sequence[tuple[Said, float]], planned: Mapping[int, RungPlace], now: datetime
    ) -> tuple[dict[int, str], bool]:
        """Answer → why its trial is to stop at its rung; and whether others were promoted.

        Values that are not in the store yet, as planned, are taken note of before.
        """
        with held(self._lock):
            at = {s.index: place for s, _ in heard if (place := planned.get(s.index) or self._rung_of(s)) is not None}
            if not at:
                return {}, False
            values = [(at[said.index], value) for said, value in heard if said.index in at]
            values = [(place, value) for place, value in values if not self._knows(place)]
            if values:
                self._follow(dict(reversed(values)))  # of several steps of one trial the first came to the rung
            passed = {place for place in at.values() if self._is_top(place)}
            if new := sorted(passed - self._went_on):
                self._store.let_on(self._stage_id, new, promoted={}, now=now)
                for place in new:
                    self._let_on(place)
            stopped = {index: place for index, place in at.items() if place not in passed | self._went_on}
            return {index: self._says(place, top=False) for index, place in stopped.items()}, self._promote(now)

    def promote(self, now: datetime, *, needs_one: bool) -> bool:
        """Let on all that wait and may go on; see :meth:`Stopper.promote`."""
        with held(self._lock):
            self._follow({})
            return self._promote(now, needs_one=needs_one)

    def _promote(self, now: datetime, *, needs_one: bool = False) -> bool:
        places = [
            RungPlace(*rung, trial)
            for rung, here in self._rungs.items()
            for trial in here.promotable()
            if self._highest[trial] == (*rung, trial)
        ]
        reasons = {place: f"promoted: {self._says(place, top=True)}" for place in places}
        if not places and needs_one:
            reasons = self._best_waiting()
        if reasons:
            self._store.let_on(self._stage_id, [], promoted=reasons, now=now)
        return bool(reasons)

    def median_reasons(self, rule: MedianRule, curves: Mapping[int, tuple[Said, Curve]]) -> dict[int, str | None]:
        """Take note of running means, which takes time if some are not in the store; answer → why to stop."""
        at = {
            index: (place, curve)
            for index, (said, curve) in curves.items()
            if (place := median_place(rule, said.place.trial, said.step, curve)) is not None
        }
        if not at:
            return {}
        with held(self._lock):
            values = {place: curve.mean for place, curve in at.values() if not self._knows(place)}
            if values:
                takes_time()
                self._follow(values)
            return {
                index: median_says(
                    curve, *self._means[place.step].median_of_others(place.trial), min_trials=rule.min_trials
                )
                for index, (place, curve) in at.items()
            }

    def _rung_of(self, said: Said) -> RungPlace | None:
        """The rung that a trial has come to with this step, or is at still."""
        assert isinstance(self._rule, Halving)
        bracket = bracket_of(self._rule, self._epochs, said.place.trial)
        level = max((n for n in rung_levels(self._rule, self._epochs, bracket) if n <= said.step), default=None)
        if level is None:
            return None
        place = RungPlace(bracket, level, said.place.trial)
        before = self._highest.get(said.place.trial)
        return place if before is None or before < place or said.step == level else None

    def _follow(self, values: Mapping[RungPlace, float]) -> None:
        """Hand values to the store, and take in what it has that was not seen before."""
        if not self.seen:
            takes_time()
        self._take_all(self._store.record_rungs(self._stage_id, values, after=self.seen))

    def _take_all(self, entries: Sequence[RungEntry]) -> None:
        for entry in entries:
            if entry.seq > self.seen:  # else another thread was faster
                self.seen = entry.seq
                self._take(entry)

    def _knows(self, place: RungPlace) -> bool:
        if isinstance(self._rule, MedianRule):
            return place.trial in self._means[place.step]
        rung = self._rungs.get((place.bracket, place.step))
        return rung is not None and place.trial in rung

    def _take(self, entry: RungEntry) -> None:
        place = entry.place
        if isinstance(self._rule, MedianRule):
            if entry.value is not None:
                self._means[place.step].add(place.trial, entry.value)
            return
        rung = self._rungs.get((place.bracket, place.step))
        if rung is None:
            rung = Rung(maximize=self._maximize, reduction=self._rule.reduction)
            self._rungs[place.bracket, place.step] = rung
        rung.add(place.trial, entry.value)
        if entry.went_on:
            self._let_on(place)
        self._highest[place.trial] = max(place, self._highest.get(place.trial, place))

    def _let_on(self, place: RungPlace) -> None:
        self._rungs[place.bracket, place.step].let_on(place.trial)
        self._went_on.add(place)

    def _is_top(self, place: RungPlace) -> bool:
        return self._rungs[place.bracket, place.step].is_top(place.trial)

    def _says(self, place: RungPlace, *, top: bool) -> str:
        return self._rungs[place.bracket, place.step].says(place.trial, place.step, top=top)

    def _best_waiting(self) -> dict[RungPlace, str]:
        """The best trial that waits, at the highest rung where one does, and why it goes on; empty if none waits."""
        for rung in sorted(self._rungs, key=lambda key: key[1], reverse=True):
            for trial in self._rungs[rung].waiting():
                if self._highest[trial] == (*rung, trial):
                    had = self._rungs[rung].had(trial, rung[1])
                    return {
                        RungPlace(*rung, trial): f"promoted: {had} is the best there is, and no trial has completed"
                    }
        return {}
