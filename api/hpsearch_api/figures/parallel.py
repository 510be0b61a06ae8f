"""Parallel coordinates: a line through the params of each trial, coloured by its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpsearch.space import Value
from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, values_of
from hpsearch_api.figures.map import COLORS
from hpsearch_api.figures.scales import MetricScale, ParamScale, metric_scale, param_scale
from hpsearch_api.figures.style import NEUTRAL, compact, finish, missing_note, plain

MAX_AXES = 10
MAX_LINES = 400
"""The best half of so many, and the rest spread over all others: more lines hide each other."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One upright axis. ``low`` and ``high`` stand at 0 and 1, in logarithms (base 10) if ``log``; labels from 0 up.

    ``choices``: those that each label stands for.
    """

    key: str
    title: str
    low: float
    high: float
    log: bool
    labels: tuple[str, ...] = ()
    choices: tuple[tuple[Value, ...], ...] = ()

    def place(self, value: Any) -> float | None:
        """Where a value lies, 0 at the foot; None for what is missing."""
        if self.labels:
            return None if value is None else (self.labels.index(value) + 0.5) / len(self.labels)
        if value is None or not math.isfinite(value) or (self.log and value <= 0):
            return None
        number = math.log10(value) if self.log else float(value)
        return (number - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places of the texts beside the axis."""
        if self.labels:
            return [((i + 0.5) / len(self.labels), label) for i, label in enumerate(self.labels)]
        if self.log and self.high - self.low > 1:
            step = max(1, math.ceil((self.high - self.low) / 6))
            powers = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1, step)
            return [((power - self.low) / (self.high - self.low), f"1e{power}") for power in powers]
        ends = np.linspace(self.low, self.high, 5)
        return [(i / 4, compact(float(f"{10**end if self.log else end:.3g}"))) for i, end in enumerate(ends)]


def parallel_figure(data: FigureData) -> go.Figure:
    """A line per trial over the parameters and the metric; a box drawn over an axis chooses a range of it.

    ``layout.meta.axes`` says what each axis is, so that a page can turn such a box into a filter.
    """
    trials = data.valued()
    if not trials:
        return finish(go.Figure(), title="Parallel coordinates", notes=[missing_note(data)], height=300)
    axes = [_of_param(param_scale(data, name)) for name in list(data.space)[:MAX_AXES]]
    axes.append(_of_metric(data, metric_scale(data)))
    ranked = data.ranked()
    best, rest = ranked[: MAX_LINES // 2], ranked[MAX_LINES // 2 :]
    spread = [rest[int(i)] for i in np.linspace(0, len(rest) - 1, min(len(rest), MAX_LINES // 2))] if rest else []
    shown = [*best, *spread]
    fig = go.Figure(_lines(axes, shown))
    line = {"type": "line", "y0": 0, "y1": 1, "line": {"color": NEUTRAL, "width": 1}}
    note = f"the best {len(best):,} and {len(spread):,} others of {len(trials):,} trials"
    fig.update_layout(
        shapes=[line | {"x0": i, "x1": i} for i in range(len(axes))],
        annotations=[text for i, axis in enumerate(axes) for text in _texts(i, axis)],
        meta={"axes": [asdict(axis) for axis in axes]},
        dragmode="select",
        selectdirection="any",
        newselection_mode="immediate",
        showlegend=False,
    )
    finish(
        fig,
        title="Parallel coordinates",
        notes=[note if len(shown) < len(trials) else "", data.sample_note],
        height=440,
    )
    hidden = {"showgrid": False, "showticklabels": False, "showline": False, "ticks": "", "fixedrange": True}
    fig.update_xaxes(hidden, title={"text": ""}, range=[-0.35, len(axes) - 0.65])
    fig.update_yaxes(hidden, title={"text": ""}, range=[-0.04, 1.14])
    return fig


def _of_param(scale: ParamScale) -> Axis:
    if scale.labels:
        return Axis(f"params.{scale.name}", scale.name, 0.0, 1.0, False, scale.labels, scale.choices)
    assert scale.outer is not None
    low, high = (math.log10(end) for end in scale.outer) if scale.log else scale.outer
    return Axis(f"params.{scale.name}", scale.name, low, high if high > low else low + 1.0, scale.log)


def _of_metric(data: FigureData, scale: MetricScale) -> Axis:
    values = values_of(data.valued())
    low, high = float(values.min()), float(values.max())
    if scale.log:
        low, high = math.log10(low), math.log10(high)
    return Axis("value", data.spec.metric.name, low, high if high > low else low + 1.0, scale.log)


def _lines(axes: Sequence[Axis], shown: Sequence[Trial]) -> list[go.Scatter]:
    """One trace for each colour, its lines parted by gaps; the better ones (given first) are drawn last, on top."""
    order = list(reversed(shown))
    traces = []
    for level, color in enumerate(COLORS):
        part = order[level * len(order) // len(COLORS) : (level + 1) * len(order) // len(COLORS)]
        x: list[float | None] = []
        y: list[float | None] = []
        rows: list[list[Any]] = []
        for trial in part:
            for i, axis in enumerate(axes):
                value = trial.value if axis.key == "value" else _told(axis, trial)
                x.append(i)
                y.append(axis.place(value))
                rows.append([trial.number, plain(axis.title), plain(compact(value)) if not axis.labels else value])
            x.append(None)
            y.append(None)
            rows.append([trial.number, "", ""])
        if part:
            traces.append(
                go.Scatter(
                    mode="lines+markers",
                    name="trials",
                    x=x,
                    y=y,
                    customdata=rows,
                    hovertemplate="<b>trial %{customdata[0]}</b><br>%{customdata[1]} %{customdata[2]}<extra></extra>",
                    line={"color": color, "width": 2 if level == len(COLORS) - 1 else 1},
                    marker={"size": 4, "color": color},
                    opacity=0.45 + 0.5 * level / len(COLORS),
                    connectgaps=False,
                )
            )
    return traces


def _told(axis: Axis, trial: Trial) -> Any:
    value = trial.params.get(axis.key.removeprefix("params."))
    if axis.labels:
        return None if value is None else plain(compact(value))
    return value if isinstance(value, int | float) else None


def _texts(i: int, axis: Axis) -> list[dict[str, Any]]:
    plainly = {"x": i, "xref": "x", "yref": "y", "showarrow": False}
    title = plainly | {"y": 1.1, "text": f"<b>{plain(axis.title)}</b>", "xanchor": "center", "font": {"size": 12}}
    ticks = [
        plainly | {"y": y, "text": text, "xanchor": "right", "xshift": -6, "font": {"size": 10, "color": NEUTRAL}}
        for y, text in axis.ticks()
    ]
    return [title, *ticks]
