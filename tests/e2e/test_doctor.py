"""``hpsearch doctor`` on real stores, servers and folders."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import psycopg
import pytest

from hpsearch.cli.machine import Status, checkpoint_folder, usable_cores, working_folder
from processes import House


def doctor(house: House, *arguments: str, status: int = 0, **env: str) -> dict[str, dict[str, str]]:
    process = house.run("doctor", *arguments, "--json", env={"OMP_NUM_THREADS": "", **env})
    assert process.popen.wait(60) == status, process.output
    return {check["name"]: check for check in json.loads(process.output)}


def test_a_machine_with_nothing_yet(house: House) -> None:
    found = doctor(house)
    for name in ("hpsearch", "extras", "devices", "working folder", "checkpoints", "store's file system", "store"):
        assert found[name]["status"] == "pass", found[name]
    assert {"server", "train"} <= set(found["extras"]["message"].removeprefix("installed: ").split(", "))
    assert "hpsearch.db is not there yet" in found["store"]["message"]
    assert found["server"]["status"] == "warn"
    assert "hpsearch serve" in found["server"]["message"]
    assert list(house.folder.iterdir()) == []  # it looks, and leaves nothing


def test_a_server_its_store_and_its_token(house: House, sqlite_url: str) -> None:
    server = house.run("serve", "--store", sqlite_url, "--port", "0", env={"HPSEARCH_TOKEN": "s3cret"})
    url = server.wait_for(r"serving (http://\S+)").group(1)
    found = doctor(house, "--server", url, "--store", sqlite_url, "--token", "s3cret")
    assert {name: found[name]["status"] for name in ("store", "server", "server version")} == {
        "store": "pass",
        "server": "pass",
        "server version": "pass",
    }
    assert "the token is known" in found["server version"]["message"]
    assert found["store"]["message"].partition(", schema ")[2].isalnum()
    wrong = doctor(house, "--server", url, "--token", "other", status=1)
    assert "not known, revoked or expired" in wrong["token"]["message"]
    none = doctor(house, "--server", url, status=1)
    assert "HPSEARCH_TOKEN" in none["token"]["message"]


def test_a_server_that_should_be_there(house: House) -> None:
    found = doctor(house, "--server", "http://127.0.0.1:9", status=1)
    assert found["server"]["status"] == "fail"
    assert "cannot be reached" in found["server"]["message"]
    assert "doctor" not in found["server"]["message"]


def test_schemas_of_other_versions(house: House, empty_postgres_url: str) -> None:
    found = doctor(house, "--store", empty_postgres_url)
    assert "answers and is empty" in found["store"]["message"]
    upgraded = house.run("db", "upgrade", "--store", empty_postgres_url)
    assert upgraded.popen.wait(60) == 0, upgraded.output
    with psycopg.connect(empty_postgres_url) as connection:
        connection.execute("UPDATE hpsearch_version SET version_num = '0001'")
    found = doctor(house, "--store", empty_postgres_url)
    assert found["store"]["status"] == "warn"
    assert "has the schema 0001" in found["store"]["message"]
    assert "hpsearch db upgrade" in found["store"]["message"]
    with psycopg.connect(empty_postgres_url) as connection:
        connection.execute("UPDATE hpsearch_version SET version_num = 'later'")
    found = doctor(house, "--store", empty_postgres_url, status=1)
    assert "newer hpsearch (schema later)" in found["store"]["message"]


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot be reached"),
        ("sqlite:////no/such/folder/a.db", "/no/such/folder"),
        ("sqlite:///other.db", "tables of another program"),
        ("sqlite:///text.db", "text.db"),
        ("mysql://x", "unknown scheme"),
    ],
)
def test_a_store_that_cannot_be_used(house: House, store: str, words: str) -> None:
    (house.folder / "text.db").write_text("a shopping list, longer than the header of a database " * 20)
    with sqlite3.connect(house.folder / "other.db") as connection:
        connection.execute("CREATE TABLE studies (id INTEGER)")
    connection.close()
    found = doctor(house, "--store", store, status=1)
    assert found["store"]["status"] == "fail"
    assert words in found["store"]["message"]
    assert "secret" not in found["store"]["message"]


def test_threads_that_fight_for_cores(house: House) -> None:
    found = doctor(house, OMP_NUM_THREADS="64")
    assert found["threads"]["status"] == "warn"
    assert "OMP_NUM_THREADS is 64" in found["threads"]["message"] or "may use" in found["threads"]["message"]


def test_the_quota_of_a_container_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    assert usable_cores(quota) == 0.5
    quota.write_text("max 100000\n")
    assert usable_cores(quota) >= 1
    assert usable_cores(tmp_path / "absent") >= 1


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    assert working_folder(tmp_path).status is Status.PASS
    assert checkpoint_folder(str(tmp_path / "not" / "yet")).status is Status.PASS
    assert checkpoint_folder("memory://somewhere").status is Status.PASS
    check = working_folder(Path("/proc"))
    assert check.status is Status.FAIL
    assert "cannot be written" in check.message
    assert checkpoint_folder("/proc/checkpoints").status is Status.FAIL
