"""The study as data: one document, checked by the same code in the command line, the client and the server."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hpsearch.document import Document, StorableText, Text, check_size, faults_of, parse_yaml, unknown
from hpsearch.errors import Fault, InvalidInput, InvalidSpec
from hpsearch.methods import EarlyStopping, NoStopping, Sampler, StageSampler
from hpsearch.objective import (
    ALIASES,
    CommandObjective,
    Objective,
    PythonObjective,
    TaskObjective,
    Trained,
    TrainObjective,
    is_own,
    searchable_paths,
    train_metrics,
)
from hpsearch.objective.command import OF_TRIAL, placeholders, variable
from hpsearch.space import MAX_INT, Space

STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Metric(Document):
    """The number that is optimised, as the objective reports it; a trial's value is the one of its last step."""

    name: Text
    direction: Literal["maximize", "minimize"]


class StageSpec(Document):
    """One pass: ``trials`` sampled from its space, or the parent's ``top`` trials with ``seeds`` fresh seeds each.

    ``folds``: each trial is trained once per fold of a stratified cross-validation. ``seeds`` of sampled trials: each
    is trained so many times with other initial weights. Its metrics are the means over all of these.
    """

    name: Annotated[str, Field(pattern=STUDY_NAME, max_length=50)]
    trials: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    top: Annotated[int, Field(ge=1, le=1000)] | None = None
    seeds: Annotated[int, Field(ge=1, le=1000)] | None = None
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    open_ended: bool = False
    """Without a plan: others add trials as they like (see :mod:`hpsearch.integrations.optuna`), which alone widens
    its space; it ends with its study."""
    resume: bool = False
    """With ``top``: each of the parent's best goes on from its checkpoint, in place of being trained anew."""
    sampler: StageSampler = Sampler()
    early_stopping: EarlyStopping = NoStopping()
    refine: Literal["narrow", "keep"] = "narrow"
    """Whether the space of a stage follows from its parent's trials, or stays the parent's."""
    on_border: Literal["flag", "extend"] = "flag"
    """What a flag at a border does: it proposes a stage past the border, or opens it, too."""
    max_extensions: Annotated[int, Field(ge=1, le=20)] = 2
    """How many stages ``on_border: extend`` may open after this one."""
    advance: Literal["auto", "manual"] = "auto"
    """Whether the stage opens by itself when its parent is done, or waits for its user."""

    @model_validator(mode="after")
    def _check(self) -> StageSpec:
        if self.open_ended:
            return self._check_open_ended()
        if self.trials is None and self.top is None:
            raise _fault(
                f"the stage {self.name!r} has no budget: give trials, or top to confirm the best of its parent"
            )
        if self.trials is not None and self.top is not None:
            raise _fault(f"the stage {self.name!r} has both trials and top: give one of them")
        if self.resume:
            self._check_resume()
        if not isinstance(self.early_stopping, NoStopping):
            self._check_early_stopping(self.early_stopping.name, self.early_stopping.first_epoch)
        return self

    def _check_open_ended(self) -> StageSpec:
        if self.trials is not None or self.top is not None:
            raise _fault(f"the stage {self.name!r} is open_ended and so has no plan: leave trials and top out")
        return self

    def _check_resume(self) -> None:
        if self.top is None:
            raise _fault("resume continues the best trials of the parent: give top in place of trials", "resume")
        for name in ("seeds", "folds"):
            if getattr(self, name) is not None:
                raise _fault(f"resume continues trials with the {name} that they have: leave {name} out", name)

    def _check_early_stopping(self, rule: str, first_epoch: int) -> None:
        if self.top is not None and not self.resume:
            raise _fault(
                f"{rule!r} would stop some seeds of a finalist and not others: leave early_stopping out",
                "early_stopping",
            )
        if self.epochs is None or first_epoch >= self.epochs:
            text = f"{rule!r} decides after epoch {first_epoch} at the earliest, and the stage trains {self.n_epochs}"
            raise _fault(f"{text}: give more epochs, or let it decide sooner", "early_stopping")

    @property
    def n_trials(self) -> int:
        """How many trials the stage plans; 0 where it is open-ended."""
        return self.trials if self.trials is not None else (self.top or 0) * self.n_seeds

    @property
    def n_seeds(self) -> int:
        """How many times each finalist is trained in a stage with ``top``; 3 by default, once where it resumes."""
        return 1 if self.resume else self.seeds or 3

    @property
    def n_repeats(self) -> int:
        """How many times one trial is trained with fresh seeds, within the trial; 1 in a stage with ``top``."""
        return self.seeds or 1 if self.top is None else 1

    @property
    def n_epochs(self) -> int:
        """How many epochs each trial trains; 1 where an external objective does not say."""
        return self.epochs or 1


class StopSpec(Document):
    """When a study ends itself, whichever comes first; see :mod:`hpsearch.search.ending`."""

    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A value of the metric: reached by a completed trial, the search is over."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Wall-clock time since the study was submitted."""
    epochs: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """Epochs trained over all stages; no trial is started that would exceed them."""
    no_improvement: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    """So many trials of a stage without a better one, and no better one to be expected of as many more."""

    @property
    def is_never(self) -> bool:
        """Whether the study goes on to its end."""
        return all(limit is None for limit in (self.target, self.seconds, self.epochs, self.no_improvement))


