"""What Optuna's conformance class does not ask: studies made by Optuna are ours, ours are Optuna's, and bad input."""

from __future__ import annotations

import http.server
import json
import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import optuna
import pytest
import uvicorn
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpsearch.client import Client
from hpsearch.coordinator import Coordinator
from hpsearch.errors import HpsearchError, ServerRefused, ServerUnreachable
from hpsearch.integrations.optuna import ServiceStorage
from hpsearch.integrations.optuna.backend import Patch
from hpsearch.integrations.optuna.service import HttpBackend
from hpsearch_api.app import create_app
from hpsearch_api.server import listen, serving
from hpsearch_storage import open_store

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(f"sqlite:///{tmp_path_factory.mktemp('optuna')}/store.db", listen("127.0.0.1", 0)) as url:
        yield url


@pytest.fixture
def storage(server: str) -> Iterator[ServiceStorage]:
    storage = ServiceStorage(server)
    yield storage
    storage.close()


@pytest.fixture
def other(server: str) -> Iterator[ServiceStorage]:
    """Another process, as far as anyone can see."""
    storage = ServiceStorage(server)
    yield storage
    storage.close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.close()


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 1e-3, 1.0, log=True)
    n = trial.suggest_int("n", 1, 8)
    kind = trial.suggest_categorical("kind", ["a", None, True])
    for step in range(1, 5):
        trial.report(x + n / step, step)
    return x + n + (kind is None)


EXTERNAL: dict[str, Any] = {
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {
        "lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
        "units": {"type": "int", "low": 1, "high": 9},
        "hidden": {"type": "categorical", "choices": [[50], [100, 50], "none"]},
    },
    "stages": [{"name": "coarse", "trials": 8}],
}
POINT = {"lr": 0.001, "units": 3, "hidden": [100, 50]}


# -- studies of Optuna are ordinary studies -----------------------------------------------------------------------


def test_a_study_of_optuna_is_a_study_of_ours(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="ours", storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=30)
    ours = client.study("ours")
    document = ours.read()
    assert document["state"] == "running"
    assert document["counts"]["completed"] == 30
    assert document["spec"]["metric"] == {"name": "value", "direction": "minimize"}
    assert document["best"]["trial"] == study.best_trial.number
    assert document["best"]["value"] == study.best_value
    assert document["best"]["params"] == study.best_params
    space = document["stages"][0]["space"]
    assert space["x"].items() >= {"type": "float", "low": 0.001, "high": 1.0, "log": True}.items()
    assert space["kind"] == {"type": "categorical", "choices": ["a", None, True]}
    assert {"x", "n", "kind"} == set(document["spec"]["space"])
    trial = ours.trial(3)
    assert trial["params"] == study.trials[3].params
    assert trial["step"] == 4
    assert [step["step"] for step in ours.metrics(3)] == [1, 2, 3, 4]
    assert ours.metrics(3)[1]["values"] == {"value": study.trials[3].intermediate_values[2]}
    connection = client.connection
    for path in ("", "/trials/3"):
        assert "ours" in connection.send("GET", f"/studies/ours{path}").text
    for figure in connection.call("GET", "/api/v1/studies/ours/figures")["items"]:
        response = connection.send("GET", f"/api/v1/studies/ours/figures/{figure['kind']}")
        assert response.status_code == 200
    assert ours.flags == document["flags"]
    assert len(ours.export("csv").splitlines()) == 31
    assert ours.export("parquet")[:4] == b"PAR1"


def test_flags_at_the_border_of_a_space_that_grew(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="flagged", storage=storage)
    for i in range(60):
        trial = study.ask({"x": FloatDistribution(0.0, 1.0)})
        study.tell(trial, -trial.params["x"] if i else 0.0)
    (flag,) = [f for f in client.study("flagged").flags if f["level"] == "strong"]
    assert (flag["parameter"], flag["side"]) == ("x", "high")


def test_verdicts_come_from_intermediate_values(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="judged", storage=storage)
    trial = study.ask()
    for step, value in enumerate([1.0, 5.0, math.inf, math.nan], 1):
        trial.report(value, step)
    study.tell(trial, state=TrialState.FAIL)
    assert "diverged" in [verdict["name"] for verdict in client.study("judged").trial(0)["verdicts"]]


def test_the_space_is_the_union_of_what_was_seen(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="union", storage=storage)
    for low, high in ((1.0, 1.0), (2.0, 3.0), (0.5, 2.5)):
        study.tell(study.ask({"x": FloatDistribution(low, high), f"only{high}": IntDistribution(0, 3)}), 0.0)
    space = client.study("union").read()["stages"][0]["space"]
    assert (space["x"]["low"], space["x"]["high"]) == (0.5, 3.0)
    assert set(space) == {"x", "only1.0", "only3.0", "only2.5"}
    with pytest.raises(ValueError, match="different distribution kind"):
        study.ask({"x": CategoricalDistribution((1, 2))})


