"""How the hidden layers of one trial are activated before its first update: whether initialisation keeps the signal.

As in cs231n, "Weight initialization": a layer whose activations all crowd at one value, or at both ends of a saturated
function, or of which many units are dead, passes little on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch.trial import Trial
from hpsearch_api.figures.data import FigureData, Floats
from hpsearch_api.figures.layers import chosen
from hpsearch_api.figures.style import compact, finish, plain, stage_color

START = "diag/start/"
"""What :func:`hpsearch.training.diagnostics.start_histograms` reports begins so; a layer and a column follow."""
ENDS = {"low", "high", "dead"}
ALIKE = 20.0
"""Layers whose ranges differ by no more than this factor are drawn on one axis: then their widths can be compared."""
NOTHING = "No histogram was taken: nets that a worker of this service trains have some, if they train for 60 steps."


def activations_figure(data: FigureData, *, number: int | None = None, columns: int | None = None) -> go.Figure:
    """A histogram for each hidden layer, the first one first, with its spread and its share of dead units.

    Args:
        data: the study.
        number: of the trial; the best one if not given.
        columns: subplots in a row; at most 4 if not given.

    Raises:
        NotFound: no such trial.
    """
    trial = chosen(data, number)
    layers = {} if trial is None else _layers(data, trial)
    if trial is None or not layers:
        return finish(go.Figure(), title="Activations at the start", notes=[NOTHING], height=300)
    n_columns = min(columns or 4, len(layers))
    n_rows = math.ceil(len(layers) / n_columns)
    widths = [layer["high"] - layer["low"] for layer in layers.values()]
    alike = max(widths) <= ALIKE * min(widths)
    fig = make_subplots(
        rows=n_rows,
        cols=n_columns,
        subplot_titles=[_title(name, layer) for name, layer in layers.items()],
        shared_yaxes="all",
        shared_xaxes="all" if alike else False,
        horizontal_spacing=0.06 if n_columns > 1 else 0,
        vertical_spacing=0.28 / n_rows,
    )
    for i, (name, layer) in enumerate(layers.items()):
        row, column = divmod(i, n_columns)
        fig.add_trace(_histogram(name, layer, trial.number), row=row + 1, col=column + 1)
    fig.update_yaxes(tickformat=".0%")
    fig.update_yaxes(title={"text": "share"}, col=1)
    fig.update_annotations(font_size=12)
    fig.update_layout(bargap=0, showlegend=False)
    notes = [f"trial {trial.number}, before its first update", "" if alike else "each layer on a scale of its own"]
    return finish(
        fig, title=f"Activations of trial {trial.number} at the start", notes=notes, height=140 + 210 * n_rows
    )


def _layers(data: FigureData, trial: Trial) -> dict[str, dict[str, float]]:
    """What was reported of each layer, in the order of a forward pass; only layers that have it all."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for step in data.metrics([trial.number]):
        for name, value in step.values.items():
            if name.startswith(START) and math.isfinite(value):
                layer, _, column = name.removeprefix(START).rpartition("/")
                found[layer][column] = value
    return {layer: columns for layer, columns in found.items() if columns.keys() > ENDS}


def _centres(layer: Mapping[str, float]) -> tuple[Floats, Floats, float]:
    """Middles and shares (bins,) of a histogram, and the width of a bin; of equal activations a width to be seen."""
    shares = np.array([layer[name] for name in sorted(layer.keys() - ENDS)], dtype=np.float64)
    width = (layer["high"] - layer["low"]) / len(shares)
    middles: Floats = layer["low"] + width * (np.arange(len(shares), dtype=np.float64) + 0.5)
    return middles, shares, width or max(abs(layer["low"]), 1.0) / 50


def _title(name: str, layer: Mapping[str, float]) -> str:
    middles, shares, _ = _centres(layer)
    mean = shares @ middles / shares.sum()
    spread = math.sqrt(shares @ (middles - mean) ** 2 / shares.sum())
    return f"{plain(name)}: spread {compact(float(f'{spread:.2g}'))}, {layer['dead']:.0%} dead"


def _histogram(name: str, layer: Mapping[str, float], number: int) -> go.Bar:
    middles, shares, width = _centres(layer)
    ends = [
        [number, compact(float(f"{middle - width / 2:.3g}")), compact(float(f"{middle + width / 2:.3g}"))]
        for middle in middles
    ]
    return go.Bar(
        name=plain(name),
        x=middles,
        y=shares,
        width=width,
        customdata=ends,
        hovertemplate="%{customdata[1]} to %{customdata[2]}: <b>%{y:.1%}</b> of them<extra>%{fullData.name}</extra>",
        marker={"color": stage_color(0)},
    )
