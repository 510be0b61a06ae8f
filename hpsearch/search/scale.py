"""The scale of a parameter: where a value lies in its range, from 0 to 1, in the measure it is sampled by.

A value's place is its logarithm's place where the parameter is ``log``. Whole numbers and grids own equal cells,
so that a uniform place gives each of them the same chance; a value's place is the middle of its cell.
"""

from __future__ import annotations

import math

from hpsearch.space import CategoricalParam, FloatParam, IntParam, Param, Value


def from_unit(param: Param, unit: float) -> Value:
    """The value at a place of the range.

    Args:
        param: the parameter.
        unit: place in [0, 1]; 0 gives the lowest value, 1 the highest.
    """
    if isinstance(param, CategoricalParam):
        return param.choices[_cell(unit, len(param.choices))]
    if isinstance(param, IntParam):
        return _int_from_unit(param, unit)
    if param.step is not None:
        return param.grid(_cell(unit, param.cells))
    if param.log:
        a, b = math.log(param.low), math.log(param.high)
        return min(max(math.exp(a + unit * (b - a)), param.low), param.high)
    return min(param.low + unit * (param.high - param.low), param.high)


def _int_from_unit(param: IntParam, unit: float) -> int:
    if param.log:
        a, b = math.log(param.low - 0.5), math.log(param.high + 0.5)
        return min(max(round(math.exp(a + unit * (b - a))), param.low), param.high)
    return param.low + _cell(unit, (param.high - param.low) // param.step + 1) * param.step


def to_unit(param: Param, value: Value) -> float:
    """The place of a value: below 0 or above 1 where it lies outside. Raises ValueError for an unknown choice."""
    if isinstance(param, CategoricalParam):
        return (param.index(value) + 0.5) / len(param.choices)
    assert isinstance(value, int | float)
    if isinstance(param, IntParam):
        if param.log:
            a, b = math.log(param.low - 0.5), math.log(param.high + 0.5)
            if value <= 0:
                return -math.inf
            return (math.log(value) - a) / (b - a) if b > a else 0.5  # beyond 2^52 neighbours share a logarithm
        cells = (param.high - param.low) // param.step + 1
        return ((value - param.low) / param.step + 0.5) / cells
    if param.step is not None:
        return ((value - param.low) / param.step + 0.5) / param.cells
    return _place(param, value)


def _place(param: FloatParam, value: float) -> float:
    if not param.log:
        return (value - param.low) / (param.high - param.low)
    if value <= 0:
        return -math.inf
    a, b = math.log(param.low), math.log(param.high)
    return (math.log(value) - a) / (b - a) if b > a else 0.5


def _cell(unit: float, cells: int) -> int:
    return min(int(unit * cells), cells - 1)
