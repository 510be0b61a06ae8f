"""What the page of a study shows around its figures: the conclusion, what may be done next, and the evidence."""

from __future__ import annotations

from functools import partial
from typing import Any

from hpsearch.analysis import Analysis, analyse
from hpsearch.coordinator import Coordinator
from hpsearch.store import TrialQuery
from hpsearch.study import Study, StudyState
from hpsearch.trial import TrialState
from hpsearch_api.figures.style import before_drawing
from hpsearch_api.memory import Memory
from hpsearch_api.pages.formats import widest
from hpsearch_api.pages.headline import headline
from hpsearch_api.views import analysis_view, flag_views, preflight_view, stages_view, study_view

MANY = 5000
"""Up to so many trials everything is known at once."""
MAX_RUNNING = 200
"""Of so many running trials the workers are named."""


def board(coordinator: Coordinator, memory: Memory, study: Study, *, wait: bool) -> dict[str, Any]:
    """Everything above the figures.

    Flags, proposals and the analysis of a study of more than :data:`MANY` trials take their time: without ``wait`` they
    are left out (None) unless they are known.
    """
    stages = coordinator.store.stages(study.id)
    key = ("findings", study.id)
    found = None
    if wait or study.next_number <= MANY or memory.has(key):
        version = coordinator.store.last_event(study.id)
        patient = study.state is StudyState.RUNNING
        before_drawing()
        found = memory.get(key, version, lambda: _findings(coordinator, memory, study), patient=patient)
    flags = None
    if found is not None:
        flags = [flag.model_dump(mode="json") for flag in flag_views(coordinator, study, stages)]
    view = study_view(coordinator, study, flags=found is not None)
    return {
        "study": view,
        "flags": flags,
        "found": found,
        "headline": headline(view, flags),
        "checks": preflight_view(coordinator.store.preflight(study.id))["items"],
        "workers": _workers(coordinator, study),
        "widest": widest(view["spec"]["space"], view["stages"]),
        "planned_stages": view["spec"]["stages"][stages[-1].plan + 1 :],
    }


def known_analysis(coordinator: Coordinator, memory: Memory, study: Study) -> Analysis:
    """What the statistics say of a study, worked out anew when it has changed."""
    version = coordinator.store.last_event(study.id)
    patient = study.state is StudyState.RUNNING
    make = partial(analyse, coordinator.store, coordinator.insights, study)
    return memory.get(("analysis", study.id), version, make, patient=patient)


def _findings(coordinator: Coordinator, memory: Memory, study: Study) -> dict[str, Any]:
    return {
        "proposals": stages_view(coordinator, study)["proposals"],
        "analysis": analysis_view(known_analysis(coordinator, memory, study)),
    }


def _workers(coordinator: Coordinator, study: Study) -> list[str]:
    """Who trains this study now."""
    query = TrialQuery(states=(TrialState.RUNNING,), limit=MAX_RUNNING)
    held = coordinator.store.trials(study.id, query).items
    return sorted({trial.worker for trial in held if trial.worker is not None})
