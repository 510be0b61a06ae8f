"""Where next to nothing was learned, values rank nothing and no border is flagged; the verdicts still say where to go.

The lecture (cs231n, "Training Neural Networks, Part 1") goes this way by hand: the loss barely moves, so the learning
rate is too low; it is NaN, so the rate is too high. docs/search.md, "Past a border", has the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpsearch.trial import Trial, TrialState

MIN_TRIALS = 8
"""Fewer trials that ended say nothing."""
SHARE = 0.9
"""Nothing was learned where at least this share of the trials learned too slowly, underfitted or diverged."""
SLOW_SHARE = 0.75
"""Of the trials, for the rate to be what is too low."""
_ENDED = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.DIVERGED)


@dataclass(frozen=True, slots=True)
class Move:
    """Which range to leave, and to which side.

    Attributes:
        what: ``lr`` or ``reg``.
        side: of the range; the next one lies beyond it.
        reason: in a sentence, with numbers.
    """

    what: Literal["lr", "reg"]
    side: Literal["low", "high"]
    reason: str


def move_on(stage: str, trials: Sequence[Trial]) -> Move | None:
    """Where to look instead; None where something was learned, or too little was tried.

    - All diverged: below the range of lr.
    - Three in four learned too slowly, none diverged, the others underfitted: above the range of lr.
    - The rates reach from too low, or underfitting, to divergence and none between them learned, or most underfitted:
      no rate is to blame, so below the range of reg.
    """
    ended = [t for t in trials if t.state in _ENDED]
    counts = Counter(_kind(t) for t in ended)
    n, diverged, slow, underfitting = len(ended), counts["diverged"], counts["slow"], counts["underfitting"]
    if n and diverged == n:
        return Move("lr", "low", f"all {n} trials of {stage} diverged: lr starts too high")
    if n < MIN_TRIALS or diverged + slow + underfitting < SHARE * n:
        return None
    if not diverged and slow >= SLOW_SHARE * n:
        return Move("lr", "high", f"{slow} of {n} trials of {stage} learned too slowly: lr ends too low")
    if slow + underfitting and (diverged or underfitting >= n / 2):
        told = f"of {n} trials of {stage} {diverged} diverged and {slow + underfitting} learned next to nothing"
        return Move("reg", "low", f"{told}: reg starts too high")
    return None


def _kind(trial: Trial) -> str:
    if trial.state is TrialState.DIVERGED:
        return "diverged"
    names = {verdict["name"] for verdict in trial.verdicts}
    if "lr_too_low" in names:
        return "slow"
    return "underfitting" if "underfitting" in names else "other"
