"""The map: where in the plane of two parameters the metric is good, and how the stages close in on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, thin, values_of
from hpsearch_api.figures.points import crosses, customdata, hover, stars
from hpsearch_api.figures.scales import ParamScale, param_scale
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
from hpsearch_api.figures.surrogate import surrogate

Ends = tuple[float | str, float | str]
MAX_POINTS = 60_000
N_PLACES = 40
"""Along each side of the grid that the contour is drawn over."""
COLORS = ["#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]
"""Viridis without its darkest eighth, which a black page swallows."""


def map_figure(data: FigureData, *, x: str | None = None, y: str | None = None) -> go.Figure:
    """A scatter of two parameters coloured by the metric, with a box for each stage.

    Colours run from the 5th to the 95th percentile of the values, so that one outlier does not flatten the rest; the
    bright end is the better one.

    Args:
        data: the study.
        x: a parameter of the space; the first one if not given.
        y: another; the next one that is not ``x`` if not given.
    """
    names = list(data.space)
    if len(names) < 2 and y is None:
        fig = finish(go.Figure(), title="Map", notes=["A map needs two parameters; this study has one."], height=300)
        return fig.update_layout(xaxis_visible=False, yaxis_visible=False)
    x = x or next(name for name in names if name != y)
    y = y or next(name for name in names if name != x)
    across, up = param_scale(data, x), param_scale(data, y)
    shown, note = thin(data.valued(), MAX_POINTS, keep=data.best())
    fig = go.Figure()
    _add_contour(fig, data, x, y)
    _add_without_value(fig, data, across, up, n_points=len(shown))
    for index, stage in enumerate(data.stage_names):
        trials = [t for t in shown if t.stage == stage]
        if trials:
            fig.add_trace(_stage_points(data, trials, across, up, index=index, n_points=len(shown)))
            fig.add_trace(_legend_entry(stage, index))
    best = data.best()
    if best:
        fig.add_trace(stars(data, best, x=across.column(best), y=up.column(best)).update(marker_color="white"))
    brush = {side: f"params.{scale.name}" for side, scale in (("x", across), ("y", up)) if not scale.labels}
    fig.update_layout(
        xaxis=across.axis(),
        yaxis=up.axis(),
        coloraxis=_colors(data),
        meta={"brush": brush},
        shapes=_boxes(data, across, up),
    )
    title = f"{plain(data.spec.metric.name)} over {plain(x)} × {plain(y)}"
    return finish(fig, title=title, notes=[missing_note(data), note, data.sample_note], height=500)


def _add_contour(fig: go.Figure, data: FigureData, x: str, y: str) -> None:
    """Lines of equal height of the surrogate, the other parameters as in the best trial."""
    found = surrogate(data)
    if found is None or x not in found.names or y not in found.names:
        return
    units = np.linspace(0, 1, N_PLACES)
    across, up = np.meshgrid(units, units)
    places = found.along(x, across.ravel())
    places[:, found.names.index(y)] = up.ravel()
    middle, _, _ = found.predict(places)
    fig.add_trace(
        go.Contour(
            x=found.values(x, units),
            y=found.values(y, units),
            z=middle.reshape(N_PLACES, N_PLACES),
            name="surrogate",
            showscale=False,
            colorscale=[[0, NEUTRAL], [1, NEUTRAL]],
            contours={"coloring": "lines", "showlabels": True, "labelfont": {"size": 10, "color": NEUTRAL}},
            ncontours=12,
            line={"width": 1},
            opacity=0.55,
            hoverinfo="skip",
            showlegend=True,
        )
    )


def _stage_points(
    data: FigureData, trials: list[Trial], across: ParamScale, up: ParamScale, *, index: int, n_points: int
) -> go.Scatter:
    stage = trials[0].stage
    marker: dict[str, Any] = {
        "color": values_of(trials),
        "coloraxis": "coloraxis",
        "symbol": STAGE_SYMBOLS[index % len(STAGE_SYMBOLS)],
        "size": 9 if n_points <= 500 else 5,
        "line": {"width": 0.6 if n_points <= 2000 else 0, "color": "rgba(128,138,150,0.8)"},
    }
    return scatter(n_points)(
        mode="markers",
        name=stage,
        legendgroup=stage,
        showlegend=False,
        x=across.column(trials),
        y=up.column(trials),
        customdata=customdata(data, trials),
        hovertemplate=hover(data, stage),
        marker=marker,
    )


def _legend_entry(stage: str, index: int) -> go.Scatter:
    """The legend's entry of a stage: its points have no colour of their own to show there."""
    marker = {"color": NEUTRAL, "symbol": STAGE_SYMBOLS[index % len(STAGE_SYMBOLS)], "size": 9}
    return go.Scatter(mode="markers", name=stage, legendgroup=stage, x=[None], y=[None], marker=marker)


def _add_without_value(fig: go.Figure, data: FigureData, across: ParamScale, up: ParamScale, *, n_points: int) -> None:
    diverged, _ = thin(data.diverged(), MAX_POINTS // 4)
    if diverged:
        fig.add_trace(crosses(data, diverged, n_points=n_points, x=across.column(diverged), y=up.column(diverged)))
    running = data.running()
    if running:
        trace = go.Scatter(
            mode="markers",
            name="running",
            legendrank=1050,
            x=across.column(running),
            y=up.column(running),
            customdata=customdata(data, running),
            hovertemplate=hover(data, "running", line="at step %{customdata[1]}"),
            marker={"symbol": "circle-open", "size": 9, "color": NEUTRAL, "line": {"width": 1.5}},
        )
        fig.add_trace(trace)


def _colors(data: FigureData) -> dict[str, Any]:
    values = values_of(data.valued())
    bar = {"title": {"text": metric_title(data), "side": "right"}, "thickness": 12, "outlinewidth": 0, "len": 1}
    colors: dict[str, Any] = {"colorscale": COLORS, "reversescale": not data.maximize, "colorbar": bar}
    if values.size:
        low, high = (float(end) for end in np.percentile(values, [5, 95]))
        colors |= {"cmin": low, "cmax": high if high > low else low + 1e-9}
    return colors


def _boxes(data: FigureData, across: ParamScale, up: ParamScale) -> list[dict[str, Any]]:
    """The outlines of the stages' ranges; stages of equal ranges share one, with all of their names."""
    found: dict[tuple[Ends, Ends], list[int]] = {}
    for index, stage in enumerate(data.stages):
        sides, floors = across.bounds(stage.space), up.bounds(stage.space)
        if sides is not None and floors is not None:
            found.setdefault((sides, floors), []).append(index)
    return [_box(data, sides, floors, stages=stages) for (sides, floors), stages in found.items()]


def _box(data: FigureData, sides: Ends, floors: Ends, *, stages: list[int]) -> dict[str, Any]:
    color = stage_color(stages[0])
    return {
        "type": "rect",
        "layer": "above",
        "x0": sides[0],
        "x1": sides[1],
        "y0": floors[0],
        "y1": floors[1],
        "line": {"color": color, "width": 1.5, "dash": "dash" if stages[0] == 0 else "solid"},
        "label": {
            "text": plain(", ".join(data.stages[index].name for index in stages)),
            "textposition": "top left",
            "font": {"color": color, "size": 11},
            "padding": 3,
        },
    }
