"""Handing trials out, and taking them back."""

from __future__ import annotations

from datetime import timedelta

from hpsearch.store import Asking, Store, WorkerHello
from hpsearch.study import StudyState
from hpsearch.testing import alone
from hpsearch.testing.conformance.base import METRIC, SECOND, T0, TTL, Base, hello
from hpsearch.trial import Action, AttemptState, Ending, Report, Result, TrialState


class Leases(Base):
    """Order, fairness, filters, what a worker holds, and losses."""

    def test_a_lease_says_what_to_do(self, store: Store) -> None:
        study = self.create(store, queued=1)
        (lease,) = self.lease(store)
        assert (lease.study_id, lease.study, lease.stage, lease.stage_index) == (study.id, "a", "coarse", 0)
        assert (lease.trial, lease.attempt, lease.params, lease.epochs) == (0, 1, {"lr": 0.1}, 3)
        assert lease.expires_at == T0 + TTL
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.worker, trial.n_attempts) == (TrialState.RUNNING, "w1", 1)
        assert (trial.started_at, trial.ended_at, trial.step, trial.value) == (T0, None, 0, None)
        (attempt,) = store.attempts(study.id, 0)
        assert (attempt.number, attempt.worker, attempt.state) == (1, "w1", AttemptState.RUNNING)
        assert (attempt.started_at, attempt.expires_at, attempt.ended_at) == (T0, T0 + TTL, None)
        assert self.states(store, study) == {TrialState.RUNNING: 1}
        assert self.events(store, study, "trial") == [
            {
                "number": 0,
                "stage": "coarse",
                "state": "running",
                "value": None,
                "step": 0,
                "params": {"lr": 0.1},
                "reason": None,
            }
        ]

    def test_nothing_to_give(self, store: Store) -> None:
        assert self.lease(store, 3) == []
        self.create(store)
        assert self.lease(store, 3) == self.lease(store, 3, study="nobody") == []
        assert [worker.name for worker in store.workers()] == ["w1"]

    def test_numbers_rise_and_tokens_differ(self, store: Store) -> None:
        self.create(store, queued=4)
        leases = self.lease(store, 2) + self.lease(store, 9, hello("w2"))
        assert self.numbers(leases) == [0, 1, 2, 3]
        assert len({lease.token for lease in leases}) == 4

    def test_fewest_running_first_then_oldest(self, store: Store) -> None:
        for name in ("a", "b"):
            self.create(store, name, queued=4)
        given = [self.lease(store, n, hello(f"w{i}")) for i, n in enumerate((2, 1, 1, 1))]
        assert [[lease.study for lease in leases] for leases in given] == [["a", "a"], ["b"], ["b"], ["a"]]
        leases = self.lease(store, 5, hello("w9"))
        assert [(lease.study, lease.trial) for lease in leases] == [("b", 2), ("b", 3), ("a", 3)]

    def test_several_workers_at_once(self, store: Store) -> None:
        for name in ("a", "b"):
            self.create(store, name, queued=4)
        asked = [Asking(hello(f"w{i}"), n) for i, n in enumerate((2, 1, 1, 1))]
        given = store.lease([*asked, Asking(hello("w9"), 5), Asking(hello("w8"), 1)], now=T0, ttl=TTL)
        found = [[(lease.study, lease.trial) for lease in leases] for leases in given]
        assert found == [
            [("a", 0), ("a", 1)],
            [("b", 0)],
            [("b", 1)],
            [("a", 2)],
            [("b", 2), ("b", 3), ("a", 3)],
            [],
        ]
        tokens = [lease.token for leases in given for lease in leases]
        assert len(set(tokens)) == 8
        assert [worker.n_leases for worker in sorted(store.workers(), key=lambda w: w.name)] == [2, 1, 1, 1, 0, 3]
        for study in map(store.study, "ab"):
            assert self.states(store, study) == {TrialState.RUNNING: 4}
            assert len(self.events(store, study, "trial")) == 4
        again = store.lease(asked, now=T0 + SECOND, ttl=TTL)
        assert [lease.token for leases in again for lease in leases] == tokens[:5]
        assert {lease.expires_at for leases in again for lease in leases} == {T0 + SECOND + TTL}
        assert store.lease([], now=T0, ttl=TTL) == []

    def test_several_workers_at_once_with_different_wishes(self, store: Store) -> None:
        self.create(store, "a", queued=3)
        self.create(store, "x", kind="external", queued=2)
        (old,) = self.lease(store, 1, hello("w0", "s1"))
        asked = [
            Asking(hello("w1"), 1, study="x"),
            Asking(hello("w2"), 1, kinds=("python",)),
            Asking(hello("w0", "s2"), 2),
            Asking(hello("w3"), 2, kinds=("train", "external")),
            Asking(hello("w1"), 2, study="x"),
        ]
        given = store.lease(asked, now=T0, ttl=TTL)
        assert [[(lease.study, lease.trial) for lease in leases] for leases in given] == [
            [("x", 0)],
            [],
            [("a", 0), ("a", 1)],
            [("a", 2)],
            [("x", 0), ("x", 1)],
        ], "w0 was started anew; the second request of w1 finds what the first was given"
        assert old.token not in {lease.token for leases in given for lease in leases}
        assert given[0][0].token == given[4][0].token

    def test_a_share(self, store: Store) -> None:
        self.create(store, trials=9, queued=9)

        def ask(capacity: int, share: int) -> list[int]:
            return self.numbers(store.lease([Asking(hello(), capacity, share=share)], now=T0, ttl=TTL)[0])

        assert ask(8, 0) == []
        assert ask(8, 2) == [0, 1]
        assert ask(8, 1) == [0, 1], "what it holds it keeps"
        assert ask(8, 3) == [0, 1, 2]
        assert ask(1, 5) == [0]

    def test_external_only_where_named(self, store: Store) -> None:
        self.create(store, "x", kind="external", queued=1)
        assert self.lease(store) == self.lease(store, kinds=["external"]) == self.lease(store, study="y") == []
        assert self.lease(store, study="x", kinds=["train"]) == []
        (lease,) = self.lease(store, study="x")
        assert lease.study == "x"

    def test_kinds(self, store: Store) -> None:
        self.create(store, queued=1)
        assert self.lease(store, kinds=["command"]) == self.lease(store, kinds=[]) == []
        assert len(self.lease(store, kinds=iter(["command", "train"]))) == 1

    def test_only_the_named_study(self, store: Store) -> None:
        self.create(store, "a", queued=1)
        self.create(store, "b", queued=1)
        assert [lease.study for lease in self.lease(store, 5, study="b")] == ["b"]

    def test_what_a_worker_holds_comes_first(self, store: Store) -> None:
        study = self.create(store, queued=4)
        held = self.lease(store, 2)
        later = T0 + 10 * SECOND
        again = self.lease(store, 3, now=later)
        assert [lease.token for lease in again[:2]] == [lease.token for lease in held]
        assert self.numbers(again) == [0, 1, 2]
        assert {lease.expires_at for lease in again} == {later + TTL}
        assert [lease.attempt for lease in again] == [1, 1, 1]
        assert store.attempts(study.id, 0)[0].expires_at == later + TTL
        assert self.numbers(self.lease(store, 1, now=later)) == [0], "never more than asked for"
        assert self.numbers(self.lease(store, 1, hello("w2"))) == [3]
        assert len(self.events(store, study, "trial")) == 4, "giving back is no change of state"

    def test_an_expired_lease_nobody_reaped_is_given_back(self, store: Store) -> None:
        self.create(store, queued=1)
        (held,) = self.lease(store)
        (again,) = self.lease(store, now=T0 + 2 * TTL)
        assert (again.token, again.attempt) == (held.token, 1)
        assert store.reap(now=T0 + 2 * TTL, max_lost=1) == []

    def test_a_session_not_told_gets_everything_back(self, store: Store) -> None:
        self.create(store, queued=2)
        (held,) = self.lease(store, 1, hello("w1", "s1"))
        (again,) = self.lease(store, 1, hello("w1", None))
        assert again.token == held.token
        (unknown,) = self.lease(store, 1, hello("w2", None))
        (told,) = self.lease(store, 1, hello("w2", "s1"))
        assert told.token == unknown.token
        (anew,) = self.lease(store, 1, hello("w2", "s2"))
        assert anew.token != told.token, "the session that was told last is the one that counts"

    def test_a_new_session_has_lost_the_old_leases(self, store: Store) -> None:
        study = self.create(store, queued=3)
        old = self.lease(store, 2, hello("w1", "s1"))
        new = self.lease(store, 2, hello("w1", "s2"), now=T0 + SECOND)
        assert [(lease.trial, lease.attempt) for lease in new] == [(0, 2), (1, 2)], "queued again before giving out"
        assert {lease.token for lease in new}.isdisjoint(lease.token for lease in old)
        first, second = store.attempts(study.id, 0)
        assert (first.state, first.ended_at, bool(first.reason)) == (AttemptState.LOST, T0 + SECOND, True)
        assert second.state is AttemptState.RUNNING
        states = [event["state"] for event in self.events(store, study, "trial") if event["number"] == 0]
        assert states == ["running", "queued", "running"]
        assert alone.report(store, "w1", [Report(old[0].token)], now=T0, ttl=TTL)[0].action is Action.ABANDON

    def test_a_trial_that_kills_its_worker_ends(self, store: Store) -> None:
        study = self.create(store, queued=2)
        for turn in range(2):
            (lease,) = self.lease(store, 1, hello("w1", f"s{turn}"), max_lost=2)
            assert (lease.trial, lease.attempt) == (0, turn + 1)
        (lease,) = self.lease(store, 1, hello("w1", "s2"), max_lost=2)
        assert lease.trial == 1
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.ended_at, bool(trial.reason)) == (TrialState.FAILED, T0, True)

    def test_reap(self, store: Store) -> None:
        study, other = self.create(store, "a", queued=1), self.create(store, "b", queued=1)
        (lease,) = self.lease(store, 1, study="a")
        self.lease(store, 1, hello("w2"), study="b", ttl=10 * TTL)
        assert store.reap(now=T0 + TTL - SECOND, max_lost=2) == []
        assert store.reap(now=T0 + TTL, max_lost=2) == [study.id]
        assert store.reap(now=T0 + TTL, max_lost=2) == []
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.worker, trial.n_attempts) == (TrialState.QUEUED, "w1", 1)
        assert bool(trial.reason)
        (attempt,) = store.attempts(study.id, 0)
        assert (attempt.state, attempt.ended_at, bool(attempt.reason)) == (AttemptState.LOST, T0 + TTL, True)
        assert store.trial(other.id, 0).state is TrialState.RUNNING
        assert alone.report(store, "w1", [Report(lease.token)], now=T0 + TTL, ttl=TTL)[0].action is Action.ABANDON
        (lease,) = self.lease(store, 1, study="a", now=T0 + TTL)
        assert (lease.trial, lease.attempt) == (0, 2)
        assert store.trial(study.id, 0).reason is None
        assert store.reap(now=T0 + 2 * TTL, max_lost=2) == [study.id]
        trial = store.trial(study.id, 0)
        assert (trial.state, trial.ended_at, bool(trial.reason)) == (TrialState.FAILED, T0 + 2 * TTL, True)
        assert [attempt.number for attempt in store.attempts(study.id, 0)] == [1, 2]
        states = [event["state"] for event in self.events(store, study, "trial")]
        assert states == ["running", "queued", "running", "failed"]

    def test_reap_in_a_paused_study(self, store: Store) -> None:
        study = self.create(store, queued=1)
        self.lease(store)
        store.set_state(study.id, StudyState.PAUSED, now=T0)
        assert store.reap(now=T0 + TTL, max_lost=2) == [study.id]
        assert store.trial(study.id, 0).state is TrialState.QUEUED

    def test_a_report_renews(self, store: Store) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        alone.report(store, "w1", [Report(first.token)], now=T0 + 20 * SECOND, ttl=TTL)
        assert store.attempts(study.id, 0)[0].expires_at == T0 + 20 * SECOND + TTL
        assert store.reap(now=T0 + TTL, max_lost=9) == [study.id]
        assert store.trial(study.id, 0).state is TrialState.RUNNING
        assert store.trial(study.id, 1).state is TrialState.QUEUED
        late = T0 + timedelta(hours=5)
        decisions = alone.report(store, "w1", [Report(first.token), Report(second.token)], now=late, ttl=TTL)
        assert [d.action for d in decisions] == [Action.CONTINUE, Action.ABANDON], "past expiry, but nobody reaped it"
        assert store.reap(now=late, max_lost=9) == []

    def test_release(self, store: Store) -> None:
        study = self.create(store, queued=2)
        first, second = self.lease(store, 2)
        alone.finish(store, "w1", [Result(second.token, TrialState.COMPLETED, 0.5)], now=T0)
        outcomes = store.release("w1", [first.token, second.token, "nonsense"], now=T0 + SECOND)
        assert [(o.token, o.accepted, bool(o.reason)) for o in outcomes] == [
            (first.token, True, False),
            (second.token, False, True),
            ("nonsense", False, True),
        ]
        assert store.release("w1", [first.token], now=T0)[0].accepted, "repeating it is harmless"
        assert self.states(store, study) == {TrialState.QUEUED: 1, TrialState.COMPLETED: 1}
        (attempt,) = store.attempts(study.id, 0)
        assert (attempt.state, attempt.ended_at) == (AttemptState.RELEASED, T0 + SECOND)
        (again,) = self.lease(store, 1, hello("w2"))
        assert (again.trial, again.attempt) == (0, 2)
        assert store.reap(now=T0 + TTL, max_lost=2) == [study.id]
        assert store.trial(study.id, 0).state is TrialState.QUEUED, "one was lost; the released one does not count"
        assert alone.report(store, "w1", [Report(first.token)], now=T0, ttl=TTL)[0].action is Action.ABANDON

    def test_workers(self, store: Store) -> None:
        self.create(store, queued=3)
        self.lease(store, 2, hello("w1"))
        (lease,) = self.lease(store, 1, hello("w2"), now=T0 + SECOND)
        alone.report(store, "stranger", [], now=T0, ttl=TTL)
        second, first = store.workers()
        assert (second.name, second.first_seen, second.last_seen, second.n_leases) == (
            "w2",
            T0 + SECOND,
            T0 + SECOND,
            1,
        )
        assert (first.name, first.info, first.n_leases) == ("w1", {"host": "here"}, 2)
        alone.report(store, "w1", [], now=T0 + 2 * SECOND, ttl=TTL)
        alone.finish(store, "w2", [Result(lease.token, TrialState.COMPLETED, 0.5)], now=T0 + SECOND)
        first, second = store.workers()
        assert (first.name, first.first_seen, first.last_seen) == ("w1", T0, T0 + 2 * SECOND)
        assert second.n_leases == 0
        self.lease(store, 1, WorkerHello("w2", "s1", {"host": "there"}), now=T0 + 3 * SECOND, study="nobody")
        first, _ = store.workers()
        assert (first.name, first.info, first.last_seen) == ("w2", {"host": "there"}, T0 + 3 * SECOND)
        assert first.first_seen == T0 + SECOND

    def test_several_workers_are_heard_of_at_once(self, store: Store) -> None:
        self.create(store, queued=2)
        given = store.lease([Asking(hello(name), 1) for name in ("w2", "w1")], now=T0, ttl=TTL)
        one, other = (leases[0].token for leases in given)
        reports = [Report(other, 1, {METRIC: 0.5}), Report("none", 1), Report(one, 2, {METRIC: 0.5})]
        decisions, _ = store.report({"w1", "w2"}, reports, [], now=T0 + SECOND, ttl=TTL)
        assert [d.action for d in decisions] == [Action.CONTINUE, Action.ABANDON, Action.CONTINUE]
        assert [d.place and d.place.trial for d in decisions] == [1, None, 0]
        assert [(w.name, w.last_seen) for w in store.workers()] == [("w1", T0 + SECOND), ("w2", T0 + SECOND)]
        ends = [("w1", Result(one, TrialState.COMPLETED, 0.5)), ("w2", Result(other, TrialState.FAILED))]
        outcomes = store.finish([Ending(worker, [result]) for worker, result in ends], now=T0 + 2 * SECOND)
        assert [(o.token, o.accepted) for o in outcomes] == [(one, True), (other, True)]
        assert {w.last_seen for w in store.workers()} == {T0 + 2 * SECOND}

    def test_the_worker_alone_is_not_enough(self, store: Store) -> None:
        self.create(store, queued=1)
        self.lease(store)
        assert (
            alone.report(store, "w1", [Report("guess", 1, {METRIC: 1.0})], now=T0, ttl=TTL)[0].action is Action.ABANDON
        )
        assert not alone.finish(store, "w1", [Result("", TrialState.COMPLETED, 1.0)], now=T0)[0].accepted

    def test_demand_counts_what_waits_and_who_else_is_there(self, store: Store) -> None:
        self.create(store, queued=2)
        self.create(store, "ext", kind="external", queued=1)
        assert store.demand("w1", since=T0) == (2, 4, 0), "two queued, two not created yet; external only where named"
        assert store.demand("w1", since=T0, study="ext") == (1, 4, 0)
        assert store.demand("w1", since=T0, kinds=["python"]) == (0, 0, 0)
        self.lease(store, 1, hello("w1"))
        self.lease(store, 0, hello("w2"))
        assert store.demand("w1", since=T0) == (1, 3, 1)
        assert store.demand("w2", since=T0) == (1, 3, 0), "w1 is busy"
        assert store.demand("w3", since=T0) == (1, 3, 1)
        assert store.demand("w1", since=T0 + SECOND) == (1, 3, 0)
