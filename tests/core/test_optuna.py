"""Open-ended stages, and the parts of Optuna's storage that need no server."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from hpsearch.errors import InvalidSpec
from hpsearch.integrations.optuna.backend import Patch
from hpsearch.integrations.optuna.documents import local_time, micros
from hpsearch.integrations.optuna.pending import Pending
from hpsearch.spec import parse_study
from hpsearch.study import NewStage
from hpsearch.testing import MemoryStore
from hpsearch.trial import TrialState

OPEN: dict[str, Any] = {
    "name": "open",
    "objective": {"kind": "external"},
    "metric": {"name": "value", "direction": "minimize"},
    "space": {},
    "stages": [{"name": "trials", "open_ended": True}],
}


@pytest.mark.parametrize(
    ("changes", "loc", "text"),
    [
        ({"stages": [{"name": "trials", "open_ended": True, "trials": 3}]}, "stages.0", "leave trials and top out"),
        ({"stages": [*OPEN["stages"], {"name": "b", "trials": 3}]}, "stages", "the only one of its study"),
        ({"stages": [{"name": "a", "trials": 3}]}, "space", "at least 1 parameter"),
    ],
)
def test_what_an_open_ended_stage_forbids(changes: dict[str, Any], loc: str, text: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        parse_study(OPEN | changes)
    (fault,) = error.value.faults
    assert fault.loc == loc
    assert text in fault.msg


def test_an_open_ended_stage_is_never_done() -> None:
    spec = parse_study(OPEN)
    store, now = MemoryStore(), datetime(2026, 1, 1, tzinfo=UTC)
    study, _ = store.create_study(spec, NewStage(spec.stages[0], spec.space, spec.stages[0].n_trials), now=now)
    (stage,) = store.stages(study.id)
    store.add_finished(stage.id, [({}, TrialState.FAILED, None)] * 5, now=now)
    (stage,) = store.stages(study.id)
    assert (stage.n_trials, stage.n_finished, stage.is_done) == (0, 5, False)
    assert store.stages_to_settle(max_failures=3) == []
    assert store.stages_with_room(study="open") == []


def test_writes_that_wait_are_one_patch_per_trial() -> None:
    pending = Pending()
    pending.add({"trial": 1, "steps": [[1, 0.5]], "user": {"a": "1"}})
    pending.add({"trial": 2, "params": [["x", 1.0, "d"]]})
    pending.add({"trial": 1, "steps": [[2, 0.25]], "user": {"a": "2", "b": "3"}})
    last: Patch = {"trial": 1, "state": "COMPLETE", "values": [1.0], "key": "k"}
    first, second = pending.with_last(last)
    assert first == {"trial": 2, "params": [["x", 1.0, "d"]]}
    assert second == {
        "trial": 1,
        "steps": [[1, 0.5], [2, 0.25]],
        "user": {"a": "2", "b": "3"},
        "state": "COMPLETE",
        "values": [1.0],
        "key": "k",
    }
    assert len(pending.with_last()) == 2
    pending.drop(1)
    assert 1 not in pending
    assert 2 in pending


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_times_are_local_and_exact(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert micros(datetime(2022, 9, 1, tzinfo=UTC)) == 1_661_990_400_000_000
        for moment in (
            datetime(2022, 9, 1, 1, 2, 3, 999_999),
            datetime(1969, 7, 20, 20, 17, 40, 1),
            datetime(2261, 1, 1),
        ):
            assert local_time(micros(moment)) == moment
    finally:
        monkeypatch.undo()
        time.tzset()
