"""Stages, flags and the analysis over HTTP, and from the client and the command line's point of view."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hpsearch.client import StudyHandle
from hpsearch.coordinator import Coordinator
from hpsearch.display import analysis_lines, flag_lines, proposal_lines
from hpsearch_api.app import create_app
from hpsearch_storage import open_store

STUDY: dict[str, Any] = {
    "name": "s",
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {"lr": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True, "hard_high": 1.0}},
    "stages": [
        {"name": "coarse", "trials": 60, "epochs": 2},
        {"name": "confirm", "top": 3, "epochs": 4, "seeds": 2, "advance": "manual"},
    ],
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", exclusive=True)
    app = create_app(Coordinator(store))
    with TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        assert client.post("/api/v1/studies", json=STUDY).status_code == 201
        train(client)
        yield client
    store.close()


def train(client: TestClient) -> None:
    """Evaluate all that is handed out; the best lr is 0.01, past the border."""
    ask = {"worker": "w", "capacity": 64, "study": "s"}
    while leases := client.post("/api/v1/leases", json=ask).json()["leases"]:
        values = [-abs(math.log10(lease["params"]["lr"]) + 2) - 0.01 * lease["seed"] / 2**53 for lease in leases]
        for step in range(1, leases[0]["epochs"] + 1):
            reports = [
                {"token": lease["token"], "step": step, "metrics": {"score": value - 1 / step}}
                for lease, value in zip(leases, values, strict=True)
            ]
            client.post("/api/v1/leases/report", json={"worker": "w", "reports": reports})
        results = [
            {"token": lease["token"], "state": "completed", "value": value}
            for lease, value in zip(leases, values, strict=True)
        ]
        client.post("/api/v1/leases/finish", json={"worker": "w", "results": results})


def stages(client: TestClient) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/api/v1/studies/s/stages").json()
    return answer


def test_proposals_are_listed_with_their_cost_and_opened(client: TestClient) -> None:
    listed = stages(client)
    wider, confirm = listed["proposals"]
    assert (wider["kind"], wider["name"], wider["parent"]) == ("extension", "coarse-wider", "coarse")
    assert (confirm["kind"], confirm["name"], confirm["n_trials"], confirm["n_epochs"]) == ("next", "confirm", 6, 24)
    assert wider["difference"]["lr"]["high"] == [1e-3, wider["space"]["lr"]["high"]]
    text = "\n".join(proposal_lines("s", listed["proposals"]))
    assert "hpsearch open s coarse-wider" in text
    answer = client.post("/api/v1/studies/s/stages", json={"proposal": "coarse-wider", "trials": 9})
    assert answer.status_code == 201
    assert (answer.json()["name"], answer.json()["n_trials"], answer.json()["state"]) == ("coarse-wider", 9, "running")
    assert answer.json()["n_inherited"] > 0
    train(client)
    assert client.get("/api/v1/studies/s").json()["state"] == "paused", "the confirm stage waits again"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"proposal": "finest"}, 422, "no stage 'finest' is proposed"),
        ({}, 422, "several stages are proposed"),
        ({"parent": "nowhere", "trials": 1}, 404, "nowhere"),
        ({"name": "coarse", "trials": 1}, 409, "coarse"),
        ({"space": {"lr": {"high": 10.0}}}, 422, "hard_high"),
        ({"space": {"lr": {"high": "x" * 1000}}}, 422, "lr"),
        ({"space": {"lr": {"low": -1}}}, 422, "log"),
        ({"trials": 10**30}, 422, "trials"),
        ({"epochs": 0, "proposal": "confirm"}, 422, "epochs"),
        ({"what": 1}, 422, "what"),
        ([], 422, ""),
        ({"sampler": {"name": {"a": 1}}}, 422, "sampler"),
        ({"name": "<b>"}, 422, "name"),
    ],
)
def test_what_is_no_stage_is_a_problem_that_says_why(client: TestClient, body: Any, status: int, words: str) -> None:
    answer = client.post("/api/v1/studies/s/stages", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text
    assert len(stages(client)["items"]) == 1


def test_a_flag_is_acknowledged_and_that_is_taken_back(client: TestClient) -> None:
    (flag,) = client.get("/api/v1/studies/s/flags").json()["items"]
    assert (flag["parameter"], flag["side"], flag["verdict"], flag["acknowledged"]) == ("lr", "high", "widen", None)
    body = {"stage": "coarse", "parameter": "lr", "side": "high", "note": "<i>known</i>"}
    answer = client.post("/api/v1/studies/s/flags/acknowledge", json=body)
    assert answer.status_code == 200
    (flag,) = answer.json()["items"]
    assert flag["acknowledged"]["note"] == "<i>known</i>"
    assert "seen" in flag_lines([flag])[0]
    assert [p["name"] for p in stages(client)["proposals"]] == ["confirm"]
    client.post("/api/v1/studies/s/flags/acknowledge", json={**body, "note": None})
    assert len(stages(client)["proposals"]) == 2
    for wrong, status in (({"side": "up"}, 422), ({"stage": "x"}, 404), ({"parameter": "x"}, 404), ({"note": 3}, 422)):
        answer = client.post("/api/v1/studies/s/flags/acknowledge", json={**body, **wrong})
        assert answer.status_code == status, answer.text


def test_the_analysis_says_how_sure_the_winner_is(client: TestClient) -> None:
    client.post("/api/v1/studies/s/resume")
    train(client)
    study = client.get("/api/v1/studies/s").json()
    assert study["state"] == "completed"
    assert study["best"]["n"] == 2
    assert study["best"]["probability_best"] > 0.3
    low, high = study["best"]["interval"]
    assert low < study["best"]["mean"] < high
    analysis = client.get("/api/v1/studies/s/analysis").json()
    assert sum(f["probability_best"] for f in analysis["finalists"]) == pytest.approx(1)
    within = [a for a in analysis["agreements"] if a["stage"] == a["against"] == "coarse"]
    assert within[0]["agreement"]["spearman"] == pytest.approx(1)
    text = "\n".join(analysis_lines(analysis))
    assert "finalist 1" in text
    assert "rank correlation 1.00" in text
    json.dumps(analysis, allow_nan=False)


def test_the_client_reads_and_opens_stages(client: TestClient) -> None:
    class Connection:
        def call(self, method: str, path: str, body: Any = None) -> Any:
            answer = client.request(method, path, json=body)
            assert answer.is_success, answer.text
            return answer.json()

    study = StudyHandle(Connection(), "s")  # type: ignore[arg-type]
    assert [stage["name"] for stage in study.stages] == ["coarse"]
    assert [p["name"] for p in study.proposals] == ["coarse-wider", "confirm"]
    assert study.acknowledge("coarse", "lr", "high", "fine")[0]["acknowledged"]["note"] == "fine"
    assert study.open_stage(name="mine", trials=2, space={"lr": {"low": 1e-4}})["space"]["lr"]["low"] == 1e-4
    assert study.analysis["finalists"] == []
