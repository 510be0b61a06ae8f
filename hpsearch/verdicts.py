"""What a trial's learning curves show: named diagnoses from rules over a handful of numbers.

docs/babysitting.md explains every rule with its formula and source; "the lecture" is cs231n, "Training Neural Networks,
Part 1" and its notes neural-networks-3 ("Babysitting the learning process").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hpsearch.curves import TINY, Curves, Point
from hpsearch.trial import TrialState

NAMES = (
    "diverged", "lr_too_high", "lr_too_low", "plateau_then_progress", "overfitting", "underfitting", "still_improving",
    "saturated", "dead_units", "healthy",
)  # fmt: skip
"""Every verdict, in the order in which :func:`judge` gives them."""

BARELY = 0.05
"""A loss that has lost less than this share of its start has barely moved. In the lecture's example of a rate too low
(lr 1e-6) it loses 0.05 % in ten epochs; a rate that trains takes 5 % in the first one."""

SLOW_UPDATE = 1e-4
"""Updates this small against the weights, a tenth of the healthy 1e-3, are too slow (the lecture)."""

LINEAR = (0.8, 1.25)
"""Pace in the last third of the steps over the mean pace: near 1 where the loss falls linearly, which says that the
rate is low (the lecture). A loss that decays exponentially has 0.84 after half a time constant and 0.69 after one."""

LINEAR_PROGRESS = 0.5
"""A loss that has lost this much while it fell linearly is on its way whatever its shape."""

ROSE = 0.15
"""Rises of the epoch's mean training loss that add up to this share of the loss at chance. Under a rate that is not too
high it falls; the start, the loss of one minibatch of 100, is off by up to 4 %, an epoch's mean by less."""

FAST_UPDATE = 0.01
"""Updates this large against the weights, ten times the healthy 1e-3, are too fast (the lecture) where the loss is
stuck."""

STUCK = 0.5
"""A training loss that has stopped falling above this share of the loss at chance is stuck."""

FLAT = 0.03
"""A loss within this share of where it started is on its first plateau."""

SURGE = 5.0
"""A plateau ends with an epoch that is so many times as fast as the plateau; a rate that is merely low falls
linearly, with a factor near 1 (the lecture)."""

FELL = 0.1
"""Progress after a plateau, as a share of the loss at chance."""

VAL_ROSE = 0.1
"""A validation loss this much above its lowest has turned, if that is also more than :data:`NOISE`."""

NOISE = 0.02
"""Changes of the validation loss below this share of the loss at chance are noise: the standard error of a mean over
1,000 samples is about that."""

ACCURACY_GAP = 0.1
"""Train minus validation accuracy. The lecture calls a "big gap" overfitting; a two-layer net at its best on digits has
0.03, and this is two standard errors (0.035 at an accuracy of one half) over that on 200 validation samples."""

LOSS_GAP = 0.25
"""As :data:`ACCURACY_GAP`, of the losses, as a share of the loss at chance."""

SMALL_GAP = 0.05
"""A gap of accuracies below this, or of losses as a share of the loss at chance, is small."""

HIGH_LOSS = 0.8
"""A training loss above this share of the loss at chance is high: less than a fifth of what there is to know was
learned."""

LATE = 0.05
"""Improvement in the last third of the steps, as a share of all improvement, that more steps would likely continue: a
loss that decays exponentially has it until it has run for about four time constants."""

BAD_START = 3.0
"""A loss that starts at so many times its theory starts from scores far too large: the softmax is saturated on wrong
classes (the lecture: "look for correct loss at chance performance")."""

SATURATED = 0.5
"""Share of activations in the flat parts of their function at which half of the gradient is lost in one layer."""

DEAD = 0.4
"""Share of dead units: the lecture's "as much as 40 % of your network can be dead" of a rate set too high."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One diagnosis.

    Attributes:
        name: one of :data:`NAMES`.
        epoch: the step it is about (since when, or where), if it is about one.
        evidence: the numbers it rests on; non-finite only for ``diverged``.
        advice: one sentence: what to do.
    """

    name: str
    epoch: int | None
    evidence: dict[str, float] = field(default_factory=dict)
    advice: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "epoch": self.epoch, "evidence": dict(self.evidence), "advice": self.advice}


