"""The trials whose params are nearest to those of one trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, Space
from hpsearch.trial import Trial

N_NEIGHBOURS = 5


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A trial and how far it is: the mean over the parameters of how far apart the two places in the ranges are, in
    percent of the range; two different choices are 100 % apart.
    """

    trial: Trial
    percent: float


def neighbours(space: Space, trial: Trial, others: Sequence[Trial]) -> list[Neighbour]:
    """The nearest trials that have other params, nearest first; those that lack a parameter are left out."""
    names = [name for name in space if name in trial.params]
    found: dict[str, Neighbour] = {}
    for other in others:
        if other.number == trial.number or other.params == trial.params or not names:
            continue
        if all(name in other.params for name in names):
            distance = sum(_apart(space, name, trial, other) for name in names) / len(names)
            key = repr(sorted(other.params.items()))
            if key not in found:
                found[key] = Neighbour(other, 100 * distance)
    return sorted(found.values(), key=lambda n: (n.percent, n.trial.number))[:N_NEIGHBOURS]


def _apart(space: Space, name: str, one: Trial, other: Trial) -> float:
    param, a, b = space[name], one.params[name], other.params[name]
    if isinstance(param, CategoricalParam):
        return float(a != b)
    return min(abs(to_unit(param, a) - to_unit(param, b)), 1.0)
