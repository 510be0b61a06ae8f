"""How stages are opened beside the plan, what they cost, and what users note of their borders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hpsearch.errors import NotFound
from hpsearch.space import FloatParam
from hpsearch.store import Store, TrialQuery
from hpsearch.study import Acknowledgement, Border, StageState, StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, make_spec, new_stage
from hpsearch.trial import Report, Result, TrialState


class Opening(Base):
    """Stages past a border, stages of a study that had ended, notes on flags."""

    def test_how_a_stage_came_about_is_kept(self, store: Store) -> None:
        study = self.create(store)
        inside = {"lr": FloatParam(type="float", low=1e-6, high=1e-3, log=True, hard_low=1e-9, natural=True)}
        child = new_stage(study.spec, 1, parent="coarse", plan=3, extension=2, exclude=inside, watched=True, reason="x")
        assert store.open_stage(study.id, 1, child, now=T0)
        coarse, fine = store.stages(study.id)
        assert (coarse.plan, coarse.extension, coarse.exclude, coarse.watched, coarse.n_epochs) == (
            0,
            0,
            None,
            False,
            0,
        )
        assert (fine.plan, fine.extension, fine.exclude, fine.watched, fine.reason) == (3, 2, inside, True, "x")

    def test_a_stage_opened_early_cancels_what_is_open(self, store: Store) -> None:
        study = self.create(store, queued=4)
        other = self.create(store, "other", queued=1)
        (lease,) = self.lease(store, 1, study="a")
        assert store.open_stage(study.id, 1, new_stage(study.spec, 1, parent="coarse"), now=T0 + SECOND)
        coarse, fine = store.stages(study.id)
        assert (coarse.state, coarse.counts[TrialState.CANCELLED]) == (StageState.COMPLETED, 4)
        assert fine.state == StageState.RUNNING
        (outcome,) = alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, 0.5)], now=T0 + SECOND)
        assert not outcome.accepted
        assert "fine" in (store.trial(study.id, 0).reason or "")
        assert self.states(store, other) == {TrialState.QUEUED: 1}

    def test_a_completed_study_runs_again(self, store: Store) -> None:
        study = self.create(store)
        store.set_state(study.id, StudyState.COMPLETED, reason="target", now=T0)
        assert store.open_stage(study.id, 1, new_stage(study.spec, 1, parent="coarse"), now=T0 + SECOND)
        again = store.study("a")
        assert (again.state, again.reason, again.ended_at) == (StudyState.RUNNING, None, None)
        assert [e["state"] for e in self.events(store, study, "study")] == ["running", "completed", "running"]
        assert [stage.state for stage in store.stages(study.id)] == [StageState.COMPLETED, StageState.RUNNING]

    @pytest.mark.parametrize("state", [StudyState.CANCELLED, StudyState.FAILED])
    def test_a_study_without_a_result_stays_ended(self, store: Store, state: StudyState) -> None:
        study = self.create(store)
        store.set_state(study.id, state, now=T0)
        assert not store.open_stage(study.id, 1, new_stage(study.spec, 1), now=T0)
        assert store.study("a").state == state
        assert len(store.stages(study.id)) == 1

    def test_a_watched_stage_may_be_settled_early(self, store: Store) -> None:
        spec = make_spec("a")
        watched, _ = store.create_study(spec, new_stage(spec, watched=True), now=T0)
        self.create(store, "b")
        assert [study.name for study, _ in store.stages_to_settle(max_failures=3)] == ["a"]
        store.set_state(watched.id, StudyState.CANCELLED, now=T0)
        assert store.stages_to_settle(max_failures=3) == []

    def test_epochs_of_ended_trials_are_counted(self, store: Store) -> None:
        study = self.create(store, queued=3)
        leases = self.lease(store, 3)
        steps = {0: 3, 1: 2, 2: 1}
        reports = [Report(lease.token, steps[lease.trial], {METRIC: 0.5}) for lease in leases]
        alone.report(store, "w1", reports, now=T0, ttl=TTL)
        assert self.stage(store, study).n_epochs == 0
        results = [Result(leases[0].token, TrialState.COMPLETED), Result(leases[1].token, TrialState.DIVERGED)]
        alone.finish(store, "w1", results, now=T0)
        alone.finish(store, "w1", results, now=T0)
        assert self.stage(store, study).n_epochs == 5
        store.set_state(study.id, StudyState.CANCELLED, now=T0)
        assert self.stage(store, study).n_epochs == 6

    def test_epochs_that_a_trial_had_behind_it_are_not_counted(self, store: Store) -> None:
        study = self.create(store)
        stage = self.stage(store, study).id
        assert store.add_trials(stage, 0, [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03}], now=T0, behind=[3, 3, 3])
        leases = self.lease(store, 3)
        begun = {0: 4, 1: 1, 2: 4}  # the second was trained anew
        alone.report(store, "w1", [Report(x.token, begun[x.trial], {METRIC: 0.5}) for x in leases], now=T0, ttl=TTL)
        alone.report(store, "w1", [Report(x.token, 6, {METRIC: 0.5}) for x in leases[:2]], now=T0, ttl=TTL)
        alone.finish(store, "w1", [Result(x.token, TrialState.COMPLETED) for x in leases], now=T0)
        assert self.stage(store, study).n_epochs == 3 + 6 + 1

    def test_trials_by_steps_and_by_columns(self, store: Store) -> None:
        study = self.create(store, queued=3)
        leases = self.lease(store, 3)
        alone.report(store, "w1", [Report(x.token, 1 + x.trial // 2, {METRIC: 0.5}) for x in leases], now=T0, ttl=TTL)
        alone.finish(store, "w1", [Result(x.token, TrialState.PRUNED, None, "late") for x in leases], now=T0 + SECOND)
        assert store.n_by_step(study.id, "coarse", TrialState.PRUNED) == {1: 2, 2: 1}
        assert store.n_by_step(study.id, "coarse", TrialState.COMPLETED) == {}
        table, after = store.table(study.id, TrialQuery(limit=2, sort="-number"))
        assert (list(table.number), list(table.state), list(table.step)) == ([2, 1], ["pruned"] * 2, [2, 1])
        assert (list(table.reason), list(table.verdicts)) == (["late", "late"], ["", ""])
        started = (T0 - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        assert (list(table.started_at), list(table.ended_at)) == ([started] * 2, [started + 10**6] * 2)
        rest, end = store.table(study.id, TrialQuery(limit=2, sort="-number", after=after))
        assert (list(rest.number), end) == ([0], None)
        assert list(rest.params) == [store.trial(study.id, 0).params]

    def test_flags_are_acknowledged_and_that_is_taken_back(self, store: Store) -> None:
        study, other = self.create(store), self.create(store, "b")
        border = Border("coarse", "lr", "high")
        assert store.acknowledgements(study.id) == {}
        store.acknowledge(study.id, border, "we know", now=T0)
        store.acknowledge(study.id, border, "still", now=T0 + SECOND)
        store.acknowledge(study.id, Border("coarse", "lr", "low"), "", now=T0)
        noted = store.acknowledgements(study.id)
        assert noted[border] == Acknowledgement("still", T0 + SECOND)
        assert len(noted) == 2
        store.acknowledge(study.id, border, None, now=T0)
        store.acknowledge(study.id, border, None, now=T0)
        assert list(store.acknowledgements(study.id)) == [Border("coarse", "lr", "low")]
        assert self.events(store, study, "flag")[0] == {
            "stage": "coarse",
            "parameter": "lr",
            "side": "high",
            "note": "we know",
        }
        assert store.acknowledgements(other.id) == {}
        store.delete_study(study.id)
        with pytest.raises(NotFound):
            store.acknowledgements(study.id)
        with pytest.raises(NotFound):
            store.acknowledge(study.id, border, "gone", now=T0)
