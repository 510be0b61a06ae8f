"""The HTTP interface over a real SQLite store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch_api.app import create_app
from hpsearch_api.lease_models import LeaseView
from hpsearch_api.security import Limits
from hpsearch_storage import open_store

STUDY: dict[str, Any] = {
    "name": "s",
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {
        "lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True},
        "kind": {"type": "categorical", "choices": ["=a", "b"]},
    },
    "stages": [{"name": "coarse", "trials": 5}],
}


@pytest.fixture
def app_client(tmp_path: Path) -> Iterator[TestClient]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", exclusive=True)
    app = create_app(Coordinator(store))
    with TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        yield client
    store.close()


@pytest.fixture
def client(app_client: TestClient) -> TestClient:
    assert app_client.post("/api/v1/studies", json=STUDY).status_code == 201
    return app_client


def lease(client: TestClient, capacity: int = 1, worker: str = "w") -> list[dict[str, Any]]:
    answer = client.post("/api/v1/leases", json={"worker": worker, "capacity": capacity, "study": "s"})
    assert answer.status_code == 200, answer.text
    leases: list[dict[str, Any]] = answer.json()["leases"]
    return leases


def finish(client: TestClient, token: str, value: Any, state: str = "completed", **more: Any) -> dict[str, Any]:
    result = {"token": token, "state": state, "value": value, **more}
    answer = client.post("/api/v1/leases/finish", json={"worker": "w", "results": [result]})
    assert answer.status_code == 200, answer.text
    outcome: dict[str, Any] = answer.json()["outcomes"][0]
    return outcome


def finish_all(client: TestClient) -> None:
    for i, item in enumerate(lease(client, 5)):
        assert finish(client, item["token"], i / 10)["accepted"]


def assert_problem(answer: Any, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    for word in words:
        assert word in problem["detail"]
    return problem


def test_the_queue_says_what_waits(client: TestClient) -> None:
    def waiting(**params: Any) -> tuple[int, int]:
        answer = client.get("/api/v1/leases", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["waiting"], answer.json()["checks"]

    assert waiting() == (0, 0), "external studies count where they are named alone"
    assert waiting(study="s") == (5, 0)
    assert waiting(study="s", kinds=["train"]) == (0, 0)
    lease(client, 2)
    assert waiting(study="s", kinds=["train", "external"]) == (3, 0)
    objective = {"kind": "command", "argv": ["true"]}
    assert client.post("/api/v1/studies", json=STUDY | {"name": "c", "objective": objective}).status_code == 201
    assert waiting() == waiting(kinds=["command"]) == (0, 1)
    assert waiting(kinds=["train"]) == (0, 0)
    assert_problem(client.get("/api/v1/leases", params={"study": "none"}), 404, "'none'")


def test_submitting_answers_with_the_study_and_where_it_is(app_client: TestClient) -> None:
    answer = app_client.post("/api/v1/studies", json=STUDY)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/v1/studies/s"
    study = answer.json()
    assert study["state"] == "running"
    assert study["stage"] == "coarse"
    assert study["spec"]["seed"] == 0
    assert study["progress"] == {"finished": 0, "planned": 5, "fraction": 0.0}
    assert study["best"] is None
    assert study["eta_seconds"] is None
    assert app_client.get("/api/v1/studies/s").json()["name"] == "s"


def test_yaml_is_taken_as_json_is(app_client: TestClient) -> None:
    text = "name: y\nobjective: {kind: external}\nmetric: {name: m, direction: minimize}\n"
    text += "space: {lr: {type: float, low: 1e-6, high: 1e-3, log: true}}\nstages: [{name: a, trials: 2}]\n"
    headers = {"Content-Type": "application/yaml"}
    assert app_client.post("/api/v1/studies", content=text, headers=headers).status_code == 201


def test_the_same_study_again_is_found_and_another_of_that_name_refused(client: TestClient) -> None:
    assert client.post("/api/v1/studies", json=STUDY).status_code == 200
    assert_problem(client.post("/api/v1/studies", json={**STUDY, "seed": 1}), 409, "'s'")
    key = {"Idempotency-Key": "k1"}
    assert client.post("/api/v1/studies", json={**STUDY, "name": "t"}, headers=key).status_code == 201
    assert client.post("/api/v1/studies", json={**STUDY, "name": "t"}, headers=key).status_code == 200
    assert_problem(client.post("/api/v1/studies", json={**STUDY, "name": "u"}, headers=key), 409)
    assert [s["name"] for s in client.get("/api/v1/studies").json()["items"]] == ["t", "s"]


def test_a_wrong_study_is_refused_with_every_place(app_client: TestClient) -> None:
    wrong = {**STUDY, "seeds": 1, "metric": {"name": "score", "direction": "up"}}
    problem = assert_problem(app_client.post("/api/v1/studies", json=wrong), 422)
    assert {e["loc"] for e in problem["errors"]} == {"seeds"}
    assert "did you mean 'seed'" in problem["errors"][0]["msg"]
    for body in (b"\xff\xfe", b"{", b"", b"[1]", b'{"name": "a\\ud800"}', b"null", b"1e999", b'{"a": {"a": [}'):
        assert_problem(app_client.post("/api/v1/studies", content=body), 422)
    assert app_client.get("/api/v1/studies").json()["items"] == []


def test_a_trial_is_leased_reported_and_finished(client: TestClient) -> None:
    (item,) = lease(client)
    assert item["trial"] == 0
    assert item["attempt"] == 1
    assert item["epochs"] == 1
    assert item["objective"] == {"kind": "external"}
    assert item["metric"] == {"name": "score", "direction": "maximize"}
    assert set(item["params"]) == {"lr", "kind"}
    assert LeaseView.model_validate(item).model_dump(mode="json") == item, "as the interface describes it"
    report = {"token": item["token"], "step": 1, "metrics": {"score": 0.5, "loss": "NaN", "x": "-Infinity"}}
    answer = client.post("/api/v1/leases/report", json={"worker": "w", "reports": [report]})
    assert answer.json() == {"decisions": [{"token": item["token"], "action": "continue", "reason": None}]}
    assert finish(client, item["token"], 0.5) == {"token": item["token"], "accepted": True, "reason": None}
    assert finish(client, item["token"], 0.5)["accepted"]
    trial = client.get("/api/v1/studies/s/trials/0").json()
    assert (trial["state"], trial["value"], trial["step"]) == ("completed", 0.5, 1)
    assert [a["state"] for a in trial["attempts"]] == ["finished"]
    steps = client.get("/api/v1/studies/s/trials/0/metrics").json()["items"]
    assert steps == [{"step": 1, "values": {"score": 0.5, "loss": "NaN", "x": "-Infinity"}}]


def test_results_take_reports_along_and_bring_what_is_next(client: TestClient) -> None:
    (first,) = lease(client)
    reports = [{"token": first["token"], "step": step, "metrics": {"score": 1 / step}} for step in (1, 2)]
    body = {"worker": "w", "results": [{"token": first["token"], "state": "completed"}], "reports": reports}
    answer = client.post("/api/v1/leases/finish", json=body | {"next": {"capacity": 2, "study": "s"}}).json()
    assert answer["outcomes"] == [{"token": first["token"], "accepted": True, "reason": None}]
    assert [each["trial"] for each in answer["next"]["leases"]] == [1, 2]
    trial = client.get("/api/v1/studies/s/trials/0").json()
    assert (trial["value"], trial["step"]) == (0.5, 2)
    again = client.post("/api/v1/leases/finish", json=body | {"next": {"capacity": 2, "study": "s"}}).json()
    assert again == answer | {"next": again["next"]}
    assert [each["token"] for each in again["next"]["leases"]] == [each["token"] for each in answer["next"]["leases"]]
    assert "next" not in client.post("/api/v1/leases/finish", json=body).json(), "it was not asked for"
    gone = client.post("/api/v1/leases/finish", json=body | {"next": {"study": "no such"}}).json()
    assert (gone["outcomes"][0]["accepted"], gone["next"]) == (True, None), "results are kept whatever is next"


def test_who_asks_again_gets_back_what_it_holds(client: TestClient) -> None:
    (item,) = lease(client)
    assert lease(client, 2)[0]["token"] == item["token"]
    other = lease(client, 2, worker="v")
    assert {i["trial"] for i in other}.isdisjoint({0, 1})


def test_a_token_that_was_never_given_changes_nothing(client: TestClient) -> None:
    outcome = finish(client, "nonsense", 1.0)
    assert not outcome["accepted"]
    assert outcome["reason"]
    report = {"token": "nonsense", "step": 1, "metrics": {}}
    answer = client.post("/api/v1/leases/report", json={"worker": "w", "reports": [report]}).json()
    assert answer["decisions"][0]["action"] == "abandon"


def test_a_released_trial_is_handed_out_again(client: TestClient) -> None:
    (item,) = lease(client)
    client.post("/api/v1/leases/release", json={"worker": "w", "tokens": [item["token"]]})
    (again,) = lease(client, worker="v")
    assert (again["trial"], again["attempt"]) == (0, 2)


def test_a_completed_study_has_a_best(client: TestClient) -> None:
    assert_problem(client.get("/api/v1/studies/s/best"), 404)
    finish_all(client)
    best = client.get("/api/v1/studies/s/best").json()
    assert (best["trial"], best["value"], best["stage"]) == (4, 0.4, "coarse")
    study = client.get("/api/v1/studies/s").json()
    assert study["state"] == "completed"
    assert study["counts"]["completed"] == 5
    assert study["progress"]["fraction"] == 1.0
    assert client.get("/api/v1/studies/s/flags").json() == {"items": [], "next": None}
    (stage,) = client.get("/api/v1/studies/s/stages").json()["items"]
    assert (stage["name"], stage["state"], stage["parent"]) == ("coarse", "completed", None)


def test_trials_are_filtered_sorted_and_paged(client: TestClient) -> None:
    finish_all(client)
    url = "/api/v1/studies/s/trials"
    assert [t["number"] for t in client.get(url, params={"sort": "-value"}).json()["items"]] == [4, 3, 2, 1, 0]
    numbers, after = [], None
    while True:
        page = client.get(url, params={"limit": 2, "sort": "-value", **({"after": after} if after else {})}).json()
        numbers.append([t["number"] for t in page["items"]])
        after = page["next"]
        if after is None:
            break
    assert numbers == [[4, 3], [2, 1], [0]]
    assert client.get(url, params={"state": "failed"}).json()["items"] == []
    by_lr = [t["params"]["lr"] for t in client.get(url, params={"sort": "params.lr"}).json()["items"]]
    assert by_lr == sorted(by_lr)
    assert_problem(client.get(url, params={"sort": "nubmer"}), 422, "did you mean 'number'")
    assert_problem(client.get(url, params={"after": "!!"}), 422)
    assert_problem(client.get(url, params={"limit": 0}), 422, "0")
    assert_problem(client.get(url, params={"stage": "none"}), 404)


def test_whole_exports(client: TestClient) -> None:
    finish_all(client)
    url = "/api/v1/studies/s/trials"
    rows = list(csv.DictReader(io.StringIO(client.get(url, headers={"Accept": "text/csv"}).text)))
    assert [row["value"] for row in rows] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert {row["params.kind"] for row in rows} <= {"'=a", "b"}  # no formula for a spreadsheet
    answer = client.get(url, headers={"Accept": "application/vnd.apache.parquet"})
    table = pq.read_table(io.BytesIO(answer.content))
    assert table["value"].to_pylist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert set(table["params.kind"].to_pylist()) <= {"=a", "b"}
    assert table["state"].to_pylist() == ["completed"] * 5


def test_given_trials(client: TestClient) -> None:
    url = "/api/v1/studies/s/trials"
    params = {"lr": 0.01, "kind": "b"}
    answer = client.post(url, json={"trials": [{"params": params}]})
    assert (answer.status_code, answer.json()) == (201, {"numbers": [0]})
    assert lease(client)[0]["params"] == params
    assert client.post(url, json={"trials": [{"params": params, "value": 3.5}]}).json() == {"numbers": [1]}
    assert client.get("/api/v1/studies/s/best").json()["value"] == 3.5
    problem = assert_problem(client.post(url, json={"trials": [{"params": {"lr": 7, "kind": "c"}}]}), 422)
    assert {e["loc"] for e in problem["errors"]} == {"trials.0.params.lr", "trials.0.params.kind"}
    assert_problem(client.post(url, json={"trials": [{"params": params, "state": "completed"}]}), 422, "value")
    assert_problem(client.post(url, json={"trials": [{"params": params}, {"params": params, "value": 1}]}), 422)
    assert_problem(client.post(url, json={"trials": [{"params": params}] * 99}), 409, "room")


def test_pause_resume_cancel_delete(client: TestClient) -> None:
    assert client.post("/api/v1/studies/s/pause").json()["state"] == "paused"
    assert lease(client) == []
    assert client.post("/api/v1/studies/s/resume").json()["state"] == "running"
    assert len(lease(client)) == 1
    assert client.post("/api/v1/studies/s/cancel").json()["counts"]["cancelled"] == 5
    assert_problem(client.post("/api/v1/studies/s/resume"), 409, "cancelled")
    assert client.delete("/api/v1/studies/s").status_code == 204
    assert_problem(client.get("/api/v1/studies/s"), 404, "'s'")
    assert_problem(client.delete("/api/v1/studies/s"), 404)


def test_workers_are_listed(client: TestClient) -> None:
    body = {"worker": "w", "study": "s", "info": {"host": "box", "device": "cpu"}}
    client.post("/api/v1/leases", json=body)
    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert (worker["name"], worker["host"], worker["device"], worker["holds"]) == ("w", "box", "cpu", 1)


def test_a_long_poll_ends_when_nothing_comes(client: TestClient) -> None:
    body = {"worker": "v", "wait_seconds": 0.3}  # external studies are handed out only where they are named
    assert client.post("/api/v1/leases", json=body).json()["leases"] == []


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


def train_study(name: str = "t") -> dict[str, Any]:
    objective = {"kind": "train", "data": {"source": "digits"}}
    metric = {"name": "val_accuracy", "direction": "maximize"}
    return {
        "name": name,
        "objective": objective,
        "metric": metric,
        "space": {"lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True}},
        "stages": [{"name": "coarse", "trials": 5, "epochs": 2}],
    }


def check(client: TestClient, status: str) -> dict[str, Any]:
    body = {"worker": "w", "kinds": ["train", "preflight"]}
    (task,) = client.post("/api/v1/leases", json=body).json()["preflights"]
    found = [{"name": "initial_loss", "status": status, "message": "2.3 is ln C", "numbers": {"loss": "NaN", "n": 10}}]
    checks = {"worker": "w", "token": task["token"], "checks": found}
    assert client.post("/api/v1/studies/t/preflight", json=checks).json() == {"accepted": True}
    return dict(task)


def test_a_study_is_checked_before_it_spends_anything(app_client: TestClient) -> None:
    study = app_client.post("/api/v1/studies", json=train_study()).json()
    assert (study["state"], study["preflight"]) == ("preflight", "waiting")
    assert app_client.post("/api/v1/leases", json={"worker": "v"}).json()["leases"] == []
    task = check(app_client, "warn")
    assert task["objective"]["kind"] == "train"
    assert task["space"] == {"lr": {"type": "float", "low": 1e-6, "high": 1e-1, "log": True}}
    checks = app_client.get("/api/v1/studies/t/preflight").json()
    assert (checks["status"], checks["worker"]) == ("passed", "w")
    assert checks["items"][0]["numbers"] == {"loss": "NaN", "n": 10.0}
    assert app_client.get("/api/v1/studies/t").json()["state"] == "running"
    assert len(app_client.post("/api/v1/leases", json={"worker": "v"}).json()["leases"]) == 1
    assert "ln C" in app_client.get("/studies/t").text


def test_a_failed_check_holds_a_study_until_it_is_resumed(app_client: TestClient) -> None:
    app_client.post("/api/v1/studies", json=train_study())
    check(app_client, "fail")
    study = app_client.get("/api/v1/studies/t").json()
    assert (study["state"], study["preflight"]) == ("preflight", "failed")
    assert "initial_loss: 2.3 is ln C" in study["reason"]
    assert "Start in spite of the checks" in app_client.get("/studies/t").text
    assert app_client.post("/api/v1/studies/t/resume").json()["state"] == "running"
    assert app_client.get("/api/v1/studies/t/preflight").json()["status"] == "overridden"
    stale = {"worker": "w", "token": "nonsense", "checks": []}
    assert app_client.post("/api/v1/studies/t/preflight", json=stale).json() == {"accepted": False}


def test_a_study_may_do_without_checks(app_client: TestClient) -> None:
    study = app_client.post("/api/v1/studies", json={**train_study(), "preflight": False}).json()
    assert (study["state"], study["preflight"]) == ("running", "skipped")


def test_verdicts_are_given_kept_and_found(app_client: TestClient) -> None:
    app_client.post("/api/v1/studies", json={**train_study(), "preflight": False})
    (item,) = app_client.post("/api/v1/leases", json={"worker": "w"}).json()["leases"]
    curve = [(2.30, 2.31, 0.10, 0.11), (0.8, 1.2, 0.75, 0.60), (0.1, 2.2, 0.99, 0.58), (0.01, 3.5, 1.0, 0.55)]
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    reports = [
        {"token": item["token"], "step": step, "metrics": dict(zip(names, values, strict=True))}
        for step, values in enumerate(curve, 1)
    ]
    app_client.post("/api/v1/leases/report", json={"worker": "w", "reports": reports})
    assert finish(app_client, item["token"], 0.55)["accepted"]
    trial = app_client.get("/api/v1/studies/t/trials/0").json()
    assert "overfitting" in [verdict["name"] for verdict in trial["verdicts"]]
    overfitting = next(v for v in trial["verdicts"] if v["name"] == "overfitting")
    assert overfitting["epoch"] in (2, 3)
    assert overfitting["advice"]
    url = "/api/v1/studies/t/trials"
    assert [t["number"] for t in app_client.get(url, params={"verdict": "overfitting"}).json()["items"]] == [0]
    assert app_client.get(url, params={"verdict": "dead_units"}).json()["items"] == []
    assert_problem(app_client.get(url, params={"verdict": "nope"}), 422, "nope")
    assert "overfitting" in app_client.get("/studies/t/trials/0").text
    assert "overfitting" in app_client.get(url, headers={"Accept": "text/csv"}).text


CALLS = [
    "POST /api/v1/studies", "GET /api/v1/studies", "GET /api/v1/studies/{name}", "POST /api/v1/studies/{name}/pause",
    "POST /api/v1/studies/{name}/resume", "POST /api/v1/studies/{name}/cancel", "DELETE /api/v1/studies/{name}",
    "GET /api/v1/studies/{name}/trials", "POST /api/v1/studies/{name}/trials",
    "GET /api/v1/studies/{name}/trials/{number}", "GET /api/v1/studies/{name}/trials/{number}/metrics",
    "GET /api/v1/studies/{name}/stages",
    "GET /api/v1/studies/{name}/preflight", "POST /api/v1/studies/{name}/preflight",
    "GET /api/v1/studies/{name}/flags", "GET /api/v1/studies/{name}/best",
    "GET /api/v1/studies/{name}/figures", "GET /api/v1/studies/{name}/figures/{kind}",
    "GET /api/v1/studies/{name}/events", "POST /api/v1/leases", "POST /api/v1/leases/report",
    "POST /api/v1/leases/finish", "POST /api/v1/leases/release", "GET /api/v1/workers", "GET /healthz", "GET /readyz",
]  # fmt: skip


def test_the_openapi_document_has_every_call_with_an_example(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert set(CALLS) <= described
    body = document["paths"]["/api/v1/studies"]["post"]["requestBody"]["content"]["application/json"]
    assert client.post("/api/v1/studies", json=body["example"]).status_code == 201
    assert client.get("/docs").status_code == 200


def test_other_sites_and_hosts_are_refused_without_a_token(client: TestClient) -> None:
    assert_problem(client.get("/api/v1/studies", headers={"Host": "evil.example"}), 403, "evil.example")
    foreign = {"Origin": "http://evil.example"}
    assert_problem(client.post("/api/v1/studies/s/cancel", headers=foreign), 403, "evil.example")
    assert client.post("/api/v1/studies/s/pause", headers={"Origin": "http://127.0.0.1:8765"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "10.0.0.3"}).status_code == 200


def test_with_a_token_every_request_needs_it(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/b.db")
    with TestClient(create_app(Coordinator(store), token="s3cret"), base_url="http://example:80") as client:
        answer = client.get("/api/v1/studies")
        assert_problem(answer, 401, "token")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        for header in (
            "Bearer wrong",
            "Bearer ",
            "Basic OnMzY3JldA==",
            "Bearer s3cr\u00e9t",
        ):
            refused = client.get("/api/v1/studies", headers={b"Authorization": header.encode()})
            assert_problem(refused, 401)
        assert client.get("/api/v1/studies", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/healthz").status_code == 200
    store.close()


NASTY = [
    "\0",
    "a\0b",
    "\ud800",
    "'; DROP TABLE studies; --",
    "<script>alert(1)</script>",
    "\u202etxt",
    "x" * 5000,
    "%",
    "é",
]


@pytest.mark.parametrize("text", NASTY, ids=lambda text: ascii(text[:20]))
def test_nothing_a_client_sends_breaks_the_server(client: TestClient, text: str) -> None:
    raw = json.dumps(text).encode()
    token = lease(client)[0]["token"].encode()
    bodies = {
        "/api/v1/studies": b'{"name":%s,"notes":%s}' % (raw, raw),
        "/api/v1/leases": b'{"worker":%s,"study":%s,"info":{%s:%s}}' % (raw, raw, raw, raw),
        "/api/v1/leases/report": b'{"worker":%s,"reports":[{"token":"%s","step":1,"metrics":{%s:1}}]}'
        % (raw, token, raw),
        "/api/v1/leases/finish": b'{"worker":"w","results":[{"token":%s,"state":"failed","reason":%s}]}' % (raw, raw),
        "/api/v1/leases/release": b'{"worker":%s,"tokens":[%s]}' % (raw, raw),
        "/api/v1/studies/s/trials": b'{"trials":[{"params":{%s:%s}}]}' % (raw, raw),
    }
    for url, body in bodies.items():
        answer = client.post(url, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (url, answer.text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    for path in ("/api/v1/studies/{}", "/api/v1/studies/{}/trials", "/api/v1/studies/s/figures/{}"):
        assert client.get(path.format(quote(text, safe=""))).status_code < 500
    for params in ({"sort": text}, {"after": text}, {"stage": text}, {"state": text}, {"sort": f"params.{text}"}):
        assert client.get("/api/v1/studies/s/trials", params=params).status_code < 500


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1" * 400, "1e308", "-0.0", "5e-324", "true", "null", '"7"', "[]"]
)
def test_no_number_breaks_the_server(client: TestClient, number: str) -> None:
    token = lease(client)[0]["token"]
    report = f'{{"worker":"w","reports":[{{"token":"{token}",%s}}]}}'
    bodies = {
        "/api/v1/leases/report": report % f'"step":{number}',
        "/api/v1/leases/report?": report % f'"step":1,"metrics":{{"a":{number}}}',
        "/api/v1/leases/finish": f'{{"worker":"w","results":[{{"token":"{token}","state":"pruned","value":{number}}}]}}',  # noqa: E501
        "/api/v1/leases": f'{{"worker":"w","capacity":{number},"wait_seconds":0}}',
        "/api/v1/studies": json.dumps({**STUDY, "name": "n"})[:-1] + f',"seed":{number}}}',
        "/api/v1/studies/s/trials": f'{{"trials":[{{"params":{{"lr":{number},"kind":"b"}},"value":{number}}}]}}',
    }
    for url, body in bodies.items():
        answer = client.post(url, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (url, answer.text)
    assert client.get(f"/api/v1/studies/s/trials/{'9' * 30}").status_code == 422
    assert client.get("/api/v1/studies/s/trials/99").status_code == 404
    assert client.get("/api/v1/studies/s/trials/0").status_code == 200


def test_wrong_methods_paths_and_sizes_are_problems_too(client: TestClient) -> None:
    assert_problem(client.put("/api/v1/studies"), 405)
    assert_problem(client.get("/api/v1/nothing"), 404)
    assert_problem(client.post("/api/v1/studies", content=b"x" * (Limits().body + 1)), 413)
    streamed = (b"x" * 2**20 for _ in range(Limits().body // 2**20 + 1))
    assert_problem(client.post("/api/v1/studies", content=streamed), 413)
    assert_problem(client.post("/api/v1/leases", json={"worker": "w", "capacty": 1}), 422, "did you mean 'capacity'")
    report = {"worker": "w", "reports": [{"token": "t", "stpe": 1}]}
    answer = client.post("/api/v1/leases/report", json=report)
    assert_problem(answer, 422, "reports.0.stpe: there is no such key here")
    assert_problem(client.post("/api/v1/leases", content=b"{"), 422, "not JSON")
