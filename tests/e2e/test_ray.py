"""Workers on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpsearch
from hpsearch.client import Client, StudyHandle
from processes import House, Process, eventually, finished_events
from ray_nodes import Nodes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'hpsearch[ray]'"
)

OBJECTIVE = """
import time
from pathlib import Path

def objective(trial):
    at = trial.checkpoint_dir / "epoch"
    first = int(at.read_text()) if at.exists() else 0
    for epoch in range(first + 1, trial.epochs + 1):
        time.sleep({seconds})
        with Path(__file__).with_name("ran").open("a") as ran:
            ran.write(f"{{trial.number}} {{epoch}}\\n")
        at.write_text(str(epoch))
        trial.report(epoch, loss=1 / epoch)
"""
EPOCHS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    yield cluster
    sys.stderr.write(cluster.client_logs())  # pytest shows it where the test has failed


@contextlib.contextmanager
def added(nodes: Nodes, **resources: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Nodes for one test: name → id."""
    try:
        yield {name: nodes.add(name, **given) for name, given in resources.items()}
    finally:
        for name in resources:
            nodes.kill(name)


def submit(client: Client, folder: Path, *, trials: int, seconds: float = 0.15, name: str = "mine") -> StudyHandle:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(OBJECTIVE.format(seconds=seconds))
    return client.submit(
        {
            "name": name,
            "objective": {"kind": "python", "entrypoint": f"{name}:objective"},
            "metric": {"name": "loss", "direction": "minimize"},
            "space": {"lr": {"type": "float", "low": 0.1, "high": 1.0}},
            "stages": [{"name": "only", "trials": trials, "epochs": EPOCHS}],
        }
    )


def start(house: House, client: Client, on: str, *options: str, **environment: str) -> Process:
    given = ["--server", client.server, "--on", on, "--name", "fleet", *options]
    return house.run("worker", *given, env={"RAY_USAGE_STATS_ENABLED": "0", **environment})


def refused(house: House, nodes: Nodes, *options: str, **environment: str) -> tuple[int, str]:
    process = house.run("worker", *options, env={**nodes.environment, **environment})
    return process.popen.wait(60), eventually(lambda: process.output)


def holder(client: Client, node: str) -> str | None:
    """The worker on a node that holds a trial."""
    return next((w["name"] for w in client.workers() if w["info"]["node"] == node and w["holds"]), None)


def test_a_node_is_lost_and_no_trial(house: House, nodes: Nodes) -> None:
    _, client = house.serve(f"sqlite:///{house.folder}/store.db", "--lease-seconds", "5")
    study = submit(client, house.folder, trials=8, seconds=0.3)
    keep = ["--checkpoints", str(house.folder / "checkpoints"), "--checkpoint-seconds", "0"]
    with added(nodes, a={}, b={}) as ids:
        fleet = start(house, client, nodes.url, "--min", "2", "--max", "2", "--allow", "mine:*", *keep)
        victim = eventually(lambda: holder(client, ids["a"]), 60, lambda: fleet.output)
        eventually(lambda: [t for t in study.trials(state="running") if t["worker"] == victim and t["step"] >= 2])
        nodes.kill("a")
        (hit,) = [t for t in study.trials(state="running") if t["worker"] == victim]
        ids["a"] = nodes.add("a")
        study.wait(timeout_seconds=60)

        trials = study.trials()
        assert [t["state"] for t in trials] == ["completed"] * 8
        assert finished_events(study) == dict.fromkeys(range(8), 1)
        attempts = study.trial(hit["number"])["attempts"]
        assert [a["state"] for a in attempts] == ["lost", "finished"]
        assert sum(t["n_attempts"] for t in trials) == 9, "no other trial was taken from its worker"
        ran = Counter((house.folder / "ran").read_text().splitlines())
        assert set(ran) == {f"{number} {epoch}" for number in range(8) for epoch in range(1, EPOCHS + 1)}
        repeated = Counter(line.split()[0] for line, n in ran.items() for _ in range(n - 1))
        assert max(repeated.values(), default=0) <= 1, "at most one epoch of each trial is trained again"
        again = eventually(
            lambda: [w for w in client.workers() if w["name"] == victim and w["info"]["node"] == ids["a"]], 60
        )
        assert len(again) == 1, "Ray has started the worker again, on the node that is new"
        assert fleet.stop() == 0
    assert re.findall(r"^(\d+) workers?\b", fleet.output, re.MULTILINE) == ["2"]


