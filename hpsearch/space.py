"""The search space: parameter name → distribution.

The documents here are what a study says; ``distribution`` gives the Optuna distribution that lies underneath.
"""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hpsearch.document import Document, StorableText, Text

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

Scalar = bool | int | float | StorableText | None
Choice = Scalar | list[Scalar]
Value = Choice
"""A value of a parameter: a number, a choice, or a list of scalars as a choice (``model.hidden``)."""
Params = dict[str, Value]

MAX_INT = 2**53
"""Integers up to here are exact in JSON, in SQL and in a float."""


class FloatParam(Document):
    """A real number in ``[low, high]``; uniform in its logarithm if ``log``, on a grid from ``low`` if ``step``."""

    type: Literal["float"]
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    log: bool = False
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    hard_low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    hard_high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """How far an extension of the range may go at most; None: no limit of its own."""
    natural: bool | None = None
    """Whether the range ends where it does by nature, so that a best value at its border is no reason to widen it."""

    @model_validator(mode="after")
    def _check(self) -> FloatParam:
        _check_range(self.low, self.high, log=self.log, step=self.step)
        _check_limits(self)
        return self

    @cached_property
    def distribution(self) -> FloatDistribution:
        """The Optuna distribution of this parameter."""
        from optuna.distributions import FloatDistribution  # heavy: a client does without

        high = self.high if self.step is None else self.grid(self.cells - 1)
        return FloatDistribution(self.low, high, log=self.log, step=self.step)

    @property
    def cells(self) -> int:
        """How many values the grid has; needs ``step``."""
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) // Decimal(str(self.step))) + 1

    def grid(self, index: int) -> float:
        """The value at a position of the grid, counted in decimals: 0.1 + 2 · 0.1 is 0.3. Needs ``step``."""
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step)))

    def contains(self, value: Value) -> bool:
        """Whether the value lies in the range (its grid is not checked)."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def extremes(self) -> list[Value]:
        """Values whose validity implies that of every other."""
        return [self.low, self.high]


class IntParam(Document):
    """A whole number in ``[low, high]``, both included; uniform in its logarithm if ``log``, else every ``step``."""

    type: Literal["int"]
    low: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
    high: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
    log: bool = False
    step: Annotated[int, Field(ge=1, le=MAX_INT)] = 1
    hard_low: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None
    hard_high: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None
    """How far an extension of the range may go at most; None: no limit of its own."""
    natural: bool | None = None
    """Whether the range ends where it does by nature, so that a best value at its border is no reason to widen it."""

    @model_validator(mode="after")
    def _check(self) -> IntParam:
        _check_range(self.low, self.high, log=self.log, step=self.step if self.step != 1 else None)
        _check_limits(self)
        return self

    @cached_property
    def distribution(self) -> IntDistribution:
        """The Optuna distribution of this parameter."""
        from optuna.distributions import IntDistribution  # heavy: a client does without

        high = self.low + (self.high - self.low) // self.step * self.step
        return IntDistribution(self.low, high, log=self.log, step=self.step)

    def contains(self, value: Value) -> bool:
        """Whether the value is a whole number in the range (its grid is not checked)."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def extremes(self) -> list[Value]:
        """Values whose validity implies that of every other."""
        return [self.low, self.high]


class CategoricalParam(Document):
    """One of ``choices``, all equally likely. A choice may be a list of scalars, such as widths of hidden layers."""

    type: Literal["categorical"]
    choices: Annotated[list[Choice], Field(min_length=1, max_length=1000)]

    @field_validator("choices")
    @classmethod
    def _check(cls, choices: list[Choice]) -> list[Choice]:
        seen: list[tuple[type, Choice]] = []
        for choice in choices:
            for part in choice if isinstance(choice, list) else [choice]:
                if isinstance(part, float) and not math.isfinite(part):
                    raise PydanticCustomError("choice", "{choice} is not a finite number", {"choice": str(part)})
                if isinstance(part, int) and abs(part) > MAX_INT:
                    raise PydanticCustomError("choice", "{choice} is beyond 2^53", {"choice": str(part)[:40]})
            key = (bool if isinstance(choice, bool) else object, choice)  # True and 1 are two choices
            if key in seen:
                raise PydanticCustomError(
                    "duplicate", "the choice {choice} stands twice: list each once", {"choice": repr(choice)}
                )
            seen.append(key)
        return choices

    @cached_property
    def distribution(self) -> CategoricalDistribution:
        """The Optuna distribution of this parameter, over the positions of its choices."""
        from optuna.distributions import CategoricalDistribution  # heavy: a client does without

        return CategoricalDistribution(range(len(self.choices)))

    def index(self, value: Value) -> int:
        """Position of a value among the choices. Raises ValueError if it is none of them."""
        for i, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return i
        raise ValueError(f"{value!r} is none of {self.choices!r}")

    def contains(self, value: Value) -> bool:
        """Whether the value is one of the choices."""
        return any(c == value and isinstance(c, bool) == isinstance(value, bool) for c in self.choices)

    def extremes(self) -> list[Value]:
        """Values whose validity implies that of every other: all of them."""
        return list(self.choices)


Param = Annotated[FloatParam | IntParam | CategoricalParam, Field(discriminator="type")]
Space = dict[Text, Param]


def _check_range(low: float, high: float, *, log: bool, step: float | None) -> None:
    if low >= high:
        raise _fault(f"low {low} is not below high {high}: swap them, or fix the value in the objective instead")
    if not math.isfinite(high - low):
        raise _fault(f"the range from {low} to {high} is too wide for a float")
    if log and low <= 0:
        raise _fault(f"low {low} on a log scale: a log range must lie above zero; raise low or drop log")
    if log and step is not None:
        raise _fault(f"step {step} on a log scale: give either log or step")
    if step is not None and step > high - low:
        raise _fault(f"step {step} is wider than the range from {low} to {high}")


def _check_limits(param: FloatParam | IntParam) -> None:
    if param.hard_low is not None and param.hard_low > param.low:
        raise _fault(f"hard_low {param.hard_low} is above low {param.low}: the range may not start below its limit")
    if param.hard_high is not None and param.hard_high < param.high:
        raise _fault(f"hard_high {param.hard_high} is below high {param.high}: the range may not end above its limit")
    if param.log and param.hard_low is not None and param.hard_low <= 0:
        raise _fault(f"hard_low {param.hard_low} on a log scale: it must lie above zero; leave it out for no limit")


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("range", "{text}", {"text": text})


def check_params(space: dict[str, Any], params: Params) -> list[tuple[str, str]]:
    """What is wrong with given params, as (name, sentence); empty if they are exactly one point of the space."""
    faults = [(name, "this parameter has no value") for name in space if name not in params]
    for name, value in params.items():
        if name not in space:
            faults.append((name, f"the space has no parameter {name!r}; it has {', '.join(space)}"))
        elif not space[name].contains(value):
            faults.append((name, f"{value!r} is outside {space[name].model_dump(exclude_none=True)}"))
    return faults
