"""Creating trials, and reading them in any order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from hpsearch.errors import InvalidInput, NotFound
from hpsearch.space import Params
from hpsearch.store import Store, TrialQuery
from hpsearch.study import StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, new_stage
from hpsearch.trial import Report, Result, TrialState

_CHOICES: list[Any] = [10, 9.5, "b", "B", "é", True, False, None, [50, 100], [50], 1e300, -2]
_SPACE = {
    "p": {"type": "categorical", "choices": _CHOICES},
    'we"ird $.[0] näme': {"type": "float", "low": 0.0, "high": 9.0},
}


class Trials(Base):
    """add_trials, add_finished, trials."""

    def test_add_trials(self, store: Store) -> None:
        study = self.create(store, kind="external", space=_SPACE, trials=len(_CHOICES))
        params: list[Params] = [{"p": choice, 'we"ird $.[0] näme': 0.1 + 0.2} for choice in _CHOICES]
        assert store.add_trials(self.stage(store, study).id, 0, params, now=T0)
        trials = store.trials(study.id, TrialQuery()).items
        assert repr([trial.params for trial in trials]) == repr(params), "to the bit and the type, in order"
        trial = trials[3]
        assert trial == store.trial(study.id, 3)
        assert (trial.number, trial.stage, trial.state) == (3, "coarse", TrialState.QUEUED)
        assert (trial.value, trial.step, trial.reason, trial.n_attempts, trial.worker) == (None, 0, None, 0, None)
        assert (trial.created_at, trial.started_at, trial.ended_at) == (T0, None, None)
        assert store.study("a").next_number == len(_CHOICES)
        assert self.stage(store, study).n_created == len(_CHOICES)
        assert self.states(store, study) == {TrialState.QUEUED: len(_CHOICES)}
        assert self.events(store, study, "trial") == []
        assert store.attempts(study.id, 3) == []

    def test_add_trials_compares_and_sets(self, store: Store) -> None:
        study = self.create(store, trials=3)
        stage = self.stage(store, study)
        assert not store.add_trials(stage.id, 1, [{"lr": 0.1}], now=T0)
        assert store.add_trials(stage.id, 0, [{"lr": 0.1}], now=T0)
        assert not store.add_trials(stage.id, 0, [{"lr": 0.1}], now=T0)
        assert not store.add_trials(stage.id, 1, [{"lr": 0.1}] * 3, now=T0), "two are left"
        assert not store.add_trials(stage.id + 10**6, 1, [{"lr": 0.1}], now=T0), "no such stage"
        assert [trial.number for trial in store.trials(study.id, TrialQuery()).items] == [0]
        assert store.add_trials(stage.id, 1, [{"lr": 0.1}] * 2, now=T0)
        assert self.stage(store, study).n_created == 3

    def test_add_trials_to_a_stage_that_does_not_run(self, store: Store) -> None:
        study = self.create(store)
        coarse = self.stage(store, study)
        store.open_stage(study.id, 1, new_stage(study.spec, 1), now=T0)
        assert not store.add_trials(coarse.id, 0, [{"lr": 0.1}], now=T0)
        fine = self.stage(store, study)
        store.set_state(study.id, StudyState.PAUSED, now=T0)
        assert store.add_trials(fine.id, 0, [{"lr": 0.1}], now=T0)
        store.set_state(study.id, StudyState.CANCELLED, now=T0)
        assert not store.add_trials(fine.id, 1, [{"lr": 0.1}], now=T0)

    def test_add_finished(self, store: Store) -> None:
        study = self.create(store, trials=2, queued=1)
        stage = self.stage(store, study)
        states = [
            (TrialState.COMPLETED, 0.5),
            (TrialState.COMPLETED, None),
            (TrialState.COMPLETED, math.nan),
            (TrialState.PRUNED, 0.25),
            (TrialState.FAILED, None),
        ]
        numbers = store.add_finished(stage.id, [({"lr": 0.5}, s, v) for s, v in states], now=T0 + SECOND)
        assert numbers == [1, 2, 3, 4, 5]
        trials = [store.trial(study.id, number) for number in numbers]
        assert [(t.state.value, t.value) for t in trials] == [
            ("completed", 0.5),
            ("failed", None),
            ("diverged", None),
            ("pruned", 0.25),
            ("failed", None),
        ]
        assert (trials[0].params, trials[0].created_at, trials[0].ended_at) == ({"lr": 0.5}, T0 + SECOND, T0 + SECOND)
        assert self.stage(store, study).n_created == 1, "they take no room"
        assert store.study("a").next_number == 6
        assert self.states(store, study) == {
            TrialState.QUEUED: 1,
            TrialState.COMPLETED: 1,
            TrialState.FAILED: 2,
            TrialState.DIVERGED: 1,
            TrialState.PRUNED: 1,
        }
        assert [(e["number"], e["state"]) for e in self.events(store, study, "trial")][:2] == [
            (1, "completed"),
            (2, "failed"),
        ]
        assert not store.add_trials(stage.id, 1, [{"lr": 0.1}], now=T0)
        assert store.add_trials(stage.id, 6, [{"lr": 0.1}], now=T0)
        assert store.add_finished(stage.id, [], now=T0) == []
        with pytest.raises(NotFound):
            store.add_finished(stage.id + 10**6, [({"lr": 0.5}, TrialState.FAILED, None)], now=T0)
        with pytest.raises(InvalidInput, match="queued"):
            store.add_finished(stage.id, [({"lr": 0.5}, TrialState.QUEUED, None)], now=T0)

    def test_no_such_trial(self, store: Store) -> None:
        study = self.create(store, queued=1)
        for number in (1, -1):
            with pytest.raises(NotFound):
                store.trial(study.id, number)
            with pytest.raises(NotFound):
                store.attempts(study.id, number)

    def _mixed(self, store: Store) -> int:
        """Ten trials: values 0.5, 0.1, none, 0.5, -1, none, 0.1 of 0 to 6; 7 runs; 8 and 9 are queued."""
        study = self.create(store, trials=10, queued=10)
        leases = self.lease(store, 8)
        values = [0.5, 0.1, math.nan, 0.5, -1.0, None, 0.1]
        for lease, value in zip(leases, values, strict=False):
            now = T0 + SECOND * (lease.trial % 3)
            alone.report(store, "w1", [Report(lease.token, 9 - lease.trial, {"x": 1.0})], now=now, ttl=TTL)
            alone.finish(store, "w1", [Result(lease.token, TrialState.COMPLETED, value)], now=now)
        return study.id

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            ("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            ("-number", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
            ("value", [4, 1, 6, 0, 3, 2, 5, 7, 8, 9]),
            ("-value", [0, 3, 1, 6, 4, 2, 5, 7, 8, 9]),
            ("state", [0, 1, 3, 4, 6, 2, 5, 8, 9, 7]),  # completed, diverged, failed, queued, running
            ("-state", [7, 8, 9, 5, 2, 0, 1, 3, 4, 6]),
            ("step", [7, 8, 9, 6, 5, 4, 3, 2, 1, 0]),
            ("-step", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            ("stage", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            ("ended_at", [0, 3, 6, 1, 4, 2, 5, 7, 8, 9]),
            ("-ended_at", [2, 5, 1, 4, 0, 3, 6, 7, 8, 9]),
            ("-started_at", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            ("-params.lr", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ],
    )
    def test_sorting_and_paging(self, store: Store, sort: str, expected: list[int]) -> None:
        study_id = self._mixed(store)
        for limit in (1, 2, 3, 10, 11):
            query = TrialQuery(sort=sort, limit=limit)
            numbers, pages = [], 0
            while True:
                page = store.trials(study_id, query)
                numbers += self.numbers(page.items)
                pages += 1
                assert len(page.items) <= limit
                if page.next is None:
                    break
                assert page.next.isascii()
                assert page.next.replace("-", "").replace("_", "").isalnum()
                query = replace(query, after=page.next)
            assert numbers == expected
            assert pages == -(-10 // limit)

    @pytest.mark.parametrize(
        ("sort", "expected"),
        [
            # numbers as numbers, then texts (true, false and lists as their JSON), then what has none
            ("params.p", [-2, 9.5, 10, 1e300, "B", [50, 100], [50], "b", False, True, "é", None]),
            ("-params.p", [1e300, 10, 9.5, -2, "é", True, False, "b", [50], [50, 100], "B", None]),
        ],
    )
    def test_sorting_by_a_param_of_many_types(self, store: Store, sort: str, expected: list[Any]) -> None:
        study = self.create(store, kind="external", space=_SPACE, trials=len(_CHOICES))
        params: list[Params] = [{"p": choice, 'we"ird $.[0] näme': i / 2} for i, choice in enumerate(_CHOICES)]
        store.add_trials(self.stage(store, study).id, 0, params, now=T0)
        query, found = TrialQuery(sort=sort, limit=5), []
        while True:
            page = store.trials(study.id, query)
            found += [trial.params["p"] for trial in page.items]
            if page.next is None:
                break
            query = replace(query, after=page.next)
        assert repr(found) == repr(expected)
        weird = TrialQuery(sort='-params.we"ird $.[0] näme', limit=2)
        assert self.numbers(store.trials(study.id, weird).items) == [11, 10]

    def test_sorting_by_stage_is_by_its_index(self, store: Store) -> None:
        study = self.create(store, queued=2)
        store.open_stage(study.id, 1, new_stage(study.spec.model_copy(), 1), now=T0)
        self.enqueue(store, study, 2)
        assert self.numbers(store.trials(study.id, TrialQuery(sort="-stage", limit=3)).items) == [2, 3, 0]

    def test_filters(self, store: Store) -> None:
        study_id = self._mixed(store)
        self.create(store, "b", queued=2)

        def numbers(**query: Any) -> list[int]:
            return self.numbers(store.trials(study_id, TrialQuery(**query)).items)

        assert numbers(states=(TrialState.COMPLETED,)) == [0, 1, 3, 4, 6]
        assert numbers(states=(TrialState.RUNNING, TrialState.QUEUED), sort="-number") == [9, 8, 7]
        assert numbers(states=(TrialState.COMPLETED,), sort="-value", limit=3) == [0, 3, 1]
        assert numbers(stage="coarse", states=(TrialState.FAILED,)) == [5]
        assert numbers(stage="fine") == numbers(stage="nobody") == numbers(states=(TrialState.PRUNED,)) == []

    def test_pages_of_some_states_go_through_all_stages(self, store: Store) -> None:
        study = self.create(store, trials=20)
        coarse = self.stage(store, study)
        ended: list[tuple[Params, TrialState, float | None]] = [
            ({"lr": 0.1}, (TrialState.COMPLETED, TrialState.FAILED, TrialState.PRUNED)[i % 3], float(i))
            for i in range(7)
        ]
        store.add_finished(coarse.id, ended, now=T0)
        store.open_stage(study.id, 1, new_stage(study.spec, 1), now=T0)
        store.add_finished(self.stage(store, study).id, ended, now=T0)

        def numbers(*states: TrialState, **query: Any) -> list[int]:
            asked, found = TrialQuery(states=states, limit=2, **query), []
            while True:
                page = store.trials(study.id, asked)
                found += self.numbers(page.items)
                if page.next is None:
                    return found
                asked = replace(asked, after=page.next)

        assert numbers(TrialState.COMPLETED, TrialState.PRUNED) == [0, 2, 3, 5, 6, 7, 9, 10, 12, 13]
        assert numbers(TrialState.PRUNED, TrialState.FAILED, sort="-number") == [12, 11, 9, 8, 5, 4, 2, 1]
        assert numbers(TrialState.COMPLETED, TrialState.COMPLETED, stage="fine") == [7, 10, 13]
        assert numbers(TrialState.RUNNING) == numbers(TrialState.COMPLETED, stage="nobody") == []

    def test_a_sample_and_ranges(self, store: Store) -> None:
        study = self.create(store, trials=7)
        params: list[Params] = [{"lr": n / 8} for n in range(1, 8)]
        store.add_trials(self.stage(store, study).id, 0, params, now=T0)

        def numbers(**query: Any) -> list[int]:
            return [trial.number for trial in store.trials(study.id, TrialQuery(**query)).items]

        assert numbers(every=3) == [0, 3, 6]
        assert numbers(within=(("params.lr", 0.25, 0.5),)) == [1, 2, 3]
        assert numbers(within=(("params.lr", 0.25, 0.5),), every=2, sort="-params.lr") == [2]
        assert numbers(within=(("value", 0.0, 1.0),)) == [], "none has a value"
        with pytest.raises(InvalidInput, match="wrong"):
            numbers(within=(("params.wrong", 0.0, 1.0),))

    def test_some_of_the_choices_of_a_param(self, store: Store) -> None:
        study = self.create(store, kind="external", space=_SPACE, trials=len(_CHOICES))
        params: list[Params] = [{"p": choice, 'we"ird $.[0] näme': i / 2} for i, choice in enumerate(_CHOICES)]
        store.add_trials(self.stage(store, study).id, 0, params, now=T0)

        def found(*choices: Any, name: str = "params.p") -> list[Any]:
            query = TrialQuery(among=((name, choices),))
            return [trial.params["p"] for trial in store.trials(study.id, query).items]

        for choice in _CHOICES:
            assert repr(found(choice)) == repr([choice])
        assert repr(found("B", True, [50], 10)) == repr([10, "B", True, [50]])
        assert found("c") == found() == []
        assert found(1.5, 9, name='params.we"ird $.[0] näme') == ["B"]
        for wrong in ("params.wrong", "value"):
            with pytest.raises(InvalidInput, match=wrong):
                found(1, name=wrong)

    def test_a_page_goes_on_while_trials_are_added(self, store: Store) -> None:
        study = self.create(store, trials=9, queued=3)
        page = store.trials(study.id, TrialQuery(limit=2))
        self.enqueue(store, study, 2)
        rest = store.trials(study.id, TrialQuery(limit=9, after=page.next))
        assert self.numbers(rest.items) == [2, 3, 4]

    def test_bad_queries(self, store: Store) -> None:
        study, other = self.create(store, queued=3), self.create(store, "b", queued=3)
        query = TrialQuery(sort="-value", limit=1)
        cursor = store.trials(study.id, query).next
        assert cursor is not None
        assert self.numbers(store.trials(study.id, replace(query, limit=2, after=cursor)).items) == [1, 2]
        for changed in (
            replace(query, sort="value"),
            replace(query, states=(TrialState.QUEUED,)),
            replace(query, stage="coarse"),
        ):
            with pytest.raises(InvalidInput, match="cursor"):
                store.trials(study.id, replace(changed, after=cursor))
        with pytest.raises(InvalidInput, match="cursor"):
            store.trials(other.id, replace(query, after=cursor))
        for after in ("", "nonsense", "ü\0", cursor[:-3], cursor + "AAAA", "W10", "bnVsbA", "A" * 10_000):
            with pytest.raises(InvalidInput, match="cursor"):
                store.trials(study.id, replace(query, after=after))
        with pytest.raises(InvalidInput, match="did you mean 'value'"):
            store.trials(study.id, TrialQuery(sort="valu"))
        with pytest.raises(InvalidInput, match=r"did you mean 'params\.lr'"):
            store.trials(study.id, TrialQuery(sort="params.l"))
        for sort in ("", "-", "--number", "id", "params.", "params.lr'", METRIC):
            with pytest.raises(InvalidInput):
                store.trials(study.id, TrialQuery(sort=sort))
        for limit in (0, -1):
            with pytest.raises(InvalidInput, match="limit"):
                store.trials(study.id, TrialQuery(limit=limit))
