"""The stages of a study, what may follow them, and the flags at their borders."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from hpsearch.advancing import OwnStage
from hpsearch.analysis import analyse
from hpsearch.study import Border
from hpsearch_api import views
from hpsearch_api.deps import PROBLEMS, StudyName, TheCoordinator
from hpsearch_api.models import AcknowledgeRequest, AnalysisView, FlagView, Items, StagesView, StageView

router = APIRouter(prefix="/api/v1/studies/{name}", tags=["studies"], responses=PROBLEMS)


@router.get("/stages", response_model=StagesView)
def list_stages(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """The stages opened so far with their spaces, parents and differences, and the stages that are proposed."""
    return views.stages_view(coordinator, coordinator.store.study(name))


@router.post("/stages", status_code=201, response_model=StageView)
def open_stage(name: StudyName, body: OwnStage, coordinator: TheCoordinator) -> dict[str, Any]:
    """Open the proposed stage (`{}`, or `{"proposal": NAME}` where there are several), with changes, or an own one.

    What runs now ends; a completed study runs again; the plan goes on from the new stage.
    """
    study = coordinator.store.study(name)
    return views.stage_view(coordinator, study, coordinator.open_stage(study, body))


@router.get("/analysis", response_model=AnalysisView)
def analysis(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """How the ranges were narrowed and why, whether short training tells what long will, and how sure the winner is."""
    study = coordinator.store.study(name)
    return views.analysis_view(analyse(coordinator.store, coordinator.insights, study))


@router.get("/flags", response_model=Items[FlagView])
def list_flags(name: StudyName, coordinator: TheCoordinator) -> dict[str, Any]:
    """Borders at which the best trials lie, the latest stage first."""
    study = coordinator.store.study(name)
    return {"items": views.flag_views(coordinator, study, coordinator.store.stages(study.id)), "next": None}


@router.post("/flags/acknowledge", response_model=Items[FlagView])
def acknowledge(name: StudyName, body: AcknowledgeRequest, coordinator: TheCoordinator) -> dict[str, Any]:
    """Note that a flag has been seen: it is shown as such, and nothing is proposed for it any more."""
    coordinator.acknowledge(name, Border(body.stage, body.parameter, body.side), body.note)
    return list_flags(name, coordinator)
