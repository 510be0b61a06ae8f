"""Learning curves: what trials reported at each step."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput, NotFound
from hpsearch.objective import TrainObjective, train_metrics
from hpsearch.trial import StepMetrics, Trial, TrialState
from hpsearch_api.figures.activations import START
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.scales import spans_decades
from hpsearch_api.figures.style import (
    DIVERGED_COLOR,
    NEUTRAL,
    compact,
    finish,
    metric_title,
    plain,
    stage_color,
    step_title,
)

MAX_CURVES = 200
MAX_HOVER_PARAMS = 8
BY = ("stage", "verdict")
VERDICT_COLORS = {
    "diverged": DIVERGED_COLOR,
    "lr_too_high": "#E69F00",
    "lr_too_low": "#56B4E9",
    "plateau_then_progress": "#999933",
    "overfitting": "#CC79A7",
    "underfitting": "#2F8FD0",
    "still_improving": "#44AA99",
    "saturated": "#882255",
    "dead_units": "#6b4c9a",
    "healthy": "#009E73",
}
NOTHING = "Nothing has been reported yet."
Curve = tuple[list[int], list[float]]
"""Steps and what was reported at them; non-finite values stay in place."""


def curves_figure(data: FigureData, *, metric: str | None = None, by: str = "stage") -> go.Figure:
    """A metric per step, one line per trial; of many trials the running ones and the best.

    ``layout.meta.metrics`` lists the metrics that can be asked for.

    Args:
        data: the study.
        metric: what to draw; the study's metric if not given.
        by: what the colours tell: ``stage`` or ``verdict`` (the first of each trial).

    Raises:
        InvalidInput: a metric that this study's trials do not report.
    """
    trials, note = _choose(data)
    reported = data.metrics([t.number for t in trials])
    known = metric_names(data, reported)
    name = metric or data.spec.metric.name
    if name not in known:
        raise InvalidInput(unknown(name, known, what="metric"))
    curves = _curves(reported, name)
    ranks = {t.number: i for i, t in enumerate(data.ranked())}
    fig = go.Figure()
    # The best are drawn last, on top.
    for trial in sorted(trials, key=lambda t: -ranks.get(t.number, -1)):
        if trial.number in curves:
            _add_curve(fig, data, trial, curves[trial.number], name=name, rank=ranks.get(trial.number), by=by)
    _legend_once(fig)
    is_loss = "loss" in name or (name == data.spec.metric.name and not data.maximize)
    log = is_loss and spans_decades(np.array([v for _, values in curves.values() for v in values]))
    fig.update_layout(
        xaxis={"title": {"text": step_title(data)}},
        yaxis={"title": {"text": metric_title(data, name)}, "type": "log" if log else "linear"},
        meta={"metrics": known},
    )
    if all(len(steps) <= 12 for steps, _ in curves.values()):
        fig.update_xaxes(dtick=1)
    title = f"{plain(name)} per {step_title(data)}"
    notes = [NOTHING if not curves else "", note]
    return finish(fig, title=title, notes=notes, height=440).update_layout(legend_itemsizing="trace")


def trial_figure(data: FigureData, *, number: int, columns: int | None = None) -> go.Figure:
    """Everything one trial reported; metrics that differ in ``train_`` and ``val_`` alone share a subplot.

    Raises:
        NotFound: no such trial.
    """
    trial = next((t for t in data.trials if t.number == number), None)
    if trial is None:
        raise NotFound("trial", number)
    reported = data.metrics([number])
    families: dict[str, list[str]] = defaultdict(list)
    for name in metric_names(data, reported):
        n_steps = sum(name in step.values for step in reported)
        if n_steps > 1 or n_steps == len(reported) > 0:  # a number said once of many epochs is no curve
            families[_family(name)].append(name)
    n_columns = max(min(len(families), columns or 2), 1)
    n_rows = max(math.ceil(len(families) / n_columns), 1)
    fig = make_subplots(rows=n_rows, cols=n_columns, horizontal_spacing=0.1 if n_columns > 1 else 0)
    for i, (family, names) in enumerate(families.items()):
        row, column = divmod(i, n_columns)
        place = {"row": row + 1, "col": column + 1}
        for j, name in enumerate(sorted(names, reverse=True), start=2 if len(names) > 1 else 0):
            steps, values = _curves(reported, name)[number]
            color = stage_color(1 if name.startswith("train_") else 0 if name.startswith("val_") else j)
            fig.add_trace(
                go.Scatter(
                    mode="lines+markers",
                    name=plain(name),
                    x=steps,
                    y=[v if math.isfinite(v) else None for v in values],
                    line={"color": color},
                    hovertemplate=f"{step_title(data)} %{{x}}: <b>%{{y:.4~g}}</b><extra>{plain(name)}</extra>",
                ),
                **place,
            )
        for verdict in trial.verdicts:
            if verdict["epoch"] is not None:
                _mark(fig, verdict, first=i == 0, **place)
        fig.update_yaxes(title={"text": plain(family)}, **place)
        fig.update_xaxes(title={"text": step_title(data)}, **place)
    return finish(
        fig,
        title=f"Trial {number}",
        notes=[NOTHING if not families else "", _where_not_finite(reported)],
        height=120 + 280 * n_rows,
    ).update_layout(legend_itemsizing="trace")


def _mark(fig: go.Figure, verdict: dict[str, Any], *, first: bool, **place: int) -> None:
    """A line at the epoch where a verdict shows; its name beside it in the first subplot."""
    name = str(verdict["name"])
    text = {"annotation_text": plain(name.replace("_", " ")), "annotation_font_size": 11} if first else {}
    line = {"color": VERDICT_COLORS.get(name, NEUTRAL), "dash": "dot", "width": 1.5}
    fig.add_vline(x=verdict["epoch"], line=line, **text, **place)


def metric_names(data: FigureData, reported: list[StepMetrics]) -> list[str]:
    """What curves can be drawn of: the study's metric first, and no histograms."""
    names = dict.fromkeys([data.spec.metric.name])
    if isinstance(data.spec.objective, TrainObjective):
        names |= dict.fromkeys(train_metrics(data.spec.objective))
    for step in reported:
        names |= dict.fromkeys(name for name in step.values if not name.startswith(START))
    return list(names)


