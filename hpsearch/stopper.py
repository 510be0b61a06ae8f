"""Early stopping on the server: what workers report, against the rule of the stage and what the other trials had.

What is shared between trials stands in the store (``rungs``), as a log that each server follows into sorted lists of
its own. So any number of servers decide alike, one that starts reads what is there once, and a report costs O(log n).

What reports say of rungs is planned before they are kept, from what this server knows of the trials, and is kept with
them in one transaction. Where it knows too little, such as of trials that another server gave out, it is kept after.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from hpsearch.errors import NotFound, WouldWait
from hpsearch.methods import EarlyStopping, Halving, MedianRule, NoStopping, Patience, Threshold
from hpsearch.search.stopping import (
    Curve,
    Means,
    Rung,
    bracket_of,
    median_says,
    patience_says,
    rung_levels,
    threshold_says,
)
from hpsearch.spec import Metric
from hpsearch.store import Store
from hpsearch.study import Stage
from hpsearch.trial import (
    Action,
    Climb,
    Climbs,
    Decision,
    Lease,
    Place,
    Report,
    RungEntry,
    RungPlace,
    TrialState,
)

KEPT_STAGES = 64
"""Stages whose rungs are kept in memory."""
KEPT_CURVES = 4096
"""Trials whose curves are kept in memory."""
KEPT_TOKENS = 4 * KEPT_CURVES
"""Leases whose places are kept in memory."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A report of a step, whose trial it is, and its place among the answers."""

    index: int
    place: Place
    report: Report

    @property
    def step(self) -> int:
        """The step, which it has."""
        return self.report.step or 0


@dataclass(slots=True)
class Plan:
    """What reports say of rungs, as far as it is known before they are kept.

    Attributes:
        climbs: for the store, by stage.
        ladders: of these stages.
        places: answer → the rung that its trial has come to.
        curves: answer → the trial's curve up to there, and the last step that it takes for granted.
    """

    climbs: list[Climbs] = field(default_factory=list)
    ladders: list[Ladder] = field(default_factory=list)
    places: dict[int, RungPlace] = field(default_factory=dict)
    curves: dict[int, tuple[int, Curve]] = field(default_factory=dict)


