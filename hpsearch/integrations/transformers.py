"""Hugging Face Transformers: a callback that makes a ``Trainer`` a trial of ``kind: python``. Needs
``hpsearch[transformers]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hpsearch.running_trial import RunningTrial


class TrialCallback(TrainerCallback):
    """Reports each evaluation (``eval_strategy="epoch"``), and ends the training when the trial is to stop.

    Each evaluation is followed by a checkpoint, which a promoted or retried trial goes on from where ``output_dir`` is
    ``trial.checkpoint_dir``. Metrics keep their names, such as ``eval_loss``. ``trainer.train`` raises
    :class:`hpsearch.TrialStopped` when the trial is to stop: let it through.

    Args:
        trial: what the objective was given.

    Example:
        ``callback = TrialCallback(trial)``, ``Trainer(..., callbacks=[callback])``, and
        ``trainer.train(resume_from_checkpoint=callback.checkpoint)``.
    """

    def __init__(self, trial: RunningTrial) -> None:
        self._trial = trial
        self._pending: tuple[int, dict[str, float]] | None = None

    @property
    def checkpoint(self) -> str | None:
        """Where the trial goes on from, None if it begins."""
        found: str | None = get_last_checkpoint(str(self._trial.checkpoint_dir))  # type: ignore[no-untyped-call]
        return found if found is not None and Path(found, "trainer_state.json").exists() else None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Have a checkpoint made; what is reported before it would end the training without one."""
        del args
        metrics = {name: float(v) for name, v in kwargs["metrics"].items() if isinstance(v, int | float)}
        metrics.pop("epoch", None)
        self._pending = max(1, round(state.epoch or 0)), metrics
        control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report."""
        del args, state, control, kwargs
        self._report()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report what no checkpoint followed."""
        del args, state, control, kwargs
        self._report()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report what no checkpoint followed."""
        del args, state, control, kwargs
        self._report()

    def _report(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._trial.report(pending[0], **pending[1])
