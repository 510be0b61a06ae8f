"""Points for trials, the same in every figure: what hover tells, what a click opens, stars and crosses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from hpsearch.space import CategoricalParam
from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, numbers_of, values_of
from hpsearch_api.figures.style import DIVERGED_COLOR, WEBGL_FROM, compact, plain, scatter

MAX_HOVER_PARAMS = 12


def customdata(data: FigureData, trials: Sequence[Trial]) -> npt.NDArray[Any] | list[list[Any]]:
    """One row per trial: number, step, value, then the first parameters. The number comes first: a click opens it.

    Returns:
        an (n, 3 + p) array of floats where every parameter is a number, which travels as bytes; else lists. Of many
        trials the floats are short, exact for numbers up to 2^24 and seven digits of values.
    """
    names = list(data.space)[:MAX_HOVER_PARAMS]
    if any(isinstance(data.space[name], CategoricalParam) for name in names):
        return [[t.number, t.step, t.value, *(_cell(t.params.get(name)) for name in names)] for t in trials]
    columns: list[npt.NDArray[Any]] = [
        numbers_of(trials),
        np.array([t.step for t in trials], dtype=np.float64),
        values_of(trials),
    ]
    columns += [np.array([t.params.get(name, np.nan) for t in trials], dtype=np.float64) for name in names]
    return np.column_stack(columns).astype(np.float32 if len(trials) > WEBGL_FROM else np.float64)  # (n, 3 + p)


def _cell(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else plain(compact(value))


def hover(data: FigureData, stage: str, *, line: str | None = None) -> str:
    """A hover template for rows of :func:`customdata`; ``line`` stands in place of the value."""
    lines = [f"<b>trial %{{customdata[0]}}</b> · {plain(stage)}"]
    lines.append(line or f"<b>{plain(data.spec.metric.name)} %{{customdata[2]:.4~g}}</b> at step %{{customdata[1]}}")
    names = list(data.space)
    for i, name in enumerate(names[:MAX_HOVER_PARAMS], start=3):
        number = not isinstance(data.space[name], CategoricalParam)
        lines.append(f"{plain(name)} %{{customdata[{i}]{':.3~g' if number else ''}}}")
    if len(names) > MAX_HOVER_PARAMS:
        lines.append(f"and {len(names) - MAX_HOVER_PARAMS} more")
    return "<br>".join(lines) + "<extra></extra>"


def crosses(data: FigureData, trials: Sequence[Trial], *, n_points: int, **place: Any) -> go.Scatter:
    """Diverged trials as red crosses, with their reason. ``place``: ``x``, ``y`` and the like."""
    reasons = [plain((t.reason or "no reason given")[:120]) for t in trials]
    return scatter(n_points)(
        mode="markers",
        name="diverged",
        legendgroup="diverged",
        legendrank=1100,
        marker={
            "symbol": "x-thin",
            "size": 8 if len(trials) <= 200 else 5,
            "color": DIVERGED_COLOR,
            "opacity": 1 if len(trials) <= 200 else 0.6,
            "line": {"color": DIVERGED_COLOR, "width": 2 if len(trials) <= 200 else 1},
        },
        customdata=customdata(data, trials),
        text=reasons,
        hovertemplate=hover(data, "diverged", line="after step %{customdata[1]}: %{text}"),
        **place,
    )


def stars(data: FigureData, trials: Sequence[Trial], **place: Any) -> go.Scatter:
    """The best trials as stars. ``place``: ``x``, ``y`` and the like."""
    return go.Scatter(
        mode="markers",
        name="best three",
        legendgroup="best",
        legendrank=1200,
        marker={"symbol": "star", "size": 15, "color": "#F0E442", "line": {"color": "#1c2733", "width": 1.2}},
        customdata=customdata(data, trials),
        hovertemplate=hover(data, "among the best"),
        **place,
    )
