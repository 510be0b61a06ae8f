"""Which range to open past a border, and which borders lie where they do by nature."""

from __future__ import annotations

import math

from hpsearch.search.borders.flag import Side
from hpsearch.space import MAX_INT, FloatParam, IntParam

SHARES = frozenset(
    {"batch_norm_momentum", "beta1", "beta2", "dropout", "factor", "label_smoothing", "lr_decay", "momentum", "rho"}
)
"""Parameters (last part of their name) that lie between 0 and 1."""
MIN_DECADES, MAX_DECADES = 1.0, 2.0
"""How far a log range is extended: half of it, but neither less nor more than this."""
LEAST, MOST = 1e-300, 1e300


def natural_end(name: str, param: FloatParam | IntParam, side: Side) -> str | None:
    """Why the range cannot go on past a border, as the end of a sentence; None if it can."""
    end = param.low if side == "low" else param.high
    limit = param.hard_low if side == "low" else param.hard_high
    if param.natural:
        return "the range is declared to end there by nature"
    if limit is not None and limit == end:
        return f"{end:g} is its hard limit"
    if side == "low" and not param.log and end == 0:
        return "less than 0 has no meaning for it"
    if side == "low" and isinstance(param, IntParam) and end == 1:
        return "less than 1 has no meaning for it"
    if side == "high" and end == 1 and _is_share(name, param):
        return "more than 1 has no meaning for it"
    return None if next_range(name, param, side)[side] != end else f"nothing but {end:g} lies within its limits"


def next_range(name: str, param: FloatParam | IntParam, side: Side) -> dict[str, float]:
    """The range to open when the best lies beyond a border: half of the old one, and as much again past the border.

    On the parameter's own scale: it starts in the middle of the old range and ends half of that range's width past the
    border; for a log range at least one decade past it, at most two. It stays within ``hard_low`` and ``hard_high``,
    above 0 if the old one does, and on the old one's grid; 1 of a share is approached by half of what is missing.
    """
    if param.log:
        low, high = _log_range(param, side)
    elif isinstance(param, FloatParam) and param.step is None:
        low, high = _linear_range(param, side)
    else:
        low, high = _grid_range(name, param, side)
    least, most = _limits(name, param)
    low, high = max(low, least), min(high, most)
    return {"low": int(low), "high": int(high)} if isinstance(param, IntParam) else {"low": low, "high": high}


def _log_range(param: FloatParam | IntParam, side: Side) -> tuple[float, float]:
    low, high = math.log10(param.low), math.log10(param.high)
    middle, reach = (low + high) / 2, min(max((high - low) / 2, MIN_DECADES), MAX_DECADES)
    ends = (max(low - reach, -300.0), middle) if side == "low" else (middle, min(high + reach, 300.0))
    new_low, new_high = 10 ** ends[0], 10 ** ends[1]
    if isinstance(param, IntParam):  # powers of ten are not exact
        return math.floor(new_low * (1 + 1e-12)), math.ceil(new_high * (1 - 1e-12))
    return new_low, new_high


def _linear_range(param: FloatParam, side: Side) -> tuple[float, float]:
    half = (param.high - param.low) / 2
    middle = param.low + half
    return (param.low - half, middle) if side == "low" else (middle, param.high + half)


def _grid_range(name: str, param: FloatParam | IntParam, side: Side) -> tuple[float, float]:
    """For whole numbers and steps: positions on the old grid, counted from its low end."""
    n = param.cells if isinstance(param, FloatParam) else (param.high - param.low) // param.step + 1
    step = param.step or 1.0
    least, most = _limits(name, param)
    half = max(n // 2, 1)
    first, last = (-half, half) if side == "low" else (n - 1 - half, n - 1 + half)
    first = max(first, math.ceil((least - param.low) / step - 1e-9))
    last = min(last, math.floor((most - param.low) / step + 1e-9))
    if isinstance(param, FloatParam):
        return param.grid(first), param.grid(last)
    return param.low + first * param.step, param.low + last * param.step


def _limits(name: str, param: FloatParam | IntParam) -> tuple[float, float]:
    """What a range may not go beyond."""
    least, most = (-MAX_INT, MAX_INT) if isinstance(param, IntParam) else (-MOST, MOST)
    if param.low >= 0:  # a size: below 0 it would mean something else
        least = 0
    if param.log:
        least = 1 if isinstance(param, IntParam) else LEAST
    if _is_share(name, param):
        most = param.high + (1 - param.high) / 2
    hard_low, hard_high = param.hard_low, param.hard_high
    return least if hard_low is None else hard_low, most if hard_high is None else hard_high


def _is_share(name: str, param: FloatParam | IntParam) -> bool:
    return isinstance(param, FloatParam) and name.rsplit(".", 1)[-1] in SHARES and param.low >= 0 and param.high <= 1
