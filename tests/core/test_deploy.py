"""docker-compose.yml and Dockerfile: what they promise, checked as far as that goes without a Docker engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ONCE = {"setup"}
"""Services that do something and end."""


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def test_the_composition_has_its_parts() -> None:
    services = compose()["services"]
    assert set(services) == {"db", "setup", "server", "proxy", "worker", "worker-gpu"}
    assert all(("healthcheck" in service) != (name in ONCE) for name, service in services.items())
    needs = {("setup", "db"), ("server", "setup"), ("proxy", "server"), ("worker", "proxy"), ("worker-gpu", "proxy")}
    assert {(name, other) for name, service in services.items() for other in service.get("depends_on", ())} == needs
    for name, other in needs:
        wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
        assert services[name]["depends_on"][other]["condition"] == wanted
    for name in ("server", "worker", "worker-gpu"):
        assert "container_name" not in services[name]  # it would forbid --scale
        assert "ports" not in services[name]
    assert services["server"]["deploy"]["replicas"] > 1
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    named = {
        v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if not v.startswith(("$", ".", "/"))
    }
    assert named == set(compose()["volumes"])


def test_commands_and_variables_are_real() -> None:
    import typer

    from hpsearch.cli import app
    from hpsearch.cli.options import SECRETS

    command = typer.main.get_command(app)
    services = compose()["services"]
    variables = {p.envvar for sub in command.commands.values() for p in sub.params if p.envvar}  # type: ignore[attr-defined]
    variables |= {f"{name}_FILE" for name in SECRETS}
    for name in ("server", "worker", "worker-gpu"):
        verb, *options = services[name]["command"]
        known = {o for p in command.commands[verb].params for o in p.opts}  # type: ignore[attr-defined]
        assert {o for o in options if o.startswith("--")} <= known
        assert set(services[name]["environment"]) <= variables


def test_secrets_come_by_file_and_workers_have_the_least() -> None:
    document = compose()
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"(PASSWORD|TOKEN|STORE):", text.replace("_FILE:", "")), "no secret stands in a variable"
    used = {secret for service in document["services"].values() for secret in service.get("secrets", ())}
    assert used == set(document["secrets"])
    for name in ("worker", "worker-gpu"):
        service = document["services"][name]
        assert "secrets" not in service, "neither the store nor the server's own token"
        assert service["environment"]["HPSEARCH_TOKEN_FILE"] == "/tokens/worker"
        assert "tokens:/tokens:ro" in service["volumes"]


def test_make_secrets_writes_each_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    subprocess.run([ROOT / "deploy" / "make-secrets", folder], check=True)
    first = {path.name: path.read_text().strip() for path in folder.iterdir()}
    assert set(first) == set(compose()["secrets"])
    assert first["store"] == f"postgresql://hpsearch:{first['postgres_password']}@db/hpsearch"
    assert all(re.fullmatch("[0-9a-f]{64}", first[name]) for name in ("postgres_password", "server_token"))
    assert folder.stat().st_mode & 0o777 == 0o700
    subprocess.run([ROOT / "deploy" / "make-secrets", folder], check=True)
    assert first == {path.name: path.read_text().strip() for path in folder.iterdir()}


def test_the_proxy_finds_the_servers() -> None:
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    services = compose()["services"]
    port = services["server"]["command"][services["server"]["command"].index("--port") + 1]
    assert f"server server:{port} resolve" in text
    assert services["proxy"]["ports"] == [f"127.0.0.1:8765:{re.findall(r'listen ([0-9]+);', text)[0]}"]
    assert services["worker"]["environment"]["HPSEARCH_SERVER"] == "http://proxy:8765"
    assert services["proxy"]["volumes"] == ["./deploy/nginx.conf:/etc/nginx/nginx.conf:ro"]
    subnet = compose()["networks"]["default"]["ipam"]["config"][0]["subnet"]
    command = services["server"]["command"]
    assert command[command.index("--trusted-proxy") + 1] == subnet
    assert "proxy_buffering off;" in text, "event streams"


def docker_compose() -> list[str] | None:
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.skipif(docker_compose() is None, reason="neither docker compose nor docker-compose is installed")
def test_docker_compose_takes_it() -> None:
    for profile in ([], ["--profile", "gpu"]):
        command = [*(docker_compose() or []), "-f", str(ROOT / "docker-compose.yml"), *profile, "config", "-q"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_image_is_built_by_make_in_two_stages_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert re.search(r"^RUN make install ", text, re.MULTILINE)
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    user = re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1]
    assert user not in ("root", "0")
    assert re.search(rf"useradd .*{user}", text)
