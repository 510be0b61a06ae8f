"""Early stopping on the server: what workers report, against the rule of the stage and what the other trials had.

What is shared between trials stands in the store (``rungs``), as a log that each server follows into sorted lists of
its own. So any number of servers decide alike, one that starts reads what is there once, and a report costs O(log n).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from hpsearch.errors import NotFound
from hpsearch.methods import Halving, MedianRule, NoStopping, Patience, Threshold
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
from hpsearch.trial import Action, Decision, Place, Report, RungEntry, RungPlace, TrialState

KEPT_STAGES = 64
"""Stages whose rungs are kept in memory."""
KEPT_CURVES = 4096
"""Trials whose curves are kept in memory."""


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


class Stopper:
    """Decides after reports, and promotes what was stopped too early. Every method may be called from any thread."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._ladder = lru_cache(maxsize=KEPT_STAGES)(self._new_ladder)
        self._stage = lru_cache(maxsize=256)(self._read_stage)
        self._curves = Curves(store)

    def decide(self, reports: Sequence[Report], decisions: Sequence[Decision]) -> tuple[list[Decision], bool]:
        """Say ``stop`` where the rule of a stage does; all reports are taken note of before any of that.

        Args:
            reports: whose metrics the store has kept.
            decisions: the store's answer to each.

        Returns:
            the decisions, and whether a trial was promoted.
        """
        said: dict[tuple[int, str, str], list[_Said]] = defaultdict(list)
        for index, (report, decision) in enumerate(zip(reports, decisions, strict=True)):
            place = decision.place
            if report.step is not None and place is not None:
                said[place.study_id, place.study, place.stage].append(_Said(index, place, report))
        answers = list(decisions)
        promoted = False
        for key, items in said.items():
            with contextlib.suppress(NotFound):  # deleted just now: the next report will be told
                reasons, any_promoted = self._reasons(*self._stage(*key), items)
                promoted |= any_promoted
                for index, reason in reasons.items():
                    answers[index] = replace(answers[index], action=Action.STOP, reason=reason)
        return answers, promoted

    def _reasons(self, stage: Stage, metric: Metric, said: Sequence[_Said]) -> tuple[dict[int, str], bool]:
        """Answer → why its trial is to stop; and whether another was promoted."""
        rule = stage.spec.early_stopping
        maximize = metric.direction == "maximize"
        heard = [  # who is at the last epoch ends anyway
            (s, float(s.report.metrics[metric.name]))
            for s in said
            if metric.name in s.report.metrics and s.step < stage.spec.n_epochs
        ]
        if isinstance(rule, NoStopping) or not heard:
            return {}, False
        if isinstance(rule, Halving):
            return self._ladder(stage.id, rule, stage.spec.n_epochs, maximize).climb(heard, self._clock())
        if isinstance(rule, Threshold):
            found = {s.index: threshold_says(rule, s.step, value, maximize=maximize) for s, value in heard}
        else:
            min_delta = rule.min_delta if isinstance(rule, Patience) else 0.0
            curves = self._curves.of(heard, metric.name, maximize=maximize, min_delta=min_delta)
            if isinstance(rule, Patience):
                found = {index: patience_says(rule, curve) for index, (_, curve) in curves.items()}
            else:
                ladder = self._ladder(stage.id, rule, stage.spec.n_epochs, maximize)
                found = ladder.median_reasons(rule, curves)
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

    def _read_stage(self, study_id: int, study: str, name: str) -> tuple[Stage, Metric]:
        """What never changes of a stage, and the metric of its study."""
        for stage in self._store.stages(study_id):
            if stage.name == name:
                return stage, self._store.study(study).spec.metric
        raise NotFound("stage", name)

    def _new_ladder(self, stage_id: int, rule: Halving | MedianRule, epochs: int, maximize: bool) -> Ladder:
        return Ladder(self._store, stage_id, rule, epochs, maximize=maximize)


