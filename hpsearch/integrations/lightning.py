"""PyTorch Lightning: a callback that makes a trainer a trial of ``kind: python``. Needs ``hpsearch[lightning]``."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from hpsearch.running_trial import RunningTrial


class TrialCallback(Checkpoint):
    """Reports a trainer's metrics after each epoch, keeps its checkpoint, and ends it when the trial is to stop.

    Everything logged by ``self.log`` is reported under its name at the epoch, from 1. Of a trainer on several devices
    the first one reports. ``trainer.fit`` raises :class:`hpsearch.TrialStopped` when the trial is to stop.

    Args:
        trial: what the objective was given.

    Example:
        ``callback = TrialCallback(trial)``, ``Trainer(max_epochs=trial.epochs, callbacks=[callback])``, and
        ``trainer.fit(model, ckpt_path=callback.ckpt_path)``.
    """

    def __init__(self, trial: RunningTrial) -> None:
        super().__init__()
        self._trial = trial
        self._path = trial.checkpoint_dir / "lightning.ckpt"

    @property
    def ckpt_path(self) -> str | None:
        """Where the trial goes on from, None if it begins."""
        return str(self._path) if self._path.exists() else None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, then report: a trial that is stopped here goes on from here if it is promoted."""
        del pl_module
        if trainer.sanity_checking:
            return
        trainer.save_checkpoint(self._path)
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            self._trial.report(trainer.current_epoch + 1, **metrics)
