"""The history: every value by number, and the best so far."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from hpsearch.trial import Trial, TrialState
from hpsearch_api.figures.data import FigureData, numbers_of, thin, values_of
from hpsearch_api.figures.points import crosses, customdata, hover
from hpsearch_api.figures.scales import metric_scale
from hpsearch_api.figures.style import (
    NEUTRAL,
    STAGE_SYMBOLS,
    finish,
    metric_title,
    missing_note,
    plain,
    scatter,
    stage_color,
)

MAX_POINTS = 60_000


def history_figure(data: FigureData) -> go.Figure:
    """Values by trial number, coloured by stage, with a step line of the best so far (completed trials only)."""
    shown, note = thin(data.valued(), MAX_POINTS, keep=data.best())
    values = metric_scale(data)
    fig = go.Figure()
    for index, stage in enumerate(data.stage_names):
        trials = [t for t in shown if t.stage == stage]
        if trials:
            fig.add_trace(
                scatter(len(shown))(
                    mode="markers",
                    name=stage,
                    legendgroup=stage,
                    x=numbers_of(trials),
                    y=values_of(trials),
                    customdata=customdata(data, trials),
                    hovertemplate=hover(data, stage),
                    marker={
                        "color": stage_color(index),
                        "symbol": STAGE_SYMBOLS[index % len(STAGE_SYMBOLS)],
                        "size": 6 if len(shown) <= 500 else 4,
                        "opacity": 0.7 if len(shown) <= 2000 else 0.4,
                    },
                )
            )
    diverged, _ = thin(data.diverged(), MAX_POINTS // 4)
    if diverged:
        edge = [values.edge] * len(diverged)
        fig.add_trace(crosses(data, diverged, n_points=len(shown), x=numbers_of(diverged), y=edge))
    best = improvements(data)
    if best:
        fig.add_trace(_best_line(data, best))
    fig.update_layout(xaxis={"title": {"text": "trial number"}}, yaxis=values.axis(metric_title(data)))
    title = f"{plain(data.spec.metric.name)} by trial"
    return finish(fig, title=title, notes=[missing_note(data), note, data.sample_note], height=400)


def improvements(data: FigureData) -> list[Trial]:
    """Completed trials that were the best when numbers are read in order; the first one is always among them."""
    trials = [t for t in data.valued() if t.state is TrialState.COMPLETED]
    if not trials:
        return []
    values = values_of(trials) if data.maximize else -values_of(trials)
    so_far = np.maximum.accumulate(values)
    rises = np.concatenate([[True], so_far[1:] > so_far[:-1]])
    return [trial for trial, rise in zip(trials, rises, strict=True) if rise]


def _best_line(data: FigureData, best: list[Trial]) -> go.Scatter:
    """Steps at each improvement, drawn on to the last trial."""
    last = max(t.number for t in data.trials)
    trials = [*best, best[-1]]
    numbers = numbers_of(trials)
    numbers[-1] = max(last, best[-1].number)
    return go.Scatter(
        mode="lines",
        name="best so far",
        x=numbers,
        y=values_of(trials),
        customdata=customdata(data, trials),
        hovertemplate=hover(data, "best so far"),
        line={"shape": "hv", "color": NEUTRAL, "width": 2},
    )
