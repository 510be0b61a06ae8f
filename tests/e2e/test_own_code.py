"""The user's own programs, from the command line to the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import House, eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def example(name: str, folder: Path, **changes: Any) -> Path:
    """An example study in a folder of its own, with some of its keys changed."""
    folder.mkdir(exist_ok=True)
    for file in EXAMPLES.glob(f"{name}.*"):
        shutil.copy(file, folder)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("name", "code", "n_trials"), [("my_script", "my_script:*", 45), ("my_command", "./my_command.sh", 18)]
)
def test_the_examples_run_where_they_are_allowed(
    house: House, tmp_path: Path, name: str, code: str, n_trials: int
) -> None:
    spec = example(name, tmp_path / "mine")
    refused = house.run("run", str(spec), "--port", "0", "--allow", "another*")
    assert refused.popen.wait(60) == 2
    assert f"--allow {code.replace('*', 'objective')}" in refused.output
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", code, "--json")
    assert run.popen.wait(120) == 0, run.output
    document = json.loads(run.output[run.output.index("{\n") :])
    assert sum(document["counts"].values()) == n_trials
    assert document["counts"]["failed"] == 0
    assert [check["status"] for check in document["checks"]] == ["pass"]
    number = str(document["best"]["trial"])
    replay = ["replay", document["name"], number, "--json", "--path", str(spec.parent)]
    assert house.run(*replay).popen.wait(60) == 2
    again = house.run(*replay, "--allow", code)
    assert again.popen.wait(60) == 0, again.output
    for step in json.loads(again.output)["steps"]:
        if step["recorded"] is not None:
            assert step["replayed"] == step["recorded"]  # seeded: the very same


def test_what_is_broken_is_said_with_where(house: House, tmp_path: Path) -> None:
    spec = example("my_script", tmp_path / "mine")
    (spec.parent / "my_script.py").write_text("def objective(trial):\n    pass\nimport nowhere_to_be_found\n")
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", "*")
    assert run.popen.wait(60) == 1, run.output
    said = " ".join(run.output.split())
    assert "importing my_script failed; mend it and start again: ModuleNotFoundError: No module named" in said
    assert "my_script.py, line 3, in <module>: import nowhere_to_be_found" in said
    (spec.parent / "my_script.py").write_text("def objective(trial):\n    return trial.params['nothing']\n")
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", "*", "--store", "sqlite:///b.db")
    assert run.popen.wait(60) == 1, run.output
    said = " ".join(run.output.split())
    assert "KeyError: 'nothing'" in said
    assert "my_script.py, line 2, in objective" in said
    command = example("my_command", tmp_path / "mine", objective={"kind": "command", "argv": ["no-such-command"]})
    run = house.run("run", str(command), "--workers", "1", "--port", "0", "--allow", "*", "--store", "sqlite:///c.db")
    assert run.popen.wait(60) == 1, run.output
    assert "there is no command 'no-such-command' on the worker's PATH" in " ".join(run.output.split())


RETRIED = """
import os, time
from pathlib import Path
def objective(trial):
    file = trial.checkpoint_dir / "epoch"
    epoch = int(file.read_text()) if file.exists() else 0
    print("begins at", epoch, flush=True)
    while epoch < trial.epochs:
        epoch += 1
        file.write_text(str(epoch))
        trial.report(epoch, val_loss=1 / epoch)
        while epoch == 3 and not Path("go").exists():
            time.sleep(0.05)
"""


def test_a_lost_worker_costs_no_epoch_and_leaves_no_process(house: House, tmp_path: Path) -> None:
    spec = example("my_script", tmp_path / "mine", stages=[{"name": "a", "trials": 1, "epochs": 5}])
    (spec.parent / "my_script.py").write_text(RETRIED)
    _, client = house.serve("sqlite:///t.db", "--lease-seconds", "2")
    study = client.submit(spec)
    options = ["--allow", "my_script:*", "--path", str(spec.parent), "--checkpoints", str(tmp_path / "kept")]
    first = house.worker(client, "first", *options)
    eventually(lambda: len(study.metrics(0)) == 3 if study.trials() else False, 60, lambda: first.output)
    first.popen.send_signal(signal.SIGKILL)
    assert study.log(0) == "" or study.log(0) == "begins at 0\n"  # sent every few seconds
    eventually(lambda: not running("hpsearch.worker.child", str(spec.parent)), 30)
    house.worker(client, "second", *options)
    eventually(lambda: len(study.trial(0)["attempts"]) == 2, 60)
    (spec.parent / "go").write_text("")
    study.wait(timeout_seconds=60)
    assert study.log(0) == "begins at 3\n"
    assert [item["values"]["val_loss"] for item in study.metrics(0)] == [1 / n for n in (1, 2, 3, 4, 5)]
    page = client.connection.send("GET", "/studies/my-script/trials/0").text
    assert "/api/v1/studies/my-script/trials/0/log" in page


def running(word: str, folder: str) -> list[str]:
    """Processes of this machine that work in a folder and have a word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == folder:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found += [command] if word in command else []
        except OSError:
            continue
    return found


def test_a_worker_of_another_version_is_warned(house: House, tmp_path: Path) -> None:
    _, client = house.serve("sqlite:///t.db")
    (tmp_path / "sitecustomize.py").write_text("import hpsearch._version; hpsearch._version.__version__ = '99.0'\n")
    worker = house.worker(client, "other", "--allow", "*", env={"PYTHONPATH": str(tmp_path)})
    worker.wait_for(r"the server is hpsearch 0\.\S+ and this worker 99\.0: install the same version on both", 60)


def test_the_external_example_of_the_documents_runs(house: House, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    _, client = house.serve("sqlite:///t.db")
    text = (ROOT / "docs" / "your_code.md").read_text()
    (block,) = re.findall(r"```sh\n(SERVER=.*?)```", text, re.DOTALL)
    script = block.replace("SERVER=http://127.0.0.1:8765", f"SERVER={client.server}")
    assert script != block or client.server == "http://127.0.0.1:8765"
    done = subprocess.run(["sh", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    study = client.study("by-curl")
    eventually(lambda: study.state == "completed", 10, study.read)
    (trial,) = [trial for trial in study.trials() if trial["state"] == "completed"]
    assert trial["value"] == 0.25
    assert [item["values"] for item in study.metrics(trial["number"])] == [{"loss": 0.5}, {"loss": 0.25}]


def test_trials_are_runs_of_tensorboard(house: House, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    spec = example("my_command", tmp_path / "mine", stages=[{"name": "a", "trials": 2, "epochs": 3}])
    _, client = house.serve("sqlite:///t.db")
    study = client.submit(spec)
    options = ["--allow", "./*", "--path", str(spec.parent), "--tensorboard", str(tmp_path / "runs")]
    worker = house.worker(client, "w", *options)
    study.wait(timeout_seconds=90)
    assert worker.stop() == 0
    for trial in study.trials():
        scalars, hparams = runs_of_tensorboard(tmp_path / "runs" / "my-command" / str(trial["number"]))
        expected = [item["values"]["val_loss"] for item in study.metrics(trial["number"])]
        assert [step for step, _ in scalars] == [1, 2, 3]
        assert [value for _, value in scalars] == pytest.approx(expected, rel=1e-6)
        assert hparams["lr"] == pytest.approx(trial["params"]["lr"])
        assert hparams["state"] == "completed"


def runs_of_tensorboard(folder: Path) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """The scalars of ``val_loss`` and the hyperparameters, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(folder)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("val_loss")]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    found = data.session_start_info.hparams.items()
    return scalars, {name: getattr(value, value.WhichOneof("kind")) for name, value in found}
