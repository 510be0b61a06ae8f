"""docker-compose.yml and Dockerfile: what they promise, checked as far as that goes without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORDS = {"POSTGRES_PASSWORD": "a", "HPSEARCH_TOKEN": "b"}


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def test_the_composition_has_its_parts() -> None:
    services = compose()["services"]
    assert set(services) == {"db", "server", "worker"}
    assert all("healthcheck" in service for service in services.values())
    assert services["server"]["depends_on"]["db"]["condition"] == "service_healthy"
    assert services["worker"]["depends_on"]["server"]["condition"] == "service_healthy"
    assert "container_name" not in services["worker"]  # it would forbid --scale
    assert "ports" not in services["worker"]
    named = {
        v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if not v.startswith(("$", ".", "/"))
    }
    assert named == set(compose()["volumes"])


def test_commands_and_variables_are_real() -> None:
    import typer

    from hpsearch.cli import app

    command = typer.main.get_command(app)
    services = compose()["services"]
    variables = {p.envvar for sub in command.commands.values() for p in sub.params if p.envvar}  # type: ignore[attr-defined]
    for name in ("server", "worker"):
        verb, *options = services[name]["command"]
        known = {o for p in command.commands[verb].params for o in p.opts}  # type: ignore[attr-defined]
        assert {o for o in options if o.startswith("--")} <= known
        assert set(services[name]["environment"]) <= variables


def docker_compose() -> list[str] | None:
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.skipif(docker_compose() is None, reason="neither docker compose nor docker-compose is installed")
def test_docker_compose_takes_it() -> None:
    command = [*(docker_compose() or []), "-f", str(ROOT / "docker-compose.yml"), "config", "-q"]
    done = subprocess.run(command, env={**os.environ, **WORDS}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without = {k: v for k, v in os.environ.items() if k not in WORDS}
    refused = subprocess.run(command, env=without, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "to a random word" in refused.stderr


def test_the_image_is_built_by_make_in_two_stages_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert re.search(r"^RUN make install ", text, re.MULTILINE)
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    user = re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1]
    assert user not in ("root", "0")
    assert re.search(rf"useradd .*{user}", text)