def test_infinite_values_are_kept_and_shown_as_diverged(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="infinite", storage=storage)
    study.tell(study.ask(), math.inf)
    study.tell(study.ask(), -0.0)
    fresh = optuna.load_study(study_name="infinite", storage=pickle.loads(pickle.dumps(storage)))
    assert [t.state for t in fresh.trials] == [TrialState.COMPLETE] * 2
    assert fresh.trials[0].value == math.inf
    assert math.copysign(1, fresh.trials[1].values[0]) == -1
    assert client.study("infinite").trial(0)["state"] == "diverged"


def test_many_objectives(storage: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="many", storage=storage, directions=["minimize", "maximize"])
    for values in ((1.0, 1.0), (2.0, 3.0), (3.0, 2.0)):
        study.tell(study.ask({"x": FloatDistribution(0, 1)}), values)
    assert sorted(t.number for t in study.best_trials) == [0, 1]
    document = client.study("many").read()
    assert "2 objectives (minimize, maximize)" in document["spec"]["notes"]
    assert document["best"]["value"] == 1.0


# -- studies of ours are Optuna's ---------------------------------------------------------------------------------


def test_a_study_of_ours_is_read_by_optuna(storage: ServiceStorage, client: Client) -> None:
    ours = client.submit({**EXTERNAL, "name": "native"})
    path = "/api/v1/studies/native/trials"
    states = ("completed", "pruned", "diverged", "failed")
    given = [{"params": POINT, "state": s, **({"value": 0.5} if s != "failed" else {})} for s in states]
    client.connection.call("POST", path, body={"trials": given})
    lease = client.connection.call("POST", "/api/v1/leases", body={"worker": "w", "study": "native"})["leases"][0]
    reports = [{"token": lease["token"], "step": s, "metrics": {"score": s / 10, "loss": 9}} for s in (1, 2)]
    client.connection.call("POST", "/api/v1/leases/report", body={"worker": "w", "reports": reports})
    study = optuna.load_study(study_name="native", storage=storage)
    trials = study.trials
    assert [t.state.name for t in trials[:4]] == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert trials[0].params == {"lr": 0.001, "units": 3, "hidden": "[100, 50]"}
    assert trials[0].distributions == {
        "lr": FloatDistribution(1e-6, 1e-1, log=True),
        "units": IntDistribution(1, 9),
        "hidden": CategoricalDistribution(("[50]", "[100, 50]", "none")),
    }
    assert trials[0].value == 0.5
    running = trials[lease["trial"]]
    assert running.state is TrialState.RUNNING
    assert running.intermediate_values == {1: 0.1, 2: 0.2}
    assert study.direction is StudyDirection.MAXIMIZE
    assert study.best_trial.number == 0
    finish = {"worker": "w", "results": [{"token": lease["token"], "state": "completed", "value": 0.9}]}
    client.connection.call("POST", "/api/v1/leases/finish", body=finish)
    assert study.best_value == 0.9
    assert study.trials[lease["trial"]].intermediate_values == {1: 0.1, 2: 0.2}
    ours.cancel()
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    with pytest.raises(HpsearchError, match="takes no more trials"):
        study.ask()


def test_optuna_works_on_queued_trials_of_ours(storage: ServiceStorage, client: Client) -> None:
    ours = client.submit({**EXTERNAL, "name": "worked"})
    (number,) = ours.enqueue(POINT)
    study = optuna.load_study(study_name="worked", storage=storage)
    trial = study.ask()
    assert trial.number == number
    assert trial.suggest_float("lr", 1e-6, 1e-1, log=True) == 0.001
    study.tell(trial, 0.7)
    assert (ours.trial(number)["state"], ours.trial(number)["value"]) == ("completed", 0.7)
    assert ours.trial(number)["params"] == POINT


