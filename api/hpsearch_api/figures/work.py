"""Who trained what and when, and where the epochs went."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpsearch.trial import Trial, TrialState
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.style import DIVERGED_COLOR, finish, plain, scatter, stage_color

MAX_WORKERS = 40
MAX_BARS = 5000
STATE_COLORS = {
    TrialState.COMPLETED: stage_color(2),
    TrialState.PRUNED: stage_color(1),
    TrialState.DIVERGED: DIVERGED_COLOR,
    TrialState.FAILED: "#882255",
    TrialState.RUNNING: stage_color(0),
}
NOBODY = "No worker has trained a trial yet."


def timeline_figure(data: FigureData) -> go.Figure:
    """A row for each worker, a bar for each trial from its last start to its end; one pack's lie on each other."""
    trained = [t for t in data.trials if t.worker is not None and t.started_at is not None]
    if not trained:
        return finish(go.Figure(), title="Timeline", notes=[NOBODY], height=300)
    last = max(t.ended_at or t.started_at for t in trained if t.started_at is not None)
    workers = sorted({t.worker or "" for t in trained})
    names = workers[:MAX_WORKERS]
    rows = {name: i for i, name in enumerate(names)}
    shown = [t for t in trained if t.worker in rows][:MAX_BARS]
    fig = go.Figure()
    for state, color in STATE_COLORS.items():
        bars = [t for t in shown if t.state is state]
        if bars:
            fig.add_trace(_bars(bars, rows, last, name=state.value, color=color))
    notes = [
        data.sample_note,
        f"the first {MAX_WORKERS} of {len(workers)} workers" if len(workers) > len(names) else "",
    ]
    fig.update_layout(
        xaxis={"title": {"text": "time (UTC)"}, "type": "date"},
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": [plain(name) for name in names],
            "range": [len(names) - 0.4, -0.6],
        },
    )
    return finish(fig, title="Timeline of the workers", notes=notes, height=170 + 34 * len(names))


def _bars(bars: list[Trial], rows: dict[str, int], last: Any, *, name: str, color: str) -> go.Scatter:
    x: list[Any] = []
    y: list[float | None] = []
    told: list[list[Any]] = []
    for trial in bars:
        at = rows[trial.worker or ""]
        x += [trial.started_at, trial.ended_at or last, None]
        y += [at, at, None]
        told += [[trial.number, plain(trial.stage), trial.step]] * 3
    return scatter(len(x))(
        mode="lines+markers",
        name=name,
        x=x,
        y=y,
        customdata=told,
        hovertemplate="<b>trial %{customdata[0]}</b> · %{customdata[1]}<br>%{customdata[2]} steps<br>%{x}"
        "<extra>%{fullData.name}</extra>",
        line={"color": color, "width": 9},
        marker={"color": color, "size": 7, "symbol": "line-ns"},
        opacity=0.55,
    )


def compute_figure(data: FigureData) -> go.Figure:
    """Epochs trained, over time, by what became of their trials: what was spent on those that came to nothing."""
    ended = sorted((t for t in data.trials if t.ended_at is not None and t.step > 0), key=lambda t: str(t.ended_at))
    if not ended:
        return finish(go.Figure(), title="Compute", notes=["No trial has ended yet."], height=300)
    weight = 1.0 if data.n_trials is None else data.n_trials / len(data.trials)
    totals: dict[TrialState, float] = defaultdict(float)
    fig = go.Figure()
    for state in (TrialState.COMPLETED, TrialState.PRUNED, TrialState.DIVERGED, TrialState.FAILED):
        spent = np.array([t.step if t.state is state else 0 for t in ended], dtype=np.float64)
        if spent.any():
            totals[state] = weight * float(spent.sum())
            fig.add_trace(
                go.Scatter(
                    name=state.value,
                    stackgroup="epochs",
                    x=[t.ended_at for t in ended],
                    y=weight * np.cumsum(spent),
                    line={"color": STATE_COLORS[state], "width": 1.5, "shape": "hv"},
                    hovertemplate="%{x}: <b>%{y:,.0f}</b> epochs<extra>%{fullData.name}</extra>",
                )
            )
    whole = sum(totals.values())
    said = ", ".join(f"{n:,.0f} {state.value} ({n / whole:.0%})" for state, n in totals.items())
    about = "about " if data.n_trials is not None else ""
    fig.update_layout(
        xaxis={"title": {"text": "time (UTC)"}, "type": "date"}, yaxis={"title": {"text": "epochs trained"}}
    )
    return finish(fig, title="Compute used", notes=[f"{about}{whole:,.0f} epochs: {said}"], height=360)
