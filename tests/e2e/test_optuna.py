"""Optuna on a server process that dies and comes back."""

from __future__ import annotations

import signal
import threading
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.integrations.optuna import ServiceStorage
from processes import House, eventually

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
def test_a_killed_server_loses_nothing(house: House, request: pytest.FixtureRequest, database: str) -> None:
    url = request.getfixturevalue(database)
    process, client = house.serve(url)
    port = int(client.server.rpartition(":")[2])
    storage = ServiceStorage(client.server, patience_seconds=60)
    study = optuna.create_study(study_name="killed", storage=storage)
    errors: list[BaseException] = []

    def value(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            trial.report(x + step, step)
            trial.should_prune()
        return x

    def run(**more: Any) -> None:
        try:
            study.optimize(value, n_trials=60)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for n in (10, 25, 40):
        eventually(lambda n=n: storage.get_n_trials(study._study_id) >= n, 60)  # type: ignore[misc]
        process.stop(signal.SIGKILL)
        process, _ = house.serve(url, port=port)
    thread.join(120)
    assert not errors
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(60))
    assert all(t.state is TrialState.COMPLETE and t.value == t.params["x"] for t in trials)
    assert all(t.intermediate_values == {s: t.params["x"] + s for s in range(3)} for t in trials)
    storage.close()
