"""Early stopping on the server: what workers report, against the rule of the stage and what the other trials had.

What is shared between trials stands in the store (``rungs``), as a log that each server follows into sorted lists of
its own. So any number of servers decide alike, one that starts reads what is there once, and a report costs O(log n).

What reports say of rungs is planned before they are kept, from what this server knows of the trials, and is kept with
them in one transaction. Where it knows too little, such as of trials that another server gave out, it is kept after.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from hpsearch.at_once import takes_time
from hpsearch.errors import NotFound
from hpsearch.ladder import KEPT_CURVES, Curves, Ladder, Said, median_place
from hpsearch.methods import EarlyStopping, Halving, MedianRule, NoStopping, Patience, Threshold
from hpsearch.search.stopping import Curve, bracket_of, patience_says, rung_levels, threshold_says
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
KEPT_TOKENS = 4 * KEPT_CURVES
"""Leases whose places are kept in memory."""


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
        self._free_from: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def leased(self, leases: Sequence[Lease]) -> None:
        """Remember which trial each token is of, where what it reports may be kept with others'."""
        rules = {lease.token: self._rule(lease.study_id, lease.study, lease.stage) for lease in leases}
        places = {
            lease.token: Place(lease.study_id, lease.study, lease.stage, lease.trial, lease.step)
            for lease in leases
            if isinstance(rules[lease.token], Halving | MedianRule)
        }
        with self._lock:
            self._places.update(places)
            self._free_from.update(
                {lease.token: 0 if isinstance(rules[lease.token], NoStopping) else lease.epochs for lease in leases}
            )
            while len(self._places) > KEPT_TOKENS:
                self._places.popitem(last=False)
            while len(self._free_from) > KEPT_TOKENS:
                self._free_from.popitem(last=False)

    def are_free(self, reports: Iterable[Report]) -> bool:
        """Whether this server knows that no rule asks for these: none does for those of the last epoch."""
        return all((r.step or 0) >= self._free_from.get(r.token, math.inf) for r in reports)

    def stops_at(self, lease: Lease) -> list[int]:
        """The steps of which only the first report at or behind one may be answered with ``stop``."""
        rule = self._rule(lease.study_id, lease.study, lease.stage)
        if not isinstance(rule, Halving):
            return []
        return rung_levels(rule, lease.epochs, bracket_of(rule, lease.epochs, lease.trial))

    def stops_from(self, lease: Lease) -> int | None:
        """The step from which on every report but the last may be answered with ``stop``; None: by :meth:`stops_at`."""
        rule = self._rule(lease.study_id, lease.study, lease.stage)
        return None if isinstance(rule, Halving | NoStopping) else rule.first_epoch

    def plan(self, reports: Sequence[Report]) -> Plan:
        """What the reports say of rungs, of those trials that this server knows enough of."""
        said = [
            Said(index, place, report)
            for index, report in enumerate(reports)
            if report.step is not None and (place := self._places.get(report.token)) is not None
        ]
        plan = Plan()
        for key, items in _by_stage(said).items():
            with contextlib.suppress(NotFound):  # deleted just now
                self._plan_stage(plan, *self._stage(*key), items)
        return plan

    def _plan_stage(self, plan: Plan, stage: Stage, metric: Metric, said: Sequence[Said]) -> None:
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
            if not ladder.seen:
                takes_time()  # to read what is there
            plan.climbs.append(Climbs(stage.id, ladder.seen, tuple(climbs)))
            plan.ladders.append(ladder)

    def decide(
        self,
        reports: Sequence[Report],
        decisions: Sequence[Decision],
        plan: Plan,
        entries: Sequence[list[RungEntry]],
    ) -> tuple[list[Decision], bool]:
        """Say ``stop`` where the rule of a stage does; all reports are taken note of before any of that.

        Args:
            reports: whose metrics the store has kept.
            decisions: the store's answer to each.
            plan: what :meth:`plan` said of the reports.
            entries: the store's answer to each of the plan's climbs.

        Returns:
            the decisions, and whether a trial was promoted.
        """
        for ladder, new in zip(plan.ladders, entries, strict=True):
            ladder.take(new)
        said = [
            Said(index, place, report)
            for index, (report, (_, _, _, place)) in enumerate(zip(reports, decisions, strict=True))
            if report.step is not None and place is not None and not isinstance(self._rule(*place[:3]), NoStopping)
        ]
        answers = list(decisions)
        promoted = False
        for key, items in _by_stage(said).items():
            with contextlib.suppress(NotFound):  # deleted just now: the next report will be told
                reasons, any_promoted = self._reasons(*self._stage(*key), items, plan)
                promoted |= any_promoted
                for index, reason in reasons.items():
                    answers[index] = answers[index]._replace(action=Action.STOP, reason=reason)
        return answers, promoted

    def _reasons(self, stage: Stage, metric: Metric, said: Sequence[Said], plan: Plan) -> tuple[dict[int, str], bool]:
        """Answer → why its trial is to stop; and whether another was promoted."""
        rule, maximize = stage.spec.early_stopping, metric.direction == "maximize"
        assert not isinstance(rule, NoStopping)  # :meth:`decide` leaves those stages out
        if not (heard := _heard(stage, metric, said)):
            return {}, False
        if isinstance(rule, Halving):
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
                found = ladder.median_reasons(rule, curves)
        return {index: reason for index, reason in found.items() if reason is not None}, False

    def ends_as(self, study_id: int, study: str, stage: str, state: TrialState) -> TrialState:
        """The state of a trial that its worker ended: one that ``patience`` ended has trained as far as it gets."""
        if state is not TrialState.PRUNED:
            return state
        rule = self._stage(study_id, study, stage)[0].spec.early_stopping
        if isinstance(rule, Halving):
            takes_time()  # what follows its end: promotion
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


def _by_stage(said: Sequence[Said]) -> dict[tuple[int, str, str], list[Said]]:
    found: dict[tuple[int, str, str], list[Said]] = defaultdict(list)
    for each in said:
        found[each.place.study_id, each.place.study, each.place.stage].append(each)
    return found


def _heard(stage: Stage, metric: Metric, said: Sequence[Said]) -> list[tuple[Said, float]]:
    """What was said of the metric before the last epoch: who is there ends anyway."""
    return [
        (s, float(s.report.metrics[metric.name]))
        for s in said
        if metric.name in s.report.metrics and s.step < stage.spec.n_epochs
    ]
