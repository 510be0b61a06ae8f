"""Which figures there are, and how one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput, NotFound
from hpsearch.methods import NoStopping
from hpsearch.objective import TrainObjective
from hpsearch.spec import StudySpec
from hpsearch_api.figures.activations import activations_figure
from hpsearch_api.figures.axis import MAX_POINTS, axis_figure
from hpsearch_api.figures.confirming import agreement_figure, finalists_figure
from hpsearch_api.figures.curves import BY, curves_figure, trial_figure
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.history import history_figure
from hpsearch_api.figures.importances import importance_figure
from hpsearch_api.figures.layers import layers_figure
from hpsearch_api.figures.map import map_figure
from hpsearch_api.figures.parallel import parallel_figure
from hpsearch_api.figures.rungs import rungs_figure
from hpsearch_api.figures.slices import slice_figure
from hpsearch_api.figures.style import before_drawing
from hpsearch_api.figures.work import compute_figure, timeline_figure

Query = Mapping[str, str]

WHERE, HOW, SURE, WORK = "Where the best lies", "How it trained", "How sure it is", "Who worked"
"""Headings that figures stand under."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of figure.

    Attributes:
        title: what it shows, as a heading.
        parameters: query parameter → what it means.
        make: builds the figure; the query's names are known, its values are not yet checked.
        group: the heading under which a page has it.
    """

    name: str
    title: str
    parameters: Mapping[str, str]
    make: Callable[[FigureData, Query], go.Figure]
    group: str = WHERE


def shown_kinds(spec: StudySpec) -> list[str]:
    """The kinds that a page shows of a study: all that may have something to say."""
    needs = {
        "rungs": any(not isinstance(stage.early_stopping, NoStopping) for stage in spec.stages),
        "finalists": any(stage.top is not None for stage in spec.stages),
        "agreement": any(stage.n_epochs > 1 for stage in spec.stages),
        "layers": isinstance(spec.objective, TrainObjective),
        "activations": isinstance(spec.objective, TrainObjective),
    }
    return [kind for kind in KINDS if needs.get(kind, True)]


def make_figure(kind: str, data: FigureData, query: Query | None = None) -> go.Figure:
    """The figure of a kind.

    Raises:
        NotFound: no such kind, or no trial of the number in ``query``.
        InvalidInput: a query parameter that the kind does not have, or a value that names nothing.
    """
    if kind not in KINDS:
        raise NotFound("figure", kind)
    query = query or {}
    for name in query:
        if name not in KINDS[kind].parameters:
            known = list(KINDS[kind].parameters)
            raise InvalidInput(unknown(name, known, what="query parameter") if known else f"{kind} takes no {name!r}")
    before_drawing()
    return KINDS[kind].make(data, query)


def _axis(data: FigureData, query: Query) -> go.Figure:
    names = [_param(data, name) for name in query["params"].split(",")] if "params" in query else None
    columns = _whole(query, "columns", low=1, high=6)
    points = _whole(query, "points", low=100, high=MAX_POINTS)
    return axis_figure(data, params=names, columns=columns, points=points)


def _map(data: FigureData, query: Query) -> go.Figure:
    x, y = (_param(data, query[side]) if side in query else None for side in ("x", "y"))
    return map_figure(data, x=x, y=y)


def _curves(data: FigureData, query: Query) -> go.Figure:
    number = _whole(query, "trial", low=0, high=2**53)
    columns = _whole(query, "columns", low=1, high=6)
    if number is None:
        by = query.get("by", BY[0])
        if by not in BY:
            raise InvalidInput(unknown(by, list(BY), what="colour"))
        return curves_figure(data, metric=query.get("metric"), by=by)
    if "metric" in query:
        raise InvalidInput("trial shows every metric of one trial: give either trial or metric")
    return trial_figure(data, number=number, columns=columns)


def _slice(data: FigureData, query: Query) -> go.Figure:
    return slice_figure(data, columns=_whole(query, "columns", low=1, high=6))


def _layers(data: FigureData, query: Query) -> go.Figure:
    return layers_figure(data, number=_whole(query, "trial", low=0, high=2**53))


def _activations(data: FigureData, query: Query) -> go.Figure:
    columns = _whole(query, "columns", low=1, high=6)
    return activations_figure(data, number=_whole(query, "trial", low=0, high=2**53), columns=columns)


def _plainly(make: Callable[[FigureData], go.Figure]) -> Callable[[FigureData, Query], go.Figure]:
    """A figure that takes no parameters."""
    return lambda data, _: make(data)


def _param(data: FigureData, name: str) -> str:
    if name not in data.space:
        raise InvalidInput(unknown(name, list(data.space), what="parameter"))
    return name


def _whole(query: Query, name: str, *, low: int, high: int) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise InvalidInput(f"{name} {text!r} is not a whole number from {low} to {high}")
    return int(text)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "axis",
            "Metric against each parameter",
            {
                "params": "parameters, separated by commas",
                "columns": "subplots in a row, 1 to 6",
                "points": f"at most so many over all subplots, 100 to {MAX_POINTS}",
            },
            _axis,
        ),
        Kind("map", "Map of two parameters", {"x": "a parameter", "y": "another"}, _map),
        Kind("parallel", "Parallel coordinates", {}, _plainly(parallel_figure)),
        Kind("importance", "Importance of the parameters", {}, _plainly(importance_figure)),
        Kind("slice", "Slices through the best", {"columns": "subplots in a row, 1 to 6"}, _slice),
        Kind("history", "Best value so far", {}, _plainly(history_figure), group=HOW),
        Kind(
            "curves",
            "Learning curves",
            {
                "metric": "what to draw, the study's metric by default",
                "by": "what the colours tell: stage or verdict",
                "trial": "every metric of this trial instead",
                "columns": "of a trial: subplots in a row, 1 to 6",
            },
            _curves,
            group=HOW,
        ),
        Kind("layers", "Layers", {"trial": "of this trial, the best one by default"}, _layers, group=HOW),
        Kind(
            "activations",
            "Activations at the start",
            {"trial": "of this trial, the best one by default", "columns": "subplots in a row, 1 to 6"},
            _activations,
            group=HOW,
        ),
        Kind("rungs", "Stopped early", {}, _plainly(rungs_figure), group=HOW),
        Kind("finalists", "Finalists", {}, _plainly(finalists_figure), group=SURE),
        Kind("agreement", "Rank agreement between epoch budgets", {}, _plainly(agreement_figure), group=SURE),
        Kind("timeline", "Timeline of the workers", {}, _plainly(timeline_figure), group=WORK),
        Kind("compute", "Compute used", {}, _plainly(compute_figure), group=WORK),
    )
}
"""Every kind by name, in the order in which a page shows them."""
