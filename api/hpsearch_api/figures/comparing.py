"""Several studies in one picture: the best value so far against the epochs that it took."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from hpsearch.trial import TrialState
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.style import before_drawing, compact, finish, metric_title, missing_note, plain, stage_color

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def compare_figure(studies: Sequence[FigureData]) -> go.Figure:
    """A step line for each study, over the epochs that all of its trials had trained when a better one ended.

    Studies whose metric has another name are drawn all the same; the note says so.
    """
    before_drawing()
    fig = go.Figure()
    for i, data in enumerate(studies):
        ended = sorted((t for t in data.trials if t.ended_at is not None), key=lambda t: (str(t.ended_at), t.number))
        completed = [t.state is TrialState.COMPLETED and t.value is not None for t in ended]
        if not any(completed):
            continue
        weight = 1.0 if data.n_trials is None else data.n_trials / len(data.trials)
        epochs = weight * np.cumsum([max(t.step, 1) for t in ended])
        sign = 1.0 if data.maximize else -1.0
        values = [sign * (t.value or 0.0) if done else -np.inf for t, done in zip(ended, completed, strict=True)]
        best = np.maximum.accumulate(values)
        rises = np.flatnonzero(best > np.concatenate([[-np.inf], best[:-1]]))
        x, y = np.append(epochs[rises], epochs[-1]), sign * np.append(best[rises], best[-1])
        fig.add_trace(
            go.Scatter(
                mode="lines+markers",
                name=plain(data.spec.name),
                x=x,
                y=y,
                line={"shape": "hv", "color": stage_color(i), "width": 2.5, "dash": DASHES[i % len(DASHES)]},
                marker={"size": 5},
                text=[compact(float(value)) for value in y],
                hovertemplate="%{x:,.0f} epochs: <b>%{text}</b><extra>%{fullData.name}</extra>",
            )
        )
    names = {(data.spec.metric.name, data.spec.metric.direction) for data in studies}
    note = "" if len(names) == 1 else "the studies have different metrics: " + ", ".join(sorted(n for n, _ in names))
    epochs_axis = {"title": {"text": "epochs trained, over all trials"}}
    fig.update_layout(xaxis=epochs_axis, yaxis={"title": {"text": metric_title(studies[0])}})
    notes = [missing_note(studies[0]) if not fig.data else "", plain(note)]
    return finish(fig, title="Best value so far", notes=notes, height=420).update_layout(legend_itemsizing="trace")
