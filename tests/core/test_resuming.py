"""Trials that go on where they were left: promoted ones, and those of a stage that resumes its parent's best."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpsearch.at_once import at_once
from hpsearch.coordinator import Coordinator
from hpsearch.errors import InvalidSpec, WouldWait
from hpsearch.spec import parse_study
from hpsearch.store import TrialQuery, WorkerHello, all_trials
from hpsearch.study import StudyState
from hpsearch.testing import MemoryStore
from hpsearch.trial import Decision, Outcome, Report, Result, Trial, TrialState
from hpsearch.worker.checkpoints import FORGOTTEN_SECONDS, Checkpoints
from hpsearch.worker.replay import replay_trial
from hpsearch.worker.session import LeasedTrial
from hpsearch.worker.train import TrainRunner
from hpsearch_api.views import lease_views


class Direct:
    """A channel to a coordinator in the same process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.stop = threading.Event()
        self.coordinator = coordinator
        self.results: list[Result] = []

    def lease(self, capacity: int, worker: str = "w") -> list[LeasedTrial]:
        found = self.coordinator.lease(WorkerHello(worker, None, {}), capacity, study="s")
        views = lease_views(found, 30.0)
        return [LeasedTrial(**{n: view[n] for n in LeasedTrial.__dataclass_fields__}) for view in views]

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        return {d.token: d for d in self.coordinator.report("w", reports)}

    def flush(self) -> bool:
        return True

    def finish(self, results: Sequence[Result]) -> list[Outcome]:
        self.results += results
        return self.coordinator.finish("w", results)

    def release(self, tokens: Sequence[str]) -> None:
        self.coordinator.release("w", tokens)

    def log(self, texts: Any) -> None:
        raise AssertionError("nothing is written here")

    def checked(self, task: Any, checks: Any) -> None:
        raise AssertionError("nothing is checked here")


def document(*stages: dict[str, Any], **objective: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "objective": {
            "kind": "train",
            "data": {"source": "digits", "train": 300, "validation": 200},
            "model": {"kind": "mlp", "hidden": [10], "dropout": 0.2, "batch_norm": True},
            "batch_size": 50,
            **objective,
        },
        "metric": {"name": "val_accuracy", "direction": "maximize"},
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
        "stages": list(stages),
        "preflight": False,
    }


def run(spec: dict[str, Any], folder: Path | None, *, capacity: int) -> Direct:
    """Train a whole study, ``capacity`` trials at a time."""
    coordinator = Coordinator(MemoryStore())
    coordinator.submit(parse_study(spec))
    channel = Direct(coordinator)
    runner = TrainRunner(
        width=capacity, checkpoints=None if folder is None else Checkpoints(str(folder), every_seconds=3600)
    )
    while leases := channel.lease(capacity):
        runner.run(leases, channel)
    assert coordinator.store.study("s").state is StudyState.COMPLETED
    return channel


def trials(channel: Direct, stage: str | None = None) -> list[Trial]:
    return all_trials(channel.coordinator.store, 1, TrialQuery(stage=stage))


def same_as_alone(channel: Direct, number: int, *, first_epoch: int = 1) -> None:
    """What a trial reported is what it reports when it is trained again alone, without a stop."""
    store = channel.coordinator.store
    for epoch, recorded, again in replay_trial(store, "s", number).epochs[
        first_epoch - 1 : store.trial(1, number).step
    ]:
        assert recorded is not None, epoch
        for name in ("train_loss", "val_loss", "val_accuracy"):
            assert recorded[name] == pytest.approx(again[name], rel=2e-4), (epoch, name)


ASHA = {"name": "only", "trials": 9, "epochs": 9, "early_stopping": "asha"}


@pytest.mark.parametrize("capacity", [2, 9])
def test_a_promoted_trial_has_the_numbers_of_one_that_was_never_stopped(tmp_path: Path, capacity: int) -> None:
    channel = run(document(ASHA), tmp_path, capacity=capacity)
    found = trials(channel)
    promoted = [t for t in found if t.n_attempts > 1]
    assert bool(promoted) == (capacity == 2)
    assert any(t.state is TrialState.COMPLETED for t in found)
    for trial in [*promoted, max(found, key=lambda t: t.step)]:
        steps = [m.step for m in channel.coordinator.store.metrics(1, [trial.number])]
        assert steps == list(range(1, trial.step + 1))
        same_as_alone(channel, trial.number)


def test_a_promoted_trial_trains_no_epoch_twice(tmp_path: Path) -> None:
    spec = document(ASHA)
    with_checkpoints, without = run(spec, tmp_path, capacity=2), run(spec, None, capacity=2)
    ends = [(t.step, t.state) for t in trials(with_checkpoints)]
    assert ends == [(t.step, t.state) for t in trials(without)], "where nothing is kept it only takes longer"


