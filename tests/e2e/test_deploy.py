"""What the containers of docker-compose.yml run, as plain processes: there need be no Docker engine for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from hpsearch.client import Client
from processes import House, digits, eventually

ROOT = Path(__file__).parents[2]


def services() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = document["services"]
    return found


def options(name: str, **instead: str) -> list[str]:
    """The command of a service, after the image's entry point, with other values of some options."""
    command = [str(part) for part in services()[name]["command"]]
    for option, value in instead.items():
        command[command.index(f"--{option}") + 1] = value
    return command


def secret(folder: Path, name: str, value: str) -> str:
    (folder / name).write_text(f"{value}\n")
    return str(folder / name)


def test_the_composition_trains_a_study(house: House, postgres_url: str) -> None:
    store = {"HPSEARCH_STORE_FILE": secret(house.folder, "store", postgres_url)}
    admin = {"HPSEARCH_TOKEN_FILE": secret(house.folder, "server_token", "a-word-for-the-server")}

    setup = services()["setup"]
    tokens = house.folder / "tokens"
    tokens.mkdir()
    shell = [*setup["entrypoint"], *[part.replace("$$", "$") for part in setup["command"]]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **store, "TOKENS": str(tokens), "PATH": path}
    for _ in range(2):  # the second time it keeps what is there
        subprocess.run(shell, env=environment, check=True, timeout=60, capture_output=True)
    (worker_token,) = tokens.iterdir()
    assert worker_token.name == "worker"
    assert worker_token.stat().st_mode & 0o777 == 0o600
    given = {"HPSEARCH_TOKEN_FILE": str(worker_token)}

    servers = [house.run(*options("server", host="127.0.0.1", port="0"), env={**store, **admin}) for _ in range(2)]
    urls = [server.wait_for(r"serving (http://\S+)").group(1) for server in servers]
    client = Client(urls[0], token="a-word-for-the-server")
    house.clients.append(client)
    study = client.submit(digits())
    worker = house.run(*options("worker"), env={**given, "HPSEARCH_SERVER": urls[1]})
    study.wait(timeout_seconds=90)
    assert study.read()["counts"]["completed"] == 16
    for url in urls:
        assert httpx2.get(f"{url}/readyz").status_code == 200
        headers = {"Authorization": f"Bearer {worker_token.read_text().strip()}"}
        assert httpx2.get(f"{url}/api/v1/studies", headers=headers).status_code == 403, "a worker reads no study"
        assert httpx2.delete(f"{url}/api/v1/studies/digits", headers=headers).status_code == 403
    cmdline = Path(f"/proc/{worker.popen.pid}/cmdline").read_bytes()
    assert b"worker" in cmdline, "what its health check looks for"
    assert worker.stop() == 0
    assert [server.stop() for server in servers] == [0, 0]
    said = "".join(process.output for process in house.processes)
    assert worker_token.read_text().strip() not in said


def test_the_health_check_of_the_server_says_no_where_none_is(house: House) -> None:
    check = services()["server"]["healthcheck"]["test"][1:]
    server, client = house.serve(f"sqlite:///{house.folder}/a.db")
    check = [sys.executable, *[part.replace("http://127.0.0.1:8765", client.server) for part in check[1:]]]
    assert subprocess.run(check, capture_output=True).returncode == 0
    server.stop()
    assert subprocess.run(check, capture_output=True).returncode != 0


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text().replace("server server:8765 resolve", "server 127.0.0.1:8765")
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"HPSEARCH_TOKEN_FILE": "/none"}, "HPSEARCH_TOKEN_FILE=/none cannot be read: "),
        ({"HPSEARCH_TOKEN_FILE": os.devnull}, f"HPSEARCH_TOKEN_FILE={os.devnull} is empty: write the value"),
        ({"HPSEARCH_STORE_FILE": "x", "HPSEARCH_STORE": "y"}, "HPSEARCH_STORE and HPSEARCH_STORE_FILE are both set"),
    ],
)
def test_a_secret_that_cannot_be_read(house: House, given: dict[str, str], sentence: str) -> None:
    process = house.run("status", env=given)
    assert process.popen.wait(20) == 2
    assert sentence in eventually(lambda: process.output)
