"""Slices: what each parameter does by itself, the others staying where the best trial has them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch_api.figures.data import FigureData, thin, values_of
from hpsearch_api.figures.points import customdata, hover, stars
from hpsearch_api.figures.scales import metric_scale, param_scale
from hpsearch_api.figures.style import NEUTRAL, finish, metric_title, missing_note, plain, scatter, stage_color
from hpsearch_api.figures.surrogate import Surrogate, surrogate

N_PLACES = 61
N_AVERAGED = 256
"""Places of the other parameters that the average is taken over."""
MAX_POINTS = 4000
BAND = "rgba(47,143,208,0.18)"
TOO_FEW = "A surface needs 12 completed trials and a numeric parameter."


def slice_figure(data: FigureData, *, columns: int | None = None) -> go.Figure:
    """For each numeric parameter the surface through the best trial (isolation), and averaged over all others (slice).

    The band holds the surface with 90 % probability; a value of a single trial scatters more.
    """
    found = surrogate(data)
    if found is None:
        return finish(go.Figure(), title="Slices", notes=[missing_note(data) or TOO_FEW], height=320)
    n_columns = min(columns or 3, len(found.names))
    n_rows = math.ceil(len(found.names) / n_columns)
    fig = make_subplots(rows=n_rows, cols=n_columns, shared_yaxes="all", horizontal_spacing=0.05)
    values = metric_scale(data)
    for i, name in enumerate(found.names):
        row, column = divmod(i, n_columns)
        place = {"row": row + 1, "col": column + 1}
        for trace in _traces(data, found, name, first=i == 0):
            fig.add_trace(trace, **place)
        fig.update_xaxes(param_scale(data, name).axis(), **place)
        fig.update_yaxes(values.axis(metric_title(data) if column == 0 else ""), **place)
    budget = (
        f"surface through {found.n:,} completed trials of {found.epochs} {'epoch' if found.epochs == 1 else 'epochs'}"
    )
    title = f"{plain(data.spec.metric.name)} along one parameter at a time"
    return finish(fig, title=title, notes=[budget], height=130 + 260 * n_rows)


def _traces(data: FigureData, found: Surrogate, name: str, *, first: bool) -> list[go.Scatter]:
    units = np.linspace(0, 1, N_PLACES)
    x = found.values(name, units)
    middle, low, high = found.predict(found.along(name, units))
    shown, _ = thin([t for t in data.valued() if name in t.params], MAX_POINTS, keep=data.best())
    scale = param_scale(data, name)
    common: dict[str, Any] = {"showlegend": first, "hoverinfo": "skip"}
    traces = [
        scatter(len(shown))(
            mode="markers",
            name="trials",
            legendgroup="trials",
            x=scale.column(shown),
            y=values_of(shown),
            customdata=customdata(data, shown),
            hovertemplate=hover(data, "trial"),
            marker={"color": NEUTRAL, "size": 4, "opacity": 0.4},
            showlegend=first,
        ),
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor=BAND,
            line={"width": 0},
            name="90 % of it",
            legendgroup="band",
            **common,
        ),
        go.Scatter(
            x=x,
            y=middle,
            name="others as in the best",
            legendgroup="isolation",
            line={"color": stage_color(0), "width": 2.5},
            hovertemplate=f"{plain(name)} %{{x:.3~g}}: <b>%{{y:.4~g}}</b><extra>others as in the best</extra>",
            showlegend=first,
        ),
        go.Scatter(
            x=x,
            y=_average(found, name, units),
            name="average over the others",
            legendgroup="average",
            line={"color": stage_color(1), "width": 2, "dash": "dot"},
            hovertemplate=f"{plain(name)} %{{x:.3~g}}: <b>%{{y:.4~g}}</b><extra>average over the others</extra>",
            showlegend=first,
        ),
    ]
    if best := [t for t in data.best() if name in t.params]:
        traces.append(stars(data, best, x=scale.column(best), y=values_of(best), showlegend=first))
    return traces


def _average(found: Surrogate, name: str, units: np.ndarray) -> np.ndarray:
    """The surface (n,) at places of one parameter, averaged over places of all others."""
    others = np.random.default_rng(0).random((N_AVERAGED, len(found.names)))
    column = found.names.index(name)
    means = []
    for unit in units:
        others[:, column] = unit
        means.append(float(found.predict(others)[0].mean()))
    return np.array(means)