def test_only_what_may_be_promoted_is_kept(tmp_path: Path) -> None:
    channel = run(document(ASHA), tmp_path, capacity=9)
    ends = [t.step for t in trials(channel)]
    assert sorted(ends) == [1] * 6 + [3] * 2 + [9]
    assert len(list(tmp_path.iterdir())) == 5, "of six that ended at the first rung three, of two at the second both"
    everything = {"name": "only", "trials": 3, "epochs": 2}
    assert list(run(document(everything), tmp_path / "none", capacity=3).results) != []
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


RESUMED = [
    {"name": "short", "trials": 6, "epochs": 3},
    {"name": "long", "top": 2, "epochs": 6, "resume": True},
    {"name": "longer", "top": 1, "epochs": 8, "resume": True},
]


def test_a_stage_goes_on_from_the_checkpoints_of_its_parents_best(tmp_path: Path) -> None:
    channel = run(document(*RESUMED), tmp_path, capacity=3)
    short, long, longer = (trials(channel, name) for name in ("short", "long", "longer"))
    best = sorted(short, key=lambda t: (-(t.value or 0), t.number))
    assert [t.params for t in long] == [t.params for t in best[:2]]
    assert [t.step for t in long] == [6, 6]
    winner = max(long, key=lambda t: (t.value or 0, -t.number))
    assert [t.params for t in longer] == [winner.params]
    store = channel.coordinator.store
    assert [stage.n_epochs for stage in store.stages(1)] == [6 * 3, 2 * 3, 2], (
        "what was trained, not what it went on from"
    )
    assert [m.step for m in store.metrics(1, [long[0].number])] == [4, 5, 6]
    assert [m.step for m in store.metrics(1, [longer[0].number])] == [7, 8]
    for trial, first in [(long[0], 4), (long[1], 4), (longer[0], 7)]:
        assert trial.reason is None
        same_as_alone(channel, trial.number, first_epoch=first)


def test_to_look_for_what_a_trial_goes_on_from_takes_time() -> None:
    first = Coordinator(MemoryStore())
    first.submit(parse_study(document(*RESUMED)))
    hello = WorkerHello("w", None, {})
    leases = [each.lease for each in first.lease(hello, 6, study="s")]
    first.finish("w", [Result(lease.token, TrialState.COMPLETED, lease.trial / 7) for lease in leases])
    (held,) = first.lease(hello, 1, study="s")
    assert held.resume_from is not None
    assert held.resume_from.stage == "short"
    other = Coordinator(first.store)
    with pytest.raises(WouldWait), at_once():
        other.lease(hello, 1, study="s")
    assert other.lease(hello, 1, study="s")[0].resume_from == held.resume_from
    with at_once():
        assert other.lease(hello, 1, study="s")[0].resume_from == held.resume_from


def test_a_trial_whose_checkpoint_is_gone_is_trained_anew_and_says_so() -> None:
    channel = run(document(*RESUMED), None, capacity=3)
    assert [stage.n_epochs for stage in channel.coordinator.store.stages(1)] == [6 * 3, 2 * 6, 8]
    (longer,) = trials(channel, "longer")
    (before,) = [t for t in trials(channel, "long") if t.params == longer.params]
    assert longer.reason == f"trained anew: this worker has no checkpoint of trial {before.number} to go on from"
    assert [m.step for m in channel.coordinator.store.metrics(1, [longer.number])] == list(range(1, 9))
    same_as_alone(channel, longer.number)
    assert channel.coordinator.store.trial(1, longer.number).value == pytest.approx(longer.value)


def test_folds_and_repeats_go_on_too(tmp_path: Path) -> None:
    stages = [
        {"name": "short", "trials": 3, "epochs": 2, "folds": 2, "seeds": 2},
        {"name": "long", "top": 1, "epochs": 4, "resume": True},
    ]
    channel = run(document(*stages), tmp_path, capacity=3)
    (long,) = trials(channel, "long")
    assert (long.state, long.reason) == (TrialState.COMPLETED, None)
    assert [m.step for m in channel.coordinator.store.metrics(1, [long.number])] == [3, 4]
    assert "val_accuracy_std" in channel.coordinator.store.metrics(1, [long.number])[0].values
    same_as_alone(channel, long.number, first_epoch=3)