def test_a_study_that_our_workers_train_is_read_only(storage: ServiceStorage, client: Client) -> None:
    train = {"kind": "train", "data": {"source": "digits"}, "model": {"kind": "linear"}}
    space = {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
    document = {
        "name": "trained",
        "objective": train,
        "space": space,
        "stages": [{"name": "s", "trials": 2, "epochs": 1}],
    }
    client.submit({**document, "metric": {"name": "val_accuracy", "direction": "maximize"}, "preflight": False})
    lease = client.connection.call("POST", "/api/v1/leases", body={"worker": "w"})["leases"][0]
    study = optuna.load_study(study_name="trained", storage=storage)
    assert study.trials[lease["trial"]].params["lr"] == lease["params"]["lr"]
    with pytest.raises(HpsearchError, match="trained by workers"):
        study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(HpsearchError, match="read it only"):
        study.tell(lease["trial"], 1.0)
    client.study("trained").delete()


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "exp/α lr", "-", "x" * 300, "🙂", "a b", "..", "%2F?&#"])
def test_any_name_works(storage: ServiceStorage, other: ServiceStorage, client: Client, name: str) -> None:
    study = optuna.create_study(study_name=name, storage=storage)
    study.tell(study.ask(), 1.0)
    assert optuna.load_study(study_name=name, storage=other).best_value == 1.0
    with pytest.raises(DuplicatedStudyError):
        optuna.create_study(study_name=name, storage=other)
    assert name in [s.study_name for s in other.get_all_studies()]
    ours = next(s for s in client.studies() if s["spec"]["tags"] == ["optuna"])
    assert client.study(ours["name"]).read()["best"]["value"] == 1.0
    optuna.delete_study(study_name=name, storage=storage)
    with pytest.raises(KeyError):
        optuna.load_study(study_name=name, storage=other)


def test_a_name_of_ours_is_taken(storage: ServiceStorage, client: Client) -> None:
    client.submit({**EXTERNAL, "name": "taken"})
    with pytest.raises(DuplicatedStudyError, match="taken"):
        optuna.create_study(study_name="taken", storage=storage)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 513])
def test_names_that_no_database_keeps(storage: ServiceStorage, name: str) -> None:
    with pytest.raises((ValueError, UnicodeError)):
        storage.create_new_study([StudyDirection.MINIMIZE], name)


# -- writes that wait, and several processes ------------------------------------------------------------------------


