"""Flags: is the best at the border of its range?

For one border of one parameter, take the outer band (the outer 15 % of the range on the parameter's own scale) and the
best 15 % of the completed trials. If the parameter did not matter near this border, the best trials would be a random
subset of all completed ones, so the number of them in the band is hypergeometric given how many trials lie in the band:
this holds whatever the density that the trials were drawn from. The p-value is the chance of that many or more, times
the number of borders examined (Bonferroni), so that it bounds the chance of any false flag in the stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from scipy.stats import hypergeom

from hpsearch.search.ranking import ranked
from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

BAND = 0.15
BEST_SHARE = 0.15
MIN_TRIALS = 20
"""With fewer completed trials nothing is said."""
LEVELS = (("strong", 0.001), ("likely", 0.01), ("watch", 0.05))
"""Level → the largest p-value that has it."""
EXTENSION = 0.25
"""A proposed range grows by this share of the range on the side of the flag, on the parameter's own scale."""

Side = Literal["low", "high"]


class FlagVerdict(StrEnum):
    """What to make of a flag."""

    WIDEN = "widen"
    UNSTABLE_EDGE = "unstable_edge"
    """The best sit against a cliff: at least half of the trials in the band diverged."""
    NATURAL_LIMIT = "natural_limit"
    INSUFFICIENT_DATA = "insufficient_data"


@dataclass(frozen=True, slots=True)
class Flag:
    """A statement about one border of one parameter's range in one stage. ``p_value`` is corrected for all borders."""

    stage: str
    parameter: str
    side: Side
    level: str
    p_value: float
    verdict: FlagVerdict
    message: str
    proposed: dict[str, float] | None


def border_flags(stage: str, space: Space, trials: Sequence[Trial], metric: Metric) -> list[Flag]:
    """The flags of one stage, most certain first; empty with fewer than :data:`MIN_TRIALS` completed trials."""
    done = ranked(trials, metric)
    numeric = {n: p for n, p in space.items() if not isinstance(p, CategoricalParam)}
    if len(done) < MIN_TRIALS or not numeric:
        return []
    n_best = math.ceil(BEST_SHARE * len(done))
    diverged = [t for t in trials if t.state is TrialState.DIVERGED]
    flags = []
    for name, param in numeric.items():
        units = [to_unit(param, t.params[name]) for t in done]
        cliff = [to_unit(param, t.params[name]) for t in diverged]
        for side in ("low", "high"):
            flag = _flag(stage, name, param, side, units, cliff=cliff, n_best=n_best, n_borders=2 * len(numeric))
            if flag:
                flags.append(flag)
    return sorted(flags, key=lambda f: f.p_value)


def _flag(
    stage: str,
    name: str,
    param: FloatParam | IntParam,
    side: Side,
    units: list[float],
    *,
    cliff: list[float],
    n_best: int,
    n_borders: int,
) -> Flag | None:
    in_band = [_in_band(u, side) for u in units]
    hits, band = sum(in_band[:n_best]), sum(in_band)
    p_value = min(1.0, n_borders * float(hypergeom.sf(hits - 1, len(units), band, n_best)))
    level = next((level for level, bound in LEVELS if p_value <= bound), None)
    if level is None:
        return None
    end = param.low if side == "low" else param.high
    n_cliff = sum(_in_band(u, side) for u in cliff)
    text = f"{hits} of the best {n_best} trials lie at the {side} border of {name} ({end:g}), p = {p_value:.2g}. "
    if n_cliff >= max(band, 1):
        text += (
            f"But {n_cliff} trials there diverged: the edge is unstable; a smaller lr helps more than a wider range."
        )
        return Flag(stage, name, side, level, p_value, FlagVerdict.UNSTABLE_EDGE, text, None)
    proposed = _wider(param, side)
    if proposed[side] == end:
        text += "The range ends there by nature."
        return Flag(stage, name, side, level, p_value, FlagVerdict.NATURAL_LIMIT, text, None)
    text += f"Widen {name} to [{proposed['low']:.3g}, {proposed['high']:.3g}]."
    return Flag(stage, name, side, level, p_value, FlagVerdict.WIDEN, text, proposed)


def _in_band(unit: float, side: Side) -> bool:
    return unit <= BAND if side == "low" else unit >= 1 - BAND


def _wider(param: FloatParam | IntParam, side: Side) -> dict[str, float]:
    low, high = float(param.low), float(param.high)
    if param.log:
        factor = (high / low) ** EXTENSION
        low, high = (low / factor, high) if side == "low" else (low, high * factor)
    else:
        width = EXTENSION * (high - low)
        low, high = (low - width, high) if side == "low" else (low, high + width)
    if isinstance(param, IntParam):
        low, high = math.floor(low), math.ceil(high)
        low = max(low, 1) if param.log else low
    return {"low": low, "high": high}