def judge(
    curves: Sequence[Point],
    *,
    state: TrialState,
    metric: str,
    direction: Literal["maximize", "minimize"],
    chance_loss: float | None = None,
) -> list[Verdict]:
    """Diagnose one trial that has ended; several verdicts may hold, and none where nothing can be said.

    ``train_loss``, ``val_loss``, ``train_accuracy``, ``val_accuracy`` and the ``diag/…`` of
    :mod:`hpsearch.training.diagnostics` are used where they are there. Without losses the metric alone is judged.

    Args:
        curves: what it reported, ascending by step; may be empty, one step, or hold NaN and infinities.
        state: how it ended.
        metric: the study's metric.
        direction: of the metric.
        chance_loss: the loss of knowing nothing (ln C), if known; ``diag/chance_loss`` where reported goes first.

    Never raises. A trial of 10 epochs takes about 40 µs, one of 1,000 about 1 ms.
    """
    seen = Curves(curves, metric, direction, chance_loss)
    found: dict[str, Verdict] = {}
    for name, rule in _RULES.items():
        if verdict := rule(seen, state, found):
            found[name] = verdict if name == "diverged" else _finite(verdict)
    return [found[name] for name in NAMES if name in found]


def _finite(verdict: Verdict) -> Verdict:
    if all(map(math.isfinite, verdict.evidence.values())):
        return verdict
    return replace(verdict, evidence={name: v for name, v in verdict.evidence.items() if math.isfinite(v)})


_Found = Mapping[str, Verdict]


def _diverged(seen: Curves, state: TrialState, _: _Found) -> Verdict | None:
    if state is not TrialState.DIVERGED and seen.bad is None:
        return None
    evidence = {}
    if seen.bad is not None:
        evidence["value"] = seen.bad[1]
    elif seen.train:
        evidence["train_loss"] = seen.train[-1]
    if seen.start is not None:
        evidence["initial_loss"] = seen.start
    epoch = seen.bad[0] if seen.bad is not None else seen.last_step
    return Verdict(
        "diverged", epoch, evidence, "Lower the upper end of the learning rate's range, or clip the gradient."
    )


def _since(found: Sequence[tuple[int, float]], limit: float) -> int | None:
    """The step since which values have been at least ``limit`` to the end; None if the last is not."""
    since = None
    for step, value in reversed(found):
        if value < limit:
            break
        since = step
    return since


def _starts_badly(seen: Curves) -> bool:
    """Whether the loss started far above its theory."""
    return seen.theory is not None and seen.raw_start is not None and seen.raw_start >= BAD_START * seen.theory


def _saturated(seen: Curves, _: TrialState, __: _Found) -> Verdict | None:
    shares = seen.found("diag/saturated")
    epoch = _since(shares, SATURATED)
    if epoch is not None:
        advice = "Start from smaller weights (xavier), standardise the inputs, or use batch norm or ReLU."
        return Verdict("saturated", epoch, {"saturated": shares[-1][1]}, advice)
    if not _starts_badly(seen) or seen.theory is None or seen.raw_start is None:
        return None
    evidence = {"initial_loss": seen.raw_start, "chance_loss": seen.theory}
    advice = "The loss starts far above chance: lower the scale of the initial weights, or standardise the inputs."
    return Verdict("saturated", seen.first_step, evidence, advice)


def _dead_units(seen: Curves, _: TrialState, __: _Found) -> Verdict | None:
    shares = seen.found("diag/dead")
    epoch = _since(shares, DEAD)
    if epoch is None:
        return None
    advice = "Lower the learning rate or the initial weights, or use leaky_relu."
    return Verdict("dead_units", epoch, {"dead": shares[-1][1]}, advice)


