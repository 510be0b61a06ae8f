"""Preflight, and the verdicts that are kept with a trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpsearch.errors import Conflict, NotFound
from hpsearch.store import Store, TrialQuery
from hpsearch.study import PreflightStatus, Study, StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, make_spec, new_stage
from hpsearch.trial import HeldTrial, Report, Result, StepMetrics, TrialState

CHECKS: list[dict[str, Any]] = [{"name": "x", "status": "pass", "message": "fine", "numbers": {"loss": 2.3}}]
OVERFITTING: dict[str, Any] = {"name": "overfitting", "epoch": 3, "evidence": {"gap": 0.4}, "advice": "raise reg"}
HEALTHY: dict[str, Any] = {"name": "healthy", "epoch": None, "evidence": {}, "advice": "go on"}


class Care(Base):
    """What is checked before a study spends anything, and what is said of a trial after it."""

    def waiting(self, store: Store, name: str = "a") -> Study:
        spec = make_spec(name)
        return store.create_study(spec, new_stage(spec), now=T0, preflight=True)[0]

    def test_a_study_in_preflight_hands_out_nothing_until_its_checks_pass(self, store: Store) -> None:
        study = self.waiting(store)
        assert study.state is StudyState.PREFLIGHT
        assert store.preflight(study.id).status is PreflightStatus.WAITING
        assert store.stages_with_room() == []
        assert store.add_trials(self.stage(store, study).id, 0, [{"lr": 0.1}], now=T0)
        assert self.lease(store, 1) == []
        assert [store.n_checks_waiting(kinds=kinds, now=T0) for kinds in (None, ["train"], ["python"])] == [1, 1, 0]
        claimed = store.claim_preflight("w1", kinds=["train"], now=T0, ttl=TTL)
        assert [store.n_checks_waiting(now=T0 + wait) for wait in (0 * SECOND, TTL)] == [0, 1]
        assert claimed is not None
        assert claimed[0].id == study.id
        assert store.preflight(study.id).status is PreflightStatus.RUNNING
        assert store.preflight(study.id).worker == "w1"
        assert store.finish_preflight(study.id, claimed[1], CHECKS, failure=None, now=T0)
        assert store.study("a").state is StudyState.RUNNING
        assert store.preflight(study.id).status is PreflightStatus.PASSED
        assert store.preflight(study.id).checks == tuple(CHECKS)
        assert [e["state"] for e in self.events(store, study, "study")] == ["preflight", "running"]
        assert len(self.lease(store, 1)) == 1

    def test_checks_are_given_to_one_worker_until_its_time_is_over(self, store: Store) -> None:
        first, second = self.waiting(store, "a"), self.waiting(store, "b")
        assert store.claim_preflight("w0", kinds=["task"], now=T0, ttl=TTL) is None
        one = store.claim_preflight("w1", kinds=["train"], now=T0, ttl=TTL)
        two = store.claim_preflight("w2", kinds=["train"], now=T0, ttl=TTL)
        assert one is not None
        assert two is not None
        assert [one[0].id, two[0].id] == [first.id, second.id]
        assert store.claim_preflight("w3", kinds=["train"], now=T0, ttl=TTL) is None
        anew = store.claim_preflight("w2", kinds=["train"], now=T0, ttl=TTL)
        assert anew is not None, "a worker that asks again is not running them any more"
        assert not store.finish_preflight(second.id, two[1], CHECKS, failure=None, now=T0)
        again = store.claim_preflight("w3", kinds=["train"], now=T0 + TTL, ttl=TTL)
        assert again is not None
        assert again[0].id == first.id
        assert not store.finish_preflight(first.id, one[1], CHECKS, failure=None, now=T0 + TTL + SECOND)
        assert store.study("a").state is StudyState.PREFLIGHT

    def test_a_failed_check_holds_the_study_until_it_is_overridden(self, store: Store) -> None:
        study = self.waiting(store)
        claimed = store.claim_preflight("w1", kinds=["train"], now=T0, ttl=TTL)
        assert claimed is not None
        assert store.finish_preflight(study.id, claimed[1], CHECKS, failure="20 samples", now=T0)
        assert store.finish_preflight(study.id, claimed[1], CHECKS, failure=None, now=T0), "repeating is harmless"
        held = store.study("a")
        assert (held.state, held.reason) == (StudyState.PREFLIGHT, "20 samples")
        assert store.preflight(study.id).status is PreflightStatus.FAILED
        assert store.claim_preflight("w1", kinds=["train"], now=T0 + 2 * TTL, ttl=TTL) is None
        with pytest.raises(Conflict):
            store.set_state(study.id, StudyState.PAUSED, now=T0)
        store.set_state(study.id, StudyState.RUNNING, now=T0)
        assert store.preflight(study.id).status is PreflightStatus.OVERRIDDEN
        assert store.preflight(study.id).checks == tuple(CHECKS)

    def test_a_study_without_preflight_skips_it(self, store: Store) -> None:
        study = self.create(store)
        assert store.preflight(study.id).status is PreflightStatus.SKIPPED
        assert store.claim_preflight("w1", kinds=["train"], now=T0, ttl=TTL) is None
        assert not store.finish_preflight(study.id, "nonsense", CHECKS, failure="x", now=T0)
        with pytest.raises(NotFound):
            store.preflight(10**6)

    def test_a_cancelled_study_has_nothing_to_check(self, store: Store) -> None:
        study = self.waiting(store)
        claimed = store.claim_preflight("w1", kinds=["train"], now=T0, ttl=TTL)
        assert claimed is not None
        store.set_state(study.id, StudyState.CANCELLED, now=T0)
        store.finish_preflight(study.id, claimed[1], CHECKS, failure=None, now=T0)
        assert store.study("a").state is StudyState.CANCELLED
        assert store.claim_preflight("w1", kinds=["train"], now=T0 + 2 * TTL, ttl=TTL) is None

    def test_what_is_held_is_judged_by_its_metrics(self, store: Store) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        alone.report(store, "w1", [Report(first.token, s, {METRIC: s / 10}) for s in (1, 2)], now=T0, ttl=TTL)
        store.release("w1", [second.token], now=T0)
        asked: list[tuple[Result, HeldTrial]] = []

        def judge(result: Result, trial: HeldTrial) -> Result:
            asked.append((result, trial))
            return replace(result, state=TrialState.PRUNED, value=None, verdicts=(HEALTHY,))

        results = [Result(token, TrialState.COMPLETED, 0.9) for token in (first.token, second.token, "nonsense")]
        outcomes = alone.finish(store, "w1", results, judge, now=T0)
        assert [outcome.accepted for outcome in outcomes] == [True, False, False]
        steps = (StepMetrics(0, 1, {METRIC: 0.1}), StepMetrics(0, 2, {METRIC: 0.2}))
        assert asked == [(results[0], HeldTrial(study.id, "a", "coarse", 0, steps))]
        ended = store.trial(study.id, 0)
        assert (ended.state, ended.value, ended.verdicts) == (TrialState.PRUNED, 0.2, (HEALTHY,))

    def test_verdicts_are_kept_and_trials_found_by_them(self, store: Store) -> None:
        study = self.create(store, queued=3)
        leases = self.lease(store, 3)
        given = [(OVERFITTING, HEALTHY), (HEALTHY,), ()]
        results = [
            Result(lease.token, TrialState.COMPLETED, 0.5, None, verdicts)
            for lease, verdicts in zip(leases, given, strict=True)
        ]
        alone.finish(store, "w1", results, now=T0)
        assert [store.trial(study.id, n).verdicts for n in range(3)] == given

        def found(verdict: str) -> list[int]:
            return self.numbers(store.trials(study.id, TrialQuery(verdict=verdict)).items)

        assert found("healthy") == [0, 1]
        assert found("overfitting") == [0]
        assert found("over") == found("%") == found("h_althy") == []
        page = store.trials(study.id, TrialQuery(verdict="healthy", limit=1))
        assert self.numbers(page.items) == [0]
        after = store.trials(study.id, TrialQuery(verdict="healthy", limit=1, after=page.next))
        assert self.numbers(after.items) == [1]

    def test_the_test_split_is_read_once(self, store: Store) -> None:
        study = self.create(store)
        assert store.test_reading(study.id) is None
        first = {"trial": 3, "metrics": {"accuracy": 0.5}}
        assert store.log_test(study.id, first, now=T0) == first
        assert store.log_test(study.id, {"trial": 4, "metrics": {}}, now=T0) == first
        assert store.test_reading(study.id) == first
        assert self.events(store, study, "test") == [first]
        with pytest.raises(NotFound):
            store.test_reading(10**6)

    def test_a_log_is_kept_while_the_lease_holds(self, store: Store) -> None:
        spec = make_spec("a")
        study = store.create_study(spec, new_stage(spec), now=T0)[0]
        store.add_trials(self.stage(store, study).id, 0, [{"lr": 0.1}, {"lr": 0.2}], now=T0)
        first, second = self.lease(store, 2)
        assert store.logs.of_trial(study.id, first.trial) is None
        store.logs.keep({first.token: "a\nä", second.token: "b", "no-such-token": "c"})
        store.logs.keep({first.token: "more"})
        alone.finish(store, "w1", [Result(first.token, TrialState.COMPLETED, 0.5)], now=T0)
        store.logs.keep({first.token: "too late"})
        assert [store.logs.of_trial(study.id, lease.trial) for lease in (first, second)] == ["more", "b"]
        with pytest.raises(NotFound):
            store.logs.of_trial(study.id, 9)
        store.delete_study(study.id)
        with pytest.raises(NotFound):
            store.logs.of_trial(study.id, first.trial)