def test_their_number_follows_the_queue(house: House, nodes: Nodes) -> None:
    _, client = house.serve(f"sqlite:///{house.folder}/store.db")
    with added(nodes, wide={"cpus": 3}):
        limits = ("--min", "0", "--max", "2", "--idle-seconds", "1.5", "--allow", "*")
        fleet = start(house, client, "auto", *limits, **nodes.environment)
        study = submit(client, house.folder, trials=6)
        study.wait(timeout_seconds=90)
        assert {t["worker"] for t in study.trials()} >= {"fleet/0", "fleet/1"}
        fleet.wait_for(r"2 workers; \d+ to do\n(.*\n)*0 workers\n", 30)
        assert eventually(lambda: all(w["holds"] == 0 for w in client.workers()))

        time.sleep(3)  # the last request of a process that Ray is just killing may still be waiting at the server
        study = submit(client, house.folder, trials=2, seconds=60, name="long")
        held = eventually(lambda: study.trials(state="running"), 60, lambda: fleet.output)
        began = time.monotonic()
        assert fleet.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 15
        assert study.trials(state="running") == [], "what they held was given back"
        assert study.trial(held[0]["number"])["attempts"][0]["state"] == "released"
    assert "Traceback" not in fleet.output


def test_nodes_that_are_not_as_the_others(house: House, nodes: Nodes) -> None:
    _, client = house.serve(f"sqlite:///{house.folder}/store.db")
    code, old = house.folder / "code", house.folder / "old"
    shutil.copytree(Path(hpsearch.__file__).parent, old / "hpsearch", ignore=shutil.ignore_patterns("__pycache__"))
    (old / "hpsearch" / "_version.py").write_text('__version__ = "0.0.1"\n')
    study = submit(client, code, trials=2, seconds=0.05, name="only_there")
    with added(nodes, bare={}) as ids:
        options = ("--on", "auto", "--server", client.server, "--allow", "only_there:*")
        status, said = refused(house, nodes, *options)
        assert status == 2
        assert f"({ids['bare'][:8]}) can run no worker: it has not the code of only_there:*" in said
        assert "install the code on each" in said
        with added(nodes, old={"PYTHONPATH": str(old)}, good={"PYTHONPATH": str(code)}) as more:
            fleet = start(house, client, "auto", "--min", "3", "--allow", "only_there:*", **nodes.environment)
            study.wait(timeout_seconds=90)
            fleet.wait_for(rf"{ids['bare'][:8]}\) can run no worker: it has not the code of only_there", 60)
            fleet.wait_for(rf"{more['old'][:8]}\) can run no worker: it has hpsearch 0.0.1, .*: install the same", 60)
            assert {w["info"]["node"] for w in client.workers()} == {more["good"]}
            assert fleet.stop() == 0


def test_what_cannot_be(house: House, nodes: Nodes) -> None:
    blocked = house.folder / "blocked"
    (blocked / "ray").mkdir(parents=True)
    (blocked / "ray" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')\n")
    status, said = refused(house, nodes, "--on", "auto", PYTHONPATH=str(blocked))
    assert (status, said) == (2, "hpsearch: ray is not installed: pip install 'hpsearch[ray]' for --on\n")

    status, said = refused(house, nodes, "--on", "ray://127.0.0.1:1")
    assert status == 3
    assert "the Ray cluster ray://127.0.0.1:1 cannot be reached (" in said
    assert "ray start --head" in said

    status, said = refused(house, nodes, "--min", "2")
    assert (status, said) == (2, "hpsearch: --min is for workers on a Ray cluster: say which with --on\n")
    status, said = refused(house, nodes, "--on", "auto", "--device", "cuda:1")
    assert status == 2
    assert "--device cuda:1: Ray gives each worker its device" in said

    with added(nodes, gpu={"cpus": 4, "gpus": 1}):
        status, said = refused(house, nodes, "--on", "auto", "--min", "3", "--gpus", "0.5")
        assert status == 2
        assert "--min 3 needs 3 × 1 CPU and 0.5 GPU; the cluster has 4 CPU and 1 GPU" in said
        assert "room for 2: lower --min, --cpus or --gpus, or add nodes" in said
        if not Path("/dev/nvidiactl").exists():
            status, said = refused(house, nodes, "--on", "auto", "--min", "2", "--gpus", "0.5")
            assert status == 2
            assert "can run no worker: torch does not see the GPU that Ray gave it: install torch for CUDA" in said
        status, said = refused(house, nodes, "--on", "auto", "--cpus", "8")
        assert status == 2
        assert "--min 1 needs 1 × 8 CPU; the cluster has 4 CPU and 1 GPU" in said


@pytest.mark.parametrize(("n", "status"), [(1, 2), (3, 3)])
def test_a_cluster_fails_to_start_a_clients_server(house: House, nodes: Nodes, n: int, status: int) -> None:
    with nodes.without_client_servers(n):
        options = ("--on", nodes.url, "--cpus", "8")
        found, said = refused(house, nodes, *options, RAY_CLIENT_RECONNECT_GRACE_PERIOD="1")
    assert found == status, said
    again = "did not start this client's server; once more: FileNotFoundError"
    assert said.count(again) == min(n, 2)
    if n < 3:
        assert "--min 1 needs 1 × 8 CPU; the cluster has 0 CPU" in said
    else:
        assert f"the Ray cluster {nodes.url} cannot be reached (Initialization failure from server:" in said


def test_no_cluster_on_this_machine(house: House) -> None:
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    process = house.run("worker", "--on", "auto", env=environment)
    assert process.popen.wait(60) == 3, process.output
    assert "the Ray cluster 127.0.0.1:1 cannot be reached (" in process.output