class Stopper:
    """Decides after reports, and promotes what was stopped too early. Every method may be called from any thread."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._ladder = lru_cache(maxsize=KEPT_STAGES)(self._new_ladder)
        self._stage = lru_cache(maxsize=256)(self._read_stage)
        self._curves = Curves(store)
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._lock = threading.Lock()

    def leased(self, leases: Sequence[Lease]) -> None:
        """Remember which trial each token is of, where what it reports may be kept with others'."""
        places = {
            lease.token: Place(lease.study_id, lease.study, lease.stage, lease.trial, lease.step)
            for lease in leases
            if isinstance(self._rule(lease.study_id, lease.study, lease.stage), Halving | MedianRule)
        }
        with self._lock:
            self._places.update(places)
            while len(self._places) > KEPT_TOKENS:
                self._places.popitem(last=False)

    def climbs(self, reports: Sequence[Report]) -> bool:
        """Whether one is of a trial that is known to climb rungs: whom that lets on is written after the reports."""
        places = (self._places.get(report.token) for report in reports)
        return any(place is not None and isinstance(self._rule(*place[:3]), Halving) for place in places)

    def plan(self, reports: Sequence[Report]) -> Plan:
        """What the reports say of rungs, of those trials that this server knows enough of."""
        said = [
            _Said(index, place, report)
            for index, report in enumerate(reports)
            if report.step is not None and (place := self._places.get(report.token)) is not None
        ]
        plan = Plan()
        for key, items in _by_stage(said).items():
            with contextlib.suppress(NotFound):  # deleted just now
                self._plan_stage(plan, *self._stage(*key), items)
        return plan

    def _plan_stage(self, plan: Plan, stage: Stage, metric: Metric, said: Sequence[_Said]) -> None:
        rule, heard = stage.spec.early_stopping, _heard(stage, metric, said)
        if not heard or not isinstance(rule, Halving | MedianRule):
            return
        maximize = metric.direction == "maximize"
        ladder = self._ladder(stage.id, rule, stage.spec.n_epochs, maximize)
        if isinstance(rule, Halving):
            places = ladder.places(heard)
            plan.places |= places
            climbs = [Climb(s.report.token, places[s.index], value) for s, value in heard if s.index in places]
        else:
            curves = self._curves.ahead(heard, maximize=maximize)
            plan.curves |= curves
            climbs = [
                Climb(s.report.token, place, curve.mean, before)
                for s, _ in heard
                if s.index in curves
                for before, curve in [curves[s.index]]
                if (place := median_place(rule, s.place.trial, s.step, curve)) is not None
            ]
        if climbs:
            plan.climbs.append(Climbs(stage.id, ladder.seen, tuple(climbs)))
            plan.ladders.append(ladder)

    def decide(
        self,
        reports: Sequence[Report],
        decisions: Sequence[Decision],
        plan: Plan,
        entries: Sequence[list[RungEntry]],
        *,
        wait: bool = True,
    ) -> tuple[list[Decision], bool]:
        """Say ``stop`` where the rule of a stage does; all reports are taken note of before any of that.

        Args:
            reports: whose metrics the store has kept.
            decisions: the store's answer to each.
            plan: what :meth:`plan` said of the reports.
            entries: the store's answer to each of the plan's climbs.
            wait: for the store, where it is to be told more.

        Returns:
            the decisions, and whether a trial was promoted.

        Raises:
            WouldWait: ``wait`` is False, and more is to be written.
        """
        for ladder, new in zip(plan.ladders, entries, strict=True):
            ladder.take(new)
        said = [
            _Said(index, place, report)
            for index, (report, (_, _, _, place)) in enumerate(zip(reports, decisions, strict=True))
            if report.step is not None and place is not None and not isinstance(self._rule(*place[:3]), NoStopping)
        ]
        answers = list(decisions)
        promoted = False
        for key, items in _by_stage(said).items():
            with contextlib.suppress(NotFound):  # deleted just now: the next report will be told
                reasons, any_promoted = self._reasons(*self._stage(*key), items, plan, wait=wait)
                promoted |= any_promoted
                for index, reason in reasons.items():
                    answers[index] = answers[index]._replace(action=Action.STOP, reason=reason)
        return answers, promoted

    def _reasons(
        self, stage: Stage, metric: Metric, said: Sequence[_Said], plan: Plan, *, wait: bool
    ) -> tuple[dict[int, str], bool]:
        """Answer → why its trial is to stop; and whether another was promoted."""
        rule, maximize = stage.spec.early_stopping, metric.direction == "maximize"
        heard = _heard(stage, metric, said)
        if isinstance(rule, NoStopping) or not heard:
            return {}, False
        if isinstance(rule, Halving):
            if not wait:
                raise WouldWait
            ladder = self._ladder(stage.id, rule, stage.spec.n_epochs, maximize)
            return ladder.climb(heard, plan.places, self._clock())
        if isinstance(rule, Threshold):
            found = {s.index: threshold_says(rule, s.step, value, maximize=maximize) for s, value in heard}
        else:
            min_delta = rule.min_delta if isinstance(rule, Patience) else 0.0
            curves = self._curves.of(heard, metric.name, plan.curves, maximize=maximize, min_delta=min_delta)
            if isinstance(rule, Patience):
                found = {index: patience_says(rule, curve) for index, (_, curve) in curves.items()}
            else:
                ladder = self._ladder(stage.id, rule, stage.spec.n_epochs, maximize)
                found = ladder.median_reasons(rule, curves, wait=wait)
        return {index: reason for index, reason in found.items() if reason is not None}, False

    def ends_as(self, study_id: int, study: str, stage: str, state: TrialState) -> TrialState:
        """The state of a trial that its worker ended: one that ``patience`` ended has trained as far as it gets."""
        if state is not TrialState.PRUNED:
            return state
        rule = self._stage(study_id, study, stage)[0].spec.early_stopping
        return TrialState.COMPLETED if isinstance(rule, Patience) else state

    def promote(self, study_id: int, study: str, name: str, *, ending: Stage | None = None) -> bool:
        """Queue again what was stopped and has come to be among the best of its rung.

        Where all trials of the stage have ended it is given as ``ending``: if none completed, the best of those that
        were stopped goes on, for with few trials no rung grows enough to let one past.

        Returns:
            whether there was any such trial, whoever queued it: then the stage is not over.
        """
        stage, metric = self._stage(study_id, study, name)
        rule = stage.spec.early_stopping
        if not isinstance(rule, Halving):
            return False
        ladder = self._ladder(stage.id, rule, stage.spec.n_epochs, metric.direction == "maximize")
        needs_one = ending is not None and not ending.counts.get(TrialState.COMPLETED)
        return ladder.promote(self._clock(), needs_one=needs_one)

    # -- what is kept -------------------------------------------------------------------------------------------

    def _rule(self, study_id: int, study: str, stage: str) -> EarlyStopping:
        """The rule of a stage; none of one that was deleted just now."""
        try:
            return self._stage(study_id, study, stage)[0].spec.early_stopping
        except NotFound:
            return NoStopping()

    def _read_stage(self, study_id: int, study: str, name: str) -> tuple[Stage, Metric]:
        """What never changes of a stage, and the metric of its study."""
        for stage in self._store.stages(study_id):
            if stage.name == name:
                return stage, self._store.study(study).spec.metric
        raise NotFound("stage", name)

    def _new_ladder(self, stage_id: int, rule: Halving | MedianRule, epochs: int, maximize: bool) -> Ladder:
        return Ladder(self._store, stage_id, rule, epochs, maximize=maximize)


