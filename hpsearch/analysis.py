"""What the statistics say of a study: how its ranges were narrowed, whether short training tells what long will, and
how sure the winner is. Read from the store and computed when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpsearch.insight import Insights
from hpsearch.search.agreement import Agreement, agreement, stage_agreement
from hpsearch.search.confirming import Finalist
from hpsearch.search.refining import ParamNarrowing, narrowing
from hpsearch.store import Store, TrialQuery
from hpsearch.study import Stage, Study
from hpsearch.trial import Trial, TrialState

MAX_CURVES = 1000
"""Of a stage with more completed trials, the curves of its first so many are compared."""


@dataclass(frozen=True, slots=True)
class StageNarrowing:
    """What became of each parameter's range from a stage to its child."""

    stage: str
    parent: str
    parameters: tuple[ParamNarrowing, ...]


@dataclass(frozen=True, slots=True)
class StageAgreement:
    """How the order of a stage's trials agrees with a later order: in itself, or in the stage ``against``."""

    stage: str
    against: str
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Analysis:
    """All of it; finalists are those of the last confirm stage, best first."""

    narrowings: tuple[StageNarrowing, ...]
    agreements: tuple[StageAgreement, ...]
    finalists: tuple[Finalist, ...]


def analyse(store: Store, insights: Insights, study: Study) -> Analysis:
    """The analysis of a study as it stands."""
    stages = store.stages(study.id)
    return Analysis(
        narrowings=tuple(_narrowings(insights, study, stages)),
        agreements=tuple(_within(store, study, stages) + _between(insights, study, stages)),
        finalists=tuple(insights.finalists(study, stages)),
    )


def _narrowings(insights: Insights, study: Study, stages: Sequence[Stage]) -> list[StageNarrowing]:
    found = []
    by_name = {stage.name: stage for stage in stages}
    for stage in stages:
        parent = by_name.get(stage.parent or "")
        if parent is not None and stage.plan == parent.plan + 1 and stage.spec.top is None:
            rows = narrowing(parent.space, insights.judged(study.id, stages, parent), study.spec.metric)
            found.append(StageNarrowing(stage.name, parent.name, tuple(rows)))
    return found


def _within(store: Store, study: Study, stages: Sequence[Stage]) -> list[StageAgreement]:
    """Epoch against epoch, in every stage that trains for more than one."""
    found = []
    for stage in stages:
        if stage.spec.n_epochs > 1:
            query = TrialQuery(stage=stage.name, states=(TrialState.COMPLETED,), limit=MAX_CURVES)
            numbers = [trial.number for trial in store.trials(study.id, query).items]
            curves: dict[int, list[float]] = {number: [] for number in numbers}
            for step in store.metrics(study.id, numbers):
                curves[step.trial].append(step.values.get(study.spec.metric.name, float("nan")))
            found += [StageAgreement(stage.name, stage.name, a) for a in agreement(curves, study.spec.metric)]
    return found


def _between(insights: Insights, study: Study, stages: Sequence[Stage]) -> list[StageAgreement]:
    """Stage against stage, where params were trained in both and for longer in the second."""
    trials: dict[str, list[Trial]] = {}
    found = []
    for short, long in pairwise(stages):
        epochs = (short.spec.n_epochs, long.spec.n_epochs)
        if epochs[0] < epochs[1] and long.spec.top is not None:
            for stage in (short, long):
                trials.setdefault(stage.name, insights.evidence(study.id, stages, stage))
            seen = stage_agreement(trials[short.name], trials[long.name], study.spec.metric, epochs=epochs)
            found.append(StageAgreement(short.name, long.name, seen))
    return found