def _lr_too_high(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    advice = "Lower the learning rate: by 3 if the loss swings, by 10 and more if it explodes."
    if "diverged" in found:
        # From a start that was already wrong, the weights are to blame and not the rate.
        if not seen.has_losses or _starts_badly(seen):
            return None
        return Verdict("lr_too_high", found["diverged"].epoch, dict(found["diverged"].evidence), advice)
    if not seen.train:
        return None
    path = [*([seen.start] if seen.start is not None else []), *seen.train]
    rises = [max(0.0, after - before) for before, after in itertools.pairwise(path)]
    if sum(rises) >= ROSE * seen.chance:
        offset = len(seen.train) - len(rises)
        worst = max(range(len(rises)), key=rises.__getitem__)
        return Verdict(
            "lr_too_high", seen.steps[worst + offset],
            {"rise": sum(rises), "chance_loss": seen.chance, "train_loss": seen.train[-1]}, advice,
        )  # fmt: skip
    return _stuck(seen, found, advice)


def _stuck(seen: Curves, found: _Found, advice: str) -> Verdict | None:
    """Fast, then flat at a bad value (the lecture's picture of a high rate), with updates that are large to the end."""
    ratio = seen.median("diag/update_ratio")
    if ratio is None or ratio < FAST_UPDATE or len(seen.steps) < 3 or "still_improving" in found:
        return None
    if seen.train[-1] < STUCK * seen.chance:
        return None
    # All losses at chance: there the regularisation may be what shrinks the weights, at any rate.
    if all(abs(loss - seen.chance) <= BARELY * seen.chance for loss in (seen.train[-1], *seen.val)):
        return None
    return Verdict("lr_too_high", seen.last_step, {"update_ratio": ratio, "train_loss": seen.train[-1]}, advice)


def _lr_too_low(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    # Where the gradient is stuck, or the loss explodes, a higher rate is no help.
    explained = {"diverged", "lr_too_high", "saturated", "dead_units", "plateau_then_progress"}
    if seen.progress is None or found.keys() & explained:
        return None
    ratio = seen.median("diag/update_ratio")
    evidence = {"progress": seen.progress}
    if ratio is not None:
        evidence["update_ratio"] = ratio
    slow = ratio is not None and ratio < SLOW_UPDATE
    # Of either sign: the start is the loss of one minibatch, and so a little off.
    if abs(seen.progress) < BARELY and (slow or (ratio is None and _falling(seen.train or seen.val))):
        advice = "Raise the learning rate by 10 and more: the loss barely moves, even where the accuracy jumps."
    elif "still_improving" in found and seen.progress < LINEAR_PROGRESS and (slow or _is_linear(seen)):
        advice = "Raise the learning rate by 3 to 10: the loss falls, but too slowly for so many epochs."
    else:
        return None
    if accuracy := seen.series("val_accuracy"):
        evidence["val_accuracy"] = accuracy[-1]
    return Verdict("lr_too_low", seen.last_step, evidence, advice)


def _is_linear(seen: Curves) -> bool:
    losses = [*([seen.start] if seen.start is not None else []), *(seen.val or seen.train)]
    steps = len(losses) - 1
    late = steps // 3
    if late == 0:
        return False
    pace = (losses[0] - losses[-1]) / steps
    return LINEAR[0] * pace <= (losses[-1 - late] - losses[-1]) / late <= LINEAR[1] * pace


def _falling(losses: Sequence[float]) -> bool:
    return losses[-1] < losses[0] or len(losses) == 1


def _plateau(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    losses = seen.train or seen.val
    if "diverged" in found or len(losses) < 3:
        return None
    level = losses[0]
    length = 0
    while length < len(losses) and abs(losses[length] - level) <= FLAT * seen.chance:
        length += 1
    if length < max(2, len(losses) / 10) or length == len(losses):
        return None
    fell = losses[length - 1] - min(losses[length:])
    fastest = max(before - after for before, after in itertools.pairwise(losses[length - 1 :]))
    pace = (level - losses[length - 1]) / (length - 1)
    if fell < FELL * seen.chance or fastest < SURGE * pace:
        return None
    return Verdict(
        "plateau_then_progress", seen.steps[length - 1],
        {"plateau_epochs": float(length), "plateau_loss": level, "train_loss": losses[-1]},
        "Suspect the initialisation: use one that keeps the signal's variance (he for ReLU, xavier for tanh).",
    )  # fmt: skip


def _overfitting(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    if "diverged" in found or not (seen.train and seen.val):
        return None
    return _val_turned(seen) or _gap(seen)


MORE_REGULARISATION = "Regularise more (reg, dropout, augmentation), stop earlier, or get more data."


def _val_turned(seen: Curves) -> Verdict | None:
    # Step 0, before the first update, is as good a lowest point as any.
    known = seen.start is not None
    val = [seen.start, *seen.val] if seen.start is not None else seen.val
    train = [seen.start, *seen.train] if seen.start is not None else seen.train
    lowest = min(range(len(val)), key=val.__getitem__)
    rise = val[-1] - val[lowest]
    if rise < max(VAL_ROSE * val[lowest], NOISE * seen.chance) or train[-1] >= train[lowest] - NOISE * seen.chance:
        return None
    epoch = seen.steps[max(0, lowest - known)]
    evidence = {"lowest_val_loss": val[lowest], "val_loss": val[-1], "train_loss": train[-1]}
    return Verdict("overfitting", epoch, evidence, MORE_REGULARISATION)


def _gap(seen: Curves) -> Verdict | None:
    train, val = seen.series("train_accuracy"), seen.series("val_accuracy")
    if train and val:
        gaps, limit = [a - b for a, b in zip(train, val, strict=True)], ACCURACY_GAP
    else:
        gaps, limit = [b - a for a, b in zip(seen.train, seen.val, strict=True)], LOSS_GAP * seen.chance
    if gaps[-1] < limit:
        return None
    evidence = {"gap": gaps[-1], "train_loss": seen.train[-1], "val_loss": seen.val[-1]}
    epoch = _since(list(zip(seen.steps, gaps, strict=True)), limit)
    return Verdict("overfitting", epoch, evidence, MORE_REGULARISATION)


def _underfitting(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    explained = {"diverged", "lr_too_high", "lr_too_low", "overfitting", "still_improving"}
    if not (seen.train or seen.val) or found.keys() & explained:
        return None
    # Of one or two epochs nobody knows whether they have stalled: only a loss that has not moved at all counts.
    if seen.theory is None and seen.start is None:
        return None
    limit = HIGH_LOSS if len(seen.steps) >= 3 else 1 - BARELY
    if seen.lowest_loss < limit * seen.chance:
        return None
    if seen.train and seen.val and seen.val[-1] - seen.train[-1] > SMALL_GAP * seen.chance:
        return None
    evidence = {"loss": seen.lowest_loss, "chance_loss": seen.chance}
    if seen.train and seen.val:
        evidence["gap"] = seen.val[-1] - seen.train[-1]
    advice = "It has learned little of the training set: regularise less or enlarge the model."
    if found.keys() & {"dead_units", "saturated"}:
        advice = (
            "It has learned little of the training set: mend its dead or saturated units first, or regularise less."
        )
    return Verdict("underfitting", seen.steps[-1], evidence, advice)


def _still_improving(seen: Curves, _: TrialState, found: _Found) -> Verdict | None:
    if "diverged" in found:
        return None
    losses = seen.val or ([] if seen.metric else seen.train)
    path = list(losses) if losses else [seen.sign * value for value in seen.metric]
    if losses and seen.start is not None:
        path = [seen.start, *path]
    if len(path) < 2:
        return None
    late = max(1, (len(path) - 1) // 3)
    before, after = min(path[:-late]), min(path[-late:])
    total = path[0] - after
    if before - after < max(LATE * total, TINY) or (losses and total < BARELY * seen.chance):
        return None
    evidence = {"late_share": (before - after) / max(total, TINY), "late_epochs": float(late)}
    return Verdict("still_improving", seen.steps[-1], evidence, "Train longer: it was still getting better at the end.")


def _healthy(seen: Curves, state: TrialState, found: _Found) -> Verdict | None:
    if found.keys() - {"still_improving"} or state is TrialState.FAILED or not seen.steps:
        return None
    if seen.progress is not None:
        if seen.progress < BARELY:
            return None
        evidence = {"progress": seen.progress}
    elif len(seen.metric) >= 2 and min(seen.sign * v for v in seen.metric[1:]) < seen.sign * seen.metric[0]:
        evidence = {"first": seen.metric[0], "last": seen.metric[-1]}
    else:
        return None
    return Verdict("healthy", None, evidence, "Nothing to do.")


_RULES = {
    "diverged": _diverged,
    "saturated": _saturated,
    "dead_units": _dead_units,
    "still_improving": _still_improving,
    "lr_too_high": _lr_too_high,
    "plateau_then_progress": _plateau,
    "lr_too_low": _lr_too_low,
    "overfitting": _overfitting,
    "underfitting": _underfitting,
    "healthy": _healthy,
}
"""In an order in which causes stand before what they explain."""
