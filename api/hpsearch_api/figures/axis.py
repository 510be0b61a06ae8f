"""The metric against each parameter: where on its range a parameter is good, and whether that lies at a border."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch.space import CategoricalParam
from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, thin, values_of
from hpsearch_api.figures.points import crosses, customdata, hover, stars
from hpsearch_api.figures.scales import MetricScale, ParamScale, metric_scale, param_scale
from hpsearch_api.figures.style import (
    BAND_OPACITY,
    DIVERGED_COLOR,
    NEUTRAL,
    STAGE_SYMBOLS,
    finish,
    metric_title,
    missing_note,
    plain,
    scatter,
    stage_color,
)

MAX_PARAMS = 12
"""More subplots than this are asked for by name."""
MAX_POINTS = 20_000
"""Over all subplots."""
ROW_HEIGHT = 260


def axis_figure(
    data: FigureData, *, params: list[str] | None = None, columns: int | None = None, points: int | None = None
) -> go.Figure:
    """One subplot per parameter on its own scale.

    Dashed lines are the ends of the study's range, bands the ranges of later stages; points have the colour of their
    stage, the best three are stars, and diverged trials red crosses beyond the worst value. ``layout.meta.more`` says
    whether trials with a value are left out that a higher limit would show.

    Args:
        data: the study.
        params: these parameters of the space; the first :data:`MAX_PARAMS` if not given.
        columns: subplots in a row; at most 3 if not given.
        points: at most so many over all subplots; :data:`MAX_POINTS` if not given.
    """
    names = params or list(data.space)[:MAX_PARAMS]
    notes = [missing_note(data), data.sample_note]
    if len(names) < len(data.space) and params is None:
        notes.append(f"the first {len(names)} of {len(data.space)} parameters")
    n_columns = min(columns or 3, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    height = 150 + ROW_HEIGHT * n_rows if n_rows > 1 else 420
    plot = height - 140
    fig = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes="all",
        horizontal_spacing=0.05 if n_columns > 1 else 0,
        vertical_spacing=min(70 / plot, 0.9 / (n_rows - 1)) if n_rows > 1 else 0,
    )
    limit = (points or MAX_POINTS) // len(names)
    shown, note = thin(data.valued(), limit, keep=data.best())
    diverged, _ = thin(data.diverged(), limit)
    values = metric_scale(data)
    shapes: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        scale = param_scale(data, name)
        row, column = divmod(i, n_columns)
        place = {"row": row + 1, "col": column + 1}
        for trace in _traces(data, scale, shown, diverged, values, first=i == 0):
            fig.add_trace(trace, **place)
        shapes += _ranges(data, scale, "" if i == 0 else str(i + 1))
        fig.update_xaxes(scale.axis(), **place)
        fig.update_yaxes(values.axis(metric_title(data) if column == 0 else ""), **place)
    more = bool(note) and limit < MAX_POINTS // len(names)
    fig.update_layout(shapes=shapes, annotations=_flags(data, names), meta={"brush": _brush(data, names), "more": more})
    title = f"{plain(data.spec.metric.name)} against each parameter"
    return finish(fig, title=title, notes=[*notes, note], height=height)


def _traces(
    data: FigureData,
    scale: ParamScale,
    shown: list[Trial],
    diverged: list[Trial],
    values: MetricScale,
    *,
    first: bool,
) -> list[go.Scatter]:
    """The points of one subplot; only those of the first one stand in the legend."""
    traces = []
    for index, stage in enumerate(data.stage_names):
        trials = [t for t in shown if t.stage == stage]
        if trials:
            trace = scatter(len(shown))(
                mode="markers",
                name=stage,
                legendgroup=stage,
                showlegend=first,
                x=scale.column(trials),
                y=values_of(trials),
                customdata=customdata(data, trials),
                hovertemplate=hover(data, stage),
                marker={
                    "color": stage_color(index),
                    "symbol": STAGE_SYMBOLS[index % len(STAGE_SYMBOLS)],
                    "size": 7 if len(shown) <= 500 else 5,
                    "opacity": 0.75 if len(shown) <= 2000 else 0.45,
                },
            )
            traces.append(trace)
    if diverged:
        edge = [values.edge] * len(diverged)
        traces.append(crosses(data, diverged, n_points=len(shown), x=scale.column(diverged), y=edge, showlegend=first))
    best = data.best()
    if best:
        traces.append(stars(data, best, x=scale.column(best), y=values_of(best), showlegend=first))
    return traces


def _ranges(data: FigureData, scale: ParamScale, axis: str) -> list[dict[str, Any]]:
    """Dashed lines at the ends of the study's range, and a band for each stage whose range is another."""
    place = {"xref": f"x{axis}", "yref": f"y{axis} domain", "y0": 0, "y1": 1, "layer": "below"}
    line = place | {"type": "line", "line": {"color": NEUTRAL, "dash": "dash", "width": 1.5}}
    shapes = [line | {"x0": end, "x1": end} for end in scale.ends or ()]
    for index, stage in enumerate(data.stages):
        bounds = scale.bounds(stage.space)
        if bounds is not None and scale.ends is not None and bounds != scale.ends:
            band = {"type": "rect", "x0": bounds[0], "x1": bounds[1], "fillcolor": stage_color(index)}
            shapes.append(place | band | {"opacity": BAND_OPACITY, "line": {"width": 0}})
    return shapes


def _flags(data: FigureData, names: list[str]) -> list[dict[str, Any]]:
    """An arrow at each flagged border, with its p-value."""
    texts = []
    drawn: set[tuple[str, str]] = set()
    for flag in data.flags:
        border = (flag.parameter, flag.side)
        if flag.parameter not in names or border in drawn:
            continue
        drawn.add(border)
        stage = next((stage for stage in data.stages if stage.name == flag.stage), None)
        bounds = None if stage is None else param_scale(data, flag.parameter).bounds(stage.space)
        if bounds is None:
            continue
        end = bounds[flag.side == "high"]
        i = names.index(flag.parameter)
        axis = "" if i == 0 else str(i + 1)
        log = param_scale(data, flag.parameter).log
        texts.append(
            {
                "x": math.log10(float(end)) if log else end,
                "xref": f"x{axis}",
                "y": 0.99,
                "yref": f"y{axis} domain",
                "yanchor": "top",
                "xanchor": "right" if flag.side == "high" else "left",
                "text": f"⚑ p = {flag.p_value:.2g}",
                "hovertext": plain(flag.message),
                "showarrow": False,
                "font": {"color": DIVERGED_COLOR, "size": 12},
            }
        )
    return texts


def _brush(data: FigureData, names: list[str]) -> dict[str, str]:
    """What each axis with numbers is of, so that a page can turn a box into a filter."""
    numeric = {i: name for i, name in enumerate(names) if not isinstance(data.space[name], CategoricalParam)}
    return {
        **{f"x{'' if i == 0 else i + 1}": f"params.{name}" for i, name in numeric.items()},
        **{f"y{'' if i == 0 else i + 1}": "value" for i in range(len(names))},
    }
