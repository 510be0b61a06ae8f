"""The callbacks for PyTorch Lightning and Transformers, against the real libraries at a small size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpsearch.trial import Action, TrialState
from hpsearch.worker.folders import Folders
from hpsearch.worker.python import PythonRunner
from hpsearch.worker.session import LeasedTrial
from own_code import Heard, lease

LIGHTNING = """
import logging, warnings
warnings.simplefilter("ignore")
import torch
import lightning.pytorch as pl
from hpsearch.integrations.lightning import TrialCallback

class Line(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr, self.layer = lr, torch.nn.Linear(1, 1)
    def training_step(self, batch):
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss
    def validation_step(self, batch):
        self.log("loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

def objective(trial):
    x = torch.linspace(-1, 1, 32)[:, None]
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 3 * x + 1), batch_size=8)
    callback = TrialCallback(trial)
    print("from", callback.ckpt_path)
    trainer = pl.Trainer(
        max_epochs=trial.epochs, callbacks=[callback], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(trial.checkpoint_dir),
    )
    trainer.fit(Line(trial.params["lr"]), data, data, ckpt_path=callback.ckpt_path)
"""

TRANSFORMERS = """
import warnings
warnings.simplefilter("ignore")
import torch
from transformers import Trainer, TrainingArguments
from hpsearch.integrations.transformers import TrialCallback

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def forward(self, x, labels):
        out = self.layer(x)
        return {"loss": torch.nn.functional.mse_loss(out, labels), "logits": out}

def objective(trial):
    data = [{"x": torch.tensor([i / 16 - 1]), "labels": torch.tensor([3 * (i / 16 - 1) + 1])} for i in range(32)]
    callback = TrialCallback(trial)
    print("from", callback.checkpoint)
    arguments = TrainingArguments(
        output_dir=str(trial.checkpoint_dir), num_train_epochs=trial.epochs, learning_rate=trial.params["lr"],
        per_device_train_batch_size=8, eval_strategy="epoch", save_total_limit=1, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", seed=trial.seed % 2**32,
    )
    trainer = Trainer(Line(), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.checkpoint)
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[PythonRunner]:
    (tmp_path / "with_lightning.py").write_text(LIGHTNING)
    (tmp_path / "with_transformers.py").write_text(TRANSFORMERS)
    folders = Folders(str(tmp_path / "kept"), every_seconds=0)
    runner = PythonRunner(allow=["*"], folders=[tmp_path], checkpoints=folders)
    yield runner
    runner.close()


def trial(library: str, **changes: Any) -> LeasedTrial:
    metric = {"name": {"lightning": "loss", "transformers": "eval_loss"}[library], "direction": "minimize"}
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
    assert "from None" in heard.logs["t0"]
    assert "from /" in promoted.logs["t1"]
    if library == "lightning":
        assert "train_loss" in heard.steps[0][1]
