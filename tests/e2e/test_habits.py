"""What a shell and a script expect of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from processes import House, digits

PROGRAM = Path(sys.executable).with_name("hpsearch")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_for_each_shell(shell: str) -> None:
    named = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # not the one that runs the tests
    shown = subprocess.run(
        [PROGRAM, "--show-completion", shell], capture_output=True, text=True, check=True, timeout=60, env=named
    )
    assert "hpsearch" in shown.stdout
    assert "_HPSEARCH_COMPLETE" in shown.stdout


def completed(server: str, *words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    environment = {
        **os.environ,
        "_HPSEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["hpsearch", *words]),
        "COMP_CWORD": str(len(words)),
        "HPSEARCH_SERVER": server,
    }
    shown = subprocess.run([PROGRAM], capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert shown.stderr == ""
    return shown.stdout.split()


def test_commands_and_studies_are_completed(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    client.submit(digits())
    assert completed(client.server, "ser") == ["serve"]
    assert completed(client.server, "best", "di") == ["digits"]
    assert completed("http://127.0.0.1:9", "best", "di") == []


def test_what_steers_tells_what_came_of_it(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url)
    (house.folder / "study.yaml").write_text(yaml.safe_dump(digits(preflight=False)))

    def call(*arguments: str) -> object:
        process = house.run(*arguments, "--json", env={"HPSEARCH_SERVER": client.server})
        assert process.popen.wait(60) == 0, process.output
        return json.loads(process.output)

    call("submit", "study.yaml")
    assert call("pause", "digits") == {"name": "digits", "state": "paused"}
    assert call("resume", "digits") == {"name": "digits", "state": "running"}
    assert call("cancel", "digits") == {"name": "digits", "state": "cancelled"}
    assert call("delete", "digits", "--yes") == {"name": "digits", "state": None}


def test_care_of_a_store_tells_in_json(house: House) -> None:
    def call(*arguments: str) -> dict[str, object]:
        process = house.run(*arguments, "--json")
        assert process.popen.wait(60) == 0, process.output
        found: dict[str, object] = json.loads(process.output)
        return found

    first = call("db", "upgrade")
    assert first["before"] is None
    assert call("db", "upgrade")["before"] == first["schema"]
    saved = call("db", "backup", "copy.db")
    assert saved == {"file": "copy.db", "bytes": (house.folder / "copy.db").stat().st_size}
    made = call("token", "create", "ci", "--scope", "submit")
    assert (made["name"], made["scopes"]) == ("ci", ["submit"])
    assert str(made["token"]).startswith("hps_")


EXTRAS = ["alembic", "fastapi", "numpy", "optuna", "pandas", "PIL", "plotly", "psycopg", "pyarrow", "scipy", "sklearn"]
EXTRAS += ["sqlalchemy", "torch", "uvicorn"]


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """Variables with which a process finds no more than ``pip install hpsearch`` brings."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n")
    return {"PYTHONPATH": str(folder)}


def test_a_light_installation_submits_and_runs_code_of_the_user(
    house: House, sqlite_url: str, light: dict[str, str]
) -> None:
    _, client = house.serve(sqlite_url)
    (house.folder / "mine.py").write_text("def objective(trial):\n    return {'loss': trial.params['lr'] ** 2}\n")
    study = digits(
        name="light",
        objective={"kind": "python", "entrypoint": "mine:objective"},
        metric={"name": "loss", "direction": "minimize"},
        stages=[{"name": "only", "trials": 4}],
    )
    (house.folder / "light.yaml").write_text(yaml.safe_dump(study))
    submit = house.run("submit", "light.yaml", "--server", client.server, env=light)
    assert submit.popen.wait(60) == 0, submit.output
    house.worker(client, "light", "--allow", "mine:*", env=light)
    assert client.study("light").wait(timeout_seconds=60).read()["counts"]["completed"] == 4


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve",), "hpsearch[server]"),
        (("run", "study.yaml"), "hpsearch[train]"),
        (("worker",), "hpsearch[train]"),
        (("init", "digits", "-o", "new.yaml"), "hpsearch[train]"),
        (("replay", "digits", "0"), "hpsearch[server]"),
        (("db", "check"), "hpsearch[server]"),
        (("token", "list"), "hpsearch[server]"),
        (("export", "digits", "--format", "study", "-o", "a"), "hpsearch[server]"),
    ],
)
def test_a_light_installation_names_the_extra(
    house: House, light: dict[str, str], arguments: tuple[str, ...], extra: str
) -> None:
    (house.folder / "study.yaml").write_text(yaml.safe_dump(digits()))
    process = house.run(*arguments, env=light)
    assert process.popen.wait(60) == 2, process.output
    assert f"pip install '{extra}'" in process.output
    assert "Traceback" not in process.output


def test_the_doctor_of_a_light_installation(house: House, light: dict[str, str]) -> None:
    process = house.run("doctor", "--json", env=light)
    assert process.popen.wait(60) == 0, process.output
    found = {check["name"]: check for check in json.loads(process.output)}
    assert "not looked at" in found["store"]["message"]
    assert "torch is not installed" in found["devices"]["message"]