def test_a_lease_says_where_its_trial_goes_on() -> None:
    coordinator = Coordinator(MemoryStore())
    coordinator.submit(parse_study(document(*RESUMED)))
    channel = Direct(coordinator)
    first = channel.lease(6)
    assert [lease.resume_from for lease in first] == [None] * 6
    assert {(lease.keep_stopped, lease.keep_completed) for lease in first} == {(0, 2)}
    channel.report([Report(first[0].token, 1, {"val_accuracy": 0.1})])
    channel.release([first[0].token])
    (again,) = channel.lease(6, worker="v")
    assert again.resume_from == {"stage": "short", "trial": 0, "step": 1, "epochs": 3}
    values = [0.1, 0.5, 0.9, 0.3, 0.2, 0.4]
    leases = [again, *first[1:]]
    channel.report([Report(lease.token, 3, {"val_accuracy": v}) for lease, v in zip(leases, values, strict=True)])
    channel.finish([Result(lease.token, TrialState.COMPLETED) for lease in leases])
    resumed = [*channel.lease(1), *channel.lease(1, worker="v")]
    assert [lease.resume_from for lease in resumed] == [
        {"stage": "short", "trial": number, "step": 3, "epochs": 3} for number in (2, 1)
    ]
    assert [(lease.seed, lease.data_seed) for lease in resumed] == [
        (leases[n].seed, leases[n].data_seed) for n in (2, 1)
    ]
    assert {(lease.keep_stopped, lease.keep_completed) for lease in resumed} == {(0, 1)}


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"trials": 3, "epochs": 9, "resume": True}, "give top in place of trials"),
        ({"top": 2, "epochs": 9, "resume": True, "seeds": 2}, "leave seeds out"),
        ({"top": 2, "epochs": 9, "resume": True, "folds": 2}, "leave folds out"),
        ({"top": 2, "epochs": 3, "resume": True}, "with 3 epochs cannot be continued to 3"),
    ],
)
def test_what_cannot_be_resumed_is_refused(stage: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        parse_study(document({"name": "short", "trials": 6, "epochs": 3}, {"name": "long", **stage}))


# What is kept

LEASE = LeasedTrial(
    study="s", stage="a", trial=0, attempt=1, token="t", params={"lr": 0.01}, epochs=9, folds=None, seeds=1, seed=7,
    objective={}, metric={"name": "val_loss", "direction": "minimize"}, study_seed=0, data_seed=0,
    lease_seconds=9, keep_stopped=2,
)  # fmt: skip


class Fake:
    """A pack whose members are numbers of trials."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def train_epoch(self) -> Any:
        raise AssertionError

    def drop(self, member: int) -> None:
        raise AssertionError

    def checkpoint(self, member: int) -> Any:
        from hpsearch.training.checkpoints import Checkpoint

        return Checkpoint("a", self.epoch, 1.0, {})


def test_the_best_that_end_at_an_epoch_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), every_seconds=3600)
    leases = [replace(LEASE, trial=n, seed=n) for n in range(5)]
    pack = Fake(3)
    for n, value in enumerate([0.5, 0.1, 0.3, math.inf]):
        state = TrialState.PRUNED if n < 3 else TrialState.DIVERGED
        checkpoints.end([pack], leases[n], n, Result("t", state, value if n < 3 else None))
    for lease in leases:
        checkpoints.remove(lease)
    assert [checkpoints.load(lease) is not None for lease in leases] == [False, True, True, False, False]


def test_a_trial_that_went_on_is_not_deleted_with_where_it_had_ended(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), every_seconds=3600)
    first, second, third = (replace(LEASE, trial=n, seed=n, keep_stopped=1) for n in range(3))
    checkpoints.end([Fake(1)], first, 0, Result("t", TrialState.PRUNED, 0.5))
    assert checkpoints.load(first) is not None
    checkpoints.end([Fake(3)], first, 0, Result("t", TrialState.PRUNED, 0.4))
    checkpoints.end([Fake(1)], second, 0, Result("t", TrialState.PRUNED, 0.3))
    checkpoints.end([Fake(1)], third, 0, Result("t", TrialState.PRUNED, 0.6))
    found = [checkpoints.load(lease) for lease in (first, second, third)]
    assert [each and each[0][0].epoch for each in found] == [3, 1, None]


def test_what_nobody_touched_for_a_week_is_deleted(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), every_seconds=3600)
    old, new = replace(LEASE, seed=1), replace(LEASE, seed=2)
    for lease in (old, new):
        checkpoints.end([Fake(1)], lease, 0, Result("t", TrialState.PRUNED, 0.5))
    long_ago = time.time() - FORGOTTEN_SECONDS - 10
    os.utime(checkpoints._trial_folder(old), (long_ago, long_ago))
    after = Checkpoints(str(tmp_path), every_seconds=3600)
    assert after.load(old) is None
    assert after.load(new) is not None