class Curves:
    """The curves of trials so far, followed report by report."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Curve] = OrderedDict()

    def of(
        self, heard: Sequence[tuple[_Said, float]], metric: str, *, maximize: bool, min_delta: float
    ) -> dict[int, tuple[_Said, Curve]]:
        """Answer → what was said, and the trial's curve up to there."""
        by_trial: dict[tuple[int, int], list[tuple[_Said, float]]] = defaultdict(list)
        for said, value in heard:
            by_trial[said.place.study_id, said.place.trial].append((said, value))
        found: dict[int, tuple[_Said, Curve]] = {}
        with self._lock:
            for key, items in by_trial.items():
                curve = self._kept.pop(key, None) or Curve(maximize, min_delta)
                steps = [curve.last, *(said.step for said, _ in items)]
                if curve.last == items[0][0].place.step and all(a < b for a, b in pairwise(steps)):
                    values = [(said.step, value) for said, value in items]
                else:  # another server, or another attempt, had the steps before
                    curve = Curve(maximize, min_delta)
                    metrics = self._store.metrics(key[0], [key[1]])
                    values = [(m.step, m.values[metric]) for m in metrics if metric in m.values]
                wanted = {said.step: said for said, _ in items}
                for step, value in values:
                    curve.add(step, value)
                    if step in wanted:
                        found[wanted[step].index] = (wanted[step], replace(curve))
                self._kept[key] = curve
                if len(self._kept) > KEPT_CURVES:
                    self._kept.popitem(last=False)
        return found


class Ladder:
    """The rungs of one stage as this server has seen them."""

    def __init__(self, store: Store, stage_id: int, rule: Halving | MedianRule, epochs: int, *, maximize: bool) -> None:
        self._store = store
        self._stage_id = stage_id
        self._rule = rule
        self._epochs = epochs
        self._maximize = maximize
        self._lock = threading.Lock()
        self._seen = 0
        self._rungs: dict[tuple[int, int], Rung] = {}
        self._means: dict[int, Means] = defaultdict(Means)
        self._highest: dict[int, RungPlace] = {}
        self._went_on: set[RungPlace] = set()

    def climb(self, heard: Sequence[tuple[_Said, float]], now: datetime) -> tuple[dict[int, str], bool]:
        """Take note of values at rungs; answer → why its trial is to stop there, and whether others were promoted."""
        with self._lock:
            at = {said.index: place for said, _ in heard if (place := self._rung_of(said)) is not None}
            if not at:
                return {}, False
            values = [(at[said.index], value) for said, value in heard if said.index in at]
            self._follow(dict(reversed(values)))  # of several steps of one trial the first came to the rung
            passed = {place for place in at.values() if self._is_top(place)}
            if new := sorted(passed - self._went_on):
                self._store.let_on(self._stage_id, new, promoted={}, now=now)
            stopped = {index: place for index, place in at.items() if place not in passed | self._went_on}
            return {index: self._says(place, top=False) for index, place in stopped.items()}, self._promote(now)

    def promote(self, now: datetime, *, needs_one: bool) -> bool:
        """Let on all that wait and may go on; see :meth:`Stopper.promote`."""
        with self._lock:
            return self._promote(now, needs_one=needs_one)

    def _promote(self, now: datetime, *, needs_one: bool = False) -> bool:
        self._follow({})
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

    def median_reasons(self, rule: MedianRule, curves: Mapping[int, tuple[_Said, Curve]]) -> dict[int, str | None]:
        """Take note of running means; answer → why its trial is to stop."""
        at = {
            index: (RungPlace(0, said.step, said.place.trial), curve)
            for index, (said, curve) in curves.items()
            if curve.n and said.step >= rule.first_epoch
        }
        if not at:
            return {}
        with self._lock:
            self._follow({place: curve.mean for place, curve in at.values()})
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
        for entry in self._store.record_rungs(self._stage_id, values, after=self._seen):
            self._seen = entry.seq
            self._take(entry)

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
            rung.let_on(place.trial)
            self._went_on.add(place)
        self._highest[place.trial] = max(place, self._highest.get(place.trial, place))

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
