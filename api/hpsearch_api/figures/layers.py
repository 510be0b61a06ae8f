"""What happens in the layers of one trial: shares of dead units, and how large its updates are beside its weights."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch.errors import NotFound
from hpsearch.trial import StepMetrics, Trial
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.style import NEUTRAL, finish, plain, stage_color, step_title

DEAD, UPDATE = "diag/dead/", "diag/update_ratio/"
HEALTHY_RATIO = 1e-3
"""Of the norms of update and weights; cs231n, "Ratio of weights: updates"."""
NOTHING = "No layer was measured: diagnostics come from nets that a worker of this service trains."


def layers_figure(data: FigureData, *, number: int | None = None) -> go.Figure:
    """Dead shares and update ratios of each layer by epoch, of one trial; of the best one if no number is given.

    Raises:
        NotFound: no such trial.
    """
    trial = chosen(data, number)
    reported = [] if trial is None else data.metrics([trial.number])
    names = {prefix: [n for n in _names(reported) if n.startswith(prefix)] for prefix in (DEAD, UPDATE)}
    if trial is None or not any(names.values()):
        return finish(go.Figure(), title="Layers", notes=[NOTHING], height=300)
    fig = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    layers: list[str] = []
    for column, (prefix, found) in enumerate(names.items(), 1):
        for name in found:
            layer = plain(name.removeprefix(prefix))
            is_new = layer not in layers
            layers += [layer] * is_new
            seen = {s.step: s.values[name] for s in reported if math.isfinite(s.values.get(name, math.nan))}
            fig.add_trace(
                go.Scatter(
                    mode="lines+markers",
                    name=layer,
                    legendgroup=layer,
                    showlegend=is_new,
                    x=list(seen),
                    y=list(seen.values()),
                    line={"color": stage_color(layers.index(layer))},
                    customdata=[[trial.number]] * len(seen),
                    hovertemplate=f"{layer}, epoch %{{x}}: <b>%{{y:.3~g}}</b><extra></extra>",
                ),
                row=1,
                col=column,
            )
    fig.update_yaxes({"title": {"text": "share of dead units"}, "range": [-0.02, 1.02]}, row=1, col=1)
    fig.update_yaxes({"title": {"text": "update / weights"}, "type": "log"}, row=1, col=2)
    fig.add_hline(y=HEALTHY_RATIO, line={"color": NEUTRAL, "dash": "dash", "width": 1}, row=1, col=2)
    fig.update_xaxes(title={"text": step_title(data)})
    notes = [f"trial {trial.number}; updates of about 1e-3 of the weights (dashed) are healthy"]
    return finish(fig, title=f"Layers of trial {trial.number}", notes=notes, height=380)


def chosen(data: FigureData, number: int | None) -> Trial | None:
    """The trial of a number, or the best one without a number; None where no trial has completed.

    Raises:
        NotFound: no such trial.
    """
    if number is None:
        return next(iter(data.best()), None)
    found = next((t for t in data.trials if t.number == number), None)
    if found is None:
        raise NotFound("trial", number)
    return found


def _names(reported: list[StepMetrics]) -> list[str]:
    return list(dict.fromkeys(name for step in reported for name in step.values))
