"""The command line as a user types it, with its exit statuses."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import House, digits


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(digits()))
    return path


def write(spec: Path, **changes: Any) -> Path:
    spec.write_text(yaml.safe_dump(digits(**changes)))
    return spec


def test_run_trains_a_study_and_shows_the_winner(house: House, spec: Path) -> None:
    run = house.run("run", str(spec), "--workers", "2", "--port", "0")
    assert run.popen.wait(120) == 0, run.output
    assert "val_accuracy 0." in run.output
    assert "lr = " in run.output
    assert "hpsearch replay digits" in run.output
    assert "fine" in run.output
    assert "flags" in run.output or "⚑" in run.output
    assert "verdicts: " in run.output
    assert "preflight ✓ " in run.output
    again = house.run("run", str(spec), "--port", "0", "--json")
    assert again.popen.wait(60) == 0
    document = json.loads(again.output)
    assert document["state"] == "completed"
    number = document["best"]["trial"]
    replay = house.run("replay", "digits", str(number), "--json")
    assert replay.popen.wait(60) == 0, replay.output
    last = json.loads(replay.output)["steps"][-1]
    assert last["replayed"]["val_accuracy"] == pytest.approx(document["best"]["value"], abs=1e-6)
    assert last["replayed"] == pytest.approx(last["recorded"], rel=1e-4)


def test_the_test_split_is_read_once_and_logged(house: House, spec: Path) -> None:
    objective = {"kind": "train", "data": {"source": "digits", "test": 200}, "model": {"kind": "linear"}}
    run = house.run("run", str(write(spec, objective=objective)), "--workers", "1", "--port", "0")
    assert run.popen.wait(60) == 0, run.output
    first = house.run("test", "digits", "--json")
    assert first.popen.wait(60) == 0, first.output
    reading = json.loads(first.output)
    assert reading["metrics"]["test_accuracy"] > 0.5
    again = house.run("test", "digits", "--json")
    assert again.popen.wait(60) == 0
    assert json.loads(again.output) == reading
    without = house.run("test", "other")
    assert without.popen.wait(60) == 2


def test_an_interrupted_run_goes_on_where_it_was(house: House, spec: Path) -> None:
    write(spec, stages=[{"name": "coarse", "trials": 40, "epochs": 80}])
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--pack", "1")
    run.wait_for(r"trials, best 0\.", 60)
    assert run.stop(signal.SIGINT) == 130
    assert "the same command goes on from here" in run.output
    again = house.run("run", str(spec), "--workers", "2", "--port", "0", "--json")
    assert again.popen.wait(120) == 0, again.output
    assert json.loads(again.output)["counts"]["completed"] == 40


def test_reading_commands(house: House, spec: Path, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url, "--workers", "1")
    env = {"HPSEARCH_SERVER": client.server}

    def call(*arguments: str, status: int = 0) -> str:
        process = house.run(*arguments, env=env)
        assert process.popen.wait(60) == status, process.output
        return process.output

    assert "no studies yet" in call("status")
    assert "/studies/digits" in call("submit", str(spec))
    client.study("digits").wait(timeout_seconds=60)
    assert "completed" in call("status")
    assert "coarse" in call("status", "digits")
    assert json.loads(call("status", "digits", "--json"))["name"] == "digits"
    assert "lr = " in call("best", "digits")
    assert json.loads(call("best", "digits", "--json"))["value"] > 0.5
    assert call("flags", "digits")
    assert isinstance(json.loads(call("flags", "digits", "--json")), list)
    assert "coarse" in call("stages", "digits")
    assert json.loads(call("stages", "digits", "--json"))["items"][0]["name"] == "coarse"
    assert "from coarse to fine" in call("analysis", "digits")
    assert json.loads(call("analysis", "digits", "--json"))["narrowings"][0]["parent"] == "coarse"
    assert "give low or high" in call("acknowledge", "digits", "lr", "up", status=2)
    assert "--set lr=3" in call("open", "digits", "--set", "lr=3", status=2)
    assert call("export", "digits").startswith("number,stage,state")
    assert len(json.loads(call("export", "digits", "--format", "json"))) == 16
    call("export", "digits", "--format", "parquet", "-o", "out.parquet")
    assert (house.folder / "out.parquet").read_bytes()[:4] == b"PAR1"
    assert "there is no study 'nope'" in call("best", "nope", status=2)
    opened = call("open", "digits", "--trials", "2", "--epochs", "1", "--set", "lr.low=1e-3", "--json")
    assert json.loads(opened)["space"]["lr"]["low"] == 1e-3
    client.study("digits").wait(timeout_seconds=60)
    assert len(client.study("digits").stages) == 3
    call("delete", "digits", "--yes")
    assert "no studies yet" in call("status")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "unknown key 'seeds'; did you mean 'seed'"),
        (
            {"objective": {"kind": "train", "data": {"source": "dgits"}}},
            "objective.data.source: unknown source 'dgits'; did you mean 'digits'",
        ),
        ({"metric": {"name": "accuracy", "direction": "maximize"}}, "metric.name"),
    ],
)
def test_a_wrong_spec_is_one_sentence_and_status_2(
    house: House, spec: Path, changes: dict[str, Any], words: str
) -> None:
    run = house.run("run", str(write(spec, **changes)), "--port", "0")
    assert run.popen.wait(30) == 2
    assert words in run.output
    assert "Traceback" not in run.output
    assert list(house.folder.glob("*.db")) == []  # nothing half-written


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "parquet", "path": "absent"}, "absent"),
        ({"source": "csv", "path": "bad.csv"}, "bad.csv"),
        ({"source": "digits", "validation": 5000}, "5000"),
    ],
)
def test_data_that_cannot_be_used_holds_the_study_with_status_1(
    house: House, spec: Path, data: dict[str, Any], words: str
) -> None:
    (house.folder / "bad.csv").write_text("a,label\n1,x\nnan,y\n")
    run = house.run("run", str(write(spec, objective={"kind": "train", "data": data})), "--workers", "1", "--port", "0")
    assert run.popen.wait(60) == 1, run.output
    assert words in run.output
    assert "preflight ✗ data" in run.output
    assert "run with --override" in run.output
    assert "Traceback" not in run.output
    anyway = house.run("run", str(spec), "--workers", "1", "--port", "0", "--override")
    assert anyway.popen.wait(60) == 1, anyway.output
    assert "no trial of the stage 'coarse' completed" in anyway.output
    assert words in anyway.output


def test_a_port_in_use_is_named(house: House, spec: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments in (("serve", "--port", port), ("run", str(spec), "--port", port)):
            process = house.run(*arguments)
            assert process.popen.wait(30) == 2
            assert f"port {port} is in use" in process.output


def test_a_second_server_on_the_same_file_is_refused(house: House, sqlite_url: str) -> None:
    house.serve(sqlite_url)
    second = house.run("serve", "--store", sqlite_url, "--port", "0")
    assert second.popen.wait(30) == 2
    assert "in use by another hpsearch server" in second.output
    assert "Traceback" not in second.output


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot be reached"),
        ("mysql://x", "mysql"),
        ("sqlite:////no/such/folder/a.db", "/no/such/folder"),
    ],
)
def test_a_store_out_of_reach_is_one_sentence(house: House, store: str, words: str) -> None:
    server = house.run("serve", "--store", store, "--port", "0")
    assert server.popen.wait(30) == 2
    assert words in server.output
    assert "secret" not in server.output
    assert "Traceback" not in server.output


def test_no_server_is_status_3(house: House, spec: Path) -> None:
    for arguments in (("status",), ("submit", str(spec))):
        process = house.run(*arguments, "--server", "http://127.0.0.1:9")
        assert process.popen.wait(30) == 3
        assert "http://127.0.0.1:9 cannot be reached" in process.output


def test_without_a_token_the_server_stays_on_this_machine(house: House, sqlite_url: str) -> None:
    server = house.run("serve", "--store", sqlite_url, "--host", "0.0.0.0", "--port", "0")
    assert server.popen.wait(30) == 2
    assert "HPSEARCH_TOKEN" in server.output


def test_with_a_token_workers_and_clients_need_it(house: House, sqlite_url: str, spec: Path) -> None:
    token = {"HPSEARCH_TOKEN": "s3cret"}
    server = house.run("serve", "--store", sqlite_url, "--port", "0", "--workers", "1", env=token)
    url = server.wait_for(r"serving (http://\S+)").group(1)
    refused = house.run("submit", str(spec), "--server", url)
    assert refused.popen.wait(30) == 2
    assert "token" in refused.output
    assert house.run("submit", str(spec), "--server", url, env=token).popen.wait(30) == 0
    done = house.run("status", "digits", "--server", url, "--json", env=token)
    assert done.popen.wait(30) == 0
