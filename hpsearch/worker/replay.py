"""One trial trained again, alone, beside what it reported the first time."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpsearch.allow import allowed, code_of, refusal
from hpsearch.errors import HpsearchError, InvalidInput
from hpsearch.http import encode
from hpsearch.insight import Insights
from hpsearch.lineage import Line, Lineage
from hpsearch.space import Params
from hpsearch.store import Store
from hpsearch.study import Stage, Study, StudyState
from hpsearch.trial import Action, Decision, Outcome, Report, Result, Trial, TrialState
from hpsearch.worker.command import CommandRunner
from hpsearch.worker.folders import Folders
from hpsearch.worker.loop import Runner
from hpsearch.worker.python import PythonRunner
from hpsearch.worker.session import LeasedTrial, PreflightTask
from hpsearch.worker.task import TaskRunner
from hpsearch.worker.train import TrainRunner


@dataclass(frozen=True, slots=True)
class Replayed:
    """A trial's metrics per epoch, as recorded (None where there is no record) and as trained again."""

    params: Params
    epochs: list[tuple[int, dict[str, float] | None, dict[str, float]]]

    def document(self) -> dict[str, Any]:
        """As JSON-ready values."""
        steps = [
            {
                "step": epoch,
                "recorded": recorded and {name: encode(value) for name, value in recorded.items()},
                "replayed": {name: encode(value) for name, value in replayed.items()},
            }
            for epoch, recorded, replayed in self.epochs
        ]
        return {"params": self.params, "steps": steps}


def read_test_split(store: Store, name: str) -> dict[str, Any]:
    """Train a study's winner again and read the test split, once: whoever asks again gets that reading.

    Returns:
        ``{trial, epochs, metrics}``, the metrics at the last epoch named ``test_…``.

    Raises:
        NotFound: no such study.
        InvalidInput: the study has not completed, or is not trained by us.
        HpsearchError: the training failed, or the data have no test split.
    """
    study = store.study(name)
    if (reading := store.test_reading(study.id)) is not None:
        return reading
    best = Insights(store).best(study, store.stages(study.id))
    if study.state is not StudyState.COMPLETED or best is None:
        raise InvalidInput(f"{name} is {study.state}: the test split is read for the winner of a completed study")
    epochs = replay_trial(store, name, best.trial, on_test=True).epochs
    last, _, metrics = epochs[-1]
    shown = {f"test_{key.removeprefix('val_')}": encode(value) for key, value in metrics.items() if key[:4] == "val_"}
    return store.log_test(study.id, {"trial": best.trial, "epochs": last, "metrics": shown}, now=datetime.now(UTC))


def replay_trial(
    store: Store,
    name: str,
    number: int,
    *,
    on_test: bool = False,
    allow: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> Replayed:
    """Train a trial again from what the store knows of it, evaluated on the validation or on the test split.

    ``allow`` and ``folders``: as :class:`hpsearch.worker.task.TaskRunner` has them, for code of the user's, which has
    no test split. It begins without a checkpoint.

    Raises:
        NotFound: no such study or trial.
        InvalidInput: the study's objective is not run by us, or its code may not run here.
        HpsearchError: the training failed; the text says why.
    """
    study = store.study(name)
    trial = store.trial(study.id, number)
    objective = study.spec.objective
    if objective.kind == "external" or (on_test and objective.kind != "train"):
        raise InvalidInput(f"{name} is of kind {objective.kind}: that is not possible for it here")
    code = code_of(objective)
    if code is not None and not allowed(code, allow):
        raise InvalidInput(refusal(code))
    stage = next(stage for stage in store.stages(study.id) if stage.name == trial.stage)
    recorded = {metrics.step: metrics.values for metrics in store.metrics(study.id, [number])}
    kept = _Kept()
    line = Lineage(store, Insights(store)).line(study.spec, study.id, stage.name, number, trial.params)
    with tempfile.TemporaryDirectory(prefix="hpsearch-") as checkpoints:
        runner = _runner(objective.kind, on_test, allow=allow, folders=folders, checkpoints=checkpoints)
        try:
            runner.run([_lease(study, stage, trial, line)], kept)
        finally:
            if isinstance(runner, PythonRunner | CommandRunner):
                runner.close()
    failed = [result.reason for result in kept.results if result.state is TrialState.FAILED]
    if failed:
        raise HpsearchError(f"trial {number} of {name} failed again: {failed[0]}")
    epochs = [(r.step, recorded.get(r.step), dict(r.metrics)) for r in kept.reports if r.step is not None]
    return Replayed(trial.params, epochs)


def _runner(kind: str, on_test: bool, *, allow: Sequence[str], folders: Sequence[Path], checkpoints: str) -> Runner:
    if kind == "train":
        return TrainRunner(on_test=on_test)
    if kind == "task":
        return TaskRunner(allow=allow, folders=folders)
    runner = PythonRunner if kind == "python" else CommandRunner
    return runner(allow=allow, folders=folders, checkpoints=Folders(checkpoints, every_seconds=0))


def _lease(study: Study, stage: Stage, trial: Trial, line: Line) -> LeasedTrial:
    spec = study.spec
    return LeasedTrial(
        study=spec.name,
        stage=stage.name,
        trial=trial.number,
        attempt=1,
        token="replay",  # noqa: S106 - nobody asks for it
        params=trial.params,
        epochs=stage.spec.n_epochs,
        folds=line.folds,
        seeds=line.repeats,
        seed=line.seed,
        objective=spec.objective.model_dump(mode="json"),
        metric=spec.metric.model_dump(mode="json"),
        study_seed=spec.seed,
        data_seed=line.data_seed,
        lease_seconds=0.0,
    )


class _Kept:
    """A channel that keeps what is said."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reports: list[Report] = []
        self.results: list[Result] = []

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        self.reports += reports
        return {report.token: Decision(report.token, Action.CONTINUE) for report in reports}

    def flush(self) -> bool:
        return True

    def finish(self, results: Sequence[Result]) -> list[Outcome]:
        self.results += results
        return [Outcome(result.token, accepted=True) for result in results]

    def release(self, tokens: Sequence[str]) -> None:
        """Nobody waits for them."""

    def log(self, texts: Mapping[str, str]) -> None:
        """Nobody reads them."""

    def checked(self, task: PreflightTask, checks: list[dict[str, Any]]) -> None:
        """Nobody waits for them."""
