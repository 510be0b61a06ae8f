"""What Optuna's conformance class does not ask: studies made by Optuna are ours, ours are Optuna's, and bad input."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import threading
import time
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpsearch.client import Client
from hpsearch.errors import HpsearchError
from hpsearch.integrations.optuna import ServiceStorage
from hpsearch.integrations.optuna.backend import Patch
from hpsearch.integrations.optuna.service import HttpBackend
from processes import eventually


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


def test_a_trial_that_waited_is_seen_to_run_though_it_was_not_asked_for(
    storage: ServiceStorage, other: ServiceStorage
) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({"x": 0.5})
    theirs = optuna.load_study(study_name="s", storage=other)
    assert [t.state for t in theirs.get_trials()] == [TrialState.WAITING]
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.report(0.25, 1)
    storage.flush()
    assert theirs.get_trials(states=(TrialState.COMPLETE,)) == []  # what runs is left out of what this asks for
    assert theirs.get_trials(states=(TrialState.WAITING,)) == []
    (running,) = theirs.get_trials()
    assert (running.state, running.params, running.intermediate_values) == (TrialState.RUNNING, {"x": 0.5}, {1: 0.25})
    study.tell(trial, 1.0)
    assert [t.value for t in theirs.get_trials(states=(TrialState.COMPLETE,))] == [1.0]


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
