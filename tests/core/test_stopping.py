"""Early stopping: each rule by numbers worked out by hand, then what a coordinator makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.errors import InvalidSpec
from hpsearch.methods import Asha, Hyperband, MedianRule, Patience, Threshold
from hpsearch.search.stopping import (
    Curve,
    Means,
    Rung,
    RungCount,
    bracket_of,
    count_rungs,
    median_says,
    patience_says,
    rung_levels,
    saved_epochs,
    stopped_as,
    threshold_says,
)
from hpsearch.spec import StudySpec, parse_study
from hpsearch.store import TrialQuery, WorkerHello, all_trials
from hpsearch.study import Stage, StudyState
from hpsearch.testing import MemoryStore, alone
from hpsearch.trial import Action, Ending, Report, Result, Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


# The rules


@pytest.mark.parametrize(
    ("rule", "epochs", "bracket", "levels"),
    [
        (Asha(), 27, 0, [1, 3, 9]),
        (Asha(), 28, 0, [1, 3, 9, 27]),
        (Asha(reduction=2, min_epochs=3), 20, 0, [3, 6, 12]),
        (Asha(min_epochs=5), 5, 0, []),
        (Hyperband(), 27, 1, [3, 9]),
        (Hyperband(), 27, 3, []),
    ],
)
def test_rungs_rise_by_the_reduction(rule: Asha | Hyperband, epochs: int, bracket: int, levels: list[int]) -> None:
    assert rung_levels(rule, epochs, bracket) == levels


def test_hyperbands_brackets_get_the_shares_of_its_algorithm() -> None:
    # s_max = 3 for 27 epochs: n = ceil(4 / (s + 1) · 3^s) = 27, 12, 6, 4 of 49
    brackets = [bracket_of(Hyperband(), 27, number) for number in range(4900)]
    counts = [brackets.count(b) for b in range(4)]
    assert counts == pytest.approx([2700, 1200, 600, 400], abs=3)  # even, not random: off by the ends of intervals
    assert {brackets[number] for number in range(20)} == {0, 1, 2, 3}
    assert {bracket_of(Asha(), 27, number) for number in range(100)} == {0}


def test_the_best_third_of_a_rung_goes_on() -> None:
    rung = Rung(maximize=True, reduction=3)
    for trial, value in enumerate([0.3, 0.5]):
        rung.add(trial, value)
        assert not rung.is_top(trial), "of two the best third is nobody"
    rung.add(2, 0.4)
    assert [rung.is_top(trial) for trial in range(3)] == [False, True, False]
    assert rung.promotable() == [1]
    rung.let_on(1)
    assert rung.promotable() == []
    assert list(rung.waiting()) == [2, 0]
    for trial, value in [(3, 0.1), (4, 0.2), (5, math.nan)]:
        rung.add(trial, value)
    assert rung.promotable() == [2], "of six, two go on: 0.5, which has, and 0.4"
    assert rung.says(0, 3, top=False) == "0.3 after 3 epochs is not among the best third of 6 trials at this rung"
    assert rung.says(5, 1, top=False).startswith("a value that is not finite after 1 epoch is not among")
    rung.add(0, 0.9)
    assert not rung.is_top(0), "the first value counts"


def test_values_that_are_not_finite_never_go_on() -> None:
    rung = Rung(maximize=False, reduction=2)
    for trial in range(4):
        rung.add(trial, math.inf if trial else None)
    assert (rung.n_top, rung.promotable(), list(rung.waiting())) == (2, [], [])
    rung.add(4, 7.0)
    assert rung.promotable() == [4]


def test_equal_values_go_by_number() -> None:
    rung = Rung(maximize=False, reduction=2)
    for trial in (3, 1, 2, 0):
        rung.add(trial, 0.5)
    assert rung.promotable() == [0, 1]


def test_a_curve_knows_its_mean_its_best_and_when_it_last_rose() -> None:
    curve = Curve(maximize=True, min_delta=0.05)
    for step, value in enumerate([0.2, 0.4, math.nan, 0.43, 0.44], 1):
        curve = curve.after(step, value)
    assert (curve.last, curve.n, curve.best, curve.risen_at) == (5, 4, 0.44, 2)
    assert curve.mean == pytest.approx(0.3675)


def test_the_median_leaves_the_trial_itself_out() -> None:
    means = Means()
    for trial, mean in enumerate([0.1, 0.4, 0.2, 0.3]):
        means.add(trial, mean)
    assert means.median_of_others(0) == (3, 0.3)
    assert means.median_of_others(1) == (3, 0.2)
    assert means.median_of_others(9) == (4, 0.25)
    assert Means().median_of_others(0)[0] == 0


def test_worse_than_the_median_stops() -> None:
    curve = Curve(maximize=False).after(1, 0.9).after(2, 0.7)
    assert median_says(curve, 5, 0.8, min_trials=5) is None
    assert median_says(curve, 5, 0.7, min_trials=5) is None
    assert median_says(curve, 4, 0.6, min_trials=5) is None
    said = median_says(curve, 5, 0.6, min_trials=5)
    assert said == "its best, 0.7, after 2 epochs is worse than 0.6, the median of 5 other trials"


def test_patience_ends_what_stands_still() -> None:
    rule, curve = Patience(epochs=2, min_delta=0.01), Curve(maximize=True, min_delta=0.01)
    said = []
    for step, value in enumerate([0.5, 0.505, 0.52, 0.51, 0.525], 1):
        curve = curve.after(step, value)
        said.append(patience_says(rule, curve))
    assert said[:4] == [None] * 4
    assert said[4] == "it has not become better by more than 0.01 for 2 epochs, since epoch 3"


def test_thresholds_hold_from_their_epoch_on() -> None:
    one, several = Threshold(value=0.3, after=2), Threshold(at=[(2, 0.3), (5, 0.6)])
    assert threshold_says(one, 1, 0.1, maximize=True) is None
    assert threshold_says(one, 2, 0.3, maximize=True) is None
    assert threshold_says(one, 9, 0.1, maximize=True) == "0.1 after 9 epochs is not at least 0.3"
    assert threshold_says(several, 4, 0.4, maximize=True) is None
    assert threshold_says(several, 5, 0.4, maximize=True) == "0.4 after 5 epochs is not at least 0.6"
    assert threshold_says(several, 5, 0.4, maximize=False) is None
    assert threshold_says(several, 5, 0.7, maximize=False) == "0.7 after 5 epochs is not at most 0.6"
    assert threshold_says(one, 2, math.nan, maximize=True) is not None


def trial(number: int, state: TrialState, step: int) -> Trial:
    return Trial(number, "a", state, {}, 0.5, step, None, 1, "w", NOW, NOW, NOW)


def test_what_was_stopped_and_what_that_saved() -> None:
    trials = [trial(n, TrialState.PRUNED, step) for n, step in enumerate([1, 1, 3])]
    trials += [trial(3, TrialState.COMPLETED, 9), trial(4, TrialState.DIVERGED, 2), trial(5, TrialState.RUNNING, 3)]
    assert count_rungs(Asha(), trials, 9) == [RungCount(1, 6, 2, 16), RungCount(3, 3, 1, 6)]
    assert saved_epochs({1: 2, 3: 1}, 9) == 22
    assert saved_epochs({0: 4, 9: 3}, 9) == 0, "those that never began, and those that ended as planned"
    assert (stopped_as(Asha()), stopped_as(Patience())) == (TrialState.PRUNED, TrialState.COMPLETED)
    assert count_rungs(Patience(), [trial(0, TrialState.COMPLETED, 5)], 9) == [RungCount(5, 1, 1, 4)]
    assert count_rungs(MedianRule(), [], 9) == []


# The document


def document(stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "objective": {"kind": "external"},
        "metric": {"name": "score", "direction": "maximize"},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "stages": [{"name": "only", "trials": 9, "epochs": 9, **stage}],
        **changes,
    }


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("ahsa", "did you mean 'asha'"),
        ({"name": "asha", "reductoin": 3}, "did you mean 'reduction'"),
        ({"name": "asha", "reduction": 1}, "greater than or equal to 2"),
        ({"name": "asha", "min_epochs": 9}, "after epoch 9 at the earliest, and the stage trains 9"),
        ({"name": "patience", "epochs": 8}, "after epoch 9 at the earliest"),
        ("threshold", "threshold needs value"),
        ({"name": "threshold", "value": 0.1, "at": [[1, 0.2]]}, "give one of them"),
        ({"name": "threshold", "at": [[3, 0.1], [2, 0.2]]}, "the epochs \\[3, 2\\] do not rise"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rule: Any, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says) as caught:
        parse_study(document({"early_stopping": rule}))
    assert caught.value.faults[0].loc.startswith("stages.0.early_stopping")


def test_seeds_of_finalists_are_not_stopped() -> None:
    stages = [{"name": "a", "trials": 3, "epochs": 2}, {"name": "b", "top": 2, "epochs": 9, "early_stopping": "asha"}]
    with pytest.raises(InvalidSpec, match="some seeds of a finalist"):
        parse_study(document({}, stages=stages))


@pytest.mark.parametrize("rule", ["none", "asha", "hyperband", "median", "patience", {"name": "asha", "reduction": 4}])
def test_a_rule_reads_back_as_it_was_written(rule: Any) -> None:
    spec = parse_study(document({"early_stopping": rule}))
    written = spec.model_dump(mode="json")["stages"][0]["early_stopping"]
    assert written == (rule if isinstance(rule, str) else rule | {"min_epochs": 1})
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


# A coordinator


class Bench:
    """Trials whose curves are given, trained by workers that do as they are told."""

    def __init__(self, rule: Any, *, trials: int, epochs: int, servers: int = 1) -> None:
        store = MemoryStore()
        self.servers = [Coordinator(store, lease_ttl=timedelta(hours=1)) for _ in range(servers)]
        self.store = store
        self.servers[0].submit(parse_study(document({"trials": trials, "epochs": epochs, "early_stopping": rule})))
        self.turn = 0
        self.left: dict[int, int] = {}
        """Trial → how many epochs its checkpoint has."""
        self.trained = 0
        self.leases: list[tuple[int, int]] = []
        """Trials as they were leased, each with the epoch it went on from."""

    @property
    def server(self) -> Coordinator:
        """Another one each time."""
        self.turn += 1
        return self.servers[self.turn % len(self.servers)]

    def ask(self, capacity: int) -> list[Assignment]:
        found = self.server.lease(WorkerHello("w", None, {}), capacity, study="s")
        self.leases += [(a.lease.trial, self.left.get(a.lease.trial, 0)) for a in found]
        return found

    def train(self, pack: list[Assignment], score: Callable[[int, int], float]) -> None:
        """Train a pack epoch by epoch: members go on from where they were left and leave when they are stopped."""
        live = list(pack)
        while live:
            reports = []
            for a in live:
                step = self.left[a.lease.trial] = self.left.get(a.lease.trial, 0) + 1
                reports.append(Report(a.lease.token, step, {"score": score(a.lease.trial, step)}))
                self.trained += 1
            decisions = self.server.report("w", reports)
            ended = []
            for a, decision in zip(list(live), decisions, strict=True):
                if self.left[a.lease.trial] == a.lease.epochs:
                    ended.append(Result(a.lease.token, TrialState.COMPLETED))
                elif decision.action == "stop":
                    step = self.left[a.lease.trial]
                    assert step in a.stops_at or (a.stops_from is not None and step >= a.stops_from)
                    ended.append(Result(a.lease.token, TrialState.PRUNED, None, decision.reason))
                else:
                    continue
                live.remove(a)
            if ended:
                assert all(outcome.accepted for outcome in self.server.finish("w", ended))

    def run(self, score: Callable[[int, int], float], capacity: int = 1) -> None:
        while pack := self.ask(capacity):
            self.train(pack, score)

    def trials(self) -> list[Trial]:
        return all_trials(self.store, self.store.study("s").id, TrialQuery())

    def states(self) -> dict[TrialState, int]:
        return {state: n for state, n in self.stage().counts.items() if n}

    def stage(self) -> Stage:
        return self.store.stages(self.store.study("s").id)[0]


def by_number(number: int, step: int) -> float:
    """The higher the number the better, at every step."""
    return number / 100 + step / 1000


@pytest.mark.parametrize(
    ("rule", "at", "from_"),
    [
        ("none", [], None),
        ("asha", [1, 3], None),
        ("hyperband", [1, 3], None),
        ("median", [], 2),
        ("patience", [], 6),
        ({"name": "threshold", "at": [[3, 0.1], [6, 0.2]]}, [], 3),
    ],
)
def test_a_worker_is_told_which_answers_to_wait_for(rule: Any, at: list[int], from_: int | None) -> None:
    (first,) = Bench(rule, trials=4, epochs=9).ask(1)
    assert (first.stops_at, first.stops_from) == (at, from_)


@pytest.mark.parametrize("knows", [True, False])
def test_what_is_reported_with_a_result_counts_for_the_rule(knows: bool) -> None:
    bench = Bench({"name": "median", "min_trials": 1}, trials=4, epochs=9, servers=1 if knows else 2)
    good, bad = bench.ask(2)
    says = [Report(good.lease.token, step, {"score": 1.0}) for step in range(1, 10)]
    bench.server.finish_all([Ending("w", [Result(good.lease.token, TrialState.COMPLETED)], says)])
    (decision,) = bench.server.report("w", [Report(bad.lease.token, 2, {"score": 0.5})])
    assert decision.action is Action.STOP


def test_a_trial_that_skips_its_rung_is_stopped_by_the_first_report_behind_it() -> None:
    bench = Bench("asha", trials=9, epochs=9)
    pack = bench.ask(9)
    says = [Report(a.lease.token, 2, {"score": by_number(a.lease.trial, 2)}) for a in pack]
    assert [d.action for d in bench.server.report("w", says)] == ["stop"] * 6 + ["continue"] * 3


def test_a_pack_is_halved_at_its_rungs() -> None:
    bench = Bench("asha", trials=27, epochs=27)
    bench.run(by_number, capacity=27)
    steps = {t.number: t.step for t in bench.trials()}
    assert [steps[n] for n in range(18)] == [1] * 18
    assert [steps[n] for n in range(18, 24)] == [3] * 6
    assert [steps[n] for n in range(24, 27)] == [9, 9, 27]
    assert bench.states() == {TrialState.COMPLETED: 1, TrialState.PRUNED: 26}
    stopped = bench.trials()[0]
    assert stopped.reason == "0.001 after 1 epoch is not among the best third of 27 trials at this rung"
    assert (stopped.value, stopped.step) == (0.001, 1)
    assert bench.trained == 27 + 9 * 2 + 3 * 6 + 18
    assert bench.store.study("s").state is StudyState.COMPLETED
    assert len(bench.leases) == 27, "nobody was promoted: all were known at once"


def test_one_after_the_other_is_promoted_later_and_loses_nothing() -> None:
    bench = Bench("asha", trials=9, epochs=9)
    bench.run(lambda number, step: -by_number(number, step))  # the first is the best, and is not known to be
    best = bench.trials()[0]
    assert (best.state, best.step, best.n_attempts) == (TrialState.COMPLETED, 9, 3)
    assert (0, 1) in bench.leases
    assert (0, 3) in bench.leases
    assert bench.trained == 9 + 3 * 2 + 6, "each epoch once: rungs at 1 and 3 of nine and three trials, one to the end"
    promoted = [e.data for e in bench.store.events(1, after=0, limit=1000) if e.data.get("state") == "queued"]
    assert promoted[0]["number"] == 0
    assert promoted[0]["reason"] == "promoted: -0.001 after 1 epoch is among the best third of 3 trials at this rung"
    assert bench.store.study("s").state is StudyState.COMPLETED


@pytest.mark.parametrize("capacity", [1, 4])
def test_servers_that_take_turns_decide_as_one_does(capacity: int) -> None:
    def score(number: int, step: int) -> float:
        return math.sin(7.3 * number) + step / 1000

    one, three = (Bench("asha", trials=30, epochs=27, servers=n) for n in (1, 3))
    one.run(score, capacity)
    three.run(score, capacity)
    assert one.leases == three.leases
    assert [(t.step, t.state, t.value) for t in one.trials()] == [(t.step, t.state, t.value) for t in three.trials()]
    assert one.store.study("s").state is three.store.study("s").state is StudyState.COMPLETED
    at_end = max(one.trials(), key=lambda t: (t.step, t.value or -9))
    assert at_end.number == max(range(30), key=lambda n: score(n, 1))


def test_a_stage_of_few_trials_lets_its_best_go_on_to_the_end() -> None:
    bench = Bench("asha", trials=2, epochs=9)
    bench.run(by_number)
    assert [(t.state, t.step) for t in bench.trials()] == [(TrialState.PRUNED, 1), (TrialState.COMPLETED, 9)]
    promoted = [e.data["reason"] for e in bench.store.events(1, after=0, limit=99) if e.data.get("state") == "queued"]
    assert promoted[0] == "promoted: 0.011 after 1 epoch is the best there is, and no trial has completed"
    assert bench.store.study("s").state is StudyState.COMPLETED


def test_where_the_promoted_fails_the_next_best_goes_on() -> None:
    bench = Bench("asha", trials=3, epochs=9)
    bench.train(bench.ask(3), by_number)
    (promoted,) = bench.ask(1)
    assert promoted.lease.trial == 2
    bench.server.finish("w", [Result(promoted.lease.token, TrialState.DIVERGED, None, "exploded")])
    bench.run(by_number)
    assert [(t.state, t.step) for t in bench.trials()] == [
        (TrialState.PRUNED, 1),
        (TrialState.COMPLETED, 9),
        (TrialState.DIVERGED, 3),
    ]


def test_the_stage_is_not_over_while_something_is_to_be_promoted() -> None:
    bench = Bench("asha", trials=3, epochs=3)
    leases = bench.ask(3)
    for a in leases:
        (decision,) = bench.server.report("w", [Report(a.lease.token, 1, {"score": -a.lease.trial / 10})])
        assert decision.action == "stop", "of one, of two; of three the first is the best, which is on its way out"
    results = [Result(a.lease.token, TrialState.PRUNED) for a in leases]
    alone.finish(bench.store, "w", results, now=NOW)  # as of a server that died before it came to promote
    assert bench.stage().is_done
    bench.server.tick()
    assert bench.store.study("s").state is StudyState.RUNNING
    (best,) = bench.ask(1)
    assert best.lease.trial == 0
    bench.left[0] = 1
    bench.train([best], by_number)
    assert bench.states() == {TrialState.COMPLETED: 1, TrialState.PRUNED: 2}
    assert bench.store.study("s").state is StudyState.COMPLETED


def test_an_answer_that_was_lost_is_given_again() -> None:
    bench = Bench("asha", trials=3, epochs=9)
    leases = bench.ask(3)
    reports = [Report(a.lease.token, 1, {"score": a.lease.trial / 10}) for a in leases]
    first, second = bench.server.report("w", reports), bench.server.report("w", reports)
    assert [d.action for d in first] == [d.action for d in second] == ["stop", "stop", "continue"]
    later = [Report(a.lease.token, 2, {"score": 0.0}) for a in leases]
    assert [d.action for d in bench.server.report("w", later)] == ["continue"] * 3, "between rungs nobody is stopped"


def test_steps_kept_while_the_server_was_away_are_all_judged() -> None:
    bench = Bench("asha", trials=3, epochs=9)
    leases = bench.ask(3)
    reports = [Report(a.lease.token, step, {"score": a.lease.trial / step}) for step in (1, 2, 3) for a in leases]
    decisions = bench.server.report("w", reports)
    stopped = {report.token for report, decision in zip(reports, decisions, strict=True) if decision.action == "stop"}
    assert stopped == {leases[0].lease.token, leases[1].lease.token}
    entries = bench.store.record_rungs(bench.stage().id, {}, after=0)
    assert {e.place.trial: e.value for e in entries if e.place.step == 1} == {0: 0.0, 1: 1.0, 2: 2.0}


def test_worse_values_at_a_lost_workers_rung_do_not_count_twice() -> None:
    bench = Bench("asha", trials=3, epochs=9)
    leases = bench.ask(3)
    bench.server.report("w", [Report(a.lease.token, 1, {"score": a.lease.trial / 10}) for a in leases])
    bench.server.release("w", [a.lease.token for a in leases])
    again = bench.ask(3)
    decisions = bench.server.report("w", [Report(a.lease.token, 1, {"score": 0.0}) for a in again])
    assert [d.action for d in decisions] == ["stop", "stop", "continue"]


def test_hyperbands_last_bracket_trains_to_the_end() -> None:
    bench = Bench("hyperband", trials=40, epochs=9)
    bench.run(by_number, capacity=40)
    ends = {t.number: t.step for t in bench.trials()}
    brackets = {n: bracket_of(Hyperband(), 9, n) for n in ends}
    assert {ends[n] for n, b in brackets.items() if b == 2} == {9}
    assert {ends[n] for n, b in brackets.items() if b == 1} == {3, 9}
    assert {ends[n] for n, b in brackets.items() if b == 0} == {1, 3, 9}


@pytest.mark.parametrize("servers", [1, 2])
def test_the_median_rule_stops_the_worse_half(servers: int) -> None:
    bench = Bench({"name": "median", "warmup_epochs": 2, "min_trials": 3}, trials=9, epochs=9, servers=servers)
    bench.run(by_number, capacity=9)
    ends = [t.step for t in bench.trials()]
    # step 3: means n/100 + 0.002; the median of the others is that of trial 5 below 5, of trial 3 above
    assert ends[:4] == [3, 3, 3, 3]
    assert ends[8] == 9
    assert "is worse than" in (bench.trials()[0].reason or "")
    assert bench.store.study("s").state is StudyState.COMPLETED


def test_another_server_reads_the_curve_that_it_has_not_seen() -> None:
    bench = Bench({"name": "patience", "epochs": 3}, trials=1, epochs=20, servers=2)
    bench.run(lambda number, step: min(step, 4) / 10)
    (ended,) = bench.trials()
    assert (ended.step, ended.state, ended.value) == (7, TrialState.COMPLETED, 0.4)
    assert ended.reason == "it has not become better for 3 epochs, since epoch 4"


def test_a_threshold_stops_what_does_not_come_to_it() -> None:
    bench = Bench({"name": "threshold", "value": 0.05, "after": 3}, trials=9, epochs=9)
    bench.run(by_number, capacity=4)
    assert [t.step for t in bench.trials()] == [3] * 5 + [9] * 4


def test_no_rule_stops_nothing_and_writes_nothing() -> None:
    bench = Bench("none", trials=3, epochs=9)
    bench.run(by_number, capacity=3)
    assert bench.states() == {TrialState.COMPLETED: 3}
    assert bench.store.record_rungs(bench.stage().id, {}, after=0) == []


def test_decisions_read_what_is_new_alone() -> None:
    """However many trials came before, a report makes the server read only entries it has not seen."""
    bench = Bench("asha", trials=300, epochs=9)
    read: list[int] = []
    record = bench.store.record_rungs

    def counting(*args: Any, **options: Any) -> Any:
        entries = record(*args, **options)
        read.append(len(entries))
        return entries

    bench.store.record_rungs = counting  # type: ignore[method-assign]
    bench.run(by_number)
    assert max(read) <= 3
