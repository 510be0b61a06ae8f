"""Figures of a study: which there are, and one as Plotly JSON."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from hpsearch.coordinator import Coordinator
from hpsearch.store import TrialQuery, all_trials
from hpsearch.study import Stage, Study, StudyState
from hpsearch.trial import TrialState
from hpsearch_api.deps import PROBLEMS, TheCoordinator, TheMemory, TheStudy, check_text
from hpsearch_api.figures import KINDS, FigureData, make_figure
from hpsearch_api.figures.comparing import compare_figure
from hpsearch_api.figures.style import before_drawing
from hpsearch_api.memory import Memory
from hpsearch_api.pages.board import MANY, known_analysis

router = APIRouter(prefix="/api/v1/studies", tags=["figures"], responses=PROBLEMS)
compare_router = APIRouter(prefix="/api/v1/figures", tags=["figures"], responses=PROBLEMS)

DRAWN_STATES = tuple(state for state in TrialState if state not in (TrialState.QUEUED, TrialState.CANCELLED))
"""Figures show nothing of trials that never trained, and a study may have many of them."""

MAX_TRIALS = 10_000
"""Of a study with more trials figures draw every second, third, … of them."""
N_LEADERS = 100
"""So many of the best, and of the running ones, are drawn in any case."""
STEPS_SECONDS = 2.0
"""What running trials report is drawn this late at most."""


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
def get_figure(
    request: Request, coordinator: TheCoordinator, memory: TheMemory, study: TheStudy, kind: str
) -> Response:
    """The figure that ``plotly.io.from_json`` reads; numbers travel as typed arrays (``dtype``, ``bdata``)."""
    packed = packed_figure(coordinator, memory, study, kind, dict(request.query_params))
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(gzip.decompress(packed), media_type="application/json", headers=headers)
    return Response(packed, media_type="application/json", headers=headers | {"Content-Encoding": "gzip"})


def packed_figure(coordinator: Coordinator, memory: Memory, study: Study, kind: str, query: Mapping[str, str]) -> bytes:
    """A figure as JSON, gzipped, drawn anew when the study has changed."""
    stages = coordinator.store.stages(study.id)
    version = _version(coordinator, study, stages)
    patient = study.state is StudyState.RUNNING
    before_drawing()

    def draw() -> bytes:
        data = known_data(coordinator, memory, study)
        text: str = make_figure(kind, _completed(coordinator, memory, study, data, kind, query), query).to_json()
        return gzip.compress(text.encode(), compresslevel=3, mtime=0)

    return memory.get(("figure", study.id, kind, tuple(sorted(query.items()))), version, draw, patient=patient)


def known_data(coordinator: Coordinator, memory: Memory, study: Study) -> FigureData:
    """A study as figures need it, read anew when it has changed."""
    version = _version(coordinator, study, coordinator.store.stages(study.id))
    patient = study.state is StudyState.RUNNING
    before_drawing()
    return memory.get(("data", study.id), version, lambda: figure_data(coordinator, memory, study), patient=patient)


def _version(coordinator: Coordinator, study: Study, stages: Sequence[Stage]) -> tuple[int, ...]:
    """What changes with what a figure shows; steps of running trials are no events, so these count by the clock."""
    running = any(stage.counts.get(TrialState.RUNNING, 0) for stage in stages)
    beat = int(coordinator.clock().timestamp() / STEPS_SECONDS) if running else 0
    return (coordinator.store.last_event(study.id), beat)


def figure_data(coordinator: Coordinator, memory: Memory, study: Study) -> FigureData:
    """A study as figures need it: of many trials a sample, with the best and the running ones."""
    store = coordinator.store
    stages = store.stages(study.id)
    every = max(1, math.ceil(study.next_number / MAX_TRIALS))
    trials = all_trials(store, study.id, TrialQuery(states=DRAWN_STATES, every=every))
    if every > 1:
        sort = "-value" if study.spec.metric.direction == "maximize" else "value"
        best = TrialQuery(states=(TrialState.COMPLETED,), sort=sort, limit=N_LEADERS)
        running = TrialQuery(states=(TrialState.RUNNING,), limit=N_LEADERS)
        extra = store.trials(study.id, best).items + store.trials(study.id, running).items
        trials = list({trial.number: trial for trial in [*trials, *extra]}.values())
    flags_known = study.next_number <= MANY or memory.has(("findings", study.id))
    return FigureData(
        spec=study.spec,
        stages=stages,
        trials=trials,
        metrics=lambda numbers: store.metrics(study.id, numbers),
        flags=coordinator.insights.flags(study, stages) if flags_known else (),
        finalists=coordinator.insights.finalists(study, stages),
        n_trials=study.next_number if every > 1 else None,
    )


def _completed(
    coordinator: Coordinator, memory: Memory, study: Study, data: FigureData, kind: str, query: Mapping[str, str]
) -> FigureData:
    """The data with what one kind alone needs."""
    if kind == "agreement":
        return replace(data, agreements=known_analysis(coordinator, memory, study).agreements)
    text = query.get("trial", "")
    if data.n_trials is not None and text.isascii() and text.isdigit() and len(text) < 16:
        return replace(data, trials=[coordinator.store.trial(study.id, int(text))])
    return data


@compare_router.get(
    "/compare",
    summary="Several studies in one figure",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "description": "data and layout"}
    },
)
def compare(
    coordinator: TheCoordinator, memory: TheMemory, study: Annotated[list[str], Query(min_length=1, max_length=6)]
) -> Response:
    """The best value so far of each `study` (given once for each) against the epochs that its trials had trained."""
    found = [coordinator.store.study(check_text(name, "query.study")) for name in study]
    text = compare_figure([known_data(coordinator, memory, each) for each in found]).to_json()
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-cache"})
