"""Sobol's and Halton's sequences, scrambled: points spread more evenly than random ones.

SciPy draws them (Owen's scrambling; Joe & Kuo's directions). A trial's point depends on the study's seed, the stage and
the trial's place in the stage alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from hpsearch.search.sampling import MAX_REJECTED, Purpose, at_place, lies_in, nothing_left
from hpsearch.space import Params, Space

BLOCK = 64
"""Points are drawn so many at a time."""


def spread(
    name: str, space: Space, *, seed: int, stage: int, index: int, count: int, exclude: Space | None = None
) -> list[Params]:
    """``count`` points of a sequence from its ``index`` on, those inside ``exclude`` left out and not counted.

    Args:
        name: ``sobol`` or ``halton``.
        space: what to sample; at most 21,201 parameters.
        seed: the study's.
        stage: its index.
        index: place of the first point among those of the stage, from 0; below 2^30.
        count: how many.
        exclude: a box where nothing is drawn.

    Raises:
        InvalidInput: the box leaves (nearly) nothing of the space.
    """
    if exclude is None:
        return [at_place(space, units) for units in islice(_units(name, len(space), seed, stage, first=index), count)]
    found: list[Params] = []
    rejected = 0
    for units in _units(name, len(space), seed, stage, first=0):
        params = at_place(space, units)
        rejected = rejected + 1 if lies_in(exclude, params) else 0
        if rejected > MAX_REJECTED:
            raise nothing_left()
        if not rejected:
            found.append(params)
        if len(found) == index + count:
            break
    return found[index:]


def _units(name: str, n_params: int, seed: int, stage: int, *, first: int) -> Iterator[NDArray[np.float64]]:
    """Points of the unit cube from the ``first`` on."""
    from scipy.stats import qmc  # heavy: a client does without

    scramble = np.random.default_rng((seed, stage, Purpose.SAMPLER))
    engine = qmc.Sobol(n_params, rng=scramble) if name == "sobol" else qmc.Halton(n_params, rng=scramble)
    if first:
        engine.fast_forward(first)
    while True:
        yield from engine.random(BLOCK)
