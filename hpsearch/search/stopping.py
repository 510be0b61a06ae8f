"""Early stopping: which trials of a stage go on, from what they and the others had when they came to an epoch.

Pure rules; :mod:`hpsearch.stopper` applies them to what workers report. A value is the study's metric; one that is not
finite counts as worse than any other.

- Successive halving, asynchronous and with promotion: Li et al., "A System for Massively Parallel Hyperparameter
  Tuning" (MLSys 2020), algorithm 2. At each rung the best ``floor(n / reduction)`` of the n trials that came to it go
  on; the others wait, and go on later should the rung grow so that they are among the best.
- Hyperband: Li et al. (JMLR 2018). Bracket b begins at rung b; the last one stops nothing.
- Median: Golovin et al., "Google Vizier" (KDD 2017), section 3.2.1, over the running means of all
  trials that came to the epoch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from hpsearch.methods import Asha, EarlyStopping, Halving, Hyperband, Patience, Threshold
from hpsearch.trial import Trial, TrialState

Key = tuple[float, int]
"""What trials at a rung are ordered by: value, so that smaller is better, then number."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, spread evenly however many there are: so brackets get their shares at any time."""


def rung_levels(rule: Halving, epochs: int, bracket: int = 0) -> list[int]:
    """The epochs of the rungs of one bracket, rising, all before the last epoch. None in hyperband's last bracket."""
    levels = []
    level = rule.min_epochs
    while level < epochs:
        levels.append(level)
        level *= rule.reduction
    return levels[bracket:]


def bracket_of(rule: Halving, epochs: int, number: int) -> int:
    """The bracket of a trial, 0 for ``asha``.

    Of hyperband's b_max + 1 brackets the one that begins at rung b gets a share of the trials in proportion to
    ``(b_max + 1) / (b_max - b + 1) · reduction^(b_max - b)``, the n of its algorithm 1.
    """
    if isinstance(rule, Asha):
        return 0
    last = len(rung_levels(rule, epochs))
    sizes = [math.ceil((last + 1) / (last - b + 1) * rule.reduction ** (last - b)) for b in range(last + 1)]
    place = number * GOLDEN % 1 * sum(sizes)
    bracket = 0
    while place >= sizes[bracket]:
        place -= sizes[bracket]
        bracket += 1
    return bracket


class Rung:
    """What the trials that came to one rung had there, best first, and which of them went on.

    Asking and adding take O(log n) comparisons.
    """

    def __init__(self, *, maximize: bool, reduction: int) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._reduction = reduction
        self._keys: dict[int, Key] = {}
        self._all: list[Key] = []
        self._waiting: list[Key] = []

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, trial: int) -> bool:
        return trial in self._keys

    @property
    def n_top(self) -> int:
        """How many may go on: ``floor(n / reduction)``."""
        return len(self._all) // self._reduction

    def add(self, trial: int, value: float | None) -> None:
        """A trial came here; it waits. The first value that it had counts."""
        if trial in self._keys:
            return
        finite = value is not None and math.isfinite(value)
        key = self._keys[trial] = (self._sign * value if value is not None and finite else math.inf, trial)
        insort(self._all, key)
        if finite:
            insort(self._waiting, key)

    def let_on(self, trial: int) -> None:
        """A trial waits no longer. Harmless if it does not wait."""
        key = self._keys.get(trial)
        if key is None:
            return
        place = bisect_left(self._waiting, key)
        if place < len(self._waiting) and self._waiting[place] == key:
            del self._waiting[place]

    def is_top(self, trial: int) -> bool:
        """Whether a trial that came here is among the best."""
        key = self._keys[trial]
        return self.n_top > 0 and math.isfinite(key[0]) and key <= self._all[self.n_top - 1]

    def waiting(self) -> Iterator[int]:
        """Trials that wait, best first; those without a finite value wait for nothing."""
        return (trial for _, trial in self._waiting)

    def promotable(self) -> list[int]:
        """Waiting trials that are among the best, best first."""
        return list(takewhile(self.is_top, self.waiting()))

    def says(self, trial: int, step: int, *, top: bool) -> str:
        """Where a trial stands here, as a sentence."""
        share = {2: "half", 3: "third", 4: "quarter", 5: "fifth"}.get(self._reduction, f"1/{self._reduction}")
        of = f"the best {share} of {_count(len(self._all), 'trial')} at this rung"
        return f"{self.had(trial, step)} is {'' if top else 'not '}among {of}"

    def had(self, trial: int, step: int) -> str:
        """What a trial had here, as words."""
        value = self._sign * self._keys[trial][0]
        shown = f"{value:.4g}" if math.isfinite(value) else "a value that is not finite"
        return f"{shown} after {_count(step, 'epoch')}"


