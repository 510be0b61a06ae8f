"""The log, and many threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from hpsearch.errors import Conflict
from hpsearch.store import Store, TrialQuery
from hpsearch.study import StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, T0, TTL, Base, hello, make_spec, new_stage
from hpsearch.trial import Report, Result, TrialState

T = TypeVar("T")


def at_once(n: int, work: Callable[[int], T]) -> list[T]:
    """Results of ``work(0)`` to ``work(n - 1)``, begun together in threads."""
    barrier = Barrier(n)

    def begin(i: int) -> T:
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(begin, range(n)))


class Threads(Base):
    """Whatever happens at once happens as if in some order."""

    def test_events_in_pages(self, store: Store) -> None:
        study = self.create(store, queued=4)
        self.lease(store, 4)
        assert [e.seq for e in store.events(study.id, after=0, limit=4)] == [1, 2, 3, 4]
        page = store.events(study.id, after=4, limit=4)
        assert [(e.seq, e.kind, e.at, e.data["number"]) for e in page] == [(5, "trial", T0, 2), (6, "trial", T0, 3)]
        assert store.events(study.id, after=6, limit=4) == []
        assert store.last_event(study.id) == 6

    def test_check(self, store: Store) -> None:
        store.check()

    def test_one_of_many_creates_the_study(self, store: Store) -> None:
        spec = make_spec()
        found = at_once(6, lambda _: store.create_study(spec, new_stage(spec), now=T0, idempotency_key="k"))
        assert sum(created for _, created in found) == 1
        assert len({study.id for study, _ in found}) == 1
        assert len(store.stages(found[0][0].id)) == 1

    def test_one_of_many_takes_the_name(self, store: Store) -> None:
        def create(i: int) -> bool:
            spec = make_spec(seed=i)
            try:
                return store.create_study(spec, new_stage(spec), now=T0)[1]
            except Conflict:
                return False

        assert sum(at_once(6, create)) == 1
        assert len(store.studies(limit=10).items) == 1

    def test_a_stage_opens_once(self, store: Store) -> None:
        study = self.create(store)
        opened = at_once(6, lambda _: store.open_stage(study.id, 1, new_stage(study.spec, 1), now=T0))
        assert sum(opened) == 1
        assert len(store.stages(study.id)) == 2

    def test_numbers_are_given_once(self, store: Store) -> None:
        study = self.create(store, trials=10)
        stage = self.stage(store, study)

        def fill(_: int) -> int:
            added = 0
            while (first := store.study("a").next_number) < 10:
                added += store.add_trials(stage.id, first, [{"lr": 0.1}], now=T0)
            return added

        assert sum(at_once(4, fill)) == 10
        assert self.numbers(store.trials(study.id, TrialQuery()).items) == list(range(10))
        assert self.stage(store, study).n_created == 10

    def test_a_trial_is_given_once(self, store: Store) -> None:
        studies = [self.create(store, name, trials=12, queued=12) for name in ("a", "b")]

        def work(i: int) -> list[tuple[str, int]]:
            done: list[tuple[str, int]] = []
            while leases := alone.lease(store, hello(f"w{i}"), 1 + i % 3, now=T0, ttl=TTL):
                alone.report(store, f"w{i}", [Report(x.token, 1, {METRIC: 0.5}) for x in leases], now=T0, ttl=TTL)
                results = [Result(x.token, TrialState.COMPLETED) for x in leases]
                assert all(outcome.accepted for outcome in alone.finish(store, f"w{i}", results, now=T0))
                done += [(x.study, x.trial) for x in leases]
            return done

        done = sorted(pair for pairs in at_once(6, work) for pair in pairs)
        assert done == [(name, number) for name in ("a", "b") for number in range(12)]
        for study in studies:
            assert self.states(store, study) == {TrialState.COMPLETED: 12}
            assert len(self.events(store, study, "trial")) == 24
            assert all(len(store.attempts(study.id, number)) == 1 for number in range(12))

    def test_reaping_and_finishing_agree(self, store: Store) -> None:
        study = self.create(store, trials=12, queued=12)
        leases = self.lease(store, 12)

        def act(i: int) -> list[bool]:
            if i == 0:
                store.reap(now=T0 + TTL, max_lost=1)
                return []
            if i == 1:
                alone.report(
                    store, "w1", [Report(x.token, 1, {METRIC: 0.5}) for x in reversed(leases)], now=T0, ttl=TTL
                )
                return []
            mine = [Result(x.token, TrialState.COMPLETED, 0.5) for x in leases[i - 2 :: 3]]
            return [outcome.accepted for outcome in alone.finish(store, "w1", mine, now=T0)]

        accepted = sum(flag for flags in at_once(5, act) for flag in flags)
        counts = self.states(store, study)
        assert counts.get(TrialState.COMPLETED, 0) == accepted
        assert sum(counts.values()) == 12
        self.events(store, study, "trial")

    def test_cancelling_and_leasing_agree(self, store: Store) -> None:
        study = self.create(store, trials=12, queued=12)

        def act(i: int) -> None:
            if i == 0:
                store.set_state(study.id, StudyState.CANCELLED, now=T0)
            else:
                self.lease(store, 3, hello(f"w{i}"))

        at_once(4, act)
        assert self.states(store, study) == {TrialState.CANCELLED: 12}
        assert all(worker.n_leases == 0 for worker in store.workers())

    def test_a_worker_that_asks_twice_at_once_gets_its_share_once(self, store: Store) -> None:
        self.create(store, trials=12, queued=12)
        found = at_once(4, lambda _: self.lease(store, 2))
        assert [self.numbers(leases) for leases in found] == [[0, 1]] * 4
