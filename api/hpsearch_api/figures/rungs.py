"""The rungs: how many trials came to each, how many were stopped there, and the epochs that this saved."""

from __future__ import annotations

import plotly.graph_objects as go

from hpsearch.methods import NoStopping
from hpsearch.search.stopping import RungCount, count_rungs
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.style import NEUTRAL, finish, missing_note, plain, stage_color, step_title

STOPPED_COLOR = stage_color(1)


def rungs_figure(data: FigureData) -> go.Figure:
    """A bar for each epoch at which trials of a stage were stopped: those that went on, and on top those that were not.

    Trials that still train at a rung count as having gone on.
    """
    word = step_title(data)
    labels: list[str] = []
    counts: list[RungCount] = []
    saved = planned = 0
    for stage in data.stages:
        if isinstance(stage.spec.early_stopping, NoStopping):
            continue
        trials = [trial for trial in data.trials if trial.stage == stage.name]
        found = count_rungs(stage.spec.early_stopping, trials, stage.spec.n_epochs)
        counts += found
        labels += [f"{plain(stage.name)} · {word} {count.step}" for count in found]
        saved += sum(count.saved_epochs for count in found)
        planned += stage.n_trials * stage.spec.n_epochs
    fig = go.Figure()
    if any(count.n_reached for count in counts):
        hover = f"%{{y}} trials %{{fullData.name}} at %{{x}}<br>%{{customdata}} {word}s saved<extra></extra>"
        went_on = [count.n_reached - count.n_stopped for count in counts]
        stopped = [count.n_stopped for count in counts]
        spared = [count.saved_epochs for count in counts]
        bar = {"x": labels, "customdata": spared, "hovertemplate": hover}
        fig.add_trace(go.Bar(name="went on", y=went_on, marker={"color": NEUTRAL, "opacity": 0.6}, **bar))
        fig.add_trace(go.Bar(name="stopped", y=stopped, marker={"color": STOPPED_COLOR}, text=stopped, **bar))
    fig.update_layout(barmode="stack", xaxis={"type": "category"}, yaxis={"title": {"text": "trials that came so far"}})
    return finish(fig, title="Stopped early", notes=[_note(data, counts, saved, planned, word)], height=400)


def _note(data: FigureData, counts: list[RungCount], saved: int, planned: int, word: str) -> str:
    if not data.trials:
        return missing_note(data)
    if all(isinstance(stage.spec.early_stopping, NoStopping) for stage in data.stages):
        return "No stage stops trials early."
    if not any(count.n_reached for count in counts):
        return "No trial was stopped so far."
    return f"{saved:,} of {planned:,} {word}s saved"
