"""What the user's code is given for each trial of ``kind: python``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpsearch.errors import TrialStopped


@dataclass(slots=True)
class RunningTrial:
    """The trial that runs now.

    Attributes:
        params: the params of the trial, over those fixed in ``objective.params``.
        seed: for everything random; the trials of a stage with ``top`` differ in it alone.
        epochs: how many to train, as the stage says; 1 where it does not.
        checkpoint_dir: a folder that is there. What is written to it is there again when this trial is tried once
            more, is promoted, or goes on in a stage with ``resume``. It is removed when the trial has ended for good.
        number: of the trial within its study.
        study: name of the study.
        stage: name of the stage.
    """

    params: dict[str, Any]
    seed: int
    epochs: int
    checkpoint_dir: Path
    number: int
    study: str
    stage: str
    _send: Callable[[int, dict[str, float]], str | None] = field(repr=False)
    _told: Callable[[], str | None] = field(repr=False)
    _stop: str | None = field(default=None, repr=False)

    def report(self, step: int, /, **metrics: float) -> None:
        """Report metrics of one step: ``trial.report(epoch, val_accuracy=0.4)``.

        Args:
            step: the epoch, from 1, rising.
            metrics: numbers, or what ``float()`` takes (a tensor of one element).

        Raises:
            TrialStopped: the trial is to stop now. Let it through, or clean up and return.
            TypeError: a metric is no number, or the step no whole number.
            ValueError: the step is below 1.
        """
        number = _step(step)
        values = {name: _number(name, value) for name, value in metrics.items()}
        self._stop = self._send(number, values) or self._stop
        if self._stop is not None:
            raise TrialStopped(self._stop)

    @property
    def should_stop(self) -> bool:
        """Whether the trial is to stop: asked between reports of long epochs."""
        self._stop = self._stop or self._told()
        return self._stop is not None


def _step(step: Any) -> int:
    try:
        whole = int(step) == step
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or isinstance(step, bool):
        raise TypeError(f"the step is {step!r}: report the epoch, a whole number from 1")
    if step < 1:
        raise ValueError(f"the step is {step!r}: epochs count from 1")
    return int(step)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"the metric {name!r} is {value!r}, a text: report a number")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the metric {name!r} is of type {type(value).__name__}: report a number ({error})") from None


def returned(value: Any, metric: str) -> tuple[float | None, dict[str, float]]:
    """What an objective returned, as the value of its metric (None: the one last reported) and other metrics.

    Raises:
        TypeError: it is neither a number nor a mapping of names to numbers, or lacks the metric.
    """
    if value is None:
        return None, {}
    if not isinstance(value, dict):
        return _number(metric, value), {}
    if metric not in value:
        raise TypeError(f"what was returned has no {metric!r}, but {', '.join(map(repr, value)) or 'nothing'}")
    numbers = {str(name): _number(name, each) for name, each in value.items()}
    return numbers.pop(metric), numbers


def not_finite(name: str, value: float, step: int) -> str | None:
    """Why a trial has diverged, None if it has not."""
    return None if math.isfinite(value) else f"{name} is {value} at step {step}"
