"""What trials had at rungs, and how one that was stopped is let on later."""

from __future__ import annotations

import math

import pytest

from hpsearch.store import Store
from hpsearch.study import StageState, Study, StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, hello
from hpsearch.testing.conformance.threads import at_once
from hpsearch.trial import Action, Climb, Climbs, Place, Report, Result, RungEntry, RungPlace, TrialState


def at(trial: int, *, step: int = 1, bracket: int = 0) -> RungPlace:
    """A trial at the first rung."""
    return RungPlace(bracket, step, trial)


class Rungs(Base):
    """Entries are kept once and read as a log; one of many promotes."""

    def stopped(self, store: Store, n: int = 3) -> tuple[Study, int]:
        """A study whose ``n`` trials were all stopped at the first rung, with values 0.0, 0.1, …, and its stage."""
        study = self.create(store, trials=n, queued=n)
        leases = self.lease(store, n)
        alone.report(store, "w1", [Report(x.token, 1, {METRIC: x.trial / 10}) for x in leases], now=T0, ttl=TTL)
        stage = self.stage(store, study).id
        store.record_rungs(stage, {at(x.trial): x.trial / 10 for x in leases}, after=0)
        alone.finish(store, "w1", [Result(x.token, TrialState.PRUNED, None, "not yet") for x in leases], now=T0)
        return study, stage

    def test_a_report_tells_where_its_trial_belongs(self, store: Store) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        alone.report(store, "w1", [Report(first.token, 4, {METRIC: 0.5})], now=T0, ttl=TTL)
        reports = [Report(first.token, 5, {}), Report(first.token, 6, {}), Report(second.token), Report("nonsense")]
        decisions = alone.report(store, "w1", reports, now=T0, ttl=TTL)
        place = Place(study.id, "a", "coarse", 0, 4)
        assert [d.place for d in decisions] == [place, place, Place(study.id, "a", "coarse", 1, 0), None]
        assert decisions[3].action is Action.ABANDON

    def test_entries_are_a_log(self, store: Store) -> None:
        study = self.create(store, queued=4)
        stage = self.stage(store, study).id
        assert store.record_rungs(stage, {}, after=0) == []
        first = store.record_rungs(stage, {at(1): 0.5, at(0): 0.25}, after=0)
        assert [(e.place, e.value, e.went_on) for e in first] == [(at(0), 0.25, False), (at(1), 0.5, False)]
        assert first[0].seq < first[1].seq
        more = store.record_rungs(stage, {at(0, step=3): math.nan, at(0, bracket=1): -math.inf}, after=first[-1].seq)
        assert [(e.place, e.value) for e in more] == [(at(0, step=3), None), (at(0, bracket=1), None)]
        assert store.record_rungs(stage, {}, after=first[0].seq) == [first[1], *more]
        assert store.record_rungs(stage, {at(1): 0.75}, after=more[-1].seq) == [], "the first value counts"
        assert store.record_rungs(stage, {}, after=0) == [*first, *more]
        assert store.record_rungs(10**6, {at(0): 1.0}, after=0) == []

    def test_reports_and_what_they_say_of_rungs_are_kept_together(self, store: Store) -> None:
        study = self.create(store, queued=3)
        stage = self.stage(store, study).id
        first, second, third = self.lease(store, 3)
        store.release("w1", [third.token], now=T0)
        alone.report(store, "w1", [Report(first.token, 2, {METRIC: 0.5})], now=T0, ttl=TTL)
        climbs = [
            Climb(first.token, at(0, step=3), 0.25, before=2),
            Climb(second.token, at(1, step=3), 0.75, before=2),
            Climb(second.token, at(1), math.inf),
            Climb(second.token, at(1), 0.5),
            Climb(third.token, at(2), 0.5),
            Climb("nonsense", at(2), 0.5),
        ]
        reports = [Report(x.token, 3, {METRIC: 0.5}) for x in (first, second, third)]
        asked = [Climbs(stage, 0, tuple(climbs)), Climbs(10**6, 0, (climbs[0],))]
        decisions, (entries, nothing) = store.report({"w1"}, reports, asked, now=T0, ttl=TTL)
        assert [d.action for d in decisions] == [Action.CONTINUE, Action.CONTINUE, Action.ABANDON]
        assert {e.place: e.value for e in entries} == {at(0, step=3): 0.25, at(1): None}, "of leases that hold, as told"
        assert nothing == []
        assert [m.step for m in store.metrics(study.id, [0, 1])] == [2, 3, 3]
        again = [Climbs(stage, entries[-1].seq, (Climb(first.token, at(0, step=3), 0.75),))]
        assert store.report({"w1"}, reports, again, now=T0, ttl=TTL)[1] == [[]], "the first value counts"
        assert store.record_rungs(stage, {}, after=0) == entries

    def test_a_running_trial_that_passes_is_marked(self, store: Store) -> None:
        study = self.create(store, queued=2)
        self.lease(store, 2)
        stage = self.stage(store, study).id
        (_, last) = store.record_rungs(stage, {at(0): 0.5, at(1): 0.25}, after=0)
        assert store.let_on(stage, [at(0), at(3)], promoted={at(1): "better late"}, now=T0) == []
        (entry,) = store.record_rungs(stage, {}, after=last.seq)
        assert (entry.place, entry.value, entry.went_on) == (at(0), 0.5, True)
        assert self.states(store, study) == {TrialState.RUNNING: 2}
        assert store.let_on(stage, [at(0)], promoted={}, now=T0) == []
        assert store.record_rungs(stage, {}, after=entry.seq) == []

    def test_a_stopped_trial_is_promoted(self, store: Store) -> None:
        study, stage = self.stopped(store)
        before = store.trial(study.id, 2)
        assert (before.value, before.step, self.stage(store, study).n_epochs) == (0.2, 1, 3)
        assert store.let_on(stage, [], promoted={at(2): "the best third"}, now=T0 + SECOND) == [2]
        trial = store.trial(study.id, 2)
        assert (trial.state, trial.value, trial.step, trial.reason) == (TrialState.QUEUED, None, 1, "the best third")
        assert (trial.ended_at, trial.n_attempts, self.stage(store, study).n_epochs) == (None, 1, 2)
        assert self.states(store, study) == {TrialState.PRUNED: 2, TrialState.QUEUED: 1}
        event = self.events(store, study, "trial")[-1]
        assert (event["number"], event["state"], event["reason"]) == (2, "queued", "the best third")
        assert not store.stages_to_settle(max_failures=3)
        (lease,) = self.lease(store, 1, hello("w2"))
        assert (lease.trial, lease.attempt, lease.step) == (2, 2, 1)
        alone.report(store, "w2", [Report(lease.token, 2, {METRIC: 0.5})], now=T0, ttl=TTL)
        assert [m.step for m in store.metrics(study.id, [2])] == [1, 2], "its curve goes on"
        assert alone.finish(store, "w2", [Result(lease.token, TrialState.PRUNED)], now=T0)[0].accepted
        assert store.let_on(stage, [], promoted={at(2): "again"}, now=T0) == [], "once for a rung"
        assert store.trial(study.id, 2).value == 0.5

    def test_what_cannot_go_on_is_marked_alone(self, store: Store) -> None:
        study = self.create(store, trials=1, queued=1)
        stage = self.stage(store, study).id
        store.record_rungs(stage, {at(0): 0.5}, after=0)
        assert store.let_on(stage, [], promoted={at(0): "too early"}, now=T0) == []
        assert not store.record_rungs(stage, {}, after=0)[0].went_on
        (lease,) = self.lease(store)
        alone.finish(store, "w1", [Result(lease.token, TrialState.FAILED, None, "boom")], now=T0)
        assert store.let_on(stage, [], promoted={at(0): "too late"}, now=T0) == []
        assert store.record_rungs(stage, {}, after=0)[0].went_on
        assert store.trial(study.id, 0).reason == "boom"
        assert store.let_on(10**6, [at(0)], promoted={}, now=T0) == []

    @pytest.mark.parametrize("state", [StudyState.CANCELLED, StudyState.COMPLETED, StudyState.PAUSED])
    def test_nothing_is_promoted_in_a_study_that_has_ended(self, store: Store, state: StudyState) -> None:
        study, stage = self.stopped(store, 1)
        store.set_state(study.id, state, now=T0)
        assert store.let_on(stage, [], promoted={at(0): "r"}, now=T0) == ([0] if state is StudyState.PAUSED else [])
        assert self.stage(store, study).state is not StageState.RUNNING or state is StudyState.PAUSED

    def test_one_of_many_promotes(self, store: Store) -> None:
        study, stage = self.stopped(store, 6)
        places = {at(number): "r" for number in range(6)}
        promoted = at_once(4, lambda _: store.let_on(stage, [], promoted=places, now=T0))
        assert sorted(number for numbers in promoted for number in numbers) == [0, 1, 2, 3, 4, 5]
        assert self.states(store, study) == {TrialState.QUEUED: 6}

    def test_entries_of_many_are_seen_by_all(self, store: Store) -> None:
        study = self.create(store, trials=40, queued=40)
        stage = self.stage(store, study).id

        def follow(i: int) -> list[RungEntry]:
            seen: list[RungEntry] = []
            for number in range(i, 40, 4):
                last = seen[-1].seq if seen else 0
                seen += store.record_rungs(stage, {at(number): number / 40}, after=last)
            return seen

        logs = at_once(4, follow)
        whole = store.record_rungs(stage, {}, after=0)
        assert sorted(entry.place.trial for entry in whole) == list(range(40))
        assert all(log == whole[: len(log)] for log in logs), "nobody misses one that came before what they saw"

    def test_a_deleted_study_takes_its_rungs_along(self, store: Store) -> None:
        study, stage = self.stopped(store)
        store.delete_study(study.id)
        assert store.record_rungs(stage, {}, after=0) == []
