"""From what the store keeps to the documents of the interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpsearch.advancing import Proposal
from hpsearch.analysis import Analysis
from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.insight import eta_seconds, progress
from hpsearch.space import Space
from hpsearch.study import Border, Preflight, Stage, Study, Worker
from hpsearch.trial import Attempt, StepMetrics, Trial, TrialState
from hpsearch_api import models


def study_view(coordinator: Coordinator, study: Study, *, flags: bool = True) -> dict[str, Any]:
    """A study with counts, stages, best, flags (or none of them, which is quicker), progress and eta, JSON-ready."""
    store = coordinator.store
    stages = store.stages(study.id)
    done = progress(study, stages)
    document = models.StudyView(
        name=study.name,
        state=study.state,
        reason=study.reason,
        spec=spec_document(study),
        counts={state: sum(s.counts.get(state, 0) for s in stages) for state in TrialState},
        n_trials=study.next_number,
        stage=stages[-1].name,
        stages=[_stage(coordinator, study, stages, stage) for stage in stages],
        best=_optional(models.BestView, coordinator.insights.best(study, stages)),
        flags=flag_views(coordinator, study, stages) if flags else [],
        progress=models.ProgressView.model_validate(done),
        preflight=store.preflight(study.id).status,
        eta_seconds=eta_seconds(study, done.fraction, coordinator.clock()),
        created_at=study.created_at,
        ended_at=study.ended_at,
        last_event=store.last_event(study.id),
    )
    return document.model_dump(mode="json")


def spec_document(study: Study) -> dict[str, Any]:
    """The study's document with every default filled in."""
    return study.spec.model_dump(mode="json")


def preflight_view(preflight: Preflight) -> dict[str, Any]:
    """The checks of a study as JSON-ready values."""
    checks = [models.CheckView.model_validate(_numbers(check)) for check in preflight.checks]
    view = models.PreflightView(items=checks, status=preflight.status, worker=preflight.worker)
    return view.model_dump(mode="json")


def _numbers(check: dict[str, Any]) -> dict[str, Any]:
    """The store keeps what is not finite as text."""
    return {**check, "numbers": {name: float(value) for name, value in check["numbers"].items()}}


def preflight_lease(study: Study, token: str) -> dict[str, Any]:
    """Checks to run, as JSON-ready values."""
    spec = study.spec
    return {
        "study": study.name,
        "token": token,
        "objective": spec.objective.model_dump(mode="json"),
        "space": _space(spec.space),
        "study_seed": spec.seed,
    }


def stages_view(coordinator: Coordinator, study: Study) -> dict[str, Any]:
    """The stages of a study and what is proposed, as JSON-ready values."""
    stages = coordinator.store.stages(study.id)
    items = [_stage(coordinator, study, stages, stage) for stage in stages]
    proposals = [_proposal(proposal) for proposal in coordinator.stages.proposals(study, stages)]
    return models.StagesView(items=items, proposals=proposals).model_dump(mode="json")


def stage_view(coordinator: Coordinator, study: Study, stage: Stage) -> dict[str, Any]:
    """A stage as JSON-ready values."""
    return _stage(coordinator, study, coordinator.store.stages(study.id), stage).model_dump(mode="json")


def flag_views(coordinator: Coordinator, study: Study, stages: list[Stage]) -> list[models.FlagView]:
    """The flags of a study, each with what its user noted of it."""
    noted = coordinator.store.acknowledgements(study.id)
    views = []
    for flag in coordinator.insights.flags(study, stages):
        view = models.FlagView.model_validate(flag)
        note = noted.get(Border(flag.stage, flag.parameter, flag.side))
        acknowledged = None if note is None else models.AcknowledgementView.model_validate(note)
        passed_by = next((s.name for s in stages if s.extension and s.parent == flag.stage), None)
        views.append(view.model_copy(update={"acknowledged": acknowledged, "passed_by": passed_by}))
    return views


def analysis_view(analysis: Analysis) -> dict[str, Any]:
    """What the statistics say, as JSON-ready values."""
    finalists = [
        models.FinalistView(
            **{name: getattr(f, name) for name in models.FinalistView.model_fields if name != "trials"},
            trials=[trial.number for trial in f.trials],
        )
        for f in analysis.finalists
    ]
    return models.AnalysisView(
        narrowings=[models.StageNarrowingView.model_validate(n) for n in analysis.narrowings],
        agreements=[models.StageAgreementView.model_validate(a) for a in analysis.agreements],
        finalists=finalists,
    ).model_dump(mode="json")


