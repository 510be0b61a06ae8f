"""Several processes work on one database at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hpsearch.spec import parse_study
from hpsearch.store import TrialQuery
from hpsearch.study import NewStage
from hpsearch.trial import TrialState
from hpsearch_storage import open_store
from stores import run_at_once

_WORK = """
from datetime import UTC, datetime, timedelta
from hpsearch.store import WorkerHello
from hpsearch.testing import alone
from hpsearch.trial import Report, Result, TrialState
store, now, ttl, done = hpsearch_storage.open_store(url), datetime(2026, 1, 1, tzinfo=UTC), timedelta(minutes=1), []
while leases := alone.lease(store, WorkerHello(f"w{i}", "s", {}), 3, now=now, ttl=ttl):
    reports = [Report(lease.token, 1, {"val_accuracy": lease.trial / 100}) for lease in leases]
    alone.report(store, f"w{i}", reports, now=now, ttl=ttl)
    outcomes = alone.finish(store, f"w{i}", [Result(lease.token, TrialState.COMPLETED) for lease in leases], now=now)
    assert all(outcome.accepted for outcome in outcomes), outcomes
    done += [(lease.study, lease.trial) for lease in leases]
    store.reap(now=now, max_lost=3)
print(done)
store.close()
"""


@pytest.mark.parametrize("fixture", ["sqlite_url", "postgres_url"])
def test_no_trial_is_taken_twice(fixture: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(fixture)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    store = open_store(url)
    studies = []
    for name in ("a", "b"):
        spec = parse_study(
            {
                "name": name,
                "objective": {"kind": "train", "data": {"source": "digits"}},
                "metric": {"name": "val_accuracy", "direction": "maximize"},
                "space": {"lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True}},
                "stages": [{"name": "only", "trials": 60, "epochs": 1}],
            }
        )
        study, _ = store.create_study(spec, NewStage(spec.stages[0], spec.space, 60), now=now)
        assert store.add_trials(store.stages(study.id)[0].id, 0, [{"lr": 0.1}] * 60, now=now)
        studies.append(study)
    taken: list[tuple[str, int]] = []
    for printed in run_at_once(3, _WORK, url):
        taken += eval(printed)
    assert sorted(taken) == [(name, number) for name in ("a", "b") for number in range(60)]
    for study in studies:
        trials = store.trials(study.id, TrialQuery()).items
        assert [(t.state, t.value, t.n_attempts) for t in trials] == [
            (TrialState.COMPLETED, number / 100, 1) for number in range(60)
        ]
        assert store.stages(study.id)[0].counts[TrialState.COMPLETED] == 60
        assert [event.seq for event in store.events(study.id, after=0, limit=500)] == list(range(1, 123))
    store.close()
