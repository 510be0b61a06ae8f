"""Which figures there are, and how one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput, NotFound
from hpsearch_api.figures.axis import axis_figure
from hpsearch_api.figures.curves import curves_figure, trial_figure
from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.history import history_figure
from hpsearch_api.figures.map import map_figure

Query = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of figure.

    Attributes:
        title: what it shows, as a heading.
        parameters: query parameter → what it means.
        make: builds the figure; the query's names are known, its values are not yet checked.
    """

    name: str
    title: str
    parameters: Mapping[str, str]
    make: Callable[[FigureData, Query], go.Figure]


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
    return KINDS[kind].make(data, query)


def _axis(data: FigureData, query: Query) -> go.Figure:
    names = [_param(data, name) for name in query["params"].split(",")] if "params" in query else None
    columns = _whole(query, "columns", low=1, high=6)
    return axis_figure(data, params=names, columns=columns)


def _map(data: FigureData, query: Query) -> go.Figure:
    x, y = (_param(data, query[side]) if side in query else None for side in ("x", "y"))
    return map_figure(data, x=x, y=y)


def _curves(data: FigureData, query: Query) -> go.Figure:
    number = _whole(query, "trial", low=0, high=2**53)
    columns = _whole(query, "columns", low=1, high=6)
    if number is None:
        return curves_figure(data, metric=query.get("metric"))
    if "metric" in query:
        raise InvalidInput("trial shows every metric of one trial: give either trial or metric")
    return trial_figure(data, number=number, columns=columns)


def _history(data: FigureData, query: Query) -> go.Figure:  # noqa: ARG001 - has no parameters
    return history_figure(data)


def _param(data: FigureData, name: str) -> str:
    if name not in data.spec.space:
        raise InvalidInput(unknown(name, list(data.spec.space), what="parameter"))
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
        Kind("map", "Map of two parameters", {"x": "a parameter", "y": "another"}, _map),
        Kind(
            "axis",
            "Metric against each parameter",
            {"params": "parameters, separated by commas", "columns": "subplots in a row, 1 to 6"},
            _axis,
        ),
        Kind(
            "curves",
            "Learning curves",
            {
                "metric": "what to draw, the study's metric by default",
                "trial": "every metric of this trial instead",
                "columns": "of a trial: subplots in a row, 1 to 6",
            },
            _curves,
        ),
        Kind("history", "Best value so far", {}, _history),
    )
}
"""Every kind by name, in the order in which a page shows them."""