def _by_stage(said: Sequence[_Said]) -> dict[tuple[int, str, str], list[_Said]]:
    found: dict[tuple[int, str, str], list[_Said]] = defaultdict(list)
    for each in said:
        found[each.place.study_id, each.place.study, each.place.stage].append(each)
    return found


def _heard(stage: Stage, metric: Metric, said: Sequence[_Said]) -> list[tuple[_Said, float]]:
    """What was said of the metric before the last epoch: who is there ends anyway."""
    return [
        (s, float(s.report.metrics[metric.name]))
        for s in said
        if metric.name in s.report.metrics and s.step < stage.spec.n_epochs
    ]


def median_place(rule: MedianRule, trial: int, step: int, curve: Curve) -> RungPlace | None:
    """Where a trial's running mean is noted, None if it is not."""
    return RungPlace(0, step, trial) if curve.n and step >= rule.first_epoch else None


class Curves:
    """The curves of trials so far, followed report by report."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Curve] = OrderedDict()

    def ahead(self, heard: Sequence[tuple[_Said, float]], *, maximize: bool) -> dict[int, tuple[int, Curve]]:
        """Answer → the last step that is taken for granted, and the curve from there; of trials that are known."""
        found: dict[int, tuple[int, Curve]] = {}
        with self._lock:
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
        heard: Sequence[tuple[_Said, float]],
        metric: str,
        planned: Mapping[int, tuple[int, Curve]],
        *,
        maximize: bool,
        min_delta: float,
    ) -> dict[int, tuple[_Said, Curve]]:
        """Answer → what was said, and the trial's curve up to there; as planned, if that took the truth for granted."""
        found: dict[int, tuple[_Said, Curve]] = {}
        with self._lock:
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


def _by_trial(heard: Sequence[tuple[_Said, float]]) -> dict[tuple[int, int], list[tuple[_Said, float]]]:
    found: dict[tuple[int, int], list[tuple[_Said, float]]] = defaultdict(list)
    for said, value in heard:
        found[said.place.study_id, said.place.trial].append((said, value))
    return found


def _rise(last: int, items: Sequence[tuple[_Said, float]]) -> bool:
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

    def places(self, heard: Sequence[tuple[_Said, float]]) -> dict[int, RungPlace]:
        """Answer → the rung that its trial comes to with it, or is at still."""
        with self._lock:
            return {said.index: place for said, _ in heard if (place := self._rung_of(said)) is not None}

    def take(self, entries: Sequence[RungEntry]) -> None:
        """Take in what the store has behind some entry that was seen."""
        with self._lock:
            self._take_all(entries)

    def climb(
        self, heard: Sequence[tuple[_Said, float]], planned: Mapping[int, RungPlace], now: datetime
    ) -> tuple[dict[int, str], bool]:
        """Answer → why its trial is to stop at its rung; and whether others were promoted.

        Values that are not in the store yet, as planned, are taken note of before.
        """
        with self._lock:
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
        with self._lock:
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

    def median_reasons(
        self, rule: MedianRule, curves: Mapping[int, tuple[_Said, Curve]], *, wait: bool
    ) -> dict[int, str | None]:
        """Take note of running means; answer → why its trial is to stop.

        Raises:
            WouldWait: ``wait`` is False, and some are not in the store yet.
        """
        at = {
            index: (place, curve)
            for index, (said, curve) in curves.items()
            if (place := median_place(rule, said.place.trial, said.step, curve)) is not None
        }
        if not at:
            return {}
        with self._lock:
            values = {place: curve.mean for place, curve in at.values() if not self._knows(place)}
            if values and not wait:
                raise WouldWait
            if values:
                self._follow(values)
            return {
                index: median_says(
                    curve, *self._means[place.step].median_of_others(place.trial), min_trials=rule.min_trials
                )
                for index, (place, curve) in at.items()
            }

    def _rung_of(self, said: _Said) -> RungPlace | None:
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
