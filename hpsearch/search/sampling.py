"""Random search: what trial ``number`` of a stage samples, from the study's seed alone.

Each trial has a stream of its own: the counter-based generator Philox (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC'11), keyed by (seed, stage, purpose) with the trial's number in the counter. So a trial's params do not
depend on which other trials were drawn, by whom, or in which order; any trial can be replayed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np

from hpsearch.errors import InvalidInput
from hpsearch.search.scale import from_unit
from hpsearch.space import CategoricalParam, Param, Params, Space, Value


class Purpose(IntEnum):
    """What a stream is for; different purposes never share numbers."""

    PARAMS = 0
    TRAINING = 1
    DATA = 2
    SAMPLER = 3


def stream(seed: int, stage: int, number: int, purpose: Purpose) -> np.random.Generator:
    """The random stream of one trial for one purpose.

    Args:
        seed: the study's, at least 0.
        stage: index of the stage, from 0.
        number: of the trial, from 0.
        purpose: what the numbers are for.
    """
    counter = np.array([0, 0, 0, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(_key(seed, stage, purpose), counter=counter))


@lru_cache(maxsize=1024)
def _key(seed: int, stage: int, purpose: Purpose) -> np.random.SeedSequence:
    return np.random.SeedSequence((seed, stage, purpose))


MAX_REJECTED = 100_000
"""So many points in a row may be left out before what is left of a space counts as nothing."""


def sample(space: Space, *, seed: int, stage: int, number: int, exclude: Space | None = None) -> Params:
    """The params of one trial: each parameter uniform on its own scale and independent of the others.

    The parameters draw in the order of their names, so the order in which a document lists them does not matter.

    Args:
        space: what to sample.
        seed: the study's.
        stage: its index.
        number: the trial's.
        exclude: a box where nothing is drawn: the trial's own stream goes on until a point lies outside.

    Raises:
        InvalidInput: the box leaves (nearly) nothing of the space.
    """
    numbers = stream(seed, stage, number, Purpose.PARAMS)
    for _ in range(MAX_REJECTED):
        params = at_place(space, numbers.random(len(space)))
        if not lies_in(exclude, params):
            return params
    raise nothing_left()


def at_place(space: Space, units: Iterable[float]) -> Params:
    """The point of a space at a place in its unit cube, whose axes are the parameters in the order of their names."""
    drawn = {name: _draw(space[name], float(unit)) for name, unit in zip(sorted(space), units, strict=True)}
    return {name: drawn[name] for name in space}


def lies_in(box: Space | None, params: Params) -> bool:
    """Whether a point lies in a box; nothing lies in None."""
    return box is not None and all(param.contains(params[name]) for name, param in box.items() if name in params)


def nothing_left() -> InvalidInput:
    """The error of a box that leaves nothing of a space."""
    return InvalidInput(f"of {MAX_REJECTED:,} points of the stage's space not one lies outside of what it excludes")


def _draw(param: Param, unit: float) -> Value:
    """The value at a place, as the parameter's Optuna distribution represents it."""
    value = from_unit(param, unit)
    distribution: Any = param.distribution
    if isinstance(param, CategoricalParam):  # its distribution is over the positions of the choices
        position: int = distribution.to_external_repr(param.index(value))
        return param.choices[position]
    drawn: Value = distribution.to_external_repr(distribution.to_internal_repr(value))
    return drawn


def training_seed(seed: int, stage: int, number: int) -> int:
    """The seed that a trial trains with, in [0, 2^53): weights, dropout. Fresh for every trial."""
    return int(stream(seed, stage, number, Purpose.TRAINING).integers(2**53))


def repeat_seed(seed: int, repeat: int) -> int:
    """The seed of one repeat of a trial, in [0, 2^53): the trial's own for the first, fresh for the others."""
    return seed if repeat == 0 else int(np.random.SeedSequence((seed, repeat)).generate_state(1, np.uint64)[0] >> 11)


@lru_cache(maxsize=256)
def data_seed(seed: int, stage: int) -> int:
    """The seed of a stage's order of minibatches, in [0, 2^53): one for all of its trials, so that they can share."""
    return int(stream(seed, stage, 0, Purpose.DATA).integers(2**53))
