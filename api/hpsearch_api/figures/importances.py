"""How much each parameter matters: fANOVA and PED-ANOVA by Optuna, and the share of the order that narrowing uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from hpsearch.search.importance import importance, standing
from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam
from hpsearch.trial import Trial, TrialState
from hpsearch_api.figures.data import FigureData, comparable, thin
from hpsearch_api.figures.scales import param_scale
from hpsearch_api.figures.style import finish, missing_note, plain, stage_color

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

N_FANOVA = 150
"""So many trials, and so few trees, take about a second; the order of the parameters is clear by then."""
N_TREES = 16
N_PED_ANOVA = 2000
MIN_TRIALS = 10
TOO_FEW = "Importances need 10 completed trials that share a parameter."


def importance_figure(data: FigureData) -> go.Figure:
    """Bars for each parameter: by fANOVA of all values, by PED-ANOVA of the best tenth, and of the order of all trials.

    fANOVA: Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter importance" (2014), shares
    of the variance. PED-ANOVA: Watanabe, Bansal, Hutter (2023), shares of what tells the best tenth from the rest.
    Order: see :mod:`hpsearch.search.importance`.
    """
    completed, budget = comparable(data, [t for t in data.valued() if t.state is TrialState.COMPLETED])
    names = [n for n in data.space if any(n in t.params for t in completed)]
    shared = [n for n in names if all(n in t.params for t in completed)]
    if len(completed) < MIN_TRIALS or not shared:
        return finish(go.Figure(), title="Importance", notes=[missing_note(data) or TOO_FEW], height=300)
    fig = go.Figure()
    order = _order(data, names, budget)
    ped = _optuna(data, shared, thin(completed, N_PED_ANOVA)[0], fanova=False)
    fanova = _optuna(data, shared, thin(completed, N_FANOVA)[0], fanova=True)
    rows = sorted(names, key=lambda n: (fanova or ped or order).get(n, 0.0))
    for i, (label, shares) in enumerate(
        (("order of all trials", order), ("PED-ANOVA, best tenth", ped), ("fANOVA", fanova))
    ):
        if shares:
            fig.add_trace(_bars(rows, shares, label, stage_color(2 - i)))
    fig.update_layout(
        barmode="group",
        xaxis={"title": {"text": "share"}, "range": [0, 1.02], "tickformat": ".0%"},
        yaxis={"type": "category", "title": {"text": ""}},
        legend_traceorder="reversed",
    )
    said = f"{len(completed):,} completed trials of {budget} {'epoch' if budget == 1 else 'epochs'}"
    notes = [said, data.sample_note, "" if fanova else "fANOVA needs scikit-learn on the server"]
    return finish(fig, title="Importance of the parameters", notes=notes, height=150 + 62 * len(rows))


def _bars(rows: Sequence[str], shares: dict[str, float], label: str, color: str) -> go.Bar:
    return go.Bar(
        orientation="h",
        name=label,
        y=[plain(name) for name in rows],
        x=[shares.get(name) for name in rows],
        marker={"color": color},
        hovertemplate=f"%{{y}}: <b>%{{x:.1%}}</b><extra>{label}</extra>",
    )


def _order(data: FigureData, names: Sequence[str], budget: int) -> dict[str, float]:
    """The share of the order of the trials of one budget that each numeric parameter explains."""
    stages = {stage.name for stage in data.stages if stage.spec.n_epochs == budget}
    found = {}
    for name in names:
        param = data.space[name]
        if not isinstance(param, CategoricalParam):
            trials = [t for t in data.trials if name in t.params and t.stage in stages]
            evidence, standings, _ = standing(trials, data.spec.metric)
            units = [to_unit(param, t.params[name]) for t in evidence]
            found[name], _ = importance(np.array(units), standings)
    return found


def _optuna(data: FigureData, names: Sequence[str], trials: Sequence[Trial], *, fanova: bool) -> dict[str, float]:
    """Optuna's shares of the parameters; empty where they cannot be had."""
    import optuna  # takes a second to import
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    if len({t.value for t in trials}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of every study
    study = optuna.create_study(direction=data.spec.metric.direction)
    scales = {name: _outer(data, name) for name in names}
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: _told(data, name, t) for name in names}, distributions=scales, value=t.value
            )
            for t in trials
        ]
    )
    try:
        judge = FanovaImportanceEvaluator(n_trees=N_TREES, seed=0) if fanova else PedAnovaImportanceEvaluator()
        found = get_param_importances(study, evaluator=judge)
    except (ImportError, RuntimeError, ValueError):
        return {}
    return {name: float(share) for name, share in found.items()}


def _outer(data: FigureData, name: str) -> BaseDistribution:
    """The widest range of a parameter, without a grid: sibling stages have other ones."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    scale = param_scale(data, name)
    if scale.outer is None:
        return CategoricalDistribution(scale.labels)
    return FloatDistribution(*scale.outer, log=scale.log)


def _told(data: FigureData, name: str, trial: Trial) -> Any:
    scale = param_scale(data, name)
    value = scale.column([trial])[0]
    return value if scale.outer is None else min(max(float(value), scale.outer[0]), scale.outer[1])