class Curve(NamedTuple):
    """What one trial's metric was so far.

    Attributes:
        last: its last step, 0 before the first.
        mean: of its finite values.
        best: the best of them, None before the first.
        reference: the last value that was better than all before by more than ``min_delta``.
        risen_at: its step.
    """

    maximize: bool
    min_delta: float = 0.0
    last: int = 0
    n: int = 0
    mean: float = 0.0
    best: float | None = None
    reference: float | None = None
    risen_at: int = 0

    def after(self, step: int, value: float) -> Curve:
        """The curve with the next step's value; one that is not finite counts as no progress."""
        if not math.isfinite(value):
            return self._replace(last=step)
        n = self.n + 1
        best, reference, risen_at = self.best, self.reference, self.risen_at
        if best is None or self._gain(best, value) > 0:
            best = value
        if reference is None or self._gain(reference, value) > self.min_delta:
            reference, risen_at = value, step
        mean = self.mean + (value - self.mean) / n
        return Curve(self.maximize, self.min_delta, step, n, mean, best, reference, risen_at)

    def _gain(self, old: float, new: float) -> float:
        return new - old if self.maximize else old - new


class Means:
    """Running means of the trials that came to one step, in order."""

    def __init__(self) -> None:
        self._of: dict[int, float] = {}
        self._all: list[float] = []

    def __contains__(self, trial: int) -> bool:
        return trial in self._of

    def add(self, trial: int, mean: float) -> None:
        """A trial came here; the first mean that it had counts."""
        if trial not in self._of:
            self._of[trial] = mean
            insort(self._all, mean)

    def median_of_others(self, trial: int) -> tuple[int, float]:
        """How many other trials there are, and the median of their means (NaN of none)."""
        own = bisect_left(self._all, self._of[trial]) if trial in self._of else len(self._all)
        n = len(self._all) - (trial in self._of)
        if n == 0:
            return 0, math.nan

        def at(place: int) -> float:
            return self._all[place + (place >= own)]

        return n, (at((n - 1) // 2) + at(n // 2)) / 2


def median_says(curve: Curve, n_others: int, median: float, *, min_trials: int) -> str | None:
    """Why a trial stops: its best so far is worse than the median; None if it goes on."""
    if curve.best is None or n_others < min_trials:
        return None
    worse = curve.best < median if curve.maximize else curve.best > median
    if not worse:
        return None
    best, epochs = f"{curve.best:.4g}", _count(curve.last, "epoch")
    return f"its best, {best}, after {epochs} is worse than {median:.4g}, the median of {n_others} other trials"


def patience_says(rule: Patience, curve: Curve) -> str | None:
    """Why a trial ends: it has not become better for long; None if it goes on."""
    if curve.last - curve.risen_at < rule.epochs:
        return None
    better = f"better by more than {rule.min_delta:g}" if rule.min_delta else "better"
    return (
        f"it has not become {better} for {_count(curve.last - curve.risen_at, 'epoch')}, since epoch {curve.risen_at}"
    )


def threshold_says(rule: Threshold, step: int, value: float, *, maximize: bool) -> str | None:
    """Why a trial stops: it has not come to the value asked for at this epoch; None if it goes on."""
    asked = next((bound for epoch, bound in reversed(rule.pairs) if epoch <= step), None)
    if asked is None or (value >= asked if maximize else value <= asked):
        return None
    return f"{value:.4g} after {_count(step, 'epoch')} is not {'at least' if maximize else 'at most'} {asked:g}"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


# What it was worth


@dataclass(frozen=True, slots=True)
class RungCount:
    """What became of the trials that came to one epoch at which some were stopped, or might have been.

    Attributes:
        step: the epoch.
        n_reached: trials that came so far.
        n_stopped: of them, those that ended here (and were not promoted since).
        saved_epochs: what these would have trained beyond.
    """

    step: int
    n_reached: int
    n_stopped: int
    saved_epochs: int


def count_rungs(rule: EarlyStopping, trials: Iterable[Trial], epochs: int) -> list[RungCount]:
    """What a stage's rule stopped, by epoch, rising; of rules with rungs also the rungs where nothing was."""
    reached = [t for t in trials if t.step > 0]
    stopped = [t for t in reached if _stopped_early(rule, t, epochs)]
    steps = {t.step for t in stopped}
    if isinstance(rule, Asha | Hyperband):
        steps |= set(rung_levels(rule, epochs))
    counts = []
    for step in sorted(steps):
        here = [t for t in stopped if t.step == step]
        n_reached = sum(t.step >= step for t in reached)
        counts.append(RungCount(step, n_reached, len(here), len(here) * (epochs - step)))
    return counts


def saved_epochs(n_by_step: Mapping[int, int], epochs: int) -> int:
    """Epochs that the trials that a rule stopped would have trained beyond where they ended.

    Args:
        n_by_step: last step → number of trials of the stage in the state of :func:`stopped_as`.
        epochs: what the stage trains.
    """
    return sum(n * (epochs - step) for step, n in n_by_step.items() if 0 < step < epochs)


def stopped_as(rule: EarlyStopping) -> TrialState:
    """The state of trials that a rule stops: those that ``patience`` ends have trained as far as they get."""
    return TrialState.COMPLETED if isinstance(rule, Patience) else TrialState.PRUNED


def _stopped_early(rule: EarlyStopping, trial: Trial, epochs: int) -> bool:
    return trial.state is stopped_as(rule) and 0 < trial.step < epochs
