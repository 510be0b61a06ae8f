"""Optuna's samplers, pruners, heartbeats and artifacts on our storage, and bad input."""

from __future__ import annotations

import http.server
import json
import math
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import optuna
import pytest
import uvicorn
from optuna.distributions import FloatDistribution
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import TrialState
from optuna_dashboard import wsgi

from hpsearch.client import Client
from hpsearch.coordinator import Coordinator
from hpsearch.errors import ServerRefused, ServerUnreachable
from hpsearch.integrations.optuna import ServiceStorage
from hpsearch_api.app import create_app
from hpsearch_api.server import listen
from hpsearch_storage import open_store
from processes import eventually

# -- heartbeats, retries, artifacts ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage")
def test_stale_trials_are_failed_and_retried(server: str) -> None:
    retry = RetryHeartbeatStaleTrialCallback(max_retry=1)
    storage = ServiceStorage(server, heartbeat_interval=1, grace_period=3, heartbeat_stale_trial_callback=retry)
    study = optuna.create_study(study_name="stale", storage=storage)
    trial = study.ask({"x": FloatDistribution(0, 1)})
    storage.record_heartbeat(trial._trial_id)
    fail_stale_trials(study)
    assert study.trials[0].state is TrialState.RUNNING
    time.sleep(3.2)
    fail_stale_trials(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[1].params == trial.params
    assert RetryHeartbeatStaleTrialCallback.retry_history(study.trials[1]) == [0]
    with pytest.raises(KeyError):
        storage.record_heartbeat(10**9)
    storage.close()


def test_artifacts_leave_their_metadata(storage: ServiceStorage, other: ServiceStorage, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="artifacts", storage=storage)
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    trial = study.ask()
    for owner in (trial, study):
        optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(tmp_path / "a.txt"), study_or_trial=owner)
    study.tell(trial, 0.0)
    theirs = optuna.load_study(study_name="artifacts", storage=other)
    for found in (theirs.trials[0], theirs):
        (meta,) = optuna.artifacts.get_all_artifact_meta(found, storage=other)
        assert (meta.filename, meta.mimetype) == ("a.txt", "text/plain")


# -- samplers and pruners -------------------------------------------------------------------------------------------


def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float, ...]:
    return (trial.params["x"] - 0.5,)


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=3),
    "multivariate": lambda: optuna.samplers.TPESampler(
        seed=0, n_startup_trials=3, multivariate=True, constant_liar=True
    ),
    "constrained": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=3, constraints_func=constraints),
    "gp": lambda: optuna.samplers.GPSampler(seed=0, n_startup_trials=3),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=2),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=0, population_size=4, constraints_func=constraints),
    "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=0, population_size=4),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=0),
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "grid": lambda: optuna.samplers.GridSampler({"x": [0.1, 0.2, 0.3], "n": [1, 2, 3, 4]}, seed=0),
    "brute": lambda: optuna.samplers.BruteForceSampler(seed=0),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore")
def test_samplers(storage: ServiceStorage, name: str) -> None:
    """The same seed draws the same on our storage as in memory."""

    def run(where: Any) -> list[dict[str, Any]]:
        study = optuna.create_study(storage=where, sampler=SAMPLERS[name]())

        def value(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0.1, 1.0, step=0.1) if name == "brute" else trial.suggest_float("x", 0.0, 1.0)
            return (x - 0.3) ** 2 + trial.suggest_int("n", 1, 4)

        study.optimize(value, n_trials=12)
        return [trial.params for trial in study.trials]

    assert run(storage) == run(None)


PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=6),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=4.0),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=2), patience=1),
    "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(n_startup_steps=1),
    "nop": optuna.pruners.NopPruner,
}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.filterwarnings("ignore")
def test_pruners(storage: ServiceStorage, name: str) -> None:
    """The same trials are pruned at the same steps on our storage as in memory."""

    def run(where: Any) -> list[tuple[TrialState, dict[int, float]]]:
        sampler = optuna.samplers.RandomSampler(seed=1)
        study = optuna.create_study(storage=where, sampler=sampler, pruner=PRUNERS[name](), study_name=f"pruned-{name}")

        def value(trial: optuna.Trial) -> float:
            x = trial.suggest_float("x", 0.0, 5.0)
            for step in range(6):
                trial.report(x + math.sin(step * x), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return x

        study.optimize(value, n_trials=15)
        return [(t.state, t.intermediate_values) for t in study.trials]

    assert run(storage) == run(None)


# -- bad input ------------------------------------------------------------------------------------------------------


def test_wrong_url(storage: ServiceStorage) -> None:
    with pytest.raises(ServerUnreachable, match="cannot be reached"):
        ServiceStorage("http://127.0.0.1:9")
    with pytest.raises(ServerUnreachable):
        ServiceStorage("no url")


def test_a_server_that_is_not_ours() -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        with pytest.raises(ServerUnreachable, match="not hpsearch"):
            ServiceStorage(f"http://127.0.0.1:{foreign.server_port}")
        foreign.shutdown()


def test_attributes_that_json_cannot_hold(storage: ServiceStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    for owner in (study, trial):
        with pytest.raises(TypeError, match="'thing' cannot be kept"):
            owner.set_user_attr("thing", object())
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="cannot be kept"):
        trial.set_user_attr("loop", loop)
    trial.set_user_attr("odd", "a\0b\ud800")
    study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == {"odd": "a\0b\ud800"}


def test_arguments() -> None:
    with pytest.raises(ValueError, match="heartbeat_interval 0 is not above 0"):
        ServiceStorage("http://127.0.0.1:9", heartbeat_interval=0)
    with pytest.raises(ValueError, match="grace_period -1 is not above 0"):
        ServiceStorage("http://127.0.0.1:9", grace_period=-1)
    with pytest.raises(ValueError, match="linger_seconds -1 is below 0"):
        ServiceStorage("http://127.0.0.1:9", linger_seconds=-1)


JSON = {"Content-Type": "application/json"}
WHOLE = '{"type": "int", "low": 0, "high": 3}'
PATHS = ("trials/x", "study", "studies?after=x", "studies/1/stale?grace_seconds=nan", "trials/9223372036854775807")
BODIES: list[dict[str, Any]] = [
    {"patches": [{"trial": 1, "state": "DONE"}]},
    {"patches": [{"trial": 2**70}]},
    {"patches": [{"trial": 1}, {"trial": 1}]},
    {"patches": [{"trial": 1, "params": [["x", 1, "{}"]]}]},
    {"patches": [{"trial": 1, "params": [["x", "Infinity", WHOLE]]}]},
    {"patches": [{"trial": 1, "params": [["x" * 600, 1, WHOLE]]}]},
    {"patches": [{"trial": 1, "steps": [[2**64, 1]]}]},
    {"patches": [{"trial": 1, "state": "COMPLETE", "values": []}]},
    {"patches": [{"trial": 1, "state": None, "values": None}]},
    {"patches": "x"},
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: json.dumps(body)[:60])
def test_nothing_that_is_sent_breaks_the_server(storage: ServiceStorage, client: Client, body: Any) -> None:
    trial = storage.create_new_trial(storage.create_new_study([StudyDirection.MINIMIZE]))
    text = json.dumps(body).replace('"trial": 1', f'"trial": {trial}')
    answer = httpx2.post(f"{client.server}/api/v1/optuna/patches", content=text, headers=JSON)
    assert answer.status_code < 500, answer.text
    for path in PATHS:
        with pytest.raises(ServerRefused) as refused:
            client.connection.call("GET", f"/api/v1/optuna/{path}")
        assert refused.value.status < 500


def test_the_wrong_token(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(Coordinator(store), token="secret"), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        eventually(lambda: server.started)
        for token in (None, "wrong"):
            with pytest.raises(ServerRefused, match="token"):
                ServiceStorage(url, token)
        storage = ServiceStorage(url, "secret")
        assert storage.get_all_studies() == []
        copied = pickle.loads(pickle.dumps(storage))
        assert copied.get_all_studies() == []
        copied.close()
        storage.close()
    finally:
        server.should_exit = True
        thread.join()
        store.close()


# -- Optuna's dashboard ---------------------------------------------------------------------------------------------


def test_the_dashboard_opens_it(storage: ServiceStorage) -> None:
    study = optuna.create_study(study_name="shown", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    dashboard = httpx2.Client(transport=httpx2.WSGITransport(wsgi(storage)), base_url="http://dashboard")
    listed = dashboard.get("/api/studies").json()["study_summaries"]
    assert study._study_id in [each["study_id"] for each in listed if each["study_name"] == "shown"]
    shown = dashboard.get(f"/api/studies/{study._study_id}", params={"after": 0}).json()
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 3
    assert [trial["values"] for trial in shown["trials"]] == [[trial.value] for trial in study.trials]
    assert "<html" in dashboard.get(f"/dashboard/studies/{study._study_id}").text.lower()
