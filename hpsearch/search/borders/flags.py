"""Flags: does the best lie beyond the border of its range?

Two things must hold for a flag. The values rise toward the border more than chance explains, among all borders of the
stage (:mod:`~hpsearch.search.borders.trend`: an exact permutation test, p ≤ 0.05). And the best value inside lies *at*
the border, not before it, with probability at least 0.97 (:mod:`~hpsearch.search.borders.surface`: the posterior of a
response surface), and more likely than not so when only the trials in the outer half of the range are looked at. The
first alone would flag every parameter whose optimum lies off the middle of its range, the second alone many that do not
matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hpsearch.search.borders.evidence import Cliff, Evidence, border_evidence
from hpsearch.search.borders.flag import Flag, FlagVerdict, Level, level_of
from hpsearch.search.borders.proposals import natural_end, next_range
from hpsearch.search.borders.results import Results, results
from hpsearch.search.borders.trend import BAND
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial

MIN_TRIALS = 20
"""With fewer completed trials the only verdict is ``insufficient_data``."""
AT_BORDER = 0.97
"""Least posterior probability that the best value inside lies at the border."""
MIN_TRIALS_TO_ACT = 12
AT_BORDER_TO_ACT = 0.8
"""The same for :func:`worth_extending`: a stage too many costs some trials, a false flag costs trust."""
CLOSE_UP = 0.5
"""The same in the close-up; also of the whole range where the verdict is ``insufficient_data``."""


def border_flags(
    stage: str,
    space: Space,
    trials: Sequence[Trial],
    metric: Metric,
    *,
    adaptive: Collection[int] = (),
    min_trials: int = MIN_TRIALS,
    at_border: float = AT_BORDER,
) -> list[Flag]:
    """The flags of one stage, most certain first, at most one per border. The same trials give the same flags.

    Args:
        stage: its name.
        space: its ranges; categorical parameters are skipped.
        trials: its trials, and those inherited from its parents that lie inside. Completed ones are ranked; those
            stopped early share the last rank; diverged ones may form a cliff; others are left out.
        metric: what is searched for.
        adaptive: numbers of the trials whose params followed from earlier results (TPE, GP, CMA-ES). They are left out
            if 20 completed trials remain. If not, all are used, the level is ``watch`` at most, and the message says
            so.
        min_trials: completed ones that any verdict but ``insufficient_data`` takes, at least 8.
        at_border: least posterior probability that the best inside lies at the border, from 0.5 to 1.

    Returns:
        Nothing if fewer than 8 trials completed, all values are equal, or there is no numeric parameter.
    """
    followed = set(adaptive)
    independent = [t for t in trials if t.number not in followed]
    found = results(space, independent, metric)
    left_out = len(trials) - len(independent)
    weak = bool(left_out) and int(found.completed.sum()) < min_trials
    if weak:
        found = results(space, trials, metric)
    flags = []
    for evidence in border_evidence(found):
        param = space[evidence.parameter]
        level = level_of(evidence.p_value)
        enough = int(found.completed.sum()) >= min_trials
        if level is None or not _is_at_border(evidence, at_border if enough else None):
            continue
        assert not isinstance(param, CategoricalParam)
        level = level if enough and not weak else "watch"
        note = _adaptive_note(left_out, weak=weak)
        flags.append(_flag(stage, param, evidence, found, level=level, enough=enough, note=note))
    return sorted(flags, key=lambda f: (f.p_value, -f.at_border))


def worth_extending(
    stage: str, space: Space, trials: Sequence[Trial], metric: Metric, *, adaptive: Collection[int] = ()
) -> list[Flag]:
    """The flags that a stage past a border is opened for by itself: all with the verdict ``widen``, and weaker ones.

    The trend must be as sure (p ≤ 0.05 over all borders), but :data:`MIN_TRIALS_TO_ACT` completed trials and a
    probability of :data:`AT_BORDER_TO_ACT` are enough.
    """
    flags = border_flags(
        stage, space, trials, metric, adaptive=adaptive, min_trials=MIN_TRIALS_TO_ACT, at_border=AT_BORDER_TO_ACT
    )
    return [flag for flag in flags if flag.verdict is FlagVerdict.WIDEN]


def _is_at_border(evidence: Evidence, least: float | None) -> bool:
    """Whether the best lies at the border with the least probability asked for; None: too few trials to ask."""
    if least is None:
        return evidence.at_border >= CLOSE_UP
    return evidence.at_border >= least and evidence.close_up is not None and evidence.close_up >= CLOSE_UP


def _flag(
    stage: str,
    param: FloatParam | IntParam,
    evidence: Evidence,
    found: Results,
    *,
    level: Level,
    enough: bool,
    note: str,
) -> Flag:
    name, side = evidence.parameter, evidence.side
    proposed: dict[str, float] | None = None
    if not enough:
        verdict = FlagVerdict.INSUFFICIENT_DATA
        advice = f"Only {int(found.completed.sum())} trials completed: too few to say whether the best lies beyond it."
    elif evidence.cliff is not None:
        verdict = FlagVerdict.UNSTABLE_EDGE
        advice = _cliff_advice(name, evidence.cliff)
    elif (reason := natural_end(name, param, side)) is not None:
        verdict = FlagVerdict.NATURAL_LIMIT
        advice = f"Nothing to do: {reason}."
    else:
        verdict = FlagVerdict.WIDEN
        proposed = next_range(name, param, side)
        advice = f"Open {proposed['low']:.3g} to {proposed['high']:.3g} next."
    message = " ".join(part for part in (_statement(param, evidence, found), advice, note) if part)
    return Flag(stage, name, side, level, evidence.p_value, verdict, message, proposed, evidence.at_border)


def _statement(param: FloatParam | IntParam, evidence: Evidence, found: Results) -> str:
    end = param.low if evidence.side == "low" else param.high
    where = f"the {evidence.side} border of {evidence.parameter} ({end:g})"
    if evidence.cliff is not None:
        where = f"the cliff before {where}"
    return (
        f"The values rise toward {where}: p = {evidence.p_value:.2g} over {2 * len(found.names)} borders. "
        f"{evidence.hits} of the best {evidence.n_best} trials lie in the outer {BAND:.0%} there, and the best inside "
        f"lies at its end with probability {evidence.at_border:.2f}."
    )


def _cliff_advice(name: str, cliff: Cliff) -> str:
    n = cliff.n_diverged + cliff.n_finite
    return (
        f"But {cliff.n_diverged} of the {n} trials beyond it diverged: a wider range of {name} will not help. Lower "
        "the learning rate, warm up or clip gradients, then look again."
    )


def _adaptive_note(left_out: int, *, weak: bool) -> str:
    if not left_out:
        return ""
    if weak:
        return (
            f"{left_out} of the trials followed from earlier results and are counted all the same, for want of others: "
            "p is approximate."
        )
    return f"{left_out} trials that followed from earlier results are left out."