def _proposal(proposal: Proposal) -> models.ProposalView:
    new = proposal.stage
    return models.ProposalView(
        kind=proposal.kind,
        name=proposal.name,
        reason=proposal.reason,
        parent=new.parent,
        space=_space(new.space),
        difference=new.difference,
        n_trials=new.n_trials,
        epochs=new.spec.n_epochs,
        n_epochs=proposal.n_epochs,
        spec=new.spec.model_dump(mode="json", exclude_none=True),
    )


def _space(space: Space) -> dict[str, Any]:
    return {name: param.model_dump(mode="json", exclude_none=True) for name, param in space.items()}


def _stage(coordinator: Coordinator, study: Study, stages: list[Stage], stage: Stage) -> models.StageView:
    return models.StageView(
        name=stage.name,
        index=stage.index,
        state=stage.state,
        n_trials=stage.n_trials,
        epochs=stage.spec.n_epochs,
        space=_space(stage.space),
        parent=stage.parent,
        difference=stage.difference,
        counts={state: stage.counts.get(state, 0) for state in TrialState},
        opened_at=stage.opened_at,
        ended_at=stage.ended_at,
        spec=stage.spec.model_dump(mode="json", exclude_none=True),
        extension=stage.extension,
        reason=stage.reason,
        n_inherited=coordinator.insights.n_inherited(study, stages, stage),
        n_epochs=stage.n_epochs,
        saved_epochs=coordinator.insights.saved_epochs(study, stages, stage),
    )


def _optional(model: type[models.BestView], value: object | None) -> models.BestView | None:
    return None if value is None else model.model_validate(value)


def trial_view(trial: Trial) -> dict[str, Any]:
    """A trial as JSON-ready values."""
    return models.TrialView(**_trial_fields(trial)).model_dump(mode="json")


def trial_detail(trial: Trial, attempts: list[Attempt]) -> dict[str, Any]:
    """A trial with every try at it, as JSON-ready values."""
    tries = [models.AttemptView.model_validate(attempt) for attempt in attempts]
    return models.TrialDetail(**_trial_fields(trial), attempts=tries).model_dump(mode="json")


def _trial_fields(trial: Trial) -> dict[str, Any]:
    seconds = (trial.ended_at - trial.started_at).total_seconds() if trial.ended_at and trial.started_at else None
    fields = {name: getattr(trial, name) for name in Trial.__dataclass_fields__}
    return {**fields, "duration_seconds": seconds}


def step_view(metrics: StepMetrics) -> dict[str, Any]:
    """One step's metrics as JSON-ready values."""
    return models.StepView.model_validate(metrics).model_dump(mode="json")


def worker_view(worker: Worker) -> dict[str, Any]:
    """A worker as JSON-ready values."""
    return models.WorkerView(
        name=worker.name,
        host=_text(worker.info.get("host")),
        device=_text(worker.info.get("device")),
        info=worker.info,
        holds=worker.n_leases,
        first_seen=worker.first_seen,
        last_seen=worker.last_seen,
    ).model_dump(mode="json")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def lease_views(assignments: Sequence[Assignment], lease_seconds: float) -> list[dict[str, Any]]:
    """Leases as :class:`lease_models.LeaseView` has them; JSON but for the times."""
    specs = {assignment.lease.study_id: assignment.spec for assignment in assignments}
    told = {
        study_id: {"objective": spec.objective.model_dump(mode="json"), "metric": spec.metric.model_dump(mode="json")}
        for study_id, spec in specs.items()
    }
    return [_lease_view(each, lease_seconds) | told[each.lease.study_id] for each in assignments]


def _lease_view(assignment: Assignment, lease_seconds: float) -> dict[str, Any]:
    lease, spec, resume = assignment.lease, assignment.spec, assignment.resume_from
    return {
        "study": lease.study,
        "stage": lease.stage,
        "trial": lease.trial,
        "attempt": lease.attempt,
        "token": lease.token,
        "expires_at": lease.expires_at,
        "params": lease.params,
        "epochs": lease.epochs,
        "folds": assignment.line.folds,
        "seeds": assignment.line.repeats,
        "seed": assignment.seed,
        "resume_from": None if resume is None else asdict(resume),
        "keep_stopped": assignment.n_kept[0],
        "keep_completed": assignment.n_kept[1],
        "stops_at": list(assignment.stops_at),
        "stops_from": assignment.stops_from,
        "study_seed": spec.seed,
        "data_seed": assignment.data_seed,
        "lease_seconds": lease_seconds,
    }
