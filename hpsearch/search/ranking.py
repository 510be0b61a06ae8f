"""Which trials are best, and what a confirm stage says of its finalists."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpsearch.space import Params
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState


def ranked(trials: Iterable[Trial], metric: Metric) -> list[Trial]:
    """Completed trials, best first; equal values by number."""
    sign = -1.0 if metric.direction == "maximize" else 1.0
    done = [t for t in trials if t.state is TrialState.COMPLETED and t.value is not None]
    return sorted(done, key=lambda t: (sign * (t.value or 0.0), t.number))


def finalist_params(trials: Iterable[Trial], metric: Metric, top: int) -> list[Params]:
    """Params of the best ``top`` completed trials (fewer if there are fewer), each set of params once."""
    chosen: dict[str, Params] = {}
    for trial in ranked(trials, metric):
        chosen.setdefault(_key(trial.params), trial.params)
        if len(chosen) == top:
            break
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class Finalist:
    """One set of params trained with several fresh seeds.

    Attributes:
        trials: the completed trials of these params, by number.
        mean: of their values.
        spread: sample standard deviation (n − 1) of their values; None for a single one.
    """

    params: Params
    trials: tuple[Trial, ...]
    mean: float
    spread: float | None

    @property
    def n(self) -> int:
        """How many seeds completed."""
        return len(self.trials)


def finalists(trials: Sequence[Trial], metric: Metric) -> list[Finalist]:
    """The finalists of a confirm stage, best mean first. Seeds that did not complete are left out."""
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(ranked(trials, metric), key=lambda t: t.number):
        groups.setdefault(_key(trial.params), []).append(trial)
    found = []
    for group in groups.values():
        values = [t.value for t in group if t.value is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found.append(Finalist(group[0].params, tuple(group), statistics.fmean(values), spread))
    sign = -1.0 if metric.direction == "maximize" else 1.0
    return sorted(found, key=lambda f: (sign * f.mean, f.trials[0].number))


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
