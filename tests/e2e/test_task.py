"""A net of the user's own, from the command line to the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import House, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(folder: Path, **changes: Any) -> Path:
    """The example study in a folder of its own, with some of its keys changed."""
    folder.mkdir()
    shutil.copy(EXAMPLES / "my_resnet.py", folder)
    study = yaml.safe_load((EXAMPLES / "my_resnet.yaml").read_text())
    path = folder / "my_resnet.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}))
    return path


def test_the_example_runs_where_it_is_allowed(house: House, tmp_path: Path) -> None:
    spec = example(tmp_path / "mine")
    refused = house.run("run", str(spec), "--port", "0", "--allow", "another:*")
    assert refused.popen.wait(60) == 2
    assert "runs the code of my_resnet:Digits on this machine" in refused.output
    assert "--allow my_resnet:Digits" in refused.output
    assert not (tmp_path / "hpsearch.db").exists()  # nothing was begun
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", "my_resnet:*", "--json")
    assert run.popen.wait(120) == 0, run.output
    document = json.loads(run.output[run.output.index("{\n") :])
    assert document["counts"]["completed"] == 6
    assert document["best"]["value"] > 0.6
    assert document["best"]["params"]["blocks"] in (1, 2)
    number = str(document["best"]["trial"])
    assert house.run("replay", "my-resnet", number).popen.wait(60) == 2
    again = house.run("replay", "my-resnet", number, "--json", "--allow", "my_resnet:*", "--path", str(spec.parent))
    assert again.popen.wait(60) == 0, again.output
    last = json.loads(again.output)["steps"][-1]
    assert last["replayed"]["val_accuracy"] == pytest.approx(document["best"]["value"], abs=0.01)


def test_a_worker_takes_no_task_unless_it_may(house: House, tmp_path: Path) -> None:
    spec = example(tmp_path / "mine", stages=[{"name": "coarse", "trials": 2, "epochs": 1, "folds": 2, "seeds": 2}])
    _, client = house.serve("sqlite:///t.db")
    study = client.submit(spec)
    without = house.worker(client, "without")
    eventually(lambda: any(worker["name"] == "without" for worker in client.workers()), 60, lambda: without.output)
    assert study.read()["counts"].get("running", 0) == 0
    house.worker(client, "allowed", "--allow", "*:Digits", "--path", str(spec.parent))
    study.wait(timeout_seconds=120)
    for trial in study.trials():
        assert trial["state"] == "completed"
        assert [attempt["worker"] for attempt in study.trial(trial["number"])["attempts"]] == ["allowed"]
    assert "val_accuracy_std" in study.metrics(0)[-1]["values"]


def test_a_worker_with_another_pattern_says_what_is_missing(house: House, tmp_path: Path) -> None:
    spec = example(tmp_path / "mine")
    _, client = house.serve("sqlite:///t.db")
    study = client.submit(spec)
    house.worker(client, "other", "--allow", "another:*")
    eventually(lambda: study.read()["state"] == "preflight" and study.read()["preflight"] == "failed", 60, study.read)
    assert "start the worker with --allow 'my_resnet:Digits'" in study.read()["reason"]


def test_a_broken_module_fails_the_study_with_its_reason(house: House, tmp_path: Path) -> None:
    spec = example(tmp_path / "mine", metric={"name": "val_f2", "direction": "maximize"})
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", "*")
    assert run.popen.wait(60) == 1, run.output
    assert "never reports 'val_f2': it reports train_loss, train_accuracy, val_loss" in " ".join(run.output.split())
    (spec.parent / "my_resnet.py").write_text("class Digits: pass")
    run = house.run("run", str(spec), "--workers", "1", "--port", "0", "--allow", "*", "--store", "sqlite:///b.db")
    assert run.popen.wait(60) == 1, run.output
    assert "the class my_resnet:Digits has no method data(self)" in " ".join(run.output.split())
