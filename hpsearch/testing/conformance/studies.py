"""Studies and stages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch.space import FloatParam
from hpsearch.store import Store, TrialQuery
from hpsearch.study import StageState, StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import SECOND, T0, TTL, Base, hello, make_spec, new_stage
from hpsearch.trial import Action, AttemptState, Report, Result, TrialState


class Studies(Base):
    """Creating, finding, ending and deleting studies; opening stages."""

    def test_create_and_read(self, store: Store) -> None:
        spec = make_spec("a", notes="ünï → cödé", tags=["x"], seed=2**53)
        study, created = store.create_study(spec, new_stage(spec), now=T0)
        assert created
        assert (study.spec, study.state, study.reason, study.next_number) == (spec, StudyState.RUNNING, None, 0)
        assert (study.name, study.created_at, study.ended_at) == ("a", T0, None)
        assert store.study("a") == study
        (stage,) = store.stages(study.id)
        assert (stage.study_id, stage.index, stage.name, stage.state) == (study.id, 0, "coarse", StageState.RUNNING)
        assert (stage.spec, stage.space, stage.n_trials, stage.n_created) == (spec.stages[0], spec.space, 4, 0)
        assert (stage.parent, stage.difference, stage.opened_at, stage.ended_at) == (None, None, T0, None)
        assert dict(stage.counts) == dict.fromkeys(TrialState, 0)
        assert self.events(store, study, "study") == [{"state": "running", "reason": None}]
        assert self.events(store, study, "stage") == [
            {"stage": "coarse", "index": 0, "state": "running", "n_trials": 4}
        ]

    def test_create_again_is_the_same_study(self, store: Store) -> None:
        study = self.create(store)
        spec = make_spec()
        assert store.create_study(spec, new_stage(spec), now=T0 + SECOND) == (study, False)
        assert store.create_study(spec, new_stage(spec), now=T0, idempotency_key="k") == (study, False)
        assert len(store.stages(study.id)) == 1
        assert store.last_event(study.id) == 2

    def test_an_ended_study_of_an_equal_spec_is_returned_as_it_is(self, store: Store) -> None:
        study = store.set_state(self.create(store).id, StudyState.CANCELLED, now=T0)
        spec = make_spec()
        assert store.create_study(spec, new_stage(spec), now=T0) == (study, False)

    def test_name_taken_by_another_spec(self, store: Store) -> None:
        self.create(store)
        other = make_spec(seed=1)
        with pytest.raises(Conflict, match="'a'"):
            store.create_study(other, new_stage(other), now=T0)
        choices = [
            make_spec("c", kind="external", space={"p": {"type": "categorical", "choices": [c]}}) for c in (1, True)
        ]
        store.create_study(choices[0], new_stage(choices[0]), now=T0)
        with pytest.raises(Conflict):
            store.create_study(choices[1], new_stage(choices[1]), now=T0)

    def test_idempotency_key(self, store: Store) -> None:
        spec, other = make_spec(), make_spec("b")
        study, created = store.create_study(spec, new_stage(spec), now=T0, idempotency_key="k")
        assert created
        assert store.create_study(spec, new_stage(spec), now=T0, idempotency_key="k") == (study, False)
        with pytest.raises(Conflict):
            store.create_study(other, new_stage(other), now=T0, idempotency_key="k")
        with pytest.raises(NotFound):
            store.study("b")

    def test_studies_newest_first_in_pages(self, store: Store) -> None:
        for name in ("a", "b", "c"):
            self.create(store, name)
        page = store.studies(limit=2)
        assert [study.name for study in page.items] == ["c", "b"]
        self.create(store, "d")
        rest = store.studies(limit=2, after=page.next)
        assert [study.name for study in rest.items] == ["a"]
        assert rest.next is None
        assert store.studies(limit=4).next is None
        for limit, cursor in ((0, None), (1, "nonsense"), (1, "ü"), (1, "")):
            with pytest.raises(InvalidInput):
                store.studies(limit=limit, after=cursor)

    def test_unknown_studies(self, store: Store) -> None:
        study = self.create(store, queued=1)
        store.delete_study(study.id)
        for id_ in (study.id, 10**9):
            with pytest.raises(NotFound):
                store.set_state(id_, StudyState.PAUSED, now=T0)
            with pytest.raises(NotFound):
                store.delete_study(id_)
            with pytest.raises(NotFound):
                store.open_stage(id_, 1, new_stage(make_spec(), 1), now=T0)
            with pytest.raises(NotFound):
                store.trials(id_, TrialQuery())
            with pytest.raises(NotFound):
                store.trial(id_, 0)
            with pytest.raises(NotFound):
                store.attempts(id_, 0)
            with pytest.raises(NotFound):
                store.metrics(id_, [0])
            with pytest.raises(NotFound):
                store.events(id_, after=0, limit=1)
            with pytest.raises(NotFound):
                store.last_event(id_)
            assert store.stages(id_) == []
        with pytest.raises(NotFound, match="'a'"):
            store.study("a")

    def test_pause_and_resume(self, store: Store) -> None:
        study = self.create(store, queued=2)
        (lease,) = self.lease(store)
        paused = store.set_state(study.id, StudyState.PAUSED, reason="lunch", now=T0)
        assert (paused.state, paused.reason, paused.ended_at) == (StudyState.PAUSED, "lunch", None)
        assert store.study("a") == paused
        assert self.numbers(self.lease(store, 2)) == [0], "what a worker holds it keeps; nothing new is given out"
        assert store.stages_with_room() == []
        assert alone.report(store, "w1", [Report(lease.token)], now=T0, ttl=TTL)[0].action is Action.CONTINUE
        resumed = store.set_state(study.id, StudyState.RUNNING, now=T0)
        assert (resumed.state, resumed.reason) == (StudyState.RUNNING, None)
        assert self.numbers(self.lease(store, 2)) == [0, 1]
        assert self.events(store, study, "study")[1:] == [
            {"state": "paused", "reason": "lunch"},
            {"state": "running", "reason": None},
        ]

    def test_the_same_state_again_changes_nothing(self, store: Store) -> None:
        study = self.create(store)
        assert store.set_state(study.id, StudyState.RUNNING, reason="again", now=T0 + SECOND) == study
        ended = store.set_state(study.id, StudyState.FAILED, reason="broken", now=T0)
        assert store.set_state(study.id, StudyState.FAILED, reason="twice", now=T0 + SECOND) == ended
        assert len(self.events(store, study, "study")) == 2

    def test_a_final_state_is_never_left(self, store: Store) -> None:
        for name, final in (("a", StudyState.COMPLETED), ("b", StudyState.CANCELLED), ("c", StudyState.FAILED)):
            study = store.set_state(self.create(store, name).id, final, now=T0)
            assert study.ended_at == T0
            for state in set(StudyState) - {final}:
                with pytest.raises(Conflict):
                    store.set_state(study.id, state, now=T0)
            assert store.study(name) == study

    def test_cancel_ends_what_is_open(self, store: Store) -> None:
        study = self.create(store, queued=3)
        done, held = self.lease(store, 2)
        alone.finish(store, "w1", [Result(done.token, TrialState.COMPLETED, 0.5)], now=T0)
        store.set_state(study.id, StudyState.CANCELLED, now=T0 + SECOND)
        assert self.states(store, study) == {TrialState.COMPLETED: 1, TrialState.CANCELLED: 2}
        assert [store.trial(study.id, n).state.value for n in range(3)] == ["completed", "cancelled", "cancelled"]
        assert store.trial(study.id, 1).ended_at == T0 + SECOND
        (attempt,) = store.attempts(study.id, 1)
        assert (attempt.state, attempt.ended_at) == (AttemptState.CANCELLED, T0 + SECOND)
        assert store.attempts(study.id, 0)[0].state is AttemptState.FINISHED
        stage = self.stage(store, study)
        assert (stage.state, stage.ended_at) == (StageState.CANCELLED, T0 + SECOND)
        assert self.lease(store, 5) == []
        assert store.stages_with_room() == []
        (decision,) = alone.report(store, "w1", [Report(held.token, 1, {"val_accuracy": 1.0})], now=T0, ttl=TTL)
        assert (decision.action, bool(decision.reason)) == (Action.ABANDON, True)
        (outcome,) = alone.finish(store, "w1", [Result(held.token, TrialState.COMPLETED, 0.9)], now=T0)
        assert (outcome.accepted, bool(outcome.reason)) == (False, True)
        assert store.trial(study.id, 1).state is TrialState.CANCELLED
        assert store.metrics(study.id, [1]) == []
        ended = [e["number"] for e in self.events(store, study, "trial") if e["state"] == "cancelled"]
        assert sorted(ended) == [1, 2]
        assert self.events(store, study, "stage")[-1]["state"] == "cancelled"

    def test_a_completed_study_completes_its_stage(self, store: Store) -> None:
        study = self.create(store)
        store.set_state(study.id, StudyState.COMPLETED, now=T0)
        assert self.stage(store, study).state is StageState.COMPLETED
        assert self.events(store, study, "stage")[-1] == {
            "stage": "coarse",
            "index": 0,
            "state": "completed",
            "n_trials": 4,
        }

    def test_delete_takes_everything_and_nothing_else(self, store: Store) -> None:
        study, other = self.create(store, "a", queued=2), self.create(store, "b", queued=1)
        leases = self.lease(store, 3)
        reports = [Report(lease.token, 1, {"val_accuracy": 0.5}) for lease in leases]
        alone.report(store, "w1", reports, now=T0, ttl=TTL)
        store.delete_study(study.id)
        decisions = alone.report(store, "w1", [Report(lease.token) for lease in leases], now=T0, ttl=TTL)
        kept = [lease.study == "b" for lease in leases]
        assert [decision.action is Action.CONTINUE for decision in decisions] == kept
        assert sorted(kept) == [False, False, True]
        assert len(store.metrics(other.id, [0])) == 1
        again = self.create(store, "a")
        assert again.id not in (study.id, other.id)
        assert store.trials(again.id, TrialQuery()).items == []

    def test_open_stage_once(self, store: Store) -> None:
        study = self.create(store, queued=4)
        child = new_stage(study.spec, 1, parent="coarse", difference={"lr": {"low": [1e-6, 1e-4], "high": [1.0, 1.0]}})
        child = replace(child, space={"lr": FloatParam(type="float", low=1e-4, high=1.0, log=True)})
        assert not store.open_stage(study.id, 2, child, now=T0), "stage 1 comes before stage 2"
        assert not store.open_stage(study.id, 0, child, now=T0)
        assert store.open_stage(study.id, 1, child, now=T0 + SECOND)
        assert not store.open_stage(study.id, 1, child, now=T0 + SECOND)
        coarse, fine = store.stages(study.id)
        assert (coarse.state, coarse.ended_at) == (StageState.COMPLETED, T0 + SECOND)
        assert (fine.index, fine.name, fine.state, fine.n_trials) == (1, "fine", StageState.RUNNING, 2)
        assert (fine.space, fine.parent, fine.difference) == (child.space, "coarse", child.difference)
        assert [(e["stage"], e["state"]) for e in self.events(store, study, "stage")] == [
            ("coarse", "running"),
            ("coarse", "completed"),
            ("fine", "running"),
        ]

    def test_open_stage_of_paused_and_ended_studies(self, store: Store) -> None:
        paused, ended = self.create(store, "a"), self.create(store, "b")
        store.set_state(paused.id, StudyState.PAUSED, now=T0)
        store.set_state(ended.id, StudyState.CANCELLED, now=T0)
        assert store.open_stage(paused.id, 1, new_stage(paused.spec, 1), now=T0)
        assert not store.open_stage(ended.id, 1, new_stage(ended.spec, 1), now=T0)
        assert len(store.stages(ended.id)) == 1

    def test_two_stages_of_one_name(self, store: Store) -> None:
        study = self.create(store)
        with pytest.raises(Conflict, match="coarse"):
            store.open_stage(study.id, 1, new_stage(study.spec, 0), now=T0)
        assert [stage.state for stage in store.stages(study.id)] == [StageState.RUNNING], "nothing half done"

    def test_stages_with_room(self, store: Store) -> None:
        first, second = self.create(store, "a", queued=1), self.create(store, "b")
        self.create(store, "x", kind="external")
        full = self.create(store, "f", queued=4)

        def names(**options: object) -> list[str]:
            pairs = store.stages_with_room(**options)  # type: ignore[arg-type]
            assert all(study.id == stage.study_id for study, stage in pairs)
            return [study.name for study, _ in pairs]

        assert names() == ["a", "b"]
        assert names(kinds=["train"]) == ["a", "b"]
        assert names(kinds=["external"]) == names(kinds=[]) == names(study="f") == names(study="nobody") == []
        assert names(study="x") == names(study="x", kinds=["external"]) == ["x"]
        self.lease(store, 1, study="a")
        assert names() == ["b", "a"], "the one with the fewest running trials first"
        assert full.name not in names()
        (pair,) = [p for p in store.stages_with_room() if p[0].id == first.id]
        assert (pair[1].n_created, pair[1].counts[TrialState.RUNNING]) == (1, 1)
        store.set_state(second.id, StudyState.PAUSED, now=T0)
        assert names() == ["a"]

    def test_stages_to_settle(self, store: Store) -> None:
        study = self.create(store, trials=3, queued=2)

        def settled() -> list[tuple[str, str]]:
            return [(owner.name, stage.name) for owner, stage in store.stages_to_settle(max_failures=2)]

        def end(state: TrialState) -> None:
            (lease,) = self.lease(store, 1, study="a")
            alone.finish(store, "w1", [Result(lease.token, state, 0.5)], now=T0)

        self.create(store, "b", queued=4)
        end(TrialState.FAILED)
        assert settled() == []
        end(TrialState.FAILED)
        assert settled() == [("a", "coarse")], "hopeless"
        self.enqueue(store, study, 1)
        end(TrialState.COMPLETED)
        assert settled() == [("a", "coarse")], "done"
        store.set_state(study.id, StudyState.PAUSED, now=T0)
        assert settled() == [("a", "coarse")]
        store.set_state(study.id, StudyState.COMPLETED, now=T0)
        assert settled() == []

    def test_one_result_keeps_hope(self, store: Store) -> None:
        self.create(store, trials=4, queued=3)
        states = (TrialState.FAILED, TrialState.FAILED, TrialState.DIVERGED)
        results = [Result(lease.token, s) for lease, s in zip(self.lease(store, 3, hello()), states, strict=True)]
        alone.finish(store, "w1", results, now=T0)
        assert store.stages_to_settle(max_failures=2) == []
