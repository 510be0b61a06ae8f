"""What a flag is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Side = Literal["low", "high"]
Level = Literal["watch", "likely", "strong"]

LEVELS: tuple[tuple[Level, float], ...] = (("strong", 0.001), ("likely", 0.01), ("watch", 0.05))
"""Level → the largest family-wise p-value that has it."""
MAX_P = LEVELS[-1][1]


class FlagVerdict(StrEnum):
    """What to make of a flag."""

    WIDEN = "widen"
    """The best inside lies at the border: the optimum is expected beyond it."""
    UNSTABLE_EDGE = "unstable_edge"
    """The best sit against a cliff, beyond which trials diverge."""
    NATURAL_LIMIT = "natural_limit"
    """The best inside lies at the border, and the range ends there by nature or by a hard limit."""
    INSUFFICIENT_DATA = "insufficient_data"
    """The values rise toward the border, but too few trials completed to say whether the best lies there."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A statement about one border of one parameter's range in one stage.

    Attributes:
        p_value: chance of so strong a trend toward *any* border of the stage if no parameter mattered.
        proposed: for ``widen``, ends of the range to open next; else None.
        at_border: posterior probability that the best value inside lies at this border (or against the cliff before
            it), from 0 to 1.
    """

    stage: str
    parameter: str
    side: Side
    level: Level
    p_value: float
    verdict: FlagVerdict
    message: str
    proposed: dict[str, float] | None
    at_border: float


def level_of(p_value: float) -> Level | None:
    """The level of a family-wise p-value; None above 0.05."""
    return next((level for level, bound in LEVELS if p_value <= bound), None)
