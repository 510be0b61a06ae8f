"""Reports, results and their values."""

from __future__ import annotations

import math

import pytest

from hpsearch.errors import InvalidInput
from hpsearch.store import Store
from hpsearch.study import StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, hello
from hpsearch.trial import Action, AttemptState, HeldTrial, Report, Result, StepMetrics, TrialState


class Results(Base):
    """What is kept of reports, how trials end, and what is refused."""

    def test_metrics_to_the_bit(self, store: Store) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        values = {METRIC: 0.1 + 0.2, "ä b.c": 5e-324, "max": 1.7976931348623157e308, "zero": -0.0, "one": 1.0}
        odd = {METRIC: math.nan, "up": math.inf, "down": -math.inf}
        reports = [Report(second.token, 1, odd), Report(first.token, 2, {}), Report(first.token, 1, values)]
        decisions = alone.report(store, "w1", reports, now=T0, ttl=TTL)
        assert [(d.token, d.action, d.reason) for d in decisions] == [(r.token, Action.CONTINUE, None) for r in reports]
        one, empty, last = store.metrics(study.id, [1, 0, 0])
        assert one == StepMetrics(0, 1, values)
        assert math.copysign(1.0, one.values["zero"]) == -1.0
        assert [type(value) for value in one.values.values()] == [float] * 5
        assert empty == StepMetrics(0, 2, {})
        assert (last.trial, last.step, last.values["up"], last.values["down"]) == (1, 1, math.inf, -math.inf)
        assert math.isnan(last.values[METRIC])
        assert store.metrics(study.id, []) == store.metrics(study.id, [7]) == []
        assert [store.trial(study.id, n).step for n in (0, 1)] == [2, 1]

    def test_a_step_reported_twice_keeps_the_later_metrics(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        reports = [Report(lease.token, 1, {METRIC: 0.1, "x": 1.0}), Report(lease.token, 1, {METRIC: 0.2})]
        alone.report(store, "w1", reports, now=T0, ttl=TTL)
        assert store.metrics(study.id, [0]) == [StepMetrics(0, 1, {METRIC: 0.2})]
        alone.report(
            store, "w1", [Report(lease.token, 2, {METRIC: 0.4}), Report(lease.token, 1, {METRIC: 0.3})], now=T0, ttl=TTL
        )
        assert [m.values[METRIC] for m in store.metrics(study.id, [0])] == [0.3, 0.4]
        assert store.trial(study.id, 0).step == 2, "the last step, not the one reported last"

    def test_a_sign_of_life_has_no_step(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        assert alone.report(store, "w1", [Report(lease.token)], now=T0, ttl=TTL)[0].action is Action.CONTINUE
        assert store.metrics(study.id, [0]) == []
        assert store.trial(study.id, 0).step == 0
        assert len(self.events(store, study, "trial")) == 1, "a report is no change of state"

    def test_a_report_without_a_lease_changes_nothing(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lost,) = self.lease(store)
        store.reap(now=T0 + TTL, max_lost=3)
        (held,) = self.lease(store, 1, hello("w2"), now=T0 + TTL)
        reports = [Report(lost.token, 1, {METRIC: 0.9}), Report("nonsense", 1, {METRIC: 0.8})]
        decisions = alone.report(store, "w1", reports, now=T0 + TTL + SECOND, ttl=TTL)
        assert [(d.action, bool(d.reason)) for d in decisions] == [(Action.ABANDON, True)] * 2
        assert store.metrics(study.id, [0]) == []
        assert store.attempts(study.id, 0)[1].expires_at == held.expires_at

    def test_a_later_attempt_drops_the_steps_behind_its_first(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (first,) = self.lease(store)
        steps = [Report(first.token, step, {METRIC: step / 10}) for step in (1, 2, 3)]
        alone.report(store, "w1", steps, now=T0, ttl=TTL)
        store.release("w1", [first.token], now=T0)
        (second,) = self.lease(store)
        assert [m.step for m in store.metrics(study.id, [0])] == [1, 2, 3]
        alone.report(store, "w1", [Report(second.token), Report(second.token, 2, {METRIC: 0.9})], now=T0, ttl=TTL)
        assert [(m.step, m.values[METRIC]) for m in store.metrics(study.id, [0])] == [(1, 0.1), (2, 0.9)]
        assert store.trial(study.id, 0).step == 2
        alone.finish(store, "w1", [Result(second.token, TrialState.COMPLETED)], now=T0)
        assert store.trial(study.id, 0).value == 0.9

    def test_finish(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        outcomes = alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, 0.1 + 0.2)], now=T0 + SECOND)
        assert [(o.token, o.accepted, o.reason) for o in outcomes] == [(lease.token, True, None)]
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.value, trial.reason) == (TrialState.COMPLETED, 0.30000000000000004, None)
        assert (trial.started_at, trial.ended_at, trial.worker) == (T0, T0 + SECOND, "w1")
        (attempt,) = store.attempts(study.id, 0)
        assert (attempt.state, attempt.ended_at, attempt.reason) == (AttemptState.FINISHED, T0 + SECOND, None)
        assert self.events(store, study, "trial")[1] == {
            "number": 0,
            "stage": "coarse",
            "state": "completed",
            "value": 0.30000000000000004,
            "step": 0,
            "params": {"lr": 0.1},
            "reason": None,
        }

    def test_reports_that_come_with_the_result(self, store: Store) -> None:
        study = self.create(store, queued=3)
        first, second, lost = self.lease(store, 3)
        alone.report(store, "w1", [Report(first.token, 1, {METRIC: 3.0})], now=T0, ttl=TTL)
        store.release("w1", [lost.token], now=T0)
        reports = [
            Report(first.token, 2, {METRIC: 2.0}),
            Report(second.token, 1, {METRIC: 5.0}),
            Report(first.token, 3, {METRIC: 1.0}),
            Report(lost.token, 1, {METRIC: 9.0}),
        ]
        seen: dict[int, list[int]] = {}

        def judge(result: Result, trial: HeldTrial) -> Result:
            seen[trial.trial] = [each.step for each in trial.steps]
            return result

        results = [Result(each.token, TrialState.COMPLETED) for each in (first, second, lost)]
        outcomes = alone.finish(store, "w1", results, judge, reports=reports, now=T0)
        assert [o.accepted for o in outcomes] == [True, True, False]
        assert seen == {0: [1, 2, 3], 1: [1]}, "they are there when the trial is judged"
        ended = [store.trial(study.id, number) for number in (0, 1, 2)]
        assert [(t.state, t.value, t.step) for t in ended[:2]] == [("completed", 1.0, 3), ("completed", 5.0, 1)]
        assert (ended[2].state, ended[2].step) == (TrialState.QUEUED, 0)
        told = [(m.trial, m.step, m.values[METRIC]) for m in store.metrics(study.id, [0, 1, 2])]
        assert told == [(0, 1, 3.0), (0, 2, 2.0), (0, 3, 1.0), (1, 1, 5.0)]
        assert store.stages(study.id)[0].n_epochs == 4

    def test_finish_again_changes_nothing(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        results = [Result(lease.token, TrialState.COMPLETED, 0.5), Result(lease.token, TrialState.FAILED)]
        assert [o.accepted for o in alone.finish(store, "w1", results, now=T0)] == [True, True]
        before = (store.trial(study.id, 0), store.attempts(study.id, 0), store.last_event(study.id))
        (outcome,) = alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, 0.9)], now=T0 + SECOND)
        assert (outcome.accepted, outcome.reason) == (True, None)
        assert (store.trial(study.id, 0), store.attempts(study.id, 0), store.last_event(study.id)) == before
        assert before[0].value == 0.5
        assert self.states(store, study) == {TrialState.COMPLETED: 1}
        assert alone.report(store, "w1", [Report(lease.token)], now=T0, ttl=TTL)[0].action is Action.ABANDON

    def test_a_late_result_is_refused_and_noted(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lost,) = self.lease(store)
        store.reap(now=T0 + TTL, max_lost=3)
        before = store.attempts(study.id, 0)[0]
        for _ in range(2):
            (outcome,) = alone.finish(store, "w1", [Result(lost.token, TrialState.COMPLETED, 0.5)], now=T0 + TTL)
            assert (outcome.accepted, bool(outcome.reason)) == (False, True)
        assert store.trial(study.id, 0).state is TrialState.QUEUED
        noted = store.attempts(study.id, 0)[0]
        assert (noted.state, noted.ended_at) == (AttemptState.LOST, T0 + TTL)
        assert noted.reason != before.reason
        assert (noted.reason or "").count("late result") == 1
        (held,) = self.lease(store, 1, hello("w2"), now=T0 + TTL)
        assert not alone.finish(store, "w1", [Result(lost.token, TrialState.COMPLETED, 0.5)], now=T0 + TTL)[0].accepted
        assert store.trial(study.id, 0).state is TrialState.RUNNING
        assert alone.finish(store, "w2", [Result(held.token, TrialState.COMPLETED, 0.7)], now=T0 + TTL)[0].accepted
        assert store.trial(study.id, 0).value == 0.7
        (outcome,) = alone.finish(store, "w1", [Result("nonsense", TrialState.FAILED)], now=T0)
        assert (outcome.token, outcome.accepted, bool(outcome.reason)) == ("nonsense", False, True)

    def test_a_result_past_expiry_counts_until_somebody_reaps(self, store: Store) -> None:
        self.create(store, queued=1)
        (lease,) = self.lease(store)
        assert alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, 0.5)], now=T0 + 9 * TTL)[0].accepted

    def test_a_paused_study_takes_results(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        store.set_state(study.id, StudyState.PAUSED, now=T0)
        assert alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, 0.5)], now=T0)[0].accepted

    @pytest.mark.parametrize(
        ("steps", "given", "state", "value"),
        [
            ([(1, 0.1), (2, 0.4)], None, "completed", 0.4),
            ([(2, 0.4), (1, 0.1)], None, "completed", 0.4),
            ([(1, 0.1)], 0.9, "completed", 0.9),
            ([(1, 0.1)], 7, "completed", 7.0),
            ([], None, "failed", None),
            ([(1, 0.1), (2, None)], None, "failed", None),
            ([(1, math.nan)], None, "diverged", None),
            ([(1, 0.1)], math.inf, "diverged", None),
            ([], -math.inf, "diverged", None),
        ],
    )
    def test_the_value_of_a_completed_trial(
        self, store: Store, steps: list[tuple[int, float | None]], given: float | None, state: str, value: float | None
    ) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        reports = [Report(lease.token, step, {"x": 1.0} | ({} if v is None else {METRIC: v})) for step, v in steps]
        alone.report(store, "w1", reports, now=T0, ttl=TTL)
        assert alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, given)], now=T0)[0].accepted
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.value) == (state, value)
        assert type(trial.value) is type(value)
        assert bool(trial.reason) == (state != "completed")
        assert self.states(store, study) == {TrialState(state): 1}
        assert self.events(store, study, "trial")[-1]["value"] == value

    @pytest.mark.parametrize(
        ("state", "given", "value"),
        [
            (TrialState.PRUNED, None, 0.25),
            (TrialState.PRUNED, 0.5, 0.5),
            (TrialState.PRUNED, math.nan, None),
            (TrialState.FAILED, 0.5, None),
            (TrialState.DIVERGED, 0.5, None),
        ],
    )
    def test_the_value_of_others(
        self, store: Store, state: TrialState, given: float | None, value: float | None
    ) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        alone.report(store, "w1", [Report(lease.token, 3, {METRIC: 0.25})], now=T0, ttl=TTL)
        alone.finish(store, "w1", [Result(lease.token, state, given, "because")], now=T0)
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.value, trial.step, trial.reason) == (state, value, 3, "because")

    @pytest.mark.parametrize("state", [TrialState.QUEUED, TrialState.RUNNING, TrialState.CANCELLED])
    def test_a_worker_may_not_give_other_states(self, store: Store, state: TrialState) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        results = [Result(first.token, TrialState.COMPLETED, 0.5), Result(second.token, state)]
        with pytest.raises(InvalidInput, match=state.value):
            alone.finish(store, "w1", results, now=T0)
        assert self.states(store, study) == {TrialState.RUNNING: 2}, "whole or not at all"

    def test_many_at_once_over_two_studies(self, store: Store) -> None:
        studies = [self.create(store, name, queued=4) for name in ("a", "b")]
        leases = self.lease(store, 8)
        alone.report(store, "w1", [Report(x.token, 1, {METRIC: x.trial / 8}) for x in leases], now=T0, ttl=TTL)
        outcomes = alone.finish(store, "w1", [Result(x.token, TrialState.COMPLETED) for x in leases[1:]], now=T0)
        assert [o.token for o in outcomes] == [x.token for x in leases[1:]]
        assert self.states(store, studies[0]) == {TrialState.RUNNING: 1, TrialState.COMPLETED: 3}
        assert [store.trial(studies[1].id, n).value for n in range(4)] == [0.0, 0.125, 0.25, 0.375]
        assert len(self.events(store, studies[1], "trial")) == 8
