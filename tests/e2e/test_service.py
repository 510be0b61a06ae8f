"""A study end to end: a real server process, real worker processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import Any

import httpx2
import pytest

from hpsearch.client import Client, StudyHandle
from hpsearch.errors import ServerRefused, ServerUnreachable
from processes import House, digits, eventually, finished_events


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


def long_study() -> dict[str, Any]:
    """Trials long enough to be hit in the middle: some tenths of a second each."""
    objective = {
        "kind": "train",
        "data": {"source": "digits"},
        "model": {"kind": "mlp", "hidden": [100, 100]},
        "batch_size": 10,
    }
    return digits(objective=objective, stages=[{"name": "coarse", "trials": 16, "epochs": 12}])


def running_in_the_middle(study: StudyHandle, worker: str) -> list[dict[str, Any]]:
    return [t for t in study.trials(state="running") if t["worker"] == worker and t["step"] >= 1]


def test_a_killed_workers_trials_are_finished_exactly_once(house: House, store_url: str) -> None:
    _, client = house.serve(store_url, "--lease-seconds", "2")
    study = client.submit(long_study())
    victim = house.worker(client, "victim", "--pack", "2")
    other = house.worker(client, "other", "--pack", "2")
    hit = eventually(lambda: running_in_the_middle(study, "victim"), explain=lambda: victim.output)
    victim.stop(signal.SIGKILL)
    study.wait(timeout_seconds=120)

    trials = study.trials()
    assert [t["number"] for t in trials] == list(range(16))
    assert {t["state"] for t in trials} == {"completed"}
    assert finished_events(study) == dict.fromkeys(range(16), 1)
    attempts = study.trial(hit[0]["number"])["attempts"]
    assert [a["state"] for a in attempts] == ["lost", "finished"]
    assert [a["worker"] for a in attempts] == ["victim", "other"]
    assert sum(t["n_attempts"] for t in trials) - 16 <= 2  # no more than what the victim held
    steps = [row["step"] for row in study.metrics(hit[0]["number"])]
    assert steps == list(range(1, 13))
    assert other.stop() == 0


def test_a_retried_trial_goes_on_from_its_checkpoint(house: House, sqlite_url: str) -> None:
    """The retry must come to the numbers of a trial that was never lost, and must not begin at epoch 1 again."""
    env = {"HPSEARCH_CHECKPOINTS": str(house.folder / "checkpoints")}
    _, client = house.serve(sqlite_url, "--lease-seconds", "2")
    stages = [{"name": "only", "trials": 2, "epochs": 40}]
    study = client.submit({**long_study(), "stages": stages, "preflight": False})
    options = ("--pack", "2", "--checkpoint-seconds", "0.5")
    first = house.worker(client, "first", *options, env=env)
    eventually(lambda: [t for t in study.trials() if t["step"] >= 8], 60, lambda: first.output)
    first.stop(signal.SIGKILL)
    reached = max(t["step"] for t in study.trials())
    second = house.worker(client, "second", *options, env=env)
    fewest = reached
    while study.state == "running":
        fewest = min(fewest, len(study.metrics(0)))
        time.sleep(0.02)
    assert second.stop() == 0
    assert 1 < fewest <= reached < 40, "a trial that began anew would have gone back to one step"
    for trial in study.trials():
        assert trial["n_attempts"] == 2
        assert [row["step"] for row in study.metrics(trial["number"])] == list(range(1, 41))
    assert list(house.folder.glob("checkpoints/*/*.ckpt")) == []
    replay = house.run("replay", study.name, "0", "--store", sqlite_url, "--json")
    assert replay.popen.wait(100) == 0, replay.output
    last = json.loads(replay.output)["steps"][-1]
    assert last["replayed"] == pytest.approx(last["recorded"], rel=1e-3)


def test_results_survive_a_killed_server(house: House, store_url: str) -> None:
    server, client = house.serve(store_url)
    study = client.submit(long_study())
    port = int(client.server.rsplit(":", 1)[1])
    worker = house.worker(client, "w", "--pack", "4")
    eventually(lambda: running_in_the_middle(study, "w"), explain=lambda: worker.output)
    server.stop(signal.SIGKILL)
    time.sleep(2)
    house.serve(store_url, port=port)
    study.wait(timeout_seconds=120)
    trials = study.trials()
    assert {t["state"] for t in trials} == {"completed"}
    assert {t["n_attempts"] for t in trials} == {1}  # nothing was trained twice
    assert finished_events(study) == dict.fromkeys(range(16), 1)
    assert {len(study.metrics(t["number"])) for t in trials} == {12}
    assert worker.stop() == 0


def test_a_worker_told_to_stop_gives_its_trials_back(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    study = client.submit(long_study())
    worker = house.worker(client, "w", "--pack", "2")
    held = eventually(lambda: running_in_the_middle(study, "w"), explain=lambda: worker.output)
    began = time.monotonic()
    assert worker.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    for number in (t["number"] for t in held):
        trial = study.trial(number)
        assert trial["attempts"][0]["state"] in ("released", "finished")
        assert trial["state"] in ("queued", "completed")
    assert study.trials(state="running") == []


def test_an_idle_worker_told_to_stop_ends_at_once(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    worker = house.worker(client, "w")
    eventually(client.workers, explain=lambda: worker.output)
    began = time.monotonic()
    assert worker.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 3


def test_a_supervised_worker_that_dies_is_started_again(house: House, sqlite_url: str) -> None:
    server, client = house.serve(sqlite_url, "--workers", "1")
    study = client.submit(long_study())
    worker = eventually(client.workers, explain=lambda: server.output)[0]
    eventually(lambda: running_in_the_middle(study, worker["name"]), explain=lambda: server.output)
    os.kill(worker["info"]["pid"], signal.SIGKILL)
    study.wait(timeout_seconds=120)
    assert finished_events(study) == dict.fromkeys(range(16), 1)
    (same,) = client.workers()
    assert same["name"] == worker["name"]
    assert same["info"]["pid"] != worker["info"]["pid"]
    assert "lost" in {a["state"] for t in study.trials() for a in study.trial(t["number"])["attempts"]}
    assert server.stop() == 0
    eventually(lambda: not _alive(same["info"]["pid"]))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_params_do_not_depend_on_the_workers(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    house.worker(client, "a", "--pack", "1")
    house.worker(client, "b", "--pack", "3")
    stages = [{"name": "coarse", "trials": 10, "epochs": 2}]
    first = client.submit(digits(name="first", stages=stages)).wait(timeout_seconds=60).trials()
    second = client.submit(digits(name="second", stages=stages)).wait(timeout_seconds=60).trials()
    assert [t["params"] for t in first] == [t["params"] for t in second]
    assert [t["value"] for t in first] == pytest.approx([t["value"] for t in second], abs=1e-6)


def test_events_resume_without_a_gap(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    house.worker(client, "w")
    study = client.submit(digits())
    study.wait(timeout_seconds=60)
    last = study.read()["last_event"]

    def read(after: int) -> list[int]:
        seen = []
        for seq, _, _ in study.events(after=after):
            seen.append(seq)
            if seq == last:
                break
        return seen

    assert read(0) == list(range(1, last + 1))
    assert read(last - 3) == [last - 2, last - 1, last]
    url = f"{client.server}/api/v1/studies/digits/events"
    with httpx2.stream("GET", url, headers={"Last-Event-ID": str(last - 1)}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert next(line for line in response.iter_lines() if line.startswith("id:")) == f"id: {last}"


def test_waiting_streams_and_polls_do_not_block_others_nor_the_end(house: House, sqlite_url: str) -> None:
    server, client = house.serve(sqlite_url)
    study = client.submit(digits())

    def listen() -> None:
        other = Client(client.server)
        with contextlib.suppress(ServerUnreachable), contextlib.closing(other):
            for _ in StudyHandle(other.connection, study.name).events(after=10**6):
                pass

    def poll(name: str) -> None:
        body = {"worker": name, "kinds": ["external"], "wait_seconds": 30}
        with contextlib.suppress(ServerUnreachable), contextlib.closing(Client(client.server)) as other:
            other.connection.call("POST", "/api/v1/leases", body=body, timeout_seconds=40)

    waiting = [threading.Thread(target=listen) for _ in range(60)]
    waiting += [threading.Thread(target=poll, args=(f"w{i}",)) for i in range(60)]
    for thread in waiting:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    study.read()
    assert time.monotonic() - began < 2
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 8
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()


def test_the_client(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    house.worker(client, "w")
    study = client.submit(digits())
    study.wait(timeout_seconds=60)
    assert study.best is not None
    assert study.best["value"] > 0.5
    assert isinstance(study.flags, list)
    frame = study.trials_dataframe()
    assert list(frame["number"]) == list(range(16))
    assert {"params.lr", "params.reg", "value", "state"} <= set(frame.columns)
    assert frame["value"].max() == study.best["value"]
    assert study.figure("axis").data
    assert client.study("digits").state == "completed"
    assert [s["name"] for s in client.studies()] == ["digits"]
    with pytest.raises(ServerRefused, match="there is no study 'nope'"):
        client.study("nope")
    with pytest.raises(ServerRefused, match="'digits'"):
        client.submit(digits(seed=9))
    study.delete()
    assert client.studies() == []
