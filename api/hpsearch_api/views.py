"""From what the store keeps to the documents of the interface."""

from __future__ import annotations

from typing import Any

from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.insight import eta_seconds, progress
from hpsearch.study import Preflight, Stage, Study, Worker
from hpsearch.trial import Attempt, StepMetrics, Trial, TrialState
from hpsearch_api import models


def study_view(coordinator: Coordinator, study: Study) -> dict[str, Any]:
    """A study with counts, stages, best, flags, progress and eta, as JSON-ready values."""
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
        stages=[_stage(stage) for stage in stages],
        best=_optional(models.BestView, coordinator.insights.best(study, stages)),
        flags=[models.FlagView.model_validate(flag) for flag in coordinator.insights.flags(study, stages)],
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
        "space": {name: param.model_dump(mode="json", exclude_none=True) for name, param in spec.space.items()},
        "study_seed": spec.seed,
    }


def stage_view(stage: Stage) -> dict[str, Any]:
    """A stage as JSON-ready values."""
    return _stage(stage).model_dump(mode="json")


def _stage(stage: Stage) -> models.StageView:
    return models.StageView(
        name=stage.name,
        index=stage.index,
        state=stage.state,
        n_trials=stage.n_trials,
        epochs=stage.spec.n_epochs,
        space={name: param.model_dump(mode="json", exclude_none=True) for name, param in stage.space.items()},
        parent=stage.parent,
        difference=stage.difference,
        counts={state: stage.counts.get(state, 0) for state in TrialState},
        opened_at=stage.opened_at,
        ended_at=stage.ended_at,
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


def lease_view(assignment: Assignment, lease_seconds: float) -> dict[str, Any]:
    """A lease as JSON-ready values."""
    lease, spec = assignment.lease, assignment.spec
    return models.LeaseView(
        study=lease.study,
        stage=lease.stage,
        trial=lease.trial,
        attempt=lease.attempt,
        token=lease.token,
        expires_at=lease.expires_at,
        params=lease.params,
        epochs=lease.epochs,
        folds=spec.stages[lease.stage_index].folds,
        seeds=spec.stages[lease.stage_index].n_repeats,
        seed=assignment.seed,
        objective=spec.objective.model_dump(mode="json"),
        metric=spec.metric.model_dump(mode="json"),
        study_seed=spec.seed,
        data_seed=assignment.data_seed,
        lease_seconds=lease_seconds,
    ).model_dump(mode="json")