def eventually(look: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_others_see_reports_soon(storage: ServiceStorage, other: ServiceStorage) -> None:
    study = optuna.create_study(study_name="seen", storage=storage)
    study.tell(study.ask({"x": FloatDistribution(0, 1)}), 0.0)
    trial = study.ask({"x": FloatDistribution(0, 1)})
    trial.report(0.25, 1)
    trial.set_user_attr("k", [1])
    theirs = optuna.load_study(study_name="seen", storage=other)
    eventually(lambda: theirs.trials[1].intermediate_values == {1: 0.25})
    assert theirs.trials[1].user_attrs == {"k": [1]}
    assert theirs.trials[1].params == trial.params


def test_what_waits_is_seen_by_its_own_process(storage: ServiceStorage, other: ServiceStorage) -> None:
    study = optuna.create_study(study_name="waits", storage=storage)
    study.tell(study.ask({"x": FloatDistribution(0, 1)}), 0.0)
    optuna.load_study(study_name="waits", storage=other).ask()
    storage.flush()
    trial = study.ask({"x": FloatDistribution(0, 1)})
    trial.report(0.5, 3)
    for states in ((TrialState.COMPLETE,), (TrialState.WAITING,), None):
        study.get_trials(deepcopy=False, states=states)
        found = storage.get_trial(trial._trial_id)
        assert (found.params, found.intermediate_values) == (trial.params, {3: 0.5})
    assert [t.intermediate_values for t in study.trials] == [{}, {}, {3: 0.5}]


def test_what_waits_is_sent_when_the_process_ends(server: str, other: ServiceStorage) -> None:
    code = (
        "import sys, optuna; from hpsearch.integrations.optuna import ServiceStorage\n"
        "storage = ServiceStorage(sys.argv[1], linger_seconds=60)\n"
        "study = optuna.create_study(study_name='ended', storage=storage)\n"
        "trial = study.ask(); trial.report(0.5, 7)\n"
    )
    subprocess.run([sys.executable, "-c", code, server], check=True, timeout=60)
    assert optuna.load_study(study_name="ended", storage=other).trials[0].intermediate_values == {7: 0.5}


def test_a_trial_that_somebody_else_ended(storage: ServiceStorage, other: ServiceStorage, client: Client) -> None:
    study = optuna.create_study(study_name="stolen", storage=storage)
    trial, second, third = study.ask(), study.ask(), study.ask()
    optuna.load_study(study_name="stolen", storage=other).tell(trial.number, state=TrialState.FAIL)
    trial.report(1.0, 1)
    storage.flush()
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(1.0, 2)
    with pytest.raises((UpdateFinishedTrialError, ValueError)):
        study.tell(trial, 1.0)
    client.study("stolen").cancel()
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(second._trial_id, TrialState.COMPLETE, [1.0])
    time.sleep(1.1)  # by now it is asked for anew
    assert study.tell(third, 1.0, skip_if_finished=True).state is TrialState.FAIL


def test_a_trial_of_others_that_this_process_ends(storage: ServiceStorage, other: ServiceStorage) -> None:
    study = optuna.create_study(study_name="told", storage=storage)
    trial = study.ask()
    theirs = optuna.load_study(study_name="told", storage=other)
    assert theirs.trials[0].state is TrialState.RUNNING
    trial.report(0.5, 1)
    storage.flush()
    other.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    for found in (other.get_trial(trial._trial_id), theirs.trials[0]):
        assert (found.value, found.intermediate_values) == (2.0, {1: 0.5})


def test_a_waiting_trial_is_started_once(server: str, storage: ServiceStorage) -> None:
    study = optuna.create_study(study_name="once", storage=storage)
    for i in range(12):
        study.enqueue_trial({"x": i / 12})
    taken: list[float] = []

    def work() -> None:
        mine = ServiceStorage(server)
        theirs = optuna.load_study(study_name="once", storage=mine)
        for _ in range(3):
            trial = theirs.ask()
            taken.append(trial.suggest_float("x", 0, 1))
            theirs.tell(trial, 0.0)
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [i / 12 for i in range(12)]
    assert len(study.trials) == 12


def test_processes_share_a_study(server: str, storage: ServiceStorage) -> None:
    study = optuna.create_study(study_name="shared", storage=storage)
    code = (
        "import sys, optuna; from hpsearch.integrations.optuna import ServiceStorage\n"
        "study = optuna.load_study(study_name='shared', storage=ServiceStorage(sys.argv[1]))\n"
        "study.optimize(lambda t: t.suggest_float('x', 0, 1), n_trials=10)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, server]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0] * 3
    trials = study.trials
    assert [t.number for t in trials] == list(range(30))
    assert all(t.state is TrialState.COMPLETE and t.value == t.params["x"] for t in trials)


def test_threads_share_a_storage(storage: ServiceStorage) -> None:
    study = optuna.create_study(study_name="threads", storage=storage)
    study.optimize(objective, n_trials=24, n_jobs=4)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 24
    assert all(len(t.intermediate_values) == 4 for t in study.trials)


def test_use_after_fork(server: str, storage: ServiceStorage) -> None:
    code = (
        "import os, sys, optuna; from hpsearch.integrations.optuna import ServiceStorage\n"
        "storage = ServiceStorage(sys.argv[1], linger_seconds=60)\n"
        "study = optuna.create_study(study_name='forked', storage=storage)\n"
        "mine = study.ask(); mine.report(1.0, 1)\n"
        "child = os.fork()\n"
        "trial = study.ask() if child == 0 else mine\n"
        "trial.report(2.0, 2); study.tell(trial, float(child == 0))\n"
        "if child: assert os.waitpid(child, 0)[1] == 0; study.tell(study.ask(), 5.0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, server], check=True, timeout=60)
    trials = optuna.load_study(study_name="forked", storage=storage).trials
    assert sorted((t.value, tuple(t.intermediate_values)) for t in trials) == [(0.0, (1, 2)), (1.0, (2,)), (5.0, ())]


def test_a_request_that_comes_again_changes_nothing(server: str, storage: ServiceStorage) -> None:
    backend = HttpBackend(server, None, 0)
    study = backend.create_study("again", ["minimize"], "key-of-study")
    assert backend.create_study("again", ["minimize"], "key-of-study") == study
    made = backend.create_trial(study["id"], None, (None, None), "key-of-trial")
    assert backend.create_trial(study["id"], None, (None, None), "key-of-trial")["trial"] == made["trial"]
    end: Patch = {"trial": made["trial"], "state": "COMPLETE", "values": [1.0], "key": "key-of-end"}
    assert [backend.apply([end])[0]["outcome"] for _ in range(2)] == ["applied"] * 2
    end["key"] = "another-key"
    assert backend.apply([end])[0]["outcome"] == "finished"
    backend.close()
    assert [t.value for t in optuna.load_study(study_name="again", storage=storage).trials] == [1.0]


# -- heartbeats, retries, artifacts ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage")
def test_stale_trials_are_failed_and_retried(server: str) -> None:
    retry = RetryHeartbeatStaleTrialCallback(max_retry=1)
    storage = ServiceStorage(server, heartbeat_interval=1, grace_period=1, heartbeat_stale_trial_callback=retry)
    study = optuna.create_study(study_name="stale", storage=storage)
    trial = study.ask({"x": FloatDistribution(0, 1)})
    storage.record_heartbeat(trial._trial_id)
    fail_stale_trials(study)
    assert study.trials[0].state is TrialState.RUNNING
    time.sleep(1.2)
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
