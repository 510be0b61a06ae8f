"""How figures look: a palette that colour-blind people can read, no background, and text that is never markup."""

from __future__ import annotations

import contextlib
import html
import math
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go

from hpsearch_api.figures.data import FigureData

STAGE_COLORS = ("#2F8FD0", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999933", "#882255", "#44AA99")
"""Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), then Tol's.

Their blue is lightened to read on black too; their red is left to diverged trials.
"""
STAGE_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "pentagon", "triangle-down", "hexagon", "bowtie")
DIVERGED_COLOR = "#DC3220"
NEUTRAL = "#808a96"
"""Reads on white and on black."""
GRID = "rgba(128,138,150,0.22)"
BAND_OPACITY = 0.09
WEBGL_FROM = 2000
"""More points than this are drawn with WebGL: SVG takes a node for each."""


@lru_cache(maxsize=1)
def before_drawing() -> None:
    """Have loaded what figures and flags need: the first of them waits for it, and not the start of a server.

    Call it before the time is taken that an answer costs, which says how often it is worked out anew. Plotly takes
    pandas from sys.modules, even while another thread (Optuna's importances) is half through importing it; and it loads
    most of itself with the first figure.
    """
    import scipy.stats  # noqa: F401 - heavy

    with contextlib.suppress(ModuleNotFoundError):
        import pandas  # noqa: F401 - heavy
    for trace in (go.Scatter, go.Scattergl, go.Bar):
        go.Figure(trace(x=[0], y=[0])).to_json()


def stage_color(index: int) -> str:
    """The colour of the stage of this index; colours come round after eight."""
    return STAGE_COLORS[index % len(STAGE_COLORS)]


def plain(text: object) -> str:
    """Text as Plotly shows it literally: it reads tags in labels, and ``%{…}`` in hover templates."""
    return html.escape(str(text), quote=False).replace("%{", "%&#123;")


def compact(value: object) -> str:
    """A parameter's value or a metric in few characters: ``9.5e-4``, ``0.5312``, ``[50, 20]``, ``true``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(compact(item) for item in value)}]"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0 or 1e-3 < abs(value) < 1e5:
        digits = 4 if abs(value) < 1e4 else 5
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def scatter(n_points: int) -> Any:
    """The trace class for this many points."""
    return go.Scattergl if n_points > WEBGL_FROM else go.Scatter


def metric_title(data: FigureData, name: str | None = None) -> str:
    """Title of an axis of values; says which way is better for the study's metric."""
    if name is not None and name != data.spec.metric.name:
        return plain(name)
    return f"{plain(data.spec.metric.name)} ({'higher' if data.maximize else 'lower'} is better)"


def step_title(data: FigureData) -> str:
    """What a step is called."""
    return "epoch" if data.spec.objective.kind in ("train", "task") else "step"


def finish(fig: go.Figure, *, title: str, notes: list[str], height: int) -> go.Figure:
    """Set what all figures share. ``notes`` stand under the title: what is left out, and why a figure is empty."""
    said = [note for note in notes if note]
    fig.update_layout(
        template=go.layout.Template(),
        title={
            "text": title,
            "x": 0,
            "xref": "paper",
            "font": {"size": 16},
            "subtitle": {"text": " · ".join(said), "font": {"size": 12, "color": NEUTRAL}},
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        margin={"l": 64, "r": 16, "t": 84, "b": 56},
        height=height,
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemsizing": "constant"},
        uirevision="keep",
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "showline": True}
    fig.update_xaxes(axis)
    fig.update_yaxes(axis)
    for each in (*fig.select_xaxes(), *fig.select_yaxes()):  # numbers fit the margins; to measure texts takes time
        each.automargin = each.type == "category" or each.ticktext is not None
    if not fig.data and said:
        fig.add_annotation(
            text=said[0], x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"size": 14, "color": NEUTRAL}
        )
    return fig


def missing_note(data: FigureData) -> str:
    """Why no value can be drawn; empty if one can."""
    if any(t.value is not None for t in data.trials):
        return ""
    if not any(t.state.is_finished for t in data.trials):
        return "No trial has finished yet."
    if data.diverged():
        return "No trial has a value: those that finished diverged or failed."
    return "No trial has a value."