def _choose(data: FigureData) -> tuple[list[Trial], str]:
    """Running trials (at most half of the room), then the best, then others, newest first, while there is room."""
    started = [t for t in data.trials if t.state is not TrialState.QUEUED]
    if len(started) <= MAX_CURVES:
        return started, ""
    running = data.running()[-MAX_CURVES // 2 :]
    best = data.ranked()[: MAX_CURVES - len(running)]
    what = f"the best {len(best)}" + (f" and {len(running)} running" if running else "")
    return [*running, *best], f"{what} of {len(started):,} trials"


def _curves(reported: list[StepMetrics], name: str) -> dict[int, Curve]:
    curves: dict[int, Curve] = defaultdict(lambda: ([], []))
    for step in reported:
        if name in step.values:
            curves[step.trial][0].append(step.step)
            curves[step.trial][1].append(step.values[name])
    return dict(curves)


def _add_curve(
    fig: go.Figure, data: FigureData, trial: Trial, curve: Curve, *, name: str, rank: int | None, by: str
) -> None:
    steps, values = curve
    best = rank is not None and rank < 3
    group, color = _group(data, trial, by)
    line: dict[str, Any] = {"color": color, "width": 3 if best else 1.5}
    if trial.state is TrialState.RUNNING:
        line["dash"] = "dot"
    fig.add_trace(
        go.Scatter(
            mode="lines+markers" if len(steps) == 1 or best else "lines",
            name=plain(group),
            legendgroup=plain(group),
            x=steps,
            y=[v if math.isfinite(v) else None for v in values],
            line=line,
            marker={"size": 6},
            opacity=1 if best or trial.state is TrialState.RUNNING else 0.5,
            customdata=[[trial.number]] * len(steps),
            hovertemplate=_hover(data, trial, name),
        )
    )
    if trial.state is TrialState.DIVERGED:
        finite = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        if finite:
            fig.add_trace(
                go.Scatter(
                    mode="markers",
                    name="diverged",
                    legendgroup="diverged",
                    x=[finite[-1][0]],
                    y=[finite[-1][1]],
                    marker={"symbol": "x-thin", "size": 8, "line": {"color": DIVERGED_COLOR, "width": 2}},
                    customdata=[[trial.number]],
                    hovertemplate=_hover(data, trial, name),
                )
            )


def _group(data: FigureData, trial: Trial, by: str) -> tuple[str, str]:
    """What a curve's colour says, and the colour."""
    if by == "stage":
        return trial.stage, stage_color(data.stage_names.index(trial.stage))
    verdict = str(trial.verdicts[0]["name"]) if trial.verdicts else "no verdict"
    return verdict.replace("_", " "), VERDICT_COLORS.get(verdict, NEUTRAL)


def _hover(data: FigureData, trial: Trial, name: str) -> str:
    params = list(trial.params.items())
    lines = [f"<b>trial {trial.number}</b> · {plain(trial.stage)}"]
    lines.append(f"{step_title(data)} %{{x}}: {plain(name)} <b>%{{y:.4~g}}</b>")
    lines += [f"{plain(key)} {plain(compact(value))}" for key, value in params[:MAX_HOVER_PARAMS]]
    if trial.state is not TrialState.COMPLETED:
        lines.append(plain(trial.state.value))
    return "<br>".join(lines) + "<extra></extra>"


def _legend_once(fig: go.Figure) -> None:
    seen: set[str] = set()
    for trace in fig.data:
        trace.showlegend = trace.legendgroup not in seen
        seen.add(trace.legendgroup)


def _family(name: str) -> str:
    for prefix in ("train_", "val_", "test_"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return "/".join(name.split("/")[:2])  # diag/update_ratio/LAYER


def _where_not_finite(reported: list[StepMetrics]) -> str:
    for step in reported:
        for name, value in step.values.items():
            if not math.isfinite(value):
                return f"{plain(name)} is {compact(value)} at step {step.step}"
    return ""
