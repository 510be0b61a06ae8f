"""Figures of a study: which there are, and one as Plotly JSON."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from hpsearch.store import TrialQuery, all_trials
from hpsearch.study import Study
from hpsearch.trial import TrialState
from hpsearch_api.deps import PROBLEMS, TheCoordinator, TheStudy
from hpsearch_api.figures import KINDS, FigureData, make_figure

router = APIRouter(prefix="/api/v1/studies", tags=["figures"], responses=PROBLEMS)

DRAWN_STATES = tuple(state for state in TrialState if state not in (TrialState.QUEUED, TrialState.CANCELLED))
"""Figures show nothing of trials that never trained, and a study may have many of them."""


@router.get("/{name}/figures", summary="The kinds of figures")
def list_figures(study: TheStudy) -> dict[str, Any]:  # noqa: ARG001 - the study must be there
    """Each kind with its title and the query parameters that it takes."""
    items = [{"kind": kind.name, "title": kind.title, "parameters": dict(kind.parameters)} for kind in KINDS.values()]
    return {"items": items, "next": None}


@router.get(
    "/{name}/figures/{kind}",
    summary="A figure as Plotly JSON",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "data and layout"}
    },
)
def get_figure(request: Request, coordinator: TheCoordinator, study: TheStudy, kind: str) -> Response:
    """The figure that ``plotly.io.from_json`` reads; numbers travel as typed arrays (``dtype``, ``bdata``)."""
    figure = make_figure(kind, figure_data(coordinator, study), dict(request.query_params))
    return Response(figure.to_json(), media_type="application/json", headers={"Cache-Control": "no-cache"})


def figure_data(coordinator: TheCoordinator, study: Study) -> FigureData:
    """A study as figures need it; metrics are read when a figure asks for them."""
    store = coordinator.store
    return FigureData(
        spec=study.spec,
        stages=store.stages(study.id),
        trials=all_trials(store, study.id, TrialQuery(states=DRAWN_STATES)),
        metrics=lambda numbers: store.metrics(study.id, numbers),
    )
