"""The outcome of one check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: such as ``initial_loss``.
        status: ``fail`` holds the study; ``warn`` does not.
        message: one sentence: what was seen and, unless it passed, what to do.
        numbers: what it rests on; may be non-finite.
    """

    name: str
    status: Status
    message: str
    numbers: dict[str, float] = field(default_factory=dict)
