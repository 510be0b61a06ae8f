"""Finalists with their intervals, and how well short training tells long training."""

from __future__ import annotations

import plotly.graph_objects as go

from hpsearch.search.agreement import WEAK
from hpsearch.search.confirming import Finalist
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.style import NEUTRAL, compact, finish, metric_title, missing_note, plain, stage_color

MAX_LABEL_PARAMS = 4


def finalists_figure(data: FigureData) -> go.Figure:
    """The mean of each finalist with its 90 % interval, the values of its seeds, and what it was chosen for."""
    found = list(data.finalists)
    if not found:
        note = missing_note(data) or "No confirm stage has a result yet."
        return finish(go.Figure(), title="Finalists", notes=[note], height=300)
    labels = [f"{i}. {_label(finalist)}" for i, finalist in enumerate(found, 1)]
    seeds = [(label, trial) for label, finalist in zip(labels, found, strict=True) for trial in finalist.trials]
    name = plain(data.spec.metric.name)
    fig = go.Figure()
    fig.add_trace(
        go.Scatter(
            mode="markers",
            name="one seed",
            x=[trial.value for _, trial in seeds],
            y=[label for label, _ in seeds],
            customdata=[[trial.number] for _, trial in seeds],
            hovertemplate=f"<b>trial %{{customdata[0]}}</b><br>{name} %{{x:.4~g}}<extra>one seed</extra>",
            marker={"color": NEUTRAL, "size": 7, "opacity": 0.7},
        )
    )
    chosen = [(label, f) for label, f in zip(labels, found, strict=True) if f.selected is not None]
    fig.add_trace(
        go.Scatter(
            mode="markers",
            name="was chosen at",
            x=[f.selected for _, f in chosen],
            y=[label for label, _ in chosen],
            hovertemplate=f"{name} %{{x:.4~g}} when it was chosen<extra></extra>",
            marker={"symbol": "line-ns-open", "color": stage_color(1), "size": 14, "line": {"width": 2}},
        )
    )
    fig.add_trace(
        go.Scatter(
            mode="markers+text",
            name="mean, 90 % interval",
            x=[f.mean for f in found],
            y=labels,
            error_x=_reach(found),
            text=[f"best with {f.probability_best:.0%}" if f.probability_best is not None else "" for f in found],
            textposition="top center",
            customdata=[[f.trials[0].number, f.n] for f in found],
            hovertemplate=f"{name} <b>%{{x:.4~g}}</b>, mean of %{{customdata[1]}} seeds<extra></extra>",
            marker={"color": stage_color(0), "size": 11},
        )
    )
    fig.update_layout(
        xaxis={"title": {"text": metric_title(data)}},
        yaxis={"type": "category", "autorange": "reversed", "categoryarray": labels, "categoryorder": "array"},
    )
    return finish(fig, title="Finalists", notes=[], height=180 + 52 * len(found))


def _label(finalist: Finalist) -> str:
    shown = list(finalist.params.items())[:MAX_LABEL_PARAMS]
    rest = " …" if len(finalist.params) > len(shown) else ""
    return plain(", ".join(f"{name} {compact(value)}" for name, value in shown)) + rest


def _reach(found: list[Finalist]) -> dict[str, object]:
    reach = [0.0 if f.interval is None else f.interval[1] - f.mean for f in found]
    return {"type": "data", "array": reach, "color": stage_color(0), "thickness": 2, "width": 7}


def agreement_figure(data: FigureData) -> go.Figure:
    """Rank correlation of the order after few epochs with the order after many, with its 90 % interval."""
    seen = [a for a in data.agreements if a.agreement.spearman is not None]
    if not seen:
        note = missing_note(data) or "Nothing was trained for several epochs yet."
        return finish(go.Figure(), title="Rank agreement", notes=[note], height=300)
    fig = go.Figure()
    for i, (stage, against) in enumerate(dict.fromkeys((a.stage, a.against) for a in seen)):
        rows = [a.agreement for a in seen if (a.stage, a.against) == (stage, against)]
        middle = [r.spearman or 0.0 for r in rows]
        ends = [r.interval or (m, m) for r, m in zip(rows, middle, strict=True)]
        of = f" against {plain(against)}" if against != stage else ""
        fig.add_trace(
            go.Scatter(
                mode="lines+markers",
                name=f"{plain(stage)}{of}",
                x=[r.epochs for r in rows],
                y=middle,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - m for (_, high), m in zip(ends, middle, strict=True)],
                    "arrayminus": [m - low for (low, _), m in zip(ends, middle, strict=True)],
                    "thickness": 1.2,
                },
                customdata=[[None, r.of, r.n, r.top, None if r.overlap is None else 100 * r.overlap] for r in rows],
                hovertemplate="epoch %{x} against %{customdata[1]}: <b>%{y:.2f}</b> over %{customdata[2]} trials<br>"
                "%{customdata[4]:.0f} % of the best %{customdata[3]} shared<extra>%{fullData.name}</extra>",
                line={"color": stage_color(i)},
                marker={"size": 8},
            )
        )
    epochs = sorted({a.agreement.epochs for a in seen})
    fig.add_hline(y=WEAK, line={"color": NEUTRAL, "dash": "dash", "width": 1})
    fig.update_layout(
        xaxis={"title": {"text": "epochs trained"}, "type": "log", "tickmode": "array", "tickvals": epochs},
        yaxis={"title": {"text": "rank correlation with the last epoch"}, "range": [-1.05, 1.05]},
    )
    notes = ["below the dashed line short training does not tell long training"]
    return finish(fig, title="Rank agreement between epoch budgets", notes=notes, height=380)