class StudySpec(Document):
    """One search problem. See docs/study.md for every key, its range and its default."""

    name: Annotated[str, Field(pattern=STUDY_NAME, max_length=100)]
    notes: Annotated[StorableText, Field(max_length=10_000)] = ""
    tags: Annotated[list[Text], Field(max_length=50)] = []
    objective: Objective
    metric: Metric
    space: Annotated[Space, Field(max_length=100)]
    stages: Annotated[list[StageSpec], Field(min_length=1, max_length=20)]
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    stop: StopSpec = StopSpec()
    preflight: bool = True
    """Whether a study that a worker of ours trains is checked before it spends anything."""

    @model_validator(mode="after")
    def _check(self) -> StudySpec:
        names = [stage.name for stage in self.stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise _fault(f"two stages are named {name!r}: name each once", f"stages.{i}.name")
        if self.stages[0].top is not None:
            raise _fault("the first stage has no parent to take the top trials of: give trials", "stages.0.top")
        for i, (parent, stage) in enumerate(pairwise(self.stages), 1):
            if stage.resume and stage.n_epochs <= parent.n_epochs:
                text = f"trials with {parent.n_epochs} epochs cannot be continued to {stage.n_epochs}: give more"
                raise _fault(text, f"stages.{i}.epochs")
        self._check_open_ended()
        if isinstance(self.objective, TrainObjective):
            self._check_metric(self.objective)
        if isinstance(self.objective, TrainObjective | TaskObjective):
            self._check_trained(self.objective)
        if isinstance(self.objective, PythonObjective | CommandObjective):
            self._check_own_code(self.objective.kind)
        if isinstance(self.objective, CommandObjective):
            self._check_command(self.objective)
        return self

    def _check_open_ended(self) -> None:
        if not any(stage.open_ended for stage in self.stages):
            if not self.space:
                raise _fault("the space is empty: give at least 1 parameter", "space")
        elif len(self.stages) > 1 or self.objective.kind != "external":
            raise _fault("an open_ended stage is the only one of its study, whose objective is external", "stages")

    def _check_metric(self, objective: TrainObjective) -> None:
        metrics = train_metrics(objective)
        if self.metric.name not in metrics:
            text = unknown(self.metric.name, list(metrics), what="metric")
            raise _fault(f"the objective never reports it: {text}", "metric.name")

    def _check_trained(self, objective: Trained) -> None:
        for i, stage in enumerate(self.stages):
            if stage.epochs is None:
                raise _fault(f"the stage {stage.name!r} has no budget of epochs: give epochs", f"stages.{i}.epochs")
            self._check_schedule(objective, stage.epochs, i)
        paths: dict[str, str] = {}
        known = searchable_paths(objective)
        for name, param in self.space.items():
            if name not in known and not (isinstance(objective, TaskObjective) and is_own(name)):
                raise _fault(unknown(name, known, what="parameter"), f"space.{name}")
            path = ALIASES.get(name, name)
            if path in paths:
                raise _fault(f"{paths[path]!r} and {name!r} are the same parameter: keep one", f"space.{name}")
            paths[path] = name
            for value in param.extremes():
                try:
                    objective.with_params({name: value})
                except ValidationError as error:
                    raise _fault(
                        f"{value!r} does not fit {path}: {error.errors()[0]['msg']}", f"space.{name}"
                    ) from None

    def _check_own_code(self, kind: str) -> None:
        for i, stage in enumerate(self.stages):
            for name in ("folds",) if stage.top is not None else ("folds", "seeds"):
                if getattr(stage, name) is not None:
                    text = f"code of kind {kind} is called once for each trial: leave {name} out"
                    raise _fault(text, f"stages.{i}.{name}")

    def _check_command(self, objective: CommandObjective) -> None:
        names = [*self.space, *(name for name in objective.params if name not in self.space)]
        for i, argument in enumerate(objective.argv):
            for name in placeholders([argument]):
                if name not in names and name not in OF_TRIAL:
                    hint = unknown(name, [*names, *OF_TRIAL], what="placeholder")
                    raise _fault(f"{hint}; braces themselves are written {{{{ and }}}}", f"objective.argv.{i}")
        variables: dict[str, str] = {}
        for name in names:
            other = variables.setdefault(variable(name), name)
            if other != name:
                raise _fault(f"{other!r} and {name!r} share the variable {variable(name)}: rename one", f"space.{name}")

    @staticmethod
    def _check_schedule(objective: Trained, epochs: int, stage: int) -> None:
        schedule = objective.optimizer.schedule
        for name, length in (("warmup_epochs", schedule.warmup_epochs), ("step_epochs", schedule.step_epochs)):
            if length > epochs and not (name == "step_epochs" and schedule.kind != "step"):
                raise _fault(
                    f"{name} {length:g} of the schedule is longer than the {epochs} epochs of the stage: shorten it",
                    f"stages.{stage}.epochs",
                )


def _fault(text: str, loc: str = "") -> PydanticCustomError:
    return PydanticCustomError("study", "{text}", {"text": text, "loc": loc})


def parse_study(document: Any) -> StudySpec:
    """Check a parsed document.

    Raises:
        InvalidSpec: with every wrong place, by its dotted path.
    """
    if not isinstance(document, dict):
        raise InvalidSpec([Fault("", f"a study is a mapping of keys, not {type(document).__name__}")])
    check_size(document)
    try:
        return StudySpec.model_validate(document)
    except ValidationError as error:
        raise InvalidSpec(faults_of(error, document)) from None


def load_study(path: Path) -> StudySpec:
    """Read and check a YAML or JSON file.

    Raises:
        InvalidInput: the file cannot be read.
        InvalidSpec: its text is not a study.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None
    return parse_study(parse_yaml(data))
