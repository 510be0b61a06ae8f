"""The callbacks for PyTorch Lightning and Transformers: the code of docs/your_code.md with the real libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from documents import titled
from hpsearch.trial import Action, TrialState
from hpsearch.worker.folders import Folders
from hpsearch.worker.python import PythonRunner
from hpsearch.worker.session import LeasedTrial
from own_code import Heard, lease


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[PythonRunner]:
    for name in ("with_lightning.py", "with_transformers.py"):
        (tmp_path / name).write_text(titled("docs/your_code.md", name))
    folders = Folders(str(tmp_path / "kept"), every_seconds=0)
    runner = PythonRunner(allow=["*"], folders=[tmp_path], checkpoints=folders)
    yield runner
    runner.close()


def trial(library: str, **changes: Any) -> LeasedTrial:
    metric = {"name": {"lightning": "val_loss", "transformers": "eval_loss"}[library], "direction": "minimize"}
    return lease({"kind": "python", "entrypoint": f"with_{library}:objective"}, metric=metric, **changes)


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_trial_is_stopped_and_goes_on_when_it_is_promoted(runner: PythonRunner, library: str) -> None:
    pytest.importorskip(library)
    stopped = trial(library, params={"lr": 0.1}, keep_stopped=1)
    heard = Heard({("t0", 2): Action.STOP})
    runner.run([stopped], heard)
    assert heard.result.state is TrialState.PRUNED, heard.result
    assert [step for step, _ in heard.steps] == [1, 2]
    metric = stopped.metric["name"]
    promoted = Heard()
    runner.run([lease(stopped.objective, params={"lr": 0.1}, metric=stopped.metric, token="t1")], promoted)
    assert promoted.result.state is TrialState.COMPLETED, (promoted.result, promoted.logs)
    assert [step for step, _ in promoted.steps] == [3]  # epochs 1 and 2 are not trained again
    assert promoted.steps[0][1][metric] < heard.steps[1][1][metric] < heard.steps[0][1][metric]
    assert promoted.result.value == promoted.steps[0][1][metric]
    if library == "lightning":
        assert "train_loss" in heard.steps[0][1]
