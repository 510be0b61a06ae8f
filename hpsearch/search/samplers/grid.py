"""The grid: every combination of some levels of each parameter, each once, in an order that the seed shuffles."""

from __future__ import annotations

import math
from itertools import product

from hpsearch.methods import Sampler
from hpsearch.search.sampling import Purpose, lies_in, stream
from hpsearch.search.scale import from_unit
from hpsearch.space import CategoricalParam, FloatParam, Param, Params, Space, Value


def grid_points(
    space: Space, sampler: Sampler, n_trials: int, *, seed: int, stage: int, exclude: Space | None = None
) -> list[Params]:
    """The points of a stage's grid, shuffled, without those inside ``exclude``, at most ``n_trials``.

    Levels lie evenly on a parameter's own scale, both ends included; one level is the middle. A choice is a level.

    Args:
        space: what to lay it over.
        sampler: its option ``levels`` says how many levels each parameter has, all alike or by name. Parameters that
            it does not name have as many as ``n_trials`` allows, as evenly as it goes, earlier names first.
        n_trials: at most so many points.
        seed: the study's.
        stage: its index.
        exclude: a box where nothing is drawn.
    """
    levels = grid_levels(space, sampler, n_trials)
    names = sorted(space)
    values = [_values(space[name], levels[name]) for name in names]
    points = [dict(zip(names, combination, strict=True)) for combination in product(*values)]
    order = stream(seed, stage, 0, Purpose.SAMPLER).permutation(len(points))
    shuffled = [{name: points[i][name] for name in space} for i in order]
    return [point for point in shuffled if not lies_in(exclude, point)][:n_trials]


def grid_fault(space: Space, sampler: Sampler, n_trials: int) -> tuple[str, str] | None:
    """What is wrong with a grid: the option (or nothing), and a sentence; None if every point can be a trial."""
    given = sampler.options.get("levels")
    for name in given if isinstance(given, dict) else ():
        if name not in space:
            return f"levels.{name}", f"the space has no parameter {name!r}; it has {', '.join(space)}"
    levels = grid_levels(space, sampler, n_trials)
    if (n_points := math.prod(levels.values())) <= n_trials:
        return None
    factors = " · ".join(f"{n} of {name}" for name, n in levels.items())
    return "", (
        f"the grid has {n_points:,} points ({factors}), and the stage {n_trials:,} trials: give more trials, fewer "
        "levels, or fewer choices"
    )


def grid_levels(space: Space, sampler: Sampler, n_trials: int) -> dict[str, int]:
    """How many levels each parameter has; see :func:`grid_points`."""
    given = sampler.options.get("levels")
    asked: dict[str, int] = given if isinstance(given, dict) else dict.fromkeys(space, given) if given else {}
    cells = {name: _n_cells(param) for name, param in space.items()}
    levels = {
        name: int(cells[name]) if isinstance(param, CategoricalParam) else int(min(asked.get(name, 1), cells[name]))
        for name, param in space.items()
    }
    n_points = math.prod(levels.values())
    free = [n for n in sorted(space) if n not in asked and not isinstance(space[n], CategoricalParam)]
    while free:  # one more level for each in turn, while the points still fit
        name = min(free, key=lambda name: levels[name])
        more = n_points // levels[name] * (levels[name] + 1)
        if levels[name] < cells[name] and more <= n_trials:
            n_points = more
            levels[name] += 1
        else:
            free.remove(name)
    return levels


def _n_cells(param: Param) -> float:
    """How many values a parameter has; infinite for a real one without step."""
    if isinstance(param, CategoricalParam):
        return len(param.choices)
    if isinstance(param, FloatParam):
        return math.inf if param.step is None else param.cells
    return (param.high - param.low) // param.step + 1


def _values(param: Param, n: int) -> list[Value]:
    if isinstance(param, CategoricalParam):
        return list(param.choices)
    places = [0.5] if n == 1 else [i / (n - 1) for i in range(n)]
    return list(dict.fromkeys(from_unit(param, place) for place in places))
