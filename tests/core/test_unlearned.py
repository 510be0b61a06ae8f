"""Where to look where next to nothing was learned."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hpsearch.search.unlearned import Move, move_on
from hpsearch.trial import Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trials(**kinds: int) -> list[Trial]:
    """So many trials of each kind: the state ``diverged`` or ``failed``, or completed with the verdict of that name."""
    found: list[Trial] = []
    for kind, n in kinds.items():
        state = TrialState(kind) if kind in ("diverged", "failed") else TrialState.COMPLETED
        verdicts = ({"name": kind, "epoch": 1, "evidence": {}, "advice": ""},)
        for _ in range(n):
            found.append(
                Trial(
                    number=len(found),
                    stage="coarse",
                    state=state,
                    params={},
                    value=0.1 if state is TrialState.COMPLETED else None,
                    step=3,
                    reason=None,
                    n_attempts=1,
                    worker="w",
                    created_at=NOW,
                    started_at=NOW,
                    ended_at=NOW,
                    verdicts=verdicts,
                )
            )
    return found


@pytest.mark.parametrize(
    ("kinds", "what", "side", "words"),
    [
        ({"diverged": 1}, "lr", "low", "all 1 trials of coarse diverged: lr starts too high"),
        ({"lr_too_low": 8}, "lr", "high", "8 of 8 trials of coarse learned too slowly: lr ends too low"),
        ({"lr_too_low": 15, "underfitting": 5}, "lr", "high", "15 of 20 trials"),
        ({"lr_too_low": 27, "healthy": 3}, "lr", "high", "27 of 30 trials"),
        ({"underfitting": 10}, "reg", "low", "of 10 trials of coarse 0 diverged and 10 learned next to nothing"),
        ({"lr_too_low": 10, "underfitting": 6, "diverged": 32}, "reg", "low", "of 48 trials of coarse 32 diverged"),
    ],
)
def test_the_verdicts_say_where_to_go(kinds: dict[str, int], what: str, side: str, words: str) -> None:
    move = move_on("coarse", trials(**kinds))
    assert isinstance(move, Move)
    assert (move.what, move.side) == (what, side)
    assert words in move.reason


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"failed": 20},
        {"lr_too_low": 7},
        {"lr_too_low": 26, "healthy": 4},
        {"diverged": 20, "healthy": 20},
        {"lr_too_low": 6, "underfitting": 4},
    ],
)
def test_where_something_was_learned_or_little_is_known_nothing_is_said(kinds: dict[str, int]) -> None:
    assert move_on("coarse", trials(**kinds)) is None
